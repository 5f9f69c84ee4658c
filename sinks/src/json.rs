//! Rows as JSON, one object a line.
//!
//! Times are RFC 3339, or microseconds since 1970 where the calendar ends; bytes are shown as text, with `\ufffd` for what is none.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use chrono::{DateTime, SecondsFormat};

/// Rows from whose text the length of all is guessed.
const FIRST_ROWS: usize = 256;

/// A line for each row, nulls written out.
pub(crate) fn lines(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let rows = readable(rows)?;
    let first = rows.num_rows().min(FIRST_ROWS);
    let mut text = write_lines(Vec::new(), &rows.slice(0, first))?;
    let rest = rows.num_rows() - first;
    if rest > 0 {
        // Megabytes that grow by doubling are copied, and touch twice the memory.
        text.reserve(text.len().div_ceil(first) * rest * 9 / 8);
        text = write_lines(text, &rows.slice(first, rest))?;
    }
    Ok(text)
}

/// Writes lines behind those that are there.
fn write_lines(text: Vec<u8>, rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(text);
    writer.write(rows)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// Bytes and times as text.
fn readable(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = rows.schema_ref().fields().iter().zip(rows.columns()).map(|(field, column)| readable_column(field, column));
    let (fields, columns): (Vec<_>, Vec<_>) = columns.unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn readable_column(field: &FieldRef, column: &ArrayRef) -> (FieldRef, ArrayRef) {
    let column: ArrayRef = match field.data_type() {
        DataType::Binary => {
            Arc::new(column.as_binary::<i32>().iter().map(|bytes| bytes.map(String::from_utf8_lossy)).collect::<StringArray>())
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = column.as_primitive::<TimestampMicrosecondType>().iter();
            Arc::new(times.map(|time| time.map(time_text)).collect::<StringArray>())
        }
        DataType::Struct(fields) => {
            let (inner, columns): (Vec<_>, Vec<_>) =
                fields.iter().zip(column.as_struct().columns()).map(|(field, column)| readable_column(field, column)).unzip();
            Arc::new(StructArray::new(inner.into(), columns, column.nulls().cloned()))
        }
        _ => return (field.clone(), column.clone()),
    };
    (Arc::new(Field::new(field.name(), column.data_type().clone(), field.is_nullable())), column)
}

fn time_text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(|| micros.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
}
