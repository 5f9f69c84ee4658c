use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use expect_test::{Expect, expect};

use super::*;
use crate::columns::{i64s, micros, text};
use crate::rows::{lifecycle, malformed, movements, orders};

mod naive;

const ORDER: &str = r#"{"type":"order_placed","order_id":"o-1","customer_id":"c-42","event_time":"2026-01-05T10:00:00.123Z","currency":"USD","total":5997,"lines":[{"sku":"SKU-17","quantity":3,"unit_price":1999}],"payment":{"method":"card","card_fingerprint":"f3a1"},"device_id":"d-9","ip":"203.0.113.7","billing_country":"US","shipping_country":"US"}"#;
const CANCEL: &str = r#"{"type":"order_cancelled","order_id":"o-1","event_time":0}"#;
const RECEIVED: &str = r#"{"type":"stock_received","movement_id":"m-1","sku":"SKU-17","quantity":100,"event_time":1}"#;

fn decode(topic: Topic, messages: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new("orders", "inventory");
    for (offset, message) in messages.iter().enumerate() {
        decoder.push(topic, Place::new(1, offset as i64), message);
    }
    decoder.finish()
}

/// What a message decodes to: its row, or its error.
#[track_caller]
fn check(topic: Topic, message: &str, expected: Expect) {
    let decoded = decode(topic, &[message.as_bytes()]);
    let unknown = decoded.unknown_fields;
    let mut shown = match &decoded.malformed {
        Some(dead) => format!("malformed: {}\n", text(dead, malformed::ERROR).value(0)),
        None => String::new(),
    };
    for batch in [decoded.orders, decoded.lifecycle, decoded.movements].into_iter().flatten() {
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            // Times as microseconds.
            let column =
                if field.name() == "event_time" { arrow::compute::cast(column, &DataType::Int64).unwrap() } else { column.clone() };
            let options = FormatOptions::default().with_null("null");
            shown += &format!("{}: {}\n", field.name(), ArrayFormatter::try_new(&column, &options).unwrap().value(0));
        }
    }
    if unknown > 0 {
        shown += &format!("unknown fields: {unknown}\n");
    }
    expected.assert_eq(&shown);
}

#[track_caller]
fn malformed(message: &str, expected: Expect) {
    check(Topic::Orders, message, expected);
}

#[test]
fn an_order() {
    check(
        Topic::Orders,
        ORDER,
        expect![[r#"
        place: 281474976710656
        order_id: o-1
        customer_id: c-42
        event_time: 1767607200123000
        currency: USD
        total_given: 5997
        lines: [{sku: SKU-17, quantity: 3, unit_price: 1999}]
        payment_method: card
        card_fingerprint: f3a1
        device_id: d-9
        ip: 203.0.113.7
        billing_country: US
        shipping_country: US
    "#]],
    );
    let least = r#"{"lines":[],"event_time":-1,"currency":"","customer_id":"","order_id":"","total":null,"payment":null,"ip":null,"type":"order_placed"}"#;
    check(
        Topic::Orders,
        least,
        expect![[r#"
        place: 281474976710656
        order_id: 
        customer_id: 
        event_time: -1000
        currency: 
        total_given: null
        lines: []
        payment_method: null
        card_fingerprint: null
        device_id: null
        ip: null
        billing_country: null
        shipping_country: null
    "#]],
    );
}

#[test]
fn the_other_messages() {
    check(
        Topic::Orders,
        CANCEL,
        expect![[r#"
        place: 281474976710656
        kind: 0
        order_id: o-1
        event_time: 0
    "#]],
    );
    check(
        Topic::Inventory,
        RECEIVED,
        expect![[r#"
        place: 281474976710656
        kind: 0
        movement_id: m-1
        sku: SKU-17
        quantity: 100
        event_time: 1000
    "#]],
    );
}

#[test]
fn schemas_and_progress() {
    let decoded = decode(Topic::Orders, &[ORDER.as_bytes(), CANCEL.as_bytes(), b"{"]);
    assert_eq!(decoded.orders.unwrap().schema(), orders::decoded());
    assert_eq!(decoded.lifecycle.unwrap().schema(), lifecycle::schema());
    assert_eq!(decoded.malformed.unwrap().schema(), malformed::schema());
    assert_eq!(decoded.progress, [SplitProgress { split: 1, rows: 3, event_time_max: Some(1_767_607_200_123_000) }]);
    let decoded = decode(Topic::Inventory, &[RECEIVED.as_bytes()]);
    assert_eq!(decoded.movements.unwrap().schema(), movements::schema());
    assert!(decoded.progress.is_empty());
}

#[test]
fn splits_one_after_the_other() {
    let mut decoder = Decoder::new("orders", "inventory");
    decoder.push(Topic::Inventory, Place::new(0, 7), RECEIVED.as_bytes());
    decoder.push(Topic::Orders, Place::new(1, 0), b"no");
    decoder.push(Topic::Orders, Place::new(2, 5), CANCEL.as_bytes());
    decoder.push(Topic::Orders, Place::new(2, 6), &CANCEL.replace(":0}", ":-5}").into_bytes());
    let decoded = decoder.finish();
    let progress = |split, rows, event_time_max| SplitProgress { split, rows, event_time_max };
    assert_eq!(decoded.progress, [progress(1, 1, None), progress(2, 2, Some(0))]);
    // Nothing of it is left.
    let empty = decoder.finish();
    assert!(empty.orders.is_none() && empty.lifecycle.is_none() && empty.movements.is_none() && empty.malformed.is_none());
    assert!(empty.progress.is_empty());
}

#[test]
fn what_is_no_message() {
    malformed(
        "",
        expect![[r#"
        malformed: empty message
    "#]],
    );
    malformed(
        " ",
        expect![[r#"
        malformed: invalid JSON at byte 1: ends too early
    "#]],
    );
    malformed(
        "[1, 2] ",
        expect![[r#"
        malformed: expected an object, found [1, 2]
    "#]],
    );
    malformed(
        "[1, 2",
        expect![[r#"
        malformed: invalid JSON at byte 5: expected `,` or `]`
    "#]],
    );
    malformed(
        "{",
        expect![[r#"
        malformed: invalid JSON at byte 1: expected a field's name
    "#]],
    );
    malformed(
        "{}",
        expect![[r#"
        malformed: missing field type
    "#]],
    );
    malformed(
        &format!("{ORDER} x"),
        expect![[r#"
        malformed: invalid JSON at byte 328: more behind the message's end
    "#]],
    );
    malformed(
        &ORDER[..100],
        expect![[r#"
        malformed: invalid JSON at byte 100: expected `,` or `}`
    "#]],
    );
    malformed(
        &CANCEL.replace("o-1", "a\nb"),
        expect![[r#"
        malformed: invalid JSON at byte 39: control character in a string
    "#]],
    );
    malformed(
        &CANCEL.replace("o-1", "\\ud800"),
        expect![[r#"
        malformed: invalid JSON at byte 44: lone surrogate
    "#]],
    );
    malformed(
        &CANCEL.replace("{", "{\"x\":[1,{\"y\":01}],"),
        expect![[r#"
        malformed: invalid JSON at byte 13: number with a leading zero
    "#]],
    );
    malformed(
        &CANCEL.replace("{", "{\"\\udfff\":1,"),
        expect![[r#"
        malformed: invalid JSON at byte 8: lone surrogate
    "#]],
    );
    let decoded = decode(Topic::Orders, &[b"{\"type\":\"\xff\"}"]);
    expect!["invalid UTF-8 at byte 9"].assert_eq(text(&decoded.malformed.unwrap(), malformed::ERROR).value(0));
}

#[test]
fn wrong_fields_are_named() {
    let order = |from: &str, to: &str, expected: Expect| {
        assert!(ORDER.contains(from), "{from}");
        malformed(&ORDER.replacen(from, to, 1), expected);
    };
    order(
        "order_placed",
        "order_refunded",
        expect![[r#"
        malformed: unknown type "order_refunded"
    "#]],
    );
    order(
        "order_placed",
        "stock_received",
        expect![[r#"
        malformed: unknown type "stock_received"
    "#]],
    );
    order(
        "\"order_placed\"",
        "1",
        expect![[r#"
        malformed: field type: expected a text, found 1
    "#]],
    );
    order(
        "customer_id",
        "customer",
        expect![[r#"
        malformed: missing field customer_id
    "#]],
    );
    order(
        "\"c-42\"",
        "null",
        expect![[r#"
        malformed: field customer_id: expected a text, found null
    "#]],
    );
    order(
        "5997",
        "5997.0",
        expect![[r#"
        malformed: field total: expected an integer of 64 bits, found 5997.0
    "#]],
    );
    order(
        "5997",
        "9223372036854775808",
        expect![[r#"
        malformed: field total: expected an integer of 64 bits, found 9223372036854775808
    "#]],
    );
    order(
        "\"quantity\":3",
        "\"quantity\":\"3\"",
        expect![[r#"
        malformed: field lines[0].quantity: expected an integer of 64 bits, found "3"
    "#]],
    );
    order(
        "\"unit_price\":1999",
        "\"unit_price\":1e3",
        expect![[r#"
        malformed: field lines[0].unit_price: expected an integer of 64 bits, found 1e3
    "#]],
    );
    order(
        "\"unit_price\":1999",
        "\"unit\":1999",
        expect![[r#"
        malformed: missing field lines[0].unit_price
    "#]],
    );
    order(
        "{\"sku\":\"SKU-17\"",
        "{\"sku\":[]",
        expect![[r#"
        malformed: field lines[0].sku: expected a text, found []
    "#]],
    );
    order(
        "}]",
        "},5]",
        expect![[r#"
        malformed: field lines[1]: expected an object, found 5
    "#]],
    );
    order(
        r#"[{"sku":"SKU-17","quantity":3,"unit_price":1999}]"#,
        "{}",
        expect![[r#"
        malformed: field lines: expected a list, found {}
    "#]],
    );
    order(
        "{\"method\":\"card\",\"card_fingerprint\":\"f3a1\"}",
        "\"card\"",
        expect![[r#"
        malformed: field payment: expected an object, found "card"
    "#]],
    );
    order(
        "\"f3a1\"",
        "17",
        expect![[r#"
        malformed: field payment.card_fingerprint: expected a text, found 17
    "#]],
    );
    order(
        "2026-01-05T",
        "2026-13-05T",
        expect![[r#"
        malformed: field event_time: expected a time as RFC 3339 with an offset, or integer milliseconds since 1970, found "2026-13-05T10:00:00.123Z"
    "#]],
    );
    order(
        "\"2026-01-05T10:00:00.123Z\"",
        "9223372036854776",
        expect![[r#"
        malformed: field event_time: expected a time as RFC 3339 with an offset, or integer milliseconds since 1970, found 9223372036854776
    "#]],
    );
    order(
        "\"US\"",
        &format!("[\"{}\"]", "ü".repeat(100)),
        expect![[r#"
        malformed: field billing_country: expected a text, found ["üüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüü…
    "#]],
    );
}

/// The life-cycle message, and its unknown fields.
#[track_caller]
fn good(message: &str) -> (RecordBatch, u64) {
    let decoded = decode(Topic::Orders, &[message.as_bytes()]);
    assert!(decoded.malformed.is_none(), "{message}: {:?}", decoded.malformed);
    (decoded.lifecycle.unwrap(), decoded.unknown_fields)
}

#[test]
fn unusual_but_good() {
    let id = |message: &str| text(&good(message).0, lifecycle::ORDER_ID).value(0).to_owned();
    assert_eq!(id(&CANCEL.replace("o-1", "\\u0041\\ud83d\\ude00\\n")), "A😀\n");
    assert_eq!(id(&CANCEL.replace("order_id", "order\\u005fid")), "o-1");
    assert_eq!(id(&CANCEL.replace("\"event_time\"", "\"order_id\":\"o-2\",\"event_time\"")), "o-2");
    assert_eq!(id(&CANCEL.replace("{", "{\"order_id\":7,")), "o-1");
    assert_eq!(id(&CANCEL.replace(':', " :\n").replace(',', "\t, ")), "o-1");
    assert_eq!(id(&format!(" \t{CANCEL}\r\n")), "o-1");
    assert_eq!(micros(&good(&CANCEL.replace(":0}", ":-0}")).0, lifecycle::EVENT_TIME), [0]);
}

#[test]
fn fields_of_other_messages_are_unknown_whatever_they_hold() {
    let unknown = |message: &str| good(message).1;
    assert_eq!(unknown(CANCEL), 0);
    assert_eq!(unknown(&CANCEL.replace("}", ",\"lines\":7,\"payment\":{\"method\":1,\"x\":2},\"x\":[1e999,{\"y\":\"\\\"\"}]}")), 3);
    assert_eq!(unknown(&CANCEL.replace("}", ",\"sku\":{},\"unit_price\":\"\"}")), 2);
    // In an order they are counted at every level, of the last of repeated fields.
    let order = ORDER.replace("{\"sku\"", "{\"x\":0,\"type\":0,\"sku\"").replace("{\"method\"", "{\"x\":0,\"method\"").replacen(
        '{',
        "{\"x\":0,\"quantity\":0,\"lines\":[{\"x\":0}],\"payment\":{\"x\":0},",
        1,
    );
    let decoded = decode(Topic::Orders, &[order.as_bytes()]);
    assert!(decoded.malformed.is_none());
    assert_eq!(decoded.unknown_fields, 5);
}

#[test]
fn the_last_of_repeated_fields_counts_as_a_whole() {
    let order = ORDER.replacen('{', r#"{"lines":[5],"payment":{"method":7},"#, 1);
    assert!(decode(Topic::Orders, &[order.as_bytes()]).malformed.is_none());
    let order = format!(r#"{},"lines":[],"payment":{{}}}}"#, &ORDER[..ORDER.len() - 1]);
    let orders = decode(Topic::Orders, &[order.as_bytes()]).orders.unwrap();
    assert_eq!(orders.column(orders::LINES).as_list::<i32>().value_length(0), 0);
    assert!(orders.column(orders::PAYMENT_METHOD).is_null(0) && orders.column(orders::CARD_FINGERPRINT).is_null(0));
    let order = format!(r#"{},"lines":[5]}}"#, &ORDER[..ORDER.len() - 1]);
    malformed(
        &order,
        expect![[r#"
        malformed: field lines[0]: expected an object, found 5
    "#]],
    );
}

#[test]
fn nesting() {
    for (depth, is_good) in [(127, true), (128, false), (1_000_000, false)] {
        for open in ["[", "{\"a\":"] {
            let close = if open == "[" { "]" } else { "}" };
            let message = CANCEL.replace(":0}", &format!(":0,\"x\":{}1{}}}", open.repeat(depth), close.repeat(depth)));
            assert_eq!(decode(Topic::Orders, &[message.as_bytes()]).malformed.is_none(), is_good, "{depth} {open}");
        }
    }
}

#[test]
fn nesting_in_lines_and_payments() {
    // The message is level 1, the list of lines 2, a line 3; a payment is level 2.
    for (before, depth) in [("{\"sku\"", 125), ("{\"method\"", 126)] {
        for (depth, is_good) in [(depth, true), (depth + 1, false)] {
            let nested = format!("{{\"x\":{}{},{}", "[".repeat(depth), "]".repeat(depth), &before[1..]);
            assert_eq!(
                decode(Topic::Orders, &[ORDER.replace(before, &nested).as_bytes()]).malformed.is_none(),
                is_good,
                "{before} {depth}"
            );
        }
    }
}

#[test]
fn malformed_messages_leave_no_trace_but_their_bytes() {
    let broken = ORDER.replace("\"US\"", "1");
    let decoded = decode(Topic::Orders, &[b"\xff\x00", ORDER.as_bytes(), broken.as_bytes(), CANCEL.as_bytes(), b"{", ORDER.as_bytes()]);
    let dead = decoded.malformed.unwrap();
    let raw: Vec<_> = dead.column(malformed::RAW).as_binary::<i32>().iter().flatten().collect();
    assert_eq!(raw, [&b"\xff\x00"[..], broken.as_bytes(), b"{"]);
    let orders = decoded.orders.unwrap();
    let alone = decode(Topic::Orders, &[ORDER.as_bytes()]).orders.unwrap();
    for column in 1..orders.num_columns() {
        assert_eq!(&orders.column(column).slice(0, 1), alone.column(column));
        assert_eq!(&orders.column(column).slice(1, 1), alone.column(column));
    }
}

#[test]
fn an_oversized_message() {
    let mut decoder = Decoder::new("o", "i");
    decoder.push_oversized(Topic::Inventory, Place::new(0, 5), b"{\"ty", 99);
    let dead = decoder.finish().malformed.unwrap();
    assert_eq!(text(&dead, malformed::TOPIC).value(0), "i");
    expect!["message of 99 bytes, more than source.message_bytes_max = 4: only its start is kept"]
        .assert_eq(text(&dead, malformed::ERROR).value(0));
}

#[test]
fn guesses_of_names_change_no_result() {
    let swapped = r#"{"event_time":0,"order_id":"o-1","type":"order_cancelled"}"#;
    let mixed: Vec<&[u8]> = vec![CANCEL.as_bytes(), swapped.as_bytes(), ORDER.as_bytes(), CANCEL.as_bytes(), swapped.as_bytes()];
    let decoded = decode(Topic::Orders, &mixed);
    assert!(decoded.malformed.is_none());
    let cancelled = decoded.lifecycle.unwrap();
    assert!(text(&cancelled, lifecycle::ORDER_ID).iter().all(|id| id == Some("o-1")));
    assert_eq!(i64s(&decode(Topic::Inventory, &[RECEIVED.as_bytes()]).movements.unwrap(), movements::QUANTITY), [100]);
}
