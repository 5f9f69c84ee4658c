//! Rows as JSON, one object a line.
//!
//! Times are RFC 3339 and dates ISO 8601, or their number (of microseconds, of days since 1970) where the calendar ends; bytes are shown as
//! text, with `\ufffd` for what is none.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
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
    let (fields, columns) = readable_columns(rows.schema_ref().fields(), rows.columns())?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn readable_columns(fields: &[FieldRef], columns: &[ArrayRef]) -> Result<(Vec<FieldRef>, Vec<ArrayRef>), ArrowError> {
    let columns = fields.iter().zip(columns).map(|(field, column)| readable_column(field, column));
    Ok(columns.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
}

fn readable_column(field: &FieldRef, column: &ArrayRef) -> Result<(FieldRef, ArrayRef), ArrowError> {
    let column = readable_values(column)?;
    if column.data_type() == field.data_type() {
        return Ok((field.clone(), column));
    }
    Ok((Arc::new(Field::new(field.name(), column.data_type().clone(), field.is_nullable())), column))
}

/// A column's values, bytes and times among them as the texts that stand in a line.
pub(crate) fn readable_values(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let values: ArrayRef = match column.data_type() {
        // As text they may be three times as long, and more than 32 bits count.
        DataType::Binary => {
            Arc::new(column.as_binary::<i32>().iter().map(|bytes| bytes.map(String::from_utf8_lossy)).collect::<LargeStringArray>())
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = column.as_primitive::<TimestampMicrosecondType>().iter();
            Arc::new(times.map(|time| time.map(time_text)).collect::<StringArray>())
        }
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..) => {
            calendar_texts(column)?
        }
        DataType::List(item) => {
            let list = column.as_list::<i32>();
            let (item, values) = readable_column(item, list.values())?;
            Arc::new(ListArray::try_new(item, list.offsets().clone(), values, list.nulls().cloned())?)
        }
        DataType::Struct(fields) => {
            let (fields, columns) = readable_columns(fields, column.as_struct().columns())?;
            Arc::new(StructArray::try_new_with_length(fields.into(), columns, column.nulls().cloned(), column.len())?)
        }
        _ => column.clone(),
    };
    Ok(values)
}

fn time_text(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(|| micros.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// Dates and times of day as arrow writes them, or their numbers where it cannot.
fn calendar_texts(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let formatter = ArrayFormatter::try_new(column, &FormatOptions::default())?;
    let numbers = cast(column, &DataType::Int64)?;
    let numbers = numbers.as_primitive::<Int64Type>().iter().enumerate();
    let text = |row, number: i64| formatter.value(row).try_to_string().unwrap_or_else(|_| number.to_string());
    Ok(Arc::new(numbers.map(|(row, number)| number.map(|number| text(row, number))).collect::<StringArray>()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Date64Array, Time32SecondArray};
    use arrow::datatypes::Date32Type;
    use expect_test::{Expect, expect};

    use super::*;

    fn check(column: ArrayRef, expected: Expect) {
        let rows = RecordBatch::try_from_iter([("v", column)]).unwrap();
        expected.assert_eq(&String::from_utf8(lines(&rows).unwrap()).unwrap());
    }

    #[test]
    fn out_of_the_calendar_are_digits() {
        let dates = Date32Array::from(vec![Some(20_458), None, Some(i32::MAX), Some(i32::MIN)]);
        check(
            Arc::new(dates.clone()),
            expect![[r#"
                {"v":"2026-01-05"}
                {"v":null}
                {"v":"2147483647"}
                {"v":"-2147483648"}
            "#]],
        );
        check(
            Arc::new(Date64Array::from(vec![0, i64::MAX])),
            expect![[r#"
                {"v":"1970-01-01T00:00:00"}
                {"v":"9223372036854775807"}
            "#]],
        );
        check(
            Arc::new(Time32SecondArray::from(vec![1, -1, 86_400])),
            expect![[r#"
                {"v":"00:00:01"}
                {"v":"-1"}
                {"v":"86400"}
            "#]],
        );
        let side = StructArray::try_new(vec![Field::new("date", DataType::Date32, true)].into(), vec![Arc::new(dates)], None).unwrap();
        check(
            Arc::new(side.slice(1, 2)),
            expect![[r#"
                {"v":{"date":null}}
                {"v":{"date":"2147483647"}}
            "#]],
        );
    }

    #[test]
    fn lists_have_readable_items() {
        let dates = [Some(vec![Some(0), None, Some(i32::MIN)]), None, Some(vec![])];
        check(
            Arc::new(ListArray::from_iter_primitive::<Date32Type, _, _>(dates)),
            expect![[r#"
                {"v":["1970-01-01",null,"-2147483648"]}
                {"v":null}
                {"v":[]}
            "#]],
        );
        let times = ListArray::from_iter_primitive::<TimestampMicrosecondType, _, _>([Some([Some(0), Some(i64::MAX)])]);
        check(
            Arc::new(times),
            expect![[r#"
                {"v":["1970-01-01T00:00:00.000000Z","9223372036854775807"]}
            "#]],
        );
    }
}
