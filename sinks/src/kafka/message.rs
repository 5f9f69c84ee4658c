//! Rows as messages.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, is_not_null};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::{OutputStream, Stream};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;

use crate::json::lines;

/// A longer key is cut. Valid ids are far shorter; those of invalid orders have any length.
const KEY_BYTES_MAX: usize = 1_024;
/// What a message takes beside its key and value: its headers and the protocol's own fields.
const OVERHEAD_BYTES: usize = 512;

/// The columns whose values are the key of a stream's messages; without one they have no key.
pub(super) fn key_columns(stream: &OutputStream) -> Vec<String> {
    let one = |name: &str| vec![name.to_owned()];
    match stream {
        OutputStream::Own(Stream::OrderDecisions | Stream::OrderLines | Stream::ReservationEvents) => one("order_id"),
        OutputStream::Own(Stream::StockMovements) => one("sku"),
        // Messages that cannot be read have no key that could be trusted.
        OutputStream::Own(Stream::DeadLetters) => Vec::new(),
        OutputStream::Stage(stream) => stream.key.clone(),
    }
}

/// By row, the key: the value of one column as it is, of several as a JSON array of texts.
fn keys(rows: &RecordBatch, columns: &[String]) -> Result<Option<StringArray>, ArrowError> {
    let texts = columns.iter().map(|name| cast(&key_column(rows, name)?, &DataType::Utf8)).collect::<Result<Vec<_>, _>>()?;
    let texts: Vec<&StringArray> = texts.iter().map(|text| text.as_string::<i32>()).collect();
    Ok(match texts[..] {
        [] => None,
        [one] => Some(one.clone()),
        _ => Some(
            (0..rows.num_rows())
                .map(|row| {
                    let values = texts.iter().map(|text| if text.is_valid(row) { text.value(row).into() } else { Value::Null });
                    Some(Value::Array(values.collect()).to_string())
                })
                .collect(),
        ),
    })
}

/// A column of the rows or, of changes, what the row has after or else had before.
fn key_column(rows: &RecordBatch, name: &str) -> Result<ArrayRef, ArrowError> {
    if let Some(column) = rows.column_by_name(name) {
        return Ok(column.clone());
    }
    let side = |side: &str| rows.column_by_name(side)?.as_struct_opt().cloned();
    match (side("before"), side("after")) {
        (Some(before), Some(after)) => {
            let of = |side: &arrow::array::StructArray| side.column_by_name(name).cloned().ok_or_else(|| missing(name));
            zip(&is_not_null(&after)?, &of(&after)?, &of(&before)?)
        }
        _ => Err(missing(name)),
    }
}

fn missing(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("there is no column {name} for the messages' key"))
}

/// The rows of an epoch, ready to be sent: a JSON object each, as [`JsonLinesSink`](crate::jsonl::JsonLinesSink) writes it.
pub(super) struct Messages {
    pub epoch: Epoch,
    text: Vec<u8>,
    keys: Option<StringArray>,
    values: Vec<MessageValue>,
}

struct MessageValue {
    /// Where in the text.
    at: Range<usize>,
    /// Bytes that it had before it was cut.
    cut_from: Option<usize>,
}

/// One message.
pub(super) struct Message<'a> {
    pub key: Option<&'a str>,
    pub value: &'a [u8],
    cut_from: Option<usize>,
}

impl Messages {
    /// Encodes `rows`. A message of more than `bytes_max` bytes has its longest texts cut, since brokers would refuse it, and the
    /// job must go on whatever its input is.
    pub fn encode(epoch: Epoch, rows: &RecordBatch, key_columns: &[String], bytes_max: usize) -> Result<Messages, ArrowError> {
        let mut text = lines(rows)?;
        let keys = keys(rows, key_columns)?;
        let mut values = Vec::with_capacity(rows.num_rows());
        let mut start = 0;
        for end in line_ends(&text) {
            values.push(MessageValue { at: start..end, cut_from: None });
            start = end + 1;
        }
        for (row, value) in values.iter_mut().enumerate() {
            let room = bytes_max.saturating_sub(OVERHEAD_BYTES + key(keys.as_ref(), row).map_or(0, str::len));
            if value.at.len() > room {
                let short = shorten(&text[value.at.clone()], room).map_err(|e| ArrowError::JsonError(e.to_string()))?;
                value.cut_from = Some(value.at.len());
                value.at = text.len()..text.len() + short.len();
                text.extend(short);
            }
        }
        Ok(Messages { epoch, text, keys, values })
    }

    /// The messages, in the rows' order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Message<'_>> {
        self.values.iter().enumerate().map(|(row, value)| Message {
            key: key(self.keys.as_ref(), row),
            value: &self.text[value.at.clone()],
            cut_from: value.cut_from,
        })
    }
}

impl Message<'_> {
    /// `epoch`, in digits; and for a value that was cut, `cut_from`: how many bytes it had.
    pub fn headers(&self, epoch: &str) -> OwnedHeaders {
        let headers = OwnedHeaders::new_with_capacity(2).insert(Header { key: EPOCH_HEADER, value: Some(epoch) });
        match self.cut_from {
            Some(bytes) => headers.insert(Header { key: "cut_from", value: Some(&bytes.to_string()) }),
            None => headers,
        }
    }
}

/// The header with a message's epoch.
pub(super) const EPOCH_HEADER: &str = "epoch";

fn line_ends(text: &[u8]) -> Vec<usize> {
    // JSON escapes line ends within texts.
    text.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').map(|(at, _)| at).collect()
}

fn key(keys: Option<&StringArray>, row: usize) -> Option<&str> {
    let keys = keys.filter(|keys| keys.is_valid(row))?;
    Some(cut(keys.value(row), KEY_BYTES_MAX))
}

/// The longest start of `text` that has no more bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// The object in `line`, its longest texts cut until it has `bytes_max` bytes, or no text left to cut.
fn shorten(line: &[u8], bytes_max: usize) -> serde_json::Result<Vec<u8>> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(line)?;
    let mut short = line.to_vec();
    while short.len() > bytes_max {
        let Some(longest) = object.values_mut().flat_map(texts).max_by_key(|text| text.len()).filter(|text| !text.is_empty()) else {
            break;
        };
        // A byte of a text is one or more of JSON.
        let keep = longest.len().saturating_sub(short.len() - bytes_max);
        let keep = cut(longest, keep).len();
        longest.truncate(keep);
        short = serde_json::to_vec(&object)?;
    }
    Ok(short)
}

fn texts(value: &mut Value) -> Vec<&mut String> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter_mut().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array};
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use rdkafka::message::Headers;

    use super::*;

    fn rows(ids: &[&str], raws: &[&[u8]]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new((0..ids.len() as i64).collect::<Int64Array>());
        let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
        let raws: ArrayRef = Arc::new(BinaryArray::from(raws.to_vec()));
        RecordBatch::try_from_iter([("n", numbers), ("order_id", ids), ("raw", raws)]).unwrap()
    }

    fn check(rows: &RecordBatch, bytes_max: usize, expected: Expect) {
        let messages = Messages::encode(Epoch(7), rows, &["order_id".to_owned()], bytes_max).unwrap();
        let texts: Vec<String> = messages
            .iter()
            .map(|message| {
                let headers = message.headers("7");
                let headers: Vec<String> = headers
                    .iter()
                    .map(|header| format!("{}={}", header.key, String::from_utf8_lossy(header.value.unwrap_or_default())))
                    .collect();
                format!("{} {} {}\n", message.key.unwrap_or("-"), headers.join(","), String::from_utf8_lossy(message.value))
            })
            .collect();
        expected.assert_eq(&texts.concat());
    }

    #[test]
    fn a_row_is_a_message() {
        check(
            &rows(&["a", "b\nc", ""], &[b"{", b"\n\xff", b""]),
            10_000,
            expect![[r#"
                a epoch=7 {"n":0,"order_id":"a","raw":"{"}
                b
                c epoch=7 {"n":1,"order_id":"b\nc","raw":"\n�"}
                 epoch=7 {"n":2,"order_id":"","raw":""}
            "#]],
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        check(
            &rows(&["a", "b"], &[&[b'x'; 900], "é".repeat(12).as_bytes()]),
            OVERHEAD_BYTES + 51,
            expect![[r#"
                a epoch=7,cut_from=931 {"n":0,"order_id":"a","raw":"xxxxxxxxxxxxxxxxxxx"}
                b epoch=7,cut_from=55 {"n":1,"order_id":"b","raw":"ééééééééé"}
            "#]],
        );
    }

    #[test]
    fn keys_of_several_columns_and_of_changes() {
        let rows = rows(&["a", "b"], &[b"", b""]);
        let texts = |rows: &RecordBatch, columns: &[&str]| {
            let columns: Vec<String> = columns.iter().map(|&c| c.to_owned()).collect();
            keys(rows, &columns).unwrap().map(|keys| keys.iter().map(|key| key.unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(texts(&rows, &[]), None);
        assert_eq!(texts(&rows, &["n"]).unwrap(), ["0", "1"]);
        assert_eq!(texts(&rows, &["order_id", "n"]).unwrap(), [r#"["a","0"]"#, r#"["b","1"]"#]);
        assert!(keys(&rows, &["sku".to_owned()]).is_err());
        let side = |present: [bool; 2]| {
            let fields = rows.schema_ref().fields().clone();
            Arc::new(arrow::array::StructArray::new(fields, rows.columns().to_vec(), Some(present.to_vec().into()))) as ArrayRef
        };
        let changes = RecordBatch::try_from_iter([("before", side([false, true])), ("after", side([true, false]))]).unwrap();
        assert_eq!(texts(&changes, &["order_id"]).unwrap(), ["a", "b"]);
    }

    #[test]
    fn each_stream_has_its_key() {
        let windows = orderflow_operators::features::WindowSet::default();
        for stream in Stream::ALL {
            for name in key_columns(&stream.into()) {
                let schema = stream.schema(&windows);
                let field = schema.field_with_name(&name).unwrap();
                assert!(!field.is_nullable() && *field.data_type() == arrow::datatypes::DataType::Utf8, "{stream}: {field}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_fits(id in ".{0,3000}", raw in proptest::collection::vec(any::<u8>(), 0..3000), bytes_max in 2_000_usize..4_000) {
            let messages = Messages::encode(Epoch(1), &rows(&[&id], &[&raw]), &["order_id".to_owned()], bytes_max).unwrap();
            let message = messages.iter().next().unwrap();
            prop_assert!(message.value.len() + message.key.unwrap().len() + OVERHEAD_BYTES <= bytes_max);
            let object: serde_json::Map<String, Value> = serde_json::from_slice(message.value).unwrap();
            prop_assert!(id.starts_with(object["order_id"].as_str().unwrap()));
        }
    }
}
