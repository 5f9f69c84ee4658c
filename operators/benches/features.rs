//! Orders a second through `features`, for each kind of key.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use orderflow_operators::features::{Features, KeyKind, WindowSet};
// The tests' orders name their types by `crate::`.
use orderflow_operators::{rows, validate};

mod support;
#[path = "../src/test_orders.rs"]
mod test_orders;

const EPOCH_ROWS: usize = 16_384;
/// 24 hours; microseconds.
const HORIZON: i64 = 86_400_000_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("features");
    group.throughput(Throughput::Elements(EPOCH_ROWS as u64)).sample_size(20);
    for (kind, customers, name) in [
        (KeyKind::Customer, 300_000, "customer, few orders each"),
        (KeyKind::Card, 300_000, "card, few orders each"),
        (KeyKind::Device, 300_000, "device, few orders each"),
        (KeyKind::Ip, 300_000, "ip, many customers each"),
        (KeyKind::Customer, 1_000, "customer, many orders each"),
    ] {
        group.bench_function(name, |bencher| {
            let mut features = Features::new(WindowSet::default(), HORIZON);
            let mut source = support::Orders::new(customers);
            for _ in 0..20 {
                let (info, orders) = source.epoch(EPOCH_ROWS);
                features.on_epoch(&info, Some(&kind.request(&orders, 0)));
            }
            bencher.iter_batched(
                || {
                    let (info, orders) = source.epoch(EPOCH_ROWS);
                    (info, kind.request(&orders, 0))
                },
                |(info, requests)| black_box(features.on_epoch(&info, Some(&requests))),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}
