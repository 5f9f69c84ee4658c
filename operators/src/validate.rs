//! Rules of a single order.
//!
//! All rules are checked, the built-in ones in the order of the specification and then the user's own; an order that breaks one is
//! invalid, and `detail` names each rule that it breaks once. Most epochs have no invalid order: the columns are gone
//! through one after the other, and names are written only where something is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt8Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int64Type};

use crate::columns::{append, micros, text, text_at};
use crate::epoch::{EpochInfo, Micros};
use crate::rows::orders;

/// Where an order stands before it is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Valid, and the first of its id.
    Fresh = 0,
    /// It breaks a rule.
    Invalid = 1,
    /// Its id was seen before, with the same content.
    Duplicate = 2,
    /// Its id was seen before, with other content.
    Conflict = 3,
}

impl Status {
    /// From the value in the column [`orders::STATUS`].
    ///
    /// # Panics
    /// If it is none: an operator wrote it.
    pub fn from_u8(value: u8) -> Self {
        match value {
            0 => Status::Fresh,
            1 => Status::Invalid,
            2 => Status::Duplicate,
            3 => Status::Conflict,
            _ => unreachable!("operators write known states only"),
        }
    }
}

/// Limits of the built-in rules.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidateSettings {
    /// Longest order id; bytes.
    pub order_id_bytes_max: usize,
    /// Longest customer id; bytes.
    pub customer_id_bytes_max: usize,
    /// Longest SKU; bytes.
    pub sku_bytes_max: usize,
    /// Most lines.
    pub lines_max: usize,
    /// Largest quantity of a line.
    pub quantity_max: i64,
    /// Largest unit price; minor units.
    pub unit_price_max: i64,
    /// An order further ahead of its epoch's sealing time is from the future; microseconds. `None` in replays of files.
    pub future_max: Option<Micros>,
    /// An order further behind the watermark is stale; microseconds.
    pub dedup_horizon: Micros,
    /// Known currencies: millionths of the reference currency's minor unit for one minor unit.
    pub currencies: BTreeMap<String, i64>,
}

impl Default for ValidateSettings {
    /// The specification's limits, with the US dollar as the only currency.
    fn default() -> Self {
        ValidateSettings {
            order_id_bytes_max: 64,
            customer_id_bytes_max: 64,
            sku_bytes_max: 64,
            lines_max: 100,
            quantity_max: 10_000,
            unit_price_max: 100_000_000,
            future_max: None,
            dedup_horizon: 24 * 3_600_000_000,
            currencies: [("USD".to_owned(), 1_000_000)].into(),
        }
    }
}

/// A user's rule: holds for good orders.
pub trait Predicate {
    /// What stands in `detail` of an order that breaks it.
    fn name(&self) -> &str;

    /// Whether it holds, for each of `orders` ([`orders::summed`]); null counts as holding.
    ///
    /// # Errors
    /// Why it cannot be computed for one of them.
    fn evaluate(&self, orders: &RecordBatch) -> Result<BooleanArray, String>;
}

/// The built-in rules, in the order of the specification. A rule's bit is its position.
const RULES: [&str; 13] = [
    "bad_order_id",
    "bad_customer_id",
    "no_lines",
    "too_many_lines",
    "bad_sku",
    "bad_quantity",
    "bad_price",
    "unknown_currency",
    "total_mismatch",
    "bad_country",
    "bad_ip",
    "future",
    "stale",
];
const BAD_ORDER_ID: u16 = 1 << 0;
const BAD_CUSTOMER_ID: u16 = 1 << 1;
const NO_LINES: u16 = 1 << 2;
const TOO_MANY_LINES: u16 = 1 << 3;
const BAD_SKU: u16 = 1 << 4;
const BAD_QUANTITY: u16 = 1 << 5;
const BAD_PRICE: u16 = 1 << 6;
const UNKNOWN_CURRENCY: u16 = 1 << 7;
const TOTAL_MISMATCH: u16 = 1 << 8;
const BAD_COUNTRY: u16 = 1 << 9;
const BAD_IP: u16 = 1 << 10;
const FUTURE: u16 = 1 << 11;
const STALE: u16 = 1 << 12;

/// Checks orders and adds their sums.
pub struct Validate {
    settings: ValidateSettings,
    predicates: Vec<Box<dyn Predicate>>,
}

impl Validate {
    /// With the user's own rules, in their order.
    pub fn new(settings: ValidateSettings, predicates: Vec<Box<dyn Predicate>>) -> Self {
        Validate { settings, predicates }
    }

    /// Adds to `orders` ([`orders::decoded`]) what [`orders::validated`] has.
    pub fn on_epoch(&mut self, info: &EpochInfo, orders: &RecordBatch) -> RecordBatch {
        let rows = orders.num_rows();
        let mut broken = vec![0u16; rows];
        let sums = self.lines(orders, &mut broken);
        let amount = self.currency(orders, &sums.total, &mut broken);
        self.texts(orders, &mut broken);
        self.times(info, orders, &mut broken);
        let given = orders.column(orders::TOTAL_GIVEN).as_primitive::<Int64Type>();
        if given.null_count() < rows {
            for (row, broken) in broken.iter_mut().enumerate() {
                if given.is_valid(row) && sums.total[row] != Some(given.value(row)) {
                    *broken |= TOTAL_MISMATCH;
                }
            }
        }
        let columns: [ArrayRef; 4] = [
            Arc::new(Int64Array::from(sums.total)),
            Arc::new(Int64Array::from(amount)),
            Arc::new(Int64Array::from(sums.lines)),
            Arc::new(Int64Array::from(sums.units)),
        ];
        let summed = append(orders, &orders::summed(), columns);
        let own: Vec<Option<BooleanArray>> = self.predicates.iter().map(|p| failures(&**p, &summed)).collect();
        let (status, detail) = verdict(&broken, &self.predicates, &own);
        append(&summed, &orders::validated(), [status, detail])
    }

    fn lines(&self, orders: &RecordBatch, broken: &mut [u16]) -> Sums {
        let list = orders.column(orders::LINES).as_list::<i32>();
        let offsets = list.value_offsets();
        let lines = list.values().as_struct();
        let sku = lines.column(0).as_string::<i32>().value_offsets();
        let quantity = lines.column(1).as_primitive::<Int64Type>().values();
        let price = lines.column(2).as_primitive::<Int64Type>().values();
        let settings = &self.settings;
        let rows = broken.len();
        let mut sums = Sums { total: Vec::with_capacity(rows), lines: Vec::with_capacity(rows), units: Vec::with_capacity(rows) };
        for (row, broken) in broken.iter_mut().enumerate() {
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            match range.len() {
                0 => *broken |= NO_LINES,
                n if n > settings.lines_max => *broken |= TOO_MANY_LINES,
                _ => {}
            }
            let mut units = 0i128;
            for line in range.clone() {
                let sku_bytes = (sku[line + 1] - sku[line]) as usize;
                if sku_bytes == 0 || sku_bytes > settings.sku_bytes_max {
                    *broken |= BAD_SKU;
                }
                if quantity[line] < 1 || quantity[line] > settings.quantity_max {
                    *broken |= BAD_QUANTITY;
                }
                if price[line] < 0 || price[line] > settings.unit_price_max {
                    *broken |= BAD_PRICE;
                }
                units += quantity[line] as i128;
            }
            sums.total.push(total(&quantity[range.clone()], &price[range.clone()]));
            sums.lines.push(range.len() as i64);
            sums.units.push(i64::try_from(units).ok());
        }
        sums
    }

    /// The amount in the reference currency: total × rate / 10⁶, rounded half up.
    fn currency(&self, orders: &RecordBatch, total: &[Option<i64>], broken: &mut [u16]) -> Vec<Option<i64>> {
        let currency = text(orders, orders::CURRENCY);
        // Neighbours mostly have the same currency.
        let mut last: (&str, Option<i64>) = ("", self.settings.currencies.get("").copied());
        let amounts = total.iter().zip(broken).enumerate().map(|(row, (total, broken))| {
            let name = currency.value(row);
            if name != last.0 {
                last = (name, self.settings.currencies.get(name).copied());
            }
            let Some(rate) = last.1 else {
                *broken |= UNKNOWN_CURRENCY;
                return None;
            };
            let exact = (*total)? as i128 * rate as i128;
            i64::try_from((exact + 500_000).div_euclid(1_000_000)).ok()
        });
        amounts.collect()
    }

    fn texts(&self, orders: &RecordBatch, broken: &mut [u16]) {
        let lengths = |column: usize, bytes_max: usize, rule: u16, broken: &mut [u16]| {
            for (ends, broken) in text(orders, column).value_offsets().windows(2).zip(broken) {
                let bytes = (ends[1] - ends[0]) as usize;
                if bytes == 0 || bytes > bytes_max {
                    *broken |= rule;
                }
            }
        };
        lengths(orders::ORDER_ID, self.settings.order_id_bytes_max, BAD_ORDER_ID, broken);
        lengths(orders::CUSTOMER_ID, self.settings.customer_id_bytes_max, BAD_CUSTOMER_ID, broken);
        let (billing, shipping) = (text(orders, orders::BILLING_COUNTRY), text(orders, orders::SHIPPING_COUNTRY));
        let ip = text(orders, orders::IP);
        let bad = |country: &StringArray, row| text_at(country, row).is_some_and(|c| !is_country(c));
        for (row, broken) in broken.iter_mut().enumerate() {
            if bad(billing, row) || bad(shipping, row) {
                *broken |= BAD_COUNTRY;
            }
            if text_at(ip, row).is_some_and(|ip| ip.parse::<IpAddr>().is_err()) {
                *broken |= BAD_IP;
            }
        }
    }

    fn times(&self, info: &EpochInfo, orders: &RecordBatch, broken: &mut [u16]) {
        // Before the first event time the watermark is −∞, and so is what is compared with.
        let oldest = info.watermark_before.saturating_sub(self.settings.dedup_horizon);
        let newest = self.settings.future_max.map_or(i64::MAX, |max| info.sealed_at.saturating_add(max));
        for (&time, broken) in micros(orders, orders::EVENT_TIME).iter().zip(broken) {
            if time > newest {
                *broken |= FUTURE;
            }
            if time < oldest {
                *broken |= STALE;
            }
        }
    }
}

struct Sums {
    total: Vec<Option<i64>>,
    lines: Vec<i64>,
    units: Vec<Option<i64>>,
}

/// Σ quantity × price, if it fits 64 bits.
fn total(quantity: &[i64], price: &[i64]) -> Option<i64> {
    let lines = || quantity.iter().zip(price);
    let usual = lines().try_fold(0i64, |sum, (&quantity, &price)| sum.checked_add(quantity.checked_mul(price)?));
    usual.or_else(|| exact_total(lines().map(|(&quantity, &price)| i128::from(quantity) * i128::from(price))))
}

/// The sum, whatever its parts: three products of 64 bits may already be beyond 128, so their upper and lower halves are added up apart.
#[cold]
fn exact_total(products: impl Iterator<Item = i128>) -> Option<i64> {
    let (mut upper, mut lower) = (0i128, 0i128);
    for product in products {
        upper += product >> 64;
        lower += product & i128::from(u64::MAX);
    }
    upper.checked_mul(1 << 64)?.checked_add(lower).and_then(|sum| i64::try_from(sum).ok())
}

fn is_country(text: &str) -> bool {
    matches!(text.as_bytes(), [a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase())
}

/// For each order whether it breaks the rule; `None` if none does.
fn failures(predicate: &dyn Predicate, orders: &RecordBatch) -> Option<BooleanArray> {
    let broken = match predicate.evaluate(orders) {
        Ok(holds) => BooleanArray::from_iter(holds.iter().map(|h| Some(h == Some(false)))),
        // It cannot be computed for one of them: for which?
        Err(_) if orders.num_rows() > 1 => {
            let half = orders.num_rows() / 2;
            let halves = [orders.slice(0, half), orders.slice(half, orders.num_rows() - half)];
            let parts = halves.map(|part| failures(predicate, &part).unwrap_or_else(|| vec![false; part.num_rows()].into()));
            BooleanArray::from_iter(parts.iter().flat_map(|part| part.iter().collect::<Vec<_>>()))
        }
        Err(_) => vec![true; orders.num_rows()].into(),
    };
    (broken.true_count() > 0).then_some(broken)
}

/// Status and detail of each order.
fn verdict(broken: &[u16], predicates: &[Box<dyn Predicate>], own: &[Option<BooleanArray>]) -> (ArrayRef, ArrayRef) {
    let item = Field::new("item", DataType::Utf8, false);
    if own.iter().all(Option::is_none) && broken.iter().all(|&b| b == 0) {
        let offsets = OffsetBuffer::from_repeated_length(0, broken.len());
        let detail = ListArray::new(Arc::new(item), offsets, Arc::new(StringArray::new_null(0)), None);
        return (Arc::new(UInt8Array::from(vec![Status::Fresh as u8; broken.len()])), Arc::new(detail));
    }
    let mut status = Vec::with_capacity(broken.len());
    let mut detail = ListBuilder::new(StringBuilder::new()).with_field(item);
    for (row, &broken) in broken.iter().enumerate() {
        let mut names = RULES.iter().enumerate().filter(|(bit, _)| broken & (1 << bit) != 0).map(|(_, name)| *name).collect::<Vec<_>>();
        let broken_own = predicates.iter().zip(own).filter(|(_, b)| b.as_ref().is_some_and(|b| b.value(row)));
        names.extend(broken_own.map(|(p, _)| p.name()));
        names.iter().for_each(|name| detail.values().append_value(name));
        detail.append(true);
        status.push(if names.is_empty() { Status::Fresh } else { Status::Invalid } as u8);
    }
    (Arc::new(UInt8Array::from(status)), Arc::new(detail.finish()))
}

#[cfg(test)]
mod tests;
