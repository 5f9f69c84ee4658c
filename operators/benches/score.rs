//! Orders a second through a logistic model of eight terms.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use orderflow_operators::features::{FeatureTable, Features, KeyKind, WindowSet};
use orderflow_operators::score::Model;
// The tests' orders name their types by `crate::`.
use orderflow_operators::{rows, validate};

mod support;
#[path = "../src/test_orders.rs"]
mod test_orders;

const EPOCH_ROWS: usize = 16_384;

fn main() {
    let windows = WindowSet::default();
    let terms = [
        ("card_orders_5m", "log1p", 1.2),
        ("card_amount_1h", "log1p", 0.1),
        ("ip_orders_24h", "log1p", 0.3),
        ("device_cards_24h", "identity", 0.5),
        ("card_customers_24h", "identity", 0.4),
        ("country_mismatch", "identity", 0.8),
        ("amount", "log1p", 0.05),
        ("unit_count", "log1p", 0.05),
    ];
    let terms =
        terms.map(|(feature, transform, weight)| format!(r#"{{"feature": "{feature}", "transform": "{transform}", "weight": {weight}}}"#));
    let text = format!(r#"{{"name": "bench", "version": 1, "kind": "logistic", "bias": -6, "terms": [{}]}}"#, terms.join(","));
    let model = Model::from_json(&text, &windows).expect("the model is well-formed");

    let (info, orders) = support::Orders::new(10_000).epoch(EPOCH_ROWS);
    let replies = KeyKind::ALL.map(|kind| {
        let replies = Features::new(windows.clone(), 0).on_epoch(&info, Some(&kind.request(&orders, 0)));
        (kind, replies.expect("there are requests"))
    });
    let features = || {
        let mut table = FeatureTable::new(&orders, &windows);
        replies.iter().for_each(|(kind, replies)| table.add(*kind, replies));
        table.finish(&orders)
    };

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("score");
    group.throughput(Throughput::Elements(EPOCH_ROWS as u64));
    group.bench_function("put the features together", |bencher| bencher.iter(|| black_box(features())));
    let table = features();
    group.bench_function("score", |bencher| bencher.iter(|| black_box(model.score(&orders, &table))));
    group.finish();
    criterion.final_summary();
}
