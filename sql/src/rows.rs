//! Rows on a stage's edges: three columns that every row has, and behind them what the query sees.
//!
//! | column | type | |
//! | --- | --- | --- |
//! | [`PLACE`] | uint64 | the [`Place`] of the row that it was made of; [`Place::AFTER_ROWS`] for what an operator makes at an epoch's end. What timers of the job give has places of its own before that, in their order |
//! | [`TIME`] | timestamp(µs) | event time; of a window's row the last microsecond of the window |
//! | [`RETRACT`] | boolean | whether the row is taken back |
//!
//! # Order
//!
//! The canonical order of an epoch's rows is by place, event time, retractions first, then by the values of all columns. So it does not depend on
//! how many workers made the rows; rows that are alike in everything may stand in for each other.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt32Array, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use orderflow_operators::columns::{micros, u64s};
use orderflow_operators::epoch::Place;
use orderflow_operators::keys;

use crate::stage::catalog::timestamp;

/// The column of the place.
pub const PLACE: usize = 0;
/// The column of event time.
pub const TIME: usize = 1;
/// The column that says whether a row is taken back.
pub const RETRACT: usize = 2;
/// How many columns stand before those of the query.
pub const META: usize = 3;

/// The columns of a query with those that every row has before them. All may be null, so that no value can break a batch.
pub fn with_meta<'a>(fields: impl IntoIterator<Item = &'a FieldRef>) -> SchemaRef {
    let meta = [
        Arc::new(Field::new("__place", DataType::UInt64, false)),
        Arc::new(Field::new("__time", timestamp(), false)),
        Arc::new(Field::new("__retract", DataType::Boolean, false)),
    ];
    let fields = fields.into_iter().map(|f| Arc::new(Field::new(f.name(), f.data_type().clone(), true)));
    Arc::new(Schema::new(meta.into_iter().chain(fields).collect::<Vec<_>>()))
}

/// The columns that every row has, all alike but for the time.
pub(crate) fn meta_after_rows(times: Vec<i64>, retract: bool) -> [ArrayRef; META] {
    let rows = times.len();
    [
        Arc::new(UInt64Array::from(vec![Place::AFTER_ROWS.0; rows])),
        Arc::new(TimestampMicrosecondArray::from(times)),
        Arc::new(BooleanArray::from(vec![retract; rows])),
    ]
}

/// A batch of these columns.
///
/// # Panics
/// If they do not fit the schema: the operator made both.
pub(crate) fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema.clone(), columns).expect("the columns fit the schema that was made for them")
}

/// The event times of a batch; microseconds.
pub(crate) fn times(batch: &RecordBatch) -> &[i64] {
    micros(batch, TIME)
}

/// Whether rows are taken back.
pub fn retractions(batch: &RecordBatch) -> &BooleanArray {
    batch.column(RETRACT).as_boolean()
}

/// An order over all columns of a schema.
pub(crate) fn row_converter<'a>(fields: impl IntoIterator<Item = &'a FieldRef>) -> RowConverter {
    let fields = fields.into_iter().map(|f| SortField::new(f.data_type().clone())).collect();
    RowConverter::new(fields).expect("types of a stage's columns were checked when it was planned")
}

/// Rows as bytes that can be kept, compared and turned back; also where there is no column, when all rows are one.
pub(crate) struct RowCodec {
    converter: RowConverter,
    is_empty: bool,
}

impl RowCodec {
    /// Of these columns.
    pub fn new<'a>(fields: impl IntoIterator<Item = &'a FieldRef>) -> Self {
        let mut fields: Vec<FieldRef> = fields.into_iter().cloned().collect();
        let is_empty = fields.is_empty();
        if is_empty {
            fields.push(Arc::new(Field::new("none", DataType::Boolean, false)));
        }
        RowCodec { converter: row_converter(&fields), is_empty }
    }

    /// `rows` rows of the columns as bytes.
    pub fn encode(&self, columns: &[ArrayRef], rows: usize) -> datafusion::error::Result<arrow::row::Rows> {
        if self.is_empty {
            let none: ArrayRef = Arc::new(BooleanArray::from(vec![false; rows]));
            return Ok(self.converter.convert_columns(&[none])?);
        }
        Ok(self.converter.convert_columns(columns)?)
    }

    /// The columns again.
    pub fn decode<'a>(&self, rows: impl IntoIterator<Item = arrow::row::Row<'a>>) -> datafusion::error::Result<Vec<ArrayRef>> {
        let mut columns = self.converter.convert_rows(rows)?;
        if self.is_empty {
            columns.clear();
        }
        Ok(columns)
    }
}

/// Whether an operator can keep and order values of a type.
pub(crate) fn can_be_ordered(data_type: &DataType) -> bool {
    RowConverter::supports_fields(&[SortField::new(data_type.clone())])
}

/// Puts an epoch's rows in canonical order.
pub fn canonical(rows: RecordBatch) -> RecordBatch {
    let places = u64s(&rows, PLACE);
    if places.windows(2).all(|pair| pair[0] < pair[1]) {
        return rows;
    }
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_by_key(|&row| places[row as usize]);
    if order.windows(2).any(|pair| places[pair[0] as usize] == places[pair[1] as usize]) {
        // Retractions come first: `true` before `false` is the descending order.
        let retract: ArrayRef = Arc::new(arrow::compute::not(retractions(&rows)).expect("a boolean column has a complement"));
        let mut columns = rows.columns().to_vec();
        columns[RETRACT] = retract;
        let converter = row_converter(rows.schema_ref().fields());
        let keys = converter.convert_columns(&columns).expect("the converter was made for these columns");
        order.sort_unstable_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
    }
    take_record_batch(&rows, &UInt32Array::from(order)).expect("the indices are those of rows of this batch")
}

/// Stable hashes of the values of some columns, row by row: state on disk is filed under the key group that they yield.
pub(crate) fn hashes(columns: &[ArrayRef], rows: usize) -> Vec<u64> {
    match columns {
        [] => return vec![keys::hash(b""); rows],
        [one] => {
            if let Some(texts) = one.as_string_opt::<i32>() {
                return (0..rows).map(|row| if texts.is_null(row) { 0 } else { keys::hash(texts.value(row).as_bytes()) }).collect();
            }
        }
        _ => {}
    }
    let writers: Vec<KeyBytes> = columns.iter().map(KeyBytes::new).collect();
    let mut bytes = Vec::new();
    (0..rows)
        .map(|row| {
            bytes.clear();
            writers.iter().for_each(|writer| writer.write(row, &mut bytes));
            keys::hash(&bytes)
        })
        .collect()
}

/// A column's values as bytes that are the same in every release: fixed widths little-endian, texts with their length before them.
enum KeyBytes {
    Fixed {
        array: ArrayRef,
        values: arrow::buffer::Buffer,
        offset: usize,
        width: usize,
    },
    Text(arrow::array::StringArray),
    Struct {
        array: ArrayRef,
        fields: Vec<KeyBytes>,
    },
    /// Other types by how they are written as text.
    Shown(arrow::array::StringArray),
}

impl KeyBytes {
    fn new(array: &ArrayRef) -> KeyBytes {
        if let Some(texts) = array.as_string_opt::<i32>() {
            return KeyBytes::Text(texts.clone());
        }
        if let Some(fields) = array.as_struct_opt() {
            return KeyBytes::Struct { array: array.clone(), fields: fields.columns().iter().map(KeyBytes::new).collect() };
        }
        if let Some(width) = array.data_type().primitive_width() {
            let data = array.to_data();
            return KeyBytes::Fixed { array: array.clone(), values: data.buffers()[0].clone(), offset: data.offset(), width };
        }
        let options = arrow::util::display::FormatOptions::default();
        let shown = arrow::util::display::ArrayFormatter::try_new(array.as_ref(), &options);
        let texts = match shown {
            Ok(shown) => (0..array.len()).map(|row| array.is_valid(row).then(|| shown.value(row).to_string())).collect(),
            Err(_) => arrow::array::StringArray::new_null(array.len()),
        };
        KeyBytes::Shown(texts)
    }

    fn write(&self, row: usize, bytes: &mut Vec<u8>) {
        match self {
            KeyBytes::Fixed { array, .. } | KeyBytes::Struct { array, .. } if array.is_null(row) => bytes.push(0),
            KeyBytes::Text(texts) | KeyBytes::Shown(texts) if texts.is_null(row) => bytes.push(0),
            KeyBytes::Fixed { values, offset, width, .. } => {
                bytes.push(1);
                let at = (offset + row) * width;
                bytes.extend_from_slice(&values.as_slice()[at..at + width]);
            }
            KeyBytes::Text(texts) | KeyBytes::Shown(texts) => {
                let text = texts.value(row);
                bytes.extend_from_slice(&(text.len() as u32 + 1).to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
            KeyBytes::Struct { fields, .. } => {
                bytes.push(1);
                fields.iter().for_each(|field| field.write(row, bytes));
            }
        }
    }
}
