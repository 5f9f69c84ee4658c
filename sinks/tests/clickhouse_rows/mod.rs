//! Rows for the sink's tests: a function of epoch and position, so that a replay writes the same.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use orderflow_operators::features::WindowSet;
use orderflow_operators::rows::detail_type;
use orderflow_operators::streams::Stream;

/// 2026-01-05T10:00:00Z.
const START: i64 = 1_767_607_200_000_000;

/// From one epoch's sealing to the next's: ten days, so that inserts have rows of two partitions.
const EPOCH_STEP: i64 = 10 * 86_400_000_000;

/// The least and the greatest that a column holds, the ends of what RFC 3339 can say, those of ClickHouse's own types, and around zero.
pub const EXTREME_TIMES: [i64; 12] = [
    i64::MIN,
    i64::MAX,
    -62_167_219_200_000_000, // 0000-01-01
    -62_135_596_800_000_000, // 0001-01-01
    253_402_300_799_999_999, // 9999-12-31T23:59:59.999999
    -2_208_988_800_000_001,  // before 1900
    10_413_792_000_000_000,  // 2300
    4_294_967_296_000_000,   // after the last second of 32 bits
    0,
    -1,
    1,
    START,
];

/// SplitMix64, see Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
pub struct Random(pub u64);

impl Random {
    /// Seeded by `TEST_SEED`, or anew; prints the seed.
    pub fn new() -> Random {
        let nanos = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("TEST_SEED").ok().map_or_else(nanos, |seed| seed.parse().unwrap());
        eprintln!("TEST_SEED={seed}");
        Random(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn ints(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}
fn ints_or_null(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<Int64Array>())
}
fn splits(values: impl Iterator<Item = Option<i32>>) -> ArrayRef {
    Arc::new(values.collect::<Int32Array>())
}
fn texts(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}
fn texts_or_null<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}
fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn batch(stream: Stream, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(stream.schema(&WindowSet::default()), columns).unwrap()
}

/// Of ten orders in a row four are accepted, two reviewed, one each fraud, out of stock, invalid and duplicate; ten a second.
pub fn decisions(epoch: u64, rows: u64) -> RecordBatch {
    let first = (epoch - 1) * rows;
    decisions_at(epoch, &(first..first + rows).map(|n| START + n as i64 * 100_000).collect::<Vec<_>>())
}

/// As [`decisions`], with these event times.
pub fn decisions_at(epoch: u64, event_times: &[i64]) -> RecordBatch {
    const KINDS: [(&str, &str); 10] = [
        ("accepted", ""),
        ("accepted", ""),
        ("accepted", ""),
        ("accepted", ""),
        ("review", ""),
        ("review", ""),
        ("rejected", "fraud"),
        ("rejected", "out_of_stock"),
        ("rejected", "invalid"),
        ("rejected", "duplicate"),
    ];
    let n = event_times.len() as i64;
    let kind = |i: i64| KINDS[i as usize % 10];
    let scored = |i: i64| i % 10 < 8;
    let schema = Stream::OrderDecisions.schema(&WindowSet::default());
    let column = |name: &str| -> ArrayRef {
        match name {
            "epoch" => ints((0..n).map(|_| epoch as i64)),
            "split" => splits((0..n).map(|_| Some(1))),
            "offset" => ints(0..n),
            "order_id" => texts((0..n).map(|i| format!("o-{epoch}-{i}"))),
            "customer_id" => texts((0..n).map(|i| format!("c-{}", i % 100))),
            "event_time" => times(event_times.iter().copied()),
            "currency" => texts((0..n).map(|i| ["EUR", "JPY", "USD"][i as usize % 3].to_owned())),
            "total" => ints_or_null((0..n).map(|i| scored(i).then_some(100 * i + epoch as i64))),
            "amount" => ints_or_null((0..n).map(|i| scored(i).then_some(90 * i))),
            "line_count" => ints((0..n).map(|i| 1 + i % 4)),
            "unit_count" => ints_or_null((0..n).map(|i| scored(i).then_some(2 + i % 4))),
            "decision" => texts((0..n).map(|i| kind(i).0.to_owned())),
            "reason" => texts((0..n).map(|i| kind(i).1.to_owned())),
            "detail" => {
                let DataType::List(item) = detail_type() else { panic!("detail is a list") };
                let mut list = ListBuilder::new(StringBuilder::new()).with_field(item);
                for i in 0..n {
                    list.append_value(match kind(i).1 {
                        "out_of_stock" => vec![Some(format!("SKU-{}", i / 10 % 5)), Some("SKU-9".to_owned())],
                        "invalid" => vec![Some("bad_price".to_owned())],
                        _ => vec![],
                    });
                }
                Arc::new(list.finish())
            }
            "fraud_score" => Arc::new((0..n).map(|i| scored(i).then_some((i % 10) as f64 / 10.0)).collect::<Float64Array>()),
            "model" => texts_or_null((0..n).map(|i| scored(i).then_some("baseline/1"))),
            "billing_country" => texts_or_null((0..n).map(|i| [Some("DE"), None, Some("US")][i as usize % 3])),
            "shipping_country" => texts_or_null((0..n).map(|i| [None, Some("FR")][i as usize % 2])),
            "sealed_at" => times((0..n).map(|_| START + epoch as i64 * EPOCH_STEP)),
            _feature => ints_or_null((0..n).map(|i| scored(i).then_some(i))),
        }
    };
    batch(Stream::OrderDecisions, schema.fields().iter().map(|field| column(field.name())).collect())
}

/// One line for each of these event times.
pub fn lines(epoch: u64, event_times: &[i64]) -> RecordBatch {
    let n = event_times.len() as i64;
    let columns = vec![
        ints((0..n).map(|_| epoch as i64)),
        splits((0..n).map(|_| Some(1))),
        ints(0..n),
        texts((0..n).map(|i| format!("o-{epoch}-{i}"))),
        texts((0..n).map(|i| format!("c-{}", i % 100))),
        times(event_times.iter().copied()),
        texts((0..n).map(|i| format!("SKU-{}", i % 50))),
        ints((0..n).map(|i| 1 + i % 3)),
        ints((0..n).map(|_| 250)),
        ints((0..n).map(|i| 250 * (1 + i % 3))),
    ];
    batch(Stream::OrderLines, columns)
}

/// A few rows of each stream, with nulls, and bytes that are no text.
pub fn sample(stream: Stream) -> RecordBatch {
    let epochs = |n: usize| ints(std::iter::repeat_n(3, n));
    match stream {
        Stream::OrderDecisions => decisions(3, 10),
        Stream::OrderLines => lines(3, &[START, START + 1]),
        Stream::ReservationEvents => batch(
            stream,
            vec![
                epochs(3),
                splits([Some(1), Some(2), None].into_iter()),
                ints_or_null([Some(10), Some(11), None].into_iter()),
                texts(["o-1", "o-2", "o-3"].map(String::from).into_iter()),
                texts_or_null([Some("SKU-1"), None, Some("SKU-3")].into_iter()),
                ints_or_null([Some(2), None, Some(4)].into_iter()),
                texts(["held", "ignored", "expired"].map(String::from).into_iter()),
                times([START, START + 1, START - 1].into_iter()),
                ints_or_null([Some(i64::MAX), None, Some(0)].into_iter()),
                ints_or_null([Some(2), None, Some(0)].into_iter()),
            ],
        ),
        Stream::StockMovements => batch(
            stream,
            vec![
                epochs(2),
                splits([Some(0), Some(0)].into_iter()),
                ints([0, 1].into_iter()),
                texts(["m-1", "m-'\"\\\n?"].map(String::from).into_iter()),
                texts(["SKU-1", "SKU-ü"].map(String::from).into_iter()),
                texts(["stock_received", "stock_counted"].map(String::from).into_iter()),
                ints([100, i64::MIN].into_iter()),
                times([START, START].into_iter()),
                ints([100, -1].into_iter()),
                ints([0, 7].into_iter()),
            ],
        ),
        Stream::DeadLetters => batch(
            stream,
            vec![
                epochs(2),
                splits([Some(1), Some(1)].into_iter()),
                ints([5, 6].into_iter()),
                texts(["orders", "orders"].map(String::from).into_iter()),
                Arc::new(BinaryArray::from_iter_values([&b"{\"a\":\xff\x00"[..], b""])),
                texts(["invalid UTF-8", "empty"].map(String::from).into_iter()),
            ],
        ),
    }
}
