//! The orders' side of the reservation.

mod state;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, SchemaRef};
use compact_str::CompactString;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::messages::{Decisions, NONE, Order, RequestKind, Requests, Verdict, verdict};
use crate::columns::{extend, micros, text, u8s, u32s, u64s};
use crate::epoch::{EpochInfo, Micros, Place};
use crate::features::WindowSet;
use crate::growth::{Paged, tend};
use crate::keys::{KEY_GROUPS, KeyGroup, hash, key_group};
use crate::prefetch::{AHEAD, prefetch};
use crate::rows::lifecycle::{self, LifecycleKind};
use crate::rows::{PLACE, orders};
use crate::score::Thresholds;
use crate::streams::{self, Stream};
use crate::validate::Status;

/// What a desk is told once.
#[derive(Clone, Debug)]
pub struct ReserveSettings {
    /// How long after its event time an unpaid order holds stock; microseconds.
    pub hold: Micros,
    /// Scores from which an order is reviewed or rejected.
    pub thresholds: Thresholds,
    /// The model's name and version, as it stands in `order_decisions`.
    pub model: String,
    /// The windows of the fraud features.
    pub windows: WindowSet,
}

/// The orders that come to the desk: [`orders::validated`], the fraud features (int64 or null), `fraud_score` (double or null).
pub fn scored_schema(windows: &WindowSet) -> SchemaRef {
    let features = windows.feature_names().iter().map(|name| Field::new(name, DataType::Int64, true));
    extend(&orders::validated(), features.chain([Field::new("fraud_score", DataType::Float64, true)]))
}

/// Where an order's reservation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationStatus {
    /// Its units are held until paid, shipped, cancelled or expired.
    Held,
    /// Paid: held until shipped or cancelled.
    Confirmed,
    /// Nothing is held any more.
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    sku: u32,
    quantity: i64,
}

#[derive(Clone, Debug)]
struct Reservation {
    order_id: CompactString,
    event_time: Micros,
    status: ReservationStatus,
    /// Position among the epoch's open orders, or `NONE` once granted.
    open: u32,
    /// A younger order of the same id, or `NONE`.
    next: u32,
    lines: SmallVec<[Line; 2]>,
}

/// The hash of an order id, and the slot of its oldest reservation.
#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    slot: u32,
}

/// The reservations of one key group.
#[derive(Default)]
struct Group {
    /// To the oldest reservation of each id.
    table: HashTable<Entry>,
    slots: Paged<Reservation>,
    free: Vec<u32>,
}

impl Group {
    fn find(&self, hashed: u64, order_id: &str) -> Option<u32> {
        let same = |entry: &Entry| entry.hash == hashed && self.slots[entry.slot as usize].order_id == order_id;
        self.table.find(hashed, same).map(|entry| entry.slot)
    }

    /// Asks for what finding an id will touch, and inserting it. Tells where that most likely is.
    fn prefetch(&self, hashed: u64) -> Option<u32> {
        let found = self.table.find(hashed, |entry| entry.hash == hashed).map(|entry| entry.slot);
        if let Some(at) = found.or_else(|| self.free.last().copied()) {
            prefetch(&raw const self.slots[at as usize]);
        }
        found
    }

    /// Lines of the older reservations of the same id.
    fn lines_before(&self, at: u32) -> u32 {
        let order_id = &self.slots[at as usize].order_id;
        let mut before = self.find(hash(order_id.as_bytes()), order_id).expect("a reservation hangs in the table or on an older one");
        let mut lines = 0;
        while before != at {
            let reservation = &self.slots[before as usize];
            lines += reservation.lines.len() as u32;
            before = reservation.next;
        }
        lines
    }

    fn insert(&mut self, hashed: u64, reservation: Reservation) -> u32 {
        let oldest = self.find(hashed, &reservation.order_id);
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = reservation;
                at
            }
            None => {
                self.slots.push(reservation);
                self.slots.len() as u32 - 1
            }
        };
        match oldest {
            None => {
                self.table.insert_unique(hashed, Entry { hash: hashed, slot: at }, |entry| entry.hash);
            }
            Some(mut last) => {
                while self.slots[last as usize].next != NONE {
                    last = self.slots[last as usize].next;
                }
                self.slots[last as usize].next = at;
            }
        }
        at
    }

    fn remove(&mut self, at: u32) {
        let hashed = hash(self.slots[at as usize].order_id.as_bytes());
        let next = self.slots[at as usize].next;
        match self.table.find_entry(hashed, |oldest| oldest.slot == at) {
            Ok(mut entry) if next != NONE => entry.get_mut().slot = next,
            Ok(entry) => {
                entry.remove();
            }
            Err(_) => {
                let mut before = self.find(hashed, &self.slots[at as usize].order_id).expect("a younger reservation hangs on an older one");
                while self.slots[before as usize].next != at {
                    before = self.slots[before as usize].next;
                }
                self.slots[before as usize].next = next;
            }
        }
        let slot = &mut self.slots[at as usize];
        slot.status = ReservationStatus::Gone;
        slot.order_id = CompactString::const_new("");
        slot.lines = SmallVec::new();
        self.free.push(at);
    }
}

/// Names of SKUs, so that a reservation keeps a number for each. There are few SKUs beside orders; none is forgotten.
#[derive(Default)]
struct Names {
    table: HashTable<u32>,
    names: Vec<CompactString>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        let hashed = hash(name.as_bytes());
        let names = &mut self.names;
        if let Some(&at) = self.table.find(hashed, |&at| names[at as usize] == name) {
            return at;
        }
        let at = names.len() as u32;
        names.push(name.into());
        self.table.insert_unique(hashed, at, |&at| hash(names[at as usize].as_bytes()));
        at
    }

    /// Asks for what finding a name will touch.
    fn prefetch(&self, name: &str) {
        // The table does not say whose a slot is: the first one whose tag fits nearly always is the name's.
        if let Some(&at) = self.table.find(hash(name.as_bytes()), |_| true) {
            prefetch(&raw const self.names[at as usize]);
        }
    }
}

/// A (merged) line of an open order.
struct OpenLine {
    order: u32,
    /// Row of its first line among the lines of the epoch's orders.
    child: u32,
    quantity: i64,
    total: i64,
    verdict: Verdict,
    /// The stock's worker and its number of the line; `NONE` until it first answered.
    worker: u32,
    entry: u32,
}

/// An order of this epoch that asks for stock.
struct OpenOrder {
    row: u32,
    lines: Range<u32>,
    group: u16,
    slot: u32,
    /// Lines without a certain verdict.
    open: u32,
    granted: Option<bool>,
}

/// A message for an open order: ignored should the order be refused.
struct Conditional {
    order: u32,
    row: u32,
}

/// What an epoch brought forth.
#[derive(Default)]
pub struct Finished {
    /// Holds that ran out, for the stock.
    pub expiries: Option<RecordBatch>,
    /// Rows of `order_decisions`; see [`streams::internal_schema`].
    pub decisions: Option<RecordBatch>,
    /// Rows of `order_lines`.
    pub lines: Option<RecordBatch>,
    /// Rows of `reservation_events` of kind `ignored`.
    pub ignored: Option<RecordBatch>,
}

/// The orders that belong to one worker: who holds what, and the epoch's orders until they are decided.
///
/// An epoch goes: [`begin`](Desk::begin) → requests; [`hear`](Desk::hear) verdicts → decisions, until [`is_complete`](Desk::is_complete);
/// then [`finish`](Desk::finish).
pub struct Desk {
    worker: u32,
    settings: ReserveSettings,
    decisions_schema: SchemaRef,
    groups: Vec<Group>,
    names: Names,
    /// Holds by the second of their order's event time. An entry may be out of date: the slot says what holds.
    deadlines: BTreeMap<i64, Vec<(u16, u32, Micros)>>,
    len: usize,
    /// The group whose table is tended next.
    tended: usize,
    /// What has happened since somebody asked, if anybody will.
    changes: Option<state::Changes>,
    // -- of the epoch
    orders: Option<RecordBatch>,
    lifecycle: Option<RecordBatch>,
    open: Vec<OpenOrder>,
    lines: Vec<OpenLine>,
    conditional: Vec<Conditional>,
    ignored: Vec<u32>,
    incomplete: usize,
}

const DEADLINE_BUCKET: Micros = 1_000_000;

impl Desk {
    /// With no reservation.
    pub fn new(worker: usize, settings: ReserveSettings) -> Self {
        let decisions_schema = streams::internal_schema(Stream::OrderDecisions, Some(&settings.windows));
        Desk {
            worker: worker as u32,
            settings,
            decisions_schema,
            groups: (0..KEY_GROUPS).map(|_| Group::default()).collect(),
            names: Names::default(),
            deadlines: BTreeMap::new(),
            len: 0,
            tended: 0,
            changes: None,
            orders: None,
            lifecycle: None,
            open: Vec::new(),
            lines: Vec::new(),
            conditional: Vec::new(),
            ignored: Vec::new(),
            incomplete: 0,
        }
    }

    /// Columns of the decisions that [`finish`](Desk::finish) makes.
    pub fn decisions_schema(&self) -> SchemaRef {
        self.decisions_schema.clone()
    }

    /// How many orders hold stock.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the epoch's orders ([`scored_schema`]) and life-cycle rows, each in canonical order; returns what to ask the stock.
    pub fn begin(&mut self, orders: Option<RecordBatch>, lifecycle: Option<RecordBatch>) -> Option<RecordBatch> {
        assert!(self.orders.is_none() && self.lifecycle.is_none(), "an epoch begins when the one before is finished");
        let mut requests = Requests::default();
        {
            let order_places = orders.as_ref().map_or(&[][..], |b| u64s(b, PLACE));
            let message_places = lifecycle.as_ref().map_or(&[][..], |b| u64s(b, PLACE));
            let columns = orders.as_ref().map(OrderColumns::new);
            let (mut o, mut m) = (0, 0);
            while o < order_places.len() || m < message_places.len() {
                if o < order_places.len() && (m >= message_places.len() || order_places[o] < message_places[m]) {
                    if let Some(columns) = &columns {
                        if o.is_multiple_of(AHEAD) {
                            self.prefetch_orders(columns, o..order_places.len().min(o + AHEAD));
                        }
                        self.order(columns, o, &mut requests);
                    }
                    o += 1;
                } else {
                    if let Some(batch) = &lifecycle {
                        if m.is_multiple_of(AHEAD) {
                            self.prefetch_messages(batch, m..message_places.len().min(m + AHEAD));
                        }
                        self.message(batch, m, &mut requests);
                    }
                    m += 1;
                }
            }
        }
        self.orders = orders;
        self.lifecycle = lifecycle;
        requests.finish()
    }

    fn prefetch_orders(&self, columns: &OrderColumns<'_>, rows: Range<usize>) {
        for row in rows.clone() {
            let hashed = hash(columns.order_id.value(row).as_bytes());
            self.groups[key_group(hashed).0 as usize].prefetch(hashed);
        }
        for line in columns.offsets[rows.start]..columns.offsets[rows.end] {
            self.names.prefetch(columns.sku.value(line as usize));
        }
    }

    fn prefetch_messages(&self, batch: &RecordBatch, rows: Range<usize>) {
        let order_ids = text(batch, lifecycle::ORDER_ID);
        let mut found = SmallVec::<[(u16, u32); AHEAD]>::new();
        for row in rows {
            let hashed = hash(order_ids.value(row).as_bytes());
            let KeyGroup(group) = key_group(hashed);
            found.extend(self.groups[group as usize].prefetch(hashed).map(|slot| (group, slot)));
        }
        for (group, slot) in found {
            for line in &self.groups[group as usize].slots[slot as usize].lines {
                prefetch(&raw const self.names.names[line.sku as usize]);
            }
        }
    }

    fn order(&mut self, columns: &OrderColumns<'_>, row: usize, requests: &mut Requests) {
        let passes = columns.status[row] == Status::Fresh as u8 && columns.score[row] < self.settings.thresholds.reject;
        if !passes {
            return;
        }
        let order_id = columns.order_id.value(row);
        let hashed = hash(order_id.as_bytes());
        let KeyGroup(group) = key_group(hashed);
        let order = Order { place: Place(columns.place[row]), order_id, event_time: columns.event_time[row] };
        let first = self.lines.len();
        merge_lines(columns, row, self.open.len() as u32, &mut self.lines);
        let count = (self.lines.len() - first) as u32;
        let mut lines = SmallVec::with_capacity(count as usize);
        for (ordinal, line) in self.lines[first..].iter().enumerate() {
            let sku = columns.sku.value(line.child as usize);
            lines.push(Line { sku: self.names.number(sku), quantity: line.quantity });
            requests.push(RequestKind::Line, order, sku, line.quantity, ordinal as u32, self.worker, (first + ordinal) as u32, count);
        }
        let reservation = Reservation {
            order_id: order_id.into(),
            event_time: order.event_time,
            status: ReservationStatus::Held,
            open: self.open.len() as u32,
            next: NONE,
            lines,
        };
        let slot = self.groups[group as usize].insert(hashed, reservation);
        self.len += 1;
        let lines = first as u32..self.lines.len() as u32;
        self.open.push(OpenOrder { row: row as u32, lines, group, slot, open: count, granted: None });
        self.incomplete += 1;
    }

    fn message(&mut self, batch: &RecordBatch, row: usize, requests: &mut Requests) {
        let order_id = text(batch, lifecycle::ORDER_ID).value(row);
        let hashed = hash(order_id.as_bytes());
        let KeyGroup(group) = key_group(hashed);
        let group = &mut self.groups[group as usize];
        // The oldest one of that id that still holds something; one of this epoch may be gone already but not yet removed.
        let mut found = group.find(hashed, order_id);
        while let Some(at) = found.filter(|&at| group.slots[at as usize].status == ReservationStatus::Gone) {
            found = Some(group.slots[at as usize].next).filter(|&next| next != NONE);
        }
        let Some(at) = found else { return self.ignored.push(row as u32) };
        let reservation = &mut group.slots[at as usize];
        let (kind, status) = match (LifecycleKind::from_u8(u8s(batch, lifecycle::KIND)[row]), reservation.status) {
            (LifecycleKind::Captured, ReservationStatus::Held) => (RequestKind::Confirm, ReservationStatus::Confirmed),
            (LifecycleKind::Captured, _) => return self.ignored.push(row as u32),
            (LifecycleKind::Cancelled, _) => (RequestKind::Release, ReservationStatus::Gone),
            (LifecycleKind::Shipped, _) => (RequestKind::Ship, ReservationStatus::Gone),
        };
        reservation.status = status;
        let open = reservation.open;
        let first = if open == NONE {
            NONE
        } else {
            self.conditional.push(Conditional { order: open, row: row as u32 });
            self.open[open as usize].lines.start
        };
        let order = Order { place: Place(u64s(batch, PLACE)[row]), order_id, event_time: micros(batch, lifecycle::EVENT_TIME)[row] };
        let count = reservation.lines.len() as u32;
        for (ordinal, line) in reservation.lines.iter().enumerate() {
            let ordinal = ordinal as u32;
            let depends_on = if first == NONE { NONE } else { first + ordinal };
            requests.push(kind, order, &self.names.names[line.sku as usize], line.quantity, ordinal, self.worker, depends_on, count);
        }
        if open == NONE && status == ReservationStatus::Gone {
            group.remove(at);
            self.len -= 1;
        }
    }

    /// Takes stocks' verdicts; returns the decisions that they led to.
    pub fn hear(&mut self, batches: &[RecordBatch]) -> Option<RecordBatch> {
        let mut decisions = Decisions::default();
        for batch in batches {
            let (lines, workers, entries) = (u32s(batch, verdict::LINE), u32s(batch, verdict::WORKER), u32s(batch, verdict::ENTRY));
            let verdicts = u8s(batch, verdict::VERDICT);
            debug_assert!(u32s(batch, verdict::OWNER).iter().all(|&o| o == self.worker));
            for row in 0..batch.num_rows() {
                self.line_verdict(lines[row], workers[row], entries[row], Verdict::from_u8(verdicts[row]), &mut decisions);
            }
        }
        decisions.finish()
    }

    fn line_verdict(&mut self, line: u32, worker: u32, entry: u32, verdict: Verdict, decisions: &mut Decisions) {
        let at = line;
        let line = &mut self.lines[at as usize];
        let order = &mut self.open[line.order as usize];
        let single = order.lines.len() == 1;
        let known = std::mem::replace(&mut line.entry, entry) != NONE;
        line.worker = worker;
        line.verdict = verdict;
        if verdict != Verdict::Maybe {
            order.open -= 1;
            self.incomplete -= (order.open == 0) as usize;
        }
        match order.granted {
            // Refused on another line before this one's owner had answered: now it can be told.
            Some(granted) if !known && !single && verdict != Verdict::No => decisions.push(worker, entry, granted),
            Some(_) => {}
            None if verdict == Verdict::No => {
                order.granted = Some(false);
                if !single {
                    for other in order.lines.clone().filter(|&l| l != at) {
                        let other = &self.lines[other as usize];
                        // Who said no knows, and who has not answered yet is told then.
                        if other.entry != NONE && other.verdict != Verdict::No {
                            decisions.push(other.worker, other.entry, false);
                        }
                    }
                }
            }
            None if order.open == 0 => {
                order.granted = Some(true);
                if !single {
                    // An uncontended line counts as granted unless told otherwise.
                    for line in
                        self.lines[order.lines.start as usize..order.lines.end as usize].iter().filter(|l| l.verdict == Verdict::Yes)
                    {
                        decisions.push(line.worker, line.entry, true);
                    }
                }
            }
            None => {}
        }
    }

    /// Whether every order of the epoch is decided, and every line of the refused ones judged.
    pub fn is_complete(&self) -> bool {
        self.incomplete == 0
    }

    /// Ends the epoch: writes down what was granted, fires the timers, and makes the rows.
    ///
    /// # Panics
    /// If it is not complete.
    pub fn finish(&mut self, info: &EpochInfo) -> Finished {
        assert!(self.is_complete(), "an epoch is finished when its orders are decided");
        self.settle();
        tend(&mut self.groups[self.tended].table, |entry| entry.hash);
        self.tended = (self.tended + 1) % self.groups.len();
        let orders = self.orders.take();
        let lifecycle = self.lifecycle.take();
        let lines = orders.as_ref().and_then(|orders| self.line_rows(orders));
        if let Some(changes) = &mut self.changes {
            lines.iter().for_each(|lines| changes.granted(lines));
            lifecycle.iter().for_each(|messages| changes.messages(messages, &self.ignored));
        }
        let finished = Finished {
            expiries: self.fire(info.watermark),
            decisions: orders.as_ref().map(|orders| self.decision_rows(info, orders)),
            lines,
            ignored: lifecycle.as_ref().and_then(|batch| self.ignored_rows(batch)),
        };
        self.open.clear();
        self.lines.clear();
        self.conditional.clear();
        self.ignored.clear();
        finished
    }

    /// Granted orders become reservations (or are gone already), refused ones leave no trace but their messages, ignored.
    fn settle(&mut self) {
        for order in &self.open {
            let group = &mut self.groups[order.group as usize];
            let reservation = &mut group.slots[order.slot as usize];
            reservation.open = NONE;
            let granted = order.granted.expect("every order is decided");
            if !granted || reservation.status == ReservationStatus::Gone {
                group.remove(order.slot);
                self.len -= 1;
                continue;
            }
            if reservation.status == ReservationStatus::Held {
                let bucket = reservation.event_time.div_euclid(DEADLINE_BUCKET);
                self.deadlines.entry(bucket).or_default().push((order.group, order.slot, reservation.event_time));
            }
        }
        for message in &self.conditional {
            if self.open[message.order as usize].granted == Some(false) {
                self.ignored.push(message.row);
            }
        }
        self.ignored.sort_unstable();
    }

    /// Releases the holds that ran out.
    fn fire(&mut self, watermark: Micros) -> Option<RecordBatch> {
        // The greatest event time whose hold has run out.
        let due = watermark.checked_sub(self.settings.hold)?;
        let mut expired: Vec<(Micros, u16, u32)> = Vec::new();
        while let Some(mut bucket) = self.deadlines.first_entry().filter(|b| *b.key() <= due.div_euclid(DEADLINE_BUCKET)) {
            let mut later = Vec::new();
            for holds in bucket.get().chunks(AHEAD) {
                for &(group, slot, _) in holds {
                    prefetch(&raw const self.groups[group as usize].slots[slot as usize]);
                }
                for &(group, slot, event_time) in holds {
                    let reservation = &self.groups[group as usize].slots[slot as usize];
                    match reservation.status == ReservationStatus::Held && reservation.event_time == event_time {
                        true if event_time <= due => expired.push((event_time, group, slot)),
                        true => later.push((group, slot, event_time)),
                        false => {}
                    }
                }
            }
            if !later.is_empty() {
                *bucket.get_mut() = later;
                break; // The last bucket that is due, in part.
            }
            bucket.remove();
        }
        let mut requests = Requests::default();
        let mut written = self.changes.is_some().then(|| (StringBuilder::new(), Vec::new()));
        // An entry may be there twice: its slot was used again.
        expired.retain(|&(event_time, group, slot)| {
            let group = &mut self.groups[group as usize];
            let reservation = &group.slots[slot as usize];
            if reservation.status != ReservationStatus::Held {
                return false;
            }
            // Orders with one id may share an event time, too: the older goes first.
            let before = group.lines_before(slot);
            let order = Order { place: Place::AFTER_ROWS, order_id: &reservation.order_id, event_time };
            for (ordinal, line) in (before..).zip(&reservation.lines) {
                let sku = &self.names.names[line.sku as usize];
                requests.push(RequestKind::Expire, order, sku, line.quantity, ordinal, self.worker, NONE, 0);
            }
            if let Some((ids, times)) = &mut written {
                ids.append_value(&reservation.order_id);
                times.push(event_time);
            }
            group.slots[slot as usize].status = ReservationStatus::Gone;
            true
        });
        if let (Some(changes), Some((ids, times))) = (&mut self.changes, written) {
            changes.expired(ids, times);
        }
        for expired in expired.chunks(AHEAD) {
            for &(_, group, slot) in expired {
                let group = &self.groups[group as usize];
                group.prefetch(hash(group.slots[slot as usize].order_id.as_bytes()));
            }
            for &(_, group, slot) in expired {
                self.groups[group as usize].remove(slot);
                self.len -= 1;
            }
        }
        requests.finish()
    }

    fn decision_rows(&self, info: &EpochInfo, orders: &RecordBatch) -> RecordBatch {
        let rows = orders.num_rows();
        let columns = OrderColumns::new(orders);
        let review = self.settings.thresholds.review;
        let (mut decision, mut reason) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut open = self.open.iter().peekable();
        let mut out_of_stock = false;
        for row in 0..rows {
            let asked = open.next_if(|o| o.row == row as u32);
            let (d, r) = match (Status::from_u8(columns.status[row]), asked.and_then(|o| o.granted)) {
                (Status::Invalid, _) => ("rejected", "invalid"),
                (Status::Duplicate, _) => ("rejected", "duplicate"),
                (Status::Conflict, _) => ("rejected", "conflict"),
                (Status::Fresh, Some(true)) if columns.score[row] >= review => ("review", ""),
                (Status::Fresh, Some(true)) => ("accepted", ""),
                (Status::Fresh, Some(false)) => ("rejected", "out_of_stock"),
                (Status::Fresh, None) => ("rejected", "fraud"),
            };
            out_of_stock |= r == "out_of_stock";
            decision.push(d);
            reason.push(r);
        }
        let detail = if out_of_stock { self.detail(orders, &columns) } else { orders.column(orders::DETAIL).clone() };
        let fresh = columns.status.iter().map(|&s| (s == Status::Fresh as u8).then_some(self.settings.model.as_str()));
        let features = orders::DETAIL + 1;
        let score = features + self.settings.windows.feature_names().len();
        let column = |c: usize| orders.column(c).clone();
        let mut all: Vec<ArrayRef> =
            [PLACE, orders::ORDER_ID, orders::CUSTOMER_ID, orders::EVENT_TIME, orders::CURRENCY].map(column).into();
        all.extend([orders::TOTAL, orders::AMOUNT, orders::LINE_COUNT, orders::UNIT_COUNT].map(column));
        all.push(Arc::new(StringArray::from(decision)));
        all.push(Arc::new(StringArray::from(reason)));
        all.push(detail);
        all.push(column(score));
        all.push(Arc::new(StringArray::from_iter(fresh)));
        all.extend((features..score).map(column));
        all.extend([orders::BILLING_COUNTRY, orders::SHIPPING_COUNTRY].map(column));
        all.push(Arc::new(TimestampMicrosecondArray::from(vec![info.sealed_at; rows]).with_timezone("UTC")));
        RecordBatch::try_new(self.decisions_schema.clone(), all).expect("the columns fit the schema of order_decisions")
    }

    /// The failed rules, and for refused orders the SKUs that were short.
    fn detail(&self, orders: &RecordBatch, columns: &OrderColumns<'_>) -> ArrayRef {
        let rules = orders.column(orders::DETAIL).as_list::<i32>();
        let mut detail = ListBuilder::new(StringBuilder::new()).with_field(Field::new("item", DataType::Utf8, false));
        let mut open = self.open.iter().peekable();
        for row in 0..orders.num_rows() {
            match open.next_if(|o| o.row == row as u32) {
                Some(order) if order.granted == Some(false) => {
                    let lines = &self.lines[order.lines.start as usize..order.lines.end as usize];
                    let short = lines.iter().filter(|l| l.verdict == Verdict::No);
                    let mut short: Vec<&str> = short.map(|l| columns.sku.value(l.child as usize)).collect();
                    short.sort_unstable();
                    short.iter().for_each(|sku| detail.values().append_value(sku));
                }
                _ => {
                    let rules = rules.value(row);
                    rules.as_string::<i32>().iter().flatten().for_each(|rule| detail.values().append_value(rule));
                }
            }
            detail.append(true);
        }
        Arc::new(detail.finish())
    }

    fn line_rows(&self, orders: &RecordBatch) -> Option<RecordBatch> {
        let granted = self.open.iter().filter(|o| o.granted == Some(true));
        let (mut rows, mut children, mut quantity, mut total) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for order in granted {
            for line in &self.lines[order.lines.start as usize..order.lines.end as usize] {
                rows.push(order.row);
                children.push(line.child);
                quantity.push(line.quantity);
                total.push(line.total);
            }
        }
        if rows.is_empty() {
            return None;
        }
        let (rows, children) = (UInt32Array::from(rows), UInt32Array::from(children));
        let lines = orders.column(orders::LINES).as_list::<i32>().values().as_struct();
        let of_order = |c: usize| take(orders.column(c), &rows, None).expect("the indices are those of rows of this batch");
        let of_line = |c: usize| take(lines.column(c), &children, None).expect("the indices are those of lines of this batch");
        let columns = vec![
            of_order(PLACE),
            of_order(orders::ORDER_ID),
            of_order(orders::CUSTOMER_ID),
            of_order(orders::EVENT_TIME),
            of_line(0),
            Arc::new(Int64Array::from(quantity)),
            of_line(2),
            Arc::new(Int64Array::from(total)),
        ];
        let schema = streams::internal_schema(Stream::OrderLines, None);
        Some(RecordBatch::try_new(schema, columns).expect("the columns fit the schema of order_lines"))
    }

    fn ignored_rows(&self, batch: &RecordBatch) -> Option<RecordBatch> {
        let count = self.ignored.len();
        if count == 0 {
            return None;
        }
        let rows = UInt32Array::from(self.ignored.clone());
        let column = |c: usize| take(batch.column(c), &rows, None).expect("the indices are those of rows of this batch");
        let null = || Arc::new(Int64Array::new_null(count)) as ArrayRef;
        let columns = vec![
            column(PLACE),
            column(lifecycle::ORDER_ID),
            Arc::new(StringArray::new_null(count)) as ArrayRef,
            null(),
            Arc::new(StringArray::from(vec!["ignored"; count])),
            column(lifecycle::EVENT_TIME),
            null(),
            null(),
            Arc::new(UInt32Array::from(vec![0; count])),
        ];
        let schema = streams::internal_reservation_events();
        Some(RecordBatch::try_new(schema, columns).expect("the columns fit the schema of reservation_events"))
    }
}

/// The columns of the epoch's orders that decide.
struct OrderColumns<'a> {
    place: &'a [u64],
    order_id: &'a StringArray,
    event_time: &'a [i64],
    status: &'a [u8],
    score: &'a [f64],
    offsets: &'a [i32],
    sku: &'a StringArray,
    quantity: &'a [i64],
    unit_price: &'a [i64],
}

impl<'a> OrderColumns<'a> {
    fn new(batch: &'a RecordBatch) -> Self {
        let list = batch.column(orders::LINES).as_list::<i32>();
        let lines = list.values().as_struct();
        OrderColumns {
            place: u64s(batch, PLACE),
            order_id: text(batch, orders::ORDER_ID),
            event_time: micros(batch, orders::EVENT_TIME),
            status: u8s(batch, orders::STATUS),
            score: batch.column(batch.num_columns() - 1).as_primitive::<Float64Type>().values(),
            offsets: list.value_offsets(),
            sku: lines.column(0).as_string(),
            quantity: lines.column(1).as_primitive::<Int64Type>().values(),
            unit_price: lines.column(2).as_primitive::<Int64Type>().values(),
        }
    }
}

/// Above this many lines, finding the ones of the same SKU takes a table.
const FEW_LINES: usize = 16;

/// Adds up the order's lines by SKU, in the order of each SKU's first line. Under the default limits a valid order's sums
/// are far from 64 bits; under others they saturate.
fn merge_lines(columns: &OrderColumns<'_>, row: usize, order: u32, lines: &mut Vec<OpenLine>) {
    let range = columns.offsets[row] as usize..columns.offsets[row + 1] as usize;
    let first = lines.len();
    let mut table = hashbrown::HashMap::new();
    let many = range.len() > FEW_LINES;
    for child in range {
        let sku = columns.sku.value(child);
        let (quantity, total) = (columns.quantity[child], columns.quantity[child].saturating_mul(columns.unit_price[child]));
        let same = if many {
            let next = lines.len();
            Some(*table.entry(sku).or_insert(next)).filter(|&at| at < next)
        } else {
            (first..lines.len()).find(|&at| columns.sku.value(lines[at].child as usize) == sku)
        };
        match same {
            Some(at) => {
                lines[at].quantity = lines[at].quantity.saturating_add(quantity);
                lines[at].total = lines[at].total.saturating_add(total);
            }
            None => {
                let child = child as u32;
                lines.push(OpenLine { order, child, quantity, total, verdict: Verdict::Maybe, worker: 0, entry: NONE });
            }
        }
    }
}
