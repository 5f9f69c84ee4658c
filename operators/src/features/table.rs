//! The features of an epoch's orders, put together where the orders are.

use arrow::array::{Array, Int64Array, RecordBatch};
use arrow::buffer::{BooleanBuffer, NullBuffer};

use super::{KeyKind, WindowSet};
use crate::columns::{i64s, text, text_at, u8s, u32s};
use crate::rows::{feature_replies, orders};
use crate::validate::Status;

/// Gathers the replies of the four key kinds to one epoch's requests.
#[derive(Debug)]
pub struct FeatureTable {
    windows: usize,
    rows: usize,
    /// All features but the last, by the order of their names. Empty until there is a reply.
    columns: Vec<Vec<i64>>,
}

impl FeatureTable {
    /// For an epoch's orders.
    pub fn new(orders: &RecordBatch, windows: &WindowSet) -> Self {
        let columns = vec![Vec::new(); windows.feature_names().len() - 1];
        FeatureTable { windows: windows.len(), rows: orders.num_rows(), columns }
    }

    /// Takes replies of one kind, in [`feature_replies::schema`] and in any order. Slots without one have zeros.
    ///
    /// # Panics
    /// If a slot is not a row of the orders.
    pub fn add(&mut self, kind: KeyKind, replies: &RecordBatch) {
        let slots = u32s(replies, feature_replies::SLOT);
        // As from one worker.
        let in_order = slots.len() == self.rows && slots.iter().enumerate().all(|(row, &slot)| row == slot as usize);
        let sums = 2 * self.windows;
        let first = KeyKind::ALL.iter().position(|&k| k == kind).expect("all kinds are listed") * sums;
        let distinct = KeyKind::BY_DISTINCT.iter().position(|&k| k == kind).expect("all kinds are listed");
        let targets = (first..first + sums).chain([KeyKind::ALL.len() * sums + distinct]);
        for (target, reply) in targets.zip(feature_replies::VALUES..) {
            let (column, values) = (&mut self.columns[target], i64s(replies, reply));
            if in_order {
                column.clear();
                column.extend_from_slice(values);
                continue;
            }
            column.resize(self.rows, 0);
            for (&slot, &value) in slots.iter().zip(values) {
                column[slot as usize] = value;
            }
        }
    }

    /// The features in the order of [`WindowSet::feature_names`], a row for each order; null where the order's status is not [`Status::Fresh`].
    pub fn finish(self, orders: &RecordBatch) -> Vec<Int64Array> {
        let rows = self.rows;
        let fresh = BooleanBuffer::from_iter(u8s(orders, orders::STATUS).iter().map(|&status| status == Status::Fresh as u8));
        let nulls = Some(NullBuffer::new(fresh)).filter(|nulls| nulls.null_count() > 0);
        let mismatch = country_mismatch(orders, nulls.as_ref());
        let columns = self.columns.into_iter().map(|mut column| {
            column.resize(rows, 0);
            column
        });
        columns.chain([mismatch]).map(|column| Int64Array::new(column.into(), nulls.clone())).collect()
    }
}

/// 1 where both countries are given and differ, else 0.
fn country_mismatch(orders: &RecordBatch, nulls: Option<&NullBuffer>) -> Vec<i64> {
    let (billing, shipping) = (text(orders, orders::BILLING_COUNTRY), text(orders, orders::SHIPPING_COUNTRY));
    let differ = |row| match (text_at(billing, row), text_at(shipping, row)) {
        (Some(billing), Some(shipping)) => i64::from(billing != shipping),
        _ => 0,
    };
    // What lies under a null is 0 in all features.
    (0..billing.len()).map(|row| if nulls.is_none_or(|nulls| nulls.is_valid(row)) { differ(row) } else { 0 }).collect()
}
