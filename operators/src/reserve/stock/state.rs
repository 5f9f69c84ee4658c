//! The stock as rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Stock, Units};
use crate::columns::{i64s, text};
use crate::epoch::Micros;
use crate::keys::KeyGroup;
use crate::snapshot::{KEY, KeyedState};

const ON_HAND: usize = 1;
const RESERVED: usize = 2;

/// sku (text), on_hand (int64), reserved (int64)
fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("sku", DataType::Utf8, false),
            Field::new("on_hand", DataType::Int64, false),
            Field::new("reserved", DataType::Int64, false),
        ]))
    });
    SCHEMA.clone()
}

impl Stock {
    fn rows(&self, skus: impl Iterator<Item = u32> + Clone) -> Option<RecordBatch> {
        let units = |of: fn(&Units) -> i64| skus.clone().map(move |sku| of(&self.skus[sku as usize].units));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(skus.clone().map(|sku| &self.skus[sku as usize].name))),
            Arc::new(Int64Array::from_iter_values(units(|units| units.on_hand))),
            Arc::new(Int64Array::from_iter_values(units(|units| units.reserved))),
        ];
        let rows = RecordBatch::try_new(schema(), columns).expect("the columns are those of a SKU");
        (rows.num_rows() > 0).then_some(rows)
    }
}

impl KeyedState for Stock {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn group_len(&self, group: KeyGroup) -> usize {
        self.tables[group.0 as usize].len()
    }

    fn group(&self, group: KeyGroup) -> Option<RecordBatch> {
        // One that has none is as one that was never there.
        self.rows(self.tables[group.0 as usize].iter().copied().filter(|&sku| self.skus[sku as usize].units != Units::default()))
    }

    fn keep_changes(&mut self) {
        self.changed.get_or_insert_default();
    }

    fn take_changes(&mut self) -> Vec<RecordBatch> {
        let changed = self.changed.as_mut().map(std::mem::take).unwrap_or_default();
        for &sku in &changed {
            self.skus[sku as usize].is_changed = false;
        }
        self.rows(changed.iter().copied()).into_iter().collect()
    }

    fn changes_add_up(&self) -> bool {
        true
    }

    fn restore(&mut self, rows: &RecordBatch) {
        let (names, on_hand, reserved) = (text(rows, KEY), i64s(rows, ON_HAND), i64s(rows, RESERVED));
        for row in 0..rows.num_rows() {
            let sku = self.find(names.value(row));
            self.skus[sku as usize].units = Units { on_hand: on_hand[row], reserved: reserved[row] };
        }
    }

    fn begin_restore(&mut self, _watermark: Micros) {}
}
