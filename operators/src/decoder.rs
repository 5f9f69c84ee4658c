//! JSON messages to columns.
//!
//! # Design
//!
//! Each message is read once, by a reader of our own (`json`): it takes the right JSON only, borrows every text that has no
//! escapes, and keeps in a `scratch` what fields of any message type it met. When all of the message has been read, its type is
//! known, its fields are judged, and only then a row is appended to the builders of the columns.

mod builders;
mod json;
mod message;
mod names;
mod scratch;
mod time;

use arrow::array::RecordBatch;

use crate::epoch::Place;
use crate::rows::lifecycle::LifecycleKind;
use crate::rows::movements::MovementKind;
use crate::watermark::SplitProgress;

use builders::{LifecycleBuilder, MalformedBuilder, MovementBuilder, OrderBuilder};
use message::Message;
use scratch::Scratch;

pub use time::parse_rfc3339_micros;

/// Which messages a split has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Placed orders and what happens to them.
    Orders,
    /// Stock movements.
    Inventory,
}

/// The rows of an epoch's messages, each kind in the order in which they were pushed; `None` where there are none.
#[derive(Debug, Default)]
pub struct Decoded {
    /// [`rows::orders::decoded`](crate::rows::orders::decoded)
    pub orders: Option<RecordBatch>,
    /// [`rows::lifecycle::schema`](crate::rows::lifecycle::schema)
    pub lifecycle: Option<RecordBatch>,
    /// [`rows::movements::schema`](crate::rows::movements::schema)
    pub movements: Option<RecordBatch>,
    /// [`rows::malformed::schema`](crate::rows::malformed::schema)
    pub malformed: Option<RecordBatch>,
    /// Fields that no message of their type has, in well-formed messages.
    pub unknown_fields: u64,
    /// For each split of orders that had messages: how many, and their largest event time.
    pub progress: Vec<SplitProgress>,
}

/// Decodes messages, one after the other.
pub struct Decoder {
    scratch: Scratch,
    rows: Rows,
}

/// The rows so far.
struct Rows {
    orders_name: String,
    inventory_name: String,
    orders: OrderBuilder,
    lifecycle: LifecycleBuilder,
    movements: MovementBuilder,
    malformed: MalformedBuilder,
    unknown_fields: u64,
    progress: Vec<SplitProgress>,
}

impl Decoder {
    /// The names are those of the sources in `dead_letters`.
    pub fn new(orders_name: &str, inventory_name: &str) -> Self {
        let rows = Rows {
            orders_name: orders_name.to_owned(),
            inventory_name: inventory_name.to_owned(),
            orders: OrderBuilder::default(),
            lifecycle: LifecycleBuilder::default(),
            movements: MovementBuilder::default(),
            malformed: MalformedBuilder::default(),
            unknown_fields: 0,
            progress: Vec::new(),
        };
        Decoder { scratch: Scratch::default(), rows }
    }

    /// Takes a message. One that is malformed becomes a row of `malformed`; none is an error.
    pub fn push(&mut self, topic: Topic, place: Place, message: &[u8]) {
        match self.scratch.read(topic, message) {
            Ok((read, unknown)) => self.rows.append(topic, place, &read, unknown),
            Err(error) => self.rows.dead(topic, place, message, &error.to_string()),
        }
    }

    /// Takes a message of `bytes` bytes that was too long to be read whole, of which `start` is known.
    pub fn push_oversized(&mut self, topic: Topic, place: Place, start: &[u8], bytes: u64) {
        let error = format!("message of {bytes} bytes, more than source.message_bytes_max = {}: only its start is kept", start.len());
        self.rows.dead(topic, place, start, &error);
    }

    /// The rows so far; the decoder starts anew.
    pub fn finish(&mut self) -> Decoded {
        let rows = &mut self.rows;
        Decoded {
            orders: rows.orders.finish(),
            lifecycle: rows.lifecycle.finish(),
            movements: rows.movements.finish(),
            malformed: rows.malformed.finish(),
            unknown_fields: std::mem::take(&mut rows.unknown_fields),
            progress: std::mem::take(&mut rows.progress),
        }
    }
}

impl Rows {
    fn append(&mut self, topic: Topic, place: Place, message: &Message<'_>, unknown: u64) {
        self.unknown_fields += unknown;
        let event_time = match message {
            Message::Placed(order) => {
                self.orders.push(place, order);
                order.event_time
            }
            Message::Lifecycle { kind, order_id, event_time } => {
                self.lifecycle.push(place, *kind, order_id, *event_time);
                *event_time
            }
            Message::Movement(movement) => {
                self.movements.push(place, movement);
                movement.event_time
            }
        };
        self.count(topic, place, Some(event_time));
    }

    fn dead(&mut self, topic: Topic, place: Place, raw: &[u8], error: &str) {
        let name = match topic {
            Topic::Orders => &self.orders_name,
            Topic::Inventory => &self.inventory_name,
        };
        self.malformed.push(place, name, raw, error);
        self.count(topic, place, None);
    }

    fn count(&mut self, topic: Topic, place: Place, event_time: Option<i64>) {
        if topic == Topic::Inventory {
            return;
        }
        let split = place.split() as u32;
        match self.progress.last_mut() {
            Some(last) if last.split == split => {
                last.rows += 1;
                last.event_time_max = last.event_time_max.max(event_time);
            }
            _ => self.progress.push(SplitProgress { split, rows: 1, event_time_max: event_time }),
        }
    }
}

/// The message type's kind, where it is one of a life cycle.
fn lifecycle_kind(name: &str) -> Option<LifecycleKind> {
    match name {
        "order_cancelled" => Some(LifecycleKind::Cancelled),
        "payment_captured" => Some(LifecycleKind::Captured),
        "order_shipped" => Some(LifecycleKind::Shipped),
        _ => None,
    }
}

/// The message type's kind, where it is one of a stock movement.
fn movement_kind(name: &str) -> Option<MovementKind> {
    match name {
        "stock_received" => Some(MovementKind::Received),
        "stock_removed" => Some(MovementKind::Removed),
        "stock_counted" => Some(MovementKind::Counted),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
