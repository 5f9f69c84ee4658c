//! Arroyo's REST API, as far as a stage needs it: functions and pipelines.
//!
//! | what | request | body |
//! | --- | --- | --- |
//! | a function | `POST /api/v1/udfs/validate`, `GET` and `POST /api/v1/udfs` | `definition`; `prefix`, `language`, `description` |
//! | a stage | `POST /api/v1/pipelines/validate_query`, `GET` and `POST /api/v1/pipelines` | `query`; `name`, `parallelism`, `checkpointIntervalMicros` |
//! | how it does | `GET /api/v1/pipelines/{id}/jobs` | |
//!
//! Nothing is created before all of it is validated. Every wait ends.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, StatusCode, Url};
use serde_json::{Value, json};

/// Why Arroyo does not run a stage; with what it said.
#[derive(Debug, thiserror::Error)]
pub enum ArroyoError {
    /// The address is none.
    #[error("`{0}` is no address of an API: {1}; write --api http://host:5115")]
    Address(String, String),
    /// Nobody answers, or not in time.
    #[error("{url}: {cause}; is Arroyo running there? (--api http://host:5115, --timeout)")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why there is no answer.
        cause: String,
    },
    /// It answers with an error.
    #[error("Arroyo refuses {what}: {message} (HTTP status {status})")]
    Refused {
        /// What was asked of it.
        what: String,
        /// What it says.
        message: String,
        /// The answer's status.
        status: u16,
    },
    /// The function or the query is wrong, by its own validation.
    #[error("Arroyo cannot take {what}: {}", messages.join("; "))]
    Invalid {
        /// The function or the stage.
        what: String,
        /// What is wrong with it.
        messages: Vec<String>,
    },
    /// There is one of the name that is another.
    #[error("{0}")]
    Conflict(String),
    /// The pipeline is there and does not run.
    #[error("{0}")]
    NotRunning(String),
}

/// A stage to be run by Arroyo.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its name there.
    pub name: String,
    /// Its statements, as `orderflow_sql::stage::export` writes them.
    pub query: String,
    /// The functions that it calls: their names and texts.
    pub udfs: Vec<(String, String)>,
}

/// How it is run there.
#[derive(Clone, Copy, Debug)]
pub struct PipelineSettings {
    /// Subtasks of each operator.
    pub parallelism: u64,
    /// Time between two checkpoints; `None`: as Arroyo is set.
    pub checkpoint_interval: Option<Duration>,
    /// How long to wait until it runs; zero: not at all.
    pub wait: Duration,
}

/// An API.
pub struct Arroyo {
    client: Client,
    base: Url,
    token: Option<String>,
}

/// How long to wait between two questions for a pipeline's state.
const POLL: Duration = Duration::from_millis(300);

impl Arroyo {
    /// At an address such as `http://127.0.0.1:5115`; each request ends after `timeout`.
    ///
    /// # Errors
    /// If it is no address.
    pub fn new(address: &str, token: Option<String>, timeout: Duration) -> Result<Arroyo, ArroyoError> {
        let wrong = |cause: String| ArroyoError::Address(address.to_owned(), cause);
        let trimmed = address.trim_end_matches('/').trim_end_matches("/api/v1");
        let base = Url::parse(&format!("{trimmed}/api/v1/")).map_err(|e| wrong(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(wrong("it has another scheme than http and https".to_owned()));
        }
        let client = Client::builder().connect_timeout(Duration::from_secs(10).min(timeout)).timeout(timeout).build();
        Ok(Arroyo { client: client.map_err(|e| wrong(e.to_string()))?, base, token })
    }

    /// Validates functions and stages, creates what is not there, and waits until the pipelines run. Returns the pipelines' ids.
    ///
    /// # Errors
    /// If Arroyo refuses something. What was created before stays, and the same call goes on from there.
    pub async fn submit(&self, pipelines: &[Pipeline], settings: PipelineSettings) -> Result<Vec<String>, ArroyoError> {
        let mut udfs: Vec<&(String, String)> = pipelines.iter().flat_map(|pipeline| &pipeline.udfs).collect();
        udfs.sort();
        udfs.dedup();
        let known = self.all("udfs").await?;
        let mut missing = Vec::new();
        for (name, definition) in udfs {
            match known.iter().find(|known| known["name"] == name.as_str()) {
                Some(known) if known["definition"] == definition.as_str() => {}
                Some(known) => {
                    let id = known["id"].as_str().unwrap_or_default();
                    return Err(ArroyoError::Conflict(format!(
                        "Arroyo has another function {name} ({id}); delete it there if no pipeline needs it, or give this one another name"
                    )));
                }
                None => missing.push((name, definition)),
            }
        }
        for (name, definition) in &missing {
            let what = format!("function {name}");
            let answer =
                self.ask(Method::POST, "udfs/validate", Some(json!({ "definition": definition, "language": "rust" })), &what).await?;
            check_errors(&answer, &what)?;
        }
        let own = |pipeline: &Pipeline| -> Vec<Value> {
            pipeline.udfs.iter().map(|(_, d)| json!({ "definition": d, "language": "rust" })).collect()
        };
        let running = self.all("pipelines").await?;
        for pipeline in pipelines {
            let what = format!("stage {}", pipeline.name);
            if let Some(other) = running.iter().find(|other| other["name"] == pipeline.name.as_str()) {
                let id = other["id"].as_str().unwrap_or_default();
                return Err(ArroyoError::Conflict(format!(
                    "Arroyo has a pipeline {} ({id}) already; stop and delete it there, or rename the file",
                    pipeline.name
                )));
            }
            let body = json!({ "query": pipeline.query, "udfs": own(pipeline) });
            check_errors(&self.ask(Method::POST, "pipelines/validate_query", Some(body), &what).await?, &what)?;
        }
        for (name, definition) in &missing {
            let body = json!({ "prefix": "orderflow", "language": "rust", "definition": definition, "description": format!("{name} of orderflow") });
            self.ask(Method::POST, "udfs", Some(body), &format!("function {name}")).await?;
        }
        let mut ids = Vec::new();
        for pipeline in pipelines {
            let mut body =
                json!({ "name": pipeline.name, "query": pipeline.query, "udfs": own(pipeline), "parallelism": settings.parallelism });
            if let Some(interval) = settings.checkpoint_interval {
                body["checkpointIntervalMicros"] = json!(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX));
            }
            let what = format!("stage {}", pipeline.name);
            let created = self.ask(Method::POST, "pipelines", Some(body), &what).await?;
            let Some(id) = created["id"].as_str() else {
                return Err(ArroyoError::Refused { what, message: format!("its answer has no id: {created}"), status: 200 });
            };
            ids.push(id.to_owned());
        }
        for (pipeline, id) in pipelines.iter().zip(&ids) {
            self.wait(&pipeline.name, id, settings.wait).await?;
        }
        Ok(ids)
    }

    /// Until the pipeline runs.
    async fn wait(&self, name: &str, id: &str, wait: Duration) -> Result<(), ArroyoError> {
        let until = Instant::now() + wait;
        while !wait.is_zero() {
            let jobs = self.ask(Method::GET, &format!("pipelines/{id}/jobs"), None, &format!("the jobs of {name}")).await?;
            let job = &jobs["data"][0];
            let state = job["state"].as_str().unwrap_or("not there yet");
            match state {
                "Running" | "Finished" => return Ok(()),
                "Failed" | "Stopped" => {
                    let why = job["failureMessage"].as_str().unwrap_or("it does not say why");
                    return Err(ArroyoError::NotRunning(format!("pipeline {name} ({id}) is {state}: {why}")));
                }
                _ if Instant::now() >= until => {
                    return Err(ArroyoError::NotRunning(format!(
                        "pipeline {name} ({id}) is created, and after {} s still {state}; look at it in Arroyo's console",
                        wait.as_secs()
                    )));
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
        Ok(())
    }

    /// All entries of a collection, page by page.
    async fn all(&self, collection: &str) -> Result<Vec<Value>, ArroyoError> {
        let mut entries: Vec<Value> = Vec::new();
        loop {
            let after = entries.last().and_then(|last| last["id"].as_str()).map(|id| format!("&starting_after={id}")).unwrap_or_default();
            let page = self.ask(Method::GET, &format!("{collection}?limit=100{after}"), None, &format!("the list of {collection}")).await?;
            let before = entries.len();
            entries.extend(page["data"].as_array().into_iter().flatten().cloned());
            if page["hasMore"] != true || entries.len() == before {
                return Ok(entries);
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>, what: &str) -> Result<Value, ArroyoError> {
        let url = self.base.join(path).map_err(|e| ArroyoError::Address(path.to_owned(), e.to_string()))?;
        let unreachable = |e: reqwest::Error| {
            // Only the innermost cause says what happened.
            let mut cause: &dyn std::error::Error = &e;
            while let Some(source) = cause.source() {
                cause = source;
            }
            let cause = if e.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
            ArroyoError::Unreachable { url: url.to_string(), cause }
        };
        let mut request = self.client.request(method, url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        let refused = |message: String| ArroyoError::Refused { what: what.to_owned(), message, status: status.as_u16() };
        match parsed {
            Ok(value) if status.is_success() => Ok(value),
            Ok(value) => Err(refused(value["error"].as_str().map_or(text.clone(), str::to_owned))),
            Err(_) if status.is_success() && text.is_empty() => Ok(Value::Null),
            Err(_) if status == StatusCode::UNAUTHORIZED => Err(refused("it asks for a token; give --token".to_owned())),
            Err(_) => Err(refused(format!("this is no answer of Arroyo's API: {}", text.chars().take(200).collect::<String>()))),
        }
    }
}

/// What a validation has found.
fn check_errors(answer: &Value, what: &str) -> Result<(), ArroyoError> {
    let messages: Vec<String> = answer["errors"].as_array().into_iter().flatten().filter_map(|e| e.as_str().map(str::to_owned)).collect();
    if messages.is_empty() { Ok(()) } else { Err(ArroyoError::Invalid { what: what.to_owned(), messages }) }
}
