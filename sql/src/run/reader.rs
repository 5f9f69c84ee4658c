//! A stage's inputs from files: lines of JSON, and Parquet.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef, TimestampMicrosecondType};
use orderflow_operators::epoch::{Micros, Place};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::RunError;
use super::format::{Decoded, JsonDecoder};
use crate::operators::{Reject, Rejects, RowSteps, Step};
use crate::rows::{META, batch, with_meta};
use crate::stage::catalog::{Format, Table, timestamp};
use crate::stage::{Input, InputColumn};

/// The watermark of a table that declares none: a second behind its event time, as in Arroyo.
const DELAY: Micros = 1_000_000;

/// The files of a table, in the order of their names.
pub(super) fn files(table: &Table, base: &Path) -> Result<Vec<PathBuf>, RunError> {
    let path = table.option("path").ok_or_else(|| RunError::new(format!("table `{}` has no path", table.name)))?;
    let path = base.join(path.strip_prefix("file://").unwrap_or(path));
    let wrong = |e: std::io::Error| RunError::new(format!("table `{}`: {}: {e}", table.name, path.display()));
    if !path.metadata().map_err(wrong)?.is_dir() {
        return Ok(vec![path]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if file.is_file() && !file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Rows of one file.
pub(super) struct Reader {
    input: Arc<Input>,
    content: Content,
    split: u32,
    offset: i64,
    path: PathBuf,
    decoder: JsonDecoder,
    compute: Option<(RowSteps, SchemaRef)>,
    /// How far event time has come with its rows.
    pub watermark: Option<Micros>,
    pub ended: bool,
}

enum Content {
    Lines(BufReader<File>),
    Parquet { reader: ParquetRecordBatchReader, rest: Option<RecordBatch> },
}

/// An epoch's rows of one file.
pub(super) struct Read {
    /// The table's columns behind the [`META`] columns.
    pub rows: RecordBatch,
    /// Messages that are none.
    pub malformed: u64,
    pub first_malformed: Option<String>,
}

impl Reader {
    pub fn open(input: Arc<Input>, path: &Path, split: u32, offset: i64) -> Result<Reader, RunError> {
        let wrong = |e: &dyn std::fmt::Display| RunError::new(format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(|e| wrong(&e))?;
        let content = match input.table.format {
            Format::Parquet => {
                let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
                Content::Parquet { reader: builder.build().map_err(|e| wrong(&e))?, rest: None }
            }
            _ => Content::Lines(BufReader::with_capacity(1 << 20, file)),
        };
        let read = with_meta(input.read.fields());
        let all = with_meta(input.table.schema().fields());
        let is_computed = input.columns.iter().any(|c| matches!(c, InputColumn::Computed(_)));
        let compute = is_computed.then(|| {
            let expressions = input.columns.iter().map(|column| match column {
                InputColumn::Read(place) => column_at(&read, META + place),
                InputColumn::Computed(expression) => shifted(expression),
            });
            (RowSteps::new(vec![Step::Project { expressions: expressions.collect(), schema: all.clone() }]), read.clone())
        });
        let decoder = JsonDecoder::new(&input);
        let mut reader =
            Reader { input, content, split, offset: 0, path: path.to_owned(), decoder, compute, watermark: None, ended: false };
        while reader.offset < offset && !reader.ended {
            reader.skip((offset - reader.offset) as usize)?;
        }
        Ok(reader)
    }

    /// The offset behind the last row read.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    fn skip(&mut self, count: usize) -> Result<(), RunError> {
        match &mut self.content {
            Content::Lines(_) => {
                let lines = self.lines(count)?;
                self.offset += lines.len() as i64;
            }
            Content::Parquet { .. } => {
                let rows = self.parquet(count)?;
                self.offset += rows.map_or(0, |r| r.num_rows() as i64);
            }
        }
        Ok(())
    }

    fn wrong(&self, e: &dyn std::fmt::Display) -> RunError {
        RunError::new(format!("{}: {e}", self.path.display()))
    }

    fn lines(&mut self, count: usize) -> Result<Vec<Vec<u8>>, RunError> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let mut line = Vec::new();
            let Content::Lines(reader) = &mut self.content else { break };
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    lines.push(line);
                }
                Err(error) => return Err(self.wrong(&error)),
            }
        }
        Ok(lines)
    }

    fn parquet(&mut self, count: usize) -> Result<Option<RecordBatch>, RunError> {
        let path = self.path.display().to_string();
        let Content::Parquet { reader, rest } = &mut self.content else { return Ok(None) };
        let rows = match rest.take() {
            Some(rows) => Some(rows),
            None => reader.next().transpose().map_err(|e| RunError::new(format!("{path}: {e}")))?,
        };
        let Some(rows) = rows else {
            self.ended = true;
            return Ok(None);
        };
        let taken = rows.num_rows().min(count);
        if taken < rows.num_rows() {
            *rest = Some(rows.slice(taken, rows.num_rows() - taken));
        }
        Ok(Some(rows.slice(0, taken)))
    }

    /// At most `count` rows; with none, the file has ended. `sealed_at` is the event time of rows that have none of their own.
    pub fn read(&mut self, count: usize, sealed_at: Micros) -> Result<Read, RunError> {
        let first = self.offset;
        let (decoded, malformed) = match &self.content {
            Content::Lines(_) => {
                let lines = self.lines(count)?;
                self.offset += lines.len() as i64;
                let messages: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
                self.decoder.decode(&messages)
            }
            Content::Parquet { .. } => {
                let rows = self.parquet(count)?.unwrap_or_else(|| RecordBatch::new_empty(Arc::new(Schema::empty())));
                self.offset += rows.num_rows() as i64;
                (self.of_parquet(&rows)?, Vec::new())
            }
        };
        if let Some((number, reason)) = malformed.first().filter(|_| self.input.table.option("bad_data") == Some("fail")) {
            return Err(self.wrong(&format!("line {}: {reason}", first + *number as i64 + 1)));
        }
        let mut rejects = Rejects::default();
        let rows = self.columns(&decoded, first, sealed_at, &mut rejects)?;
        let rejected: u64 = rejects.take().iter().map(|r| r.num_rows() as u64).sum();
        let first_malformed = malformed.first().map(|(number, reason)| format!("line {}: {reason}", first + *number as i64 + 1));
        Ok(Read { rows, malformed: malformed.len() as u64 + rejected, first_malformed })
    }

    fn of_parquet(&self, rows: &RecordBatch) -> Result<Decoded, RunError> {
        let schema = Schema::new(self.input.read.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>());
        let columns = self.input.read.fields().iter().map(|field| match rows.column_by_name(field.name()) {
            _ if rows.num_rows() == 0 => Ok(arrow::array::new_empty_array(field.data_type())),
            None => Err(self.wrong(&format!("there is no column `{}`", field.name()))),
            Some(column) => cast(column, field.data_type()).map_err(|e| self.wrong(&e)),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let count = rows.num_rows();
        Ok(Decoded { rows: batch(&Arc::new(schema), columns), messages: (0..count as u32).collect(), retract: vec![false; count] })
    }

    /// All of the table's columns, with places and event times.
    fn columns(&mut self, decoded: &Decoded, first: i64, sealed_at: Micros, rejects: &mut Rejects) -> Result<RecordBatch, RunError> {
        let count = decoded.rows.num_rows();
        let places = decoded.messages.iter().map(|m| Place::new(self.split, first + i64::from(*m)).0);
        let meta: [ArrayRef; META] = [
            Arc::new(UInt64Array::from_iter_values(places)),
            Arc::new(TimestampMicrosecondArray::from(vec![sealed_at; count])),
            Arc::new(BooleanArray::from(decoded.retract.clone())),
        ];
        let read = with_meta(self.input.read.fields());
        let mut rows = batch(&read, meta.into_iter().chain(decoded.rows.columns().iter().cloned()).collect());
        if let Some((steps, _)) = &self.compute {
            rows = steps.apply(rows, rejects);
        }
        if let Some(column) = self.input.event_time {
            let times = cast(rows.column(META + column), &timestamp()).map_err(|e| self.wrong(&e))?;
            if times.null_count() > 0 {
                let known: UInt32Array = (0..rows.num_rows() as u32).filter(|row| times.is_valid(*row as usize)).map(Some).collect();
                let unknown: UInt32Array = (0..rows.num_rows() as u32).filter(|row| times.is_null(*row as usize)).map(Some).collect();
                rejects.add(Reject::Error, "it has no event time", &take_record_batch(&rows, &unknown).map_err(|e| self.wrong(&e))?);
                rows = take_record_batch(&rows, &known).map_err(|e| self.wrong(&e))?;
            }
            let times = cast(rows.column(META + column), &timestamp()).map_err(|e| self.wrong(&e))?;
            let mut columns = rows.columns().to_vec();
            columns[crate::rows::TIME] = times;
            rows = batch(&rows.schema(), columns);
        }
        self.advance(&rows)?;
        Ok(rows)
    }

    fn advance(&mut self, rows: &RecordBatch) -> Result<(), RunError> {
        let latest = match &self.input.watermark {
            Some(expression) => {
                let own: Vec<usize> = (META..rows.num_columns()).collect();
                let own = rows.project(&own).map_err(|e| self.wrong(&e))?;
                let marks =
                    expression.evaluate(&own).and_then(|v| v.into_array(own.num_rows())).map_err(|e| self.wrong(&e.strip_backtrace()))?;
                arrow::compute::max(marks.as_primitive::<TimestampMicrosecondType>())
            }
            None => crate::rows::times(rows).iter().max().map(|t| t.saturating_sub(DELAY)),
        };
        self.watermark = self.watermark.max(latest);
        Ok(())
    }
}

fn column_at(schema: &SchemaRef, column: usize) -> Arc<dyn datafusion::physical_expr::PhysicalExpr> {
    Arc::new(datafusion::physical_expr::expressions::Column::new(schema.field(column).name(), column))
}

/// An expression over the columns that are read, over a batch that has the [`META`] columns before them.
fn shifted(expression: &Arc<dyn datafusion::physical_expr::PhysicalExpr>) -> Arc<dyn datafusion::physical_expr::PhysicalExpr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    use datafusion::physical_expr::expressions::Column;
    let shifted = expression.clone().transform(|e| match e.downcast_ref::<Column>() {
        Some(column) => Ok(Transformed::yes(Arc::new(Column::new(column.name(), column.index() + META)) as _)),
        None => Ok(Transformed::no(e)),
    });
    shifted.map_or_else(|_| expression.clone(), |t| t.data)
}
