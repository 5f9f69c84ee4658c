//! Any topic as lines: what it holds now, copied into files, and lines written to it as messages. For stages that run by themselves.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};

use super::SourceError;
use super::kafka::{BROKERS_WAIT, Context, Deadline, KafkaSettings, client_config, refused_settings};
use super::sender::Sender;

/// Longest time without a message or the news that there is none.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at whether there is one.
const POLL: Duration = Duration::from_millis(100);
/// How long brokers may take to acknowledge the last messages.
const FLUSH_WAIT: Duration = Duration::from_secs(60);

/// Settings of the consumer, besides where it is.
const CONSUMER: [(&str, &str); 6] = [
    ("group.id", "orderflow-sql-run"),
    ("auto.offset.reset", "error"),
    ("enable.auto.commit", "false"),
    ("enable.partition.eof", "true"),
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
];

/// Copies what `topic` holds now, as a reader of committed messages has it, into a file of lines for each partition: `00000.json` … in `folder`. A message
/// with several lines becomes one. Returns how many messages there were.
///
/// # Errors
/// If a setting is wrong, no broker answers within a minute, there is no such topic, it cannot be read, or a file cannot be written.
pub fn copy_topic(settings: &KafkaSettings, topic: &str, folder: &Path) -> Result<u64, SourceError> {
    let config = client_config(settings, &CONSUMER)?;
    let consumer: BaseConsumer<Context> = config.create_with_context(Context::default()).map_err(refused_settings)?;
    let deadline = Deadline::new(settings.brokers.clone(), BROKERS_WAIT);
    let partitions = deadline.partition_count(consumer.client(), &|| _ = consumer.poll(Duration::ZERO), topic)?;
    let mut messages = 0;
    for partition in 0..partitions {
        let path = folder.join(format!("{partition:05}.json"));
        messages += Copy { consumer: &consumer, brokers: &settings.brokers, topic, partition, path: &path }.run()?;
    }
    Ok(messages)
}

struct Copy<'a> {
    consumer: &'a BaseConsumer<Context>,
    brokers: &'a str,
    topic: &'a str,
    partition: i32,
    path: &'a Path,
}

impl Copy<'_> {
    fn run(&self) -> Result<u64, SourceError> {
        let failed = |error: KafkaError| SourceError::Partition {
            split: format!("{}/{}", self.topic, self.partition),
            reason: self.consumer.context().last_reason().unwrap_or_else(|| error.to_string()),
        };
        let mut assigned = TopicPartitionList::new();
        assigned.add_partition_offset(self.topic, self.partition, Offset::Beginning).map_err(failed)?;
        self.consumer.assign(&assigned).map_err(failed)?;
        let mut file = BufWriter::new(File::create(self.path).map_err(|e| self.unwritable(e))?);
        let (mut messages, mut heard) = (0, Instant::now());
        while heard.elapsed() < SILENCE_MAX {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) if message.partition() == self.partition => {
                    // One without a value is no row, and of a line without anything the table's reader says so.
                    let mut line: Vec<u8> = message.payload().unwrap_or_default().to_vec();
                    line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
                    line.push(b'\n');
                    file.write_all(&line).map_err(|e| self.unwritable(e))?;
                    messages += 1;
                    heard = Instant::now();
                }
                // Behind the last message that is there now.
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == self.partition => {
                    return file.flush().map(|()| messages).map_err(|e| self.unwritable(e));
                }
                // librdkafka connects again by itself.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::OperationTimedOut,
                ))) => {}
                // Of the partition before.
                None | Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return Err(failed(error)),
            }
        }
        let reason = self.consumer.context().last_reason().unwrap_or_else(|| "no answer".to_owned());
        Err(SourceError::Unreachable { brokers: self.brokers.to_owned(), waited_s: SILENCE_MAX.as_secs(), reason })
    }

    fn unwritable(&self, source: io::Error) -> SourceError {
        SourceError::NotCopied { topic: self.topic.to_owned(), path: self.path.to_owned(), source: Arc::new(source) }
    }
}

/// Writes lines as messages without keys, to whatever partitions, each once as long as this lives. What was written is known to be there once it is flushed.
pub struct TopicLines {
    sender: Sender,
    topic: String,
    /// The start of a line.
    rest: Vec<u8>,
}

impl TopicLines {
    /// Connects, waiting up to a minute for brokers to come up, and makes the topic if there is none.
    ///
    /// # Errors
    /// If a setting is wrong, no broker answers, or the topic cannot be made.
    pub fn connect(settings: &KafkaSettings, topic: &str) -> Result<TopicLines, SourceError> {
        let sender = Sender::connect(settings, &[(topic, 1)])?;
        Ok(TopicLines { sender, topic: topic.to_owned(), rest: Vec::new() })
    }
}

impl Write for TopicLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.pop_if(|byte| *byte == b'\n').is_some() {
                self.sender.send(BaseRecord::to(&self.topic).payload(self.rest.as_slice())).map_err(io::Error::other)?;
                self.rest.clear();
            }
        }
        self.sender.serve().map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sender.flush(FLUSH_WAIT).map_err(io::Error::other)
    }
}
