//! The remembered ids as rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, RecordBatch, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::remembered::Remembered;
use super::{Deduplicate, DeduplicateMovements, Fingerprint};
use crate::by_group::{ByGroup, HashedRow};
use crate::columns::{bools, micros, text, timestamp_type};
use crate::epoch::Micros;
use crate::keys::{KeyGroup, hash};
use crate::prefetch::AHEAD;
use crate::rows::orders;
use crate::snapshot::{KEY, KeyedState};

/// What was remembered since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Whether anybody will ask.
    pub kept: bool,
    rows: Vec<RecordBatch>,
}

impl Changes {
    /// An epoch's orders. Not copied: which of them count stands beside them.
    pub fn add_orders(&mut self, orders: &RecordBatch, fingerprints: &[Fingerprint], fresh: BooleanBuffer) {
        self.rows.push(sightings::rows(orders, fingerprints, fresh));
    }

    /// Those of an epoch's movements of which `which` holds.
    pub fn add_movements(&mut self, ids: ArrayRef, times: ArrayRef, which: BooleanBuffer) {
        self.add(&remembered_movements_schema(), vec![ids, times], which);
    }

    fn add(&mut self, schema: &SchemaRef, columns: Vec<ArrayRef>, which: BooleanBuffer) {
        let rows = RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of what is remembered");
        let rows = filter_record_batch(&rows, &BooleanArray::new(which, None)).expect("the filter has one value for each row");
        if rows.num_rows() > 0 {
            self.rows.push(rows);
        }
    }

    fn take(&mut self) -> Vec<RecordBatch> {
        std::mem::take(&mut self.rows)
    }
}

/// Columns of orders as they are written down: what is remembered of an id, and what the order counts for in the windows of the fraud features, so
/// that an order's texts are written once.
pub(crate) mod sightings {
    use super::*;

    /// Some instant of the id's time bucket; in changes the order's event time.
    pub const EVENT_TIME: usize = 1;
    /// The fingerprint of the first occurrence.
    pub const CONTENT: usize = 2;
    /// Whether the id is remembered, and the order counted: false for orders that are invalid or not the first.
    pub const FRESH: usize = 3;
    /// Of [`orders`], what follows; null in bases.
    const OF_ORDER: [usize; 5] = [orders::CUSTOMER_ID, orders::CARD_FINGERPRINT, orders::DEVICE_ID, orders::IP, orders::AMOUNT];

    /// Where a column of orders is.
    ///
    /// # Panics
    /// If it is none of those that are written down.
    pub fn of_order(column: usize) -> usize {
        let at = OF_ORDER.iter().position(|&of| of == column);
        FRESH + 1 + at.expect("windows have keys, members and amounts that are written down")
    }

    /// id (text), event_time (timestamp), content (16 bytes), fresh (boolean), customer_id, card_fingerprint, device_id, ip (text or null), amount
    /// (int64 or null)
    pub fn schema() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            let content = Field::new("content", DataType::FixedSizeBinary(size_of::<Fingerprint>() as i32), false);
            let fresh = Field::new("fresh", DataType::Boolean, false);
            let of_order = OF_ORDER.map(|column| Field::clone(orders::validated().field(column)).with_nullable(true));
            crate::columns::extend(&remembered_movements_schema(), [content, fresh].into_iter().chain(of_order))
        });
        SCHEMA.clone()
    }

    /// The orders of an epoch.
    pub(in super::super) fn rows(orders: &RecordBatch, fingerprints: &[Fingerprint], fresh: BooleanBuffer) -> RecordBatch {
        let of_order = |column: usize| orders.column(column).clone();
        let mut columns = [orders::ORDER_ID, orders::EVENT_TIME].map(of_order).to_vec();
        columns.extend([contents(fingerprints), Arc::new(BooleanArray::new(fresh, None)) as ArrayRef]);
        columns.extend(OF_ORDER.map(of_order));
        RecordBatch::try_new(schema(), columns).expect("the columns are those of orders")
    }

    /// A group's ids.
    pub(super) fn base(ids: ArrayRef, times: ArrayRef, fingerprints: &[Fingerprint]) -> RecordBatch {
        let rows = ids.len();
        let fresh = BooleanArray::new(BooleanBuffer::new_set(rows), None);
        let nulls = schema().fields()[FRESH + 1..].iter().map(|field| new_null_array(field.data_type(), rows)).collect::<Vec<_>>();
        let known = [ids, times, contents(fingerprints), Arc::new(fresh) as ArrayRef];
        RecordBatch::try_new(schema(), known.into_iter().chain(nulls).collect()).expect("the columns are those of what is remembered")
    }
}

/// id (text), event_time (timestamp: some instant of the id's time bucket)
fn remembered_movements_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false), Field::new("event_time", timestamp_type(), false)]))
    });
    SCHEMA.clone()
}

fn contents(fingerprints: &[Fingerprint]) -> ArrayRef {
    let bytes: Vec<u8> = fingerprints.iter().flat_map(|content| content.to_le_bytes()).collect();
    Arc::new(FixedSizeBinaryArray::new(size_of::<Fingerprint>() as i32, Buffer::from_vec(bytes), None))
}

/// A group's ids, and the contents of each.
fn base<C: Copy>(seen: &Remembered<C>, group: KeyGroup, mut content: impl FnMut(C)) -> Option<[ArrayRef; 2]> {
    let rows = seen.group_len(group);
    let (mut ids, mut times) = (StringBuilder::with_capacity(rows, 16 * rows), Vec::with_capacity(rows));
    seen.each(group, |id, time, c| {
        ids.append_value(id);
        times.push(time);
        content(c);
    });
    let times = TimestampMicrosecondArray::from(times).with_timezone("UTC");
    (rows > 0).then(|| [Arc::new(ids.finish()) as ArrayRef, Arc::new(times) as ArrayRef])
}

/// Remembers rows that were remembered before.
fn restore<C: Copy>(
    seen: &mut Remembered<C>,
    by_group: &mut ByGroup,
    rows: &RecordBatch,
    counts: impl Fn(usize) -> bool,
    content: impl Fn(usize) -> C,
) {
    let (ids, times) = (text(rows, KEY), micros(rows, 1));
    let counted = (0..ids.len()).filter(|&row| counts(row));
    by_group.fill(counted.map(|row| HashedRow { hash: hash(ids.value(row).as_bytes()), row: row as u32 }));
    for (group, rows) in by_group.groups() {
        for rows in rows.chunks(AHEAD) {
            seen.look_ahead(group, rows);
            for &HashedRow { hash, row } in rows {
                seen.restore(group, hash, ids.value(row as usize), times[row as usize], content(row as usize));
            }
        }
    }
}

impl KeyedState for Deduplicate {
    fn schema(&self) -> SchemaRef {
        sightings::schema()
    }
    fn group_len(&self, group: KeyGroup) -> usize {
        self.seen.group_len(group)
    }
    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        let mut fingerprints = Vec::with_capacity(self.seen.group_len(group));
        let [ids, times] = base(&self.seen, group, |content| fingerprints.push(content))?;
        Some(sightings::base(ids, times, &fingerprints))
    }
    fn keep_changes(&mut self) {
        self.changes.kept = true;
    }
    fn take_changes(&mut self) -> Vec<RecordBatch> {
        self.changes.take()
    }
    fn restore(&mut self, rows: &RecordBatch) {
        let contents = rows.column(sightings::CONTENT).as_fixed_size_binary();
        let content = |row: usize| Fingerprint::from_le_bytes(contents.value(row).try_into().expect("a fingerprint has 16 bytes"));
        let fresh = bools(rows, sightings::FRESH);
        restore(&mut self.seen, &mut self.by_group, rows, |row| fresh.value(row), content);
    }
    fn begin_restore(&mut self, watermark: Micros) {
        self.seen.begin_restore(watermark);
    }
}

impl KeyedState for DeduplicateMovements {
    fn schema(&self) -> SchemaRef {
        remembered_movements_schema()
    }
    fn group_len(&self, group: KeyGroup) -> usize {
        self.seen.group_len(group)
    }
    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        let columns = base(&self.seen, group, |()| ())?;
        Some(RecordBatch::try_new(self.schema(), columns.into()).expect("the columns are those of what is remembered"))
    }
    fn keep_changes(&mut self) {
        self.changes.kept = true;
    }
    fn take_changes(&mut self) -> Vec<RecordBatch> {
        self.changes.take()
    }
    fn restore(&mut self, rows: &RecordBatch) {
        restore(&mut self.seen, &mut self.by_group, rows, |_row| true, |_row| ());
    }
    fn begin_restore(&mut self, watermark: Micros) {
        self.seen.begin_restore(watermark);
    }
}
