//! Requests to Arroyo's API, against a server that records them and answers as Arroyo does.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use expect_test::expect;
use orderflow::arroyo::{Arroyo, ArroyoError, Pipeline, PipelineSettings};
use serde_json::{Value, json};

type Answer = (u16, Value);
type Answers = Box<dyn Fn(&str, &Value) -> Option<Answer> + Send + Sync>;

/// Answers as an empty Arroyo does, but where `special` says otherwise; keeps what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(special: Answers) -> Server {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (to, special) = (asked.clone(), Arc::new(special));
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
            let what = format!("{method} {uri}");
            let token = headers.get("authorization").map(|t| format!(" [{}]", t.to_str().unwrap())).unwrap_or_default();
            to.lock().unwrap().push(format!("{what}{token}{}", if body.is_null() { String::new() } else { format!(" {body}") }));
            let (status, answer) = special(&what, &body).unwrap_or_else(|| usual(&what));
            async move { (StatusCode::from_u16(status).unwrap(), answer.to_string()) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await.unwrap() });
        Server { address, asked }
    }

    fn api(&self) -> Arroyo {
        Arroyo::new(&self.address, None, Duration::from_secs(5)).unwrap()
    }

    fn asked(&self) -> String {
        self.asked.lock().unwrap().join("\n")
    }
}

fn usual(what: &str) -> Answer {
    let answer = match what.split('?').next().unwrap() {
        "GET /api/v1/udfs" | "GET /api/v1/pipelines" => json!({ "data": [], "hasMore": false }),
        "POST /api/v1/udfs/validate" => json!({ "udfName": "band", "errors": [] }),
        "POST /api/v1/udfs" => json!({ "id": "udf_1", "name": "band" }),
        "POST /api/v1/pipelines/validate_query" => json!({ "graph": { "nodes": [], "edges": [] }, "errors": null }),
        "POST /api/v1/pipelines" => json!({ "id": "pl_1", "name": "sold" }),
        "GET /api/v1/pipelines/pl_1/jobs" => json!({ "data": [{ "id": "job_1", "state": "Running", "failureMessage": null }] }),
        _ => return (404, json!({ "error": "Route not found" })),
    };
    (200, answer)
}

fn pipelines() -> Vec<Pipeline> {
    vec![Pipeline { name: "sold".into(), query: "SELECT band(1);".into(), udfs: vec![("band".into(), "fn band".into())] }]
}

const SETTINGS: PipelineSettings =
    PipelineSettings { parallelism: 2, checkpoint_interval: Some(Duration::from_secs(10)), wait: Duration::from_millis(700) };

#[tokio::test]
async fn what_is_asked_of_arroyo() {
    let server = Server::start(Box::new(|_, _| None)).await;
    let api = Arroyo::new(&format!("{}/", server.address), Some("secret".into()), Duration::from_secs(5)).unwrap();
    assert_eq!(api.submit(&pipelines(), SETTINGS).await.unwrap(), ["pl_1"]);
    expect![[r#"
        GET /api/v1/udfs?limit=100 [Bearer secret]
        POST /api/v1/udfs/validate [Bearer secret] {"definition":"fn band","language":"rust"}
        GET /api/v1/pipelines?limit=100 [Bearer secret]
        POST /api/v1/pipelines/validate_query [Bearer secret] {"query":"SELECT band(1);","udfs":[{"definition":"fn band","language":"rust"}]}
        POST /api/v1/udfs [Bearer secret] {"prefix":"orderflow","language":"rust","definition":"fn band","description":"band of orderflow"}
        POST /api/v1/pipelines [Bearer secret] {"name":"sold","query":"SELECT band(1);","udfs":[{"definition":"fn band","language":"rust"}],"parallelism":2,"checkpointIntervalMicros":10000000}
        GET /api/v1/pipelines/pl_1/jobs [Bearer secret]"#]]
    .assert_eq(&server.asked());
}

/// Nothing is created when something is wrong, and the message is Arroyo's.
async fn check_refused(special: Answers, expected: &str) -> ArroyoError {
    let server = Server::start(special).await;
    let error = server.api().submit(&pipelines(), SETTINGS).await.unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    let created =
        server.asked().lines().any(|line| line.starts_with("POST /api/v1/udfs {") || line.starts_with("POST /api/v1/pipelines {"));
    assert!(!created, "{}", server.asked());
    error
}

#[tokio::test]
async fn nothing_is_created_when_something_is_wrong() {
    let on = |path: &'static str, answer: Answer| -> Answers { Box::new(move |what, _| what.contains(path).then(|| answer.clone())) };
    let wrong = json!({ "errors": ["expected `;`", "second"], "udfName": null });
    check_refused(on("udfs/validate", (200, wrong)), "Arroyo cannot take function band: expected `;`; second").await;
    let wrong = json!({ "errors": ["table x not found"], "graph": null });
    check_refused(on("validate_query", (200, wrong)), "Arroyo cannot take stage sold: table x not found").await;
    let other = json!({ "data": [{ "id": "udf_9", "name": "band", "definition": "fn other" }] });
    check_refused(on("GET /api/v1/udfs", (200, other)), "another function band (udf_9)").await;
    let same = json!({ "data": [{ "id": "pl_9", "name": "sold" }], "hasMore": false });
    check_refused(on("GET /api/v1/pipelines?", (200, same)), "a pipeline sold (pl_9) already").await;
    let error = check_refused(on("validate_query", (400, json!({ "error": "no such thing" }))), "no such thing (HTTP status 400)").await;
    assert!(matches!(error, ArroyoError::Refused { status: 400, .. }));
}

#[tokio::test]
async fn what_is_there_is_used_and_pages_are_read() {
    let server = Server::start(Box::new(|what, _| {
        let answer = match what {
            "GET /api/v1/udfs?limit=100" => json!({ "data": [{ "id": "udf_1", "name": "other", "definition": "x" }], "hasMore": true }),
            "GET /api/v1/udfs?limit=100&starting_after=udf_1" => {
                json!({ "data": [{ "id": "udf_2", "name": "band", "definition": "fn band" }], "hasMore": false })
            }
            _ => return None,
        };
        Some((200, answer))
    }))
    .await;
    server.api().submit(&pipelines(), SETTINGS).await.unwrap();
    assert!(!server.asked().contains("POST /api/v1/udfs"), "{}", server.asked());
}

#[tokio::test]
async fn every_wait_ends() {
    let state = |state: &'static str| -> Answers {
        Box::new(move |what, _| {
            what.contains("/jobs").then(|| (200, json!({ "data": [{ "state": state, "failureMessage": "topic missing" }] })))
        })
    };
    let server = Server::start(state("Scheduling")).await;
    let error = server.api().submit(&pipelines(), SETTINGS).await.unwrap_err().to_string();
    assert!(error.contains("still Scheduling"), "{error}");
    let server = Server::start(state("Failed")).await;
    let error = server.api().submit(&pipelines(), SETTINGS).await.unwrap_err().to_string();
    assert!(error.contains("is Failed: topic missing"), "{error}");

    // One who listens and says nothing, and nobody at all.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let api = Arroyo::new(&address, None, Duration::from_millis(300)).unwrap();
    let error = api.submit(&pipelines(), SETTINGS).await.unwrap_err().to_string();
    assert!(error.contains("no answer in time"), "{error}");
    drop(silent);
    let error = api.submit(&pipelines(), SETTINGS).await.unwrap_err().to_string();
    assert!(error.contains("is Arroyo running there?"), "{error}");
    assert!(matches!(Arroyo::new("ftp://x", None, Duration::from_secs(1)), Err(ArroyoError::Address(..))));
}
