//! Topics of Kafka or Redpanda: a split a partition, one consumer for all that a process owns.
//!
//! ## Design
//!
//! Partitions are assigned by the job, at offsets of the job: the group has no part in it, and group offsets are committed only so
//! that tools can show lag. Each partition has a queue of its own in librdkafka, and one thread moves messages from the queues to
//! the splits' buffers. A full buffer's queue is left alone; librdkafka then fills it up to its own small limit and stops to
//! fetch. Nothing is thrown away and fetched again, as it would be by pausing the partition.
//!
//! Offsets may have gaps (compaction, markers of transactions). Only committed messages are read.
//!
//! **Invariant:** librdkafka never chooses an offset. It starts where it is told, and reports an error when the broker no longer
//! has that offset (`auto.offset.reset=error`).

mod client;
mod poll;
mod start;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use orderflow_operators::decoder::Topic;
use orderflow_operators::epoch::Place;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use super::buffer::buffer;
use super::{Source, SourceError, SourceLimits, Split, SplitReader, Wake, numbered};
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
            // Values may be passwords.
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// The partitions of the two topics.
pub struct KafkaSource {
    splits: Vec<Split>,
    /// By split: topic and number of the partition.
    partitions: Vec<(String, i32)>,
    limits: SourceLimits,
    consumer: Arc<BaseConsumer<Context>>,
    /// By split: whether it is being read.
    open: Arc<[AtomicBool]>,
    opened: Mutex<Sender<Opened>>,
    stop: Arc<AtomicBool>,
    poller: Option<JoinHandle<()>>,
    /// Until when calls at the start may wait for brokers.
    deadline: Deadline,
}

impl KafkaSource {
    /// Connects to the brokers and lists the topics' partitions, waiting up to a minute for brokers to come up.
    ///
    /// Partitions that a topic gets later are read after a restart, as a new job: they change the splits' numbers.
    ///
    /// # Errors
    /// If a setting is wrong, no broker answers or it refuses the job, a topic is missing or there are too many partitions.
    pub fn connect(settings: KafkaSettings, limits: SourceLimits) -> Result<KafkaSource, SourceError> {
        KafkaSource::connect_within(settings, limits, BROKERS_WAIT)
    }

    fn connect_within(settings: KafkaSettings, limits: SourceLimits, wait: Duration) -> Result<KafkaSource, SourceError> {
        let limits = limits.checked();
        if settings.orders_topic == settings.inventory_topic {
            return Err(SourceError::OneTopic { topic: settings.orders_topic });
        }
        let consumer: BaseConsumer<Context> =
            client::consumer_config(&settings, &limits)?.create_with_context(Context::default()).map_err(client::refused_settings)?;
        let deadline = Deadline::new(settings.brokers.clone(), wait);
        let mut partitions = Vec::new();
        let mut list = |topic: &str| -> Result<Vec<String>, SourceError> {
            let count = deadline.partition_count(consumer.client(), &|| client::serve(&consumer), topic)?;
            partitions.extend((0..count).map(|partition| (topic.to_owned(), partition)));
            Ok((0..count).map(|partition| format!("{topic}/{partition}")).collect())
        };
        let (inventory, orders) = (list(&settings.inventory_topic)?, list(&settings.orders_topic)?);
        let splits = numbered(inventory, orders)?;

        let consumer = Arc::new(consumer);
        let open: Arc<[AtomicBool]> = splits.iter().map(|_| AtomicBool::new(false)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, opened) = mpsc::channel();
        let poller = Poller::new(consumer.clone(), opened, open.clone(), stop.clone(), limits);
        let poller = thread::Builder::new()
            .name("kafka-source".into())
            .spawn(move || poller.run())
            .map_err(|error| SourceError::Client { reason: format!("no thread to read with: {error}") })?;
        Ok(KafkaSource { splits, partitions, limits, consumer, open, opened: Mutex::new(sender), stop, poller: Some(poller), deadline })
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
        let ask = |(topic, partition): &(String, i32)| {
            self.deadline.retry(self.consumer.context(), &|| {}, || match self.consumer.fetch_watermarks(topic, *partition, REQUEST_WAIT) {
                Ok(offsets) => Answer::Is(offsets),
                Err(error) => Answer::Later(error.to_string()),
            })
        };
        self.partitions.iter().map(ask).collect()
    }

    /// Tells the brokers, under the job's group, that everything before these offsets (split, offset) was processed: only for tools
    /// that show lag. It is sent in the background; a failure is logged and has no other effect.
    pub fn commit_progress(&self, offsets: &[(u32, i64)]) {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(split, offset) in offsets {
            let (topic, partition) = &self.partitions[split as usize];
            if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(offset)) {
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

    fn open(&self, split: u32, offset: i64, wake: Wake) -> Result<SplitReader, SourceError> {
        assert!(offset >= 0, "offsets are not negative");
        let name = &self.splits[split as usize].name;
        if offset > Place::OFFSET_MAX {
            return Err(SourceError::OffsetTooLarge { split: name.clone(), offset });
        }
        let (topic, partition) = &self.partitions[split as usize];
        let failed = |reason: String| SourceError::Partition { split: name.clone(), reason };
        let poller = self.poller.as_ref().expect("the thread runs until the source is dropped").thread().clone();
        if self.open[split as usize].swap(true, Ordering::AcqRel) {
            return Err(SourceError::AlreadyOpen { split: name.clone() });
        }
        let open = || -> Result<SplitReader, SourceError> {
            // The queue is taken before messages are asked for, so that none goes to the consumer's common queue.
            let mut queue = self
                .consumer
                .split_partition_queue(topic, *partition)
                .ok_or_else(|| failed("librdkafka has no queue for it".to_owned()))?;
            let unpark = poller.clone();
            queue.set_nonempty_callback(move || unpark.unpark());
            assign(&self.consumer, topic, *partition, Some(offset)).map_err(|error| failed(error.to_string()))?;
            let (feed, reader) = buffer(name, offset, self.limits, wake);
            let unpark = poller.clone();
            feed.on_room(Arc::new(move || unpark.unpark()));
            let opened = Opened::new(split, name.clone(), topic.clone(), *partition, offset, queue, feed, self.limits);
            // When the thread is gone, the dropped feed has told the reader.
            drop(self.opened.lock().unwrap_or_else(PoisonError::into_inner).send(opened));
            poller.unpark();
            Ok(reader)
        };
        open().inspect_err(|_| self.open[split as usize].store(false, Ordering::Release))
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
