//! What all homes share: lines with checksums, and records that follow each other.

use orderflow_operators::epoch::Epoch;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{EpochLogError, EpochRecord};

/// `<crc32 of the JSON, 8 hex digits> <JSON>`, without an end of line.
pub(super) fn line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("records and headers are plain data");
    format!("{:08x} {json}", crc32fast::hash(json.as_bytes()))
}

/// Appends a line and its end.
pub(super) fn push_line(buffer: &mut Vec<u8>, value: &impl Serialize) {
    buffer.extend_from_slice(line(value).as_bytes());
    buffer.push(b'\n');
}

/// The value of a line without its end, or what is wrong with it.
pub(super) fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let (sum, json) = line.split_at_checked(9).ok_or("it is too short")?;
    let sum = std::str::from_utf8(&sum[..8]).ok().and_then(|s| u32::from_str_radix(s, 16).ok()).ok_or("it has no checksum")?;
    if crc32fast::hash(json) != sum {
        return Err("its checksum does not fit".into());
    }
    serde_json::from_slice(json).map_err(|e| e.to_string())
}

/// Records as they are read: we maintain the invariant that each follows the one before it.
pub(super) struct Sequence {
    /// Records through this epoch are passed over.
    after: Epoch,
    /// Where reading started; none before that is known.
    first: Option<u64>,
    /// The last epoch that was read; none before the first, unless it is known where reading starts.
    last: Option<Epoch>,
    records: Vec<EpochRecord>,
}

impl Sequence {
    /// For the records behind `after`; reading may start at any epoch that is not behind the first of them.
    pub fn new(after: Epoch) -> Self {
        Sequence { after, first: None, last: None, records: Vec::new() }
    }

    /// The next record has this epoch, or there is none.
    pub fn expect(&mut self, first: u64) -> Result<(), String> {
        self.check(first)?;
        self.last = Some(Epoch(first - 1));
        Ok(())
    }

    /// The next record.
    pub fn take(&mut self, record: EpochRecord) -> Result<(), String> {
        self.check(record.epoch.0)?;
        self.last = Some(record.epoch);
        if record.epoch > self.after {
            self.records.push(record);
        }
        Ok(())
    }

    fn check(&mut self, next: u64) -> Result<(), String> {
        match self.last {
            Some(last) if next != last.0 + 1 => Err(format!("epoch {next} follows epoch {last}")),
            _ if next == 0 => Err("there is no epoch 0".to_owned()),
            _ => {
                self.first.get_or_insert(next);
                Ok(())
            }
        }
    }

    /// The last epoch that was read.
    pub fn last(&self) -> Epoch {
        self.last.unwrap_or_default()
    }

    /// What was read, if it begins soon enough and goes far enough.
    pub fn finish(self, log: &str) -> Result<Vec<EpochRecord>, EpochLogError> {
        let last = self.last();
        if let Some(first) = self.first.filter(|&first| first > self.after.0 + 1) {
            return Err(EpochLogError::Dropped { log: log.to_owned(), first, after: self.after.0 });
        }
        if last < self.after {
            return Err(EpochLogError::TooShort { log: log.to_owned(), last: last.0, after: self.after.0 });
        }
        Ok(self.records)
    }
}

/// The last epoch of a group that is to be appended behind `last`.
///
/// # Panics
/// If its epochs do not follow.
pub(super) fn follow(last: Epoch, records: &[EpochRecord]) -> Epoch {
    records.iter().fold(last, |last, record| {
        assert_eq!(record.epoch, Epoch(last.0 + 1), "epochs are appended in order");
        record.epoch
    })
}
