//! Any bytes are the same message to the decoder and to the serial reference, or no message to both. Several messages, one a line, go through one
//! decoder, lest one leave something behind for the next.

#![no_main]

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use libfuzzer_sys::fuzz_target;
use orderflow_fixtures::Topic as ReferenceTopic;
use orderflow_fixtures::reference::{Lifecycle, LifecycleKind, Line, Message, Movement, MovementKind, Order};
use orderflow_operators::columns::{i64s, micros, text, text_at, u8s, u64s};
use orderflow_operators::decoder::{Decoder, Topic};
use orderflow_operators::epoch::Place;
use orderflow_operators::rows::{PLACE, lifecycle, malformed, movements, orders};

fuzz_target!(|input: &[u8]| {
    let Some((&first, lines)) = input.split_first() else { return };
    let (topic, reference) =
        if first % 2 == 0 { (Topic::Orders, ReferenceTopic::Orders) } else { (Topic::Inventory, ReferenceTopic::Inventory) };
    let messages: Vec<&[u8]> = lines.split(|&byte| byte == b'\n').collect();
    let mut decoder = Decoder::new("orders", "inventory");
    for (offset, message) in messages.iter().enumerate() {
        decoder.push(topic, Place::new(0, offset as i64), message);
    }
    let decoded = decoder.finish();
    let mut seen: Vec<Option<Result<Message, ()>>> = vec![None; messages.len()];
    let mut see = |rows: Option<&RecordBatch>, message: &dyn Fn(&RecordBatch, usize) -> Result<Message, ()>| {
        let Some(rows) = rows else { return };
        for (row, &place) in u64s(rows, PLACE).iter().enumerate() {
            let at = Place(place).offset() as usize;
            assert!(seen[at].replace(message(rows, row)).is_none(), "message {at} gave two rows");
        }
    };
    see(decoded.orders.as_ref(), &|rows, row| Ok(Message::Placed(order(rows, row))));
    see(decoded.lifecycle.as_ref(), &|rows, row| Ok(Message::Lifecycle(happened(rows, row))));
    see(decoded.movements.as_ref(), &|rows, row| Ok(Message::Movement(movement(rows, row))));
    see(decoded.malformed.as_ref(), &|rows, row| {
        let raw = rows.column(malformed::RAW).as_binary::<i32>().value(row);
        assert_eq!(raw, messages[Place(u64s(rows, PLACE)[row]).offset() as usize]);
        assert!(!text(rows, malformed::ERROR).value(row).is_empty());
        Err(())
    });
    for (message, seen) in messages.iter().zip(seen) {
        let seen = seen.expect("each message gives a row");
        let expected = Message::parse(reference, message);
        assert_eq!(seen, expected.clone().map_err(|_| ()), "{} ({expected:?})", String::from_utf8_lossy(message));
    }
});

fn owned(rows: &RecordBatch, column: usize, row: usize) -> String {
    text(rows, column).value(row).to_owned()
}

fn optional(rows: &RecordBatch, column: usize, row: usize) -> Option<String> {
    text_at(text(rows, column), row).map(str::to_owned)
}

fn order(rows: &RecordBatch, row: usize) -> Order {
    let lines = rows.column(orders::LINES).as_list::<i32>().value(row);
    let lines = lines.as_struct();
    let (skus, of) = (lines.column(0).as_string::<i32>(), |column: usize| lines.column(column).as_primitive::<Int64Type>());
    let line = |at: usize| Line { sku: skus.value(at).to_owned(), quantity: of(1).value(at), unit_price: of(2).value(at) };
    let total = rows.column(orders::TOTAL_GIVEN).as_primitive::<Int64Type>();
    Order {
        order_id: owned(rows, orders::ORDER_ID, row),
        customer_id: owned(rows, orders::CUSTOMER_ID, row),
        event_time: micros(rows, orders::EVENT_TIME)[row],
        currency: owned(rows, orders::CURRENCY, row),
        total: total.is_valid(row).then(|| total.value(row)),
        lines: (0..lines.len()).map(line).collect(),
        card_fingerprint: optional(rows, orders::CARD_FINGERPRINT, row),
        device_id: optional(rows, orders::DEVICE_ID, row),
        ip: optional(rows, orders::IP, row),
        billing_country: optional(rows, orders::BILLING_COUNTRY, row),
        shipping_country: optional(rows, orders::SHIPPING_COUNTRY, row),
    }
}

fn happened(rows: &RecordBatch, row: usize) -> Lifecycle {
    let kind = match lifecycle::LifecycleKind::from_u8(u8s(rows, lifecycle::KIND)[row]) {
        lifecycle::LifecycleKind::Cancelled => LifecycleKind::OrderCancelled,
        lifecycle::LifecycleKind::Captured => LifecycleKind::PaymentCaptured,
        lifecycle::LifecycleKind::Shipped => LifecycleKind::OrderShipped,
    };
    Lifecycle { kind, order_id: owned(rows, lifecycle::ORDER_ID, row), event_time: micros(rows, lifecycle::EVENT_TIME)[row] }
}

fn movement(rows: &RecordBatch, row: usize) -> Movement {
    let kind = match movements::MovementKind::from_u8(u8s(rows, movements::KIND)[row]) {
        movements::MovementKind::Received => MovementKind::StockReceived,
        movements::MovementKind::Removed => MovementKind::StockRemoved,
        movements::MovementKind::Counted => MovementKind::StockCounted,
    };
    Movement {
        kind,
        movement_id: owned(rows, movements::MOVEMENT_ID, row),
        sku: owned(rows, movements::SKU, row),
        quantity: i64s(rows, movements::QUANTITY)[row],
        event_time: micros(rows, movements::EVENT_TIME)[row],
    }
}
