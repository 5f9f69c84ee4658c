//! Kafka or Redpanda: one topic for each stream, a JSON object for each row.
//!
//! # Messages
//!
//! A message's value is the row as [`jsonl`](crate::jsonl) writes it; its key is `order_id` (`order_decisions`, `order_lines`,
//! `reservation_events`), `sku` (`stock_movements`) or none (`dead_letters`); its header `epoch` is the epoch in digits. Keys choose the
//! partition as in Java's clients, and rows of a key keep their order. A message over
//! [`message_bytes_max`](KafkaSettings::message_bytes_max) has its longest texts cut, its arrays if that is not enough, and at last has its
//! numbers alone; its length before is in the header `cut_from`.
//!
//! # Exactly once
//!
//! For readers with `isolation.level=read_committed`. A commit is one transaction with all rows behind the last commit and with the
//! record of the last epoch; where they are too many for one, several, each with whole epochs and the record of its own last one.
//! Nothing is sent before, so that no transaction is open while the sink waits, and readers are never held back for long.
//!
//! | when the job dies, or the brokers do | what the record says | what happens next |
//! | --- | --- | --- |
//! | before the transaction's end was sent | the epoch before | it is aborted, its rows come again |
//! | after that, not answered | the one or the other | the coordinator ends it before the new producer may begin; then as the record says |
//! | after the answer | the last epoch | nothing comes again |
//!
//! A new producer with the same transactional id fences the one before it: of two jobs of one id the older is told, and stops.
//! Whichever of them wrote, the record is in the same transaction as the rows.
//!
//! We maintain the invariant that **rows are kept until a record is known to be behind them**, so that any commit can be done again.

mod client;
mod error;
mod message;
mod session;
mod topic;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::OutputStream;

pub use self::client::RESERVED_PROPERTIES;
use self::error::Failure;
use self::message::{Messages, key_columns};
use self::session::{Known, Session, TRANSACTION_BYTES_MAX, Target};
use crate::{EpochRows, Recovered, Sink, SinkError};

/// Where the topics are and how to write to them.
#[derive(Clone)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// A topic's name is this and the stream's name.
    pub topic_prefix: String,
    /// The job's name, in transactional ids and groups.
    pub job: String,
    /// Partitions of a topic that the sink makes.
    pub partitions: u16,
    /// Replicas of a topic that the sink makes; 0: as many as the cluster does by itself.
    pub replication_factor: u16,
    /// Most bytes of a message. Brokers take a little over 1 MB unless told otherwise.
    pub message_bytes_max: usize,
    /// librdkafka's own settings (TLS, SASL, tuning), over those of the sink, except [`RESERVED_PROPERTIES`].
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        KafkaSettings {
            brokers: "127.0.0.1:9092".to_owned(),
            topic_prefix: "orderflow.".to_owned(),
            job: "orderflow".to_owned(),
            partitions: 4,
            replication_factor: 0,
            message_bytes_max: 1_000_000,
            properties: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("topic_prefix", &self.topic_prefix)
            .field("job", &self.job)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("message_bytes_max", &self.message_bytes_max)
            // Values may be passwords.
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// A point within a commit.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The transaction was begun; nothing is sent.
    Begun,
    /// Half of the messages are on their way.
    HalfSent,
    /// All messages are on their way.
    Sent,
    /// Messages and record were taken by the brokers.
    Acknowledged,
    /// The transaction is committed; the sink has not noted it.
    Committed,
}

impl Step {
    fn point(self) -> Point {
        match self {
            Step::Begun => Point::KafkaBegun,
            Step::HalfSent => Point::KafkaHalfSent,
            Step::Sent => Point::KafkaOffsets,
            Step::Acknowledged => Point::KafkaCommit,
            Step::Committed => Point::KafkaCommitted,
        }
    }
}

/// Writes one stream to its topic.
pub struct KafkaSink {
    target: Arc<Target>,
    schema: SchemaRef,
    key_columns: Vec<String>,
    /// Rows not known to be committed, by epoch.
    waiting: VecDeque<Arc<Messages>>,
    /// None before [`Sink::recover`].
    known: Option<Known>,
    /// None after an error.
    session: Option<Session>,
}

impl KafkaSink {
    /// A sink for `stream`, whose rows have the columns of `schema` ([`OutputStream::schema`]). Nothing is sent yet.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub fn new(stream: impl Into<OutputStream>, schema: SchemaRef, settings: KafkaSettings) -> Result<Self, SinkError> {
        let stream = stream.into();
        let topic = format!("{}{stream}", settings.topic_prefix);
        let refused = |reason: String| SinkError::refused(what(&topic), reason);
        if !topic_name_is_valid(&topic) {
            return Err(refused("a topic's name has at most 249 of the characters A-Z a-z 0-9 _-. ; mend sinks.kafka.topic_prefix".into()));
        }
        if let Some(name) = RESERVED_PROPERTIES.into_iter().find(|&name| settings.properties.contains_key(name)) {
            return Err(refused(format!("the setting `{name}` of librdkafka is the sink's own, as exactly-once rests on it")));
        }
        let transactional_id = format!("{}.{stream}", settings.job);
        let group = format!("{transactional_id}.sink");
        // All properties are tried here, for an error that names the one and never shows its value.
        client::producer_config(&settings.brokers, &settings.properties, &transactional_id, settings.message_bytes_max)
            .create_native_config()
            .map_err(|e| Failure::from(e).into_sink_error(what(&topic)))?;
        let owner = uuid::Uuid::new_v4().to_string();
        Ok(KafkaSink {
            target: Arc::new(Target { settings, topic, transactional_id, group, owner, on_step: RwLock::default() }),
            schema,
            key_columns: key_columns(&stream),
            waiting: VecDeque::new(),
            known: None,
            session: None,
        })
    }

    /// Calls `on_step` at each point of a commit, for tests that end it there.
    #[doc(hidden)]
    pub fn on_step(&self, on_step: impl Fn(Step) + Send + Sync + 'static) {
        *self.target.on_step.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(on_step));
    }

    fn known(&self) -> Result<Known, SinkError> {
        self.known.ok_or_else(|| SinkError::refused(what(&self.target.topic), "a commit before what is there was found out"))
    }

    /// Does transactions, and notes what they came to; `known` is what holds if they do not come back.
    async fn transact(
        &mut self,
        known: Known,
        work: impl FnOnce(&Arc<Target>, Option<Session>) -> Done + Send + 'static,
    ) -> Result<(), SinkError> {
        self.known = Some(known);
        let (session, target) = (self.session.take(), self.target.clone());
        let done = self.blocking(move || work(&target, session)).await?;
        self.session = done.session;
        self.known = Some(done.known);
        self.waiting.retain(|messages| messages.epoch > done.known.committed);
        done.result.map_err(|failure| failure.into_sink_error(what(&self.target.topic)))
    }

    /// librdkafka's calls block.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, SinkError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|stopped| SinkError::unavailable(what(&self.target.topic), stopped))
    }
}

fn what(topic: &str) -> String {
    format!("kafka topic {topic}")
}

/// Whether Kafka takes it as a topic's name.
pub fn topic_name_is_valid(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=249).contains(&name.len()) && name.chars().all(known) && name != "." && name != ".."
}

/// What transactions came to: how far it is known to be committed, and the session if it is still of use.
struct Done {
    known: Known,
    session: Option<Session>,
    result: Result<(), Failure>,
}

/// The epochs of a transaction, and the one that it records.
type Part<'a> = (&'a [Arc<Messages>], Epoch);

/// Does the transactions that are still missing, given the last epoch that is committed: an earlier try may have gone through.
fn transact<'a>(target: &Arc<Target>, session: Option<Session>, mut known: Known, missing: impl FnOnce(Epoch) -> Vec<Part<'a>>) -> Done {
    let session = match session {
        Some(session) => session,
        None => match Session::reopen(target, known) {
            Ok((session, committed)) => {
                known.committed = committed;
                session
            }
            Err(failure) => return Done { known, session: None, result: Err(failure) },
        },
    };
    for (epochs, through) in missing(known.committed) {
        if let Err(failure) = session.transaction(epochs, through) {
            drop(session);
            let failure = if matches!(failure, Failure::Fenced(_)) { target.who_fenced(failure) } else { failure };
            return Done { known, session: None, result: Err(failure) };
        }
        known.committed = through;
        known.has_sent |= !epochs.is_empty();
    }
    Done { known, session: Some(session), result: Ok(()) }
}

/// The parts of a commit of `epochs` through `through` that are behind `committed`.
fn missing_parts(epochs: &[Arc<Messages>], committed: Epoch, through: Epoch, bytes_max: usize) -> Vec<Part<'_>> {
    if committed >= through {
        return Vec::new();
    }
    let epochs = &epochs[epochs.partition_point(|messages| messages.epoch <= committed)..];
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, messages) in epochs.iter().enumerate() {
        let more = messages.bytes();
        if at > start && bytes + more > bytes_max {
            parts.push((&epochs[start..at], epochs[at - 1].epoch));
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    parts.push((&epochs[start..], through));
    parts
}

#[async_trait]
impl Sink for KafkaSink {
    fn name(&self) -> &str {
        "kafka"
    }

    async fn recover(&mut self) -> Result<Recovered, SinkError> {
        self.waiting.clear();
        self.known = None;
        let (before, target) = (self.session.take(), self.target.clone());
        let taken = self.blocking(move || {
            drop(before);
            Session::take_over(&target)
        });
        let (session, committed) = taken.await?.map_err(|failure| failure.into_sink_error(what(&self.target.topic)))?;
        self.session = Some(session);
        self.known = Some(Known { committed, tried: committed, has_sent: false });
        Ok(Recovered { committed, group_through: None })
    }

    async fn write(&mut self, EpochRows { epoch, rows }: EpochRows) -> Result<(), SinkError> {
        if rows.schema_ref().fields() != self.schema.fields() {
            let reason = format!("rows of epoch {epoch} have the columns {}", rows.schema_ref());
            return Err(SinkError::refused(what(&self.target.topic), reason));
        }
        let (key_columns, bytes_max) = (self.key_columns.clone(), self.target.settings.message_bytes_max);
        let messages = self.blocking(move || Messages::encode(epoch, &rows, &key_columns, bytes_max)).await?;
        let messages = messages.map_err(|e| SinkError::refused(what(&self.target.topic), e))?;
        self.waiting.push_back(Arc::new(messages));
        Ok(())
    }

    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
        let mut known = self.known()?;
        if through <= known.committed {
            return Ok(());
        }
        known.tried = known.tried.max(through);
        let epochs: Vec<Arc<Messages>> = self.waiting.iter().take_while(|messages| messages.epoch <= through).cloned().collect();
        self.transact(known, move |target, session| {
            transact(target, session, known, |committed| missing_parts(&epochs, committed, through, TRANSACTION_BYTES_MAX))
        })
        .await
    }

    async fn keep_alive(&mut self) -> Result<(), SinkError> {
        let known = self.known()?;
        let no_rows: &[Arc<Messages>] = &[];
        self.transact(known, move |target, session| transact(target, session, known, |committed| vec![(no_rows, committed)])).await
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use orderflow_operators::streams::Stream;

    use super::*;
    use orderflow_operators::features::WindowSet;

    fn check_refused(settings: KafkaSettings, expected: &str) {
        let stream = Stream::OrderLines;
        let error = KafkaSink::new(stream, stream.schema(&WindowSet::default()), settings).map(|_| ()).unwrap_err();
        assert!(matches!(error, SinkError::Refused { .. }) && error.to_string().contains(expected), "{error}");
    }

    fn with(name: &str, value: &str) -> KafkaSettings {
        KafkaSettings { properties: BTreeMap::from([(name.to_owned(), value.to_owned())]), ..KafkaSettings::default() }
    }

    #[test]
    fn wrong_settings_are_refused_at_once() {
        check_refused(KafkaSettings { topic_prefix: "a/".into(), ..KafkaSettings::default() }, "mend sinks.kafka.topic_prefix");
        check_refused(with("acks", "1"), "`acks` of librdkafka is the sink's own");
        check_refused(with("compression.type", "hush"), "mend sinks.kafka.properties");
        check_refused(with("lingre.ms", "5"), "`lingre.ms`");
        let error = KafkaSink::new(Stream::OrderLines, Arc::new(arrow::datatypes::Schema::empty()), with("linger.ms", "hush"));
        assert!(!error.map(|_| ()).unwrap_err().to_string().contains("hush"), "a value may be a password");
        assert!(!format!("{:?}", with("sasl.password", "hush")).contains("hush"));
    }

    /// Parts as `first..last:recorded`, of epochs of 100 bytes each.
    fn check_parts(committed: u64, through: u64, bytes_max: usize, expected: &str) {
        // {"text":""} has 11 bytes.
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(89)]));
        let rows = RecordBatch::try_from_iter([("text", text)]).unwrap();
        let messages = |epoch| Arc::new(Messages::encode(Epoch(epoch), &rows, &[], 10_000).unwrap());
        let epochs = [2, 3, 5, 9].map(messages);
        let parts = missing_parts(&epochs, Epoch(committed), Epoch(through), bytes_max);
        let texts: Vec<String> = parts
            .into_iter()
            .map(|(epochs, through)| match epochs {
                [] => format!("none:{through}"),
                [first, ..] => format!("{}..{}:{through}", first.epoch, epochs[epochs.len() - 1].epoch),
            })
            .collect();
        assert_eq!(texts.join(" "), expected);
    }

    #[test]
    fn a_commit_is_cut_into_parts_of_whole_epochs() {
        check_parts(1, 9, 400, "2..9:9");
        check_parts(1, 12, 399, "2..5:5 9..9:12");
        check_parts(1, 9, 200, "2..3:3 5..9:9");
        // An epoch that is too large goes alone.
        check_parts(1, 9, 99, "2..2:2 3..3:3 5..5:5 9..9:9");
        // What an earlier try has done is not done again.
        check_parts(3, 9, 100, "5..5:5 9..9:9");
        check_parts(9, 12, 100, "none:12");
        check_parts(9, 9, 100, "");
    }

    #[tokio::test]
    async fn nothing_is_committed_before_it_is_known_what_is_there() {
        let stream = Stream::OrderLines;
        let mut sink = KafkaSink::new(stream, stream.schema(&WindowSet::default()), KafkaSettings::default()).unwrap();
        assert!(matches!(sink.commit(Epoch(1)).await, Err(SinkError::Refused { .. })));
        assert!(matches!(sink.keep_alive().await, Err(SinkError::Refused { .. })));
    }
}
