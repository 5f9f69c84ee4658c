//! SQL in orderflow: users' rules over a single order, queries of tables in memory, and stages.
//!
//! Expressions are parsed, planned and evaluated by DataFusion, and aggregates by its accumulators; none of that is written here.
//!
//! A stage is a file in Arroyo's dialect. [`stage`] plans it into a [`graph`] of `operators`, which [`dataflow`] puts on timely's edges; [`run`] runs
//! one by itself, on files.

pub mod dataflow;
mod exchange;
pub mod golden;
pub mod graph;
mod operators;
pub mod predicate;
pub mod query;
pub mod rows;
pub mod run;
pub mod stage;
pub mod udf;

pub use datafusion::error::DataFusionError;
pub use operators::{GroupedState, reject_schema};
pub use predicate::{SqlError, SqlPredicate};
pub use query::{QueryError, Table, query};
pub use stage::{Stage, StageError};
pub use udf::{UdfError, Udfs};
