//! A real broker, on ports and in a folder of its own, and a reader of what it holds.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use orderflow_fixtures::kafka_broker::{KafkaBroker, KafkaBrokerError};
use orderflow_sinks::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

/// No wait is longer.
pub const LONG: Duration = Duration::from_secs(90);

/// Apache Kafka, one node. It ends with the test.
pub struct Broker {
    kafka: KafkaBroker,
    /// Removed when the broker has ended.
    _folder: TempDir,
}

impl Broker {
    /// Starts one, where it can be had.
    pub fn start(test: &str) -> Option<Broker> {
        let folder = tempfile::tempdir().unwrap();
        match KafkaBroker::start(folder.path(), "256m") {
            Ok(kafka) => Some(Broker { kafka, _folder: folder }),
            Err(error @ KafkaBrokerError::Missing { .. }) => {
                // Past the capture of a test's output: nothing was tested.
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts it, after [`kill`](Broker::kill) again.
    pub fn up(&self) {
        self.kafka.up().unwrap();
    }

    /// Ends it as a power cut would, except that the disk keeps what it was told.
    pub fn kill(&self) {
        self.kafka.kill();
    }

    pub fn address(&self) -> String {
        self.kafka.address()
    }

    pub fn settings(&self) -> KafkaSettings {
        KafkaSettings { brokers: self.address(), job: "job".to_owned(), partitions: 3, ..KafkaSettings::default() }
    }
}

/// A message as a read-committed reader has it.
#[derive(Debug)]
pub struct Read {
    pub partition: i32,
    pub key: Option<String>,
    pub value: serde_json::Value,
    pub headers: BTreeMap<String, String>,
}

pub fn reader(brokers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("group.id", "reader"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("fetch.wait.max.ms", "20"),
    ] {
        config.set(name, value);
    }
    config.create().unwrap()
}

/// All that is committed, once there are `count` messages or more.
pub fn read(brokers: &str, topic: &str, count: usize) -> Vec<Read> {
    let start = Instant::now();
    loop {
        let read = read_to_end(brokers, topic);
        // The markers that make a transaction visible may come a moment after its end was answered.
        if read.len() >= count {
            return read;
        }
        assert!(start.elapsed() < LONG, "{} of {count} messages are in {topic}", read.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read_to_end(brokers: &str, topic: &str) -> Vec<Read> {
    let consumer = reader(brokers);
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut open, mut read, start) = (list.count(), Vec::new(), Instant::now());
    while open > 0 {
        assert!(start.elapsed() < LONG, "{open} partitions of {topic} have no end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter().collect::<Vec<_>>());
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                read.push(Read {
                    partition: message.partition(),
                    key: message.key().map(text),
                    value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
                    headers: headers.map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect(),
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    read
}
