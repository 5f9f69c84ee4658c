//! Rows that do not count, with the reason: late ones, and those for which an expression has no value.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::rows;
use crate::stage::catalog::timestamp;

/// Why a row does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Its window was over.
    Late,
    /// An expression has no value for it.
    Error,
}

impl Reject {
    fn name(self) -> &'static str {
        match self {
            Reject::Late => "late",
            Reject::Error => "error",
        }
    }
}

/// place (uint64), kind (`late` or `error`), time (timestamp µs), detail (text), row (text: its columns as JSON).
pub fn reject_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("place", DataType::UInt64, false),
            Field::new("kind", DataType::Utf8, false),
            Field::new("time", timestamp(), false),
            Field::new("detail", DataType::Utf8, false),
            Field::new("row", DataType::Utf8, false),
        ]))
    });
    SCHEMA.clone()
}

/// Rejected rows of an epoch.
#[derive(Default)]
pub(crate) struct Rejects {
    batches: Vec<RecordBatch>,
}

impl Rejects {
    /// Adds rows.
    pub fn add(&mut self, kind: Reject, detail: &str, rejected: &RecordBatch) {
        let count = rejected.num_rows();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(orderflow_operators::columns::u64s(rejected, rows::PLACE).to_vec())),
            Arc::new(StringArray::from(vec![kind.name(); count])),
            Arc::new(TimestampMicrosecondArray::from(rows::times(rejected).to_vec())),
            Arc::new(StringArray::from(vec![detail; count])),
            Arc::new(StringArray::from(as_json(rejected))),
        ];
        self.batches.push(rows::batch(&reject_schema(), columns));
    }

    /// All of them.
    pub fn take(&mut self) -> Vec<RecordBatch> {
        std::mem::take(&mut self.batches)
    }
}

/// Each row's own columns as a JSON object; empty where a type has no JSON.
fn as_json(rejected: &RecordBatch) -> Vec<String> {
    let own: Vec<usize> = (rows::META..rejected.num_columns()).collect();
    let text = rejected.project(&own).ok().and_then(|own| {
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        writer.write(&own).and_then(|()| writer.finish()).ok()?;
        String::from_utf8(writer.into_inner()).ok()
    });
    let mut lines: Vec<String> = text.unwrap_or_default().lines().map(str::to_owned).collect();
    lines.resize(rejected.num_rows(), String::new());
    lines
}
