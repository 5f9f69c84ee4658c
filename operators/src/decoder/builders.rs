//! Builders of the decoder's columns.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int64Array, Int64Builder, ListArray, RecordBatch, StringBuilder, StructArray, TimestampMicrosecondArray,
    UInt8Array, UInt64Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::SchemaRef;

use super::message::{Movement, Order};
use crate::epoch::{Micros, Place};
use crate::rows::lifecycle::LifecycleKind;
use crate::rows::{lifecycle, malformed, movements, orders};

fn times(values: &mut Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(std::mem::take(values)).with_timezone("UTC"))
}
fn places(values: &mut Vec<u64>) -> ArrayRef {
    Arc::new(UInt64Array::from(std::mem::take(values)))
}
fn batch(schema: SchemaRef, columns: Vec<ArrayRef>) -> Option<RecordBatch> {
    Some(RecordBatch::try_new(schema, columns).expect("the builders are those of the schema's columns"))
}

#[derive(Default)]
pub(super) struct OrderBuilder {
    place: Vec<u64>,
    order_id: StringBuilder,
    customer_id: StringBuilder,
    event_time: Vec<i64>,
    currency: StringBuilder,
    total: Int64Builder,
    offsets: Vec<i32>,
    sku: StringBuilder,
    quantity: Vec<i64>,
    unit_price: Vec<i64>,
    method: StringBuilder,
    card: StringBuilder,
    device: StringBuilder,
    ip: StringBuilder,
    billing: StringBuilder,
    shipping: StringBuilder,
}

impl OrderBuilder {
    pub(super) fn push(&mut self, place: Place, order: &Order<'_>) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.place.push(place.0);
        self.order_id.append_value(order.order_id);
        self.customer_id.append_value(order.customer_id);
        self.event_time.push(order.event_time);
        self.currency.append_value(order.currency);
        self.total.append_option(order.total);
        for line in order.lines.iter() {
            self.sku.append_value(line.sku);
            self.quantity.push(line.quantity);
            self.unit_price.push(line.unit_price);
        }
        self.offsets.push(self.quantity.len() as i32);
        self.method.append_option(order.payment_method);
        self.card.append_option(order.card_fingerprint);
        self.device.append_option(order.device_id);
        self.ip.append_option(order.ip);
        self.billing.append_option(order.billing_country);
        self.shipping.append_option(order.shipping_country);
    }

    pub(super) fn finish(&mut self) -> Option<RecordBatch> {
        if self.place.is_empty() {
            return None;
        }
        let lines = StructArray::new(
            orders::line_fields(),
            vec![
                Arc::new(self.sku.finish()),
                Arc::new(Int64Array::from(std::mem::take(&mut self.quantity))),
                Arc::new(Int64Array::from(std::mem::take(&mut self.unit_price))),
            ],
            None,
        );
        let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::take(&mut self.offsets)));
        let columns: Vec<ArrayRef> = vec![
            places(&mut self.place),
            Arc::new(self.order_id.finish()),
            Arc::new(self.customer_id.finish()),
            times(&mut self.event_time),
            Arc::new(self.currency.finish()),
            Arc::new(self.total.finish()),
            Arc::new(ListArray::new(orders::line_field(), offsets, Arc::new(lines), None)),
            Arc::new(self.method.finish()),
            Arc::new(self.card.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.ip.finish()),
            Arc::new(self.billing.finish()),
            Arc::new(self.shipping.finish()),
        ];
        batch(orders::decoded(), columns)
    }
}

#[derive(Default)]
pub(super) struct LifecycleBuilder {
    place: Vec<u64>,
    kind: Vec<u8>,
    order_id: StringBuilder,
    event_time: Vec<i64>,
}

impl LifecycleBuilder {
    pub(super) fn push(&mut self, place: Place, kind: LifecycleKind, order_id: &str, event_time: Micros) {
        self.place.push(place.0);
        self.kind.push(kind as u8);
        self.order_id.append_value(order_id);
        self.event_time.push(event_time);
    }

    pub(super) fn finish(&mut self) -> Option<RecordBatch> {
        if self.place.is_empty() {
            return None;
        }
        let kind = Arc::new(UInt8Array::from(std::mem::take(&mut self.kind)));
        let columns = vec![places(&mut self.place), kind, Arc::new(self.order_id.finish()), times(&mut self.event_time)];
        batch(lifecycle::schema(), columns)
    }
}

#[derive(Default)]
pub(super) struct MovementBuilder {
    place: Vec<u64>,
    kind: Vec<u8>,
    movement_id: StringBuilder,
    sku: StringBuilder,
    quantity: Vec<i64>,
    event_time: Vec<i64>,
}

impl MovementBuilder {
    pub(super) fn push(&mut self, place: Place, movement: &Movement<'_>) {
        self.place.push(place.0);
        self.kind.push(movement.kind as u8);
        self.movement_id.append_value(movement.movement_id);
        self.sku.append_value(movement.sku);
        self.quantity.push(movement.quantity);
        self.event_time.push(movement.event_time);
    }

    pub(super) fn finish(&mut self) -> Option<RecordBatch> {
        if self.place.is_empty() {
            return None;
        }
        let columns: Vec<ArrayRef> = vec![
            places(&mut self.place),
            Arc::new(UInt8Array::from(std::mem::take(&mut self.kind))),
            Arc::new(self.movement_id.finish()),
            Arc::new(self.sku.finish()),
            Arc::new(Int64Array::from(std::mem::take(&mut self.quantity))),
            times(&mut self.event_time),
        ];
        batch(movements::schema(), columns)
    }
}

#[derive(Default)]
pub(super) struct MalformedBuilder {
    place: Vec<u64>,
    topic: StringBuilder,
    raw: BinaryBuilder,
    error: StringBuilder,
}

impl MalformedBuilder {
    pub(super) fn push(&mut self, place: Place, topic: &str, raw: &[u8], error: &str) {
        self.place.push(place.0);
        self.topic.append_value(topic);
        self.raw.append_value(raw);
        self.error.append_value(error);
    }

    pub(super) fn finish(&mut self) -> Option<RecordBatch> {
        if self.place.is_empty() {
            return None;
        }
        let columns: Vec<ArrayRef> =
            vec![places(&mut self.place), Arc::new(self.topic.finish()), Arc::new(self.raw.finish()), Arc::new(self.error.finish())];
        batch(malformed::schema(), columns)
    }
}
