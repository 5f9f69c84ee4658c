//! Validated orders as tests and benches write them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray, UInt8Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};

use crate::rows::orders;
use crate::validate::Status;

/// What the operators read of an order; the rest of the row is made up.
#[derive(Clone, Debug)]
pub struct Order {
    pub order_id: String,
    pub customer: String,
    pub card: Option<String>,
    pub device: Option<String>,
    pub ip: Option<String>,
    /// Billing and shipping.
    pub countries: [Option<String>; 2],
    pub currency: String,
    /// Sku, quantity, price of a unit.
    pub lines: Vec<(String, i64, i64)>,
    pub event_time: i64,
    pub amount: i64,
    pub status: u8,
}

impl Default for Order {
    fn default() -> Self {
        Order {
            order_id: "o-1".into(),
            customer: "c-1".into(),
            card: None,
            device: None,
            ip: None,
            countries: [None, None],
            currency: "USD".into(),
            lines: vec![("SKU-1".into(), 1, 100)],
            event_time: 0,
            amount: 100,
            status: Status::Fresh as u8,
        }
    }
}

/// [`orders::validated`] rows, at places 0, 1, 2 …
pub fn batch(rows: &[Order]) -> RecordBatch {
    let text = |of: fn(&Order) -> Option<&str>| Arc::new(rows.iter().map(of).collect::<StringArray>()) as ArrayRef;
    let ints = |of: fn(&Order) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
    let lines: Vec<_> = rows.iter().flat_map(|order| &order.lines).collect();
    let skus = StringArray::from_iter_values(lines.iter().map(|line| line.0.as_str()));
    let quantities = Int64Array::from_iter_values(lines.iter().map(|line| line.1));
    let prices = Int64Array::from_iter_values(lines.iter().map(|line| line.2));
    let lines = StructArray::new(orders::line_fields(), vec![Arc::new(skus), Arc::new(quantities), Arc::new(prices)], None);
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|order| order.lines.len()));
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|order| order.event_time)).with_timezone("UTC");
    let no_rule = OffsetBuffer::from_lengths(rows.iter().map(|_| 0));
    let item = Arc::new(Field::new("item", DataType::Utf8, false));
    let detail = ListArray::new(item, no_rule, Arc::new(StringArray::from(Vec::<&str>::new())), None);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(0..rows.len() as u64)),
        text(|o| Some(&o.order_id)),
        text(|o| Some(&o.customer)),
        Arc::new(times),
        text(|o| Some(&o.currency)),
        Arc::new(rows.iter().map(|_| None::<i64>).collect::<Int64Array>()),
        Arc::new(ListArray::new(orders::line_field(), offsets, Arc::new(lines), None)),
        text(|_| Some("card")),
        text(|o| o.card.as_deref()),
        text(|o| o.device.as_deref()),
        text(|o| o.ip.as_deref()),
        text(|o| o.countries[0].as_deref()),
        text(|o| o.countries[1].as_deref()),
        ints(|o| o.amount),
        ints(|o| o.amount),
        ints(|o| o.lines.len() as i64),
        ints(|o| o.lines.iter().map(|line| line.1).sum()),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|order| order.status))),
        Arc::new(detail),
    ];
    RecordBatch::try_new(orders::validated(), columns).expect("the columns are those of the schema")
}
