//! Orders a second through `reserve`, desk and stock on one worker: with stock for all, and with stock that runs out.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt8Array, UInt64Array};
use arrow::datatypes::DataType;
use criterion::{BatchSize, Criterion, Throughput};
use orderflow_operators::columns::append;
use orderflow_operators::epoch::{EpochInfo, Micros};
use orderflow_operators::features::WindowSet;
use orderflow_operators::reserve::{Desk, ReserveSettings, Stock, scored_schema};
use orderflow_operators::rows::movements;
use orderflow_operators::score::Thresholds;
// The tests' orders name their types by `crate::`.
use orderflow_operators::{rows, validate};

mod support;
#[path = "../src/test_orders.rs"]
mod test_orders;

const EPOCH_ROWS: usize = 16_384;
/// Of the benches' orders.
const SKUS: usize = 100_003;
/// A minute, so that holds expire as fast as they come.
const HOLD: Micros = 60_000_000;

/// A desk and its stock, as one worker has them.
struct Reserve {
    desk: Desk,
    stock: Stock,
}

impl Reserve {
    fn new(windows: &WindowSet) -> Self {
        let thresholds = Thresholds { reject: 0.9, review: 0.7 };
        let settings = ReserveSettings { hold: HOLD, thresholds, model: "bench/1".into(), windows: windows.clone() };
        Reserve { desk: Desk::new(0, settings), stock: Stock::new(0) }
    }

    /// An epoch's rounds, to the end; gives the rows of all streams.
    fn epoch(&mut self, info: &EpochInfo, orders: Option<RecordBatch>, received: Option<RecordBatch>) -> usize {
        let requests = self.desk.begin(orders, None);
        let mut verdicts = self.stock.begin(received, requests);
        while let Some(batch) = verdicts.take() {
            if let Some(decisions) = self.desk.hear(&[batch]) {
                verdicts = self.stock.decide(&[decisions]);
            }
        }
        assert!(self.desk.is_complete(), "every order is decided");
        let finished = self.desk.finish(info);
        if let Some(expiries) = finished.expiries {
            self.stock.expire(expiries);
        }
        let settled = self.stock.settle();
        [finished.decisions, finished.lines, settled.events].iter().flatten().map(RecordBatch::num_rows).sum()
    }
}

/// Each SKU receives `quantity` units.
fn received(quantity: i64) -> RecordBatch {
    let names: StringArray = (0..SKUS).map(|n| Some(format!("SKU-{n}"))).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(0..SKUS as u64)),
        Arc::new(UInt8Array::from(vec![movements::MovementKind::Received as u8; SKUS])),
        Arc::new(names.clone()),
        Arc::new(names),
        Arc::new(Int64Array::from(vec![quantity; SKUS])),
        Arc::new(TimestampMicrosecondArray::from(vec![0; SKUS]).with_timezone("UTC")),
    ];
    RecordBatch::try_new(movements::schema(), columns).expect("the columns are those of the schema")
}

/// Validated orders as they come from `score`: no key was seen before, none is suspicious.
fn scored(orders: &RecordBatch, windows: &WindowSet) -> RecordBatch {
    let schema = scored_schema(windows);
    let rows = orders.num_rows();
    let added = schema.fields()[orders.num_columns()..].iter().map(|field| match field.data_type() {
        DataType::Float64 => Arc::new(Float64Array::from(vec![0.1; rows])) as ArrayRef,
        _ => Arc::new(Int64Array::from(vec![1; rows])) as ArrayRef,
    });
    append(orders, &schema, added)
}

fn main() {
    let windows = WindowSet::default();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("reserve");
    group.throughput(Throughput::Elements(EPOCH_ROWS as u64)).sample_size(20);
    for (name, quantity) in [("stock for all", 1_000_000), ("stock for some", 1)] {
        group.bench_function(name, |bencher| {
            let mut reserve = Reserve::new(&windows);
            let mut source = support::Orders::new(300_000);
            let (info, _) = source.epoch(0);
            reserve.epoch(&info, None, Some(received(quantity)));
            let mut next = || {
                let (info, orders) = source.epoch(EPOCH_ROWS);
                (info, Some(scored(&orders, &windows)))
            };
            // Until as many holds expire as are made.
            for _ in 0..10 {
                let (info, orders) = next();
                reserve.epoch(&info, orders, None);
            }
            bencher.iter_batched(next, |(info, orders)| black_box(reserve.epoch(&info, orders, None)), BatchSize::PerIteration);
        });
    }
    group.finish();
    criterion.final_summary();
}
