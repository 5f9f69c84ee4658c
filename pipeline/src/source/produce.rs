//! Writing generated input to topics.

use std::time::Duration;

use orderflow_operators::decoder::Topic;
use rdkafka::producer::BaseRecord;

use super::SourceError;
use super::kafka::KafkaSettings;
use super::sender::Sender;

/// What a [`TopicWriter`] has written: messages that the brokers acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Messages to the topic of orders.
    pub orders: u64,
    /// Messages to the topic of stock movements.
    pub inventory: u64,
    /// Bytes of all of them, without keys.
    pub bytes: u64,
}

/// Writes messages to the two topics, in order within a partition and each once, however often a connection breaks.
pub struct TopicWriter {
    settings: KafkaSettings,
    sender: Sender,
    written: Written,
}

impl TopicWriter {
    /// Connects to the brokers, waiting up to a minute for them to come up, and creates the topics that are missing with the given
    /// numbers of partitions and the brokers' default replication.
    ///
    /// # Errors
    /// If a setting is wrong, no broker answers or it refuses the job, a topic cannot be created or has fewer partitions than asked
    /// for.
    pub fn connect(settings: KafkaSettings, orders_partitions: u32, inventory_partitions: u32) -> Result<TopicWriter, SourceError> {
        let topics = [(settings.topic(Topic::Inventory), inventory_partitions), (settings.topic(Topic::Orders), orders_partitions)];
        let sender = Sender::connect(&settings, &topics)?;
        Ok(TopicWriter { settings, sender, written: Written::default() })
    }

    /// Sends a message. It returns when the message is queued; when the queue is full, when there is room.
    ///
    /// # Errors
    /// If this message cannot be sent, or one before was given up.
    pub fn send(&mut self, topic: Topic, partition: u32, key: &[u8], payload: &[u8]) -> Result<(), SourceError> {
        let to = BaseRecord::to(self.settings.topic(topic)).partition(partition as i32);
        self.sender.send(to.key(key).payload(payload))?;
        match topic {
            Topic::Orders => self.written.orders += 1,
            Topic::Inventory => self.written.inventory += 1,
        }
        self.written.bytes += payload.len() as u64;
        Ok(())
    }

    /// Looks at acknowledgements, for whoever pauses between two messages.
    ///
    /// # Errors
    /// If a message was given up.
    pub fn serve(&mut self) -> Result<(), SourceError> {
        self.sender.serve()
    }

    /// Waits until all messages are acknowledged, at most for `wait`.
    ///
    /// # Errors
    /// If some are not.
    pub fn finish(mut self, wait: Duration) -> Result<Written, SourceError> {
        self.sender.flush(wait).map(|()| self.written)
    }
}

/// Writes all of `rows` (topic, partition, key, payload), and waits up to `wait` for the last acknowledgements.
///
/// # Errors
/// As [`TopicWriter`]'s.
pub fn write_topics<K: AsRef<[u8]>, P: AsRef<[u8]>>(
    rows: impl IntoIterator<Item = (Topic, u32, K, P)>,
    settings: KafkaSettings,
    orders_partitions: u32,
    inventory_partitions: u32,
    wait: Duration,
) -> Result<Written, SourceError> {
    let mut writer = TopicWriter::connect(settings, orders_partitions, inventory_partitions)?;
    for (topic, partition, key, payload) in rows {
        writer.send(topic, partition, key.as_ref(), payload.as_ref())?;
    }
    writer.finish(wait)
}
