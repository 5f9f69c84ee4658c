//! Fraud features: orders, amounts and distinct members in sliding windows, per customer, card, device and address.
//!
//! Each kind of key is an operator of its own, keyed by that key. Where the orders are, [`KeyKind::request`] makes a request of
//! each; [`Features`] answers it where the key is; [`FeatureTable`] puts the answers together.
//!
//! An order counts if it is valid and first-seen. For its event time `t` and a window of width `w`, with panes of `w / 20` and
//! `p = floor(t / (w / 20))`, a feature covers the orders already seen, in canonical order and itself included, whose pane is in `(p − 20, p]`.
//! That is exact for late orders too: these see what was seen before them in their own panes, not what came in later ones.
//!
//! # Design
//!
//! *Sums.* All windows' panes are whole numbers of one base pane (of 15 s, for 5 min, 1 h and 24 h), so that each window is a contiguous range of
//! base panes. A key's state is the sorted list of its base panes with their orders and amounts: most keys have one to five,
//! kept in place. A key with more than 32 gets a level for each window instead, by the window's own panes: then no query reads more than 20
//! entries a window. Orders in order of time touch only the ends of these lists.
//!
//! *Distinct members.* A key with few keeps a list of members and panes; one with many keeps the counts themselves up to date. See
//! `members`.
//!
//! *Forgetting.* No order comes that is staler than the dedup horizon behind the watermark. What only such orders could see is dropped
//! when a list would otherwise grow, and by a sweep over all keys for each pane of the longest window that the watermark crosses, of which each epoch
//! does a piece: 1024 keys and two for each of its rows. When it happens cannot be observed in the results.
//!
//! *Memory order.* An epoch's rows are walked group by group. The keys of some rows are looked up before the first of them is
//! changed. Keys and members of up to 24 bytes are kept in place.
//!
//! The sums and sets only ever grow by addition and union, so a checkpoint may also be the list of what was added since the one before.

mod forget;
mod keyed;
mod members;
mod pane_map;
mod state;
mod sums;
mod table;
mod windows;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Int64Type, SchemaRef};

use self::forget::Reachable;
use self::keyed::{Keyed, Sighting};
use self::sums::Totals;
pub use self::table::FeatureTable;
use self::windows::Locator;
pub use self::windows::{PANES, WindowError, WindowSet};
use crate::by_group::{ByGroup, HashedRow};
use crate::columns::{bools, micros, text, text_at, u8s};
use crate::epoch::{EpochInfo, Micros, NEVER};
use crate::keys::hash;
use crate::prefetch::AHEAD;
use crate::rows::{feature_replies, feature_requests, orders};
use crate::validate::Status;

/// What orders are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// `customer_id`; its members are devices.
    Customer,
    /// `payment.card_fingerprint`; its members are customers.
    Card,
    /// `device_id`; its members are cards.
    Device,
    /// `ip`; its members are customers.
    Ip,
}

impl KeyKind {
    /// All of them, in the order of the features.
    pub const ALL: [KeyKind; 4] = [KeyKind::Customer, KeyKind::Card, KeyKind::Device, KeyKind::Ip];

    /// In the order of the distinct counts.
    pub(crate) const BY_DISTINCT: [KeyKind; 4] = [KeyKind::Device, KeyKind::Card, KeyKind::Ip, KeyKind::Customer];

    /// As in the features' names.
    pub fn name(self) -> &'static str {
        match self {
            KeyKind::Customer => "customer",
            KeyKind::Card => "card",
            KeyKind::Device => "device",
            KeyKind::Ip => "ip",
        }
    }

    /// The distinct count's name, without its window.
    fn distinct_name(self) -> &'static str {
        match self {
            KeyKind::Customer => "customer_devices",
            KeyKind::Card => "card_customers",
            KeyKind::Device => "device_cards",
            KeyKind::Ip => "ip_customers",
        }
    }

    /// The columns of key and member.
    fn columns(self) -> (usize, usize) {
        match self {
            KeyKind::Customer => (orders::CUSTOMER_ID, orders::DEVICE_ID),
            KeyKind::Card => (orders::CARD_FINGERPRINT, orders::CUSTOMER_ID),
            KeyKind::Device => (orders::DEVICE_ID, orders::CARD_FINGERPRINT),
            KeyKind::Ip => (orders::IP, orders::CUSTOMER_ID),
        }
    }

    /// The requests for an epoch's orders ([`orders::validated`], after `deduplicate`), as [`feature_requests::schema`]. A row for each order;
    /// `slot` is its row, `owner` the worker that asks. The orders' columns are shared, not copied.
    pub fn request(self, orders: &RecordBatch, owner: u32) -> RecordBatch {
        let (key, member) = self.columns();
        let rows = orders.num_rows();
        let fresh = BooleanBuffer::from_iter(u8s(orders, orders::STATUS).iter().map(|&status| status == Status::Fresh as u8));
        let columns: Vec<ArrayRef> = vec![
            orders.column(crate::rows::PLACE).clone(),
            Arc::new(UInt32Array::from(vec![owner; rows])),
            Arc::new(UInt32Array::from_iter_values(0..rows as u32)),
            Arc::new(BooleanArray::new(fresh, None)),
            orders.column(key).clone(),
            orders.column(member).clone(),
            orders.column(orders::EVENT_TIME).clone(),
            orders.column(orders::AMOUNT).clone(),
        ];
        RecordBatch::try_new(feature_requests::schema(), columns).expect("the columns are those of an order")
    }
}

/// The windows of one kind's keys.
#[derive(Debug)]
pub struct Features {
    windows: WindowSet,
    horizon: Micros,
    replies: SchemaRef,
    keyed: Keyed,
    reachable: Reachable,
    locator: Locator,
    by_group: ByGroup,
    positions: Vec<u32>,
    totals: Vec<Totals>,
    /// What was counted since somebody asked, if anybody will.
    changes: Option<Vec<RecordBatch>>,
    /// Orders counted since somebody asked.
    changed_rows: u64,
}

impl Features {
    /// Nothing counted yet. `dedup_horizon` (microseconds) is how far behind the watermark an order may be and count.
    pub fn new(windows: WindowSet, dedup_horizon: Micros) -> Self {
        Features {
            horizon: dedup_horizon,
            replies: feature_replies::schema(windows.len()),
            keyed: Keyed::new(),
            reachable: Reachable::new(&windows, dedup_horizon, NEVER),
            locator: Locator::new(&windows),
            by_group: ByGroup::default(),
            positions: Vec::new(),
            totals: vec![Totals::default(); windows.len()],
            changes: None,
            changed_rows: 0,
            windows,
        }
    }

    /// Takes an epoch: [`feature_requests::schema`] in canonical order, `None` if there are none here. Returns as many rows of
    /// [`feature_replies::schema`], zeros where the key is null or the order does not count.
    ///
    /// Orders that count are not stale: `event_time ≥ W(e−1) − dedup_horizon`.
    pub fn on_epoch(&mut self, info: &EpochInfo, requests: Option<&RecordBatch>) -> Option<RecordBatch> {
        let replies = requests.map(|requests| self.answer(requests));
        if let (Some(changes), Some(requests)) = (&mut self.changes, requests) {
            changes.extend(state::changes(requests));
        }
        self.reachable = Reachable::new(&self.windows, self.horizon, info.watermark);
        self.keyed.sweep(&self.reachable, requests.map_or(0, RecordBatch::num_rows));
        replies
    }

    fn answer(&mut self, requests: &RecordBatch) -> RecordBatch {
        let (keys, members) = (text(requests, feature_requests::KEY), text(requests, feature_requests::MEMBER));
        let (counts, times) = (bools(requests, feature_requests::COUNTS), micros(requests, feature_requests::EVENT_TIME));
        let amounts = requests.column(feature_requests::AMOUNT).as_primitive::<Int64Type>();
        let rows = requests.num_rows();
        let windows = self.windows.len();

        let counted = (0..rows).filter(|&row| counts.value(row) && keys.is_valid(row));
        self.by_group.fill(counted.map(|row| HashedRow { hash: hash(keys.value(row).as_bytes()), row: row as u32 }));
        self.changed_rows += self.by_group.len() as u64;
        let mut values = vec![vec![0_i64; rows]; 2 * windows + 1];
        for (group, rows) in self.by_group.groups() {
            for rows in rows.chunks(AHEAD) {
                self.keyed.look_up(group, rows, |row| keys.value(row), &mut self.positions);
                for (&HashedRow { row, .. }, &position) in rows.iter().zip(&self.positions) {
                    let row = row as usize;
                    let amount = if amounts.is_valid(row) { amounts.value(row) } else { 0 };
                    let order = Sighting { member: text_at(members, row), amount };
                    self.locator.go_to(times[row]);
                    let (at, totals) = (&self.locator, &mut self.totals);
                    let take = |key: &mut keyed::Key| key.take(&order, at, &self.reachable, &self.windows, totals);
                    values[2 * windows][row] = self.keyed.change(group, position, take);
                    for (window, totals) in self.totals.iter().enumerate() {
                        values[window][row] = totals.orders;
                        values[windows + window][row] = totals.amount;
                    }
                }
            }
        }
        let asked = [requests.column(feature_requests::OWNER).clone(), requests.column(feature_requests::SLOT).clone()];
        let values = values.into_iter().map(|column| Arc::new(Int64Array::from(column)) as ArrayRef);
        RecordBatch::try_new(self.replies.clone(), asked.into_iter().chain(values).collect()).expect("two columns a window, and three")
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keyed.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes of memory they take.
    pub fn bytes(&self) -> usize {
        self.keyed.bytes()
    }
}

#[cfg(test)]
mod tests;
