//! The settings of librdkafka's clients, and what they log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientContext, Statistics, TopicPartitionList};

use super::KafkaSettings;
use crate::source::{SourceError, SourceLimits};

/// Properties that are not the user's to set: the job would not be what it says without them.
const RESERVED: [(&str, &str); 8] = [
    ("bootstrap.servers", "set source.kafka.brokers"),
    ("metadata.broker.list", "set source.kafka.brokers"),
    ("group.id", "it is job.id"),
    ("auto.offset.reset", "the job alone chooses where to read, or it would lose or repeat messages"),
    ("enable.auto.commit", "group offsets are committed by the job, to show lag"),
    ("enable.auto.offset.store", "group offsets are committed by the job, to show lag"),
    ("enable.partition.eof", "the job measures lag by it"),
    ("enable.idempotence", "the job's producers are idempotent"),
];

/// librdkafka's settings for a client: the module's own, then the user's over them.
pub(crate) fn client_config(settings: &KafkaSettings, own: &[(&str, &str)]) -> Result<ClientConfig, SourceError> {
    let mut config = ClientConfig::new();
    config.set_log_level(if tracing::enabled!(tracing::Level::DEBUG) { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    config.set("bootstrap.servers", &settings.brokers);
    // A broker that restarts is found again soon; closing idle connections is no news.
    for (name, value) in [
        ("client.id", "orderflow"),
        ("reconnect.backoff.max.ms", "2000"),
        ("log.connection.close", "false"),
        ("socket.keepalive.enable", "true"),
    ] {
        config.set(name, value);
    }
    for &(name, value) in own {
        config.set(name, value);
    }
    for (name, value) in &settings.properties {
        if let Some(&(_, reason)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            return Err(SourceError::ReservedProperty { name: name.clone(), reason });
        }
        config.set(name, value);
    }
    // All properties are tried here, for an error that names the one and never shows its value.
    config.create_native_config().map_err(refused_settings)?;
    Ok(config)
}

/// The settings of the consumer.
pub(super) fn consumer_config(settings: &KafkaSettings, limits: &SourceLimits) -> Result<ClientConfig, SourceError> {
    // librdkafka's own queue of a partition comes on top of the split's buffer: enough to go on while that one is emptied.
    let queue_kbytes = (limits.buffer_bytes_max / 4 / 1024).clamp(1024, 16 * 1024).to_string();
    client_config(
        settings,
        &[
            ("group.id", &settings.group_id),
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            ("allow.auto.create.topics", "false"),
            ("check.crcs", "true"),
            // A message is sent on at once; a partition that was full, or was opened just now, joins the next request soon.
            ("fetch.min.bytes", "1"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.error.backoff.ms", "200"),
            ("queued.min.messages", "100000"),
            ("queued.max.messages.kbytes", &queue_kbytes),
            ("fetch.message.max.bytes", "4194304"),
        ],
    )
}

/// What librdkafka does not like about the settings.
pub(crate) fn refused_settings(error: KafkaError) -> SourceError {
    match error {
        KafkaError::ClientConfig(_, reason, name, _) => SourceError::Property { name, reason },
        KafkaError::ClientCreation(reason) => SourceError::Client { reason },
        other => SourceError::Client { reason: other.to_string() },
    }
}

/// Handles logs, errors and answers that wait in the consumer's common queue.
pub(super) fn serve(consumer: &BaseConsumer<Context>) {
    // Each call handles one event, and says nothing of whether there was one. What is left waits for the next time.
    for _ in 0..16 {
        if let Some(Ok(message)) = consumer.poll(Duration::ZERO) {
            // Every partition's queue is taken before the partition is assigned.
            unreachable!("a message came outside its partition's queue: {message:?}");
        }
    }
}

/// Shortest time between two log lines of a kind.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Takes what a client tells beside messages: into the log, at most a line of each kind in ten seconds.
#[derive(Default)]
pub(crate) struct Context {
    /// By kind: when it was logged, and how many lines were left out since.
    logged: Mutex<HashMap<String, (Instant, u64)>>,
    last_reason: Mutex<Option<String>>,
    refusal: Mutex<Option<String>>,
    delivery: Mutex<Delivery>,
}

/// What became of messages that were sent.
#[derive(Clone, Default)]
pub(crate) struct Delivery {
    pub delivered: u64,
    pub failed: u64,
    pub first_failure: Option<String>,
}

impl Context {
    /// The last thing that went wrong with a connection or partition.
    pub fn last_reason(&self) -> Option<String> {
        lock(&self.last_reason).clone()
    }

    /// Why the brokers do not want this client, if they said so.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.refusal).clone()
    }

    /// Counts of a producer's messages.
    pub fn delivery(&self) -> Delivery {
        lock(&self.delivery).clone()
    }

    /// Logs a warning, unless one of its kind was logged just now.
    pub fn warn(&self, kind: &str, text: &str) {
        let now = Instant::now();
        let mut logged = lock(&self.logged);
        let left_out = match logged.get_mut(kind) {
            Some((at, left_out)) if now.duration_since(*at) < LOG_INTERVAL => {
                *left_out += 1;
                return;
            }
            Some((_, left_out)) => *left_out,
            None => 0,
        };
        logged.insert(kind.to_owned(), (now, 0));
        drop(logged);
        if left_out > 0 {
            tracing::warn!(target: "orderflow::kafka", left_out, "{text}");
        } else {
            tracing::warn!(target: "orderflow::kafka", "{text}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            // One set of properties serves consumer and producer: each says that it does not use the other's.
            _ if facility == "CONFWARN" => tracing::debug!(target: "orderflow::kafka", "{message}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "orderflow::kafka", "{message}");
            }
            // A connection that fails is tried again by librdkafka.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => self.warn(facility, message),
            _ => tracing::debug!(target: "orderflow::kafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => return,
            Some(
                RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::UnsupportedSASLMechanism,
            ) => {
                *lock(&self.refusal) = Some(reason.to_owned());
            }
            // That all are down says less than why each is.
            Some(RDKafkaErrorCode::AllBrokersDown) if lock(&self.last_reason).is_some() => return,
            _ => {}
        }
        *lock(&self.last_reason) = Some(reason.to_owned());
        self.warn(&error.to_string(), reason);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(target: "orderflow::kafka", statistics = %String::from_utf8_lossy(statistics));
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            self.warn("commit", &format!("progress is not shown under the job's group: {error}"));
        }
    }
}

impl rdkafka::producer::ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, (): ()) {
        let mut delivery = lock(&self.delivery);
        match result {
            Ok(_) => delivery.delivered += 1,
            Err((error, _)) => {
                delivery.failed += 1;
                delivery.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
}
