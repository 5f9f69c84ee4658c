//! The SKUs' side of the reservation.

mod state;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{interleave, take};
use compact_str::CompactString;
use hashbrown::{HashMap, HashTable};

use super::messages::{NONE, RequestKind, Verdict, Verdicts, decision, request};
use crate::columns::{i64s, micros, text, u8s, u32s, u64s};
use crate::keys::{KEY_GROUPS, KeyGroup, hash, key_group};
use crate::prefetch::{AHEAD, prefetch};
use crate::rows::PLACE;
use crate::rows::movements::{self, MovementKind};
use crate::streams::{self, Stream};

/// What a line of an open order has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Granted,
    Refused,
}

/// How an entry changes its SKU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Request(RequestKind),
    Movement(MovementKind),
}

/// A request or movement of the epoch, in canonical order.
struct Entry {
    change: Change,
    sku: u32,
    quantity: i64,
    /// Row in the epoch's requests or movements.
    row: u32,
    /// The desk's worker and its number of the line.
    owner: u32,
    line: u32,
    /// For what depends on a line of this epoch: that line's entry.
    depends_on: u32,
    /// The order has no other line: its verdict is its decision.
    single: bool,
    state: State,
    /// Whether a certain verdict was sent.
    certain: bool,
}

/// Units of one SKU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Units {
    on_hand: i64,
    reserved: i64,
}

impl Units {
    fn available(self) -> i128 {
        self.on_hand as i128 - self.reserved as i128
    }

    fn apply(&mut self, change: Change, quantity: i64) {
        match change {
            Change::Request(RequestKind::Line) => self.reserved = self.reserved.saturating_add(quantity),
            Change::Request(RequestKind::Release | RequestKind::Expire) => self.reserved = self.reserved.saturating_sub(quantity),
            Change::Request(RequestKind::Ship) => {
                self.on_hand = self.on_hand.saturating_sub(quantity);
                self.reserved = self.reserved.saturating_sub(quantity);
            }
            Change::Request(RequestKind::Confirm) => {}
            Change::Movement(MovementKind::Received) => self.on_hand = self.on_hand.saturating_add(quantity),
            Change::Movement(MovementKind::Removed) => self.on_hand = self.on_hand.saturating_sub(quantity).max(0),
            Change::Movement(MovementKind::Counted) => self.on_hand = quantity,
        }
    }
}

/// The least and the most that there may be, while orders are open.
#[derive(Clone, Copy)]
struct Bounds {
    least: Units,
    most: Units,
}

impl Bounds {
    /// Fewest on hand, most reserved.
    fn available_least(&self) -> i128 {
        self.least.on_hand as i128 - self.most.reserved as i128
    }
    fn available_most(&self) -> i128 {
        self.most.on_hand as i128 - self.least.reserved as i128
    }
    /// Both ends change alike: what is certain to happen, and every movement (each is monotone in `on_hand`).
    fn apply(&mut self, change: Change, quantity: i64) {
        self.least.apply(change, quantity);
        self.most.apply(change, quantity);
    }
    /// What happens only if an open order is granted; `change` undoes or follows that order's line, which widened the bounds before.
    fn apply_if_granted(&mut self, change: Change, quantity: i64) {
        match change {
            Change::Request(RequestKind::Line) => self.most.reserved = self.most.reserved.saturating_add(quantity),
            Change::Request(RequestKind::Release) => self.most.reserved = self.most.reserved.saturating_sub(quantity),
            Change::Request(RequestKind::Ship) => {
                self.most.reserved = self.most.reserved.saturating_sub(quantity);
                self.least.on_hand = self.least.on_hand.saturating_sub(quantity);
            }
            Change::Request(RequestKind::Confirm | RequestKind::Expire) | Change::Movement(_) => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Sku {
    name: CompactString,
    units: Units,
    /// Scratch of an epoch: units asked for; whether a movement may lower the stock; position in `contended`.
    demand: i64,
    may_fall: bool,
    contended: u32,
    /// Whether it is listed as changed.
    is_changed: bool,
}

impl Sku {
    fn new(name: &str) -> Sku {
        Sku { name: name.into(), units: Units::default(), demand: 0, may_fall: false, contended: NONE, is_changed: false }
    }
}

/// What an epoch did to the stock.
pub struct Settled {
    /// Rows of `reservation_events`, with an `ordinal`; see [`streams::internal_schema`].
    pub events: Option<RecordBatch>,
    /// Rows of `stock_movements`.
    pub movements: Option<RecordBatch>,
}

/// The stock of the SKUs that belong to one worker.
///
/// # Mathematics
///
/// Most SKUs have enough for everybody in an epoch; their lines are answered at once. A SKU is *contended* if the epoch asks for more than was
/// available at its start, or brings a movement that may lower its stock. The entries of a contended SKU are walked in canonical order with bounds
/// on what is on hand and reserved: an open order widens them, a granted one moves both ends, a refused one none. A
/// line is *certainly yes* if it fits the least that may be available, *certainly no* if it does not fit the most.
///
/// We maintain the invariant that the true state of the serial walk lies within the bounds at every entry: each change is
/// monotone in the state that it is applied to, and a conditional one widens before it moves. So verdicts are those of the
/// serial walk. It ends: before the earliest open order everything is decided, so there the two ends agree, and each of its lines is certain. Hence every round
/// decides at least one order.
///
/// Lines of refused orders go on being judged until they are certain too: the reason names every SKU that was short.
pub struct Stock {
    worker: u32,
    /// By key group: from the hash of a name to its position in `skus`.
    tables: Vec<HashTable<u32>>,
    skus: Vec<Sku>,
    /// SKUs whose units have changed since somebody asked, if anybody will.
    changed: Option<Vec<u32>>,
    // -- of the epoch
    entries: Vec<Entry>,
    contended: Vec<Vec<u32>>,
    requests: Option<RecordBatch>,
    received: Option<RecordBatch>,
    expiries: Vec<RecordBatch>,
    dirty: Vec<u32>,
}

impl Stock {
    /// With no stock at all.
    pub fn new(worker: usize) -> Self {
        Stock {
            worker: worker as u32,
            tables: (0..KEY_GROUPS).map(|_| HashTable::new()).collect(),
            skus: Vec::new(),
            changed: None,
            entries: Vec::new(),
            contended: Vec::new(),
            requests: None,
            received: None,
            expiries: Vec::new(),
            dirty: Vec::new(),
        }
    }

    /// How many SKUs there are.
    pub fn len(&self) -> usize {
        self.skus.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.skus.is_empty()
    }

    fn find(&mut self, name: &str) -> u32 {
        let hashed = hash(name.as_bytes());
        let KeyGroup(group) = key_group(hashed);
        let skus = &mut self.skus;
        let table = &mut self.tables[group as usize];
        if let Some(&at) = table.find(hashed, |&at| skus[at as usize].name == name) {
            return at;
        }
        let at = skus.len() as u32;
        skus.push(Sku::new(name));
        table.insert_unique(hashed, at, |&at| hash(skus[at as usize].name.as_bytes()));
        at
    }

    /// Asks for what finding these rows' SKUs will touch.
    fn prefetch(&self, names: &StringArray, first: usize) {
        for row in first..names.len().min(first + AHEAD) {
            let hashed = hash(names.value(row).as_bytes());
            // The table does not say whose a slot is: the first one whose tag fits nearly always is the name's.
            if let Some(&at) = self.tables[key_group(hashed).0 as usize].find(hashed, |_| true) {
                prefetch(&raw const self.skus[at as usize]);
            }
        }
    }

    /// Takes the epoch's movements and requests, each in canonical order, and answers every line.
    pub fn begin(&mut self, received: Option<RecordBatch>, requests: Option<RecordBatch>) -> Option<RecordBatch> {
        assert!(self.entries.is_empty() && self.expiries.is_empty(), "an epoch begins when the one before is settled");
        self.enter(received.as_ref(), requests.as_ref());
        self.requests = requests;
        self.received = received;
        self.contend();

        let mut verdicts = Verdicts::default();
        for list in 0..self.contended.len() {
            self.walk(list as u32, true, &mut verdicts);
        }
        for (at, entry) in self.entries.iter_mut().enumerate() {
            if entry.change == Change::Request(RequestKind::Line) && self.skus[entry.sku as usize].contended == NONE {
                entry.state = State::Granted;
                entry.certain = true;
                verdicts.push(entry.owner, entry.line, at as u32, Verdict::Free);
            }
        }
        verdicts.finish(self.worker)
    }

    /// Merges movements and requests into one list by place.
    fn enter(&mut self, received: Option<&RecordBatch>, requests: Option<&RecordBatch>) {
        let movement_places = received.map_or(&[][..], |b| u64s(b, PLACE));
        let request_places = requests.map_or(&[][..], |b| u64s(b, request::PLACE));
        self.entries.reserve(movement_places.len() + request_places.len());
        let mut depends = false;
        let (mut m, mut r) = (0, 0);
        while m < movement_places.len() || r < request_places.len() {
            let movement_first = m < movement_places.len() && (r >= request_places.len() || movement_places[m] < request_places[r]);
            if let Some(batch) = received.filter(|_| movement_first) {
                let names = text(batch, movements::SKU);
                if m.is_multiple_of(AHEAD) {
                    self.prefetch(names, m);
                }
                let sku = self.find(names.value(m));
                let quantity = i64s(batch, movements::QUANTITY)[m];
                let kind = MovementKind::from_u8(u8s(batch, movements::KIND)[m]);
                self.skus[sku as usize].may_fall |= kind != MovementKind::Received || quantity < 0;
                self.entries.push(Entry {
                    change: Change::Movement(kind),
                    sku,
                    quantity,
                    row: m as u32,
                    owner: 0,
                    line: NONE,
                    depends_on: NONE,
                    single: false,
                    state: State::Granted,
                    certain: true,
                });
                m += 1;
            } else if let Some(batch) = requests {
                let names = text(batch, request::SKU);
                if r.is_multiple_of(AHEAD) {
                    self.prefetch(names, r);
                }
                let sku = self.find(names.value(r));
                let quantity = i64s(batch, request::QUANTITY)[r];
                let kind = RequestKind::from_u8(u8s(batch, request::KIND)[r]);
                let line = u32s(batch, request::LINE)[r];
                let is_line = kind == RequestKind::Line;
                if is_line {
                    let sku = &mut self.skus[sku as usize];
                    sku.demand = sku.demand.saturating_add(quantity);
                }
                depends |= !is_line && line != NONE;
                self.entries.push(Entry {
                    change: Change::Request(kind),
                    sku,
                    quantity,
                    row: r as u32,
                    owner: u32s(batch, request::OWNER)[r],
                    line,
                    depends_on: NONE,
                    single: u32s(batch, request::LINES)[r] == 1,
                    state: if is_line { State::Open } else { State::Granted },
                    certain: !is_line,
                });
                r += 1;
            }
        }
        if depends {
            self.tie();
        }
    }

    /// Ties what depends on a line to that line, which came before it.
    fn tie(&mut self) {
        let mut lines: HashMap<(u32, u32), u32> = HashMap::new();
        for at in 0..self.entries.len() {
            let Entry { change, owner, line, .. } = self.entries[at];
            if change == Change::Request(RequestKind::Line) {
                lines.insert((owner, line), at as u32);
            } else if line != NONE {
                self.entries[at].depends_on = lines[&(owner, line)];
            }
        }
    }

    /// Finds the contended SKUs and lists their entries.
    fn contend(&mut self) {
        let mut lists = 0;
        for entry in &self.entries {
            let sku = &mut self.skus[entry.sku as usize];
            if sku.contended == NONE && sku.demand > 0 && (sku.may_fall || sku.demand as i128 > sku.units.available()) {
                sku.contended = lists;
                lists += 1;
            }
        }
        self.contended.resize_with(lists as usize, Vec::new);
        if lists > 0 {
            for (at, entry) in self.entries.iter().enumerate() {
                let list = self.skus[entry.sku as usize].contended;
                if list != NONE {
                    self.contended[list as usize].push(at as u32);
                }
            }
        }
    }

    /// One pass over a contended SKU's entries, saying what has become certain (and, the `first` time, what has not).
    fn walk(&mut self, list: u32, first: bool, verdicts: &mut Verdicts) {
        let list = &self.contended[list as usize];
        let Some(&any) = list.first() else { return };
        let units = self.skus[self.entries[any as usize].sku as usize].units;
        let mut bounds = Bounds { least: units, most: units };
        for &at in list {
            let depends_on = self.entries[at as usize].depends_on;
            if depends_on != NONE {
                self.entries[at as usize].state = self.entries[depends_on as usize].state;
            }
            let entry = &mut self.entries[at as usize];
            if !entry.certain {
                let quantity = entry.quantity as i128;
                let verdict = if quantity <= bounds.available_least() {
                    Verdict::Yes
                } else if quantity > bounds.available_most() {
                    Verdict::No
                } else {
                    Verdict::Maybe
                };
                entry.certain = verdict != Verdict::Maybe;
                match verdict {
                    Verdict::Yes if entry.single => entry.state = State::Granted,
                    Verdict::No => entry.state = State::Refused,
                    _ => {}
                }
                if first || entry.certain {
                    verdicts.push(entry.owner, entry.line, at, verdict);
                }
            }
            match entry.state {
                State::Granted => bounds.apply(entry.change, entry.quantity),
                State::Open => bounds.apply_if_granted(entry.change, entry.quantity),
                State::Refused => {}
            }
        }
    }

    /// Takes desks' decisions on orders, and answers what they made certain.
    pub fn decide(&mut self, batches: &[RecordBatch]) -> Option<RecordBatch> {
        for batch in batches {
            let (entries, granted) = (u32s(batch, decision::ENTRY), u8s(batch, decision::GRANTED));
            debug_assert!(u32s(batch, decision::WORKER).iter().all(|&w| w == self.worker));
            for (&at, &granted) in entries.iter().zip(granted) {
                let entry = &mut self.entries[at as usize];
                entry.state = if granted == 1 { State::Granted } else { State::Refused };
                let list = self.skus[entry.sku as usize].contended;
                if list != NONE {
                    self.dirty.push(list);
                }
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let mut verdicts = Verdicts::default();
        for list in dirty.drain(..) {
            self.walk(list, false, &mut verdicts);
        }
        self.dirty = dirty;
        verdicts.finish(self.worker)
    }

    /// Takes holds that ran out at the end of this epoch.
    pub fn expire(&mut self, requests: RecordBatch) {
        self.expiries.push(requests);
    }

    /// The epoch is over and everything in it decided: walks it once more, now exactly.
    ///
    /// # Panics
    /// If an order is still open.
    pub fn settle(&mut self) -> Settled {
        let mut entries = std::mem::take(&mut self.entries);
        let mut events = Events::default();
        let mut moved: Vec<Units> = Vec::new();
        for at in 0..entries.len() {
            if let Some(ahead) = entries.get(at + AHEAD) {
                prefetch(&raw const self.skus[ahead.sku as usize]);
            }
            let Entry { change, sku, quantity, row, depends_on, .. } = entries[at];
            if depends_on != NONE {
                entries[at].state = entries[depends_on as usize].state;
            }
            let state = entries[at].state;
            let number = sku;
            let sku = &mut self.skus[sku as usize];
            (sku.demand, sku.may_fall, sku.contended) = (0, false, NONE);
            match state {
                State::Open => unreachable!("every order of an epoch is decided before the epoch is over"),
                State::Refused => continue,
                State::Granted => sku.units.apply(change, quantity),
            }
            if let Some(changed) = &mut self.changed
                && !std::mem::replace(&mut sku.is_changed, true)
            {
                changed.push(number);
            }
            match change {
                Change::Request(kind) => events.push(0, row, kind, sku.units),
                Change::Movement(_) => moved.push(sku.units),
            }
        }
        for list in &mut self.contended {
            list.clear();
        }
        entries.clear();
        self.entries = entries;

        let requests = self.requests.take();
        let expiries = in_expiry_order(std::mem::take(&mut self.expiries));
        for row in 0..expiries.as_ref().map_or(0, |b| b.num_rows()) {
            let batch = expiries.as_ref().expect("it has rows");
            let sku = self.find(text(batch, request::SKU).value(row));
            let Sku { units, is_changed, .. } = &mut self.skus[sku as usize];
            units.apply(Change::Request(RequestKind::Expire), i64s(batch, request::QUANTITY)[row]);
            events.push(1, row as u32, RequestKind::Expire, *units);
            if let Some(changed) = &mut self.changed
                && !std::mem::replace(is_changed, true)
            {
                changed.push(sku);
            }
        }
        Settled {
            events: events.finish(requests.as_ref(), expiries.as_ref()),
            movements: self.received.take().map(|batch| movement_rows(&batch, &moved)),
        }
    }
}

/// All expiries by (event time of the order, order id, line).
fn in_expiry_order(batches: Vec<RecordBatch>) -> Option<RecordBatch> {
    let all = crate::dataflow::concat(batches)?;
    let (times, ids, ordinals) = (micros(&all, request::EVENT_TIME), text(&all, request::ORDER_ID), u32s(&all, request::ORDINAL));
    let mut order: Vec<u32> = (0..all.num_rows() as u32).collect();
    order.sort_by_key(|&r| (times[r as usize], ids.value(r as usize), ordinals[r as usize]));
    Some(arrow::compute::take_record_batch(&all, &UInt32Array::from(order)).expect("the indices are those of rows of this batch"))
}

/// Rows of `reservation_events` to be: which request they come from, and what was there after.
#[derive(Default)]
struct Events {
    from: Vec<(usize, usize)>,
    kind: Vec<&'static str>,
    on_hand: Vec<i64>,
    reserved: Vec<i64>,
}

impl Events {
    /// `batch` 0 is the epoch's requests, 1 its expiries.
    fn push(&mut self, batch: usize, row: u32, kind: RequestKind, after: Units) {
        self.from.push((batch, row as usize));
        self.kind.push(kind.event());
        self.on_hand.push(after.on_hand);
        self.reserved.push(after.reserved);
    }

    fn finish(self, requests: Option<&RecordBatch>, expiries: Option<&RecordBatch>) -> Option<RecordBatch> {
        if self.from.is_empty() {
            return None;
        }
        let column: Box<dyn Fn(usize) -> ArrayRef> = match (requests, expiries) {
            (Some(only), None) => {
                let rows = UInt32Array::from_iter_values(self.from.iter().map(|&(_, row)| row as u32));
                Box::new(move |c| take(only.column(c), &rows, None).expect("the indices are those of rows of this batch"))
            }
            (None, Some(only)) => Box::new(move |c| only.column(c).clone()),
            (Some(requests), Some(expiries)) => {
                let from = &self.from;
                Box::new(move |c| {
                    interleave(&[requests.column(c), expiries.column(c)], from).expect("the indices are those of rows of these batches")
                })
            }
            (None, None) => unreachable!("events come from requests"),
        };
        let columns: Vec<ArrayRef> = vec![
            column(request::PLACE),
            column(request::ORDER_ID),
            column(request::SKU),
            column(request::QUANTITY),
            Arc::new(StringArray::from(self.kind)),
            column(request::EVENT_TIME),
            Arc::new(Int64Array::from(self.on_hand)),
            Arc::new(Int64Array::from(self.reserved)),
            column(request::ORDINAL),
        ];
        let schema = streams::internal_reservation_events();
        Some(RecordBatch::try_new(schema, columns).expect("the columns fit the schema of reservation_events"))
    }
}

fn movement_rows(batch: &RecordBatch, after: &[Units]) -> RecordBatch {
    let types = u8s(batch, movements::KIND).iter().map(|&k| MovementKind::from_u8(k).name());
    let columns: Vec<ArrayRef> = vec![
        batch.column(PLACE).clone(),
        batch.column(movements::MOVEMENT_ID).clone(),
        batch.column(movements::SKU).clone(),
        Arc::new(StringArray::from_iter_values(types)),
        batch.column(movements::QUANTITY).clone(),
        batch.column(movements::EVENT_TIME).clone(),
        Arc::new(Int64Array::from_iter_values(after.iter().map(|u| u.on_hand))),
        Arc::new(Int64Array::from_iter_values(after.iter().map(|u| u.reserved))),
    ];
    RecordBatch::try_new(streams::internal_schema(Stream::StockMovements, None), columns)
        .expect("the columns fit the schema of stock_movements")
}
