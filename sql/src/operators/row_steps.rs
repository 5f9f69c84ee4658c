//! What is done to one row at a time: conditions, expressions, lists spread out.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use orderflow_operators::dataflow::concat;
use orderflow_operators::epoch::EpochInfo;

use super::{Operator, Output, Reject, Rejects};
use crate::rows::{self, META};

/// One step.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Keeps rows for which a condition holds.
    Filter(Arc<dyn PhysicalExpr>),
    /// Computes the query's columns anew.
    Project { expressions: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef },
    /// A row for each item of the longest of some lists. `outputs`: for each column the column that it is made of, and whether it is spread.
    Unnest { outputs: Vec<(usize, bool)>, keeps_empty: bool, schema: SchemaRef },
}

/// Steps one after the other.
pub(crate) struct RowSteps {
    steps: Vec<Step>,
}

impl RowSteps {
    pub fn new(steps: Vec<Step>) -> Self {
        RowSteps { steps }
    }

    /// What comes of `rows`.
    pub fn apply(&self, mut rows: RecordBatch, rejects: &mut Rejects) -> RecordBatch {
        for step in &self.steps {
            rows = apply(step, rows, rejects);
        }
        rows
    }
}

impl Operator for RowSteps {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        if let Some(rows) = inputs[0].take() {
            let rows = self.apply(rows, &mut output.rejects);
            if rows.num_rows() > 0 {
                output.rows.push(rows);
            }
        }
        Ok(())
    }
}

fn apply(step: &Step, rows: RecordBatch, rejects: &mut Rejects) -> RecordBatch {
    match try_apply(step, &rows) {
        Ok(rows) => rows,
        Err(error) if rows.num_rows() <= 1 => {
            rejects.add(Reject::Error, &error.strip_backtrace(), &rows);
            RecordBatch::new_empty(match step {
                Step::Filter(_) => rows.schema(),
                Step::Project { schema, .. } | Step::Unnest { schema, .. } => schema.clone(),
            })
        }
        Err(_) => {
            // Somewhere in here is a row that has no value: it is found by halving.
            let half = rows.num_rows() / 2;
            let (first, second) = (rows.slice(0, half), rows.slice(half, rows.num_rows() - half));
            let parts = vec![apply(step, first, rejects), apply(step, second, rejects)];
            let schema = parts[0].schema();
            concat(parts).unwrap_or_else(|| RecordBatch::new_empty(schema))
        }
    }
}

fn try_apply(step: &Step, rows: &RecordBatch) -> Result<RecordBatch> {
    match step {
        Step::Filter(condition) => {
            let holds = condition.evaluate(rows)?.into_array(rows.num_rows())?;
            Ok(filter_record_batch(rows, holds.as_boolean())?)
        }
        Step::Project { expressions, schema } => {
            let mut columns = rows.columns()[..META].to_vec();
            for expression in expressions {
                columns.push(expression.evaluate(rows)?.into_array(rows.num_rows())?);
            }
            Ok(rows::batch(schema, columns))
        }
        Step::Unnest { outputs, keeps_empty, schema } => unnest(rows, outputs, *keeps_empty, schema),
    }
}

fn unnest(rows: &RecordBatch, outputs: &[(usize, bool)], keeps_empty: bool, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut lists: Vec<(usize, arrow::array::ListArray)> = Vec::new();
    for &(column, spread) in outputs {
        if spread && !lists.iter().any(|(c, _)| *c == column) {
            let array = rows.column(column);
            let item = match array.data_type() {
                DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => item.clone(),
                other => return Err(datafusion::error::DataFusionError::Plan(format!("UNNEST takes a list, not {other}"))),
            };
            lists.push((column, arrow::compute::cast(array, &DataType::List(item))?.as_list::<i32>().clone()));
        }
    }
    let length = |list: &arrow::array::ListArray, row: usize| if list.is_null(row) { 0 } else { list.value_length(row) as usize };
    // The row that each row is made of, and by list the item.
    let mut from: Vec<u32> = Vec::new();
    let mut items: Vec<Vec<Option<u32>>> = vec![Vec::new(); lists.len()];
    for row in 0..rows.num_rows() {
        let mut longest = lists.iter().map(|(_, list)| length(list, row)).max().unwrap_or(0);
        if longest == 0 && keeps_empty {
            longest = 1;
        }
        for place in 0..longest {
            from.push(row as u32);
            for ((_, list), items) in lists.iter().zip(&mut items) {
                let start = list.value_offsets()[row] as u32;
                items.push((place < length(list, row)).then_some(start + place as u32));
            }
        }
    }
    let from = UInt32Array::from(from);
    let repeated = take_record_batch(rows, &from)?;
    let mut columns = repeated.columns()[..META].to_vec();
    for &(column, spread) in outputs {
        let list = if spread { lists.iter().zip(&items).find(|((c, _), _)| *c == column) } else { None };
        let array: ArrayRef = match list {
            Some(((_, list), items)) => take(list.values(), &UInt32Array::from(items.clone()), None)?,
            None => repeated.column(column).clone(),
        };
        columns.push(array);
    }
    Ok(rows::batch(schema, columns))
}
