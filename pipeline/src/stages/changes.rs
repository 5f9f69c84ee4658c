//! Rows that can be taken back as the messages that Debezium makes of changes.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::{EpochRows, Recovered, Sink, SinkError};
use orderflow_sql::run::changes;

/// `epoch`, `before` and `after` (structs of the query's columns), `op` (`c`, `u` or `d`): of a stream whose rows have the columns of `schema`.
pub(crate) fn change_schema(schema: &SchemaRef) -> SchemaRef {
    let row = DataType::Struct(schema.fields()[FIRST..].to_vec().into());
    Arc::new(Schema::new(vec![
        schema.field(0).clone(),
        Field::new("before", row.clone(), true),
        Field::new("after", row, true),
        Field::new("op", DataType::Utf8, false),
    ]))
}

/// Behind `epoch` and `is_retract`.
const FIRST: usize = 2;

/// A sink that is given changes instead of the rows that it would be given.
pub(crate) struct ChangesSink {
    sink: Box<dyn Sink>,
    /// The columns that tell rows apart, by their place among the query's.
    key: Vec<usize>,
}

impl ChangesSink {
    /// Before `sink`, whose rows are to have the columns of [`change_schema`].
    pub(crate) fn new(sink: Box<dyn Sink>, key: Vec<usize>) -> ChangesSink {
        ChangesSink { sink, key }
    }

    fn changes(&self, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let own: Vec<usize> = (FIRST..rows.num_columns()).collect();
        let changes = changes(&rows.project(&own)?, rows.column(1).as_boolean(), &self.key)?;
        let epoch = rows.column(0).slice(0, changes.num_rows());
        RecordBatch::try_new(change_schema(rows.schema_ref()), [epoch].into_iter().chain(changes.columns().iter().cloned()).collect())
    }
}

#[async_trait]
impl Sink for ChangesSink {
    fn name(&self) -> &str {
        self.sink.name()
    }

    fn keeps_record(&self) -> bool {
        self.sink.keeps_record()
    }

    async fn recover(&mut self) -> Result<Recovered, SinkError> {
        self.sink.recover().await
    }

    async fn write(&mut self, EpochRows { epoch, rows }: EpochRows) -> Result<(), SinkError> {
        let rows = self.changes(&rows).map_err(|e| SinkError::refused(format!("changes of epoch {epoch}"), e))?;
        self.sink.write(EpochRows { epoch, rows }).await
    }

    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
        self.sink.commit(through).await
    }

    async fn maintain(&mut self) -> Result<(), SinkError> {
        self.sink.maintain().await
    }

    async fn keep_alive(&mut self) -> Result<(), SinkError> {
        self.sink.keep_alive().await
    }
}
