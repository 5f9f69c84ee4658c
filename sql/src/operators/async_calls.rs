//! Asynchronous functions of one's own: all calls of an epoch's rows, so many at a time as the function allows, and their answers in the rows' order.
//!
//! The worker waits for them: an epoch is over when its last answer is there. So what comes out is in canonical order, and a function of the rows as far as the
//! function is one. A call that takes too long, or panics, fails the stage: there is no answer to go on with that another run would give, too.

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use orderflow_operators::epoch::EpochInfo;

use super::{Operator, Output};
use crate::rows;
use crate::udf::{AsyncLibrary, AsyncOptions, AsyncRuntime};

/// A function that is called for each row.
#[derive(Clone, Debug)]
pub(crate) struct AsyncCall {
    pub name: String,
    pub library: AsyncLibrary,
    pub options: AsyncOptions,
    /// The columns of its arguments, and whether each may be NULL.
    pub arguments: Vec<(usize, bool)>,
}

/// Adds a column for each call. Input: columns to keep, then columns of arguments. Output: those kept, then a column for each call.
pub(crate) struct AsyncCalls {
    /// With its thread, from the first row on.
    calls: Vec<(AsyncCall, Option<AsyncRuntime>)>,
    kept: usize,
    schema: SchemaRef,
}

impl AsyncCalls {
    /// `kept` columns are kept, those that every row has among them.
    pub fn new(calls: Vec<AsyncCall>, kept: usize, schema: SchemaRef) -> Self {
        AsyncCalls { calls: calls.into_iter().map(|call| (call, None)).collect(), kept, schema }
    }
}

impl Operator for AsyncCalls {
    fn on_epoch(&mut self, _info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()> {
        let Some(batch) = inputs[0].take().filter(|batch| batch.num_rows() > 0) else { return Ok(()) };
        let mut columns = batch.columns()[..self.kept].to_vec();
        for (place, (call, runtime)) in self.calls.iter_mut().enumerate() {
            let runtime = runtime.get_or_insert_with(|| call.library.start(&call.name, call.options));
            columns.push(answers(call, runtime, &batch, self.schema.field(self.kept + place).data_type())?);
        }
        output.rows.push(rows::batch(&self.schema, columns));
        Ok(())
    }
}

/// The values of all rows; NULL where an argument is NULL that may not be.
fn answers(call: &AsyncCall, runtime: &mut AsyncRuntime, batch: &RecordBatch, data_type: &arrow::datatypes::DataType) -> Result<ArrayRef> {
    let is_asked = |row: &u32| call.arguments.iter().all(|(column, nullable)| *nullable || batch.column(*column).is_valid(*row as usize));
    let asked = UInt32Array::from_iter_values((0..batch.num_rows() as u32).filter(is_asked));
    let arguments = call.arguments.iter().map(|(column, _)| Ok(take(batch.column(*column), &asked, None)?)).collect::<Result<Vec<_>>>()?;
    let found = runtime.call(asked.len(), &arguments).map_err(|e| DataFusionError::Execution(e.to_string()))?;
    let mut next = 0..asked.len();
    let mut asked = asked.values().iter().peekable();
    let place_of = (0..batch.num_rows() as u32).map(|row| if asked.next_if_eq(&&row).is_some() { next.next() } else { None });
    Ok(found.gather(place_of, data_type)?)
}
