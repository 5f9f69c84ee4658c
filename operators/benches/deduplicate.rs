//! Orders a second through `deduplicate`, with ever more ids remembered.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
// The tests' orders name their types by `crate::`.
use orderflow_operators::deduplicate::{Deduplicate, DeduplicateSettings};
use orderflow_operators::{rows, validate};

mod support;
#[path = "../src/test_orders.rs"]
mod test_orders;

const EPOCH_ROWS: usize = 16_384;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("deduplicate");
    group.throughput(Throughput::Elements(EPOCH_ROWS as u64)).sample_size(20);
    // The horizon in orders: about as many ids are remembered when it has passed once.
    for (name, orders) in [("100 thousand ids", 100_000), ("1 million ids", 1_000_000)] {
        group.bench_function(name, |bencher| {
            let mut deduplicate = Deduplicate::new(DeduplicateSettings { horizon: orders * 1_000 });
            let mut source = support::Orders::new(100_000);
            while deduplicate.len() < orders as usize {
                let (info, orders) = source.epoch(EPOCH_ROWS);
                deduplicate.on_epoch(&info, Some(&orders));
            }
            bencher.iter_batched(
                || source.epoch(EPOCH_ROWS),
                |(info, orders)| black_box(deduplicate.on_epoch(&info, Some(&orders))),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}
