//! The table of a stream: made, checked, committed to.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, StructType, Transaction};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError, TableProperty};
use object_store::ObjectStore;
use orderflow_faults::{Point, check};
use orderflow_operators::epoch::Epoch;
use url::Url;

use super::error::{classify, what};
use super::settings::DeltaSettings;
use super::statistics::INDEXED_COLUMNS;
use super::stores;
use crate::SinkError;
use crate::store::{self, local_disk};

/// How long entries of a new table's log are kept. On local disk a commit looks through all of them: a day's, at a commit every
/// five seconds, take it some 20 ms, a week's 150 ms.
const LOG_RETENTION_HOURS: u64 = 24;

/// Where a table is and what it must be.
pub(super) struct TableSpec {
    pub stream: String,
    app_id: String,
    url: Url,
    /// The bucket or disk.
    pub(super) root: Arc<dyn ObjectStore>,
    schema: SchemaRef,
    settings: DeltaSettings,
}

impl TableSpec {
    pub fn new(job: &str, stream: &str, schema: SchemaRef, settings: DeltaSettings) -> Result<TableSpec, SinkError> {
        stores::register();
        let base = store::folder_url(&settings.url)?;
        let url = base.join(&format!("{stream}/")).map_err(|e| SinkError::refused(format!("address {base}"), e))?;
        let root = store::open(&url, &settings.storage)?;
        Ok(TableSpec { stream: stream.to_owned(), app_id: format!("orderflow/{job}/{stream}"), url, root, schema, settings })
    }

    fn failed(&self, error: impl Into<DeltaTableError>) -> SinkError {
        classify(&self.stream, error)
    }

    /// Loads the table, or makes it.
    pub async fn open(&self) -> Result<DeltaTable, SinkError> {
        if self.url.scheme() == "file" {
            store::make_folder(&self.url)?;
        }
        let builder = DeltaTableBuilder::from_url(self.url.clone()).map_err(|e| self.failed(e))?;
        let mut table = builder.with_storage_backend(self.root.clone(), self.url.clone()).build().map_err(|e| self.failed(e))?;
        if table.verify_deltatable_existence().await.map_err(|e| self.failed(e))? {
            table.load().await.map_err(|e| self.failed(e))?;
        } else {
            self.point(Point::DeltaCreate)?;
            table = self.create(&table).await?;
            self.point(Point::DeltaCreated)?;
        }
        self.check(&table)?;
        Ok(table)
    }

    /// Removes what killed lives left half written. Vacuum does not see it.
    pub async fn remove_stale(&self) {
        store::remove_stale(&self.url).await;
    }

    async fn create(&self, table: &DeltaTable) -> Result<DeltaTable, SinkError> {
        let schema: StructType = self.schema.as_ref().try_into_kernel().map_err(|e| SinkError::refused(what(&self.stream), e))?;
        let mut create = CreateBuilder::new()
            .with_log_store(table.log_store())
            .with_table_name(&self.stream)
            .with_columns(schema.fields().cloned())
            .with_configuration_property(TableProperty::CheckpointInterval, Some(self.settings.checkpoint_interval.max(1).to_string()))
            .with_configuration_property(TableProperty::DataSkippingNumIndexedCols, Some(INDEXED_COLUMNS.to_string()))
            // Somebody else may have made it meanwhile: then it is loaded.
            .with_save_mode(SaveMode::Ignore);
        let kept_hours = self.settings.vacuum_retention.as_secs().div_ceil(3600);
        if kept_hours > 0 {
            create = create
                .with_configuration_property(TableProperty::DeletedFileRetentionDuration, Some(format!("interval {kept_hours} hours")))
                .with_configuration_property(TableProperty::LogRetentionDuration, Some(format!("interval {LOG_RETENTION_HOURS} hours")));
        }
        create.await.map_err(|e| self.failed(e))
    }

    /// The table is what this job would have made.
    fn check(&self, table: &DeltaTable) -> Result<(), SinkError> {
        let refused = |reason: String| {
            let advice = "give sinks.delta.url another folder, or move that table away";
            Err(SinkError::refused(what(&self.stream), format!("the table at {} {reason}: {advice}", self.url)))
        };
        let snapshot = table.snapshot().map_err(|e| self.failed(e))?;
        let metadata = snapshot.metadata();
        if !metadata.partition_columns().is_empty() {
            return refused("is partitioned, which this job's tables are not".to_owned());
        }
        if metadata.configuration().get(TableProperty::ColumnMappingMode.as_ref()).is_some_and(|mode| mode != "none") {
            return refused("has its columns mapped to other names, which this job does not write".to_owned());
        }
        let found: Schema = snapshot.schema().as_ref().try_into_arrow().map_err(|e| SinkError::refused(what(&self.stream), e))?;
        let (found, expected) = (columns(&found), columns(&self.schema));
        let Some(at) = (0..found.len().max(expected.len())).find(|&i| found.get(i) != expected.get(i)) else { return Ok(()) };
        let column = |of: &[(String, String)]| of.get(at).map_or("no column".to_owned(), |(name, kind)| format!("{name} {kind}"));
        refused(format!("has {} where this job writes {} (column {})", column(&found), column(&expected), at + 1))
    }

    /// The last epoch that the table holds.
    pub async fn epoch(&self, table: &DeltaTable) -> Result<Epoch, SinkError> {
        let snapshot = table.snapshot().map_err(|e| self.failed(e))?;
        let version = snapshot.transaction_version(table.log_store().as_ref(), &self.app_id).await.map_err(|e| self.failed(e))?;
        match u64::try_from(version.unwrap_or(0)) {
            Ok(epoch) => Ok(Epoch(epoch)),
            Err(_) => {
                Err(SinkError::refused(what(&self.stream), format!("its version for {} is no epoch; restore the table", self.app_id)))
            }
        }
    }

    /// Adds the files of the epochs behind `committed` through `through`.
    ///
    /// delta-rs refuses it if the appId has moved since `table` was loaded, so that of two jobs only one gets through.
    pub async fn commit(&self, table: &mut DeltaTable, files: Vec<Action>, committed: Epoch, through: Epoch) -> Result<(), SinkError> {
        let version = i64::try_from(through.0).map_err(|e| SinkError::refused(what(&self.stream), e))?;
        let epochs = HashMap::from([("orderflow.epochs".to_owned(), format!("{}..={through}", committed.next()).into())]);
        let properties =
            CommitProperties::default().with_application_transaction(Transaction::new(&self.app_id, version)).with_metadata(epochs);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        self.point(Point::DeltaCommit)?;
        self.append(table, files, properties, operation).await.map_err(|e| self.failed(e))?;
        self.point(Point::DeltaCommitted)
    }

    /// Passes a point where a test may make a step fail.
    pub fn point(&self, point: Point) -> Result<(), SinkError> {
        check(point).map_err(|error| self.failed(local_disk(error)))
    }

    /// One entry of the log.
    pub async fn append(
        &self,
        table: &mut DeltaTable,
        actions: Vec<Action>,
        properties: CommitProperties,
        operation: DeltaOperation,
    ) -> Result<(), DeltaTableError> {
        let state = table.snapshot()?.clone();
        // Looking for old entries means listing all of the log: that is done when housekeeping is due.
        let properties = properties.with_cleanup_expired_logs(Some(false));
        let commit = CommitBuilder::from(properties).with_actions(actions);
        let done = commit.build(Some(state.snapshot()), table.log_store(), operation).await?;
        table.state = Some(done.snapshot());
        Ok(())
    }
}

/// Names and types. Whether a column may be null is left to the table's owner.
fn columns(schema: &Schema) -> Vec<(String, String)> {
    schema.fields().iter().map(|f| (f.name().clone(), type_name(f.data_type()))).collect()
}

/// Arrow has several layouts for one of Delta's types.
fn type_name(data_type: &DataType) -> String {
    use DataType::{Binary, BinaryView, LargeBinary, LargeList, LargeUtf8, List, ListView, Utf8, Utf8View};
    match data_type {
        Utf8 | LargeUtf8 | Utf8View => "string".into(),
        Binary | LargeBinary | BinaryView => "binary".into(),
        List(item) | LargeList(item) | ListView(item) => format!("list<{}>", type_name(item.data_type())),
        other => other.to_string(),
    }
}
