//! Reading the topic: its header, or all records behind an epoch.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use orderflow_operators::epoch::Epoch;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::{BACKOFF_MAX, BACKOFF_MIN, CALL_WAIT, PROGRESS_WAIT, TopicSettings};
use crate::epoch_log::lines::{Sequence, parse_line};
use crate::epoch_log::{EpochLogError, EpochRecord, LogHeader, Old};
use crate::source::{Context, refused_settings};

/// So many offsets are read on rather than bisected.
const NEAR: i64 = 500;
/// Longest wait for one message.
const POLL: Duration = Duration::from_millis(200);
/// How long a header that was just written may take to be seen.
const HEADER_WAIT: Duration = Duration::from_secs(30);

/// What is in a topic behind an epoch.
pub(super) struct Read {
    /// None if it is empty.
    pub header: Option<LogHeader>,
    pub sequence: Sequence,
}

/// A consumer of committed messages.
pub(super) struct Reader<'a> {
    settings: &'a TopicSettings,
    consumer: BaseConsumer<Context>,
}

/// What a message is.
enum Entry {
    Header(LogHeader),
    Record(EpochRecord),
}

impl<'a> Reader<'a> {
    pub fn connect(settings: &'a TopicSettings) -> Result<Reader<'a>, EpochLogError> {
        let config = settings.client(&[
            // Nothing is ever committed under it; a consumer must have one.
            ("group.id", &settings.job),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            ("check.crcs", "true"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "200"),
        ])?;
        let consumer = config.create_with_context(Context::default()).map_err(|e| settings.brokers_failed(refused_settings(e)))?;
        Ok(Reader { settings, consumer })
    }

    /// Whether there is such a topic.
    pub fn topic_exists(&self) -> Result<bool, EpochLogError> {
        let serve = || _ = self.consumer.poll(Duration::ZERO);
        let found = self.settings.deadline().find_topic(self.consumer.client(), &serve, &self.settings.topic);
        Ok(found.map_err(|error| self.settings.brokers_failed(error))?.is_some())
    }

    /// The first offset, and the one before which all is decided.
    fn bounds(&self) -> Result<(i64, i64), EpochLogError> {
        let deadline = Instant::now() + PROGRESS_WAIT;
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.consumer.fetch_watermarks(&self.settings.topic, 0, CALL_WAIT) {
                Ok(bounds) => return Ok(bounds),
                Err(error) if Instant::now() + backoff >= deadline => return Err(self.settings.unavailable(error)),
                Err(_) => thread::sleep(backoff),
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Waits until no transaction is open before `end`.
    pub fn wait_decided(&self, end: i64) -> Result<(), EpochLogError> {
        let deadline = Instant::now() + PROGRESS_WAIT;
        let mut backoff = BACKOFF_MIN;
        loop {
            let (_, decided) = self.bounds()?;
            if decided >= end {
                return Ok(());
            }
            if Instant::now() + backoff >= deadline {
                let what = format!(
                    "a transaction of another producer is open at offset {decided} and hides what follows; wait until it has timed out, or \
                     abort it (kafka-transactions.sh find-hanging, then abort)"
                );
                return Err(EpochLogError::Refused { log: self.settings.to_string(), what });
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// The first message, if there is any.
    pub fn header(&self) -> Result<Option<LogHeader>, EpochLogError> {
        let (low, _) = self.bounds()?;
        self.assign(low)?;
        let Some((offset, entry)) = self.next(low)? else { return Ok(None) };
        match entry {
            Entry::Header(header) => Ok(Some(header)),
            Entry::Record(record) => {
                let what = format!("it begins with epoch {}, what comes before was deleted", record.epoch);
                Err(self.damaged(offset, what))
            }
        }
    }

    /// The header, which has been written but may not be readable yet.
    pub fn wait_header(&self) -> Result<LogHeader, EpochLogError> {
        let deadline = Instant::now() + HEADER_WAIT;
        let mut backoff = BACKOFF_MIN;
        loop {
            if let Some(header) = self.header()? {
                return Ok(header);
            }
            if Instant::now() + backoff >= deadline {
                return Err(self.settings.unavailable("the header was written but cannot be read back"));
            }
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Everything decided behind `after`.
    pub fn read(&self, after: Epoch) -> Result<Read, EpochLogError> {
        let mut read = Read { header: self.header()?, sequence: Sequence::new(after) };
        let Some(begun) = read.header.clone() else { return Ok(read) };
        let (low, end) = self.bounds()?;
        let mut from = low;
        if after > Epoch(0) {
            from = self.bisect(low, end, |record| record.epoch.0 <= after.0 + 1)?;
        }
        self.read_from(from, |offset, entry| {
            match entry {
                Entry::Record(record) => read.sequence.take(record).map_err(|what| self.damaged(offset, what))?,
                // The first one, or it again, or that of another job which found the topic empty at the same moment, and gave up.
                Entry::Header(header) if header == begun || header.job != begun.job => {}
                Entry::Header(_) => return Err(self.damaged(offset, "there is another header".to_owned())),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(read)
    }

    /// The newest header up to which records are old, where headers come each so many epochs: its offset, and the last epoch before it. None if there is none
    /// but that which the topic begins with.
    pub fn old_header(&self, old: &Old, header_epochs: u64) -> Result<Option<(Epoch, i64)>, EpochLogError> {
        let (low, end) = self.bounds()?;
        let from = self.bisect(low, end, |record| old.is_before(record))?;
        let mut newest = None;
        self.read_from(from, |_, entry| {
            let Entry::Record(record) = entry else { return Ok(ControlFlow::Continue(())) };
            if !old.is_before(&record) {
                return Ok(ControlFlow::Break(()));
            }
            newest = Some(record.epoch.0);
            Ok(ControlFlow::Continue(()))
        })?;
        let Some(epoch) = newest.map(|epoch| (epoch - 1) / header_epochs * header_epochs).filter(|&epoch| epoch > 0) else {
            return Ok(None);
        };
        let from = self.bisect(low, end, |record| record.epoch.0 <= epoch)?;
        let (mut header, mut found) = (None, None);
        self.read_from(from, |offset, entry| {
            match entry {
                Entry::Header(_) => header = Some(offset),
                Entry::Record(record) if record.epoch.0 <= epoch => header = None,
                Entry::Record(_) => {
                    // None, if a release wrote it that did not repeat headers.
                    found = header;
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found.filter(|&offset| offset > low).map(|offset| (Epoch(epoch), offset)))
    }

    /// Gives what is from an offset on to `take`, until that breaks or the topic ends.
    fn read_from(
        &self,
        from: i64,
        mut take: impl FnMut(i64, Entry) -> Result<ControlFlow<()>, EpochLogError>,
    ) -> Result<(), EpochLogError> {
        self.assign(from)?;
        let mut next = from;
        while let Some((offset, entry)) = self.next(next)? {
            next = offset + 1;
            if take(offset, entry)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// An offset from which on all records are that are not `early`, and not many others. Those that are early come first.
    ///
    /// We maintain the invariant that the record at or behind `near` is early, if any is, and none at or behind `far` is.
    fn bisect(&self, low: i64, end: i64, early: impl Fn(&EpochRecord) -> bool) -> Result<i64, EpochLogError> {
        let (mut near, mut far) = (low, end);
        while far - near > NEAR {
            let middle = near + (far - near) / 2;
            let mut first = None;
            self.read_from(middle, |offset, entry| {
                let Entry::Record(record) = entry else { return Ok(ControlFlow::Continue(())) };
                first = Some((offset, early(&record)));
                Ok(ControlFlow::Break(()))
            })?;
            match first {
                Some((offset, true)) => near = offset,
                _ => far = middle,
            }
        }
        Ok(near)
    }

    fn assign(&self, offset: i64) -> Result<(), EpochLogError> {
        let mut list = TopicPartitionList::with_capacity(1);
        let assigned =
            list.add_partition_offset(&self.settings.topic, 0, Offset::Offset(offset)).and_then(|()| self.consumer.assign(&list));
        assigned.map_err(|error| self.settings.unavailable(error))
    }

    /// The next message at or behind `from`, none at the end.
    fn next(&self, from: i64) -> Result<Option<(i64, Entry)>, EpochLogError> {
        let deadline = Instant::now() + PROGRESS_WAIT;
        loop {
            let reason = match self.consumer.poll(POLL) {
                // What was fetched for another place.
                Some(Ok(message)) if message.offset() < from => continue,
                Some(Ok(message)) => {
                    let line = message.payload().unwrap_or_default();
                    let entry = parse_line(line).map(Entry::Record).or_else(|what| match parse_line(line) {
                        Ok(header) => Ok(Entry::Header(header)),
                        Err(_) => Err(self.damaged(message.offset(), what)),
                    });
                    return Ok(Some((message.offset(), entry?)));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(
                        RDKafkaErrorCode::AutoOffsetReset
                        | RDKafkaErrorCode::OffsetOutOfRange
                        | RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnknownPartition,
                    ) => return Err(self.damaged(from, format!("it cannot be read from here: {error}"))),
                    Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed) => {
                        let what = format!("{error}; give the job's user the right to read the topic");
                        return Err(EpochLogError::Refused { log: self.settings.to_string(), what });
                    }
                    _ => error.to_string(),
                },
                None => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                let reason = self.consumer.context().last_reason().unwrap_or(reason);
                return Err(self.settings.unavailable(reason));
            }
        }
    }

    fn damaged(&self, offset: i64, what: String) -> EpochLogError {
        EpochLogError::Damaged { place: format!("{} at offset {offset}", self.settings), what }
    }
}
