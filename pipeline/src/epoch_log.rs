//! The epoch log: the durable list of how the input was cut into epochs, and when.
//!
//! With the input rows it determines everything the job computes, so it is all that has to be durable
//! before a sink commits. One writer appends to it; [`LogWriter`] gives that writer a thread of its own, so that
//! appends are grouped: while one `fsync` runs, the epochs sealed meanwhile wait and share the next.
//!
//! ## Homes
//!
//! | home | durable by | one writer by | a second writer | found behind an epoch by |
//! | --- | --- | --- | --- | --- |
//! | a [folder](LogHome::Folder) | `fsync` | a locked file | ends with an error | segments named by their first epoch |
//! | a [topic](LogHome::Topic) | a transaction, acknowledged by all replicas | the transactional id | takes over, the first ends | bisection of offsets |
//! | an [object store](LogHome::Objects) | an object created if absent | names that only one can create | takes over, the first ends | objects named by their first epoch |
//!
//! What is old goes: the files, messages or objects of the oldest epochs. So a log may begin behind epoch 1.
//!
//! All of them hold the same lines, `<crc32 of the JSON, 8 hex digits> <JSON>`, a [`LogHeader`] before the first record, and all of them
//! refuse to be read when a record is not what was written or an epoch is missing.

mod error;
mod lines;
mod local;
mod objects;
mod old;
#[cfg(test)]
mod test_records;
mod topic;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use orderflow_operators::epoch::{Epoch, Micros};
use serde::{Deserialize, Serialize};

pub use error::EpochLogError;
pub use local::FolderLock;
pub use objects::ObjectSettings;
pub use old::Dropper;
pub use topic::TopicSettings;
pub use writer::LogWriter;

use local::LocalLog;
use objects::ObjectLog;
use old::Old;
use topic::TopicLog;

use crate::stages::MEANING;

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
    /// Splits that the job has from this epoch on, by number: partitions that were added to a topic. Their numbers go on from those that it had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub splits: BTreeMap<u32, AddedSplit>,
    /// SQL stages that are others from this epoch on, by name: what the results of one that came depend on; null for one that was taken away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, Option<String>>,
}

/// A split that a job got while it ran, or between two of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedSplit {
    /// What people know it by.
    pub name: String,
    /// The offset of its first row.
    pub start: i64,
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
    /// The splits' names by number, as the job was begun. Records name those that came later.
    pub splits: Vec<String>,
    /// The offset of the first row of each of them; left out in logs that were begun before it was written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starts: Vec<i64>,
    /// What tells a topic from another one of its name that was made later, where brokers say it: by topic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, String>,
    /// The settings on which results depend, by key.
    pub settings: BTreeMap<String, String>,
}

impl LogHeader {
    /// The format that this release writes.
    pub const FORMAT: u32 = 1;

    /// What differs from `now`, said so that a user knows what to do; `None` if the log can be continued. There may be splits now that were
    /// not there before, and other SQL stages, which records name.
    pub fn difference(&self, now: &LogHeader) -> Option<String> {
        if self.format != now.format {
            return Some(format!("it has format {}, this release knows format {}: use the release that began it", self.format, now.format));
        }
        if self.job != now.job {
            return Some(format!("it belongs to the job \"{}\", this is \"{}\": use that job.id, or another epoch log", self.job, now.job));
        }
        if let Some(gone) = other_inputs(&self.splits, &now.splits, true) {
            return Some(gone);
        }
        let made_anew = |(topic, id): (&String, &String)| now.topics.get(topic).is_some_and(|now| now != id).then(|| topic.clone());
        let anew: Vec<String> = self.topics.iter().filter_map(made_anew).collect();
        if !anew.is_empty() {
            return Some(format!(
                "the topic was removed and made anew since ({}), so that its offsets are those of other messages: what it had and was not read is lost. \
                 To go on with what it has now, begin anew with another job.id and epoch log",
                anew.join(", ")
            ));
        }
        let keys: std::collections::BTreeSet<_> = self.settings.keys().chain(now.settings.keys()).collect();
        let changed: Vec<String> = keys
            .into_iter()
            .filter(|k| self.settings.get(*k) != now.settings.get(*k) && !k.starts_with(MEANING))
            .map(|k| {
                let value = |of: &LogHeader| of.settings.get(k).cloned().unwrap_or_else(|| "unset".into());
                format!("{k}: {} then, {} now", value(self), value(now))
            })
            .collect();
        (!changed.is_empty()).then(|| {
            format!(
                "it was begun with other settings ({}), and results would mix: set them back, or begin anew with another epoch log",
                changed.join("; ")
            )
        })
    }
}

/// What to say if the inputs of a job are not those that it had; with `may_grow`, more of them are no difference.
pub fn other_inputs(then: &[String], now: &[String], may_grow: bool) -> Option<String> {
    let missing = |from: &[String], of: &[String]| of.iter().filter(|name| !from.contains(name)).cloned().collect::<Vec<_>>();
    let (gone, new) = (missing(now, then), missing(then, now));
    (!gone.is_empty() || !may_grow && then != now).then(|| {
        format!(
            "it was begun over other inputs (no longer there: [{}]; not there before: [{}]): restore them, or begin anew with another epoch log",
            gone.join(", "),
            new.join(", ")
        )
    })
}

/// Where an epoch log is kept. One writer at a time.
pub trait EpochLog: Send {
    /// What it was begun with.
    fn header(&self) -> &LogHeader;

    /// Appends records, durable when this returns. After an error nothing more may be appended.
    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError>;
}

/// Which home an epoch log has.
#[derive(Clone, Debug)]
pub enum LogHome {
    /// Files in a folder of this machine.
    Folder(PathBuf),
    /// A topic of Kafka or Redpanda.
    Topic(TopicSettings),
    /// An object store.
    Objects(ObjectSettings),
}

impl fmt::Display for LogHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogHome::Folder(folder) => folder.display().fmt(f),
            LogHome::Topic(settings) => settings.fmt(f),
            LogHome::Objects(settings) => settings.fmt(f),
        }
    }
}

/// The right to run the job: held until the last commit, also when the log itself is closed. Only a folder has one. Elsewhere the next
/// writer takes over, and what this one's sinks still commit is what the next one reads in the log.
#[derive(Clone)]
pub struct LogGuard {
    _lock: Option<FolderLock>,
}

/// A log that was opened: what appends to it, what is in it, and the right to run the job.
pub type OpenLog = (Box<dyn EpochLog>, Vec<EpochRecord>, LogGuard);

/// Opens the log, or begins one, for its one writer, and returns what is in it.
///
/// # Errors
/// If it is in use (a folder), belongs to another job, is damaged, or cannot be read or written.
pub fn open(home: &LogHome, header: &LogHeader) -> Result<OpenLog, EpochLogError> {
    open_after(home, header, Epoch(0))
}

/// As [`open`], but reads only the records behind `after`, at a cost that does not grow with those before it.
///
/// # Errors
/// Also if the log ends before `after`, or begins behind it.
pub fn open_after(home: &LogHome, header: &LogHeader, after: Epoch) -> Result<OpenLog, EpochLogError> {
    Ok(match home {
        LogHome::Folder(folder) => {
            let (log, records) = LocalLog::open(folder, header, after)?;
            let guard = LogGuard { _lock: Some(log.lock()) };
            (Box::new(log), records, guard)
        }
        LogHome::Topic(settings) => {
            let (log, records) = TopicLog::open(settings, header, after)?;
            (Box::new(log), records, LogGuard { _lock: None })
        }
        LogHome::Objects(settings) => {
            let (log, records) = ObjectLog::open(settings, header, after)?;
            (Box::new(log), records, LogGuard { _lock: None })
        }
    })
}

/// Reads all that the log has, which may be in use.
///
/// # Errors
/// If there is none, it is damaged, or cannot be read.
pub fn read(home: &LogHome) -> Result<Vec<EpochRecord>, EpochLogError> {
    let mut after = Epoch(0);
    loop {
        match read_after(home, after) {
            // It may have lost more since.
            Err(EpochLogError::Dropped { first, .. }) if first > after.0 + 1 => after = Epoch(first - 1),
            read => return read,
        }
    }
}

/// As [`read`], but only the records behind `after`, at a cost that does not grow with those before it.
///
/// # Errors
/// Also if the log ends before `after`, or begins behind it.
pub fn read_after(home: &LogHome, after: Epoch) -> Result<Vec<EpochRecord>, EpochLogError> {
    match home {
        LogHome::Folder(folder) => LocalLog::read(folder, after),
        LogHome::Topic(settings) => TopicLog::read(settings, after),
        LogHome::Objects(settings) => ObjectLog::read(settings, after),
    }
}

/// By split, the offset behind the last row that is in an epoch: nothing without a log.
///
/// # Errors
/// If it is damaged, or cannot be read.
pub fn ends(home: &LogHome) -> Result<BTreeMap<u32, i64>, EpochLogError> {
    match read(home) {
        Ok(records) => Ok(records.into_iter().flat_map(|record| record.ranges).map(|(split, (_, end))| (split, end)).collect()),
        Err(EpochLogError::Missing { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// As [`read_after`], with what the log was begun with.
///
/// # Errors
/// As there.
pub fn read_with_header(home: &LogHome, after: Epoch) -> Result<(LogHeader, Vec<EpochRecord>), EpochLogError> {
    match home {
        LogHome::Folder(folder) => LocalLog::read_with_header(folder, after),
        LogHome::Topic(settings) => TopicLog::read_with_header(settings, after),
        LogHome::Objects(settings) => ObjectLog::read_with_header(settings, after),
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
            splits: vec!["inventory/0".into(), "orders/0".into()],
            starts: vec![0, 7],
            topics: [("orders".to_owned(), "8Q".to_owned())].into(),
            settings: [("dedup.horizon".to_owned(), "24 h".to_owned())].into(),
        };
        assert_eq!(header.difference(&header), None);
        let mut other = header.clone();
        other.settings.insert("stages.revenue".into(), "text 0f".into());
        assert_eq!(header.difference(&other), None, "stages may come and go");
        other.settings.insert("dedup.horizon".into(), "12 h".into());
        assert!(header.difference(&other).unwrap().contains("dedup.horizon: 24 h then, 12 h now"));
        let mut other = header.clone();
        other.splits.insert(1, "inventory/1".into());
        assert_eq!(header.difference(&other), None, "partitions may be added");
        assert!(other.difference(&header).unwrap().contains("no longer there: [inventory/1]"));
        assert!(other_inputs(&header.splits, &other.splits, false).unwrap().contains("not there before: [inventory/1]"));
        let mut other = header.clone();
        other.topics.clear();
        assert_eq!(header.difference(&other), None, "brokers may not say it");
        other.topics.insert("orders".into(), "9Z".into());
        assert!(header.difference(&other).unwrap().contains("made anew since (orders)"));
    }

    #[test]
    fn a_record_names_the_stages_that_came_and_went_with_it() {
        let text = r#"{"epoch":7,"sealed_at":"2026-01-05T10:00:00.000Z","ranges":{},"stages":{"late":null,"revenue":"text 0f, plan 1e"}}"#;
        let record: EpochRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.stages, [("late".to_owned(), None), ("revenue".to_owned(), Some("text 0f, plan 1e".to_owned()))].into());
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }

    #[test]
    fn a_record_names_the_splits_that_came_with_it() {
        let text =
            r#"{"epoch":7,"sealed_at":"2026-01-05T10:00:00.000Z","ranges":{"6":[0,9]},"splits":{"6":{"name":"orders/4","start":0}}}"#;
        let record: EpochRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.splits[&6], AddedSplit { name: "orders/4".into(), start: 0 });
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
