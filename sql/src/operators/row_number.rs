//! `ROW_NUMBER() OVER (PARTITION BY window, … ORDER BY …)` over rows of windows.
//!
//! All rows of a window come out in one epoch, so that nothing needs to be remembered. Rows that are alike in what they are ordered by come in
//! canonical order.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result;
use orderflow_operators::epoch::EpochInfo;

use super::{Operator, Output};
use crate::rows::{self, META, TIME, canonical};

/// A column to order by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SortKey {
    pub column: usize,
    pub options: SortOptions,
}

/// Numbers the rows of each partition from 1. Output: the first `columns` columns of the query, then the number (uint64).
pub(crate) struct RowNumber {
    pub columns: usize,
    /// Of a batch, besides event time.
    pub partition: Vec<usize>,
    pub order: Vec<SortKey>,
    pub schema: SchemaRef,
}

/// A converter of some columns under an order.
pub(crate) fn sort_converter(schema: &SchemaRef, keys: &[SortKey]) -> Result<RowConverter> {
    let fields = keys.iter().map(|key| SortField::new_with_options(schema.field(key.column).data_type().clone(), key.options));
    Ok(RowConverter::new(fields.collect())?)
}

impl Operator for RowNumber {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let Some(rows) = inputs[0].take() else { return Ok(()) };
        let rows = canonical(rows);
        let schema = rows.schema();
        let partition = |column| SortKey { column, options: SortOptions::default() };
        let partition: Vec<SortKey> = std::iter::once(TIME).chain(self.partition.iter().copied()).map(partition).collect();
        let convert = |keys: &[SortKey]| -> Result<arrow::row::Rows> {
            let columns: Vec<ArrayRef> = keys.iter().map(|key| rows.column(key.column).clone()).collect();
            Ok(sort_converter(&schema, keys)?.convert_columns(&columns)?)
        };
        let partitions = convert(&partition)?;
        let keys = if self.order.is_empty() { None } else { Some(convert(&self.order)?) };
        let mut order: Vec<usize> = (0..rows.num_rows()).collect();
        // Stable: what is alike stays in canonical order.
        order.sort_by(|a, b| {
            let within = || keys.as_ref().map_or(std::cmp::Ordering::Equal, |keys| keys.row(*a).cmp(&keys.row(*b)));
            partitions.row(*a).cmp(&partitions.row(*b)).then_with(within)
        });
        let mut numbers = vec![0_u64; rows.num_rows()];
        let mut before: Option<usize> = None;
        let mut number = 0;
        for row in order {
            number = if before.is_some_and(|b| partitions.row(b) == partitions.row(row)) { number + 1 } else { 1 };
            numbers[row] = number;
            before = Some(row);
        }
        let columns = rows.columns()[..META + self.columns].iter().cloned();
        let columns = columns.chain([Arc::new(UInt64Array::from(numbers)) as ArrayRef]).collect();
        output.rows.push(rows::batch(&self.schema, columns));
        Ok(())
    }
}
