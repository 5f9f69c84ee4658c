//! JSON lines, for a look.
//!
//! # Exactly once
//!
//! Into a folder: `<stream>.jsonl`, and beside it `<stream>.jsonl.committed` with the last epoch and the file's length then,
//! replaced by a rename at each commit. What a crash left behind that length is cut off, so each epoch is in the file once.
//!
//! To standard output nothing can be taken back: after a restart epochs are printed again, after an error perhaps in part.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use orderflow_faults::{Point, check};
use orderflow_operators::epoch::Epoch;
use serde::{Deserialize, Serialize};

use crate::json::lines;
use crate::{EpochRows, Recovered, Sink, SinkError};

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonLinesTarget {
    /// A file for each stream in this folder, which is made if absent.
    Folder(PathBuf),
    /// Standard output.
    Stdout,
}

/// Writes one stream as JSON lines.
pub struct JsonLinesSink {
    stream: String,
    schema: SchemaRef,
    target: JsonLinesTarget,
    committed: Committed,
    /// Lines that are not committed.
    waiting: Vec<u8>,
}

/// What stands in `<stream>.jsonl.committed`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Committed {
    epoch: Epoch,
    bytes: u64,
}

impl JsonLinesSink {
    /// For rows of `stream` with the columns of `schema`. Nothing is opened yet.
    pub fn new(stream: &str, schema: SchemaRef, target: JsonLinesTarget) -> Self {
        JsonLinesSink { stream: stream.to_owned(), schema, target, committed: Committed::default(), waiting: Vec::new() }
    }

    fn what(&self) -> String {
        format!("JSON lines of {}", self.stream)
    }

    fn failed(&self, error: io::Error) -> SinkError {
        use io::ErrorKind::{BrokenPipe, InvalidData, IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
        match error.kind() {
            PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem => {
                SinkError::refused(self.what(), format!("{error}; give sinks.jsonl.path a folder that can be written to"))
            }
            InvalidData => SinkError::refused(self.what(), format!("{error}; move the stream's files away, or restore them")),
            BrokenPipe => SinkError::refused(self.what(), "nobody reads standard output any more"),
            _ => SinkError::unavailable(self.what(), error),
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, SinkError> {
        let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
        done.map_err(|e| self.failed(e))
    }
}

/// The two files of a stream.
#[derive(Clone)]
struct Files {
    folder: PathBuf,
    lines: PathBuf,
    committed: PathBuf,
}

impl Files {
    fn new(folder: &Path, stream: &str) -> Files {
        let file = |end: &str| folder.join(format!("{stream}.{end}"));
        Files { folder: folder.to_owned(), lines: file("jsonl"), committed: file("jsonl.committed") }
    }

    /// Cuts off what was not committed.
    fn recover(&self) -> io::Result<Committed> {
        std::fs::create_dir_all(&self.folder)?;
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let committed: Committed = match std::fs::read(&self.committed) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| invalid(format!("{}: {e}", self.committed.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Committed::default(),
            Err(error) => return Err(error),
        };
        let file = self.open()?;
        let length = file.metadata()?.len();
        if length < committed.bytes {
            let path = self.lines.display();
            return Err(invalid(format!("{path} has {length} bytes, where {} were committed", committed.bytes)));
        }
        file.set_len(committed.bytes)?;
        Ok(committed)
    }

    /// Appends `lines`, over what an earlier try may have left, and then records it.
    fn append(&self, at: Committed, through: Epoch, lines: &[u8]) -> io::Result<Committed> {
        check(Point::JsonLines)?;
        let mut file = self.open()?;
        file.set_len(at.bytes)?;
        file.seek(SeekFrom::Start(at.bytes))?;
        file.write_all(lines)?;
        file.sync_data()?;
        check(Point::JsonLinesWritten)?;
        let committed = Committed { epoch: through, bytes: at.bytes + lines.len() as u64 };
        let new = self.committed.with_extension("new");
        let mut record = File::create(&new)?;
        record.write_all(&serde_json::to_vec(&committed)?)?;
        record.sync_data()?;
        check(Point::JsonRecord)?;
        std::fs::rename(&new, &self.committed)?;
        File::open(&self.folder)?.sync_all()?;
        check(Point::JsonRecorded)?;
        Ok(committed)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).open(&self.lines)
    }
}

#[async_trait]
impl Sink for JsonLinesSink {
    fn name(&self) -> &str {
        "jsonl"
    }

    fn keeps_record(&self) -> bool {
        self.target != JsonLinesTarget::Stdout
    }

    async fn recover(&mut self) -> Result<Recovered, SinkError> {
        self.waiting.clear();
        if let JsonLinesTarget::Folder(folder) = &self.target {
            let files = Files::new(folder, &self.stream);
            self.committed = self.blocking(move || files.recover()).await?;
        }
        Ok(Recovered { committed: self.committed.epoch, group_through: None })
    }

    async fn write(&mut self, EpochRows { epoch, rows }: EpochRows) -> Result<(), SinkError> {
        if rows.schema_ref().fields() != self.schema.fields() {
            return Err(SinkError::refused(self.what(), format!("rows of epoch {epoch} have the columns {}", rows.schema_ref())));
        }
        let lines = lines(&rows).map_err(|e| SinkError::refused(self.what(), e))?;
        self.waiting.extend(lines);
        Ok(())
    }

    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
        if through <= self.committed.epoch {
            return Ok(());
        }
        let (at, lines) = (self.committed, std::mem::take(&mut self.waiting));
        let target = self.target.clone();
        let stream = self.stream.clone();
        let (lines, done) = tokio::task::spawn_blocking(move || {
            let done = match target {
                JsonLinesTarget::Folder(folder) => Files::new(&folder, &stream).append(at, through, &lines),
                JsonLinesTarget::Stdout => print(&lines).map(|()| Committed { epoch: through, bytes: 0 }),
            };
            (lines, done)
        })
        .await
        .map_err(|stopped| SinkError::refused(self.what(), stopped))?;
        self.committed = done.map_err(|e| {
            self.waiting = lines;
            self.failed(e)
        })?;
        Ok(())
    }
}

fn print(lines: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(lines)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
    use expect_test::expect;

    fn rows(epoch: u64) -> EpochRows {
        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(epoch as i64), None]));
        let raw: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"{", b"\xff"]));
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_767_607_200_123_456, i64::MIN]).with_timezone("UTC"));
        let columns = [("n", number, true), ("raw", raw, true), ("time", time, true)];
        EpochRows { epoch: Epoch(epoch), rows: RecordBatch::try_from_iter_with_nullable(columns).unwrap() }
    }

    fn sink(folder: &Path) -> JsonLinesSink {
        JsonLinesSink::new("s", rows(1).rows.schema(), JsonLinesTarget::Folder(folder.into()))
    }

    #[tokio::test]
    async fn a_file_has_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = sink(&folder.path().join("new"));
        assert_eq!(first.recover().await.unwrap(), Recovered::default());
        first.write(rows(1)).await.unwrap();
        first.commit(Epoch(1)).await.unwrap();
        first.commit(Epoch(1)).await.unwrap();
        // Killed while it wrote.
        let path = folder.path().join("new/s.jsonl");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"n\":2").unwrap();
        let mut second = sink(&folder.path().join("new"));
        assert_eq!(second.recover().await.unwrap().committed, Epoch(1));
        second.write(rows(2)).await.unwrap();
        second.commit(Epoch(3)).await.unwrap();
        expect![[r#"
            {"n":1,"raw":"{","time":"2026-01-05T10:00:00.123456Z"}
            {"n":null,"raw":"�","time":"-9223372036854775808"}
            {"n":2,"raw":"{","time":"2026-01-05T10:00:00.123456Z"}
            {"n":null,"raw":"�","time":"-9223372036854775808"}
        "#]]
        .assert_eq(&std::fs::read_to_string(path).unwrap());
        assert_eq!(sink(&folder.path().join("new")).recover().await.unwrap().committed, Epoch(3));
    }

    #[tokio::test]
    async fn a_failed_commit_is_done_again_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path());
        sink.recover().await.unwrap();
        sink.write(rows(1)).await.unwrap();
        // The record cannot take its place.
        std::fs::create_dir(folder.path().join("s.jsonl.committed")).unwrap();
        assert!(sink.commit(Epoch(1)).await.is_err());
        std::fs::remove_dir(folder.path().join("s.jsonl.committed")).unwrap();
        sink.commit(Epoch(1)).await.unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("s.jsonl")).unwrap().lines().count(), 2);
    }

    async fn check_refused(prepare: impl Fn(&Path), expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let error = sink(folder.path()).recover().await.unwrap_err();
        assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains(expected)), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_this_sinks_is_refused() {
        let record = |folder: &Path, text: &str| std::fs::write(folder.join("s.jsonl.committed"), text).unwrap();
        check_refused(|folder| record(folder, "{"), "move the stream's files away").await;
        check_refused(|folder| record(folder, r#"{"epoch":1,"bytes":9}"#), "has 0 bytes, where 9 were committed").await;
        check_refused(|folder| std::fs::create_dir(folder.join("s.jsonl")).unwrap(), "folder that can be written to").await;
    }
}
