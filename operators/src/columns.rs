//! Typed access to a batch's columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{
    DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt32Type, UInt64Type,
};

/// `timestamp(µs, UTC)`.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The values of a `uint64` column.
pub fn u64s(batch: &RecordBatch, column: usize) -> &[u64] {
    batch.column(column).as_primitive::<UInt64Type>().values()
}
/// The values of a `uint32` column.
pub fn u32s(batch: &RecordBatch, column: usize) -> &[u32] {
    batch.column(column).as_primitive::<UInt32Type>().values()
}
/// The values of a `uint8` column.
pub fn u8s(batch: &RecordBatch, column: usize) -> &[u8] {
    batch.column(column).as_primitive::<UInt8Type>().values()
}
/// The values of an `int64` column.
pub fn i64s(batch: &RecordBatch, column: usize) -> &[i64] {
    batch.column(column).as_primitive::<Int64Type>().values()
}
/// The values of a `timestamp(µs)` column.
pub fn micros(batch: &RecordBatch, column: usize) -> &[i64] {
    batch.column(column).as_primitive::<TimestampMicrosecondType>().values()
}
/// A text column.
pub fn text(batch: &RecordBatch, column: usize) -> &StringArray {
    batch.column(column).as_string::<i32>()
}
/// A boolean column.
pub fn bools(batch: &RecordBatch, column: usize) -> &BooleanArray {
    batch.column(column).as_boolean()
}

/// The value in `row`, `None` if null.
#[inline]
pub fn text_at(array: &StringArray, row: usize) -> Option<&str> {
    array.is_valid(row).then(|| array.value(row))
}

/// `batch` with `columns` behind its own. The schema is `schema`, which the caller keeps, so that comparing schemas
/// stays comparing pointers.
///
/// # Panics
/// If the columns do not fit `schema`: the caller made both.
pub fn append(batch: &RecordBatch, schema: &SchemaRef, columns: impl IntoIterator<Item = ArrayRef>) -> RecordBatch {
    let columns = batch.columns().iter().cloned().chain(columns).collect();
    RecordBatch::try_new(schema.clone(), columns).expect("the columns fit the schema that was made for them")
}

/// `schema` with `fields` behind its own.
pub fn extend(schema: &Schema, fields: impl IntoIterator<Item = Field>) -> SchemaRef {
    let fields: Vec<_> = schema.fields().iter().cloned().chain(fields.into_iter().map(Arc::new)).collect();
    Arc::new(Schema::new(fields))
}
