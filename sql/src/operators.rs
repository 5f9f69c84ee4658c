//! Operators of stages: plain structs that take an epoch's rows and give the rows that come out.
//!
//! They know no clock, do no I/O and draw no random numbers, but for what asynchronous functions of one's own do. What they are given of an epoch they put in canonical order ([`crate::rows`]), so
//! that the outcome does not depend on how the rows came, nor on how many workers there are.

mod aggregates;
mod async_calls;
mod instant_aggregate;
mod join;
mod reject;
mod row_number;
mod row_steps;
mod session_aggregate;
mod state;
mod timers;
mod top_rows;
mod updating_aggregate;
mod updating_join;
mod window_aggregate;

pub(crate) use aggregates::{Aggregates, Call};
pub(crate) use async_calls::{AsyncCall, AsyncCalls};
pub(crate) use instant_aggregate::InstantAggregate;
pub(crate) use join::{JoinKind, JoinSpec, Lookup, WindowedJoin};
pub use reject::reject_schema;
pub(crate) use reject::{Reject, Rejects};
pub(crate) use row_number::{RowNumber, SortKey};
pub(crate) use row_steps::{RowSteps, Step};
pub(crate) use session_aggregate::SessionAggregate;
pub use state::GroupedState;
pub(crate) use top_rows::TopRows;
pub(crate) use updating_aggregate::UpdatingAggregate;
pub(crate) use updating_join::UpdatingJoin;
pub(crate) use window_aggregate::WindowAggregate;

use arrow::array::RecordBatch;
use datafusion::error::Result;
use orderflow_operators::epoch::EpochInfo;

/// What an operator makes of an epoch.
#[derive(Default)]
pub(crate) struct Output {
    /// Rows for whoever comes next, in any order.
    pub rows: Vec<RecordBatch>,
    /// Rows that do not count.
    pub rejects: Rejects,
}

/// An operator on one worker.
pub(crate) trait Operator {
    /// Takes an epoch: its rows by input, in any order, and when it is over.
    ///
    /// # Errors
    /// If an aggregate's value cannot be had, as on overflow of a decimal: the stage cannot go on.
    fn on_epoch(&mut self, info: &EpochInfo, inputs: &mut [Option<RecordBatch>], output: &mut Output) -> Result<()>;

    /// What it must know of earlier epochs, if anything.
    fn state(&mut self) -> Option<&mut dyn GroupedState> {
        None
    }
}
