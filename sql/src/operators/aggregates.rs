//! The aggregates of a `GROUP BY`, by DataFusion's accumulators.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};

use crate::udf::UdfAggregate;

/// One aggregate.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub function: Arc<AggregateFunctionExpr>,
    /// `FILTER (WHERE …)`.
    pub filter: Option<Arc<dyn PhysicalExpr>>,
}

/// The aggregates of a `GROUP BY`.
#[derive(Clone, Debug)]
pub struct Aggregates {
    calls: Vec<Call>,
    state_fields: Vec<FieldRef>,
    is_exact: bool,
}

/// Accumulators of many groups, one for each aggregate.
pub(crate) type Accumulators = Vec<Box<dyn GroupsAccumulator>>;

/// Aggregates whose accumulator, made of a state, is as the one that the state was taken of, to the last bit.
const EXACT: [&str; 19] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "first_value",
    "last_value",
    "array_agg",
    "string_agg",
    "median",
    "any_value",
    "nth_value",
    "approx_distinct",
    "grouping",
];

impl Aggregates {
    pub(crate) fn new(calls: Vec<Call>) -> Result<Aggregates> {
        let mut state_fields = Vec::new();
        for call in &calls {
            state_fields.extend(call.function.state_fields()?);
        }
        let is_own = |call: &Call| call.function.fun().inner().downcast_ref::<UdfAggregate>().is_some();
        let is_exact = calls.iter().all(|call| is_own(call) || EXACT.contains(&call.function.fun().name()));
        Ok(Aggregates { calls, state_fields, is_exact })
    }

    /// The columns of a state, of all aggregates one after the other.
    pub(crate) fn state_fields(&self) -> &[FieldRef] {
        &self.state_fields
    }

    /// Types of the values.
    pub(crate) fn output_types(&self) -> impl Iterator<Item = DataType> + '_ {
        self.calls.iter().map(|call| call.function.field().data_type().clone())
    }

    /// Whether writing a state down and taking it up changes nothing. Where it does (`stddev`, `approx_percentile_cont`), accumulators are made anew of
    /// their state after every epoch, so that results do not depend on whether there was a checkpoint.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Accumulators without a group.
    pub(crate) fn accumulators(&self) -> Result<Accumulators> {
        self.calls
            .iter()
            .map(|call| {
                if call.function.groups_accumulator_supported() {
                    return call.function.create_groups_accumulator();
                }
                let function = call.function.clone();
                Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())) as Box<dyn GroupsAccumulator>)
            })
            .collect()
    }

    /// Adds rows; `groups[row]` is a row's group, of `total` groups.
    pub(crate) fn update(&self, accumulators: &mut Accumulators, rows: &RecordBatch, groups: &[usize], total: usize) -> Result<()> {
        for (call, accumulator) in self.calls.iter().zip(accumulators) {
            let values = call.function.all_expressions();
            let values = values.args.iter().chain(&values.order_by_exprs);
            let values = values.map(|e| e.evaluate(rows)?.into_array(rows.num_rows())).collect::<Result<Vec<_>>>()?;
            let filter: Option<BooleanArray> = match &call.filter {
                None => None,
                Some(filter) => Some(filter.evaluate(rows)?.into_array(rows.num_rows())?.as_boolean().clone()),
            };
            accumulator.update_batch(&values, groups, filter.as_ref(), total)?;
        }
        Ok(())
    }

    /// Adds states, as [`state`](Aggregates::state) gives them.
    pub(crate) fn merge(&self, accumulators: &mut Accumulators, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        let mut rest = states;
        for (call, accumulator) in self.calls.iter().zip(accumulators) {
            let (own, others) = rest
                .split_at_checked(call.function.state_fields()?.len())
                .ok_or_else(|| DataFusionError::Internal("a state has the columns of its aggregates".to_owned()))?;
            accumulator.merge_batch(own, groups, total)?;
            rest = others;
        }
        Ok(())
    }

    /// The states of all groups; the accumulators are empty behind it.
    pub(crate) fn state(&self, accumulators: &mut Accumulators) -> Result<Vec<ArrayRef>> {
        let mut states = Vec::new();
        for accumulator in accumulators {
            states.extend(accumulator.state(EmitTo::All)?);
        }
        Ok(states)
    }

    /// The values of all groups; the accumulators are empty behind it.
    pub(crate) fn evaluate(&self, accumulators: &mut Accumulators) -> Result<Vec<ArrayRef>> {
        accumulators.iter_mut().map(|accumulator| accumulator.evaluate(EmitTo::All)).collect()
    }
}

/// Row `row` of some columns, as values of their own.
pub(crate) fn values_at(columns: &[ArrayRef], row: usize) -> Result<Vec<ScalarValue>> {
    columns
        .iter()
        .map(|column| {
            let mut value = ScalarValue::try_from_array(column, row)?;
            // A slice would keep the whole column.
            value.compact();
            Ok(value)
        })
        .collect()
}

/// The columns that rows of values make.
pub(crate) fn columns_of<'a>(rows: impl ExactSizeIterator<Item = &'a [ScalarValue]> + Clone, fields: &[FieldRef]) -> Result<Vec<ArrayRef>> {
    let column = |(i, field): (usize, &FieldRef)| {
        if rows.len() == 0 {
            return Ok(arrow::array::new_empty_array(field.data_type()));
        }
        let array = ScalarValue::iter_to_array(rows.clone().map(|row| row[i].clone()))?;
        if array.data_type() == field.data_type() { Ok(array) } else { Ok(arrow::compute::cast(&array, field.data_type())?) }
    };
    fields.iter().enumerate().map(column).collect()
}
