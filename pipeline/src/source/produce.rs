//! Writing generated input to topics.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use orderflow_operators::decoder::Topic;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::SourceError;
use super::kafka::{BROKERS_WAIT, Context, Deadline, KafkaSettings, client_config, refused_settings};

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
    producer: BaseProducer<Context>,
    written: Written,
    /// Messages sent since acknowledgements were last looked at.
    unserved: u32,
}

/// Messages between two looks at acknowledgements.
const SERVE_ROWS: u32 = 512;
/// How long to wait for acknowledgements when the queue of unsent messages is full.
const QUEUE_WAIT: Duration = Duration::from_millis(50);
/// How long brokers may take to create a topic.
const CREATE_WAIT: Duration = Duration::from_secs(30);

impl TopicWriter {
    /// Connects to the brokers, waiting up to a minute for them to come up, and creates the topics that are missing with the given
    /// numbers of partitions and the brokers' default replication.
    ///
    /// # Errors
    /// If a setting is wrong, no broker answers or it refuses the job, a topic cannot be created or has fewer partitions than asked
    /// for.
    pub fn connect(settings: KafkaSettings, orders_partitions: u32, inventory_partitions: u32) -> Result<TopicWriter, SourceError> {
        let config = client_config(&settings, &PRODUCER)?;
        let producer: BaseProducer<Context> = config.create_with_context(Context::default()).map_err(refused_settings)?;
        let deadline = Deadline::new(settings.brokers.clone(), BROKERS_WAIT);
        for (topic, wanted) in [(Topic::Inventory, inventory_partitions), (Topic::Orders, orders_partitions)] {
            let (topic, wanted) = (settings.topic(topic), wanted.max(1) as i32);
            let serve = || producer.poll(Duration::ZERO);
            let has = match deadline.find_topic(producer.client(), &serve, topic)? {
                Some(has) => has,
                None => {
                    // −1: as many replicas as the brokers make by default.
                    create_topic(&config, topic, wanted, -1, &[])?;
                    // The broker that is asked may hear of it a moment later.
                    deadline.partition_count(producer.client(), &serve, topic)?
                }
            };
            if has < wanted {
                return Err(SourceError::TooFewPartitions { topic: topic.to_owned(), has: has as usize, wanted: wanted as usize });
            }
        }
        Ok(TopicWriter { settings, producer, written: Written::default(), unserved: 0 })
    }

    /// Sends a message. It returns when the message is queued; when the queue is full, when there is room.
    ///
    /// # Errors
    /// If this message cannot be sent, or one before was given up.
    pub fn send(&mut self, topic: Topic, partition: u32, key: &[u8], payload: &[u8]) -> Result<(), SourceError> {
        let mut record = BaseRecord::to(self.settings.topic(topic)).partition(partition as i32).key(key).payload(payload);
        while let Err((error, back)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(SourceError::NotDelivered { messages: 1, reason: error.to_string() });
            }
            record = back;
            self.producer.poll(QUEUE_WAIT);
            self.check()?;
        }
        match topic {
            Topic::Orders => self.written.orders += 1,
            Topic::Inventory => self.written.inventory += 1,
        }
        self.written.bytes += payload.len() as u64;
        self.unserved += 1;
        if self.unserved >= SERVE_ROWS {
            self.unserved = 0;
            self.producer.poll(Duration::ZERO);
            self.check()?;
        }
        Ok(())
    }

    /// Looks at acknowledgements, for whoever pauses between two messages.
    ///
    /// # Errors
    /// If a message was given up.
    pub fn serve(&mut self) -> Result<(), SourceError> {
        self.unserved = 0;
        self.producer.poll(Duration::ZERO);
        self.check()
    }

    /// Waits until all messages are acknowledged, at most for `wait`.
    ///
    /// # Errors
    /// If some are not.
    pub fn finish(self, wait: Duration) -> Result<Written, SourceError> {
        let flushed = self.producer.flush(wait);
        self.check()?;
        let missing = self.written.orders + self.written.inventory - self.producer.context().delivery().delivered;
        match flushed {
            Ok(()) if missing == 0 => Ok(self.written),
            Ok(()) => Err(SourceError::NotDelivered { messages: missing, reason: "no acknowledgement".to_owned() }),
            Err(error) => {
                let reason = self.producer.context().last_reason().unwrap_or_else(|| error.to_string());
                Err(SourceError::NotDelivered { messages: missing, reason: format!("not within {} s: {reason}", wait.as_secs()) })
            }
        }
    }

    fn check(&self) -> Result<(), SourceError> {
        let delivery = self.producer.context().delivery();
        match delivery.first_failure {
            Some(reason) => Err(SourceError::NotDelivered { messages: delivery.failed, reason }),
            None => Ok(()),
        }
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

/// Settings of the producer: large batches, and memory for them that is bounded.
pub(super) const PRODUCER: [(&str, &str); 9] = [
    ("enable.idempotence", "true"),
    ("allow.auto.create.topics", "false"),
    ("compression.codec", "lz4"),
    ("linger.ms", "20"),
    ("batch.size", "1000000"),
    ("batch.num.messages", "100000"),
    ("queue.buffering.max.messages", "500000"),
    ("queue.buffering.max.kbytes", "131072"),
    ("message.timeout.ms", "120000"),
];

/// Creates a topic with settings of its own, unless it is there.
pub(crate) fn create_topic(
    config: &ClientConfig,
    topic: &str,
    partitions: i32,
    replicas: i32,
    settings: &[(&str, &str)],
) -> Result<(), SourceError> {
    let failed = |reason: String| SourceError::NotCreated { topic: topic.to_owned(), reason };
    let admin: AdminClient<Context> = config.create_with_context(Context::default()).map_err(refused_settings)?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
    let new = [settings.iter().fold(new, |new, (name, value)| new.set(name, value))];
    let options = AdminOptions::new().request_timeout(Some(CREATE_WAIT)).operation_timeout(Some(CREATE_WAIT));
    let results = block_on(admin.create_topics(&new, &options)).map_err(|error| failed(error.to_string()))?;
    match results.into_iter().next() {
        // Somebody else was faster.
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(failed(code.to_string())),
        None => Err(failed("the broker did not say why".to_owned())),
    }
}

/// Waits for the one answer that librdkafka gives as a future; its own thread makes it.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = task::Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
