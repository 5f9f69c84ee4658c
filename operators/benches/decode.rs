//! Messages and bytes a second through the decoder, from JSON to columns, on one core.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use orderflow_operators::decoder::{Decoder, Topic};
use orderflow_operators::epoch::Place;
use orderflow_operators::keys::hash;

const EPOCH_ROWS: usize = 16_384;

fn draw(what: &str, row: usize, of: u64) -> u64 {
    hash(format!("{what}{row}").as_bytes()) % of
}

/// An order like the specification's, of 1.8 lines in the mean; the same on every run.
fn order(row: usize) -> String {
    let line_count = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3][draw("lines", row, 10) as usize];
    let (mut total, mut lines) = (0, Vec::new());
    for line in 0..line_count {
        let (quantity, unit_price) = (1 + draw("quantity", row + line, 4), 199 + draw("price", row + line, 20_000));
        total += quantity * unit_price;
        let sku = draw("sku", row + line, 100_000);
        lines.push(format!(r#"{{"sku":"SKU-{sku}","quantity":{quantity},"unit_price":{unit_price}}}"#));
    }
    let customer = draw("customer", row, 1_000_000);
    format!(
        concat!(
            r#"{{"type":"order_placed","order_id":"o-{}","customer_id":"c-{}","event_time":"2026-01-05T10:{:02}:{:02}.{:03}Z","#,
            r#""currency":"{}","total":{},"lines":[{}],"payment":{{"method":"card","card_fingerprint":"{:04x}"}},"#,
            r#""device_id":"d-{}","ip":"10.{}.{}.7","billing_country":"US","shipping_country":"{}"}}"#
        ),
        row,
        customer,
        row / 60_000 % 60,
        row / 1000 % 60,
        row % 1000,
        ["USD", "EUR", "GBP"][draw("currency", row, 3) as usize],
        total,
        lines.join(","),
        draw("card", row, 1 << 16),
        draw("device", row, 10_000),
        customer % 251,
        customer % 241,
        if draw("abroad", row, 20) == 0 { "CA" } else { "US" },
    )
}

fn cancelled(row: usize) -> String {
    format!(r#"{{"type":"order_cancelled","order_id":"o-{row}","event_time":"2026-01-05T10:00:00.{:03}Z"}}"#, row % 1000)
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let orders: Vec<String> = (0..EPOCH_ROWS).map(order).collect();
    let mixed = orders.iter().enumerate().map(|(row, order)| if row % 3 == 0 { cancelled(row) } else { order.clone() });
    let inputs = [
        ("mixed with cancellations", mixed.collect::<Vec<_>>()),
        ("with an escape each", orders.iter().map(|order| order.replace("\"c-", "\"c\\u002d")).collect()),
        (
            "each malformed at its end",
            orders.iter().map(|order| order.replace("\"shipping_country\":\"", "\"shipping_country\":\"\n")).collect(),
        ),
        ("orders", orders),
    ];
    let mut group = criterion.benchmark_group("decode");
    for (name, messages) in &inputs {
        let bytes = messages.iter().map(String::len).sum::<usize>() as u64;
        group.throughput(Throughput::ElementsAndBytes { elements: messages.len() as u64, bytes });
        group.bench_function(*name, |bencher| {
            let mut decoder = Decoder::new("orders", "inventory");
            bencher.iter(|| {
                for (offset, message) in messages.iter().enumerate() {
                    decoder.push(Topic::Orders, Place::new(0, offset as i64), message.as_bytes());
                }
                black_box(decoder.finish())
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
