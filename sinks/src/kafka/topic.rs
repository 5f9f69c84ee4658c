//! The topic of a stream: made if absent, and read from its end where the record of commits is gone.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use orderflow_faults::{Point, pass};
use orderflow_operators::epoch::Epoch;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaSettings;
use super::client::Context;
use super::error::{Failure, of_code};
use super::message::EPOCH_HEADER;

/// Longest wait for one answer.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long a partition's end is waited for.
const TAIL_WAIT: Duration = Duration::from_secs(30);
/// How long a topic that was just made may be unknown to some brokers.
const TOPIC_WAIT: Duration = Duration::from_secs(10);

/// Makes the topic if there is none; the number of its partitions.
pub(super) fn ensure(
    consumer: &BaseConsumer<Context>,
    config: &ClientConfig,
    settings: &KafkaSettings,
    topic: &str,
) -> Result<i32, Failure> {
    if let Some(partitions) = partitions(consumer, topic)? {
        return Ok(partitions);
    }
    let admin: AdminClient<Context> = config.create_with_context(Context::default())?;
    // -1 is the cluster's own number.
    let replication = if settings.replication_factor == 0 { -1 } else { i32::from(settings.replication_factor) };
    let new = NewTopic::new(topic, i32::from(settings.partitions), TopicReplication::Fixed(replication));
    let options = AdminOptions::new().request_timeout(Some(REQUEST_WAIT)).operation_timeout(Some(REQUEST_WAIT));
    pass(Point::KafkaTopic);
    for result in block_on(admin.create_topics([&new], &options))? {
        match result {
            Ok(_) => tracing::info!(topic, partitions = settings.partitions, "created the topic"),
            // By another process of the job, or by an operator.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(of_code(code, format!("the topic cannot be created: {code}"))),
        }
    }
    pass(Point::KafkaTopicMade);
    let deadline = Instant::now() + TOPIC_WAIT;
    while Instant::now() < deadline {
        if let Some(partitions) = partitions(consumer, topic)? {
            return Ok(partitions);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::Unavailable("the topic was created, but brokers do not know it yet".into()))
}

/// The number of its partitions, if it exists.
pub(super) fn partitions(consumer: &BaseConsumer<Context>, topic: &str) -> Result<Option<i32>, Failure> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_WAIT)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => Ok(None),
        None => Ok(Some(found.partitions().len() as i32)),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(code) => Err(of_code(code, KafkaError::MetadataFetch(code).to_string())),
    }
}

/// Whether nothing was ever written to it: also what is aborted or removed by retention has had its place.
pub(super) fn is_unused(consumer: &BaseConsumer<Context>, topic: &str, partitions: i32) -> Result<bool, Failure> {
    for partition in 0..partitions {
        let (_, high) = consumer.fetch_watermarks(topic, partition, REQUEST_WAIT)?;
        if high > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The last epoch of which there is a message that readers see, from the last such message of each partition; 0 if there never was one.
///
/// Messages of an epoch come in one transaction, and a partition's epochs rise: what is behind the last message's epoch has no rows
/// in the topic. It takes the place of a committed offset that the brokers have forgotten (`offsets.retention.minutes`).
///
/// # Errors
/// If a partition has no message left of those that it had: then nobody knows.
pub(super) fn last_epoch(consumer: &BaseConsumer<Context>, topic: &str, partitions: i32) -> Result<Epoch, Failure> {
    let mut last = Epoch(0);
    for partition in 0..partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, REQUEST_WAIT)?;
        match last_message(consumer, topic, partition, low, high)? {
            Some(epoch) => last = last.max(epoch),
            // What it had, if anything, was aborted.
            None if low == 0 => {}
            None => {
                return Err(Failure::Refused(format!(
                    "the brokers have forgotten through which epoch it was committed, and retention has removed the messages of partition \
                     {partition}; set the offset of its group to the last epoch that readers have, or remove the topic to have it written \
                     again as far back as the epoch log and the input go"
                )));
            }
        }
    }
    Ok(last)
}

fn last_message(consumer: &BaseConsumer<Context>, topic: &str, partition: i32, low: i64, high: i64) -> Result<Option<Epoch>, Failure> {
    // Markers and aborted messages have offsets too, so that the last message may stand far before the end.
    let mut window = 64;
    let mut end = high;
    while end > low {
        let start = (end - window).max(low);
        if let Some(epoch) = last_between(consumer, topic, partition, start, high)? {
            return Ok(Some(epoch));
        }
        end = start;
        window *= 8;
    }
    Ok(None)
}

/// The epoch of the last message from `start` on.
fn last_between(consumer: &BaseConsumer<Context>, topic: &str, partition: i32, start: i64, high: i64) -> Result<Option<Epoch>, Failure> {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, partition, Offset::Offset(start))?;
    consumer.assign(&list)?;
    let deadline = Instant::now() + TAIL_WAIT;
    let mut last = None;
    let result = loop {
        if Instant::now() >= deadline {
            break Err(Failure::Unavailable(format!("partition {partition} cannot be read from {start} to {high}")));
        }
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => break Ok(last),
            Some(Err(error)) => break Err(error.into()),
            Some(Ok(message)) => {
                let epoch = message.headers().and_then(|headers| headers.iter().find(|header| header.key == EPOCH_HEADER));
                let digits = epoch.and_then(|header| header.value).and_then(|digits| std::str::from_utf8(digits).ok());
                match digits.and_then(|digits| digits.parse().ok()) {
                    Some(epoch) => last = Some(Epoch(epoch)),
                    None => {
                        let offset = message.offset();
                        break Err(Failure::Refused(format!(
                            "partition {partition} has a message at {offset} that is not this job's; give it a topic of its own by \
                             sinks.kafka.topic_prefix"
                        )));
                    }
                }
            }
        }
    };
    consumer.unassign()?;
    result
}
