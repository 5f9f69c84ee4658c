//! The first occurrence of an id wins.
//!
//! Orders are deduplicated by `order_id`, stock movements by `movement_id`. A later order with an id that was seen is a `duplicate` if
//! it says the same as the first (customer, currency, lines as a list), else a `conflict`; a later movement is left out.
//!
//! An id is remembered in the time bucket `floor(event_time / width)` of its first occurrence, `width` = horizon / 24. Bucket `b`
//! is dropped at the end of the epoch in which `W(e) ≥ (b+1)·width + horizon`.
//!
//! # Design
//!
//! Ids lie in *segments*: up to 4096 ids of one key group and one bucket, their text one behind the other, as in an Arrow array, and for
//! orders 128 bits of XXH3 over the content of each. Segments are only ever appended to. A checkpoint therefore writes the segments
//! that are new and the tail of those that grew, as columns of text; a segment whose bucket is dropped is never touched again.
//! For each key group there is one hash table, from an id's hash to its place in a segment. 16 bytes a slot, and the hash in it,
//! so that neither a growing table nor, but for one in 2⁶⁴, a look-up of another id reads the ids.
//!
//! Dropping a bucket only marks its segments: a slot that leads to a marked segment is as good as none, and is overwritten when its id
//! comes back. The slots themselves are taken out in the epochs that follow, in the order of the dropped segments, at most
//! 4096 and two for each of the epoch's rows: no epoch pays for a bucket of millions, and removal is always faster than what
//! is added. A segment's memory is freed, and its number used again, when the last slot that leads to it is gone. When that happens cannot
//! be observed in the results. Of the tables themselves one is looked at in each epoch and given room ahead of need, so that the 128
//! tables, which are of one size, do not double at the same time.
//!
//! An epoch's rows are walked group by group, hashed once, a few looked up ahead of the one that is decided.

mod remembered;
mod state;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt8Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use xxhash_rust::xxh3::xxh3_128;

use self::remembered::Remembered;
use self::state::Changes;
pub(crate) use self::state::sightings;
use crate::by_group::{ByGroup, HashedRow};
use crate::columns::{micros, text, u8s};
use crate::epoch::{EpochInfo, Micros};
use crate::keys::hash;
use crate::prefetch::AHEAD;
use crate::rows::{movements, orders};
use crate::validate::Status;

/// Time buckets in a horizon.
pub const BUCKETS: i64 = 24;

/// Settings of both deduplications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeduplicateSettings {
    /// How long, in event time behind the watermark, an id is remembered at least; microseconds.
    pub horizon: Micros,
}

impl DeduplicateSettings {
    /// The width of a bucket: a 24th of the horizon, in whole microseconds, at least one.
    pub fn width(&self) -> Micros {
        (self.horizon / BUCKETS).max(1)
    }

    fn remembered<C: Copy>(&self) -> Remembered<C> {
        Remembered::new(self.width(), self.horizon)
    }
}

/// Finds orders whose id was seen.
#[derive(Debug)]
pub struct Deduplicate {
    seen: Remembered<Fingerprint>,
    by_group: ByGroup,
    /// Of the epoch's rows.
    fingerprints: Vec<Fingerprint>,
    /// What one of them is made of.
    content: Vec<u8>,
    changes: Changes,
}

impl Deduplicate {
    /// Nothing seen yet.
    pub fn new(settings: DeduplicateSettings) -> Self {
        Deduplicate {
            seen: settings.remembered(),
            by_group: ByGroup::default(),
            fingerprints: Vec::new(),
            content: Vec::new(),
            changes: Changes::default(),
        }
    }

    /// Takes an epoch: [`orders::validated`] in canonical order, `None` if there are none here. Returns the same rows, the column
    /// [`orders::STATUS`] set to [`Status::Duplicate`] or [`Status::Conflict`] where an id was seen. Rows that are not
    /// [`Status::Fresh`] pass as they are and are not remembered.
    pub fn on_epoch(&mut self, info: &EpochInfo, orders: Option<&RecordBatch>) -> Option<RecordBatch> {
        let marked = orders.map(|orders| self.mark(orders));
        self.seen.end_epoch(info.watermark, orders.map_or(0, RecordBatch::num_rows));
        marked
    }

    fn mark(&mut self, orders: &RecordBatch) -> RecordBatch {
        let (ids, times, statuses) = (text(orders, orders::ORDER_ID), micros(orders, orders::EVENT_TIME), u8s(orders, orders::STATUS));
        let fresh = (0..statuses.len()).filter(|&row| statuses[row] == Status::Fresh as u8);
        self.by_group.fill(fresh.map(|row| HashedRow { hash: hash(ids.value(row).as_bytes()), row: row as u32 }));
        // In the order in which they lie, which is faster than group by group; those of invalid rows are not looked at.
        let contents = Contents::of(orders);
        self.fingerprints.clear();
        self.fingerprints.extend((0..statuses.len()).map(|row| contents.fingerprint(row, &mut self.content)));
        let mut repeated = Vec::new();
        for (group, rows) in self.by_group.groups() {
            for rows in rows.chunks(AHEAD) {
                self.seen.look_ahead(group, rows);
                for &HashedRow { hash, row } in rows {
                    let row = row as usize;
                    let content = self.fingerprints[row];
                    if let Some(first) = self.seen.see(group, hash, ids.value(row), times[row], content) {
                        repeated.push((row, if first == content { Status::Duplicate } else { Status::Conflict }));
                    }
                }
            }
        }
        let mut marked = orders.clone();
        if !repeated.is_empty() {
            let mut statuses = statuses.to_vec();
            for (row, status) in repeated {
                statuses[row] = status as u8;
            }
            let mut columns = orders.columns().to_vec();
            columns[orders::STATUS] = Arc::new(UInt8Array::from(statuses)) as ArrayRef;
            marked = RecordBatch::try_new(orders.schema(), columns).expect("one column is replaced by one of the same type and length");
        }
        if self.changes.kept {
            let fresh = u8s(&marked, orders::STATUS).iter().map(|&status| status == Status::Fresh as u8);
            self.changes.add_orders(&marked, &self.fingerprints, BooleanBuffer::from_iter(fresh));
        }
        marked
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes of memory they take.
    pub fn bytes(&self) -> usize {
        self.seen.bytes()
    }
}

/// Leaves out stock movements whose id was seen.
#[derive(Debug)]
pub struct DeduplicateMovements {
    seen: Remembered<()>,
    by_group: ByGroup,
    changes: Changes,
}

impl DeduplicateMovements {
    /// Nothing seen yet.
    pub fn new(settings: DeduplicateSettings) -> Self {
        DeduplicateMovements { seen: settings.remembered(), by_group: ByGroup::default(), changes: Changes::default() }
    }

    /// Takes an epoch: [`movements::schema`] in canonical order, `None` if there are none here. Returns the rows whose id was not seen; `None`
    /// if there are none.
    ///
    /// A movement whose bucket is behind every live one still takes effect, and is forgotten at the end of its epoch.
    pub fn on_epoch(&mut self, info: &EpochInfo, movements: Option<&RecordBatch>) -> Option<RecordBatch> {
        let first = movements.map(|movements| self.keep_first(movements)).filter(|first| first.num_rows() > 0);
        self.seen.end_epoch(info.watermark, movements.map_or(0, RecordBatch::num_rows));
        first
    }

    fn keep_first(&mut self, movements: &RecordBatch) -> RecordBatch {
        let (ids, times) = (text(movements, movements::MOVEMENT_ID), micros(movements, movements::EVENT_TIME));
        let hashed = |row: usize| HashedRow { hash: hash(ids.value(row).as_bytes()), row: row as u32 };
        self.by_group.fill((0..ids.len()).map(hashed));
        let mut first = vec![true; ids.len()];
        let mut kept = ids.len();
        for (group, rows) in self.by_group.groups() {
            for rows in rows.chunks(AHEAD) {
                self.seen.look_ahead(group, rows);
                for &HashedRow { hash, row } in rows {
                    let row = row as usize;
                    if self.seen.see(group, hash, ids.value(row), times[row], ()).is_some() {
                        first[row] = false;
                        kept -= 1;
                    }
                }
            }
        }
        let first = BooleanBuffer::from(first);
        if self.changes.kept {
            let [ids, times] = [movements::MOVEMENT_ID, movements::EVENT_TIME].map(|column| movements.column(column).clone());
            self.changes.add_movements(ids, times, first.clone());
        }
        if kept == first.len() {
            return movements.clone();
        }
        let first = BooleanArray::new(first, None);
        filter_record_batch(movements, &first).expect("the filter has one value for each row")
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes of memory they take.
    pub fn bytes(&self) -> usize {
        self.seen.bytes()
    }
}

/// What an order says, in 128 bits: by chance, two contents in 2¹²⁸ are taken for one.
type Fingerprint = u128;

/// The columns that tell a duplicate from a conflict.
struct Contents<'a> {
    customers: &'a StringArray,
    currencies: &'a StringArray,
    line_offsets: &'a [i32],
    sku_offsets: &'a [i32],
    sku_text: &'a [u8],
    quantities: &'a [i64],
    unit_prices: &'a [i64],
}

impl<'a> Contents<'a> {
    fn of(orders: &'a RecordBatch) -> Self {
        let lists = orders.column(orders::LINES).as_list::<i32>();
        let lines = lists.values().as_struct();
        let skus = lines.column(0).as_string::<i32>();
        Contents {
            customers: text(orders, orders::CUSTOMER_ID),
            currencies: text(orders, orders::CURRENCY),
            line_offsets: lists.value_offsets(),
            sku_offsets: skus.value_offsets(),
            sku_text: skus.value_data(),
            quantities: lines.column(1).as_primitive::<Int64Type>().values(),
            unit_prices: lines.column(2).as_primitive::<Int64Type>().values(),
        }
    }

    /// XXH3 over the lengths of all texts, the texts, and the lines' numbers. As the lengths come first (and say how many lines there are),
    /// two contents cannot be one sequence of bytes. Remembered in checkpoints: it may not change.
    fn fingerprint(&self, row: usize, bytes: &mut Vec<u8>) -> Fingerprint {
        let (customer, currency) = (self.customers.value(row), self.currencies.value(row));
        let lines = self.line_offsets[row] as usize..self.line_offsets[row + 1] as usize;
        // The texts of an order's lines lie one behind the other.
        let sku_offsets = &self.sku_offsets[lines.start..=lines.end];
        let skus = &self.sku_text[sku_offsets[0] as usize..sku_offsets[lines.len()] as usize];
        bytes.clear();
        bytes.extend_from_slice(&(lines.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(customer.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(currency.len() as u32).to_le_bytes());
        for sku in sku_offsets.windows(2) {
            bytes.extend_from_slice(&((sku[1] - sku[0]) as u32).to_le_bytes());
        }
        bytes.extend_from_slice(customer.as_bytes());
        bytes.extend_from_slice(currency.as_bytes());
        bytes.extend_from_slice(skus);
        for line in lines {
            bytes.extend_from_slice(&self.quantities[line].to_le_bytes());
            bytes.extend_from_slice(&self.unit_prices[line].to_le_bytes());
        }
        xxh3_128(bytes)
    }
}

#[cfg(test)]
mod tests;
