//! A user's rule: a SQL predicate over the columns of one order.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;
use orderflow_operators::rows::orders;
use orderflow_operators::validate::Predicate;

/// What is wrong with a rule.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// It is not SQL, or names what there is not.
    #[error("rule {name}: {message}; an order has the columns {columns}")]
    Invalid {
        /// The rule.
        name: String,
        /// What the planner says.
        message: String,
        /// What could be named.
        columns: String,
    },
    /// It says something else than yes or no.
    #[error("rule {name}: the expression has type {found}, not boolean; write a condition that holds for good orders")]
    NotBoolean {
        /// The rule.
        name: String,
        /// Its type.
        found: DataType,
    },
    /// It would not come out the same again.
    #[error(
        "rule {name}: {function}() gives another value each time, and a replay must decide as the first run did; compare with the order's own columns instead"
    )]
    NotDeterministic {
        /// The rule.
        name: String,
        /// What does.
        function: String,
    },
}

/// A predicate over [`orders::summed`], planned.
#[derive(Debug)]
pub struct SqlPredicate {
    name: String,
    expression: Arc<dyn PhysicalExpr>,
}

impl SqlPredicate {
    /// Plans `sql`.
    ///
    /// # Errors
    /// If it is not a deterministic condition over an order's columns.
    pub fn plan(name: &str, sql: &str) -> Result<SqlPredicate, SqlError> {
        let columns = || {
            let schema = orders::summed();
            schema.fields().iter().skip(1).map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ")
        };
        let invalid = |error: datafusion::error::DataFusionError| SqlError::Invalid {
            name: name.to_owned(),
            message: error.strip_backtrace(),
            columns: columns(),
        };
        let context = SessionContext::new();
        let schema = DFSchema::try_from(orders::summed()).map_err(invalid)?;
        let logical = context.parse_sql_expr(sql, &schema).map_err(invalid)?;
        if let Some(function) = unstable_function(&logical) {
            return Err(SqlError::NotDeterministic { name: name.to_owned(), function });
        }
        let found = logical.get_type(&schema).map_err(invalid)?;
        if found != DataType::Boolean {
            return Err(SqlError::NotBoolean { name: name.to_owned(), found });
        }
        let expression = context.create_physical_expr(logical, &schema).map_err(invalid)?;
        Ok(SqlPredicate { name: name.to_owned(), expression })
    }
}

impl Predicate for SqlPredicate {
    fn name(&self) -> &str {
        &self.name
    }

    fn evaluate(&self, orders: &RecordBatch) -> Result<BooleanArray, String> {
        let value = self.expression.evaluate(orders).and_then(|value| value.into_array(orders.num_rows()));
        Ok(value.map_err(|e| e.strip_backtrace())?.as_boolean().clone())
    }
}

/// A function whose value is not a function of its arguments.
fn unstable_function(expression: &Expr) -> Option<String> {
    let mut found = None;
    let visited = expression.apply(|e| {
        if let Expr::ScalarFunction(f) = e
            && f.func.signature().volatility != Volatility::Immutable
        {
            found = Some(f.func.name().to_owned());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check_error(sql: &str, expected: Expect) {
        let message = SqlPredicate::plan("mine", sql).expect_err("it is refused").to_string();
        expected.assert_eq(message.split("; an order has").next().unwrap_or_default());
    }

    #[test]
    fn bad_rules_are_refused() {
        check_error(
            "total + 1",
            expect!["rule mine: the expression has type Int64, not boolean; write a condition that holds for good orders"],
        );
        check_error(
            "event_time < now()",
            expect![
                "rule mine: now() gives another value each time, and a replay must decide as the first run did; compare with the order's own columns instead"
            ],
        );
        assert!(SqlPredicate::plan("mine", "totl < 5").unwrap_err().to_string().contains("totl"));
        assert!(matches!(SqlPredicate::plan("mine", "total <"), Err(SqlError::Invalid { .. })));
    }

    #[test]
    fn an_empty_batch_is_fine() {
        let rule = SqlPredicate::plan("mine", "total <= 1000000 AND billing_country IN ('US', 'DE')").unwrap();
        assert_eq!(rule.evaluate(&RecordBatch::new_empty(orders::summed())).unwrap().len(), 0);
    }
}
