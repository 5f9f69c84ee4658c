//! SQL in orderflow: users' rules over a single order.
//!
//! Expressions are parsed, planned and evaluated by DataFusion; none of that is written here.

pub mod predicate;

pub use predicate::{SqlError, SqlPredicate};
