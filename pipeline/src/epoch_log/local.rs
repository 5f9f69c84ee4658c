//! The epoch log in a local file.
//!
//! `epochs.log` in the job's folder: a line for each record, `<crc32 of the JSON, 8 hex digits> <JSON>\n`, the first one the
//! [`LogHeader`]. A crash can leave the last line unfinished; it was not durable, so nothing depends on it, and it is cut off.
//! `epochs.lock` is locked while a job runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orderflow_operators::epoch::Epoch;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{EpochLog, EpochLogError, EpochRecord, LogHeader};

const LOG: &str = "epochs.log";
const LOCK: &str = "epochs.lock";

/// The epoch log in a local file, open for appending.
pub struct LocalLog {
    path: PathBuf,
    file: File,
    lock: FolderLock,
    buffer: Vec<u8>,
}

/// The right to run the job of a folder: nobody else has it while a clone of this lives.
#[derive(Clone)]
pub struct FolderLock {
    _file: Arc<File>,
}

impl LocalLog {
    /// The lock on its folder. Whoever still writes what depends on the log holds it, also when the log itself is closed.
    pub fn lock(&self) -> FolderLock {
        self.lock.clone()
    }

    /// Opens the log in `folder`, or begins one, and returns what is in it.
    ///
    /// # Errors
    /// If it is in use, belongs to another job, or cannot be read or written.
    pub fn open(folder: &Path, header: &LogHeader) -> Result<(LocalLog, Vec<EpochRecord>), EpochLogError> {
        let path = folder.join(LOG);
        let io = |source| EpochLogError::Io { path: path.display().to_string(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let lock = lock(folder)?;
        let mut records = Vec::new();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(io)?;
        let contents = read(&file, &path)?;
        file.set_len(contents.whole_bytes).map_err(io)?;
        match contents.header {
            Some(begun) => {
                if let Some(what) = begun.difference(header) {
                    return Err(EpochLogError::Different { path: path.display().to_string(), what });
                }
                records = contents.records;
            }
            None => {
                let mut line = Vec::new();
                push_line(&mut line, header);
                file.write_all(&line).map_err(io)?;
            }
        }
        // What was read may be in the page cache alone, but counts as durable from here on. The file's name is durable once its folder
        // is, and that one's once the folder around it is.
        let folders = [Some(folder), folder.parent()].into_iter().flatten().filter(|path| !path.as_os_str().is_empty());
        file.sync_all().map_err(io)?;
        for folder in folders {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        Ok((LocalLog { path, file, lock: FolderLock { _file: Arc::new(lock) }, buffer: Vec::new() }, records))
    }

    /// Reads the log in `folder`, which may be in use.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn read(folder: &Path) -> Result<Vec<EpochRecord>, EpochLogError> {
        let path = folder.join(LOG);
        match File::open(&path) {
            Ok(file) => Ok(read(&file, &path)?.records),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(EpochLogError::Missing { path: folder.display().to_string() })
            }
            Err(source) => Err(EpochLogError::Io { path: path.display().to_string(), source }),
        }
    }
}

impl EpochLog for LocalLog {
    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError> {
        self.buffer.clear();
        for record in records {
            push_line(&mut self.buffer, record);
        }
        self.file
            .write_all(&self.buffer)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| EpochLogError::Io { path: self.path.display().to_string(), source })
    }
}

fn lock(folder: &Path) -> Result<File, EpochLogError> {
    let path = folder.join(LOCK);
    let io = |source| EpochLogError::Io { path: path.display().to_string(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EpochLogError::InUse { path: path.display().to_string() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

fn push_line(buffer: &mut Vec<u8>, value: &impl Serialize) {
    let json = serde_json::to_string(value).expect("records and headers are plain data");
    buffer.extend_from_slice(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).as_bytes());
}

fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let (sum, json) = line.split_at_checked(9).ok_or("it is too short")?;
    let sum = std::str::from_utf8(&sum[..8]).ok().and_then(|s| u32::from_str_radix(s, 16).ok()).ok_or("it has no checksum")?;
    if crc32fast::hash(json) != sum {
        return Err("its checksum does not fit".into());
    }
    serde_json::from_slice(json).map_err(|e| e.to_string())
}

struct Contents {
    header: Option<LogHeader>,
    records: Vec<EpochRecord>,
    /// Bytes of whole lines.
    whole_bytes: u64,
}

fn read(file: &File, path: &Path) -> Result<Contents, EpochLogError> {
    let io = |source| EpochLogError::Io { path: path.display().to_string(), source };
    let mut reader = BufReader::new(file);
    let mut contents = Contents { header: None, records: Vec::new(), whole_bytes: 0 };
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes).map_err(io)?;
        let damaged = |what: String| EpochLogError::Damaged { path: path.display().to_string(), line, what };
        let Some((b'\n', text)) = bytes.split_last() else { break };
        let parsed = if line == 1 {
            parse_line(text).map(|header| contents.header = Some(header))
        } else {
            parse_line::<EpochRecord>(text).map(|record| contents.records.push(record))
        };
        if let Err(what) = parsed {
            // A group of lines is written at once, so a crash may tear more than the last line; but behind a torn one nothing whole follows.
            if rest_is_torn(&mut reader).map_err(io)? {
                break;
            }
            return Err(damaged(what));
        }
        if let Some(last) = contents.records.last()
            && last.epoch != Epoch(contents.records.len() as u64)
        {
            return Err(damaged(format!("epoch {} follows epoch {}", last.epoch, contents.records.len() - 1)));
        }
        contents.whole_bytes += read as u64;
    }
    Ok(contents)
}

fn rest_is_torn(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes)?;
        match bytes.split_last() {
            Some((b'\n', text)) if parse_line::<EpochRecord>(text).is_ok() => return Ok(false),
            Some((b'\n', _)) => {}
            _ => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn header() -> LogHeader {
        LogHeader { format: 1, job: "test".into(), splits: vec!["orders-0.jsonl".into()], settings: BTreeMap::new() }
    }

    fn record(epoch: u64) -> EpochRecord {
        EpochRecord { epoch: Epoch(epoch), sealed_at: 1000 + epoch as i64, ranges: [(0, (epoch as i64 - 1, epoch as i64))].into() }
    }

    #[test]
    fn continues_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(LocalLog::read(folder.path()), Err(EpochLogError::Missing { .. })));
        let (mut log, records) = LocalLog::open(folder.path(), &header()).unwrap();
        assert_eq!(records, []);
        log.append(&[record(1), record(2)]).unwrap();
        assert!(matches!(LocalLog::open(folder.path(), &header()), Err(EpochLogError::InUse { .. })));
        drop(log);
        let (mut log, records) = LocalLog::open(folder.path(), &header()).unwrap();
        assert_eq!(records, [record(1), record(2)]);
        log.append(&[record(3)]).unwrap();
        assert_eq!(LocalLog::read(folder.path()).unwrap().len(), 3);
    }

    #[test]
    fn is_cut_back_to_whole_records_wherever_a_crash_tore_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = LocalLog::open(folder.path(), &header()).unwrap();
        log.append(&[record(1), record(2), record(3)]).unwrap();
        drop(log);
        let path = folder.path().join(LOG);
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut log, records) = LocalLog::open(folder.path(), &header()).unwrap();
            let next = records.len() as u64 + 1;
            log.append(&[record(next)]).unwrap();
            drop(log);
            let expected: Vec<_> = (1..=next).map(record).collect();
            assert_eq!(LocalLog::read(folder.path()).unwrap(), expected, "torn at {len}");
        }
    }

    #[test]
    fn damage_in_its_midst_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = LocalLog::open(folder.path(), &header()).unwrap();
        log.append(&[record(1), record(2), record(3)]).unwrap();
        drop(log);
        let path = folder.path().join(LOG);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0;
        bytes[at - 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = LocalLog::read(folder.path()).unwrap_err();
        assert!(matches!(error, EpochLogError::Damaged { line: 2, .. }), "{error}");
    }
}
