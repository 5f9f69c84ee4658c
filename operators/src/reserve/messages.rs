//! What desk and stock say to each other.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringBuilder, TimestampMicrosecondArray, UInt8Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::columns::timestamp_type;
use crate::epoch::{Micros, Place};

/// "No line": a request that does not depend on an order of this epoch.
pub(super) const NONE: u32 = u32::MAX;

/// What a desk asks of a stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RequestKind {
    /// Hold the quantity, if the whole order can be held.
    Line = 0,
    /// The order was cancelled.
    Release = 1,
    /// The order was paid: it no longer expires.
    Confirm = 2,
    /// The order was shipped.
    Ship = 3,
    /// The hold ran out.
    Expire = 4,
}

impl RequestKind {
    pub(super) fn from_u8(value: u8) -> Self {
        match value {
            0 => RequestKind::Line,
            1 => RequestKind::Release,
            2 => RequestKind::Confirm,
            3 => RequestKind::Ship,
            4 => RequestKind::Expire,
            _ => unreachable!("desks write known kinds only"),
        }
    }

    /// The `kind` of the row in `reservation_events`.
    pub(super) fn event(self) -> &'static str {
        match self {
            RequestKind::Line => "held",
            RequestKind::Release => "released",
            RequestKind::Confirm => "confirmed",
            RequestKind::Ship => "shipped",
            RequestKind::Expire => "expired",
        }
    }
}

/// Columns of a request.
pub(super) mod request {
    pub const PLACE: usize = 0;
    pub const KIND: usize = 1;
    pub const ORDER_ID: usize = 2;
    pub const SKU: usize = 3;
    pub const QUANTITY: usize = 4;
    pub const EVENT_TIME: usize = 5;
    pub const ORDINAL: usize = 6;
    pub const OWNER: usize = 7;
    pub const LINE: usize = 8;
    pub const LINES: usize = 9;
}

/// place (uint64), kind (uint8), order_id, sku (text), quantity (int64), event_time (timestamp), ordinal (uint32: the line's number in its
/// order, in an expiry behind the lines of older orders of that id), owner (uint32: the desk's worker), line (uint32: the desk's number in this epoch of the line asked for, or on whose grant this depends),
/// lines (uint32: how many the order has)
pub fn request_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("place", DataType::UInt64, false),
            Field::new("kind", DataType::UInt8, false),
            Field::new("order_id", DataType::Utf8, false),
            Field::new("sku", DataType::Utf8, false),
            Field::new("quantity", DataType::Int64, false),
            Field::new("event_time", timestamp_type(), false),
            Field::new("ordinal", DataType::UInt32, false),
            Field::new("owner", DataType::UInt32, false),
            Field::new("line", DataType::UInt32, false),
            Field::new("lines", DataType::UInt32, false),
        ]))
    });
    SCHEMA.clone()
}

/// The order behind a request.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub place: Place,
    pub order_id: &'a str,
    pub event_time: Micros,
}

#[derive(Default)]
pub(super) struct Requests {
    place: Vec<u64>,
    kind: Vec<u8>,
    order_id: StringBuilder,
    sku: StringBuilder,
    quantity: Vec<i64>,
    event_time: Vec<i64>,
    ordinal: Vec<u32>,
    owner: Vec<u32>,
    line: Vec<u32>,
    lines: Vec<u32>,
}

impl Requests {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn push(
        &mut self,
        kind: RequestKind,
        order: Order<'_>,
        sku: &str,
        quantity: i64,
        ordinal: u32,
        owner: u32,
        line: u32,
        lines: u32,
    ) {
        self.place.push(order.place.0);
        self.kind.push(kind as u8);
        self.order_id.append_value(order.order_id);
        self.sku.append_value(sku);
        self.quantity.push(quantity);
        self.event_time.push(order.event_time);
        self.ordinal.push(ordinal);
        self.owner.push(owner);
        self.line.push(line);
        self.lines.push(lines);
    }

    pub(super) fn finish(mut self) -> Option<RecordBatch> {
        if self.place.is_empty() {
            return None;
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(self.place)),
            Arc::new(UInt8Array::from(self.kind)),
            Arc::new(self.order_id.finish()),
            Arc::new(self.sku.finish()),
            Arc::new(Int64Array::from(self.quantity)),
            Arc::new(TimestampMicrosecondArray::from(self.event_time).with_timezone("UTC")),
            Arc::new(UInt32Array::from(self.ordinal)),
            Arc::new(UInt32Array::from(self.owner)),
            Arc::new(UInt32Array::from(self.line)),
            Arc::new(UInt32Array::from(self.lines)),
        ];
        Some(RecordBatch::try_new(request_schema(), columns).expect("the columns fit the schema of requests"))
    }
}

/// What is certain of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verdict {
    /// Nothing yet; only sent as the first answer.
    Maybe = 0,
    /// It can be held.
    Yes = 1,
    /// It cannot.
    No = 2,
    /// It can be held, and so can everything that this epoch asks of the SKU: counted as granted unless the desk says otherwise.
    Free = 3,
}

impl Verdict {
    pub(super) fn from_u8(value: u8) -> Self {
        match value {
            0 => Verdict::Maybe,
            1 => Verdict::Yes,
            2 => Verdict::No,
            3 => Verdict::Free,
            _ => unreachable!("stocks write known verdicts only"),
        }
    }
}

/// Columns of a verdict.
pub(super) mod verdict {
    pub const OWNER: usize = 0;
    pub const LINE: usize = 1;
    pub const WORKER: usize = 2;
    pub const ENTRY: usize = 3;
    pub const VERDICT: usize = 4;
}

/// owner (uint32: the desk's worker), line (uint32: its number there), worker (uint32: the stock's), entry (uint32: its number there), verdict (uint8)
pub fn verdict_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let number = |name| Field::new(name, DataType::UInt32, false);
        Arc::new(Schema::new(vec![
            number("owner"),
            number("line"),
            number("worker"),
            number("entry"),
            Field::new("verdict", DataType::UInt8, false),
        ]))
    });
    SCHEMA.clone()
}

#[derive(Default)]
pub(super) struct Verdicts {
    owner: Vec<u32>,
    line: Vec<u32>,
    entry: Vec<u32>,
    verdict: Vec<u8>,
}

impl Verdicts {
    pub(super) fn push(&mut self, owner: u32, line: u32, entry: u32, verdict: Verdict) {
        self.owner.push(owner);
        self.line.push(line);
        self.entry.push(entry);
        self.verdict.push(verdict as u8);
    }

    pub(super) fn finish(self, worker: u32) -> Option<RecordBatch> {
        let rows = self.owner.len();
        if rows == 0 {
            return None;
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(self.owner)),
            Arc::new(UInt32Array::from(self.line)),
            Arc::new(UInt32Array::from(vec![worker; rows])),
            Arc::new(UInt32Array::from(self.entry)),
            Arc::new(UInt8Array::from(self.verdict)),
        ];
        Some(RecordBatch::try_new(verdict_schema(), columns).expect("the columns fit the schema of verdicts"))
    }
}

/// Columns of a decision.
pub(super) mod decision {
    pub const WORKER: usize = 0;
    pub const ENTRY: usize = 1;
    pub const GRANTED: usize = 2;
}

/// worker (uint32: the stock's), entry (uint32: the line's number there), granted (uint8: 1 or 0)
pub fn decision_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let number = |name| Field::new(name, DataType::UInt32, false);
        Arc::new(Schema::new(vec![number("worker"), number("entry"), Field::new("granted", DataType::UInt8, false)]))
    });
    SCHEMA.clone()
}

#[derive(Default)]
pub(super) struct Decisions {
    worker: Vec<u32>,
    entry: Vec<u32>,
    granted: Vec<u8>,
}

impl Decisions {
    pub(super) fn push(&mut self, worker: u32, entry: u32, granted: bool) {
        self.worker.push(worker);
        self.entry.push(entry);
        self.granted.push(granted as u8);
    }

    pub(super) fn finish(self) -> Option<RecordBatch> {
        if self.worker.is_empty() {
            return None;
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(self.worker)),
            Arc::new(UInt32Array::from(self.entry)),
            Arc::new(UInt8Array::from(self.granted)),
        ];
        Some(RecordBatch::try_new(decision_schema(), columns).expect("the columns fit the schema of decisions"))
    }
}
