//! Delta Lake: a table for each stream.
//!
//! # Exactly once
//!
//! A commit is one entry of the table's log: the files of its epochs, and `txn { appId, version = epoch }`. So the table itself
//! knows the last epoch that it holds, and [`Sink::recover`] reads it there. A killed job leaves at most files that no entry
//! names; vacuum removes them.
//!
//! delta-rs takes a repeated `(appId, version)` without complaint, but it refuses an entry when another of the same appId was
//! written since the table was loaded. We maintain the invariant that **an entry is only written on a table whose epoch was
//! seen to be [`committed`](DeltaSink)**: after an error the table is loaded anew, and either the entry is there, though the
//! answer got lost, or it is not, or another job has written one, and this one gives up. Housekeeping takes in what others have
//! written, so the epoch is looked at behind it, too.
//!
//! # Design
//!
//! ```text
//! write ──▶ file, open: rows ─▶ encoded on blocking threads, as they come ──┐
//!           file, closed (file_rows_target): … ─▶ put into the store ───────┼─▶ commit: add, add, add, txn
//!           file, closed: … ─▶ put into the store ──────────────────────────┘
//! ```
//!
//! Many files are encoded and put at the same time, one task commits. A file that the store did not take is kept, encoded, and
//! put again at the next try. Files are in the order of their rows, and so are the rows in them.

mod error;
mod file;
mod housekeeping;
mod settings;
mod statistics;
mod stores;
mod table;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use object_store::ObjectStore;
use orderflow_operators::epoch::Epoch;

pub use self::settings::{DeltaSettings, TableCompression};

use self::error::{classify, what};
use self::file::{FileError, FileFormat, FileWriter};
use self::housekeeping::Housekeeping;
use self::table::TableSpec;
use crate::{EpochRows, Recovered, Sink, SinkError};

/// Writes one stream into its table.
pub struct DeltaSink {
    spec: TableSpec,
    format: Arc<FileFormat>,
    /// Of files that others are compacted into.
    compacted: Arc<FileFormat>,
    settings: DeltaSettings,
    state: Option<State>,
}

/// What is known after [`Sink::recover`].
struct State {
    /// The table while its epoch is certainly `committed`.
    table: Option<DeltaTable>,
    /// The table's folder.
    store: Arc<dyn ObjectStore>,
    committed: Epoch,
    /// The last epoch written.
    written: Epoch,
    /// What comes with the next commit, in the order of rows; only the last may be open.
    files: Vec<FileWriter>,
    housekeeping: Housekeeping,
}

impl DeltaSink {
    /// The table of `stream` of the job `job`, at `<url>/<stream>`. `schema` is that of its rows; a column `epoch` lets files
    /// be compacted.
    ///
    /// # Errors
    /// [`SinkError::Refused`] if the address or an option of the store cannot be used. The store is not asked yet.
    pub fn new(job: &str, stream: &str, schema: SchemaRef, settings: DeltaSettings) -> Result<DeltaSink, SinkError> {
        let spec = TableSpec::new(job, stream, schema.clone(), settings.clone())?;
        let format = Arc::new(FileFormat::new(schema.clone(), settings.compression));
        let compacted = Arc::new(FileFormat::new(schema, settings.optimize_compression));
        Ok(DeltaSink { spec, format, compacted, settings, state: None })
    }

    fn refused(&self, reason: impl ToString) -> SinkError {
        SinkError::refused(what(&self.spec.stream), reason)
    }

    /// Commits, and leaves in `state` what a next try needs.
    async fn commit_through(&self, state: &mut State, through: Epoch) -> Result<(), SinkError> {
        let mut table = match state.table.take() {
            Some(table) => table,
            None => {
                let table = self.spec.open().await?;
                match self.spec.epoch(&table).await? {
                    epoch if epoch == state.committed => table,
                    epoch if epoch == through => {
                        state.has_committed(table, through);
                        return Ok(());
                    }
                    epoch => {
                        let message =
                            format!("another job of the same job.id has committed epoch {epoch}: stop one of them, and start this again");
                        return Err(self.refused(message));
                    }
                }
            }
        };
        let mut adds = Vec::with_capacity(state.files.len());
        let mut failed = None;
        for file in &mut state.files {
            match file.stored(state.store.as_ref()).await {
                Ok(add) => adds.push(Action::Add(add)),
                Err(FileError::Store(error)) => failed = Some(classify(&self.spec.stream, error)),
                Err(FileError::Encode(error)) => return Err(self.refused(format!("encode rows: {error}"))),
            }
        }
        if let Some(error) = failed {
            state.table = Some(table);
            return Err(error);
        }
        // From here on it may have happened.
        self.spec.commit(&mut table, adds, state.committed, through).await?;
        state.has_committed(table, through);
        Ok(())
    }
}

impl State {
    fn has_committed(&mut self, table: DeltaTable, through: Epoch) {
        self.table = Some(table);
        self.committed = through;
        self.written = self.written.max(through);
        self.files.clear();
    }
}

#[async_trait]
impl Sink for DeltaSink {
    fn name(&self) -> &str {
        "delta"
    }

    async fn recover(&mut self) -> Result<Recovered, SinkError> {
        self.state = None;
        let table = self.spec.open().await?;
        let committed = self.spec.epoch(&table).await?;
        self.spec.remove_stale().await;
        let store = table.object_store();
        let housekeeping = Housekeeping::new(&table, self.settings.optimize_commits);
        self.state = Some(State { table: Some(table), store, committed, written: committed, files: Vec::new(), housekeeping });
        Ok(Recovered { committed, group_through: None })
    }

    async fn write(&mut self, EpochRows { epoch, rows }: EpochRows) -> Result<(), SinkError> {
        if rows.schema_ref().fields() != self.format.schema.fields() {
            return Err(self.refused(format!("rows of epoch {epoch} have the columns {}", rows.schema_ref())));
        }
        let Some(state) = &mut self.state else { return Err(self.refused("it was not asked what it has")) };
        if epoch <= state.written {
            let message = format!("epoch {epoch} was written after epoch {}", state.written);
            return Err(self.refused(message));
        }
        if state.files.last().is_none_or(|file| !file.is_open()) {
            state.files.push(FileWriter::new(self.format.clone(), state.store.clone(), epoch));
        }
        state.written = epoch;
        if let Some(file) = state.files.last_mut() {
            file.write(rows);
            if file.rows_count() >= self.settings.file_rows_target {
                file.close();
            }
        }
        Ok(())
    }

    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
        let Some(mut state) = self.state.take() else { return Err(self.refused("it was not asked what it has")) };
        if through <= state.committed {
            self.state = Some(state);
            return Ok(());
        }
        let result = self.commit_through(&mut state, through).await;
        if !matches!(result, Err(SinkError::Refused { .. })) {
            // Otherwise rows may be missing: only a new life is safe.
            self.state = Some(state);
        }
        result
    }

    async fn maintain(&mut self) -> Result<(), SinkError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        if self.settings.optimize_commits == 0 || !state.files.is_empty() {
            return Ok(());
        }
        let Some(mut table) = state.table.take() else { return Ok(()) };
        let before = table.version();
        // After an error the next commit loads the table anew.
        state.housekeeping.run(&self.spec, &self.compacted, &self.settings, &mut table).await?;
        if table.version() == before || self.spec.epoch(&table).await? == state.committed {
            state.table = Some(table);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
