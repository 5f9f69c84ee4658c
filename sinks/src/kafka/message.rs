//! Rows as messages.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, RecordBatch};
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, is_not_null};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::{OutputStream, Stream};
use rdkafka::message::{Header, OwnedHeaders};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::json::{lines, readable_values};

/// A longer key is cut. Valid ids are far shorter; those of invalid orders have any length.
const KEY_BYTES_MAX: usize = 1_024;
/// What a message takes beside its key and value: its headers and the protocol's own fields.
const OVERHEAD_BYTES: usize = 512;
/// Most bytes of a text where arrays are shortened: ids stay whole.
const TEXT_BYTES_KEPT: usize = 1_024;

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

/// By row, the key: the value of one column with the text that it has in the message, of several as a JSON array of texts.
fn keys(rows: &RecordBatch, columns: &[String]) -> Result<Option<LargeStringArray>, ArrowError> {
    let texts = columns.iter().map(|name| cast(&readable_values(&key_column(rows, name)?)?, &DataType::LargeUtf8));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let texts: Vec<&LargeStringArray> = texts.iter().map(|text| text.as_string::<i64>()).collect();
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
    keys: Option<LargeStringArray>,
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
    /// Encodes `rows`. A message of more than `bytes_max` bytes is cut, since brokers would refuse it, and the job must go on whatever its
    /// input is: its longest texts, then its arrays, at last whole fields.
    ///
    /// # Errors
    /// If a key column is missing; for no value of a row.
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
                let short = shorten(&text[value.at.clone()], room);
                value.cut_from = Some(value.at.len());
                value.at = text.len()..text.len() + short.len();
                text.extend(short);
            }
        }
        Ok(Messages { epoch, text, keys, values })
    }

    /// The bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.iter().map(|message| message.value.len() + message.key.map_or(0, str::len)).sum()
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

fn key(keys: Option<&LargeStringArray>, row: usize) -> Option<&str> {
    let keys = keys.filter(|keys| keys.is_valid(row))?;
    Some(cut(keys.value(row), KEY_BYTES_MAX))
}

/// The longest start of `text` that has no more bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// The object in `line`, cut to at most `bytes_max` bytes, of which there must be 2.
///
/// Its texts are cut to one length, the greatest that fits. If texts without a byte are too much, its arrays are cut to one length, beside
/// texts of [`TEXT_BYTES_KEPT`]; if that is too much, the arrays are empty, and the texts as long as fits. A row that is still longer
/// has as many of its numbers as fit.
fn shorten(line: &[u8], bytes_max: usize) -> Vec<u8> {
    // A line is an object.
    let fields: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
    let mut room = vec![0; bytes_max];
    let mut length = |limits| write(&fields, limits, &mut room);
    let texts = |text_bytes| Limits { text_bytes, items: usize::MAX };
    let arrays = |items| Limits { text_bytes: TEXT_BYTES_KEPT, items };
    let texts_alone = |text_bytes| Limits { text_bytes, items: 0 };
    // A byte of a text is one or more of JSON, and so is an item.
    let limits = if length(texts(0)).is_some() {
        texts(greatest(bytes_max, |text_bytes| length(texts(text_bytes)).is_some()))
    } else if length(arrays(0)).is_some() {
        arrays(greatest(bytes_max, |items| length(arrays(items)).is_some()))
    } else if length(texts_alone(0)).is_some() {
        texts_alone(greatest(bytes_max, |text_bytes| length(texts_alone(text_bytes)).is_some()))
    } else {
        return numbers(&fields, bytes_max);
    };
    let bytes = length(limits).expect("the greatest that fits does fit");
    room.truncate(bytes);
    room
}

/// The greatest of `0..=most` that fits, where 0 does, and all below one that does.
fn greatest(most: usize, mut fits: impl FnMut(usize) -> bool) -> usize {
    let (mut fit, mut over) = (0, most + 1);
    while fit + 1 < over {
        let middle = fit + (over - fit) / 2;
        if fits(middle) { fit = middle } else { over = middle }
    }
    fit
}

/// How much stays of each value.
#[derive(Clone, Copy)]
struct Limits {
    /// Of a text, its first bytes.
    text_bytes: usize,
    /// Of an array, its first items.
    items: usize,
}

/// Writes a row within limits at the start of `room`; the bytes that it took, if it fits.
fn write(fields: &Map<String, Value>, limits: Limits, room: &mut [u8]) -> Option<usize> {
    let bytes_max = room.len();
    let mut left = room;
    serde_json::to_writer(&mut left, &ShortRow { fields, limits }).ok()?;
    Some(bytes_max - left.len())
}

struct ShortRow<'a> {
    fields: &'a Map<String, Value>,
    limits: Limits,
}

impl Serialize for ShortRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = Limits { text_bytes: usize::MAX, items: usize::MAX };
        serializer.collect_map(self.fields.iter().map(|(name, value)| {
            let limits = if is_operation(name, value) { whole } else { self.limits };
            (name, Short { value, limits })
        }))
    }
}

struct Short<'a> {
    value: &'a Value,
    limits: Limits,
}

impl Serialize for Short<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let limits = self.limits;
        match self.value {
            Value::String(text) => serializer.serialize_str(cut(text, limits.text_bytes)),
            Value::Array(items) => serializer.collect_seq(items.iter().take(limits.items).map(|value| Short { value, limits })),
            Value::Object(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, Short { value, limits }))),
            other => other.serialize(serializer),
        }
    }
}

/// The `op` of a change: a letter, without which it cannot be read.
fn is_operation(name: &str, value: &Value) -> bool {
    name == "op" && value.as_str().is_some_and(|op| op.len() == 1)
}

/// The row's numbers, booleans and operation, in their order, as many as fit.
fn numbers(fields: &Map<String, Value>, bytes_max: usize) -> Vec<u8> {
    let mut text = b"{".to_vec();
    let kept = |&(name, value): &(&String, &Value)| value.is_number() || value.is_boolean() || is_operation(name, value);
    for (name, value) in fields.iter().filter(kept) {
        let comma = if text.len() > 1 { "," } else { "" };
        let field = format!("{comma}{}:{value}", Value::from(name.as_str()));
        // The object's end is one more.
        if text.len() + field.len() < bytes_max {
            text.extend(field.into_bytes());
        }
    }
    text.push(b'}');
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Date32Array, Int64Array, ListArray, ListBuilder, StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
        new_null_array,
    };
    use arrow::datatypes::Int64Type;
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
    fn texts_are_cut_to_one_length() {
        check(
            &rows(&["abcdefgh"], &[&[b'x'; 16]]),
            OVERHEAD_BYTES + 48,
            expect![[r#"
                abcdefgh epoch=7,cut_from=54 {"n":0,"order_id":"abcde","raw":"xxxxx"}
            "#]],
        );
    }

    #[test]
    fn changes_are_cut_within_their_rows() {
        let after: ArrayRef = Arc::new(StructArray::from(rows(&["a"], &[&[b'x'; 900]])));
        let epoch: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let op: ArrayRef = Arc::new(StringArray::from(vec!["c"]));
        let columns = [("epoch", epoch), ("before", new_null_array(after.data_type(), 1)), ("after", after), ("op", op)];
        check(
            &RecordBatch::try_from_iter(columns).unwrap(),
            OVERHEAD_BYTES + 80,
            expect![[r#"
                a epoch=7,cut_from=974 {"epoch":7,"before":null,"after":{"n":0,"order_id":"a","raw":"xxxxx"},"op":"c"}
            "#]],
        );
    }

    /// The object of the one message of a row with the id `a` and `items`.
    fn object_with(items: ArrayRef, bytes_max: usize) -> Map<String, Value> {
        let id: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let rows = RecordBatch::try_from_iter([("items", items), ("order_id", id)]).unwrap();
        let messages = Messages::encode(Epoch(7), &rows, &[], bytes_max).unwrap();
        let message = messages.iter().next().unwrap();
        assert!(message.cut_from.is_some() && message.value.len() + OVERHEAD_BYTES <= bytes_max, "{}", message.value.len());
        serde_json::from_slice(message.value).unwrap()
    }

    #[test]
    fn very_many_texts_are_cut_alike() {
        let mut items = ListBuilder::new(StringBuilder::new());
        items.append_value((0..100_000).map(|n| Some(format!("{n:050}"))));
        let object = object_with(Arc::new(items.finish()), 1_000_000);
        assert_eq!(object["order_id"], "a");
        let items = object["items"].as_array().unwrap();
        assert_eq!(items.len(), 100_000);
        assert!(items.iter().all(|item| *item == items[0] && item.as_str().unwrap().len() > 5));
    }

    #[test]
    fn arrays_are_cut_where_texts_are_not_to_blame() {
        let object = object_with(Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some((0..100_000).map(Some))])), 2_000);
        assert_eq!(object["order_id"], "a");
        let items: Vec<i64> = object["items"].as_array().unwrap().iter().map(|item| item.as_i64().unwrap()).collect();
        assert!(items.len() > 300 && items.iter().copied().eq(0..items.len() as i64), "{items:?}");
    }

    #[test]
    fn at_last_numbers_stay_alone() {
        let check = |line: &str, bytes_max, expected: Expect| {
            expected.assert_eq(&String::from_utf8(shorten(line.as_bytes(), bytes_max)).unwrap());
        };
        let line = r#"{"epoch":7,"name":"abc","flag":true,"list":[1,2],"after":{"a":"b"},"op":"u"}"#;
        check(line, 60, expect![[r#"{"epoch":7,"flag":true,"op":"u"}"#]]);
        check(line, 31, expect![[r#"{"epoch":7,"flag":true}"#]]);
        check(line, 20, expect![[r#"{"epoch":7,"op":"u"}"#]]);
        check(line, 2, expect!["{}"]);
        check(r#"{"op":"a text of more than a letter"}"#, 20, expect![[r#"{"op":"a text of m"}"#]]);
    }

    #[test]
    fn few_tries_find_the_greatest() {
        let mut tries = 0;
        let found = greatest(1_000_000, |n| {
            tries += 1;
            n <= 123
        });
        assert_eq!((found, tries <= 20), (123, true));
        assert_eq!([greatest(5, |_| true), greatest(5, |n| n == 0)], [5, 0]);
    }

    #[test]
    fn a_key_has_the_text_of_its_value() {
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX, i64::MIN]).with_timezone("UTC"));
        let date: ArrayRef = Arc::new(Date32Array::from(vec![0, i32::MAX, i32::MIN]));
        let raw: ArrayRef = Arc::new(BinaryArray::from(vec![b"a".as_slice(), b"\xff", b""]));
        let rows = RecordBatch::try_from_iter([("time", time), ("date", date), ("raw", raw)]).unwrap();
        for column in ["time", "date", "raw"] {
            let messages = Messages::encode(Epoch(7), &rows, &[column.to_owned()], 10_000).unwrap();
            for message in messages.iter() {
                let object: Map<String, Value> = serde_json::from_slice(message.value).unwrap();
                assert_eq!(object[column].as_str(), message.key);
            }
        }
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

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<i64>().prop_map(Value::from), ".{0,40}".prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(3, 64, 8, |inner| {
            let fields = proptest::collection::vec(("[a-z]{1,4}", inner.clone()), 0..4);
            prop_oneof![
                proptest::collection::vec(inner, 0..8).prop_map(Value::from),
                fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_row_fits(fields in proptest::collection::vec(("[a-z]{1,6}", any_value()), 0..6), bytes_max in 2_usize..400) {
            let row: Map<String, Value> = fields.into_iter().collect();
            let short = shorten(&serde_json::to_vec(&row).unwrap(), bytes_max);
            prop_assert!(short.len() <= bytes_max);
            let short: Map<String, Value> = serde_json::from_slice(&short).unwrap();
            prop_assert!(short.keys().all(|name| row.contains_key(name)));
        }

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
