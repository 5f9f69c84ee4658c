//! What the job says of itself over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts it, `/` for people.
//!
//! The server has a thread and a small runtime of its own, so that it answers while the job's are busy or stuck.

mod page;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Opening sources, state and sinks.
    #[default]
    Starting,
    /// Playing the epoch log back.
    Recovering,
    /// Sealing new epochs.
    Live,
    /// Ending: what is in flight is still committed.
    Stopping,
    /// Ended by an error.
    Failed,
}

impl Phase {
    const ALL: [Phase; 5] = [Phase::Starting, Phase::Recovering, Phase::Live, Phase::Stopping, Phase::Failed];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Recovering => "recovering",
            Phase::Live => "live",
            Phase::Stopping => "stopping",
            Phase::Failed => "failed",
        }
    }
}

/// The job's phase, said by the job and read by the server. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicU8>);

impl Health {
    /// Says that the job is now in `phase`.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }
    /// The phase that was said last.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }
}

/// Why there is no status server.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another metrics.listen, or \"\" for none")]
    Bind {
        /// As it stands in the settings.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Its thread or runtime cannot be started.
    #[error("cannot start the status server: {0}")]
    Start(std::io::Error),
}

/// A running server; it ends when this is dropped.
pub struct StatusServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Serves on `listen` (`host:port`; port 0 for a free one).
    ///
    /// # Errors
    /// If the address cannot be bound or a thread not be started.
    pub fn start(listen: &str, job: &str, metrics: Metrics, health: Health) -> Result<StatusServer, StatusError> {
        let bind = |source| StatusError::Bind { address: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StatusError::Start)?;
        let shared = Shared { job: job.into(), metrics, health, rate: Arc::default(), started: Instant::now() };
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async move {
                let sampler = tokio::spawn(sample(shared.clone()));
                let server = async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    axum::serve(listener, router(shared)).await
                };
                tokio::select! {
                    result = server => if let Err(error) = result {
                        tracing::warn!(%error, "the status server ended");
                    },
                    _ = stopped => {}
                }
                sampler.abort();
            });
        };
        let thread = std::thread::Builder::new().name("status".into()).spawn(serve).map_err(StatusError::Start)?;
        Ok(StatusServer { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the status server panicked");
        }
    }
}

#[derive(Clone)]
struct Shared {
    job: Arc<str>,
    metrics: Metrics,
    health: Health,
    rate: Arc<Mutex<f64>>,
    started: Instant,
}

/// Over how many seconds the rate of rows is averaged.
const RATE_SECONDS: usize = 10;

/// Keeps `rate`, rows a second of late, up to date.
async fn sample(shared: Shared) {
    let mut samples = std::collections::VecDeque::with_capacity(RATE_SECONDS + 1);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        let now = ticks.tick().await;
        samples.push_back((now, shared.metrics.rows_in()));
        if samples.len() > RATE_SECONDS + 1 {
            samples.pop_front();
        }
        if let (Some((from, least)), Some((to, most))) = (samples.front(), samples.back()) {
            let seconds = to.duration_since(*from).as_secs_f64();
            let rate = if seconds > 0.0 { (most - least) as f64 / seconds } else { 0.0 };
            *shared.rate.lock().unwrap_or_else(PoisonError::into_inner) = rate;
        }
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.metrics.render())
}

/// Fails only where a restart would help.
async fn healthz(State(shared): State<Shared>) -> impl IntoResponse {
    let phase = shared.health.phase();
    (if phase == Phase::Failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, phase.name())
}

/// Succeeds while new rows are taken.
async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let phase = shared.health.phase();
    (if phase == Phase::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, phase.name())
}

async fn root(State(shared): State<Shared>) -> impl IntoResponse {
    let rate = *shared.rate.lock().unwrap_or_else(PoisonError::into_inner);
    let families = shared.metrics.gather();
    Html(page::render(&shared.job, shared.health.phase(), shared.started.elapsed(), rate, &families))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn request(address: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).expect("connects");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("reads");
        answer
    }

    #[test]
    fn answers() {
        let (metrics, health) = (Metrics::new(), Health::default());
        let server = StatusServer::start("127.0.0.1:0", "shop<1>", metrics.clone(), health.clone()).expect("starts");
        let get = |path| request(server.address(), path);
        assert!(get("/healthz").starts_with("HTTP/1.1 200"));
        assert!(get("/readyz").starts_with("HTTP/1.1 503"));
        health.set(Phase::Live);
        metrics.epoch_sealed(orderflow_operators::epoch::Epoch(41), 7);
        assert!(get("/readyz").starts_with("HTTP/1.1 200"));
        assert!(get("/metrics").contains("\norderflow_epoch_sealed 41\n"));
        let page = get("/");
        assert!(page.contains("shop&lt;1&gt;") && page.contains("live") && page.contains("41"), "{page}");
        health.set(Phase::Failed);
        assert!(get("/healthz").starts_with("HTTP/1.1 503"));
        assert!(get("/nothing").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = taken.local_addr().expect("has one").to_string();
        let error = StatusServer::start(&address, "job", Metrics::new(), Health::default()).err().expect("is taken");
        assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
    }
}
