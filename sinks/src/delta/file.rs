//! A data file of a table: encoded while its rows come in, then put into the store.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use chrono::Utc;
use deltalake::kernel::Add;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, PutPayloadMut};
use orderflow_faults::{Point, check};
use orderflow_operators::epoch::Epoch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use super::settings::TableCompression;
use super::statistics::{INDEXED_COLUMNS, statistics};
use crate::batches::{COALESCED_ROWS, coalesced, weight};
use crate::store::local_disk;

/// Rows of a Parquet row group: what a reader decodes at a time.
const ROW_GROUP_ROWS: usize = 256 * 1024;
/// Bytes of a column's dictionary at which the column goes on without one: enough for names and codes, and soon reached by ids.
const DICTIONARY_BYTES: usize = 32 << 10;

/// Bytes of a block of a file under way.
const BLOCK_BYTES: usize = 1 << 20;

/// What the files of a table have in common.
#[derive(Debug)]
pub(super) struct FileFormat {
    pub schema: SchemaRef,
    properties: WriterProperties,
    label: &'static str,
}

impl FileFormat {
    /// Integers are packed as differences: a third less CPU than dictionaries, for a few bytes more. Packed, they do not compress
    /// well enough to be worth it, nor do scores. Only text has dictionaries. Text that a table's log has no bounds of needs none in the files either:
    /// decisions, reasons and countries are all in each.
    pub fn new(schema: SchemaRef, compression: TableCompression) -> FileFormat {
        let mut properties = WriterProperties::builder()
            .set_compression(compression.0)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            // Names a list's items as the Parquet specification does.
            .set_coerce_types(true);
        for (number, field) in schema.fields().iter().enumerate() {
            let path = ColumnPath::from(field.name().as_str());
            properties = match field.data_type() {
                DataType::Int32 | DataType::Int64 | DataType::Timestamp(..) => {
                    let packed = Encoding::DELTA_BINARY_PACKED;
                    properties
                        .set_column_dictionary_enabled(path.clone(), false)
                        .set_column_encoding(path.clone(), packed)
                        .set_column_compression(path, Compression::UNCOMPRESSED)
                }
                DataType::Float64 => {
                    properties.set_column_dictionary_enabled(path.clone(), false).set_column_compression(path, Compression::UNCOMPRESSED)
                }
                DataType::Binary => properties.set_column_dictionary_enabled(path, false),
                DataType::Utf8 if number >= INDEXED_COLUMNS => properties.set_column_statistics_enabled(path, EnabledStatistics::None),
                _ => properties,
            };
        }
        let properties = properties.build();
        FileFormat { schema, properties, label: compression.label() }
    }

    /// A name that no other file has, in this life or another.
    fn name(&self, first: Epoch) -> Path {
        Path::from(format!("epoch-{:012}-{}.{}parquet", first.0, Uuid::new_v4(), self.label))
    }
}

/// Turns rows into the bytes of a file. It computes, and is for threads that may block.
pub(super) struct Encoder {
    writer: ArrowWriter<Blocks>,
    format: Arc<FileFormat>,
}

/// A file's bytes, in blocks: they are not copied when there are more.
#[derive(Default)]
struct Blocks(PutPayloadMut);

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Encoder {
    pub fn new(format: Arc<FileFormat>) -> Result<Encoder, ParquetError> {
        let options = ArrowWriterOptions::new().with_properties(format.properties.clone()).with_skip_arrow_metadata(true);
        let writer =
            ArrowWriter::try_new_with_options(Blocks(PutPayloadMut::new().with_block_size(BLOCK_BYTES)), format.schema.clone(), options)?;
        Ok(Encoder { writer, format })
    }

    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        self.writer.write(rows)
    }

    /// Appends the rows of another file of the same table, whoever wrote it, and says how many.
    pub fn append(&mut self, file: Bytes) -> Result<i64, ParquetError> {
        let mut count = 0;
        for rows in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
            let rows = conform(&rows?, &self.format.schema)?;
            self.writer.write(&rows)?;
            count += rows.num_rows() as i64;
        }
        Ok(count)
    }

    /// Ends the file whose first rows are of the epoch `first`.
    pub fn finish(mut self, first: Epoch) -> Result<EncodedFile, ParquetError> {
        let metadata = self.writer.finish()?;
        let Blocks(bytes) = std::mem::take(self.writer.inner_mut());
        Ok(EncodedFile { name: self.format.name(first), bytes: bytes.freeze(), statistics: statistics(&metadata) })
    }
}

/// The columns of `schema`, by name.
fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |name: &str| rows.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("a file has no column {name}")));
    let columns: Result<Vec<ArrayRef>, _> = schema.fields().iter().map(|f| cast(column(f.name())?, f.data_type())).collect();
    RecordBatch::try_new(schema.clone(), columns?)
}

/// A whole file in memory.
#[derive(Clone, Debug)]
pub(super) struct EncodedFile {
    name: Path,
    bytes: PutPayload,
    statistics: String,
}

impl EncodedFile {
    /// Puts it into the store. May be repeated: it is the same file.
    pub async fn put(&self, store: &dyn ObjectStore, data_change: bool) -> Result<Add, object_store::Error> {
        check(Point::DeltaFile).map_err(local_disk)?;
        store.put(&self.name, self.bytes.clone()).await?;
        check(Point::DeltaFileDone).map_err(local_disk)?;
        Ok(Add {
            path: self.name.to_string(),
            size: self.bytes.content_length() as i64,
            modification_time: Utc::now().timestamp_millis(),
            data_change,
            stats: Some(self.statistics.clone()),
            ..Add::default()
        })
    }
}

/// A file under way. Dropped, it stops; what it has put by then stays behind for vacuum.
pub(super) struct FileWriter {
    /// None: no more rows will come.
    rows: Option<mpsc::UnboundedSender<RecordBatch>>,
    rows_count: usize,
    state: FileState,
}

enum FileState {
    Encoding(Task),
    /// The store did not take it.
    Encoded(EncodedFile),
    Stored(Box<Add>),
}

struct Task(JoinHandle<Result<Ended, EncodeError>>);

/// A whole file, and whether the store took it.
struct Ended {
    file: EncodedFile,
    stored: Result<Add, object_store::Error>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a file could not be encoded; its rows are lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Stopped(#[from] JoinError),
}

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

impl FileWriter {
    /// Begins a file, the first rows of which are of the epoch `first`.
    pub fn new(format: Arc<FileFormat>, store: Arc<dyn ObjectStore>, first: Epoch) -> FileWriter {
        let (sender, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let file = encode(format, receiver, first).await?;
            let stored = file.put(store.as_ref(), true).await;
            Ok(Ended { file, stored })
        });
        FileWriter { rows: Some(sender), rows_count: 0, state: FileState::Encoding(Task(task)) }
    }

    /// More rows. They are encoded beside the caller.
    pub fn write(&mut self, rows: RecordBatch) {
        self.rows_count += rows.num_rows();
        if let Some(sender) = &self.rows {
            // A task that has failed says so at the end.
            let _ = sender.send(rows);
        }
    }

    /// Its rows so far.
    pub fn rows_count(&self) -> usize {
        self.rows_count
    }

    /// No more rows will come: it is finished and put into the store beside the caller.
    pub fn close(&mut self) {
        self.rows = None;
    }

    /// Whether it takes more rows.
    pub fn is_open(&self) -> bool {
        self.rows.is_some()
    }

    /// Waits until it is in the store. May be repeated after [`FileError::Store`].
    pub async fn stored(&mut self, store: &dyn ObjectStore) -> Result<Add, FileError> {
        self.close();
        if let FileState::Encoding(Task(task)) = &mut self.state {
            let Ended { file, stored } = task.await.map_err(EncodeError::from)??;
            // The first try counts as ours.
            self.state = FileState::Encoded(file);
            self.state = FileState::Stored(Box::new(stored?));
        }
        if let FileState::Encoded(file) = &self.state {
            self.state = FileState::Stored(Box::new(file.put(store, true).await?));
        }
        match &self.state {
            FileState::Stored(add) => Ok(Add::clone(add)),
            FileState::Encoding(_) | FileState::Encoded(_) => unreachable!("both were left above"),
        }
    }
}

async fn encode(format: Arc<FileFormat>, mut rows: mpsc::UnboundedReceiver<RecordBatch>, first: Epoch) -> Result<EncodedFile, EncodeError> {
    let mut encoder = Encoder::new(format)?;
    let (mut batches, mut waiting) = (Vec::new(), 0);
    loop {
        let known = batches.len();
        let ended = rows.recv_many(&mut batches, usize::MAX).await == 0;
        waiting += batches[known..].iter().map(weight).sum::<usize>();
        if !ended && waiting < COALESCED_ROWS {
            continue;
        }
        waiting = 0;
        let some = std::mem::take(&mut batches);
        encoder = tokio::task::spawn_blocking(move || {
            coalesced(some)?.iter().try_for_each(|rows| encoder.write(rows))?;
            Ok::<_, ParquetError>(encoder)
        })
        .await??;
        if ended {
            break;
        }
    }
    Ok(tokio::task::spawn_blocking(move || encoder.finish(first)).await??)
}
