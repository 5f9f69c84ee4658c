//! Topics of Kafka or Redpanda: a split a partition, one consumer for all that a process owns.
//!
//! ## Design
//!
//! Partitions are assigned by the job, at offsets of the job: the group has no part in it, and group offsets are committed only so
//! that tools can show lag. Each partition has a queue of its own in librdkafka, and one thread moves messages from the queues to
//! the splits' buffers. A full buffer's queue is left alone; librdkafka then fills it up to its own small limit and stops to
//! fetch. Nothing is thrown away and fetched again, as it would be by pausing the partition.
//!
//! A topic may get more partitions while the job runs. Where it was asked to ([`KafkaSource::discover`]), the source looks for them now and then;
//! the sealer gives each a number and has it read from its first offset on. One that goes away, or a topic that is made anew under its name,
//! ends the job: its offsets would be those of other messages.
//!
//! Offsets may have gaps (compaction, markers of transactions). Only committed messages are read.
//!
//! **Invariant:** librdkafka never chooses an offset. It starts where it is told, and reports an error when the broker no longer
//! has that offset (`auto.offset.reset=error`).

mod client;
mod discovery;
mod identity;
mod poll;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use orderflow_operators::decoder::Topic;
use orderflow_operators::epoch::Place;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use super::buffer::buffer;
use super::{Source, SourceError, SourceLimits, Split, SplitReader, Wake, numbered};
use crate::epoch_log::AddedSplit;
use discovery::Discovery;
use poll::{Opened, Poller};
use start::{Answer, REQUEST_WAIT};

pub(crate) use client::{Context, client_config, refused_settings};
pub(crate) use start::{BROKERS_WAIT, Deadline};

/// Where the topics are, and under which names.
#[derive(Clone)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// Topic of orders.
    pub orders_topic: String,
    /// Topic of stock movements.
    pub inventory_topic: String,
    /// The group under which progress is shown: the job's id.
    pub group_id: String,
    /// How long the start waits for brokers that do not answer.
    pub start_wait: Duration,
    /// librdkafka's own settings (TLS, SASL, tuning), over those of this module.
    pub properties: BTreeMap<String, String>,
}

impl KafkaSettings {
    /// The name of a topic.
    pub fn topic(&self, topic: Topic) -> &str {
        match topic {
            Topic::Inventory => &self.inventory_topic,
            Topic::Orders => &self.orders_topic,
        }
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("orders_topic", &self.orders_topic)
            .field("inventory_topic", &self.inventory_topic)
            .field("group_id", &self.group_id)
            .field("start_wait", &self.start_wait)
            // Values may be passwords.
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// The partitions of the two topics.
pub struct KafkaSource {
    settings: KafkaSettings,
    splits: Vec<Split>,
    limits: SourceLimits,
    consumer: Arc<BaseConsumer<Context>>,
    /// Names of the splits that are being read.
    open: OpenSplits,
    opened: Mutex<Sender<Opened>>,
    stop: Arc<AtomicBool>,
    poller: Option<JoinHandle<()>>,
    /// Until when calls at the start may wait for brokers.
    deadline: Deadline,
    /// By topic, where brokers say it: what tells it from another one of its name.
    identities: BTreeMap<String, String>,
    discovery: Option<Discovery>,
}

/// In the order of their splits.
const TOPICS: [Topic; 2] = [Topic::Inventory, Topic::Orders];

/// What tells the topics from others of their names. Brokers that have just answered may be lost for a moment; those that have no ids say so at once.
fn identities(consumer: &BaseConsumer<Context>, topics: [&String; 2]) -> BTreeMap<String, String> {
    let begun = Instant::now();
    loop {
        if let Some(identities) = identity::of_topics(consumer.client(), topics) {
            return identities;
        }
        if begun.elapsed() >= identity::WAIT {
            tracing::debug!("the brokers do not tell the ids of topics: one that is made anew will not be noticed");
            return BTreeMap::new();
        }
        thread::sleep(IDENTITY_BACKOFF);
    }
}

/// Time between two tries.
const IDENTITY_BACKOFF: Duration = Duration::from_millis(100);

/// Names of the splits that are being read.
type OpenSplits = Arc<Mutex<BTreeSet<String>>>;

impl KafkaSource {
    /// Connects to the brokers and lists the topics' partitions, waiting for brokers to come up as long as the settings say.
    ///
    /// # Errors
    /// If a setting is wrong, no broker answers or it refuses the job, a topic is missing or there are too many partitions.
    pub fn connect(settings: KafkaSettings, limits: SourceLimits) -> Result<KafkaSource, SourceError> {
        let limits = limits.checked();
        if settings.orders_topic == settings.inventory_topic {
            return Err(SourceError::OneTopic { topic: settings.orders_topic });
        }
        let consumer: BaseConsumer<Context> =
            client::consumer_config(&settings, &limits)?.create_with_context(Context::default()).map_err(client::refused_settings)?;
        let deadline = Deadline::new(settings.brokers.clone(), settings.start_wait);
        let list = |topic: &str| -> Result<Vec<String>, SourceError> {
            let count = deadline.partition_count(consumer.client(), &|| client::serve(&consumer), topic)?;
            Ok((0..count).map(|partition| split_name(topic, partition)).collect())
        };
        let (inventory, orders) = (list(&settings.inventory_topic)?, list(&settings.orders_topic)?);
        let splits = numbered(inventory, orders)?;

        let consumer = Arc::new(consumer);
        let topics = [&settings.inventory_topic, &settings.orders_topic];
        let identities = identities(&consumer, topics);
        let open = OpenSplits::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, opened) = mpsc::channel();
        let poller = Poller::new(consumer.clone(), opened, open.clone(), stop.clone(), limits);
        let poller = thread::Builder::new()
            .name("kafka-source".into())
            .spawn(move || poller.run())
            .map_err(|error| SourceError::Client { reason: format!("no thread to read with: {error}") })?;
        Ok(KafkaSource {
            settings,
            splits,
            limits,
            consumer,
            open,
            opened: Mutex::new(sender),
            stop,
            poller: Some(poller),
            deadline,
            identities,
            discovery: None,
        })
    }

    /// Looks for more partitions from now on, so often: [`added`](Source::added) tells of them.
    ///
    /// # Errors
    /// If there is no thread to do so with.
    pub fn discover(mut self, interval: Duration) -> Result<KafkaSource, SourceError> {
        let counts = TOPICS.map(|topic| self.splits.iter().filter(|split| split.topic == topic).count() as i32);
        let topics = TOPICS.map(|topic| self.settings.topic(topic).to_owned());
        let watched = topics.into_iter().zip(counts).collect();
        self.discovery = Some(Discovery::start(self.consumer.clone(), watched, self.identities.clone(), interval)?);
        Ok(self)
    }

    /// By topic, what tells it from another one of its name that is made later. A topic of which the brokers do not say it is left out.
    pub fn identities(&self) -> &BTreeMap<String, String> {
        &self.identities
    }

    /// The partition of a split's name, with its topic.
    fn partition(&self, name: &str) -> Option<(Topic, i32)> {
        let (topic, partition) = name.rsplit_once('/')?;
        let topic = TOPICS.into_iter().find(|of| self.settings.topic(*of) == topic)?;
        Some((topic, partition.parse().ok()?))
    }

    /// The first offset that the broker has, of each split: where a new job starts.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub fn start_offsets(&self) -> Result<Vec<i64>, SourceError> {
        Ok(self.watermarks()?.into_iter().map(|(first, _)| first).collect())
    }

    /// The offset behind the last committed message that the broker has now, of each split: where a job that drains its topics ends.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub fn end_offsets(&self) -> Result<Vec<i64>, SourceError> {
        Ok(self.watermarks()?.into_iter().map(|(_, end)| end).collect())
    }

    fn watermarks(&self) -> Result<Vec<(i64, i64)>, SourceError> {
        let ask = |split: &Split| {
            let (topic, partition) = self.partition(&split.name).expect("splits are named after their partitions");
            let topic = self.settings.topic(topic);
            self.deadline.retry(self.consumer.context(), &|| {}, || match self.consumer.fetch_watermarks(topic, partition, REQUEST_WAIT) {
                Ok(offsets) => Answer::Is(offsets),
                Err(error) => Answer::Later(error.to_string()),
            })
        };
        self.splits.iter().map(ask).collect()
    }

    /// Tells the brokers, under the job's group, that everything before these offsets (split's name, offset) was processed: only for tools
    /// that show lag. It is sent in the background; a failure is logged and has no other effect.
    pub fn commit_progress(&self, offsets: &[(&str, i64)]) {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(split, offset) in offsets {
            let Some((topic, partition)) = self.partition(split) else { continue };
            if let Err(error) = list.add_partition_offset(self.settings.topic(topic), partition, Offset::Offset(offset)) {
                tracing::debug!(%error, "progress is not shown");
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!(%error, "progress is not shown");
        }
    }
}

impl Source for KafkaSource {
    fn splits(&self) -> &[Split] {
        &self.splits
    }

    fn split(&self, number: u32, name: &str) -> Option<Split> {
        // Also one that this process has not heard of yet.
        self.partition(name).map(|(topic, _)| Split { number, topic, name: name.to_owned() })
    }

    fn added(&self) -> Result<Vec<AddedSplit>, SourceError> {
        self.discovery.as_ref().map_or(Ok(Vec::new()), Discovery::take)
    }

    fn open(&self, split: &Split, offset: i64, wake: Wake) -> Result<SplitReader, SourceError> {
        assert!(offset >= 0, "offsets are not negative");
        let name = &split.name;
        if offset > Place::OFFSET_MAX {
            return Err(SourceError::OffsetTooLarge { split: name.clone(), offset });
        }
        let (topic, partition) = self.partition(name).ok_or_else(|| SourceError::NoSplit { split: name.clone() })?;
        let topic = self.settings.topic(topic);
        let failed = |reason: String| SourceError::Partition { split: name.clone(), reason };
        let poller = self.poller.as_ref().expect("the thread runs until the source is dropped").thread().clone();
        if !lock(&self.open).insert(name.clone()) {
            return Err(SourceError::AlreadyOpen { split: name.clone() });
        }
        let open = || -> Result<SplitReader, SourceError> {
            // The queue is taken before messages are asked for, so that none goes to the consumer's common queue.
            let mut queue =
                self.consumer.split_partition_queue(topic, partition).ok_or_else(|| failed("librdkafka has no queue for it".to_owned()))?;
            let unpark = poller.clone();
            queue.set_nonempty_callback(move || unpark.unpark());
            assign(&self.consumer, topic, partition, Some(offset)).map_err(|error| failed(error.to_string()))?;
            let (feed, reader) = buffer(name, offset, self.limits, wake);
            let unpark = poller.clone();
            feed.on_room(Arc::new(move || unpark.unpark()));
            let opened = Opened::new(name.clone(), topic.to_owned(), partition, offset, queue, feed, self.limits);
            // When the thread is gone, the dropped feed has told the reader.
            drop(self.opened.lock().unwrap_or_else(PoisonError::into_inner).send(opened));
            poller.unpark();
            Ok(reader)
        };
        open().inspect_err(|_| _ = lock(&self.open).remove(name))
    }

    fn bounded(&self) -> bool {
        false
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(poller) = self.poller.take() {
            poller.thread().unpark();
            if poller.join().is_err() {
                tracing::error!("the thread that reads from Kafka panicked");
            }
        }
    }
}

/// What people know a partition by.
fn split_name(topic: &str, partition: i32) -> String {
    format!("{topic}/{partition}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts (at an offset) or ends reading a partition.
fn assign(consumer: &BaseConsumer<Context>, topic: &str, partition: i32, offset: Option<i64>) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(1);
    match offset {
        Some(offset) => {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
            consumer.incremental_assign(&list)
        }
        None => {
            list.add_partition(topic, partition);
            consumer.incremental_unassign(&list)
        }
    }
}

#[cfg(test)]
mod tests;
