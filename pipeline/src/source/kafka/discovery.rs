//! The thread that looks for partitions which were added to the topics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::start::{Answer, Deadline, REQUEST_WAIT};
use super::{Context, identity, lock, split_name};
use crate::epoch_log::AddedSplit;
use crate::source::SourceError;

/// Asks the brokers now and then. It ends when it is dropped.
pub(super) struct Discovery {
    found: Arc<Found>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Found {
    splits: Mutex<Vec<AddedSplit>>,
    error: Mutex<Option<SourceError>>,
    stop: AtomicBool,
}

/// A topic, and how many of its partitions are known.
type Watched = Vec<(String, i32)>;

impl Discovery {
    /// Looks at `topics` every `interval`; `identities` are those of the topics that are read.
    pub fn start(
        consumer: Arc<BaseConsumer<Context>>,
        mut topics: Watched,
        identities: BTreeMap<String, String>,
        interval: Duration,
    ) -> Result<Discovery, SourceError> {
        let found = Arc::new(Found::default());
        let told = found.clone();
        let look = move || {
            while !told.stop.load(Ordering::Acquire) {
                thread::park_timeout(interval);
                if told.stop.load(Ordering::Acquire) {
                    return;
                }
                if let Err(error) = look(&consumer, &mut topics, &identities, &told) {
                    lock(&told.error).get_or_insert(error);
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("kafka-discovery".into()).spawn(look);
        let thread = thread.map_err(|error| SourceError::Client { reason: format!("no thread to look for partitions with: {error}") })?;
        Ok(Discovery { found, thread: Some(thread) })
    }

    /// What was found since the last call.
    pub fn take(&self) -> Result<Vec<AddedSplit>, SourceError> {
        match lock(&self.found.error).clone() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut *lock(&self.found.splits))),
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.found.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been reported where panics are; nobody depends on the thread any more.
            let _ = thread.join();
        }
    }
}

/// Brokers that do not answer are asked again the next time.
fn look(
    consumer: &BaseConsumer<Context>,
    topics: &mut Watched,
    identities: &BTreeMap<String, String>,
    found: &Found,
) -> Result<(), SourceError> {
    let now = identity::of_topics(consumer.client(), identities.keys()).unwrap_or_default();
    if let Some(topic) = now.iter().find(|(topic, id)| identities.get(*topic).is_some_and(|known| known != *id)).map(|(topic, _)| topic) {
        return Err(SourceError::MadeAnew { topic: topic.clone() });
    }
    let deadline = Deadline::new(String::new(), REQUEST_WAIT);
    for (topic, known) in topics {
        let count = match deadline.partitions(consumer.client(), topic) {
            Answer::Is(Some(count)) => count,
            Answer::Is(None) => {
                consumer.context().warn(topic, &format!("topic `{topic}` is gone: there is nothing to read until it is back"));
                continue;
            }
            Answer::Later(reason) => {
                tracing::debug!(topic, reason, "not looked for more partitions");
                continue;
            }
            Answer::Never(error) => return Err(error),
        };
        for partition in *known..count {
            let start = match consumer.fetch_watermarks(topic, partition, REQUEST_WAIT) {
                Ok((low, _)) => low,
                Err(error) => {
                    // It may have no leader yet. Those behind it keep their order.
                    tracing::debug!(topic, partition, %error, "a new partition does not answer yet");
                    break;
                }
            };
            lock(&found.splits).push(AddedSplit { name: split_name(topic, partition), start });
            *known = partition + 1;
        }
    }
    Ok(())
}
