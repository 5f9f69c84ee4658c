//! The internal row types: what travels between the stages.
//!
//! Every one starts with `place` (`uint64`, a packed [`Place`](crate::epoch::Place)), by which an epoch is ordered.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use crate::columns::timestamp_type;

/// The column that every internal row type starts with.
pub const PLACE: usize = 0;

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn required(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn optional(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

/// The list of failed rules or short SKUs: `list<string>`.
pub fn detail_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8, false)))
}

/// The columns of an order as it was sent, and (from [`orders::STATUS`] on) what [`validate`](crate::validate) adds.
pub mod orders {
    use super::*;

    /// `order_id`: text.
    pub const ORDER_ID: usize = 1;
    /// `customer_id`: text.
    pub const CUSTOMER_ID: usize = 2;
    /// `event_time`: timestamp(µs, UTC).
    pub const EVENT_TIME: usize = 3;
    /// `currency`: text.
    pub const CURRENCY: usize = 4;
    /// `total_given`: int64 or null; minor units, as sent.
    pub const TOTAL_GIVEN: usize = 5;
    /// `lines`: list of struct { sku: text, quantity: int64, unit_price: int64 (minor units) }.
    pub const LINES: usize = 6;
    /// `payment_method`: text or null.
    pub const PAYMENT_METHOD: usize = 7;
    /// `card_fingerprint`: text or null.
    pub const CARD_FINGERPRINT: usize = 8;
    /// `device_id`: text or null.
    pub const DEVICE_ID: usize = 9;
    /// `ip`: text or null.
    pub const IP: usize = 10;
    /// `billing_country`: text or null.
    pub const BILLING_COUNTRY: usize = 11;
    /// `shipping_country`: text or null.
    pub const SHIPPING_COUNTRY: usize = 12;

    /// `total`: int64 or null; Σ quantity × unit_price, minor units.
    pub const TOTAL: usize = 13;
    /// `amount`: int64 or null; `total` in the reference currency's minor units.
    pub const AMOUNT: usize = 14;
    /// `line_count`: int64.
    pub const LINE_COUNT: usize = 15;
    /// `unit_count`: int64 or null.
    pub const UNIT_COUNT: usize = 16;
    /// `status`: uint8, a [`Status`](crate::validate::Status).
    pub const STATUS: usize = 17;
    /// `detail`: list of text; the failed rules.
    pub const DETAIL: usize = 18;

    /// The struct of one line.
    pub fn line_fields() -> Fields {
        Fields::from(vec![required("sku", DataType::Utf8), required("quantity", DataType::Int64), required("unit_price", DataType::Int64)])
    }

    /// The item of the list in [`LINES`].
    pub fn line_field() -> Arc<Field> {
        Arc::new(required("item", DataType::Struct(line_fields())))
    }

    /// What the decoder makes: columns 0 to [`SHIPPING_COUNTRY`].
    pub fn decoded() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            schema(vec![
                required("place", DataType::UInt64),
                required("order_id", DataType::Utf8),
                required("customer_id", DataType::Utf8),
                required("event_time", timestamp_type()),
                required("currency", DataType::Utf8),
                optional("total_given", DataType::Int64),
                required("lines", DataType::List(line_field())),
                optional("payment_method", DataType::Utf8),
                optional("card_fingerprint", DataType::Utf8),
                optional("device_id", DataType::Utf8),
                optional("ip", DataType::Utf8),
                optional("billing_country", DataType::Utf8),
                optional("shipping_country", DataType::Utf8),
            ])
        });
        SCHEMA.clone()
    }

    /// [`decoded`] with the sums behind it: what users' predicates see.
    pub fn summed() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            crate::columns::extend(
                &decoded(),
                [
                    optional("total", DataType::Int64),
                    optional("amount", DataType::Int64),
                    required("line_count", DataType::Int64),
                    optional("unit_count", DataType::Int64),
                ],
            )
        });
        SCHEMA.clone()
    }

    /// All columns, to [`DETAIL`]: what `validate` makes and `deduplicate` passes on (with another status).
    pub fn validated() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> =
            LazyLock::new(|| crate::columns::extend(&summed(), [required("status", DataType::UInt8), required("detail", detail_type())]));
        SCHEMA.clone()
    }
}

/// `order_cancelled`, `payment_captured` and `order_shipped`.
pub mod lifecycle {
    use super::*;

    /// `kind`: uint8, a [`LifecycleKind`].
    pub const KIND: usize = 1;
    /// `order_id`: text.
    pub const ORDER_ID: usize = 2;
    /// `event_time`: timestamp(µs, UTC).
    pub const EVENT_TIME: usize = 3;

    /// What happened to the order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum LifecycleKind {
        /// `order_cancelled`
        Cancelled = 0,
        /// `payment_captured`
        Captured = 1,
        /// `order_shipped`
        Shipped = 2,
    }

    impl LifecycleKind {
        /// From the value in the column [`KIND`].
        ///
        /// # Panics
        /// If it is none: the decoder wrote it.
        pub fn from_u8(value: u8) -> Self {
            match value {
                0 => LifecycleKind::Cancelled,
                1 => LifecycleKind::Captured,
                2 => LifecycleKind::Shipped,
                _ => unreachable!("the decoder writes known kinds only"),
            }
        }
    }

    /// place, kind, order_id, event_time
    pub fn schema() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            super::schema(vec![
                required("place", DataType::UInt64),
                required("kind", DataType::UInt8),
                required("order_id", DataType::Utf8),
                required("event_time", timestamp_type()),
            ])
        });
        SCHEMA.clone()
    }
}

/// `stock_received`, `stock_removed` and `stock_counted`.
pub mod movements {
    use super::*;

    /// `kind`: uint8, a [`MovementKind`].
    pub const KIND: usize = 1;
    /// `movement_id`: text.
    pub const MOVEMENT_ID: usize = 2;
    /// `sku`: text.
    pub const SKU: usize = 3;
    /// `quantity`: int64.
    pub const QUANTITY: usize = 4;
    /// `event_time`: timestamp(µs, UTC).
    pub const EVENT_TIME: usize = 5;

    /// How the stock changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum MovementKind {
        /// `stock_received`
        Received = 0,
        /// `stock_removed`
        Removed = 1,
        /// `stock_counted`
        Counted = 2,
    }

    impl MovementKind {
        /// From the value in the column [`KIND`].
        ///
        /// # Panics
        /// If it is none: the decoder wrote it.
        pub fn from_u8(value: u8) -> Self {
            match value {
                0 => MovementKind::Received,
                1 => MovementKind::Removed,
                2 => MovementKind::Counted,
                _ => unreachable!("the decoder writes known kinds only"),
            }
        }
        /// The message's `type`.
        pub fn name(self) -> &'static str {
            match self {
                MovementKind::Received => "stock_received",
                MovementKind::Removed => "stock_removed",
                MovementKind::Counted => "stock_counted",
            }
        }
    }

    /// place, kind, movement_id, sku, quantity, event_time
    pub fn schema() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            super::schema(vec![
                required("place", DataType::UInt64),
                required("kind", DataType::UInt8),
                required("movement_id", DataType::Utf8),
                required("sku", DataType::Utf8),
                required("quantity", DataType::Int64),
                required("event_time", timestamp_type()),
            ])
        });
        SCHEMA.clone()
    }
}

/// Messages that are none.
pub mod malformed {
    use super::*;

    /// `topic`: text; the source's name.
    pub const TOPIC: usize = 1;
    /// `raw`: binary; the message's bytes.
    pub const RAW: usize = 2;
    /// `error`: text.
    pub const ERROR: usize = 3;

    /// place, topic, raw, error
    pub fn schema() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            super::schema(vec![
                required("place", DataType::UInt64),
                required("topic", DataType::Utf8),
                required("raw", DataType::Binary),
                required("error", DataType::Utf8),
            ])
        });
        SCHEMA.clone()
    }
}

/// What `features` is asked for one key kind, and what it answers.
pub mod feature_requests {
    use super::*;

    /// `owner`: uint32; the worker that asks.
    pub const OWNER: usize = 1;
    /// `slot`: uint32; the row's position in the asker's epoch.
    pub const SLOT: usize = 2;
    /// `counts`: boolean; false for orders that are not valid or not first: they are in no window.
    pub const COUNTS: usize = 3;
    /// `key`: text or null; the customer, card, device or address.
    pub const KEY: usize = 4;
    /// `member`: text or null; what is counted distinctly.
    pub const MEMBER: usize = 5;
    /// `event_time`: timestamp(µs, UTC).
    pub const EVENT_TIME: usize = 6;
    /// `amount`: int64 or null (null only where `counts` is false).
    pub const AMOUNT: usize = 7;

    /// place, owner, slot, counts, key, member, event_time, amount
    pub fn schema() -> SchemaRef {
        static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
            super::schema(vec![
                required("place", DataType::UInt64),
                required("owner", DataType::UInt32),
                required("slot", DataType::UInt32),
                required("counts", DataType::Boolean),
                optional("key", DataType::Utf8),
                optional("member", DataType::Utf8),
                required("event_time", timestamp_type()),
                optional("amount", DataType::Int64),
            ])
        });
        SCHEMA.clone()
    }
}

/// What `features` answers.
pub mod feature_replies {
    use super::*;

    /// `slot`: uint32; as asked.
    pub const SLOT: usize = 1;
    /// Where the values start.
    pub const VALUES: usize = 2;

    /// owner (uint32), slot (uint32), then int64 each: `orders_{w}` for each of `windows` windows, `amount_{w}` for each, `distinct`.
    /// `owner` stands first, where a place stands in other row types.
    pub fn schema(windows: usize) -> SchemaRef {
        let orders = (0..windows).map(|w| required(&format!("orders_{w}"), DataType::Int64));
        let amounts = (0..windows).map(|w| required(&format!("amount_{w}"), DataType::Int64));
        super::schema(
            [required("owner", DataType::UInt32), required("slot", DataType::UInt32)]
                .into_iter()
                .chain(orders)
                .chain(amounts)
                .chain([required("distinct", DataType::Int64)])
                .collect(),
        )
    }
}
