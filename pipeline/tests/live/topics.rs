//! Topics: made, written to, changed and read back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orderflow::source::{KafkaSettings, TopicWriter};
use orderflow_fixtures::generate::{GenerateSettings, Generator};
use orderflow_operators::decoder::Topic;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::LONG;

pub fn settings(brokers: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        orders_topic: "orders".to_owned(),
        inventory_topic: "inventory".to_owned(),
        group_id: "test".to_owned(),
        start_wait: LONG,
        properties: BTreeMap::new(),
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("group.id", "test-reader"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("fetch.wait.max.ms", "20"),
    ] {
        config.set(name, value);
    }
    config
}

fn admin<T>(brokers: &str, ask: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> T) -> T {
    let admin = config(brokers).create().unwrap();
    let options = AdminOptions::new().request_timeout(Some(LONG)).operation_timeout(Some(LONG));
    futures::executor::block_on(ask(&admin, &options))
}

/// Makes a topic.
pub fn create(brokers: &str, topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    admin(brokers, async |admin, options| admin.create_topics([&new], options).await).unwrap()[0].clone().unwrap();
}

/// Gives a topic more partitions.
pub fn add_partitions(brokers: &str, topic: &str, partitions: usize) {
    let more = NewPartitions::new(topic, partitions);
    admin(brokers, async |admin, options| admin.create_partitions([&more], options).await).unwrap()[0].clone().unwrap();
}

/// Removes a topic, and waits until it is gone.
pub fn remove(brokers: &str, topic: &str) {
    admin(brokers, async |admin, options| admin.delete_topics(&[topic], options).await).unwrap()[0].clone().unwrap();
    crate::eventually("a removed topic is gone", || {
        let consumer: BaseConsumer = config(brokers).create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), LONG).unwrap();
        metadata.topics().iter().all(|topic| topic.partitions().is_empty())
    });
}

/// Removes the first messages of a partition, as retention does.
pub fn remove_records(brokers: &str, topic: &str, partition: i32, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
    let left = admin(brokers, async |admin, options| admin.delete_records(&list, options).await).unwrap();
    assert_eq!(left.elements()[0].offset(), Offset::Offset(before));
}

/// Writes a generated stream.
pub fn write(brokers: &str, generated: &GenerateSettings) {
    write_at(brokers, generated, f64::INFINITY, || true);
}

/// Writes a generated stream, so many orders a second, for as long as `go_on` says so.
pub fn write_at(brokers: &str, generated: &GenerateSettings, orders_per_s: f64, go_on: impl Fn() -> bool) {
    let (orders, inventory) = (generated.order_splits, generated.inventory_splits);
    let mut writer = TopicWriter::connect(settings(brokers), orders, inventory).unwrap();
    let mut generator = Generator::new(generated.clone()).unwrap();
    let started = Instant::now();
    let mut sent = 0_u64;
    while let Some(row) = generator.next_row() {
        let topic = match row.topic {
            orderflow_fixtures::Topic::Orders => Topic::Orders,
            orderflow_fixtures::Topic::Inventory => Topic::Inventory,
        };
        writer.send(topic, row.split, row.key.as_bytes(), row.payload).unwrap();
        sent += u64::from(row.topic == orderflow_fixtures::Topic::Orders);
        if sent.is_multiple_of(64) {
            if !go_on() {
                break;
            }
            // Some two messages come with an order.
            let due = Duration::from_secs_f64(sent as f64 / 2.2 / orders_per_s);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    writer.finish(LONG).unwrap();
}

/// The offset behind the last message of each partition.
pub fn ends(brokers: &str, topic: &str) -> Vec<i64> {
    let consumer: BaseConsumer = config(brokers).create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), LONG).unwrap();
    let partitions = metadata.topics()[0].partitions().len() as i32;
    (0..partitions).map(|partition| consumer.fetch_watermarks(topic, partition, LONG).unwrap().1).collect()
}

/// All committed messages of a topic, by partition and offset.
pub fn read(brokers: &str, topic: &str) -> Vec<BTreeMap<i64, Vec<u8>>> {
    let consumer: BaseConsumer = config(brokers).create().unwrap();
    let partitions = ends(brokers, topic).len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut open, mut rows, started) = (partitions, vec![BTreeMap::new(); partitions], Instant::now());
    while open > 0 {
        assert!(started.elapsed() < LONG, "{open} partitions of {topic} have no end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let value = message.payload().unwrap_or_default().to_vec();
                rows[message.partition() as usize].insert(message.offset(), value);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{topic}: {error}"),
            None => {}
        }
    }
    rows
}
