//! librdkafka's clients: their settings, and what they tell beside messages.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::error::{Failure, of_code};

/// librdkafka's settings that are not the user's: exactly-once rests on them.
pub const RESERVED_PROPERTIES: [&str; 11] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "transactional.id",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "group.id",
    "isolation.level",
    "enable.auto.commit",
    "auto.offset.reset",
    // It is `message_bytes_max`.
    "message.max.bytes",
];

/// How long the coordinator lets a transaction be open. A job that died in a commit holds back read-committed readers of its topics
/// for so long, unless it is started again; a commit that takes longer is done again.
const TRANSACTION_TIMEOUT_MS: &str = "30000";

/// Settings of every client, the user's over the sink's own.
fn common(brokers: &str, properties: &BTreeMap<String, String>, own: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(if tracing::enabled!(tracing::Level::DEBUG) { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    // A broker that restarts is found again soon; closing idle connections is no news.
    for (name, value) in [
        ("client.id", "orderflow"),
        ("reconnect.backoff.ms", "50"),
        ("reconnect.backoff.max.ms", "1000"),
        ("log.connection.close", "false"),
        ("socket.keepalive.enable", "true"),
        ("allow.auto.create.topics", "false"),
    ] {
        config.set(name, value);
    }
    for &(name, value) in own {
        config.set(name, value);
    }
    for (name, value) in properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", brokers);
    config
}

/// The producer's settings.
pub(super) fn producer_config(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    transactional_id: &str,
    message_bytes_max: usize,
) -> ClientConfig {
    let mut config = common(
        brokers,
        properties,
        &[
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            // As Java's clients do, so that other programs find a key's partition.
            ("partitioner", "murmur2_random"),
            // A commit is sent as a whole and waited for: batches fill while it is queued.
            ("linger.ms", "0"),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "65536"),
            ("retry.backoff.ms", "20"),
            ("retry.backoff.max.ms", "500"),
            // A commit fails as a whole if a message does.
            ("delivery.report.only.error", "true"),
        ],
    );
    config.set("transactional.id", transactional_id);
    config.set("message.max.bytes", message_bytes_max.to_string());
    config
}

/// Whether a consumer waits for transactions that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// It does, also where it asks for offsets: the broker then answers only when no transaction that holds one is open.
    ReadCommitted,
    /// It does not: offsets are those that were committed last.
    ReadUncommitted,
}

/// The settings of a consumer that reads back what was committed.
pub(super) fn consumer_config(brokers: &str, properties: &BTreeMap<String, String>, group: &str, isolation: Isolation) -> ClientConfig {
    let mut config = common(brokers, properties, &[("fetch.wait.max.ms", "50"), ("fetch.error.backoff.ms", "100")]);
    for (name, value) in [
        ("group.id", group),
        ("isolation.level", if isolation == Isolation::ReadCommitted { "read_committed" } else { "read_uncommitted" }),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "error"),
    ] {
        config.set(name, value);
    }
    config
}

/// Shortest time between two log lines about lost connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Takes what a client tells beside messages.
#[derive(Default)]
pub(super) struct Context {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    last_reason: Option<String>,
    refusal: Option<Failure>,
    logged: Option<Instant>,
}

impl Context {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was told, so that it explains no failure of a later step.
    pub fn forget(&self) {
        let mut told = self.told();
        told.last_reason = None;
        told.refusal = None;
    }

    /// `failure`, with what is known of its cause.
    pub fn explain(&self, failure: Failure) -> Failure {
        let told = self.told();
        match (failure, &told.refusal, &told.last_reason) {
            (Failure::Unavailable(_), Some(Failure::Refused(reason)), _) => Failure::Refused(reason.clone()),
            (Failure::Unavailable(text), _, Some(reason)) => Failure::Unavailable(format!("{text} ({reason})")),
            (failure, _, _) => failure,
        }
    }

    fn warn(&self, message: &str) {
        let now = Instant::now();
        let mut told = self.told();
        // librdkafka goes on by itself, and a call that fails for it says so.
        if told.logged.is_some_and(|at| now.duration_since(at) < LOG_INTERVAL) {
            return;
        }
        told.logged = Some(now);
        drop(told);
        tracing::warn!(target: "orderflow::kafka", "{message}");
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            // One set of properties serves consumer and producer: each says that it does not use the other's.
            _ if facility == "CONFWARN" => tracing::debug!(target: "orderflow::kafka", "{message}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "orderflow::kafka", "{message}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => self.warn(message),
            _ => tracing::debug!(target: "orderflow::kafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // That all are down says less than why each is.
        if code == RDKafkaErrorCode::PartitionEOF || (code == RDKafkaErrorCode::AllBrokersDown && self.told().last_reason.is_some()) {
            return;
        }
        let failure = of_code(code, reason.to_owned());
        let mut told = self.told();
        told.last_reason = Some(reason.to_owned());
        if matches!(failure, Failure::Refused(_)) {
            told.refusal = Some(failure);
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.told().last_reason.get_or_insert_with(|| error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_explains_a_failure_until_it_is_forgotten() {
        let context = Context::default();
        let timed_out = || Failure::Unavailable("timed out".into());
        context.error(KafkaError::Global(RDKafkaErrorCode::SaslAuthenticationFailed), "wrong password");
        let explained = context.explain(timed_out());
        assert!(matches!(&explained, Failure::Refused(reason) if reason.contains("wrong password")), "{explained:?}");
        context.forget();
        assert_eq!(context.explain(timed_out()), timed_out());
        context.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "all are down");
        assert_eq!(context.explain(timed_out()), Failure::Unavailable("timed out (all are down)".into()));
    }
}
