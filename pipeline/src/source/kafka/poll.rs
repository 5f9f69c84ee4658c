//! The thread that moves messages from librdkafka's queues to the splits' buffers.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use orderflow_operators::epoch::Place;
use rdkafka::Message as _;
use rdkafka::bindings::{rd_kafka_get_watermark_offsets, rd_kafka_resp_err_t};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{self, Context};
use super::start::REQUEST_WAIT;
use super::{OpenSplits, assign, lock};
use crate::source::buffer::Feed;
use crate::source::chunk::ChunkBuilder;
use crate::source::{SourceError, SourceLimits};

/// How often logs, answers and high watermarks are looked at when no message comes.
const TICK: Duration = Duration::from_millis(250);
/// How long a broker's log may stay shorter than what was once read from it: a new leader may lag for a moment.
const SHORTER_WAIT: Duration = Duration::from_secs(30);

/// All partitions of a process that are being read.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    partitions: Vec<Opened>,
    opened: Receiver<Opened>,
    open: OpenSplits,
    stop: Arc<AtomicBool>,
    /// Messages that one partition may move before the others have their turn.
    turn_rows: usize,
}

impl Poller {
    pub fn new(
        consumer: Arc<BaseConsumer<Context>>,
        opened: Receiver<Opened>,
        open: OpenSplits,
        stop: Arc<AtomicBool>,
        limits: SourceLimits,
    ) -> Self {
        Poller { consumer, partitions: Vec::new(), opened, open, stop, turn_rows: limits.chunk_rows }
    }

    /// Moves messages until the source is dropped. It sleeps while there are none: librdkafka unparks it when a queue is no longer
    /// empty, a worker when there is room again, a source when a split was opened.
    pub fn run(mut self) {
        let mut ticked = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            self.partitions.extend(self.opened.try_iter());
            let mut moved = false;
            for partition in &mut self.partitions {
                moved |= partition.turn(&self.consumer, self.turn_rows);
            }
            self.close_abandoned();
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                client::serve(&self.consumer);
                self.partitions.iter_mut().for_each(|partition| partition.tick(&self.consumer));
            }
            if !moved {
                thread::park_timeout(TICK);
            }
        }
    }

    fn close_abandoned(&mut self) {
        self.partitions.retain(|partition| {
            let wanted = !partition.feed.is_abandoned();
            if !wanted {
                if let Err(error) = assign(&self.consumer, &partition.topic, partition.partition, None) {
                    tracing::warn!(split = partition.name, %error, "a partition that is no longer read could not be given back");
                }
                lock(&self.open).remove(&partition.name);
            }
            wanted
        });
    }
}

/// A partition that is being read.
pub(super) struct Opened {
    name: String,
    topic: String,
    /// The topic as librdkafka takes it.
    topic_c: CString,
    partition: i32,
    /// The least offset that the next message may have.
    next: i64,
    queue: PartitionQueue<Context>,
    feed: Feed,
    chunk: ChunkBuilder,
    failed: bool,
    shorter_since: Option<Instant>,
}

impl Opened {
    pub fn new(
        name: String,
        topic: String,
        partition: i32,
        offset: i64,
        queue: PartitionQueue<Context>,
        feed: Feed,
        limits: SourceLimits,
    ) -> Self {
        let topic_c = CString::new(topic.as_str()).expect("librdkafka has taken the topic's name before");
        let chunk = ChunkBuilder::new(limits);
        Opened { name, topic, topic_c, partition, next: offset, queue, feed, chunk, failed: false, shorter_since: None }
    }

    /// Moves what is in the partition's queue, up to a chunk. Returns whether there was anything.
    fn turn(&mut self, consumer: &BaseConsumer<Context>, rows_max: usize) -> bool {
        if self.failed || !self.feed.has_room() {
            return false;
        }
        let mut moved = 0;
        let mut caught_up = false;
        while moved < rows_max && !self.chunk.is_full() {
            let Some(event) = self.queue.poll(Duration::ZERO) else { break };
            moved += 1;
            caught_up = false;
            match event {
                // A message from before the place to start from can only be a repeat.
                Ok(message) if message.offset() < self.next => {}
                Ok(message) if message.offset() > Place::OFFSET_MAX => {
                    self.fail(SourceError::OffsetTooLarge { split: self.name.clone(), offset: message.offset() });
                    break;
                }
                Ok(message) => {
                    self.chunk.push(message.offset(), message.payload().unwrap_or_default());
                    self.next = message.offset() + 1;
                }
                Err(KafkaError::PartitionEOF(_)) => caught_up = true,
                Err(error) => {
                    if let Some(error) = self.judge(consumer, &error) {
                        self.fail(error);
                        break;
                    }
                }
            }
        }
        if moved > 0 {
            self.chunk.build().into_iter().for_each(|chunk| self.feed.push(chunk));
            if let Some(high) = self.high(consumer) {
                self.feed.set_progress(high, caught_up);
            }
        }
        moved > 0
    }

    /// Looks after a partition without messages.
    fn tick(&mut self, consumer: &BaseConsumer<Context>) {
        if self.failed {
            return;
        }
        let Some(high) = self.high(consumer) else { return };
        self.feed.set_progress(high, false);
        let Some(needed) = self.feed.needed().filter(|&needed| needed > high) else {
            self.shorter_since = None;
            return;
        };
        if self.shorter_since.get_or_insert_with(Instant::now).elapsed() > SHORTER_WAIT {
            self.fail(SourceError::Shorter { split: self.name.clone(), end: high, needed });
        }
    }

    fn fail(&mut self, error: SourceError) {
        self.failed = true;
        // What came before the error is whole.
        self.chunk.build().into_iter().for_each(|chunk| self.feed.push(chunk));
        self.feed.fail(error);
    }

    /// What an error means for the split; none if librdkafka gets over it.
    fn judge(&self, consumer: &BaseConsumer<Context>, error: &KafkaError) -> Option<SourceError> {
        use RDKafkaErrorCode as Code;
        let reason = || consumer.context().last_reason().unwrap_or_else(|| error.to_string());
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                Some(match consumer.fetch_watermarks(&self.topic, self.partition, REQUEST_WAIT) {
                    Ok((first, end)) => SourceError::OffsetGone { split: self.name.clone(), offset: self.next, first, end },
                    Err(_) => SourceError::Partition { split: self.name.clone(), reason: reason() },
                })
            }
            // Connections, leaders and metadata come and go. An unknown topic may be one whose broker is starting.
            Some(
                Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::TimedOutQueue
                | Code::RequestTimedOut
                | Code::NetworkException
                | Code::SSL
                | Code::Authentication
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopicId
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::BrokerNotAvailable
                | Code::ReplicaNotAvailable
                | Code::KafkaStorageError
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::OffsetNotAvailable
                | Code::ThrottlingQuotaExceeded,
            ) => {
                consumer.context().warn(&self.name, &format!("{} is not readable just now, trying on: {}", self.name, reason()));
                None
            }
            // Anything else (a damaged batch, an unknown compression, a right that was taken away) would lose messages.
            _ => Some(SourceError::Partition { split: self.name.clone(), reason: format!("{error} ({})", reason()) }),
        }
    }

    /// The offset after the partition's last message, as of the last answer to a fetch.
    fn high(&self, consumer: &BaseConsumer<Context>) -> Option<i64> {
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client lives while `consumer` is borrowed, the topic ends with a NUL, and both results are written to locals
        // that outlive the call, which only reads what the client has cached.
        let answer = unsafe {
            rd_kafka_get_watermark_offsets(consumer.client().native_ptr(), self.topic_c.as_ptr(), self.partition, &mut low, &mut high)
        };
        (answer == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
    }
}
