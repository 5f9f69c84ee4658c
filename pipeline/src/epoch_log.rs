//! The epoch log: the durable list of how the input was cut into epochs, and when.
//!
//! With the input rows it determines everything the job computes, so it is all that has to be durable
//! before a sink commits. One writer appends to it; [`LogWriter`] gives that writer a thread of its own, so that
//! appends are grouped: while one `fsync` runs, the epochs sealed meanwhile wait and share the next.

mod local;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread::JoinHandle;

use chrono::{DateTime, SecondsFormat, Utc};
use orderflow_operators::epoch::{Epoch, Micros};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use local::LocalLog;

/// An epoch as it is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its number.
    pub epoch: Epoch,
    /// When it was sealed: whole milliseconds since 1970, never falling from one epoch to the next. As RFC 3339 in text.
    #[serde(with = "rfc3339_ms")]
    pub sealed_at: i64,
    /// By split, the offsets `[start, end)`; splits without rows are left out.
    pub ranges: BTreeMap<u32, (i64, i64)>,
}

impl EpochRecord {
    /// The sealing time in microseconds.
    pub fn sealed_at_micros(&self) -> Micros {
        self.sealed_at * 1000
    }

    /// How many offsets it covers.
    pub fn offsets(&self) -> u64 {
        self.ranges.values().map(|(start, end)| (end - start) as u64).sum()
    }
}

mod rfc3339_ms {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        let time = DateTime::<Utc>::from_timestamp_millis(*ms).ok_or_else(|| serde::ser::Error::custom("sealing time out of range"))?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?.timestamp_millis())
    }
}

/// What the log was begun with: a log is continued only by the same job over the same splits with the same meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHeader {
    /// Version of the log's own format.
    pub format: u32,
    /// The job's name.
    pub job: String,
    /// The splits' names by number.
    pub splits: Vec<String>,
    /// The settings on which results depend, by key.
    pub settings: BTreeMap<String, String>,
}

impl LogHeader {
    /// The format that this release writes.
    pub const FORMAT: u32 = 1;

    /// What differs from `other`, said so that a user knows what to do; `None` if the log can be continued.
    pub fn difference(&self, now: &LogHeader) -> Option<String> {
        if self.format != now.format {
            return Some(format!("it has format {}, this release knows format {}: use the release that began it", self.format, now.format));
        }
        if self.job != now.job {
            return Some(format!("it belongs to the job \"{}\", this is \"{}\": use another folder, or that job.id", self.job, now.job));
        }
        if self.splits != now.splits {
            let gone = self.splits.iter().filter(|s| !now.splits.contains(s)).map(String::as_str);
            let new = now.splits.iter().filter(|s| !self.splits.contains(s)).map(String::as_str);
            let (gone, new): (Vec<_>, Vec<_>) = (gone.collect(), new.collect());
            return Some(format!(
                "it was begun over other inputs (no longer there: [{}]; not there before: [{}]): restore them, or begin anew in another folder",
                gone.join(", "),
                new.join(", ")
            ));
        }
        let keys: std::collections::BTreeSet<_> = self.settings.keys().chain(now.settings.keys()).collect();
        let changed: Vec<String> = keys
            .into_iter()
            .filter(|k| self.settings.get(*k) != now.settings.get(*k))
            .map(|k| {
                let value = |of: &LogHeader| of.settings.get(k).cloned().unwrap_or_else(|| "unset".into());
                format!("{k}: {} then, {} now", value(self), value(now))
            })
            .collect();
        (!changed.is_empty()).then(|| {
            format!(
                "it was begun with other settings ({}), and results would mix: set them back, or begin anew in another folder",
                changed.join("; ")
            )
        })
    }
}

/// What can go wrong with an epoch log.
#[derive(Debug, thiserror::Error)]
pub enum EpochLogError {
    /// Reading or writing failed.
    #[error("epoch log {path}: {source}; the job can be started again once that is mended, nothing is lost")]
    Io {
        /// The file.
        path: String,
        /// What happened.
        source: std::io::Error,
    },
    /// Somebody else writes to it.
    #[error("epoch log {path} is in use: another orderflow runs with this folder; stop it, or use another folder")]
    InUse {
        /// The lock file.
        path: String,
    },
    /// A record in its midst is not what was written.
    #[error("epoch log {path} is damaged at line {line}: {what}; restore the file from a copy, or begin anew in another folder")]
    Damaged {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It belongs to another job, input or meaning.
    #[error("epoch log {path} cannot be continued: {what}")]
    Different {
        /// The file.
        path: String,
        /// What differs, and what to do.
        what: String,
    },
    /// A bug of its own.
    #[error("the epoch log's writer failed; this is a bug, please report it")]
    Panicked,
    /// There is none.
    #[error("there is no epoch log in {path}: give the folder that was --out of a replay, or job.data_dir of a run")]
    Missing {
        /// The folder.
        path: String,
    },
}

/// Where an epoch log is kept. One writer at a time.
pub trait EpochLog: Send {
    /// Appends records, durable when this returns. After an error nothing more may be appended.
    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError>;
}

/// Epochs that may wait for the log; the sealer's flow control keeps far below.
const QUEUE_MAX: usize = 4096;

/// The writer's thread, and how far the log is durable.
pub struct LogWriter {
    records: Option<mpsc::SyncSender<EpochRecord>>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread. `durable` is told each epoch whose record is on stable storage; `failed` at most once, when appending fails.
    pub fn start(
        mut log: Box<dyn EpochLog>,
        durable: watch::Sender<Epoch>,
        failed: impl FnOnce(EpochLogError) + Send + 'static,
    ) -> std::io::Result<LogWriter> {
        let (records, queue) = mpsc::sync_channel::<EpochRecord>(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("epoch-log".into()).spawn(move || {
            let mut group: Vec<EpochRecord> = Vec::new();
            while let Ok(first) = queue.recv() {
                group.push(first);
                group.extend(queue.try_iter());
                let appended = std::panic::catch_unwind(AssertUnwindSafe(|| log.append(&group)));
                if let Err(error) = appended.unwrap_or(Err(EpochLogError::Panicked)) {
                    return failed(error);
                }
                if let Some(last) = group.last() {
                    durable.send_modify(|epoch| *epoch = (*epoch).max(last.epoch));
                }
                group.clear();
            }
        })?;
        Ok(LogWriter { records: Some(records), thread: Some(thread) })
    }

    /// Hands over a record. If the writer has failed, nothing happens: it has told so.
    pub fn append(&self, record: EpochRecord) {
        if let Some(records) = &self.records {
            // A closed queue means that the writer failed and the job is ending.
            let _ = records.send(record);
        }
    }
}

impl Drop for LogWriter {
    /// Waits until what was handed over is written.
    fn drop(&mut self) {
        self.records = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where panics are.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_printed_as_the_specification_says() {
        let text = r#"{"epoch":1,"sealed_at":"2026-01-05T10:00:00.000Z","ranges":{"0":[0,100],"1":[0,50]}}"#;
        let record: EpochRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.epoch, Epoch(1));
        assert_eq!(record.sealed_at, 1_767_607_200_000);
        assert_eq!(record.offsets(), 150);
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }

    #[test]
    fn a_header_says_what_differs() {
        let header = LogHeader {
            format: 1,
            job: "a".into(),
            splits: vec!["inventory-0.jsonl".into(), "orders-0.jsonl".into()],
            settings: [("dedup.horizon".to_owned(), "24 h".to_owned())].into(),
        };
        assert_eq!(header.difference(&header), None);
        let mut other = header.clone();
        other.settings.insert("dedup.horizon".into(), "12 h".into());
        assert!(header.difference(&other).unwrap().contains("dedup.horizon: 24 h then, 12 h now"));
        let mut other = header.clone();
        other.splits.push("orders-1.jsonl".into());
        assert!(header.difference(&other).unwrap().contains("not there before: [orders-1.jsonl]"));
    }
}
