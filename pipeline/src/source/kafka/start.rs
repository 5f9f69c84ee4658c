//! Finding brokers and topics when the job starts: both may be starting, too.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Context;
use crate::source::SourceError;

/// How long to wait for brokers at the start.
pub(crate) const BROKERS_WAIT: Duration = Duration::from_secs(60);
/// How long to wait for a topic that brokers do not know: it may just have been created.
const TOPIC_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for one answer.
pub(super) const REQUEST_WAIT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What came of a request.
pub(super) enum Answer<T> {
    /// This.
    Is(T),
    /// It may be another soon.
    Later(String),
    /// It will not be another.
    Never(SourceError),
}

/// How long requests at the start may wait for brokers.
pub(crate) struct Deadline {
    at: Instant,
    wait: Duration,
    brokers: String,
}

impl Deadline {
    /// From now on.
    pub fn new(brokers: String, wait: Duration) -> Self {
        Deadline { at: Instant::now() + wait, wait, brokers }
    }

    /// Asks until there is an answer, with growing pauses. `serve` handles the client's events, among which is what went wrong with
    /// connections.
    pub(super) fn retry<T>(&self, context: &Context, serve: &dyn Fn(), mut request: impl FnMut() -> Answer<T>) -> Result<T, SourceError> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let reason = match request() {
                Answer::Is(value) => return Ok(value),
                Answer::Never(error) => return Err(error),
                Answer::Later(reason) => reason,
            };
            serve();
            if let Some(reason) = context.refusal() {
                return Err(SourceError::Refused { brokers: self.brokers.clone(), reason });
            }
            let reason = context.last_reason().unwrap_or(reason);
            if Instant::now() + backoff >= self.at {
                return Err(SourceError::Unreachable { brokers: self.brokers.clone(), waited_s: self.wait.as_secs(), reason });
            }
            tracing::debug!(brokers = self.brokers, reason, "waiting for brokers");
            thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// The number of a topic's partitions; an error if the topic does not come up.
    pub fn partition_count(&self, client: &Client<Context>, serve: &dyn Fn(), topic: &str) -> Result<i32, SourceError> {
        let mut missing_since = None;
        self.retry(client.context(), serve, || match self.partitions(client, topic) {
            Answer::Is(Some(count)) => Answer::Is(count),
            Answer::Is(None) => {
                let missing = SourceError::TopicMissing { topic: topic.to_owned(), brokers: self.brokers.clone() };
                let since = *missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() < TOPIC_WAIT.min(self.wait / 2) { Answer::Later(missing.to_string()) } else { Answer::Never(missing) }
            }
            Answer::Later(reason) => Answer::Later(reason),
            Answer::Never(error) => Answer::Never(error),
        })
    }

    /// The number of a topic's partitions; none if the brokers know of no such topic.
    pub fn find_topic(&self, client: &Client<Context>, serve: &dyn Fn(), topic: &str) -> Result<Option<i32>, SourceError> {
        self.retry(client.context(), serve, || self.partitions(client, topic))
    }

    pub(super) fn partitions(&self, client: &Client<Context>, topic: &str) -> Answer<Option<i32>> {
        let metadata = match client.fetch_metadata(Some(topic), REQUEST_WAIT.min(self.wait)) {
            Ok(metadata) => metadata,
            Err(error) => return Answer::Later(error.to_string()),
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Answer::Later(format!("the broker says nothing of topic `{topic}`"));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None if !found.partitions().is_empty() => {
                let mut ids: Vec<i32> = found.partitions().iter().map(|partition| partition.id()).collect();
                ids.sort_unstable();
                if ids.iter().copied().eq(0..ids.len() as i32) {
                    return Answer::Is(Some(ids.len() as i32));
                }
                Answer::Later(format!("the broker lists only partitions {ids:?} of topic `{topic}`"))
            }
            None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Answer::Is(None),
            Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)) => {
                let reason = KafkaError::MetadataFetch(code).to_string();
                Answer::Never(SourceError::Partition { split: format!("topic `{topic}`"), reason })
            }
            Some(code) => Answer::Later(KafkaError::MetadataFetch(code).to_string()),
        }
    }
}
