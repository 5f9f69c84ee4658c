//! The windows as rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringBuilder, TimestampMicrosecondArray, UInt8Array, new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{FilterBuilder, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::sums::Totals;
use super::{Features, KeyKind, Reachable};
use crate::by_group::HashedRow;
use crate::columns::{bools, i64s, micros, text, text_at, timestamp_type, u8s};
use crate::deduplicate::sightings;
use crate::epoch::Micros;
use crate::keys::{KeyGroup, hash, key_group};
use crate::prefetch::AHEAD;
use crate::rows::{feature_requests, orders};
use crate::snapshot::{KEY, KeyedState};

const TIME: usize = 1;
const WINDOW: usize = 2;
const ORDERS: usize = 3;
const AMOUNT: usize = 4;
const MEMBER: usize = 5;

/// In the column `window`: the pane is the base pane, and counts for all of them.
const ALL_WINDOWS: u8 = u8::MAX;

/// key (text), event_time (timestamp: some instant of the pane), window (uint8: the one that this counts for, [`ALL_WINDOWS`] for all), orders
/// (int64), amount (int64), member (text or null: one that occurred in that pane of the longest window)
fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("event_time", timestamp_type(), false),
            Field::new("window", DataType::UInt8, false),
            Field::new("orders", DataType::Int64, false),
            Field::new("amount", DataType::Int64, false),
            Field::new("member", DataType::Utf8, true),
        ]))
    });
    SCHEMA.clone()
}

/// Those of an epoch's requests that count, an order each.
pub(super) fn changes(requests: &RecordBatch) -> Option<RecordBatch> {
    let keys = text(requests, feature_requests::KEY);
    let mut counts = bools(requests, feature_requests::COUNTS).values().clone();
    if let Some(valid) = keys.nulls() {
        counts = &counts & valid.inner();
    }
    if counts.count_set_bits() == 0 {
        return None;
    }
    let (key, member) = (feature_requests::KEY, feature_requests::MEMBER);
    let counted = requests.project(&[key, feature_requests::EVENT_TIME, feature_requests::AMOUNT, member]);
    let counted = filter_record_batch(&counted.expect("requests have these columns"), &BooleanArray::new(counts, None));
    let counted = counted.expect("the filter has one value for each row");
    let rows = counted.num_rows();
    let column = |column: usize| counted.column(column).clone();
    let window: ArrayRef = Arc::new(UInt8Array::from(vec![ALL_WINDOWS; rows]));
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1; rows]));
    let columns = vec![column(0), column(1), window, one, column(2), column(3)];
    Some(RecordBatch::try_new(schema(), columns).expect("an order that counts has an amount"))
}

impl KeyKind {
    /// What orders changed in the windows of this kind: the rows of [`Features`]' state, from those that [`Deduplicate`](crate::deduplicate::Deduplicate)
    /// wrote down; of those that counted the ones for which `is_needed`, by the key's group and the row.
    pub fn changes(self, orders: &RecordBatch, is_needed: impl Fn(KeyGroup, usize) -> bool) -> Option<RecordBatch> {
        let column = |of: usize| sightings::of_order(of);
        let (key, member) = self.columns();
        let (key, member) = (column(key), column(member));
        let (keys, fresh) = (text(orders, key), bools(orders, sightings::FRESH));
        let needed = BooleanBuffer::collect_bool(orders.num_rows(), |row| {
            fresh.value(row) && keys.is_valid(row) && is_needed(key_group(hash(keys.value(row).as_bytes())), row)
        });
        let rows = needed.count_set_bits();
        if rows == 0 {
            return None;
        }
        let needed = BooleanArray::new(needed, None);
        let filter = FilterBuilder::new(&needed).optimize().build();
        let kept = |at: usize| filter.filter(orders.column(at)).expect("the filter has one value for each row");
        let window: ArrayRef = Arc::new(UInt8Array::from(vec![ALL_WINDOWS; rows]));
        let one: ArrayRef = Arc::new(Int64Array::from(vec![1; rows]));
        let columns = vec![kept(key), kept(sightings::EVENT_TIME), window, one, kept(column(orders::AMOUNT)), kept(member)];
        Some(RecordBatch::try_new(schema(), columns).expect("an order that counts has an amount"))
    }
}

/// Rows to be.
#[derive(Default)]
struct Rows {
    key: StringBuilder,
    time: Vec<Micros>,
    window: Vec<u8>,
    orders: Vec<i64>,
    amount: Vec<i64>,
}

impl Rows {
    fn push(&mut self, key: &str, time: Micros, window: u8, totals: Totals) {
        self.key.append_value(key);
        self.time.push(time);
        self.window.push(window);
        self.orders.push(totals.orders);
        self.amount.push(totals.amount);
    }

    fn finish(mut self, member: Option<ArrayRef>) -> RecordBatch {
        let rows = self.time.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.key.finish()),
            Arc::new(TimestampMicrosecondArray::from(self.time).with_timezone("UTC")),
            Arc::new(UInt8Array::from(self.window)),
            Arc::new(Int64Array::from(self.orders)),
            Arc::new(Int64Array::from(self.amount)),
            member.unwrap_or_else(|| new_null_array(&DataType::Utf8, rows)),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are those of a window's rows")
    }
}

impl KeyedState for Features {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn group_len(&self, group: KeyGroup) -> usize {
        self.keyed.group_len(group)
    }

    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        // The first instant that there is, where the pane begins before it.
        let begin = |pane: i64, factor: i64| pane.saturating_mul(factor).saturating_mul(self.windows.base());
        let factors = self.windows.factors();
        let longest = *factors.last()?;
        let (mut sums, mut occurrences, mut members) = (Rows::default(), Rows::default(), StringBuilder::new());
        self.keyed.each(
            group,
            |key, window, pane, totals| match window {
                None => sums.push(key, begin(pane, 1), ALL_WINDOWS, totals),
                Some(window) => sums.push(key, begin(pane, factors[window]), window as u8, totals),
            },
            |key, member, pane| {
                occurrences.push(key, begin(pane, longest), ALL_WINDOWS, Totals::default());
                members.append_value(member);
            },
        );
        let parts = [sums.finish(None), occurrences.finish(Some(Arc::new(members.finish())))];
        crate::dataflow::concat(parts.into_iter().filter(|part| part.num_rows() > 0).collect())
    }

    fn keep_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    fn take_changes(&mut self) -> Vec<RecordBatch> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn take_changed_rows(&mut self) -> u64 {
        std::mem::take(&mut self.changed_rows)
    }

    fn restore(&mut self, rows: &RecordBatch) {
        let (keys, members) = (text(rows, KEY), text(rows, MEMBER));
        let (times, windows, orders, amounts) = (micros(rows, TIME), u8s(rows, WINDOW), i64s(rows, ORDERS), i64s(rows, AMOUNT));
        let mut before = ("", hash(b""));
        self.by_group.fill((0..keys.len()).map(|row| {
            let key = keys.value(row);
            if key != before.0 {
                before = (key, hash(key.as_bytes()));
            }
            HashedRow { hash: before.1, row: row as u32 }
        }));
        for (group, rows) in self.by_group.groups() {
            for rows in rows.chunks(AHEAD) {
                self.keyed.look_up(group, rows, |row| keys.value(row), &mut self.positions);
                for (&HashedRow { row, .. }, &position) in rows.iter().zip(&self.positions) {
                    let row = row as usize;
                    let window = (windows[row] != ALL_WINDOWS).then(|| usize::from(windows[row]));
                    let totals = Totals { orders: orders[row], amount: amounts[row] };
                    self.locator.go_to(times[row]);
                    let (at, reachable) = (&self.locator, &self.reachable);
                    self.keyed.change(group, position, |key| {
                        key.take_up(window, totals, text_at(members, row), at, reachable, &self.windows);
                    });
                }
            }
        }
    }

    fn begin_restore(&mut self, watermark: Micros) {
        self.reachable = Reachable::new(&self.windows, self.horizon, watermark);
    }
}
