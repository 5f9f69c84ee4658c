//! Where rows come from: files of a fixture, or partitions of Kafka (Redpanda) topics.
//!
//! A [`Source`] lists its [`Split`]s and opens each at an offset. A thread behind the source reads ahead into a bounded buffer;
//! the engine holds a [`SplitReader`] for each split that it owns, and takes ranges of offsets out of it: those that the sealer
//! decided from what is [available](SplitReader::available), or those that the epoch log recorded.
//!
//! ```text
//!  file ── thread a file ──┐             ┌─ SplitReader ─ worker
//!                          ├─ chunks of ─┤
//!  topic ─ thread a source ┘   messages  └─ SplitReader ─ worker
//! ```
//!
//! Sources do not look into messages. Whatever a message holds, and however long it is, it arrives as one [`Message`].

mod buffer;
mod chunk;
mod files;
mod kafka;
mod lines;
mod pace;
mod produce;
mod sender;
mod topic_lines;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use orderflow_operators::decoder::Topic;
use orderflow_operators::epoch::Place;

use crate::epoch_log::AddedSplit;

pub use buffer::{Available, SplitReader};
pub use chunk::{Message, Messages};
pub use files::FileSource;
pub use kafka::{KafkaSettings, KafkaSource};
pub use produce::{TopicWriter, Written, write_topics};
pub use topic_lines::{TopicLines, copy_topic};

pub(crate) use kafka::{BROKERS_WAIT, Context, Deadline, client_config, refused_settings};
pub(crate) use sender::{block_on, create_topic};

/// One ordered input: a partition of a topic, or one file of a fixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Its number: 0, 1, 2 … over all splits of the source.
    pub number: u32,
    /// Which messages it has.
    pub topic: Topic,
    /// What people know it by, and what tells whether a later run has the same splits: `orders-000.jsonl` (without `.gz` or
    /// `.zst`), `orders/3`.
    pub name: String,
}

/// An input of splits that are read from an offset on.
pub trait Source: Send + Sync {
    /// All splits that there were when it was opened, numbered as for a new job: inventory first, then orders; within each by file name or partition.
    fn splits(&self) -> &[Split];

    /// The split of this name, under the number that the job has given it; none if the source has no such split. It may be one that came later.
    fn split(&self, number: u32, name: &str) -> Option<Split> {
        self.splits().iter().find(|split| split.name == name).map(|split| Split { number, ..split.clone() })
    }

    /// Splits that came since the source was opened and were not told yet: names, and where each begins. None where nobody looks for them.
    ///
    /// # Errors
    /// If the input is no longer what it was.
    fn added(&self) -> Result<Vec<AddedSplit>, SourceError> {
        Ok(Vec::new())
    }

    /// Starts reading `split` from `offset`, ahead of the engine, within the source's [`SourceLimits`]. `wake` is called whenever more
    /// became available, and when the split ended or failed; it must be quick.
    ///
    /// # Errors
    /// If the split cannot be read at all. What goes wrong later is [`SplitReader::error`].
    ///
    /// # Panics
    /// If there is no such split, or `offset` is negative.
    fn open(&self, split: &Split, offset: i64, wake: Wake) -> Result<SplitReader, SourceError>;

    /// Whether its splits end: files do, topics do not.
    fn bounded(&self) -> bool;
}

/// Tells the owner of a split that there is news.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// How much is read ahead, and in which pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Of a longer message only so many bytes are kept; 1 GiB at most.
    pub message_bytes_max: usize,
    /// A split's buffer is full with so many bytes; it may be over by a chunk and a message.
    pub buffer_bytes_max: usize,
    /// A split's buffer is full with so many messages: empty ones take memory, too.
    pub buffer_rows_max: u64,
    /// Messages travel together up to so many bytes, and one message over; 64 MiB at most.
    pub chunk_bytes: usize,
    /// Most messages that travel together.
    pub chunk_rows: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        SourceLimits {
            message_bytes_max: 16 << 20,
            buffer_bytes_max: 16 << 20,
            buffer_rows_max: 4 << 20,
            // Large enough that handing it over costs nothing, small enough for a core's cache.
            chunk_bytes: 512 << 10,
            chunk_rows: 8192,
        }
    }
}

impl SourceLimits {
    /// With every limit at least 1, and those of one chunk so that 32 bits can count its bytes.
    fn checked(self) -> Self {
        SourceLimits {
            message_bytes_max: self.message_bytes_max.clamp(1, 1 << 30),
            buffer_bytes_max: self.buffer_bytes_max.max(1),
            buffer_rows_max: self.buffer_rows_max.max(1),
            chunk_bytes: self.chunk_bytes.clamp(1, 64 << 20),
            chunk_rows: self.chunk_rows.max(1),
        }
    }

    /// A range's limits, no larger than what a buffer can hold.
    fn within(&self, rows_max: u64, bytes_max: u64) -> (u64, u64) {
        (rows_max.min(self.buffer_rows_max), bytes_max.min(self.buffer_bytes_max as u64))
    }
}

/// Why a source cannot be read (or, by [`TopicWriter`], written). The text says what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A folder or file cannot be read, or is damaged.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the operating system or the decompressor says.
        source: Arc<io::Error>,
    },
    /// A file is damaged, or cannot be read further.
    #[error("cannot read {} after its first {line} lines: {source}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Lines that were read whole.
        line: i64,
        /// What the operating system or the decompressor says.
        source: Arc<io::Error>,
    },
    /// A folder without input.
    #[error("{} has no input: a fixture has files named inventory-*.jsonl and orders-*.jsonl (or .jsonl.gz, .jsonl.zst)", folder.display())]
    NoFiles {
        /// The folder.
        folder: PathBuf,
    },
    /// The same file in two compressions.
    #[error("{} has both {first} and {second}, which are one split: remove one of them", folder.display())]
    FileTwice {
        /// The folder.
        folder: PathBuf,
        /// A file's name.
        first: String,
        /// The other file's name.
        second: String,
    },
    /// A file has fewer lines than were read from it before.
    #[error(
        "{} is shorter than what the epoch log recorded: {lines} lines, of which {offset} were read before; \
         put the file back as it was, or start anew with another output folder",
        path.display()
    )]
    FileShorter {
        /// The file.
        path: PathBuf,
        /// Lines that it has.
        lines: i64,
        /// Lines to be passed over.
        offset: i64,
    },
    /// A split ended before a range that was read from it before.
    #[error(
        "{split} ends at offset {end}, but the epoch log recorded messages up to {needed}; \
         put the input back as it was, or start anew (with another output folder or job.id)"
    )]
    Shorter {
        /// The split's name.
        split: String,
        /// The offset after its last message.
        end: i64,
        /// The end of the range.
        needed: i64,
    },
    /// More splits than places can name.
    #[error("the input has {count} splits; at most {} can be told apart", Place::SPLIT_MAX + 1)]
    TooManySplits {
        /// How many.
        count: usize,
    },
    /// An offset larger than places can hold.
    #[error("{split} has offset {offset}; the largest that can be told apart is {}", Place::OFFSET_MAX)]
    OffsetTooLarge {
        /// The split's name.
        split: String,
        /// The offset.
        offset: i64,
    },
    /// A split that another process, or the log, has and this source has not.
    #[error("{split} is not among this process's inputs: give all processes of the job the same topics and brokers")]
    NoSplit {
        /// The split's name.
        split: String,
    },
    /// A split is being read already.
    #[error("{split} is being read already")]
    AlreadyOpen {
        /// The split's name.
        split: String,
    },
    /// The thread that reads a split is gone.
    #[error("{split} is no longer read: its source was closed")]
    Stopped {
        /// The split's name.
        split: String,
    },
    /// A property that the job sets itself.
    #[error("source.kafka.properties: `{name}` cannot be set here: {reason}")]
    ReservedProperty {
        /// The property.
        name: String,
        /// Why, or what to set instead.
        reason: &'static str,
    },
    /// A property that librdkafka does not take.
    #[error("source.kafka.properties: `{name}`: {reason}")]
    Property {
        /// The property.
        name: String,
        /// What librdkafka says.
        reason: String,
    },
    /// Properties that do not go together, or name files that cannot be read.
    #[error("librdkafka refuses the settings under source.kafka: {reason}")]
    Client {
        /// What librdkafka says.
        reason: String,
    },
    /// No broker answers.
    #[error("no broker of {brokers} answered within {waited_s} s: {reason}")]
    Unreachable {
        /// `source.kafka.brokers`.
        brokers: String,
        /// Seconds waited.
        waited_s: u64,
        /// The last failure.
        reason: String,
    },
    /// The brokers do not let the job in.
    #[error("{brokers} refuses the job: {reason}; see to the sasl.* and ssl.* settings under source.kafka.properties")]
    Refused {
        /// `source.kafka.brokers`.
        brokers: String,
        /// What the broker or librdkafka says.
        reason: String,
    },
    /// A topic does not exist.
    #[error(
        "topic `{topic}` does not exist at {brokers}: create it, for example with \
         `rpk topic create {topic} --partitions 4 --brokers {brokers}` or \
         `kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {brokers}`"
    )]
    TopicMissing {
        /// The topic.
        topic: String,
        /// `source.kafka.brokers`.
        brokers: String,
    },
    /// Both inputs are one topic.
    #[error("source.orders_topic and source.inventory_topic are both `{topic}`: orders and stock movements need a topic each")]
    OneTopic {
        /// The topic.
        topic: String,
    },
    /// A topic has fewer partitions than there are rows for.
    #[error("topic `{topic}` has {has} partitions, {wanted} are needed: add some, or write to fewer")]
    TooFewPartitions {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        has: usize,
        /// Partitions asked for.
        wanted: usize,
    },
    /// The broker no longer has what comes next.
    #[error(
        "{split}: the next message to read has offset {offset}, but the broker has only {first} to {end} (exclusive): messages were \
         deleted before they were read, or the topic was made anew. Raise the topic's retention (retention.ms, retention.bytes) beyond the longest time that the job may \
         stand still; to go on without them, start anew under another job.id"
    )]
    OffsetGone {
        /// The split's name.
        split: String,
        /// The offset that is needed.
        offset: i64,
        /// The first offset that the broker has.
        first: i64,
        /// The offset after the last that the broker has.
        end: i64,
    },
    /// A topic is another one now.
    #[error(
        "topic `{topic}` was removed and made anew while the job ran: what it had and was not read is lost. To go on with what it has now, begin \
         anew with another job.id and epoch log"
    )]
    MadeAnew {
        /// The topic.
        topic: String,
    },
    /// A partition cannot be read on.
    #[error("{split} cannot be read: {reason}")]
    Partition {
        /// The split's name.
        split: String,
        /// What librdkafka or the broker says.
        reason: String,
    },
    /// The copy of a topic cannot be written.
    #[error("topic `{topic}` cannot be copied to {}: {source}", path.display())]
    NotCopied {
        /// The topic.
        topic: String,
        /// A file of the copy.
        path: PathBuf,
        /// What the operating system says.
        source: Arc<io::Error>,
    },
    /// A topic could not be created.
    #[error("topic `{topic}` cannot be created: {reason}")]
    NotCreated {
        /// The topic.
        topic: String,
        /// What the broker says.
        reason: String,
    },
    /// Messages were not delivered.
    #[error("{messages} messages were not delivered: {reason}")]
    NotDelivered {
        /// How many.
        messages: u64,
        /// The first failure.
        reason: String,
    },
}

/// Numbers the splits: `inventory`, then `orders`, each in the given order.
fn numbered(inventory: impl IntoIterator<Item = String>, orders: impl IntoIterator<Item = String>) -> Result<Vec<Split>, SourceError> {
    let inventory = inventory.into_iter().map(|name| (Topic::Inventory, name));
    let orders = orders.into_iter().map(|name| (Topic::Orders, name));
    let splits: Vec<Split> = (0..).zip(inventory.chain(orders)).map(|(number, (topic, name))| Split { number, topic, name }).collect();
    if splits.len() > Place::SPLIT_MAX as usize + 1 {
        return Err(SourceError::TooManySplits { count: splits.len() });
    }
    Ok(splits)
}
