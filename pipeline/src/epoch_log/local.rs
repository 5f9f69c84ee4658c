//! The epoch log in a folder.
//!
//! `epochs.log`, and once that is large `epochs-<first epoch>.log` for each further part: *segments*, of lines as all homes have them, each
//! begun with the [`LogHeader`]. So the records behind an epoch are found by the names alone, and no more than one segment is read in vain.
//!
//! A crash can leave the last segment's last lines unfinished; they were not durable, so nothing depends on them, and they are cut
//! off. **Invariant:** a segment is begun only when all before it is durable, so no other segment may end in an unfinished line.
//!
//! Old segments are removed, each when the one behind it has a record, and durably before the next one: what is left has no gap.
//!
//! `epochs.lock` is locked while a job runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orderflow_faults::{Point, check, pass, segment_bytes_max};
use orderflow_operators::epoch::Epoch;

use super::lines::{Sequence, follow, parse_line, push_line};
use super::{EpochLog, EpochLogError, EpochRecord, LogHeader, Old};

const LOG: &str = "epochs.log";
const LOCK: &str = "epochs.lock";

/// A segment of this size is followed by another. A quarter of a million epochs or more, read in half a second.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// How long the lock is waited for: a process that is going may still have it, and so may one that it was just about to start.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// How often reading is begun anew as segments were dropped meanwhile.
const READS_MAX: u32 = 5;

/// The epoch log in a folder, open for appending.
pub struct LocalLog {
    folder: PathBuf,
    segment: Segment,
    file: File,
    /// Of the segment.
    bytes: u64,
    segment_bytes_max: u64,
    header: LogHeader,
    last: Epoch,
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

    /// Opens the log in `folder`, or begins one, and returns what is in it behind `after`.
    ///
    /// # Errors
    /// If it is in use, belongs to another job, ends before `after`, or cannot be read or written.
    pub fn open(folder: &Path, header: &LogHeader, after: Epoch) -> Result<(LocalLog, Vec<EpochRecord>), EpochLogError> {
        LocalLog::open_with(folder, header, after, segment_bytes_max().unwrap_or(SEGMENT_BYTES_MAX))
    }

    fn open_with(
        folder: &Path,
        header: &LogHeader,
        after: Epoch,
        segment_bytes_max: u64,
    ) -> Result<(LocalLog, Vec<EpochRecord>), EpochLogError> {
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        let lock = lock(folder)?;
        let contents = read(folder, after)?;
        for (segment, begun) in &contents.headers {
            if let Some(what) = begun.difference(header) {
                return Err(EpochLogError::Different { log: segment.path.display().to_string(), what });
            }
        }
        // What it was begun with: splits that came later stand in the records.
        let header = contents.headers.last().map_or(header, |(_, begun)| begun).clone();
        let last = contents.sequence.last();
        let records = contents.sequence.finish(&folder.display().to_string())?;
        let (segment, whole_bytes) = contents.newest.unwrap_or_else(|| (Segment::at(folder, 1), 0));
        let (file, bytes) = segment.continued(&header, whole_bytes).map_err(failed(&segment.path))?;
        // What was read may be in the page cache alone, but counts as durable from here on. The file's name is durable once its folder
        // is, and that one's once the folder around it is.
        let folders = [Some(folder), folder.parent()].into_iter().flatten().filter(|path| !path.as_os_str().is_empty());
        for folder in folders {
            sync_folder(folder)?;
        }
        pass(Point::LogOpened);
        let lock = FolderLock { _file: Arc::new(lock) };
        let log = LocalLog { folder: folder.to_owned(), segment, file, bytes, segment_bytes_max, header, last, lock, buffer: Vec::new() };
        Ok((log, records))
    }

    /// Reads the log in `folder` behind `after`; it may be in use.
    ///
    /// # Errors
    /// If there is none, it is damaged, or ends before `after`.
    pub fn read(folder: &Path, after: Epoch) -> Result<Vec<EpochRecord>, EpochLogError> {
        LocalLog::read_with_header(folder, after).map(|(_, records)| records)
    }

    /// As [`read`](LocalLog::read), with what the log was begun with.
    ///
    /// # Errors
    /// As there.
    pub fn read_with_header(folder: &Path, after: Epoch) -> Result<(LogHeader, Vec<EpochRecord>), EpochLogError> {
        let mut contents = read(folder, after)?;
        let log = folder.display().to_string();
        let Some((_, header)) = contents.headers.pop() else { return Err(EpochLogError::Missing { log }) };
        Ok((header, contents.sequence.finish(&log)?))
    }

    /// Drops old segments.
    ///
    /// # Errors
    /// If one cannot be read or removed.
    pub fn drop_old(folder: &Path, old: &Old) -> Result<Option<Epoch>, EpochLogError> {
        let segments = Segment::list(folder).map_err(failed(folder))?;
        let mut dropped = None;
        for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
            let Some(record) = next.first_record()?.filter(|record| old.is_before(record)) else { break };
            check(Point::SegmentDrop).map_err(failed(&segment.path))?;
            std::fs::remove_file(&segment.path).map_err(failed(&segment.path))?;
            sync_folder(folder)?;
            pass(Point::SegmentDropped);
            dropped = Some(Epoch(record.epoch.0 - 1));
        }
        Ok(dropped)
    }

    /// Goes on in a new segment.
    fn begin_segment(&mut self) -> Result<(), EpochLogError> {
        let segment = Segment::at(&self.folder, self.last.0 + 1);
        check(Point::SegmentBegin).map_err(failed(&segment.path))?;
        (self.file, self.bytes) = segment.continued(&self.header, 0).map_err(failed(&segment.path))?;
        self.segment = segment;
        pass(Point::SegmentCreated);
        sync_folder(&self.folder)?;
        pass(Point::SegmentBegun);
        Ok(())
    }

    /// Makes the records in the buffer durable.
    fn write(&mut self) -> io::Result<()> {
        check(Point::LogWrite)?;
        self.file.write_all(&self.buffer)?;
        check(Point::LogSync)?;
        self.file.sync_data()?;
        pass(Point::LogSynced);
        Ok(())
    }
}

impl EpochLog for LocalLog {
    fn header(&self) -> &LogHeader {
        &self.header
    }

    fn append(&mut self, records: &[EpochRecord]) -> Result<(), EpochLogError> {
        let last = follow(self.last, records);
        if self.bytes >= self.segment_bytes_max && self.segment.first <= self.last.0 {
            self.begin_segment()?;
        }
        self.buffer.clear();
        for record in records {
            push_line(&mut self.buffer, record);
        }
        self.write().map_err(failed(&self.segment.path))?;
        self.bytes += self.buffer.len() as u64;
        self.last = last;
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> EpochLogError {
    let path = path.display().to_string();
    move |source| EpochLogError::Io { path: path.clone(), source }
}

fn sync_folder(folder: &Path) -> Result<(), EpochLogError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

fn lock(folder: &Path) -> Result<File, EpochLogError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed(&path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(EpochLogError::InUse { path: path.display().to_string() }),
            Err(TryLockError::Error(source)) => return Err(failed(&path)(source)),
        }
    }
}

/// A file of the log.
#[derive(Clone, Debug)]
struct Segment {
    /// Its first epoch, or that of the next record.
    first: u64,
    path: PathBuf,
}

impl Segment {
    fn at(folder: &Path, first: u64) -> Segment {
        let name = if first == 1 { LOG.to_owned() } else { format!("epochs-{first:012}.log") };
        Segment { first, path: folder.join(name) }
    }

    /// All in a folder, in order.
    fn list(folder: &Path) -> io::Result<Vec<Segment>> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut segments = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_prefix("epochs-").and_then(|rest| rest.strip_suffix(".log")).and_then(|first| first.parse().ok());
            if let Some(first) = if name == LOG { Some(1) } else { number } {
                segments.push(Segment { first, path: folder.join(name) });
            }
        }
        segments.sort_by_key(|segment| segment.first);
        Ok(segments)
    }

    /// Its first record, if it is there.
    fn first_record(&self) -> Result<Option<EpochRecord>, EpochLogError> {
        let mut reader = BufReader::new(File::open(&self.path).map_err(failed(&self.path))?);
        let mut line = Vec::new();
        for _ in 0..2 {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(failed(&self.path))?;
        }
        match line.split_last() {
            Some((b'\n', text)) => {
                let damaged = |what| EpochLogError::Damaged { place: format!("{}, line 2", self.path.display()), what };
                parse_line(text).map(Some).map_err(damaged)
            }
            _ => Ok(None),
        }
    }

    /// Its file, behind the first `whole_bytes`, and its size; with a header if it has none yet.
    fn continued(&self, header: &LogHeader, whole_bytes: u64) -> io::Result<(File, u64)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        file.set_len(whole_bytes)?;
        let mut line = Vec::new();
        if whole_bytes == 0 {
            push_line(&mut line, header);
            file.write_all(&line)?;
        }
        file.sync_all()?;
        Ok((file, whole_bytes + line.len() as u64))
    }
}

struct Contents {
    /// Of the segments that were read.
    headers: Vec<(Segment, LogHeader)>,
    sequence: Sequence,
    /// The last segment, if there is any, and how many bytes of it are whole lines.
    newest: Option<(Segment, u64)>,
}

fn read(folder: &Path, after: Epoch) -> Result<Contents, EpochLogError> {
    let mut tries = READS_MAX;
    loop {
        tries -= 1;
        match read_listed(folder, after) {
            // The oldest were dropped since they were listed, and are not listed again.
            Err(EpochLogError::Io { source, .. }) if source.kind() == ErrorKind::NotFound && tries > 0 => {}
            read => return read,
        }
    }
}

fn read_listed(folder: &Path, after: Epoch) -> Result<Contents, EpochLogError> {
    let segments = Segment::list(folder).map_err(failed(folder))?;
    let from = segments.iter().rposition(|segment| segment.first <= after.0 + 1).unwrap_or(0);
    let contents = Contents::of(&segments[from..], after)?;
    match from.checked_sub(1) {
        // The newest was begun, and not even its header is whole: what the log was begun with says the one before it.
        Some(before) if contents.headers.is_empty() => Contents::of(&segments[before..], after),
        _ => Ok(contents),
    }
}

impl Contents {
    /// What is in the last segments of a log.
    fn of(segments: &[Segment], after: Epoch) -> Result<Contents, EpochLogError> {
        let mut contents = Contents { headers: Vec::new(), sequence: Sequence::new(after), newest: None };
        for (at, segment) in segments.iter().enumerate() {
            contents.read(segment, at + 1 == segments.len())?;
        }
        Ok(contents)
    }

    fn read(&mut self, segment: &Segment, newest: bool) -> Result<(), EpochLogError> {
        let io = failed(&segment.path);
        let mut reader = BufReader::new(File::open(&segment.path).map_err(&io)?);
        let mut whole_bytes = 0;
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let read = reader.read_until(b'\n', &mut bytes).map_err(&io)?;
            let damaged = |what: String| EpochLogError::Damaged { place: format!("{}, line {line}", segment.path.display()), what };
            if line == 1 {
                self.sequence.expect(segment.first).map_err(damaged)?;
            }
            let text = match bytes.split_last() {
                Some((b'\n', text)) => text,
                None if line > 1 => break,
                _ if newest => break,
                _ => return Err(damaged("it ends within a line, but there are later files".to_owned())),
            };
            let parsed = if line == 1 {
                parse_line(text).map(|header| {
                    self.headers.push((segment.clone(), header));
                    None
                })
            } else {
                parse_line::<EpochRecord>(text).map(Some)
            };
            match parsed {
                Ok(record) => record.map_or(Ok(()), |record| self.sequence.take(record)).map_err(damaged)?,
                // A group of lines is written at once, so a crash may tear more than the last line; but behind a torn one nothing
                // whole follows.
                Err(_) if newest && rest_is_torn(&mut reader).map_err(&io)? => break,
                Err(what) => return Err(damaged(what)),
            }
            whole_bytes += read as u64;
        }
        self.newest = Some((segment.clone(), whole_bytes));
        Ok(())
    }
}

fn rest_is_torn(reader: &mut impl BufRead) -> io::Result<bool> {
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
mod tests;
