//! A producer that has taken over a stream's transactional id, and the record of what was committed.
//!
//! # The record
//!
//! A transaction carries, beside its messages, an offset of the group `<job>.<stream>.sink` for partition 0 of the stream's own topic:
//! it is the last epoch committed. Brokers take any offset that is not negative for a partition that exists, and do not compare it
//! with what the partition holds. It stands on the result's topic, and not on one for markers, so that it goes when the topic is
//! removed: then the stream is written again, as far back as the epoch log and the input go.
//!
//! Brokers forget an offset that was not committed for some time (`offsets.retention.minutes`, a week), as they do a transactional id
//! (`transactional.id.expiration.ms`, a week). An empty transaction now and then, [`keep_alive`](crate::Sink::keep_alive), keeps both.
//! If the record is gone all the same, a sink that goes on writes it again, and one that takes over asks the topic's last messages.
//!
//! The offset's metadata names the *owner*: the sink that recovered last. A producer is fenced both when another sink took over and when
//! the coordinator lost patience with a transaction; the owner tells which.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use orderflow_faults::{Point, pass};
use orderflow_operators::epoch::Epoch;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Context, Isolation, consumer_config, producer_config};
use super::error::Failure;
use super::message::Messages;
use super::{KafkaSettings, Step, topic};

/// Longest time for a transaction, and for taking over. Less than the coordinator's, so that it is this side that gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes of keys and values in a transaction, unless one epoch has more: what passes within [`PATIENCE`] where a link or a quota
/// lets 1 MB a second through. A transaction that is too large fails however often it is tried.
pub(super) const TRANSACTION_BYTES_MAX: usize = 16 << 20;
/// Longest wait for one answer.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long to wait for acknowledgements, or for room, before looking again.
const PAUSE: Duration = Duration::from_micros(500);
/// Most events that are taken from the producer's queue before a transaction. There is one for each connection that was lost meanwhile.
const IDLE_EVENTS_MAX: usize = 10_000;

/// Called at each step of a commit.
pub(super) type OnStep = dyn Fn(Step) + Send + Sync;

/// What a session is for: all that stays the same over a sink's life.
pub(super) struct Target {
    pub settings: KafkaSettings,
    pub topic: String,
    pub transactional_id: String,
    pub group: String,
    /// This sink, as it stands in the record.
    pub owner: String,
    pub on_step: RwLock<Option<Arc<OnStep>>>,
}

/// A producer that may commit. After any error it is dropped and another opened: librdkafka cannot tell what became of a transaction
/// whose end was not answered.
pub(super) struct Session {
    producer: BaseProducer<Context>,
    group: ConsumerGroupMetadata,
    target: Arc<Target>,
}

/// What a sink knows of its own commits since it took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Through here all is committed.
    pub committed: Epoch,
    /// A commit through here was tried, and may have gone through.
    pub tried: Epoch,
    /// Whether it has committed messages.
    pub has_sent: bool,
}

/// What the brokers have recorded.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    committed: Option<Epoch>,
    owner: String,
}

impl Session {
    /// Makes the topic, fences whoever wrote to it before and ends its transaction; the last epoch that is committed.
    pub fn take_over(target: &Arc<Target>) -> Result<(Session, Epoch), Failure> {
        let consumer = target.consumer(Isolation::ReadCommitted)?;
        let take = || {
            let config = target.consumer_config(Isolation::ReadCommitted);
            let partitions = topic::ensure(&consumer, &config, &target.settings, &target.topic)?;
            let session = Session::start(target, &consumer)?;
            let committed = match target.record(&consumer)?.committed {
                Some(committed) => committed,
                None => topic::last_epoch(&consumer, &target.topic, partitions)?,
            };
            // An older sink that is fenced finds the new owner there.
            session.transaction(&[], committed)?;
            Ok((session, committed))
        };
        take().map_err(|failure| explain(&consumer, failure))
    }

    /// Goes on after an error; the last epoch that is committed. Refused if another sink took over, or the topic was removed.
    pub fn reopen(target: &Arc<Target>, known: Known) -> Result<(Session, Epoch), Failure> {
        let consumer = target.consumer(Isolation::ReadCommitted)?;
        let reopen = || {
            // Before this producer fences the one that took over. What an earlier producer of this sink has left open is not waited for: fencing is what ends it.
            // Who is just about to take over, and has not recorded it, is fenced, and tries again.
            target.own_record(&target.consumer(Isolation::ReadUncommitted)?)?;
            let session = Session::start(target, &consumer)?;
            // Nothing that was begun under the transactional id is open any more.
            let record = target.own_record(&consumer)?;
            let committed = match record {
                Some(committed) => committed,
                None => target.committed_without_record(&consumer, known)?,
            };
            let Known { committed: from, tried: to, .. } = known;
            if !(from..=to).contains(&committed) {
                return Err(Failure::Refused(format!(
                    "epoch {committed} is the last one committed, where it must be between {from} and {to}; was the offset of group `{}` \
                     set by hand? start the job again",
                    target.group
                )));
            }
            if record.is_none() {
                tracing::warn!(topic = target.topic, epoch = %committed, "the record of what was committed is gone; it is written again");
                session.transaction(&[], committed)?;
            }
            Ok((session, committed))
        };
        reopen().map_err(|failure| explain(&consumer, failure))
    }

    fn start(target: &Arc<Target>, consumer: &BaseConsumer<Context>) -> Result<Session, Failure> {
        let settings = &target.settings;
        let config = producer_config(&settings.brokers, &settings.properties, &target.transactional_id, settings.message_bytes_max);
        let producer: BaseProducer<Context> = config.create_with_context(Context::default())?;
        let started = producer.init_transactions(PATIENCE);
        producer.poll(Duration::ZERO);
        started.map_err(|error| producer.context().explain(error.into()))?;
        pass(Point::KafkaInit);
        let group = consumer.group_metadata().ok_or_else(|| Failure::Unavailable("librdkafka has no group".into()))?;
        Ok(Session { producer, group, target: target.clone() })
    }

    /// Sends the messages and commits them with the record of `through`, all or nothing. After an error the session is of no use.
    pub fn transaction(&self, epochs: &[Arc<Messages>], through: Epoch) -> Result<(), Failure> {
        self.forget();
        let deadline = Instant::now() + PATIENCE;
        self.send_and_commit(epochs, through, deadline).map_err(|failure| {
            self.producer.poll(Duration::ZERO);
            let failure = self.producer.context().explain(failure);
            // librdkafka counts whole milliseconds.
            let in_time = Instant::now() + Duration::from_millis(2) < deadline;
            if in_time { failure } else { too_slow(failure, epochs.iter().map(|messages| messages.bytes()).sum()) }
        })
    }

    /// What the producer told while it was idle explains no failure of what begins now.
    fn forget(&self) {
        // Its events have waited in the queue.
        for _ in 0..IDLE_EVENTS_MAX {
            if self.producer.in_flight_count() == 0 {
                break;
            }
            self.producer.poll(Duration::ZERO);
        }
        self.producer.context().forget();
    }

    fn send_and_commit(&self, epochs: &[Arc<Messages>], through: Epoch, deadline: Instant) -> Result<(), Failure> {
        self.producer.begin_transaction()?;
        self.step(Step::Begun);
        let half = epochs.iter().map(|messages| messages.iter().len()).sum::<usize>() / 2;
        let mut sent = 0;
        for messages in epochs {
            let epoch = messages.epoch.0.to_string();
            for message in messages.iter() {
                let mut record = BaseRecord::to(&self.target.topic).payload(message.value).headers(message.headers(&epoch));
                record.key = message.key;
                self.send(record, deadline)?;
                sent += 1;
                if sent == half {
                    self.step(Step::HalfSent);
                }
            }
        }
        self.step(Step::Sent);
        // Goes its way while messages are on theirs.
        let record = self.target.partition(Offset::Offset(through.0 as i64), &self.target.owner)?;
        self.producer.send_offsets_to_transaction(&record, &self.group, remaining(deadline))?;
        pass(Point::KafkaOffsetsSent);
        // rdkafka's own `flush` looks every 100 ms only.
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(Failure::Unavailable("the brokers did not take all messages in time".into()));
            }
            self.pause();
        }
        self.step(Step::Acknowledged);
        self.producer.commit_transaction(remaining(deadline))?;
        self.step(Step::Committed);
        Ok(())
    }

    fn send(&self, mut record: BaseRecord<'_, str, [u8]>, deadline: Instant) -> Result<(), Failure> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) if Instant::now() < deadline => {
                    self.pause();
                    record = again;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// rdkafka's `poll` takes all of its time, whatever comes, and is busy during the last millisecond.
    fn pause(&self) {
        std::thread::sleep(PAUSE);
        self.producer.poll(Duration::ZERO);
    }

    fn step(&self, step: Step) {
        pass(step.point());
        let on_step = self.target.on_step.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(on_step) = on_step {
            on_step(step);
        }
    }
}

impl Target {
    fn consumer_config(&self, isolation: Isolation) -> ClientConfig {
        consumer_config(&self.settings.brokers, &self.settings.properties, &self.group, isolation)
    }

    fn consumer(&self, isolation: Isolation) -> Result<BaseConsumer<Context>, Failure> {
        Ok(self.consumer_config(isolation).create_with_context(Context::default())?)
    }

    fn partition(&self, offset: Offset, metadata: &str) -> Result<TopicPartitionList, Failure> {
        let mut list = TopicPartitionList::with_capacity(1);
        let mut partition = list.add_partition(&self.topic, 0);
        partition.set_offset(offset)?;
        if !metadata.is_empty() {
            partition.set_metadata(metadata);
        }
        Ok(list)
    }

    /// The record; for a consumer that reads what is committed, once no transaction is open that would change it.
    fn record(&self, consumer: &BaseConsumer<Context>) -> Result<Record, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = consumer.committed_offsets(self.partition(Offset::Invalid, "")?, REQUEST_WAIT).map_err(Failure::from);
            let record = answer.and_then(|list| {
                let elements = list.elements();
                let partition = elements.first().ok_or_else(|| Failure::Unavailable("the coordinator names no offset".into()))?;
                partition.error()?;
                let committed = match partition.offset() {
                    Offset::Offset(offset) => Some(Epoch(offset.max(0) as u64)),
                    _ => None,
                };
                Ok(Record { committed, owner: partition.metadata().to_owned() })
            });
            match record {
                Err(Failure::Unavailable(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                answer => return answer,
            }
        }
    }

    /// The last epoch that is recorded as committed, if it is by this sink; `None` where there is no record.
    fn own_record(&self, consumer: &BaseConsumer<Context>) -> Result<Option<Epoch>, Failure> {
        let record = self.record(consumer)?;
        if record.committed.is_some() && record.owner != self.owner {
            return Err(Failure::Refused(format!(
                "another job with the id of this one has taken over (transactional id `{}`); stop one of them, or give it another job.id",
                self.transactional_id
            )));
        }
        Ok(record.committed)
    }

    /// The last epoch that is committed, where the record of it is gone and no transaction is open.
    fn committed_without_record(&self, consumer: &BaseConsumer<Context>, known: Known) -> Result<Epoch, Failure> {
        let partitions = match topic::partitions(consumer, &self.topic)? {
            Some(partitions) if !(known.has_sent && topic::is_unused(consumer, &self.topic, partitions)?) => partitions,
            _ => {
                return Err(Failure::Refused(format!(
                    "the topic was removed, and the record of what was committed with it (offset of group `{}`); start the job again: it \
                     writes the topic anew, as far back as the epoch log and the input go",
                    self.group
                )));
            }
        };
        if known.tried == known.committed {
            return Ok(known.committed);
        }
        // Whether the try whose end was not answered went through, its messages tell.
        Ok(known.committed.max(topic::last_epoch(consumer, &self.topic, partitions)?))
    }

    /// [`Failure::Refused`] if another sink took over; otherwise `fenced`, which trying again mends.
    pub fn who_fenced(&self, fenced: Failure) -> Failure {
        match self.consumer(Isolation::ReadCommitted).and_then(|consumer| self.own_record(&consumer)) {
            Err(refused @ Failure::Refused(_)) => refused,
            _ => fenced,
        }
    }
}

/// The failure of a transaction that took all of its time, and what makes it smaller.
fn too_slow(failure: Failure, bytes: usize) -> Failure {
    match failure {
        Failure::Unavailable(text) if bytes > 0 => Failure::Unavailable(format!(
            "{text}; {bytes} bytes did not go through within {} s: if the brokers are up, the link or a quota is too slow for so many, \
             lower sinks.kafka.commit_rows_max or epoch.rows_max",
            PATIENCE.as_secs()
        )),
        failure => failure,
    }
}

/// Adds what the consumer knows of the cause.
fn explain(consumer: &BaseConsumer<Context>, failure: Failure) -> Failure {
    // Handles the errors that wait in its queue; nothing is assigned that could send a message.
    for _ in 0..16 {
        drop(consumer.poll(Duration::ZERO));
    }
    consumer.context().explain(failure)
}

fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_is_too_slow_says_what_to_lower() {
        let slow = too_slow(Failure::Unavailable("timed out".into()), 7);
        assert!(
            matches!(&slow, Failure::Unavailable(text) if text.starts_with("timed out; 7 bytes did not")
                && text.ends_with("lower sinks.kafka.commit_rows_max or epoch.rows_max")),
            "{slow:?}"
        );
        let unchanged =
            [(Failure::Unavailable("timed out".into()), 0), (Failure::Refused("no".into()), 7), (Failure::Fenced("by".into()), 7)];
        for (failure, bytes) in unchanged {
            let text = failure.to_string();
            assert_eq!(too_slow(failure, bytes).to_string(), text);
        }
    }
}
