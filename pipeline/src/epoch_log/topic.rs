//! The epoch log in a topic of Kafka or Redpanda.
//!
//! ## Design
//!
//! One partition; a message without a key for each line (the header, then the records), so that a plain consumer prints what a log
//! file has; a transaction for each group. The transactional id is made of the job's: by *init* of the id the brokers end whatever an older
//! producer of it has under way and refuse all that it does later. So:
//!
//! - Open: init first, then read the whole topic, committed messages only, up to an end that is asked for after init. **Invariant:**
//!   behind that end nothing of an older writer can come any more. A commit that an older writer was told of is decided before init returns, and
//!   init returns only when its marker is in the partition.
//! - Append returns when the commit was acknowledged: the coordinator has then logged, on all its in-sync replicas, that the transaction is committed, and will
//!   write the marker also after a crash. The records themselves were acknowledged by all in-sync replicas before (`acks=all`).
//! - A transaction of which it is not known whether it was committed ends the job. It is not tried again: librdkafka cannot tell
//!   a late request of an aborted transaction from one of the next (it lacks KIP-890). Reading after the next init shows what came of it.
//!
//! Committed messages are readable only before the first transaction that is open, whosever it is. One that was left open for good
//! would hide all records behind it; so open also waits until nothing in the topic is undecided, and refuses a topic that remains so.
//!
//! Records behind an epoch are found by bisection of the offsets: epochs rise with them.
//!
//! The header is repeated before the first epoch and each [`HEADER_EPOCHS`] later, in the transaction of the record that follows it. Old records are removed
//! (`DeleteRecords`) up to such a header, so that one is what a topic begins with.

mod admin;
mod reader;

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use orderflow_faults::{Point, check, header_epochs, pass};
use orderflow_operators::epoch::Epoch;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::lines::{follow, line};
use super::{EpochLog, EpochLogError, EpochRecord, LogHeader, Old};
use crate::source::{BROKERS_WAIT, Context, Deadline, KafkaSettings, SourceError, client_config, refused_settings};
use reader::Reader;

/// How long the brokers keep a transaction of a writer that went away. Longer than any append is waited for, so that a producer
/// which is fenced was so by another one, not by its own age.
const TRANSACTION_AGE: Duration = Duration::from_secs(120);
/// Epochs from one header to the next. Part of the format: who removes old records looks for one there.
const HEADER_EPOCHS: u64 = 1 << 16;
/// How long an append may take, over restarts of brokers.
const APPEND_WAIT: Duration = Duration::from_secs(60);
/// How long init and reading may wait for brokers without any progress.
const PROGRESS_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const CALL_WAIT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Where the topic is.
#[derive(Clone)]
pub struct TopicSettings {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// The topic's name.
    pub topic: String,
    /// The job's name: of two writers with the same, the later takes over.
    pub job: String,
    /// librdkafka's own settings: TLS, SASL.
    pub properties: BTreeMap<String, String>,
}

impl fmt::Display for TopicSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka:{}", self.topic)
    }
}

impl fmt::Debug for TopicSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicSettings")
            .field("brokers", &self.brokers)
            .field("topic", &self.topic)
            .field("job", &self.job)
            // Values may be passwords.
            .field("properties", &self.properties.keys())
            .finish()
    }
}

impl TopicSettings {
    /// Properties that are not the user's to set: what the log promises rests on them.
    pub const RESERVED: [&str; 9] = [
        "bootstrap.servers",
        "transactional.id",
        "transaction.timeout.ms",
        "message.timeout.ms",
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "isolation.level",
        "group.id",
    ];

    /// librdkafka's settings: the user's, and over them the job's own.
    fn client(&self, own: &[(&str, &str)]) -> Result<ClientConfig, EpochLogError> {
        // Those of the source may have been given for its consumer.
        let properties = self.properties.iter().filter(|(name, _)| !Self::RESERVED.contains(&name.as_str()));
        let settings = KafkaSettings {
            brokers: self.brokers.clone(),
            orders_topic: String::new(),
            inventory_topic: String::new(),
            group_id: self.job.clone(),
            start_wait: BROKERS_WAIT,
            properties: properties.map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        let mut config = client_config(&settings, &[]).map_err(|error| self.brokers_failed(error))?;
        config.set("allow.auto.create.topics", "false");
        own.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        Ok(config)
    }

    fn producer(&self) -> Result<BaseProducer<Context>, EpochLogError> {
        let age_ms = TRANSACTION_AGE.as_millis().to_string();
        let wait_ms = APPEND_WAIT.as_millis().to_string();
        let config = self.client(&[
            ("transactional.id", &format!("orderflow-epochs-{}", self.job)),
            ("transaction.timeout.ms", &age_ms),
            ("message.timeout.ms", &wait_ms),
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("linger.ms", "0"),
            // Asked for the topic's end, it shall say the end of all messages, decided or not.
            ("isolation.level", "read_uncommitted"),
            ("message.max.bytes", admin::MESSAGE_BYTES_MAX),
        ])?;
        config.create_with_context(Context::default()).map_err(|error| self.brokers_failed(refused_settings(error)))
    }

    fn brokers_failed(&self, error: SourceError) -> EpochLogError {
        let log = self.to_string();
        match error {
            SourceError::Property { name, reason } => {
                let what = format!("`{name}`: {reason}; correct epoch_log.properties or source.kafka.properties");
                EpochLogError::Refused { log, what }
            }
            SourceError::Client { reason } => {
                let what = format!("librdkafka refuses its settings: {reason}; correct epoch_log.properties or source.kafka.properties");
                EpochLogError::Refused { log, what }
            }
            source => EpochLogError::Brokers { log, source },
        }
    }

    fn unavailable(&self, reason: impl ToString) -> EpochLogError {
        EpochLogError::Unavailable { log: self.to_string(), reason: reason.to_string() }
    }
}

fn header_interval() -> u64 {
    header_epochs().unwrap_or(HEADER_EPOCHS)
}

/// The epoch log in a topic, open for appending.
pub struct TopicLog {
    settings: TopicSettings,
    producer: BaseProducer<Context>,
    header: LogHeader,
    header_epochs: u64,
    last: Epoch,
}

impl TopicLog {
    /// Opens the log, creating the topic if it is missing, and returns what is in it behind `after`. Whoever had it open under the same
    /// job stops at its next append.
    ///
    /// # Errors
    /// If the topic could lose records, belongs to another job, is damaged or ends before `after`, or the brokers do not answer.
    pub fn open(settings: &TopicSettings, header: &LogHeader, after: Epoch) -> Result<(TopicLog, Vec<EpochRecord>), EpochLogError> {
        let producer = settings.producer()?;
        admin::prepare(settings, &producer)?;
        let different = |what| EpochLogError::Different { log: settings.to_string(), what };
        let reader = Reader::connect(settings)?;
        // A job that is not this log's must not fence the one that is.
        if let Some(what) = reader.header()?.and_then(|begun| begun.difference(header)) {
            return Err(different(what));
        }
        init(settings, &producer)?;
        pass(Point::TopicInit);
        let end = settings.retried(&producer, || producer.client().fetch_watermarks(&settings.topic, 0, CALL_WAIT).map(|(_, end)| end))?;
        reader.wait_decided(end)?;
        let read = reader.read(after)?;
        let last = read.sequence.last();
        let mut log = TopicLog { settings: settings.clone(), producer, header: header.clone(), header_epochs: header_interval(), last };
        match read.header {
            Some(begun) => {
                if let Some(what) = begun.difference(header) {
                    return Err(different(what));
                }
                log.header = begun;
            }
            None => {
                log.transaction(&[line(header)])?;
                // Two jobs may have found it empty. Of their headers the first counts.
                let begun = reader.wait_header()?;
                if let Some(what) = begun.difference(header) {
                    return Err(different(what));
                }
                log.header = begun;
            }
        }
        Ok((log, read.sequence.finish(&settings.to_string())?))
    }

    /// Reads the log behind `after`; it may be in use.
    ///
    /// # Errors
    /// If there is none, it is damaged or ends before `after`, or the brokers do not answer.
    pub fn read(settings: &TopicSettings, after: Epoch) -> Result<Vec<EpochRecord>, EpochLogError> {
        TopicLog::read_with_header(settings, after).map(|(_, records)| records)
    }

    /// As [`read`](TopicLog::read), with what the log was begun with.
    ///
    /// # Errors
    /// As there.
    pub fn read_with_header(settings: &TopicSettings, after: Epoch) -> Result<(LogHeader, Vec<EpochRecord>), EpochLogError> {
        let reader = Reader::connect(settings)?;
        let missing = || EpochLogError::Missing { log: format!("{settings} at {}", settings.brokers) };
        if !reader.topic_exists()? {
            return Err(missing());
        }
        let read = reader.read(after)?;
        let header = read.header.ok_or_else(missing)?;
        Ok((header, read.sequence.finish(&settings.to_string())?))
    }

    /// Drops old records, up to a header.
    ///
    /// # Errors
    /// If the log is damaged, the brokers do not answer, or do not let it.
    pub fn drop_old(settings: &TopicSettings, old: &Old) -> Result<Option<Epoch>, EpochLogError> {
        TopicLog::drop_old_at(settings, old, header_interval())
    }

    fn drop_old_at(settings: &TopicSettings, old: &Old, header_epochs: u64) -> Result<Option<Epoch>, EpochLogError> {
        let Some((epoch, offset)) = Reader::connect(settings)?.old_header(old, header_epochs)? else { return Ok(None) };
        let failed = |source| EpochLogError::Io { path: settings.to_string(), source };
        check(Point::TopicDrop).map_err(failed)?;
        admin::delete_before(settings, offset)?;
        pass(Point::TopicDropped);
        Ok(Some(epoch))
    }

    /// Writes messages, all or none.
    fn transaction(&mut self, lines: &[String]) -> Result<(), EpochLogError> {
        let started = Instant::now();
        self.producer.begin_transaction().map_err(|error| self.failed(&error, started))?;
        pass(Point::TopicBegun);
        for line in lines {
            let mut record = BaseRecord::<(), str>::to(&self.settings.topic).partition(0).payload(line);
            while let Err((error, back)) = self.producer.send(record) {
                let full = error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                if !full || started.elapsed() >= APPEND_WAIT {
                    return Err(self.failed(&error, started));
                }
                record = back;
                self.producer.poll(BACKOFF_MIN);
            }
        }
        // The commit would wait for them too, but in steps of a tenth of a second: `poll` takes its whole time, whatever comes, and is busy during the
        // last millisecond.
        while self.producer.in_flight_count() > 0 && started.elapsed() < APPEND_WAIT {
            thread::sleep((started.elapsed() / 8).clamp(Duration::from_micros(500), BACKOFF_MIN));
            self.producer.poll(Duration::ZERO);
        }
        pass(Point::TopicSent);
        let mut backoff = BACKOFF_MIN;
        loop {
            let Err(error) = self.producer.commit_transaction(CALL_WAIT) else {
                pass(Point::TopicCommitted);
                return Ok(());
            };
            let again = match &error {
                KafkaError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
                // The same commit goes on.
                KafkaError::Transaction(error) => error.is_retriable(),
                _ => false,
            };
            if !again || started.elapsed() + backoff >= APPEND_WAIT {
                return Err(self.failed(&error, started));
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// What an error of the producer means for the log.
    fn failed(&self, error: &KafkaError, started: Instant) -> EpochLogError {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let log = self.settings.to_string();
        let fatal = self.producer.client().fatal_error();
        let code = match error {
            KafkaError::Transaction(error) => Some(error.code()),
            other => other.rdkafka_error_code(),
        };
        let fenced = [code, fatal.as_ref().map(|(code, _)| *code)]
            .into_iter()
            .flatten()
            .any(|code| matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch));
        if fenced && started.elapsed() < TRANSACTION_AGE {
            return EpochLogError::TakenOver { log, job: self.settings.job.clone() };
        }
        let said = fatal.map(|(_, reason)| reason).or_else(|| self.producer.context().last_reason());
        let reason = said.map_or_else(|| error.to_string(), |said| format!("{error}: {said}"));
        EpochLogError::Unknown { log, reason }
    }
}

impl EpochLog for TopicLog {
    fn header(&self) -> &LogHeader {
        &self.header
    }

    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError> {
        let last = follow(self.last, records);
        let mut lines = Vec::with_capacity(records.len() + 1);
        for record in records {
            let before = record.epoch.0 - 1;
            if before > 0 && before.is_multiple_of(self.header_epochs) {
                lines.push(line(&self.header));
            }
            lines.push(line(record));
        }
        self.transaction(&lines)?;
        self.last = last;
        Ok(())
    }
}

impl Drop for TopicLog {
    fn drop(&mut self) {
        // What is not committed by now never will be; librdkafka would wait for it.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}

/// Ends what older producers of the id have under way, and keeps them from doing more.
fn init(settings: &TopicSettings, producer: &BaseProducer<Context>) -> Result<(), EpochLogError> {
    let deadline = Instant::now() + PROGRESS_WAIT;
    let mut backoff = BACKOFF_MIN;
    loop {
        let error = match producer.init_transactions(CALL_WAIT) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) => error,
            Err(error) => return Err(settings.unavailable(error)),
        };
        producer.poll(Duration::ZERO);
        let refused = [RDKafkaErrorCode::TransactionalIdAuthorizationFailed, RDKafkaErrorCode::ClusterAuthorizationFailed];
        if refused.contains(&error.code()) {
            let what = format!("{}; give the job's user the right to write and describe its transactional id", error.string());
            return Err(EpochLogError::Refused { log: settings.to_string(), what });
        }
        if !error.is_retriable() || Instant::now() + backoff >= deadline {
            return Err(settings.unavailable(producer.context().last_reason().unwrap_or_else(|| error.string())));
        }
        thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

impl TopicSettings {
    /// Asks until there is an answer, with growing pauses.
    fn retried<T>(&self, producer: &BaseProducer<Context>, mut request: impl FnMut() -> Result<T, KafkaError>) -> Result<T, EpochLogError> {
        let deadline = Instant::now() + PROGRESS_WAIT;
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match request() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            producer.poll(Duration::ZERO);
            if Instant::now() + backoff >= deadline {
                return Err(self.unavailable(error));
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// How long brokers may take to come up.
    fn deadline(&self) -> Deadline {
        Deadline::new(self.brokers.clone(), BROKERS_WAIT)
    }
}

#[cfg(test)]
mod tests;
