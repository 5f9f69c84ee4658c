use arrow::array::{Int64Array, TimestampMicrosecondArray, UInt64Array};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::columns::i64s;
use crate::epoch::{Epoch, NEVER};
use crate::snapshot::{KeyedState, Written};
use crate::test_orders::{Order, batch};

/// A horizon of 24 hours of one unit: buckets are 1 wide.
const HORIZON: Micros = 24;

fn info(epoch: u64, watermark_before: Micros, watermark: Micros) -> EpochInfo {
    EpochInfo { epoch: Epoch(epoch), sealed_at: 0, watermark_before, watermark, checkpoint: false }
}

/// Epochs are `> watermark` and the lines before it: `id time customer currency sku×quantity@price …`, `!` before what is invalid.
fn check(input: &str, expect: Expect) {
    let mut deduplicate = Deduplicate::new(DeduplicateSettings { horizon: HORIZON });
    let (mut rows, mut watermark, mut epoch, mut out) = (Vec::new(), NEVER, 0, String::new());
    for line in input.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let Some(after) = line.strip_prefix('>') else {
            rows.push(order(line));
            continue;
        };
        let before = std::mem::replace(&mut watermark, after.trim().parse().unwrap());
        epoch += 1;
        let orders = (!rows.is_empty()).then(|| batch(&std::mem::take(&mut rows)));
        if let Some(marked) = deduplicate.on_epoch(&info(epoch, before, watermark), orders.as_ref()) {
            let names = ["fresh", "invalid", "duplicate", "conflict"];
            for (row, status) in u8s(&marked, orders::STATUS).iter().enumerate() {
                out += &format!("{} {}\n", text(&marked, orders::ORDER_ID).value(row), names[*status as usize]);
            }
        }
        out += &format!("> {} remembered\n", deduplicate.len());
    }
    expect.assert_eq(&out);
}

fn order(line: &str) -> Order {
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap();
    let (id, time, customer, currency) = (word(), word().parse().unwrap(), word().to_owned(), word().to_owned());
    let lines = words.map(|line| {
        let (sku, rest) = line.split_once('×').unwrap();
        let (quantity, price) = rest.split_once('@').unwrap();
        (sku.to_owned(), quantity.parse().unwrap(), price.parse().unwrap())
    });
    let (order_id, status) = id.strip_prefix('!').map_or((id, Status::Fresh), |id| (id, Status::Invalid));
    Order {
        order_id: order_id.into(),
        customer,
        currency,
        lines: lines.collect(),
        event_time: time,
        status: status as u8,
        ..Order::default()
    }
}

#[test]
fn the_same_content_is_a_duplicate_and_another_a_conflict() {
    check(
        "o-1 10 c-1 USD A×1@5 B×2@7
         o-1 11 c-1 USD A×1@5 B×2@7
         o-1 10 c-2 USD A×1@5 B×2@7
         o-1 10 c-1 EUR A×1@5 B×2@7
         o-1 10 c-1 USD B×2@7 A×1@5
         o-1 10 c-1 USD A×1@5
         > 0
         o-1 10 c-1 USD A×1@5 B×2@8
         o-1 10 c-1 USD A×1@5 B×2@7
         > 0",
        expect![[r#"
            o-1 fresh
            o-1 duplicate
            o-1 conflict
            o-1 conflict
            o-1 conflict
            o-1 conflict
            > 1 remembered
            o-1 conflict
            o-1 duplicate
            > 1 remembered
        "#]],
    );
}

#[test]
fn lengths_tell_texts_apart() {
    check(
        "o-1 10 cU SD A×1@5
         o-1 10 c USD A×1@5
         > 0",
        expect![[r#"
            o-1 fresh
            o-1 conflict
            > 1 remembered
        "#]],
    );
}

#[test]
fn invalid_orders_are_not_remembered() {
    check(
        "!o-1 10 c-1 USD A×1@5
         o-1 10 c-1 USD A×1@5
         !o-1 10 c-1 USD A×1@5
         > 0",
        expect![[r#"
            o-1 invalid
            o-1 fresh
            o-1 invalid
            > 1 remembered
        "#]],
    );
}

#[test]
fn a_bucket_goes_at_the_end_of_the_epoch_also_without_rows() {
    check(
        "o-1 10 c-1 USD A×1@5
         o-2 11 c-1 USD A×1@5
         > 34
         o-1 40 c-1 USD A×1@5
         > 35
         o-1 40 c-1 USD A×1@5
         o-2 40 c-1 USD A×1@5
         > 35
         > 36
         o-1 41 c-1 USD A×1@5
         o-2 41 c-1 USD A×1@5
         > 36",
        expect![[r#"
            o-1 fresh
            o-2 fresh
            > 2 remembered
            o-1 duplicate
            > 1 remembered
            o-1 fresh
            o-2 duplicate
            > 2 remembered
            > 1 remembered
            o-1 duplicate
            o-2 fresh
            > 2 remembered
        "#]],
    );
}

#[test]
fn extreme_event_times() {
    let (least, most) = (i64::MIN, i64::MAX);
    check(
        &format!(
            "o-1 {least} c-1 USD A×1@5
             o-2 {most} c-1 USD A×1@5
             > {least}
             o-1 {most} c-1 USD A×1@5
             o-2 {least} c-1 USD A×1@5
             > {most}
             o-1 {most} c-1 USD A×1@5
             o-2 {most} c-1 USD A×1@5
             > {most}"
        ),
        expect![[r#"
            o-1 fresh
            o-2 fresh
            > 2 remembered
            o-1 duplicate
            o-2 duplicate
            > 1 remembered
            o-1 fresh
            o-2 duplicate
            > 2 remembered
        "#]],
    );
}

/// The specification, word for word, over a list.
#[derive(Default)]
struct Naive {
    /// Id, bucket, content.
    seen: Vec<(String, i64, String)>,
}

impl Naive {
    fn see(&mut self, id: &str, event_time: Micros, content: String) -> Option<bool> {
        if let Some((_, _, first)) = self.seen.iter().find(|(seen, ..)| seen == id) {
            return Some(*first == content);
        }
        self.seen.push((id.to_owned(), event_time.div_euclid(HORIZON / BUCKETS), content));
        None
    }

    fn end_epoch(&mut self, watermark: Micros) {
        let width = i128::from(HORIZON / BUCKETS);
        self.seen.retain(|(_, bucket, _)| i128::from(watermark) < (i128::from(*bucket) + 1) * width + i128::from(HORIZON));
    }
}

/// Epochs of (id, event time relative to the watermark, customer, invalid) and how far the watermark then goes.
type Epochs = Vec<(Vec<(u8, i64, u8, bool)>, i64)>;

fn epochs() -> impl Strategy<Value = Epochs> {
    let row = (0..40_u8, -30..40_i64, 0..2_u8, prop::bool::weighted(0.1));
    prop::collection::vec((prop::collection::vec(row, 0..30), 0..15_i64), 1..25)
}

proptest! {
    #[test]
    fn orders_are_marked_as_a_list_would(epochs in epochs(), restarts in 0..u32::MAX) {
        let mut deduplicate = Deduplicate::new(DeduplicateSettings { horizon: HORIZON });
        deduplicate.keep_changes();
        let mut written = Written::default();
        let (mut naive, mut watermark) = (Naive::default(), 0);
        for (number, (rows, step)) in epochs.into_iter().enumerate() {
            let before = watermark;
            watermark += step;
            let rows: Vec<_> = rows.into_iter().map(|(id, offset, customer, invalid)| {
                let event_time = before + offset;
                let invalid = invalid || event_time < before - HORIZON;
                let status = if invalid { Status::Invalid } else { Status::Fresh } as u8;
                Order { order_id: format!("o-{id}"), customer: format!("c-{customer}"), event_time, status, ..Order::default() }
            }).collect();
            let expected: Vec<_> = rows.iter().map(|order| {
                if order.status != Status::Fresh as u8 {
                    return order.status;
                }
                match naive.see(&order.order_id, order.event_time, order.customer.clone()) {
                    None => Status::Fresh as u8,
                    Some(true) => Status::Duplicate as u8,
                    Some(false) => Status::Conflict as u8,
                }
            }).collect();
            naive.end_epoch(watermark);
            let marked = deduplicate.on_epoch(&info(number as u64 + 1, before, watermark), Some(&batch(&rows))).unwrap();
            prop_assert_eq!(u8s(&marked, orders::STATUS), &expected[..]);
            prop_assert_eq!(deduplicate.len(), naive.seen.len());
            written.epoch(number as u64 + 1, &mut deduplicate);
            if restarts & 1 << number != 0 {
                deduplicate = Deduplicate::new(DeduplicateSettings { horizon: HORIZON });
                written.restore(&mut deduplicate, watermark, |_| true);
                deduplicate.keep_changes();
                prop_assert_eq!(deduplicate.len(), naive.seen.len());
            }
        }
    }

    #[test]
    fn movements_are_kept_as_a_list_would(epochs in epochs(), restarts in 0..u32::MAX) {
        let mut deduplicate = DeduplicateMovements::new(DeduplicateSettings { horizon: HORIZON });
        deduplicate.keep_changes();
        let mut written = Written::default();
        let (mut naive, mut watermark) = (Naive::default(), 0);
        for (number, (rows, step)) in epochs.into_iter().enumerate() {
            let before = watermark;
            watermark += step;
            // Not validated: they may be behind every live bucket.
            let rows: Vec<_> = rows.into_iter().map(|(id, offset, ..)| (format!("m-{id}"), before + 2 * offset)).collect();
            let expected: Vec<_> = (0..rows.len()).filter(|&row| naive.see(&rows[row].0, rows[row].1, String::new()).is_none()).collect();
            naive.end_epoch(watermark);
            let movements = movement_batch(&rows);
            let first = deduplicate.on_epoch(&info(number as u64 + 1, before, watermark), movements.as_ref());
            let first: Vec<_> = first.iter().flat_map(|first| i64s(first, movements::QUANTITY).iter().map(|&row| row as usize)).collect();
            prop_assert_eq!(first, expected);
            prop_assert_eq!(deduplicate.len(), naive.seen.len());
            written.epoch(number as u64 + 1, &mut deduplicate);
            if restarts & 1 << number != 0 {
                deduplicate = DeduplicateMovements::new(DeduplicateSettings { horizon: HORIZON });
                written.restore(&mut deduplicate, watermark, |_| true);
                deduplicate.keep_changes();
                prop_assert_eq!(deduplicate.len(), naive.seen.len());
            }
        }
    }
}

/// Movements of (id, event time), with their row as quantity.
fn movement_batch(rows: &[(String, Micros)]) -> Option<RecordBatch> {
    if rows.is_empty() {
        return None;
    }
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1)).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(0..rows.len() as u64)),
        Arc::new(UInt8Array::from(vec![0; rows.len()])),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
        Arc::new(StringArray::from(vec!["SKU-1"; rows.len()])),
        Arc::new(Int64Array::from_iter_values(0..rows.len() as i64)),
        Arc::new(times),
    ];
    Some(RecordBatch::try_new(movements::schema(), columns).unwrap())
}
