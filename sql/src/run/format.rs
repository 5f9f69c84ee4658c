//! Rows as messages: JSON, Debezium's JSON, lines of text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, StructArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::json::ReaderBuilder;
use arrow::json::writer::{LineDelimited, WriterBuilder};

use crate::rows::{self, META};
use crate::stage::Input;
use crate::stage::catalog::Format;

/// A message that is none: its number in the batch, and why.
pub(super) type Malformed = (usize, String);

/// Rows of some messages.
pub(super) struct Decoded {
    /// The columns that are read.
    pub rows: RecordBatch,
    /// For each row the message that it is of.
    pub messages: Vec<u32>,
    /// For each row whether it is taken back.
    pub retract: Vec<bool>,
}

/// Messages to rows.
pub(super) struct JsonDecoder {
    /// What is read: the input's columns, or `before`, `after` and `op`.
    wire: SchemaRef,
    read: SchemaRef,
    format: Format,
    unstructured: bool,
}

impl JsonDecoder {
    pub fn new(input: &Input) -> Self {
        let millis = input.table.option("json.timestamp_format") == Some("unix_millis");
        let on_wire = |field: &Field| match field.data_type() {
            DataType::Timestamp(..) if millis => field.clone().with_data_type(DataType::Timestamp(TimeUnit::Millisecond, None)),
            _ => field.clone(),
        };
        let fields: Vec<Field> = input.read.fields().iter().map(|f| on_wire(f)).collect();
        let wire = match input.table.format {
            Format::DebeziumJson => {
                let row = DataType::Struct(fields.into());
                Schema::new(vec![
                    Field::new("before", row.clone(), true),
                    Field::new("after", row, true),
                    Field::new("op", DataType::Utf8, false),
                ])
            }
            _ => Schema::new(fields),
        };
        JsonDecoder {
            wire: Arc::new(wire),
            read: input.read.clone(),
            format: input.table.format,
            unstructured: input.table.is_unstructured(),
        }
    }

    /// The rows of some messages; those that are none are named.
    pub fn decode(&self, messages: &[&[u8]]) -> (Decoded, Vec<Malformed>) {
        if self.unstructured {
            return self.texts(messages);
        }
        let mut malformed = Vec::new();
        let mut good: Vec<u32> = Vec::new();
        let mut parts = Vec::new();
        match self.rows(messages) {
            Ok(rows) if rows.num_rows() == messages.len() => {
                good.extend(0..messages.len() as u32);
                parts.push(rows);
            }
            // One that is none spoils the batch: each by itself.
            _ => {
                for (number, message) in messages.iter().enumerate() {
                    match self.rows(&[message]) {
                        Ok(rows) if rows.num_rows() == 1 => {
                            good.push(number as u32);
                            parts.push(rows);
                        }
                        Ok(_) => malformed.push((number, "it is not one JSON object".to_owned())),
                        Err(error) => malformed.push((number, error.to_string())),
                    }
                }
            }
        }
        let wire = orderflow_operators::dataflow::concat(parts).unwrap_or_else(|| RecordBatch::new_empty(self.wire.clone()));
        let decoded = if self.format == Format::DebeziumJson {
            self.changes(&wire, &good, &mut malformed)
        } else {
            Decoded { rows: self.cast(wire.columns()), retract: vec![false; good.len()], messages: good }
        };
        (decoded, malformed)
    }

    fn rows(&self, messages: &[&[u8]]) -> Result<RecordBatch, arrow::error::ArrowError> {
        let mut decoder = ReaderBuilder::new(self.wire.clone()).with_batch_size(messages.len() + 1).build_decoder()?;
        for (number, message) in messages.iter().enumerate() {
            let mut rest = *message;
            while !rest.is_empty() {
                let taken = decoder.decode(rest)?;
                if taken == 0 {
                    break;
                }
                rest = &rest[taken..];
            }
            decoder.decode(b"\n")?;
            // A message is one object, neither more nor a part of one.
            if decoder.has_partial_record() || decoder.len() != number + 1 {
                return Err(arrow::error::ArrowError::JsonError("it is not one JSON object".to_owned()));
            }
        }
        Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(self.wire.clone())))
    }

    fn texts(&self, messages: &[&[u8]]) -> (Decoded, Vec<Malformed>) {
        let mut malformed = Vec::new();
        let (mut good, mut texts) = (Vec::new(), Vec::new());
        for (number, message) in messages.iter().enumerate() {
            match std::str::from_utf8(message) {
                Ok(text) => {
                    good.push(number as u32);
                    texts.push(text);
                }
                Err(error) => malformed.push((number, error.to_string())),
            }
        }
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        (Decoded { rows: self.cast(&[column]), retract: vec![false; good.len()], messages: good }, malformed)
    }

    /// As the table declares them.
    fn cast(&self, columns: &[ArrayRef]) -> RecordBatch {
        let fields = self.read.fields().iter().zip(columns);
        let columns = fields.map(|(field, column)| cast(column, field.data_type()).expect("times of two units can be cast")).collect();
        let schema = Schema::new(self.read.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>());
        rows::batch(&Arc::new(schema), columns)
    }

    fn changes(&self, wire: &RecordBatch, messages: &[u32], malformed: &mut Vec<Malformed>) -> Decoded {
        let (before, after, op) = (wire.column(0).as_struct(), wire.column(1).as_struct(), wire.column(2).as_string::<i32>());
        // Rows of `before` come first in the table of both.
        let both: Vec<ArrayRef> = before
            .columns()
            .iter()
            .zip(after.columns())
            .map(|(b, a)| arrow::compute::concat(&[b, a]).expect("before and after have the same columns"))
            .collect();
        let both = self.cast(&both);
        let (mut from, mut of, mut retract) = (Vec::new(), Vec::new(), Vec::new());
        let mut add = |side: &StructArray, shift: usize, row: usize, back: bool| -> Result<(), String> {
            if side.is_null(row) {
                return Err(format!("op '{}' lacks `{}`", op.value(row), if back { "before" } else { "after" }));
            }
            from.push((shift + row) as u32);
            of.push(messages[row]);
            retract.push(back);
            Ok(())
        };
        for (row, &message) in messages.iter().enumerate() {
            let done = match op.value(row) {
                "c" | "r" => add(after, wire.num_rows(), row, false),
                "d" => add(before, 0, row, true),
                "u" if before.is_null(row) || after.is_null(row) => Err("op 'u' lacks `before` or `after`".to_owned()),
                "u" => add(before, 0, row, true).and_then(|()| add(after, wire.num_rows(), row, false)),
                other => Err(format!("there is no op '{other}'")),
            };
            if let Err(reason) = done {
                malformed.push((message as usize, reason));
            }
        }
        let rows = take_record_batch(&both, &UInt32Array::from(from)).expect("the indices are those of rows of this batch");
        Decoded { rows, messages: of, retract }
    }
}

/// A JSON object for each row; each ends with a newline. Times are RFC 3339, in UTC.
pub fn to_json(own: &RecordBatch) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let builder = WriterBuilder::new().with_explicit_nulls(true).with_timestamp_format("%Y-%m-%dT%H:%M:%S%.fZ".to_owned());
    let builder = builder.with_timestamp_tz_format("%Y-%m-%dT%H:%M:%S%.fZ".to_owned());
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write(own)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// The query's own columns of rows as [`crate::rows`] says.
pub(crate) fn own_columns(rows: &RecordBatch) -> RecordBatch {
    let own: Vec<usize> = (META..rows.num_columns()).collect();
    rows.project(&own).expect("the columns are there")
}

/// Changes as Debezium has them: an object with `before`, `after` and `op` for each. `rows` are an epoch's, in canonical order.
///
/// With a `key`, a row that is taken back and one that is given with the same key are one update (`u`); else each is a deletion (`d`) or a creation
/// (`c`), deletions first.
pub fn to_debezium(rows: &RecordBatch, key: &[usize]) -> Result<Vec<u8>, arrow::error::ArrowError> {
    to_json(&changes(&own_columns(rows), rows::retractions(rows), key)?)
}

/// [`to_debezium`] as columns: `before` and `after` (structs of the columns of `own`), `op` (text). `retract` says which rows are taken back.
pub fn changes(own: &RecordBatch, retract: &BooleanArray, key: &[usize]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let converter = rows::row_converter(own.schema_ref().fields());
    let contents = converter.convert_columns(own.columns())?;
    // What came and went within the epoch is nothing.
    let mut counts: std::collections::BTreeMap<&[u8], (i64, u32)> = std::collections::BTreeMap::new();
    for row in 0..own.num_rows() {
        let entry = counts.entry(contents.row(row).data()).or_insert((0, row as u32));
        entry.0 += if retract.value(row) { -1 } else { 1 };
    }
    let key_columns: Vec<ArrayRef> = key.iter().map(|c| own.column(*c).clone()).collect();
    let keys = rows::row_converter(key.iter().map(|c| &own.schema_ref().fields()[*c])).convert_columns(&key_columns)?;
    let mut deleted: std::collections::BTreeMap<Vec<u8>, Vec<u32>> = std::collections::BTreeMap::new();
    let mut created: std::collections::BTreeMap<Vec<u8>, Vec<u32>> = std::collections::BTreeMap::new();
    for (content, (count, row)) in &counts {
        // Without a key each row is by itself.
        let id = if key.is_empty() { content.to_vec() } else { keys.row(*row as usize).data().to_vec() };
        let of = if *count < 0 { &mut deleted } else { &mut created };
        of.entry(id).or_default().extend(std::iter::repeat_n(*row, count.unsigned_abs() as usize));
    }
    let mut changes: Vec<(Option<u32>, Option<u32>, &str)> = Vec::new();
    for (id, rows) in deleted {
        let mut new = created.remove(&id).unwrap_or_default().into_iter();
        changes.extend(rows.into_iter().map(|old| match new.next() {
            Some(new) => (Some(old), Some(new), "u"),
            None => (Some(old), None, "d"),
        }));
        changes.extend(new.map(|new| (None, Some(new), "c")));
    }
    changes.extend(created.into_values().flatten().map(|new| (None, Some(new), "c")));
    let whole: ArrayRef = Arc::new(StructArray::from(own.clone()));
    let side = |of: Vec<Option<u32>>| arrow::compute::take(&whole, &UInt32Array::from(of), None);
    let fields = own.schema_ref().fields().clone();
    let schema = Schema::new(vec![
        Field::new("before", DataType::Struct(fields.clone()), true),
        Field::new("after", DataType::Struct(fields), true),
        Field::new("op", DataType::Utf8, false),
    ]);
    let before = side(changes.iter().map(|c| c.0).collect())?;
    let after = side(changes.iter().map(|c| c.1).collect())?;
    let op: ArrayRef = Arc::new(changes.iter().map(|c| Some(c.2)).collect::<StringArray>());
    RecordBatch::try_new(Arc::new(schema), vec![before, after, op])
}
