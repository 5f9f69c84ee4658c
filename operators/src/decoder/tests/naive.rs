//! The decoder against a naive one over `serde_json::Value`, on valid messages with a few mutations. A failing case prints its seed.

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;
use serde_json::Value;

use super::super::{Decoder, Topic, parse_rfc3339_micros};
use super::{CANCEL, ORDER, RECEIVED};
use crate::columns::{i64s, micros, text, text_at, u8s};
use crate::epoch::Place;
use crate::rows::{lifecycle, movements, orders};

/// A row's content as text, `None` for a malformed message.
fn naive(topic: Topic, message: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(message).ok()?;
    let get = |name: &str| value.get(name);
    let text = |name: &str| get(name)?.as_str();
    let optional = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.to_owned())),
    };
    let time = || match get("event_time")? {
        Value::String(text) => parse_rfc3339_micros(text),
        value => integer(value)?.checked_mul(1000),
    };
    value.as_object()?;
    match (topic, text("type")?) {
        (Topic::Orders, "order_placed") => {
            let lines: Vec<_> = get("lines")?
                .as_array()?
                .iter()
                .map(|line| {
                    Some((line.get("sku")?.as_str()?.to_owned(), integer(line.get("quantity")?)?, integer(line.get("unit_price")?)?))
                })
                .collect::<Option<_>>()?;
            let total = get("total").filter(|total| !total.is_null()).map(|total| integer(total).ok_or(())).transpose().ok()?;
            let payment = get("payment").filter(|payment| !payment.is_null());
            let of_payment = |name: &str| payment.map_or(Some(None), |payment| optional(payment.as_object()?.get(name)));
            let texts = ["device_id", "ip", "billing_country", "shipping_country"].map(|name| optional(get(name)));
            let texts: Vec<_> = [of_payment("method"), of_payment("card_fingerprint")].into_iter().chain(texts).collect::<Option<_>>()?;
            let required = (text("order_id")?, text("customer_id")?, time()?, text("currency")?);
            Some(format!("{required:?} {total:?} {lines:?} {texts:?}"))
        }
        (Topic::Orders, kind @ ("order_cancelled" | "payment_captured" | "order_shipped")) => {
            let kind = ["order_cancelled", "payment_captured", "order_shipped"].iter().position(|k| *k == kind);
            Some(format!("{kind:?} {:?} {}", text("order_id")?, time()?))
        }
        (Topic::Inventory, kind @ ("stock_received" | "stock_removed" | "stock_counted")) => {
            let kind = ["stock_received", "stock_removed", "stock_counted"].iter().position(|k| *k == kind);
            Some(format!("{kind:?} {:?} {:?} {} {}", text("movement_id")?, text("sku")?, integer(get("quantity")?)?, time()?))
        }
        _ => None,
    }
}

/// `serde_json` takes -0 for a fraction.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|number| *number == 0.0 && number.is_sign_negative()).map(|_| 0))
}

/// The same of what the decoder makes.
fn decoded(decoder: &mut Decoder, topic: Topic, message: &[u8]) -> Option<String> {
    decoder.push(topic, Place::new(1, 0), message);
    let decoded = decoder.finish();
    let rows = [&decoded.orders, &decoded.lifecycle, &decoded.movements, &decoded.malformed];
    assert_eq!(rows.into_iter().flatten().map(RecordBatch::num_rows).sum::<usize>(), 1, "a message is one row");
    if let Some(order) = decoded.orders {
        let at = |column: usize| text(&order, column).value(0);
        let lines = order.column(orders::LINES).as_list::<i32>().value(0);
        let lines = lines.as_struct();
        let sku: &StringArray = lines.column(0).as_string();
        let of = |column: usize, row: usize| lines.column(column).as_primitive::<Int64Type>().value(row);
        let lines: Vec<_> = (0..lines.len()).map(|row| (sku.value(row).to_owned(), of(1, row), of(2, row))).collect();
        let total = order.column(orders::TOTAL_GIVEN).as_primitive::<Int64Type>().iter().next().flatten();
        let texts = (orders::PAYMENT_METHOD..=orders::SHIPPING_COUNTRY).map(|column| text_at(text(&order, column), 0));
        let texts: Vec<_> = texts.collect();
        let required = (at(orders::ORDER_ID), at(orders::CUSTOMER_ID), micros(&order, orders::EVENT_TIME)[0], at(orders::CURRENCY));
        return Some(format!("{required:?} {total:?} {lines:?} {texts:?}"));
    }
    if let Some(row) = decoded.lifecycle {
        let kind = Some(usize::from(u8s(&row, lifecycle::KIND)[0]));
        let id = text(&row, lifecycle::ORDER_ID).value(0);
        return Some(format!("{kind:?} {id:?} {}", micros(&row, lifecycle::EVENT_TIME)[0]));
    }
    let row = decoded.movements?;
    let kind = Some(usize::from(u8s(&row, movements::KIND)[0]));
    let (id, sku) = (text(&row, movements::MOVEMENT_ID).value(0), text(&row, movements::SKU).value(0));
    let (quantity, time) = (i64s(&row, movements::QUANTITY)[0], micros(&row, movements::EVENT_TIME)[0]);
    Some(format!("{kind:?} {id:?} {sku:?} {quantity} {time}"))
}

fn agree(topic: Topic, message: &[u8]) -> Result<(), TestCaseError> {
    let shown = String::from_utf8_lossy(message);
    // It refuses numbers beyond a float's range, and takes -0.0 for -0.
    let out_of_range = serde_json::from_slice::<Value>(message).is_err_and(|e| e.to_string().contains("out of range"));
    prop_assume!(!out_of_range && !shown.contains("-0.") && !shown.contains("-0e") && !shown.contains("-0E"));
    let mut decoder = Decoder::new("o", "i");
    // Guesses of names from other messages change nothing.
    for (topic, message) in [(topic, message), (Topic::Orders, ORDER.as_bytes()), (Topic::Orders, CANCEL.as_bytes()), (topic, message)] {
        prop_assert_eq!(decoded(&mut decoder, topic, message), naive(topic, message), "{}", shown);
    }
    Ok(())
}

const FIELDS: [&str; 19] = [
    "type",
    "order_id",
    "customer_id",
    "event_time",
    "currency",
    "total",
    "lines",
    "payment",
    "device_id",
    "ip",
    "billing_country",
    "shipping_country",
    "movement_id",
    "sku",
    "quantity",
    "unit_price",
    "method",
    "card_fingerprint",
    "more",
];
const VALUES: [&str; 32] = [
    "null",
    "true",
    "1",
    "-0",
    "1.0",
    "1e2",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "\"x\"",
    "\"\"",
    "\"a\\u00e9\\n\\\"\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud83d\"",
    "\"ünï\"",
    "[]",
    "{}",
    "[{}]",
    "[[{\"a\":[null,false]}]]",
    "\"2026-01-05T10:00:00+01:00\"",
    "\"order_placed\"",
    "\"payment_captured\"",
    "\"stock_counted\"",
    "[{\"sku\":\"s\",\"quantity\":1,\"unit_price\":2,\"z\":{}}]",
    "[{\"unit_price\":2,\"sku\":\"s\\t\",\"quantity\":1},{\"sku\":\"\",\"quantity\":1,\"quantity\":-2,\"unit_price\":2}]",
    "{\"card_fingerprint\":\"c\",\"z\":1,\"method\":null}",
    "01",
    "+1",
    "'a'",
    "nul",
];

fn examples() -> impl Strategy<Value = (Topic, &'static str)> {
    prop::sample::select(vec![(Topic::Orders, ORDER), (Topic::Orders, CANCEL), (Topic::Inventory, RECEIVED), (Topic::Inventory, ORDER)])
}

/// The fields of a message as they stand there.
fn fields(message: &str) -> Vec<(String, String)> {
    let Ok(Value::Object(fields)) = serde_json::from_str(message) else { panic!("the examples are objects") };
    fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bytes_changed_inserted_dropped_and_cut(
        (topic, message) in examples(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, prop_oneof![
            prop::sample::select(&b"{}[]\",:0123456789-+.eE \\ntfu\x00\xff\xc3"[..]),
            any::<u8>(),
        ]), 0..4),
    ) {
        let mut bytes = message.as_bytes().to_vec();
        for (at, kind, byte) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 if bytes.len() > 1 => { bytes.remove(at); }
                _ => bytes.truncate(at.max(1)),
            }
        }
        agree(topic, &bytes)?;
    }

    #[test]
    fn fields_dropped_repeated_retyped_and_shuffled(
        (topic, message) in examples(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, prop::sample::select(&FIELDS[..]), prop::sample::select(&VALUES[..])), 0..4),
        shuffle in prop::option::of(any::<u64>()),
        space in prop::sample::select(vec!["", " ", "\n\t"]),
    ) {
        let mut fields = fields(message);
        for (at, kind, name, value) in edits {
            let at = at.index(fields.len());
            match kind {
                0 if fields.len() > 1 => { fields.remove(at); }
                1 => fields[at].1 = value.to_owned(),
                2 => fields.insert(at, (fields[at].0.clone(), value.to_owned())),
                _ => fields.insert(at, (name.to_owned(), value.to_owned())),
            }
        }
        if let Some(seed) = shuffle {
            fields.sort_by_key(|(name, value)| crate::keys::hash(format!("{seed}{name}{value}").as_bytes()));
        }
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{space}\"{name}\"{space}:{space}{value}{space}")).collect();
        agree(topic, format!("{space}{{{}}}{space}", fields.join(",")).as_bytes())?;
    }

    #[test]
    fn fields_of_lines_and_payments(
        edits in prop::collection::vec((0u8..3, prop::sample::select(&FIELDS[..]), prop::sample::select(&VALUES[..])), 1..4),
    ) {
        let mut message = ORDER.to_owned();
        for (place, name, value) in edits {
            let before = ["{\"sku\"", "\"unit_price\"", "{\"method\""][usize::from(place)];
            let Some(at) = message.find(before) else { continue };
            let at = at + usize::from(before.starts_with('{'));
            message.insert_str(at, &format!("\"{name}\":{value},"));
        }
        agree(Topic::Orders, message.as_bytes())?;
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,40}") {
        agree(Topic::Orders, &bytes)?;
        agree(Topic::Inventory, text.as_bytes())?;
    }
}
