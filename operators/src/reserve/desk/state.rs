//! The reservations as rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringBuilder, StructArray, TimestampMicrosecondArray, UInt8Array, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, SchemaRef};
use compact_str::CompactString;
use smallvec::SmallVec;

use super::{DEADLINE_BUCKET, Desk, Group, Line, NONE, Names, Reservation, ReservationStatus};
use crate::columns::{micros, text, timestamp_type, u8s, u32s};
use crate::epoch::Micros;
use crate::keys::{KeyGroup, hash, key_group};
use crate::snapshot::{KEY, KeyedState};

const ORDINAL: usize = 1;
const EVENT_TIME: usize = 2;
const STATUS: usize = 3;
const LINES: usize = 4;

/// Values of the column `status`.
const HELD: u8 = 0;
const CONFIRMED: u8 = 1;
const GONE: u8 = 2;

fn line_fields() -> Fields {
    Fields::from(vec![Field::new("sku", DataType::Utf8, false), Field::new("quantity", DataType::Int64, false)])
}

fn line_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(line_fields()), false))
}

/// order_id (text), ordinal (uint32: 0 for the oldest reservation of that id, which replaces all that was known of the id), event_time (timestamp: of the
/// order), status (uint8: 0 held, 1 confirmed, 2 there is none any more), lines (list of sku, quantity)
fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("order_id", DataType::Utf8, false),
            Field::new("ordinal", DataType::UInt32, false),
            Field::new("event_time", timestamp_type(), false),
            Field::new("status", DataType::UInt8, false),
            Field::new("lines", DataType::List(line_field()), false),
        ]))
    });
    SCHEMA.clone()
}

/// Rows to be.
struct Rows {
    order_id: StringBuilder,
    ordinal: Vec<u32>,
    event_time: Vec<Micros>,
    status: Vec<u8>,
    ends: Vec<i32>,
    sku: StringBuilder,
    quantity: Vec<i64>,
}

impl Rows {
    fn new() -> Rows {
        Rows {
            order_id: StringBuilder::new(),
            ordinal: Vec::new(),
            event_time: Vec::new(),
            status: Vec::new(),
            ends: vec![0],
            sku: StringBuilder::new(),
            quantity: Vec::new(),
        }
    }

    /// All reservations of an id, from its oldest on.
    fn push_all(&mut self, order_id: &str, oldest: Option<u32>, group: &Group, names: &Names) {
        let mut next = oldest;
        let mut ordinal = 0;
        while let Some(at) = next {
            let Reservation { event_time, status, ref lines, next: younger, .. } = group.slots[at as usize];
            for line in lines {
                self.sku.append_value(&names.names[line.sku as usize]);
                self.quantity.push(line.quantity);
            }
            self.push(order_id, ordinal, event_time, if status == ReservationStatus::Held { HELD } else { CONFIRMED });
            ordinal += 1;
            next = Some(younger).filter(|&at| at != NONE);
        }
        if oldest.is_none() {
            self.push(order_id, 0, 0, GONE);
        }
    }

    fn push(&mut self, order_id: &str, ordinal: u32, event_time: Micros, status: u8) {
        self.order_id.append_value(order_id);
        self.ordinal.push(ordinal);
        self.event_time.push(event_time);
        self.status.push(status);
        self.ends.push(self.quantity.len() as i32);
    }

    fn finish(mut self) -> Option<RecordBatch> {
        if self.status.is_empty() {
            return None;
        }
        let lines: Vec<ArrayRef> = vec![Arc::new(self.sku.finish()), Arc::new(Int64Array::from(self.quantity))];
        let lines = Arc::new(StructArray::new(line_fields(), lines, None));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.order_id.finish()),
            Arc::new(UInt32Array::from(self.ordinal)),
            Arc::new(TimestampMicrosecondArray::from(self.event_time).with_timezone("UTC")),
            Arc::new(UInt8Array::from(self.status)),
            Arc::new(ListArray::new(line_field(), OffsetBuffer::new(self.ends.into()), lines, None)),
        ];
        Some(RecordBatch::try_new(schema(), columns).expect("the columns are those of a reservation"))
    }
}

impl KeyedState for Desk {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn group_len(&self, group: KeyGroup) -> usize {
        self.groups[group.0 as usize].table.len()
    }

    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        let group = &self.groups[group.0 as usize];
        let mut rows = Rows::new();
        for entry in &group.table {
            rows.push_all(&group.slots[entry.slot as usize].order_id, Some(entry.slot), group, &self.names);
        }
        rows.finish()
    }

    fn keep_changes(&mut self) {
        self.changed.get_or_insert_default();
    }

    fn take_changes(&mut self) -> Option<RecordBatch> {
        let changed = std::mem::take(self.changed.as_mut()?);
        let mut rows = Rows::new();
        for order_id in changed {
            let hashed = hash(order_id.as_bytes());
            let group = &self.groups[key_group(hashed).0 as usize];
            rows.push_all(&order_id, group.find(hashed, &order_id), group, &self.names);
        }
        rows.finish()
    }

    fn restore(&mut self, rows: &RecordBatch) {
        let (ids, ordinals) = (text(rows, KEY), u32s(rows, ORDINAL));
        let (times, statuses) = (micros(rows, EVENT_TIME), u8s(rows, STATUS));
        let list = rows.column(LINES).as_list::<i32>();
        let items = list.values().as_struct();
        let (skus, quantities) = (items.column(0).as_string::<i32>(), items.column(1).as_primitive::<Int64Type>());
        for row in 0..rows.num_rows() {
            let order_id = ids.value(row);
            let hashed = hash(order_id.as_bytes());
            let KeyGroup(number) = key_group(hashed);
            let group = &mut self.groups[number as usize];
            while let Some(at) = group.find(hashed, order_id).filter(|_| ordinals[row] == 0) {
                group.remove(at);
                self.len -= 1;
            }
            let status = match statuses[row] {
                HELD => ReservationStatus::Held,
                CONFIRMED => ReservationStatus::Confirmed,
                _ => continue,
            };
            let lines = list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize;
            let line = |at: usize| Line { sku: self.names.number(skus.value(at)), quantity: quantities.value(at) };
            let lines: SmallVec<[Line; 2]> = lines.map(line).collect();
            let event_time = times[row];
            let reservation = Reservation { order_id: CompactString::from(order_id), event_time, status, open: NONE, next: NONE, lines };
            let slot = group.insert(hashed, reservation);
            self.len += 1;
            if status == ReservationStatus::Held {
                self.deadlines.entry(event_time.div_euclid(DEADLINE_BUCKET)).or_default().push((number, slot, event_time));
            }
        }
    }

    fn begin_restore(&mut self, _watermark: Micros) {}
}
