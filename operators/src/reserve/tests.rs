//! Desks and stocks without the dataflow, their messages delivered in any order, against a serial walk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
    UInt8Array, UInt64Array, new_null_array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::*;
use crate::columns::{micros, text, u32s, u64s};
use crate::dataflow::{concat, in_order};
use crate::epoch::{Epoch, EpochInfo, Place};
use crate::exchange::owner_of;
use crate::features::WindowSet;
use crate::keys::group_owner;
use crate::rows::{lifecycle, movements, orders};
use crate::score::Thresholds;
use crate::snapshot::{KeyedState, Written};

#[derive(Clone, Debug)]
enum Row {
    Order { id: u8, time: i64, lines: Vec<(u8, i64)>, fraud: bool },
    Life { kind: u8, id: u8 },
    Movement { kind: u8, sku: u8, quantity: i64 },
}

fn sku(n: u8) -> String {
    format!("s{n}")
}
fn order_id(n: u8) -> String {
    format!("o{n}")
}

// --- the serial walk -----------------------------------------------------------------------

/// An output row as text: (stream, what sorts it within its epoch, its columns).
type Line = String;

#[derive(Default)]
struct Serial {
    units: BTreeMap<String, (i64, i64)>,
    active: BTreeMap<u8, Vec<Active>>,
}

struct Active {
    time: i64,
    confirmed: bool,
    lines: Vec<(String, i64)>,
}

impl Serial {
    fn epoch(&mut self, rows: &[(u64, Row)], watermark: i64, hold: i64) -> Vec<Line> {
        let mut out = Vec::new();
        for (place, row) in rows {
            match row {
                Row::Movement { kind, sku: n, quantity } => {
                    let units = self.units.entry(sku(*n)).or_default();
                    match kind {
                        0 => units.0 += quantity,
                        1 => units.0 = (units.0 - quantity).max(0),
                        _ => units.0 = *quantity,
                    }
                    out.push(format!("movement {place} {} {} {}", sku(*n), units.0, units.1));
                }
                Row::Order { fraud: true, .. } => out.push(format!("decision {place} rejected fraud []")),
                Row::Order { id, time, lines, .. } => {
                    let mut merged: Vec<(String, i64)> = Vec::new();
                    for (n, quantity) in lines {
                        match merged.iter_mut().find(|l| l.0 == sku(*n)) {
                            Some(line) => line.1 += quantity,
                            None => merged.push((sku(*n), *quantity)),
                        }
                    }
                    let available = |name: &str| self.units.get(name).map_or(0, |u| u.0 - u.1);
                    let mut short: Vec<&str> = merged.iter().filter(|l| available(&l.0) < l.1).map(|l| l.0.as_str()).collect();
                    short.sort();
                    if !short.is_empty() {
                        out.push(format!("decision {place} rejected out_of_stock {short:?}"));
                        continue;
                    }
                    out.push(format!("decision {place} accepted  []"));
                    for (name, quantity) in &merged {
                        out.push(format!("line {place} {name} {quantity}"));
                    }
                    self.change(&merged, &format!("event {place} {}", order_id(*id)), "held", |u, q| u.1 += q, &mut out);
                    self.active.entry(*id).or_default().push(Active { time: *time, confirmed: false, lines: merged });
                }
                Row::Life { kind, id } => {
                    let prefix = format!("event {place} {}", order_id(*id));
                    let first = self.active.get_mut(id).filter(|a| !a.is_empty());
                    match (kind, first) {
                        (1, Some(active)) if !active[0].confirmed => {
                            active[0].confirmed = true;
                            let lines = active[0].lines.clone();
                            self.change(&lines, &prefix, "confirmed", |_, _| (), &mut out);
                        }
                        (0, Some(active)) => {
                            let gone = active.remove(0);
                            self.change(&gone.lines, &prefix, "released", |u, q| u.1 -= q, &mut out);
                        }
                        (2, Some(active)) => {
                            let gone = active.remove(0);
                            let ship = |u: &mut (i64, i64), q| (u.0, u.1) = (u.0 - q, u.1 - q);
                            self.change(&gone.lines, &prefix, "shipped", ship, &mut out);
                        }
                        _ => out.push(format!("{prefix} null null ignored null null")),
                    }
                }
            }
        }
        let mut due: Vec<(i64, String, u8)> = Vec::new();
        for (&id, active) in &self.active {
            due.extend(active.iter().filter(|a| !a.confirmed && a.time + hold <= watermark).map(|a| (a.time, order_id(id), id)));
        }
        due.sort();
        for (time, name, id) in due {
            let active = self.active.get_mut(&id).unwrap();
            let at = active.iter().position(|a| !a.confirmed && a.time == time).unwrap();
            let gone = active.remove(at);
            self.change(&gone.lines, &format!("event {} {name}", u64::MAX), "expired", |u, q| u.1 -= q, &mut out);
        }
        out
    }

    fn change(&mut self, lines: &[(String, i64)], prefix: &str, kind: &str, apply: impl Fn(&mut (i64, i64), i64), out: &mut Vec<Line>) {
        for (name, quantity) in lines {
            let units = self.units.entry(name.clone()).or_default();
            apply(units, *quantity);
            out.push(format!("{prefix} {name} {quantity} {kind} {} {}", units.0, units.1));
        }
    }
}

// --- desks and stocks ----------------------------------------------------------------------

fn scored(rows: &[(u64, &Row)], windows: &WindowSet) -> Option<RecordBatch> {
    if rows.is_empty() {
        return None;
    }
    let n = rows.len();
    let (mut ids, mut times, mut scores, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), vec![0i32]);
    let (mut skus, mut quantities) = (Vec::new(), Vec::new());
    for (_, row) in rows {
        let Row::Order { id, time, lines, fraud } = row else { unreachable!() };
        ids.push(order_id(*id));
        times.push(*time);
        scores.push(if *fraud { 0.95 } else { 0.1 });
        for (n, quantity) in lines {
            skus.push(sku(*n));
            quantities.push(*quantity);
        }
        offsets.push(skus.len() as i32);
    }
    let prices = vec![1; quantities.len()];
    let lines = StructArray::new(
        orders::line_fields(),
        vec![Arc::new(StringArray::from(skus)), Arc::new(Int64Array::from(quantities)), Arc::new(Int64Array::from(prices))],
        None,
    );
    let schema = scored_schema(windows);
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(c, field)| -> ArrayRef {
            match c {
                0 => Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.0))),
                orders::ORDER_ID => Arc::new(StringArray::from(ids.clone())),
                orders::CUSTOMER_ID | orders::CURRENCY => Arc::new(StringArray::from(vec!["c"; n])),
                orders::EVENT_TIME => Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")),
                orders::LINES => Arc::new(ListArray::new(
                    orders::line_field(),
                    OffsetBuffer::new(ScalarBuffer::from(offsets.clone())),
                    Arc::new(lines.clone()),
                    None,
                )),
                orders::STATUS => Arc::new(UInt8Array::from(vec![0; n])),
                orders::LINE_COUNT => Arc::new(Int64Array::from(vec![1; n])),
                orders::DETAIL => {
                    let empty = ListArray::new(
                        Arc::new(arrow::datatypes::Field::new("item", arrow::datatypes::DataType::Utf8, false)),
                        OffsetBuffer::new(ScalarBuffer::from(vec![0; n + 1])),
                        Arc::new(StringArray::new_null(0)),
                        None,
                    );
                    Arc::new(empty)
                }
                _ if field.name() == "fraud_score" => Arc::new(Float64Array::from(scores.clone())),
                _ => new_null_array(field.data_type(), n),
            }
        })
        .collect();
    Some(RecordBatch::try_new(schema, columns).unwrap())
}

fn messages(rows: &[(u64, &Row)]) -> Option<RecordBatch> {
    if rows.is_empty() {
        return None;
    }
    let part = |r: &Row| if let Row::Life { kind, id } = r { (*kind, order_id(*id)) } else { unreachable!() };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|r| part(r.1).0))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| part(r.1).1))),
        Arc::new(TimestampMicrosecondArray::from(vec![0; rows.len()]).with_timezone("UTC")),
    ];
    Some(RecordBatch::try_new(lifecycle::schema(), columns).unwrap())
}

fn received(rows: &[(u64, &Row)]) -> Option<RecordBatch> {
    if rows.is_empty() {
        return None;
    }
    let part = |r: &Row| if let Row::Movement { kind, sku: n, quantity } = r { (*kind, sku(*n), *quantity) } else { unreachable!() };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|r| part(r.1).0))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0.to_string()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| part(r.1).1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| part(r.1).2))),
        Arc::new(TimestampMicrosecondArray::from(vec![0; rows.len()]).with_timezone("UTC")),
    ];
    Some(RecordBatch::try_new(movements::schema(), columns).unwrap())
}

/// Splits a batch's rows by a key or worker column.
fn route(batch: &RecordBatch, peers: usize, to: impl Fn(usize) -> usize) -> Vec<Option<RecordBatch>> {
    (0..peers)
        .map(|peer| {
            let rows: Vec<u32> = (0..batch.num_rows()).filter(|&r| to(r) == peer).map(|r| r as u32).collect();
            (!rows.is_empty()).then(|| arrow::compute::take_record_batch(batch, &arrow::array::UInt32Array::from(rows)).unwrap())
        })
        .collect()
}

struct System {
    settings: ReserveSettings,
    desks: Vec<Desk>,
    stocks: Vec<Stock>,
    /// Of all desks, and of all stocks.
    written: [Written; 2],
    random: u64,
    rounds_max: usize,
}

impl System {
    fn new(peers: usize, hold: i64, seed: u64) -> Self {
        let settings = ReserveSettings {
            hold,
            thresholds: Thresholds { reject: 0.9, review: 0.7 },
            model: "m/1".into(),
            windows: WindowSet::default(),
        };
        let mut system = System { settings, desks: vec![], stocks: vec![], written: Default::default(), random: seed | 1, rounds_max: 0 };
        system.restart(peers, i64::MIN);
        system
    }

    /// Goes on from what was written down, with other workers.
    fn restart(&mut self, peers: usize, watermark: i64) {
        self.desks = (0..peers).map(|w| Desk::new(w, self.settings.clone())).collect();
        self.stocks = (0..peers).map(Stock::new).collect();
        for w in 0..peers {
            let mine = |group| group_owner(group, peers) == w;
            let states: [&mut dyn KeyedState; 2] = [&mut self.desks[w], &mut self.stocks[w]];
            for (state, written) in states.into_iter().zip(&self.written) {
                written.restore(state, watermark, mine);
                state.keep_changes();
            }
        }
    }

    /// Writes down what an epoch changed.
    fn write_down(&mut self, epoch: u64) {
        for desk in &mut self.desks {
            self.written[0].changes(epoch, desk);
        }
        for stock in &mut self.stocks {
            self.written[1].changes(epoch, stock);
        }
        let peers = self.desks.len();
        self.written[0].bases(epoch, |group| &self.desks[group_owner(group, peers)]);
        self.written[1].bases(epoch, |group| &self.stocks[group_owner(group, peers)]);
    }

    fn pick(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) as usize % n
    }

    fn epoch(&mut self, number: u64, rows: &[(u64, Row)], watermark: i64) -> Vec<Line> {
        let peers = self.desks.len();
        let of = |want: usize| -> Vec<(u64, &Row)> {
            let is = |r: &Row| match r {
                Row::Order { .. } => 0,
                Row::Life { .. } => 1,
                Row::Movement { .. } => 2,
            };
            rows.iter().filter(|r| is(&r.1) == want).map(|(p, r)| (*p, r)).collect()
        };
        let windows = WindowSet::default();
        let split = |batch: Option<RecordBatch>, column: usize| match batch {
            None => vec![None; peers],
            Some(batch) => route(&batch, peers, |r| owner_of(text(&batch, column).value(r).as_bytes(), peers)),
        };
        let orders = split(scored(&of(0), &windows), orders::ORDER_ID);
        let lives = split(messages(&of(1)), lifecycle::ORDER_ID);
        let moves = split(received(&of(2)), movements::SKU);

        let mut asked: Vec<Vec<RecordBatch>> = vec![vec![]; peers];
        for (desk, (orders, lives)) in self.desks.iter_mut().zip(orders.into_iter().zip(lives)) {
            if let Some(batch) = desk.begin(orders, lives) {
                let by_sku = route(&batch, peers, |r| owner_of(text(&batch, messages::request::SKU).value(r).as_bytes(), peers));
                by_sku.into_iter().enumerate().for_each(|(w, b)| asked[w].extend(b));
            }
        }
        // In flight: to whom, and what. Delivered in any order but that of one sender to one receiver.
        let mut to_desks: Vec<Vec<(usize, RecordBatch)>> = vec![vec![]; peers];
        let mut to_stocks: Vec<Vec<(usize, RecordBatch)>> = vec![vec![]; peers];
        for (w, (stock, moves)) in self.stocks.iter_mut().zip(moves).enumerate() {
            let verdicts = stock.begin(moves, in_order(std::mem::take(&mut asked[w])));
            post(&mut to_desks, w, verdicts);
        }
        let mut delivered = 0;
        loop {
            let waiting: Vec<(bool, usize)> = (0..peers)
                .flat_map(|w| [(true, w, to_desks[w].len()), (false, w, to_stocks[w].len())])
                .filter(|t| t.2 > 0)
                .map(|t| (t.0, t.1))
                .collect();
            if waiting.is_empty() {
                break;
            }
            delivered += 1;
            let at = self.pick(waiting.len());
            let (desk, w) = waiting[at];
            let from = if desk { &to_desks[w] } else { &to_stocks[w] };
            let sender = from[self.random as usize % from.len()].0;
            let queue = if desk { &mut to_desks[w] } else { &mut to_stocks[w] };
            let (_, batch) = queue.remove(queue.iter().position(|m| m.0 == sender).unwrap());
            if desk {
                let decisions = self.desks[w].hear(&[batch]);
                post(&mut to_stocks, w, decisions);
            } else {
                let verdicts = self.stocks[w].decide(&[batch]);
                post(&mut to_desks, w, verdicts);
            }
        }
        self.rounds_max = self.rounds_max.max(delivered);
        let info = EpochInfo { epoch: Epoch(number), sealed_at: 0, watermark_before: i64::MIN, watermark, checkpoint: false };
        let (mut decisions, mut lines, mut events, mut moved) = (vec![], vec![], vec![], vec![]);
        for desk in &mut self.desks {
            assert!(desk.is_complete());
            let finished = desk.finish(&info);
            decisions.extend(finished.decisions);
            lines.extend(finished.lines);
            events.extend(finished.ignored);
            if let Some(batch) = finished.expiries {
                let by_sku = route(&batch, peers, |r| owner_of(text(&batch, messages::request::SKU).value(r).as_bytes(), peers));
                for (stock, batch) in self.stocks.iter_mut().zip(by_sku) {
                    batch.into_iter().for_each(|b| stock.expire(b));
                }
            }
        }
        for stock in &mut self.stocks {
            let settled = stock.settle();
            events.extend(settled.events);
            moved.extend(settled.movements);
        }
        let mut out = Vec::new();
        for b in in_order(moved).iter() {
            for r in 0..b.num_rows() {
                let number = |c: usize| b.column(c).as_primitive::<Int64Type>().value(r);
                out.push(format!("movement {} {} {} {}", u64s(b, 0)[r], text(b, 2).value(r), number(6), number(7)));
            }
        }
        for b in in_order(decisions).iter() {
            for r in 0..b.num_rows() {
                let detail = b.column_by_name("detail").unwrap().as_list::<i32>().value(r);
                let detail: Vec<&str> = detail.as_string::<i32>().iter().flatten().collect();
                let column = |name: &str| b.column_by_name(name).unwrap().as_string::<i32>().value(r).to_owned();
                out.push(format!("decision {} {} {} {detail:?}", u64s(b, 0)[r], column("decision"), column("reason")));
            }
        }
        for b in in_order(lines).iter() {
            for r in 0..b.num_rows() {
                let quantity = b.column(5).as_primitive::<Int64Type>().value(r);
                out.push(format!("line {} {} {quantity}", u64s(b, 0)[r], text(b, 4).value(r)));
            }
        }
        if let Some(b) = concat(events) {
            let mut order: Vec<usize> = (0..b.num_rows()).collect();
            let expiry = |r: usize| (u64s(&b, 0)[r] == Place::AFTER_ROWS.0).then(|| (micros(&b, 5)[r], text(&b, 1).value(r)));
            order.sort_by_key(|&r| (u64s(&b, 0)[r], expiry(r), u32s(&b, 8)[r]));
            for r in order {
                let number = |c: usize| {
                    if b.column(c).is_null(r) { "null".into() } else { b.column(c).as_primitive::<Int64Type>().value(r).to_string() }
                };
                let name = if text(&b, 2).is_null(r) { "null" } else { text(&b, 2).value(r) };
                let (place, id, kind) = (u64s(&b, 0)[r], text(&b, 1).value(r), text(&b, 4).value(r));
                out.push(format!("event {place} {id} {name} {} {kind} {} {}", number(3), number(6), number(7)));
            }
        }
        out
    }
}

/// Posts a batch of messages, each row to the worker in column 0 (a verdict's owner) or, for decisions, also column 0.
fn post(to: &mut [Vec<(usize, RecordBatch)>], from: usize, batch: Option<RecordBatch>) {
    if let Some(batch) = batch {
        let parts = route(&batch, to.len(), |r| u32s(&batch, 0)[r] as usize);
        // In pieces: how messages are grouped must not matter either.
        for (to, part) in to.iter_mut().zip(parts) {
            for part in part.iter().flat_map(|p| (0..p.num_rows()).step_by(3).map(|at| p.slice(at, 3.min(p.num_rows() - at)))) {
                to.push((from, part));
            }
        }
    }
}

fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    let rank: HashMap<&str, u8> = [("movement", 0), ("decision", 1), ("line", 2), ("event", 3)].into();
    // Stable: only the streams are separated, the order within each is compared.
    lines.sort_by_key(|l| rank[l.split(' ').next().unwrap()]);
    lines
}

fn row() -> impl Strategy<Value = Row> {
    let line = (0u8..5, 1i64..6);
    prop_oneof![
        5 => (0u8..40, 0i64..60, prop::collection::vec(line, 1..4), prop::bool::weighted(0.1))
            .prop_map(|(id, time, lines, fraud)| Row::Order { id, time, lines, fraud }),
        3 => (0u8..3, 0u8..40).prop_map(|(kind, id)| Row::Life { kind, id }),
        2 => (0u8..3, 0u8..5, 0i64..25).prop_map(|(kind, sku, quantity)| Row::Movement { kind, sku, quantity }),
        1 => (0u8..5, 20i64..60).prop_map(|(sku, quantity)| Row::Movement { kind: 0, sku, quantity }),
    ]
}

/// An order id is placed once in an epoch: the stage before sees to that.
fn epochs() -> impl Strategy<Value = Vec<Vec<Row>>> {
    prop::collection::vec(prop::collection::vec(row(), 0..40), 1..6).prop_map(|epochs| {
        let mut seen = std::collections::HashSet::new();
        let mut keep = |e: usize, row: &Row| !matches!(row, Row::Order { id, .. } if !seen.insert((e, *id)));
        epochs.into_iter().enumerate().map(|(e, rows)| rows.into_iter().filter(|r| keep(e, r)).collect()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Law 3: every stream equals that of the serial walk, for any number of workers and any order of messages.
    #[test]
    fn equals_the_serial_walk(
        epochs in epochs(),
        peers in 1usize..4,
        seed in any::<u64>(),
        hold in 0i64..40,
        restarts in prop::collection::vec(prop::option::of(1usize..4), 6),
    ) {
        let mut serial = Serial::default();
        let mut system = System::new(peers, hold, seed);
        for (e, rows) in epochs.into_iter().enumerate() {
            let rows: Vec<(u64, Row)> = rows.into_iter().enumerate().map(|(at, row)| (at as u64, row)).collect();
            let watermark = 20 * e as i64;
            let expected = sorted(serial.epoch(&rows, watermark, hold));
            let found = sorted(system.epoch(e as u64 + 1, &rows, watermark));
            prop_assert_eq!(found, expected, "epoch {}: {:?}", e + 1, rows);
            system.write_down(e as u64 + 1);
            if let Some(peers) = restarts[e] {
                system.restart(peers, watermark);
            }
        }
    }
}

/// Orders each of which wants two SKUs, sharing one with the order before: decided one after the other.
#[test]
fn a_chain_ends() {
    let length = 40u8;
    let mut rows: Vec<Row> = (0..=length).map(|sku| Row::Movement { kind: 0, sku, quantity: 1 }).collect();
    rows.extend((0..length).map(|id| Row::Order { id, time: 0, lines: vec![(id, 1), (id + 1, 1)], fraud: false }));
    let rows: Vec<(u64, Row)> = rows.into_iter().enumerate().map(|(at, row)| (at as u64, row)).collect();
    let mut system = System::new(3, 10, 7);
    let found = sorted(system.epoch(1, &rows, i64::MIN));
    assert_eq!(found, sorted(Serial::default().epoch(&rows, i64::MIN + 100, 10)));
    assert_eq!(found.iter().filter(|l| l.contains("accepted")).count(), 20);
}
