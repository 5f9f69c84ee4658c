//! `GROUP BY` over rows of windows: nested windows, and `DISTINCT` of what windows give.
//!
//! All rows of a window come out in one epoch, so that nothing needs to be remembered: groups are those of the epoch, apart by event time, which tells
//! windows from each other.

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::error::Result;
use orderflow_operators::epoch::EpochInfo;

use super::aggregates::Aggregates;
use super::window_aggregate::Groups;
use super::{Operator, Output};
use crate::rows::{self, META, TIME, canonical, meta_after_rows};

/// Aggregates of the rows of one instant. Input: the keys behind the [`META`] columns, then what the aggregates' arguments name. Output: keys, aggregates.
pub(crate) struct InstantAggregate {
    keys: usize,
    key_schema: SchemaRef,
    aggregates: Aggregates,
    schema: SchemaRef,
}

impl InstantAggregate {
    pub fn new(input: &SchemaRef, keys: usize, aggregates: Aggregates, schema: SchemaRef) -> Self {
        let time = std::iter::once(input.fields()[TIME].clone());
        let key_schema = Schema::new(time.chain(input.fields()[META..META + keys].iter().cloned()).collect::<Vec<_>>());
        InstantAggregate { keys, key_schema: key_schema.into(), aggregates, schema }
    }
}

impl Operator for InstantAggregate {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let Some(rows) = inputs[0].take() else { return Ok(()) };
        let rows = canonical(rows);
        let mut groups = Groups::new(&self.key_schema, &self.aggregates)?;
        let keys: Vec<ArrayRef> = std::iter::once(TIME).chain(META..META + self.keys).map(|c| rows.column(c).clone()).collect();
        groups.update(&self.aggregates, &keys, &rows)?;
        let (_, mut keys, values) = groups.into_values(&self.aggregates)?;
        let times = keys.remove(0).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        let meta = meta_after_rows(times, false);
        output.rows.push(rows::batch(&self.schema, meta.into_iter().chain(keys).chain(values).collect()));
        Ok(())
    }
}
