//! SQL over tables that are in memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SQLOptions, SessionContext};

/// A table of a query.
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows.
    pub rows: Vec<RecordBatch>,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
#[error("{message}; there are the tables {tables}")]
pub struct QueryError {
    message: String,
    tables: String,
}

/// Answers a query. It can read, and nothing else.
///
/// # Errors
/// If it is not a query of these tables, or cannot be evaluated.
pub async fn query(tables: Vec<Table>, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), QueryError> {
    let described = tables.iter().map(|table| {
        let columns: Vec<_> = table.schema.fields().iter().map(|field| field.name().as_str()).collect();
        format!("{} ({})", table.name, columns.join(", "))
    });
    let described = described.collect::<Vec<_>>().join(", ");
    let wrong = |error: DataFusionError| QueryError { message: error.strip_backtrace(), tables: described.clone() };
    let context = SessionContext::new();
    for Table { name, schema, rows } in tables {
        let table = MemTable::try_new(schema, vec![rows]).map_err(wrong)?;
        context.register_table(name, Arc::new(table)).map_err(wrong)?;
    }
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let answer = context.sql_with_options(sql, read_only).await.map_err(wrong)?;
    let schema = Arc::new(answer.schema().as_arrow().clone());
    Ok((schema, answer.collect().await.map_err(wrong)?))
}
