//! The remembered ids as rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, RecordBatch, StringBuilder, TimestampMicrosecondArray};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::remembered::Remembered;
use super::{Deduplicate, DeduplicateMovements, Fingerprint};
use crate::by_group::{ByGroup, HashedRow};
use crate::columns::{micros, text, timestamp_type};
use crate::epoch::Micros;
use crate::keys::{KeyGroup, hash};
use crate::prefetch::AHEAD;
use crate::snapshot::{KEY, KeyedState};

/// What was remembered since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Whether anybody will ask.
    pub kept: bool,
    rows: Vec<RecordBatch>,
}

impl Changes {
    /// Those of an epoch's orders of which `which` holds.
    pub fn add_orders(&mut self, ids: ArrayRef, times: ArrayRef, fingerprints: &[Fingerprint], which: BooleanBuffer) {
        self.add(&remembered_orders_schema(), vec![ids, times, contents(fingerprints)], which);
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

    fn take(&mut self) -> Option<RecordBatch> {
        crate::dataflow::concat(std::mem::take(&mut self.rows))
    }
}

/// id (text), event_time (timestamp: some instant of the id's time bucket), content (16 bytes: the fingerprint of the first occurrence)
fn remembered_orders_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let content = Field::new("content", DataType::FixedSizeBinary(size_of::<Fingerprint>() as i32), false);
        crate::columns::extend(&remembered_movements_schema(), [content])
    });
    SCHEMA.clone()
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
fn restore<C: Copy>(seen: &mut Remembered<C>, by_group: &mut ByGroup, rows: &RecordBatch, content: impl Fn(usize) -> C) {
    let (ids, times) = (text(rows, KEY), micros(rows, 1));
    by_group.fill((0..ids.len()).map(|row| HashedRow { hash: hash(ids.value(row).as_bytes()), row: row as u32 }));
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
        remembered_orders_schema()
    }
    fn group_len(&self, group: KeyGroup) -> usize {
        self.seen.group_len(group)
    }
    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        let mut fingerprints = Vec::with_capacity(self.seen.group_len(group));
        let [ids, times] = base(&self.seen, group, |content| fingerprints.push(content))?;
        let columns = vec![ids, times, contents(&fingerprints)];
        Some(RecordBatch::try_new(self.schema(), columns).expect("the columns are those of what is remembered"))
    }
    fn keep_changes(&mut self) {
        self.changes.kept = true;
    }
    fn take_changes(&mut self) -> Option<RecordBatch> {
        self.changes.take()
    }
    fn restore(&mut self, rows: &RecordBatch) {
        let contents = rows.column(2).as_fixed_size_binary();
        let content = |row: usize| Fingerprint::from_le_bytes(contents.value(row).try_into().expect("a fingerprint has 16 bytes"));
        restore(&mut self.seen, &mut self.by_group, rows, content);
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
    fn take_changes(&mut self) -> Option<RecordBatch> {
        self.changes.take()
    }
    fn restore(&mut self, rows: &RecordBatch) {
        restore(&mut self.seen, &mut self.by_group, rows, |_row| ());
    }
    fn begin_restore(&mut self, watermark: Micros) {
        self.seen.begin_restore(watermark);
    }
}
