//! Orders a second through `validate`, on one core.

use std::hint::black_box;

use arrow::array::{BooleanArray, RecordBatch};
use criterion::{Criterion, Throughput};
use orderflow_operators::decoder::{Decoder, Topic};
use orderflow_operators::epoch::{Epoch, EpochInfo, Place};
use orderflow_operators::rows::orders;
use orderflow_operators::validate::{Predicate, Validate, ValidateSettings};

const EPOCH_ROWS: usize = 16_384;

/// Orders of two lines, of which every `bad`th has an unknown currency.
fn orders(bad: usize) -> RecordBatch {
    let mut decoder = Decoder::new("orders", "inventory");
    for row in 0..EPOCH_ROWS {
        let currency = if row % bad == bad - 1 { "XXX" } else { ["USD", "EUR", "GBP"][row % 3] };
        let message = format!(
            concat!(
                r#"{{"type":"order_placed","order_id":"o-{0}","customer_id":"c-{0}","event_time":{0},"currency":"{1}","total":{2},"#,
                r#""lines":[{{"sku":"SKU-{3}","quantity":3,"unit_price":{4}}},{{"sku":"SKU-7","quantity":1,"unit_price":5}}],"#,
                r#""ip":"10.0.{5}.7","billing_country":"US","shipping_country":"CA"}}"#
            ),
            row,
            currency,
            row * 3 + 5,
            row % 1000,
            row,
            row % 256
        );
        decoder.push(Topic::Orders, Place::new(0, row as i64), message.as_bytes());
    }
    decoder.finish().orders.expect("the messages are orders")
}

/// A rule that cannot be computed for the order at one place.
struct Fails(u64);

impl Predicate for Fails {
    fn name(&self) -> &str {
        "fails"
    }
    fn evaluate(&self, orders: &RecordBatch) -> Result<BooleanArray, String> {
        let places = orderflow_operators::columns::u64s(orders, orderflow_operators::rows::PLACE);
        if places.contains(&self.0) { Err("division by zero".to_owned()) } else { Ok(vec![true; orders.num_rows()].into()) }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let currencies = [("USD", 1_000_000), ("EUR", 1_100_000), ("GBP", 1_300_000)].map(|(name, rate)| (name.to_owned(), rate));
    let settings = ValidateSettings { currencies: currencies.into(), ..ValidateSettings::default() };
    let info = EpochInfo { epoch: Epoch(1), sealed_at: 0, watermark_before: 0, watermark: 0, checkpoint: false };
    let mut group = criterion.benchmark_group("validate");
    group.throughput(Throughput::Elements(EPOCH_ROWS as u64));
    let good = orders(usize::MAX);
    assert_eq!(good.schema(), orders::decoded());
    let rule = || vec![Box::new(Fails(EPOCH_ROWS as u64 / 3)) as Box<dyn Predicate>];
    for (name, rows, predicates) in
        [("all valid", &good, vec![]), ("one in 50 invalid", &orders(50), vec![]), ("a rule fails for one order", &good, rule())]
    {
        let mut validate = Validate::new(settings.clone(), predicates);
        group.bench_function(name, |bencher| bencher.iter(|| black_box(validate.on_epoch(&info, rows))));
    }
    group.finish();
    criterion.final_summary();
}
