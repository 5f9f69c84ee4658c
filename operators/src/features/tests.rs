use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::columns::i64s;
use crate::epoch::Epoch;
use crate::snapshot::{KeyedState, Written};
use crate::test_orders::{Order, batch};

fn info(epoch: u64, watermark_before: Micros, watermark: Micros) -> EpochInfo {
    EpochInfo { epoch: Epoch(epoch), sealed_at: 0, watermark_before, watermark, checkpoint: false }
}

/// One epoch of `time customer card device ip amount` (`-` for none, `!` before what is not fresh), with windows of 20 and 40 µs. Shows
/// the features that are not 0.
fn check(input: &str, expect: Expect) {
    let windows = WindowSet::new(&[20, 40]).unwrap();
    let orders: Vec<_> = input.lines().map(str::trim).filter(|line| !line.is_empty()).map(order).collect();
    let orders = batch(&orders);
    let info = info(1, NEVER, NEVER);
    let mut table = FeatureTable::new(&orders, &windows);
    for kind in KeyKind::ALL {
        let replies = Features::new(windows.clone(), 0).on_epoch(&info, Some(&kind.request(&orders, 0))).unwrap();
        table.add(kind, &replies);
    }
    let features = table.finish(&orders);
    let mut out = String::new();
    for row in 0..orders.num_rows() {
        let mut given = Vec::new();
        for (name, feature) in windows.feature_names().iter().zip(&features) {
            assert_eq!(feature.is_null(row), u8s(&orders, orders::STATUS)[row] != Status::Fresh as u8);
            if feature.value(row) != 0 {
                given.push(format!("{name}={}", feature.value(row)));
            }
        }
        out += &(given.join(" ") + "\n");
    }
    expect.assert_eq(&out);
}

fn order(line: &str) -> Order {
    let (status, line) = line.strip_prefix('!').map_or((Status::Fresh, line), |line| (Status::Duplicate, line));
    let words: Vec<_> = line.split_whitespace().collect();
    let text = |at: usize| Some(words[at].to_owned()).filter(|word| word != "-");
    Order {
        event_time: words[0].parse().unwrap(),
        customer: words[1].into(),
        card: text(2),
        device: text(3),
        ip: text(4),
        amount: words[5].parse().unwrap(),
        status: status as u8,
        ..Order::default()
    }
}

#[test]
fn windows_slide_by_panes() {
    // The panes of the longer window are two wide: it covers from −38 to 1 at 1, and from −36 to 3 at 2 and 3.
    check(
        "0 c-1 - - - 100
         19 c-1 - - - 10
         20 c-1 - - - 1
         39 c-1 - - - 5
         40 c-1 - - - 7",
        expect![[r#"
            customer_orders_20us=1 customer_orders_40us=1 customer_amount_20us=100 customer_amount_40us=100
            customer_orders_20us=2 customer_orders_40us=2 customer_amount_20us=110 customer_amount_40us=110
            customer_orders_20us=2 customer_orders_40us=3 customer_amount_20us=11 customer_amount_40us=111
            customer_orders_20us=2 customer_orders_40us=4 customer_amount_20us=6 customer_amount_40us=116
            customer_orders_20us=2 customer_orders_40us=4 customer_amount_20us=12 customer_amount_40us=23
        "#]],
    );
}

#[test]
fn late_orders_see_their_own_past() {
    check(
        "30 c-1 - - - 100
         10 c-1 - - - 10
         11 c-1 - - - 1
         30 c-1 - - - 1000
         31 c-2 - - - 7",
        expect![[r#"
            customer_orders_20us=1 customer_orders_40us=1 customer_amount_20us=100 customer_amount_40us=100
            customer_orders_20us=1 customer_orders_40us=1 customer_amount_20us=10 customer_amount_40us=10
            customer_orders_20us=2 customer_orders_40us=2 customer_amount_20us=11 customer_amount_40us=11
            customer_orders_20us=3 customer_orders_40us=4 customer_amount_20us=1101 customer_amount_40us=1111
            customer_orders_20us=1 customer_orders_40us=1 customer_amount_20us=7 customer_amount_40us=7
        "#]],
    );
}

#[test]
fn members_are_counted_once_and_only_if_given() {
    check(
        "0 c-1 k-1 d-1 - 0
         1 c-1 k-2 d-1 - 0
         2 c-2 k-2 d-1 i-1 0
         !3 c-3 k-3 d-1 i-1 0
         4 c-1 - d-1 i-1 0",
        expect![[r#"
            customer_orders_20us=1 customer_orders_40us=1 card_orders_20us=1 card_orders_40us=1 device_orders_20us=1 device_orders_40us=1 device_cards_40us=1 card_customers_40us=1 customer_devices_40us=1
            customer_orders_20us=2 customer_orders_40us=2 card_orders_20us=1 card_orders_40us=1 device_orders_20us=2 device_orders_40us=2 device_cards_40us=2 card_customers_40us=1 customer_devices_40us=1
            customer_orders_20us=1 customer_orders_40us=1 card_orders_20us=2 card_orders_40us=2 device_orders_20us=3 device_orders_40us=3 ip_orders_20us=1 ip_orders_40us=1 device_cards_40us=2 card_customers_40us=2 ip_customers_40us=1 customer_devices_40us=1

            customer_orders_20us=3 customer_orders_40us=3 device_orders_20us=4 device_orders_40us=4 ip_orders_20us=2 ip_orders_40us=2 device_cards_40us=2 ip_customers_40us=2 customer_devices_40us=1
        "#]],
    );
}

#[test]
fn countries_differ_only_if_both_are_given() {
    let countries = |billing: Option<&str>, shipping: Option<&str>| Order {
        countries: [billing.map(str::to_owned), shipping.map(str::to_owned)],
        ..Order::default()
    };
    let invalid = Order { status: Status::Invalid as u8, ..countries(Some("US"), Some("CA")) };
    let rows = [
        countries(Some("US"), Some("CA")),
        countries(Some("US"), Some("US")),
        countries(None, Some("US")),
        countries(Some("US"), None),
        invalid,
    ];
    let orders = batch(&rows);
    let features = FeatureTable::new(&orders, &WindowSet::default()).finish(&orders);
    let mismatch = features.last().unwrap();
    assert_eq!(mismatch.iter().collect::<Vec<_>>(), [Some(1), Some(0), Some(0), Some(0), None]);
    assert_eq!(features.len(), WindowSet::default().feature_names().len());
}

#[test]
fn replies_go_to_their_slots() {
    let windows = WindowSet::new(&[20]).unwrap();
    let orders = batch(&vec![Order::default(); 3]);
    let mut table = FeatureTable::new(&orders, &windows);
    let replies = Features::new(windows, 0).on_epoch(&info(1, NEVER, NEVER), Some(&KeyKind::Customer.request(&orders, 7))).unwrap();
    assert_eq!(crate::columns::u32s(&replies, 0), [7, 7, 7]);
    let backwards = arrow::compute::take_record_batch(&replies, &UInt32Array::from(vec![2, 0])).unwrap();
    table.add(KeyKind::Customer, &backwards);
    assert_eq!(table.finish(&orders)[0].values()[..], [1, 0, 3]);
}

#[test]
fn sums_saturate() {
    let rows: Vec<_> = (0..100).map(|n| Order { amount: i64::MAX / 2, event_time: n * 40, ..Order::default() }).collect();
    let replies = Features::new(WindowSet::new(&[100_000]).unwrap(), 0)
        .on_epoch(&info(1, NEVER, NEVER), Some(&KeyKind::Customer.request(&batch(&rows), 0)))
        .unwrap();
    let amounts = i64s(&replies, feature_replies::VALUES + 1);
    assert_eq!(amounts[..2], [i64::MAX / 2, i64::MAX - 1]);
    assert!(amounts[2..].iter().all(|&amount| amount == i64::MAX));
}

// --- against a list of all orders ------------------------------------------------------------

/// All orders that counted, and the specification word for word.
struct Naive {
    widths: Vec<Micros>,
    seen: Vec<(String, Option<String>, Micros, i64)>,
}

impl Naive {
    fn covered(&self, key: &str, event_time: Micros, width: Micros) -> impl Iterator<Item = &(String, Option<String>, Micros, i64)> {
        let pane = move |time: Micros| i128::from(time.div_euclid(width / PANES));
        let p = pane(event_time);
        self.seen.iter().filter(move |seen| seen.0 == key && (p - i128::from(PANES) + 1..=p).contains(&pane(seen.2)))
    }

    fn answer(&mut self, key: &str, member: Option<&str>, event_time: Micros, amount: i64) -> Vec<i64> {
        self.seen.push((key.to_owned(), member.map(str::to_owned), event_time, amount));
        let orders = self.widths.iter().map(|&width| self.covered(key, event_time, width).count() as i64);
        let amounts = self.widths.iter().map(|&width| self.covered(key, event_time, width).map(|seen| seen.3).sum());
        let longest = *self.widths.last().unwrap();
        let mut members: Vec<_> = self.covered(key, event_time, longest).filter_map(|seen| seen.1.as_deref()).collect();
        members.sort();
        members.dedup();
        orders.chain(amounts).chain([members.len() as i64]).collect()
    }
}

/// Key, member, event time relative to the watermark, whether it counts.
type CaseRow = (u8, u8, i64, bool);

/// Epochs of rows, and how far the watermark then goes.
#[derive(Clone, Debug)]
struct Case {
    widths: Vec<Micros>,
    horizon: Micros,
    start: Micros,
    epochs: Vec<(Vec<CaseRow>, i64)>,
    /// A bit for each epoch behind which the state is written down and taken up.
    restarts: u32,
}

fn case() -> impl Strategy<Value = Case> {
    let widths = prop::sample::select(vec![vec![20, 60, 400], vec![40, 60], vec![100], vec![20, 40, 1200]]);
    let start = prop::sample::select(vec![0, -500, 1 << 40, i64::MIN + 1, i64::MAX - 3000]);
    (widths, 0..600_i64, start, 1..30_u8, 1..30_u8, 1..300_i64).prop_flat_map(|(widths, horizon, start, keys, members, ahead)| {
        // Mostly in order, some late as far as the horizon, some early.
        let offset = prop_oneof![8 => 0..ahead, 1 => -700..0_i64, 1 => 0..1500_i64];
        let row = (0..keys, 0..members, offset, prop::bool::weighted(0.9));
        let epochs = prop::collection::vec((prop::collection::vec(row, 0..40), 0..200_i64), 1..20);
        (epochs, any::<u32>()).prop_map(move |(epochs, restarts)| Case { widths: widths.clone(), horizon, start, epochs, restarts })
    })
}

fn check_case(case: Case) {
    let Case { widths, horizon, start, epochs, restarts } = case;
    let windows = WindowSet::new(&widths).unwrap();
    let mut features = Features::new(windows.clone(), horizon);
    features.keep_changes();
    let mut written = Written::default();
    let mut naive = Naive { widths, seen: Vec::new() };
    let mut watermark = NEVER;
    for (number, (rows, step)) in epochs.into_iter().enumerate() {
        let (before, base) = (watermark, watermark.max(start));
        watermark = base.saturating_add(step);
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(key, member, offset, counts)| {
                let event_time = base.saturating_add(offset);
                let counts = counts && event_time >= before.saturating_sub(horizon);
                Order {
                    customer: format!("a customer with a long name {key}"),
                    device: (member > 0).then(|| format!("d-{member}")),
                    event_time,
                    amount: offset.abs(),
                    status: if counts { Status::Fresh } else { Status::Invalid } as u8,
                    ..Order::default()
                }
            })
            .collect();
        let requests = KeyKind::Customer.request(&batch(&rows), 3);
        let replies = features.on_epoch(&info(number as u64 + 1, before, watermark), Some(&requests)).unwrap();
        for (row, order) in rows.iter().enumerate() {
            let expected = if order.status == Status::Fresh as u8 {
                naive.answer(&order.customer, order.device.as_deref(), order.event_time, order.amount)
            } else {
                vec![0; 2 * windows.len() + 1]
            };
            let reply: Vec<_> = (feature_replies::VALUES..replies.num_columns()).map(|column| i64s(&replies, column)[row]).collect();
            assert_eq!(reply, expected, "epoch {}, row {row}: {order:?}", number + 1);
        }
        written.epoch(number as u64 + 1, &mut features);
        if restarts & 1 << number != 0 {
            features = Features::new(windows.clone(), horizon);
            written.restore(&mut features, watermark, |_| true);
            features.keep_changes();
        }
    }
    let live: std::collections::BTreeSet<_> = naive.seen.iter().map(|seen| &seen.0).collect();
    assert!(features.len() <= live.len());
}

proptest! {
    #[test]
    fn as_a_scan_of_all_orders(case in case()) {
        check_case(case);
    }
}

#[test]
fn keys_are_forgotten_when_no_order_can_see_them() {
    let mut features = Features::new(WindowSet::new(&[20, 400]).unwrap(), 100);
    let rows: Vec<_> = (0..500).map(|n| Order { customer: format!("c-{n}"), device: Some("d-1".into()), ..Order::default() }).collect();
    features.on_epoch(&info(1, NEVER, 0), Some(&KeyKind::Customer.request(&batch(&rows), 0)));
    let hot: Vec<_> = (0..500).map(|n| Order { device: Some(format!("d-{n}")), event_time: n, ..Order::default() }).collect();
    features.on_epoch(&info(2, 0, 0), Some(&KeyKind::Customer.request(&batch(&hot), 0)));
    assert_eq!(features.len(), 500);
    let full = features.bytes();
    let mut after = |watermark| {
        // A sweep takes some epochs.
        (0..5).for_each(|_| drop(features.on_epoch(&info(3, 0, watermark), None)));
        (features.len(), features.bytes())
    };
    // Pane 0 of the longer window is in reach of orders at 399 and before, which are stale when the watermark is at 500.
    assert_eq!(after(499).0, 500);
    assert_eq!(after(500).0, 1);
    let (keys, bytes) = after(2000);
    assert_eq!(keys, 0);
    assert!(bytes < full / 4, "{bytes} of {full} bytes");
}
