//! A well-formed message, borrowed from its bytes, and what makes one malformed.

use super::json::{SyntaxError, Texts};
use super::scratch::LineSpans;
use crate::epoch::Micros;
use crate::rows::lifecycle::LifecycleKind;
use crate::rows::movements::MovementKind;

/// A well-formed message.
pub(super) enum Message<'a> {
    Placed(Order<'a>),
    Lifecycle { kind: LifecycleKind, order_id: &'a str, event_time: Micros },
    Movement(Movement<'a>),
}

/// `order_placed`
pub(super) struct Order<'a> {
    pub order_id: &'a str,
    pub customer_id: &'a str,
    pub event_time: Micros,
    pub currency: &'a str,
    pub total: Option<i64>,
    pub lines: Lines<'a>,
    pub payment_method: Option<&'a str>,
    pub card_fingerprint: Option<&'a str>,
    pub device_id: Option<&'a str>,
    pub ip: Option<&'a str>,
    pub billing_country: Option<&'a str>,
    pub shipping_country: Option<&'a str>,
}

/// The lines of an order.
pub(super) struct Lines<'a> {
    pub texts: Texts<'a>,
    pub spans: &'a [LineSpans],
}

/// A line of an order.
pub(super) struct Line<'a> {
    pub sku: &'a str,
    pub quantity: i64,
    pub unit_price: i64,
}

impl<'a> Lines<'a> {
    pub(super) fn iter(&self) -> impl Iterator<Item = Line<'a>> {
        let texts = self.texts;
        self.spans.iter().map(move |line| Line { sku: texts.get(line.sku), quantity: line.quantity, unit_price: line.unit_price })
    }
}

/// A stock movement.
pub(super) struct Movement<'a> {
    pub kind: MovementKind,
    pub movement_id: &'a str,
    pub sku: &'a str,
    pub quantity: i64,
    pub event_time: Micros,
}

/// What is wrong with a message: the text of a dead letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("empty message")]
    Empty,
    #[error("invalid UTF-8 at byte {0}")]
    Utf8(usize),
    #[error("message of {0} bytes, more than 2 GiB")]
    TooLong(usize),
    #[error("invalid JSON at byte {at}: {error}")]
    Syntax { error: SyntaxError, at: usize },
    #[error("expected an object, found {0}")]
    NotAnObject(String),
    #[error("missing field {0}")]
    Missing(String),
    #[error("field {field}: expected {expected}, found {found}")]
    WrongType {
        field: String,
        expected: &'static str,
        /// As it stands in the message, shortened.
        found: String,
    },
    #[error("unknown type {0}")]
    UnknownType(String),
}
