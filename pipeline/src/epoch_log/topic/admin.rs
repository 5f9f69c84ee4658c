//! The topic itself: made if it is missing, refused if it could lose records.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{CALL_WAIT, TopicSettings};
use crate::epoch_log::EpochLogError;
use crate::source::{Context, block_on, create_topic, refused_settings};

/// Largest record: one of many thousand splits.
pub(super) const MESSAGE_BYTES_MAX: &str = "8388608";

/// What must be so, or the log could lose records, and why.
const REQUIRED: [(&str, &str, &str); 4] = [
    ("cleanup.policy", "delete", "compaction removes records"),
    ("retention.ms", "-1", "old records are removed"),
    ("retention.bytes", "-1", "old records are removed"),
    ("unclean.leader.election.enable", "false", "a replica that lacks the newest records may become the leader"),
];

/// Makes the topic if it is missing, and checks it.
pub(super) fn prepare(settings: &TopicSettings, producer: &BaseProducer<Context>) -> Result<(), EpochLogError> {
    let failed = |error| settings.brokers_failed(error);
    let deadline = settings.deadline();
    let serve = || producer.poll(Duration::ZERO);
    let partitions = match deadline.find_topic(producer.client(), &serve, &settings.topic).map_err(failed)? {
        Some(partitions) => partitions,
        None => {
            create(settings, producer)?;
            // The broker that is asked may hear of it a moment later.
            deadline.partition_count(producer.client(), &serve, &settings.topic).map_err(failed)?
        }
    };
    if partitions != 1 {
        let what = format!("the topic has {partitions} partitions, and records of several have no order; name a topic with one");
        return Err(EpochLogError::Refused { log: settings.to_string(), what });
    }
    check(settings, producer)
}

fn create(settings: &TopicSettings, producer: &BaseProducer<Context>) -> Result<(), EpochLogError> {
    let metadata = settings.retried(producer, || producer.client().fetch_metadata(Some(&settings.topic), CALL_WAIT))?;
    // A record that was acknowledged is on two brokers at least, where there are as many.
    let (replicas, in_sync) = if metadata.brokers().len() >= 3 { (3, "2") } else { (1, "1") };
    let own = [("min.insync.replicas", in_sync), ("max.message.bytes", MESSAGE_BYTES_MAX)];
    // Not every broker lets it be set for a topic.
    let required = REQUIRED.iter().filter(|(name, ..)| *name != "unclean.leader.election.enable");
    let all: Vec<(&str, &str)> = required.map(|&(name, value, _)| (name, value)).chain(own).collect();
    tracing::info!(topic = settings.topic, replicas, "the epoch log's topic is created");
    create_topic(&settings.client(&[])?, &settings.topic, 1, replicas, &all).map_err(|error| settings.brokers_failed(error))
}

fn client(settings: &TopicSettings) -> Result<AdminClient<Context>, EpochLogError> {
    settings.client(&[])?.create_with_context(Context::default()).map_err(|e| settings.brokers_failed(refused_settings(e)))
}

fn check(settings: &TopicSettings, producer: &BaseProducer<Context>) -> Result<(), EpochLogError> {
    let admin = client(settings)?;
    let options = AdminOptions::new().request_timeout(Some(CALL_WAIT));
    let found = settings.retried(producer, || {
        let mut found = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(&settings.topic)], &options))?;
        found.pop().unwrap_or(Err(RDKafkaErrorCode::UnknownTopicOrPartition)).map_err(rdkafka::error::KafkaError::AdminOp)
    })?;
    let value = |name: &str| found.get(name).and_then(|entry| entry.value.as_deref());
    let wrong: Vec<String> = REQUIRED
        .iter()
        .filter_map(|&(name, wanted, why)| match value(name) {
            Some(is) if is != wanted => Some(format!("{name} is {is} where it must be {wanted}, as {why}")),
            _ => None,
        })
        .collect();
    if !wrong.is_empty() {
        let what = format!("the topic could lose records ({}); alter it, or name another topic", wrong.join("; "));
        return Err(EpochLogError::Refused { log: settings.to_string(), what });
    }
    let metadata = settings.retried(producer, || producer.client().fetch_metadata(Some(&settings.topic), CALL_WAIT))?;
    let replicas = metadata.topics().first().and_then(|topic| topic.partitions().first()).map_or(1, |part| part.replicas().len());
    let in_sync = value("min.insync.replicas").and_then(|value| value.parse::<usize>().ok()).unwrap_or(1);
    if metadata.brokers().len() > 1 && in_sync < 2 {
        tracing::warn!(
            topic = settings.topic,
            replicas,
            in_sync,
            "a record of the epoch log may be on one broker alone; set min.insync.replicas of its topic to 2, with 3 replicas"
        );
    }
    Ok(())
}

/// Has the brokers remove all messages before an offset.
pub(super) fn delete_before(settings: &TopicSettings, offset: i64) -> Result<(), EpochLogError> {
    let admin = client(settings)?;
    let options = AdminOptions::new().request_timeout(Some(CALL_WAIT)).operation_timeout(Some(CALL_WAIT));
    let mut offsets = TopicPartitionList::with_capacity(1);
    let deleted = offsets
        .add_partition_offset(&settings.topic, 0, Offset::Offset(offset))
        .and_then(|()| block_on(admin.delete_records(&offsets, &options)));
    let refused = deleted.map(|deleted| deleted.elements().iter().find_map(|element| element.error().err()));
    match refused {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            let what = format!("{error}; give the job's user the right to delete records of the topic");
            Err(EpochLogError::Refused { log: settings.to_string(), what })
        }
        Ok(Some(error)) | Err(error) => Err(settings.unavailable(error)),
    }
}
