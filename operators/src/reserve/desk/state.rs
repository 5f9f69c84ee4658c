//! The reservations as rows.
//!
//! A base has the lines of what is held. A change has what happened, as it came: the lines of the orders that were granted, the messages about orders, and the
//! holds that ran out. So an epoch's changes are columns that are there anyway.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt8Array, UInt32Array,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use compact_str::CompactString;
use smallvec::smallvec;

use super::{DEADLINE_BUCKET, Desk, Group, Line, NONE, Reservation, ReservationStatus};
use crate::columns::{i64s, micros, text, timestamp_type, u8s, u32s, u64s};
use crate::epoch::Micros;
use crate::keys::{KeyGroup, hash, key_group};
use crate::prefetch::AHEAD;
use crate::rows::PLACE;
use crate::rows::lifecycle::{self, LifecycleKind};
use crate::snapshot::{KEY, KeyedState};

const EVENT_TIME: usize = 1;
const STATUS: usize = 2;
const LINE: usize = 3;
const SKU: usize = 4;
const QUANTITY: usize = 5;

/// A row says this, in the column `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Says {
    /// A line of an order that holds it until paid.
    Held = 0,
    /// A line of an order that was paid.
    Confirmed = 1,
    /// The oldest order of that id was paid.
    Captured = 2,
    /// The oldest order of that id holds nothing any more.
    Gone = 3,
    /// The hold of the order of that id and event time has run out.
    Expired = 4,
    /// A message without a consequence.
    Nothing = 5,
}

impl Says {
    fn from_u8(says: u8) -> Says {
        use Says::*;
        [Held, Confirmed, Captured, Gone, Expired].into_iter().find(|s| *s as u8 == says).unwrap_or(Nothing)
    }
}

/// order_id (text), event_time (timestamp: of the order; in messages theirs), status (uint8: 0 held, 1 confirmed; in changes also 2 was paid, 3 is gone, 4 expired,
/// 5 nothing), line (uint32: the number of the line in its order, from 0), sku (text, null but in lines), quantity (int64, the same)
fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("order_id", DataType::Utf8, false),
            Field::new("event_time", timestamp_type(), false),
            Field::new("status", DataType::UInt8, false),
            Field::new("line", DataType::UInt32, false),
            Field::new("sku", DataType::Utf8, true),
            Field::new("quantity", DataType::Int64, true),
        ]))
    });
    SCHEMA.clone()
}

fn rows(columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema(), columns).expect("the columns are those of reservations")
}

/// Rows without lines.
fn no_lines(order_ids: ArrayRef, times: ArrayRef, says: Vec<u8>) -> RecordBatch {
    let count = says.len();
    let null = |of: DataType| new_null_array(&of, count);
    let numbers = Arc::new(UInt32Array::from(vec![0; count]));
    rows(vec![order_ids, times, Arc::new(UInt8Array::from(says)), numbers, null(DataType::Utf8), null(DataType::Int64)])
}

/// What has happened since somebody asked.
#[derive(Default)]
pub(super) struct Changes {
    rows: Vec<RecordBatch>,
}

impl Changes {
    /// The lines of granted orders, as they stand in `order_lines`.
    pub fn granted(&mut self, lines: &RecordBatch) {
        // Where those columns are in `order_lines`.
        const OF_LINES: [usize; 4] = [1, 3, 4, 5];
        let [order_ids, times, skus, quantities] = OF_LINES.map(|column| lines.column(column).clone());
        let places = u64s(lines, PLACE);
        let mut number = 0;
        let numbers = (0..places.len()).map(|row| {
            // The lines of an order follow each other.
            number = if row > 0 && places[row] == places[row - 1] { number + 1 } else { 0 };
            number
        });
        let numbers = Arc::new(UInt32Array::from_iter_values(numbers));
        let says = Arc::new(UInt8Array::from(vec![Says::Held as u8; places.len()]));
        self.rows.push(rows(vec![order_ids, times, says, numbers, skus, quantities]));
    }

    /// An epoch's messages, but for those that were `ignored`: their numbers, rising.
    pub fn messages(&mut self, messages: &RecordBatch, ignored: &[u32]) {
        let column = |column: usize| messages.column(column).clone();
        let mut says: Vec<u8> = (u8s(messages, lifecycle::KIND).iter())
            .map(|kind| match LifecycleKind::from_u8(*kind) {
                LifecycleKind::Captured => Says::Captured as u8,
                LifecycleKind::Cancelled | LifecycleKind::Shipped => Says::Gone as u8,
            })
            .collect();
        ignored.iter().for_each(|row| says[*row as usize] = Says::Nothing as u8);
        self.rows.push(no_lines(column(lifecycle::ORDER_ID), column(lifecycle::EVENT_TIME), says));
    }

    /// Orders whose holds have run out.
    pub fn expired(&mut self, mut order_ids: StringBuilder, times: Vec<Micros>) {
        if !times.is_empty() {
            let says = vec![Says::Expired as u8; times.len()];
            self.rows.push(no_lines(
                Arc::new(order_ids.finish()),
                Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
                says,
            ));
        }
    }
}

impl Group {
    /// The oldest, then the younger ones of an id.
    fn of_id(&self, hashed: u64, order_id: &str) -> impl Iterator<Item = u32> {
        let next = |at: &u32| Some(self.slots[*at as usize].next).filter(|next| *next != NONE);
        std::iter::successors(self.find(hashed, order_id), next)
    }
}

impl Desk {
    /// Takes up row `row`.
    fn take_up(&mut self, columns: &Columns<'_>, row: usize, hashed: u64) {
        let order_id = columns.order_id.value(row);
        let event_time = columns.event_time[row];
        let KeyGroup(number) = key_group(hashed);
        let line = |desk: &mut Desk| Line { sku: desk.names.number(columns.sku.value(row)), quantity: columns.quantity[row] };
        match Says::from_u8(columns.status[row]) {
            says @ (Says::Held | Says::Confirmed) if columns.line[row] == 0 => {
                let status = if says == Says::Held { ReservationStatus::Held } else { ReservationStatus::Confirmed };
                let lines = smallvec![line(self)];
                let reservation =
                    Reservation { order_id: CompactString::from(order_id), event_time, status, open: NONE, next: NONE, lines };
                let slot = self.groups[usize::from(number)].insert(hashed, reservation);
                self.len += 1;
                if says == Says::Held {
                    self.deadlines.entry(event_time.div_euclid(DEADLINE_BUCKET)).or_default().push((number, slot, event_time));
                }
            }
            Says::Held | Says::Confirmed => {
                let line = line(self);
                let group = &mut self.groups[usize::from(number)];
                if let Some(youngest) = group.of_id(hashed, order_id).last() {
                    group.slots[youngest as usize].lines.push(line);
                }
            }
            Says::Captured => {
                let group = &mut self.groups[usize::from(number)];
                if let Some(at) = group.find(hashed, order_id) {
                    group.slots[at as usize].status = ReservationStatus::Confirmed;
                }
            }
            Says::Gone => {
                let oldest = self.groups[usize::from(number)].find(hashed, order_id);
                self.remove(number, oldest);
            }
            Says::Expired => {
                let group = &self.groups[usize::from(number)];
                let is_it = |at: &u32| {
                    let reservation = &group.slots[*at as usize];
                    reservation.status == ReservationStatus::Held && reservation.event_time == event_time
                };
                let it = group.of_id(hashed, order_id).find(is_it);
                self.remove(number, it);
            }
            Says::Nothing => {}
        }
    }

    fn remove(&mut self, group: u16, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.groups[usize::from(group)].remove(slot);
            self.len -= 1;
        }
    }
}

struct Columns<'a> {
    order_id: &'a StringArray,
    event_time: &'a [Micros],
    status: &'a [u8],
    line: &'a [u32],
    sku: &'a StringArray,
    quantity: &'a [i64],
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
        let (mut order_ids, mut skus) = (StringBuilder::new(), StringBuilder::new());
        let (mut times, mut says, mut numbers, mut quantities) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for entry in &group.table {
            let mut next = entry.slot;
            while next != NONE {
                let reservation = &group.slots[next as usize];
                for (number, line) in (0..).zip(&reservation.lines) {
                    order_ids.append_value(&reservation.order_id);
                    times.push(reservation.event_time);
                    says.push(if reservation.status == ReservationStatus::Held { Says::Held } else { Says::Confirmed } as u8);
                    numbers.push(number);
                    skus.append_value(&self.names.names[line.sku as usize]);
                    quantities.push(line.quantity);
                }
                next = reservation.next;
            }
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(order_ids.finish()),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
            Arc::new(UInt8Array::from(says)),
            Arc::new(UInt32Array::from(numbers)),
            Arc::new(skus.finish()),
            Arc::new(Int64Array::from(quantities)),
        ];
        (!columns[0].is_empty()).then(|| rows(columns))
    }

    fn keep_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    fn take_changes(&mut self) -> Vec<RecordBatch> {
        self.changes.as_mut().map(|changes| std::mem::take(&mut changes.rows)).unwrap_or_default()
    }

    fn restore(&mut self, rows: &RecordBatch) {
        let columns = Columns {
            order_id: text(rows, KEY),
            event_time: micros(rows, EVENT_TIME),
            status: u8s(rows, STATUS),
            line: u32s(rows, LINE),
            sku: text(rows, SKU),
            quantity: i64s(rows, QUANTITY),
        };
        let hashes = |rows: Range<usize>| rows.map(|row| (row, hash(columns.order_id.value(row).as_bytes())));
        let all = rows.num_rows();
        for from in (0..all).step_by(AHEAD) {
            let some = from..all.min(from + AHEAD);
            for (_, hashed) in hashes(some.clone()) {
                self.groups[usize::from(key_group(hashed).0)].prefetch(hashed);
            }
            for (row, hashed) in hashes(some) {
                self.take_up(&columns, row, hashed);
            }
        }
    }

    fn begin_restore(&mut self, _watermark: Micros) {}
}
