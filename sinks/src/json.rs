//! Rows as JSON, one object a line.
//!
//! Times are RFC 3339, or microseconds since 1970 where the calendar ends; bytes are shown as text, with `\ufffd` for what is none.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use chrono::{DateTime, SecondsFormat};

/// A line for each row, nulls written out.
pub(crate) fn lines(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(&readable(rows)?)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// Bytes and times as text.
fn readable(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = rows.schema_ref().fields().iter().zip(rows.columns()).map(|(field, column)| {
        let texts: StringArray = match field.data_type() {
            DataType::Binary => column.as_binary::<i32>().iter().map(|bytes| bytes.map(String::from_utf8_lossy)).collect(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                column.as_primitive::<TimestampMicrosecondType>().iter().map(|time| time.map(time_text)).collect()
            }
            _ => return (field.clone(), column.clone()),
        };
        let field = Field::new(field.name(), DataType::Utf8, field.is_nullable());
        (Arc::new(field), Arc::new(texts) as ArrayRef)
    });
    let (fields, columns): (Vec<_>, Vec<_>) = columns.unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn time_text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(|| micros.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
}
