//! SQL in orderflow: users' rules over a single order, and queries of tables in memory.
//!
//! Expressions are parsed, planned and evaluated by DataFusion; none of that is written here.

pub mod predicate;
pub mod query;

pub use predicate::{SqlError, SqlPredicate};
pub use query::{QueryError, Table, query};
