//! Messages to topics, in order within a partition and each once, known to be there once they are flushed.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::SourceError;
use super::kafka::{BROKERS_WAIT, Context, Deadline, KafkaSettings, client_config, refused_settings};

/// Messages between two looks at acknowledgements.
const SERVE_ROWS: u32 = 512;
/// How long to wait for acknowledgements when the queue of unsent messages is full.
const QUEUE_WAIT: Duration = Duration::from_millis(50);
/// How long brokers may take to create a topic.
const CREATE_WAIT: Duration = Duration::from_secs(30);

/// Settings of the producer: large batches, and memory for them that is bounded.
const PRODUCER: [(&str, &str); 9] = [
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

/// An idempotent producer: however often a connection breaks, brokers have each message once.
pub(super) struct Sender {
    producer: BaseProducer<Context>,
    sent: u64,
    /// Messages sent since acknowledgements were last looked at.
    unserved: u32,
}

impl Sender {
    /// Connects to the brokers, waiting up to a minute for them to come up, and creates those of `topics` (name, least number of partitions) that are
    /// missing, with the brokers' default replication.
    pub(super) fn connect(settings: &KafkaSettings, topics: &[(&str, u32)]) -> Result<Sender, SourceError> {
        let config = client_config(settings, &PRODUCER)?;
        let producer: BaseProducer<Context> = config.create_with_context(Context::default()).map_err(refused_settings)?;
        let deadline = Deadline::new(settings.brokers.clone(), BROKERS_WAIT);
        let serve = || producer.poll(Duration::ZERO);
        for &(topic, wanted) in topics {
            let wanted = wanted.max(1) as i32;
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
        Ok(Sender { producer, sent: 0, unserved: 0 })
    }

    /// Queues a message, waiting for room where the queue is full. It fails if this message cannot be sent, or one before was given up.
    pub(super) fn send(&mut self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), SourceError> {
        while let Err((error, back)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(SourceError::NotDelivered { messages: 1, reason: error.to_string() });
            }
            record = back;
            self.producer.poll(QUEUE_WAIT);
            self.check()?;
        }
        self.sent += 1;
        self.unserved += 1;
        if self.unserved >= SERVE_ROWS { self.serve() } else { Ok(()) }
    }

    /// Looks at acknowledgements. It fails if a message was given up.
    pub(super) fn serve(&mut self) -> Result<(), SourceError> {
        self.unserved = 0;
        self.producer.poll(Duration::ZERO);
        self.check()
    }

    /// Waits until all messages are acknowledged, at most for `wait`. It fails if some are not.
    pub(super) fn flush(&mut self, wait: Duration) -> Result<(), SourceError> {
        let flushed = self.producer.flush(wait);
        self.check()?;
        let missing = self.sent - self.producer.context().delivery().delivered;
        match flushed {
            Ok(()) if missing == 0 => Ok(()),
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
