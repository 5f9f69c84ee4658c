//! The output streams of the job: their names, their columns, their order.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::columns::timestamp_type;
use crate::features::WindowSet;
use crate::rows::detail_type;

/// One of the job's own output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// A row for each well-formed `order_placed`.
    OrderDecisions,
    /// A row for each merged line of an accepted or review order.
    OrderLines,
    /// A row for each (order, SKU) at each change of its reservation.
    ReservationEvents,
    /// A row for each first-seen inventory message.
    StockMovements,
    /// A row for each malformed message.
    DeadLetters,
}

impl Stream {
    /// All of them, in a fixed order.
    pub const ALL: [Stream; 5] =
        [Stream::OrderDecisions, Stream::OrderLines, Stream::ReservationEvents, Stream::StockMovements, Stream::DeadLetters];

    /// The stream's and its tables' name.
    pub fn name(self) -> &'static str {
        match self {
            Stream::OrderDecisions => "order_decisions",
            Stream::OrderLines => "order_lines",
            Stream::ReservationEvents => "reservation_events",
            Stream::StockMovements => "stock_movements",
            Stream::DeadLetters => "dead_letters",
        }
    }

    /// The columns that readers see. Each starts with `epoch` (int64), `split` (int32), `offset` (int64).
    pub fn schema(self, windows: &WindowSet) -> SchemaRef {
        let place = vec![
            Field::new("epoch", DataType::Int64, false),
            // Only an expiry has no place.
            Field::new("split", DataType::Int32, self == Stream::ReservationEvents),
            Field::new("offset", DataType::Int64, self == Stream::ReservationEvents),
        ];
        Arc::new(Schema::new([place, self.columns(windows)].concat()))
    }

    /// The columns behind `offset`.
    fn columns(self, windows: &WindowSet) -> Vec<Field> {
        let mut fields = Vec::new();
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let text_or_null = |name: &str| Field::new(name, DataType::Utf8, true);
        let int = |name: &str| Field::new(name, DataType::Int64, false);
        let int_or_null = |name: &str| Field::new(name, DataType::Int64, true);
        let time = |name: &str| Field::new(name, timestamp_type(), false);
        match self {
            Stream::OrderDecisions => {
                fields.extend([
                    text("order_id"),
                    text("customer_id"),
                    time("event_time"),
                    text("currency"),
                    int_or_null("total"),
                    int_or_null("amount"),
                    int("line_count"),
                    int_or_null("unit_count"),
                    text("decision"),
                    text("reason"),
                    Field::new("detail", detail_type(), false),
                    Field::new("fraud_score", DataType::Float64, true),
                    text_or_null("model"),
                ]);
                fields.extend(windows.feature_names().iter().map(|name| int_or_null(name)));
                fields.extend([text_or_null("billing_country"), text_or_null("shipping_country"), time("sealed_at")]);
            }
            Stream::OrderLines => fields.extend([
                text("order_id"),
                text("customer_id"),
                time("event_time"),
                text("sku"),
                int("quantity"),
                int("unit_price"),
                int("line_total"),
            ]),
            Stream::ReservationEvents => fields.extend([
                text("order_id"),
                text_or_null("sku"),
                int_or_null("quantity"),
                text("kind"),
                time("event_time"),
                int_or_null("on_hand"),
                int_or_null("reserved"),
            ]),
            Stream::StockMovements => fields.extend([
                text("movement_id"),
                text("sku"),
                text("type"),
                int("quantity"),
                time("event_time"),
                int("on_hand"),
                int("reserved"),
            ]),
            Stream::DeadLetters => {
                fields.extend([text("topic"), Field::new("raw", DataType::Binary, false), text("error")]);
            }
        }
        fields
    }
}

/// What the dataflow carries for a stream: `place` (uint64), then the columns behind `offset`. [`Stream::schema`]'s first three are made
/// of the place and the epoch where the stream leaves the dataflow.
///
/// `reservation_events` has an `ordinal` (uint32) behind them, see [`internal_reservation_events`].
pub fn internal_schema(stream: Stream, windows: Option<&WindowSet>) -> SchemaRef {
    match stream {
        Stream::ReservationEvents => internal_reservation_events(),
        Stream::OrderDecisions => {
            let windows = windows.expect("the decisions' columns depend on the windows");
            with_place(stream.columns(windows))
        }
        Stream::OrderLines | Stream::StockMovements | Stream::DeadLetters => with_place(stream.columns(&WindowSet::default())),
    }
}

/// [`internal_schema`] of `reservation_events`: rows of one place come from several workers, so each says which
/// line of its order it is. An expiry has the place [`AFTER_ROWS`](crate::epoch::Place::AFTER_ROWS).
pub fn internal_reservation_events() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let mut fields = Stream::ReservationEvents.columns(&WindowSet::default());
        fields.push(Field::new("ordinal", DataType::UInt32, false));
        with_place(fields)
    });
    SCHEMA.clone()
}

fn with_place(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new([vec![Field::new("place", DataType::UInt64, false)], fields].concat()))
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An output stream of a job as it runs: one of the job's own, or one that a stage adds. Two are the same if their names are; a clone is cheap.
#[derive(Clone, Debug)]
pub enum OutputStream {
    /// One that every job has.
    Own(Stream),
    /// One that is known when the job has planned its stages.
    Stage(Arc<StageStream>),
}

/// A stream that a stage adds.
#[derive(Clone, Debug)]
pub struct StageStream {
    /// The stream's and its tables' name.
    pub name: String,
    /// The columns that readers see, [`EPOCH`] first.
    pub schema: SchemaRef,
    /// Which of the columns tell its rows apart; empty where that is not known.
    pub key: Vec<String>,
}

/// The first column of every stream: int64.
pub const EPOCH: &str = "epoch";

impl OutputStream {
    /// The stream's and its tables' name.
    pub fn name(&self) -> &str {
        match self {
            OutputStream::Own(stream) => stream.name(),
            OutputStream::Stage(stream) => &stream.name,
        }
    }

    /// The columns that readers see.
    pub fn schema(&self, windows: &WindowSet) -> SchemaRef {
        match self {
            OutputStream::Own(stream) => stream.schema(windows),
            OutputStream::Stage(stream) => stream.schema.clone(),
        }
    }
}

impl From<Stream> for OutputStream {
    fn from(stream: Stream) -> Self {
        OutputStream::Own(stream)
    }
}

impl PartialEq for OutputStream {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for OutputStream {}

impl Hash for OutputStream {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
