//! Where the rows of a stage that runs by itself go.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;

use super::RunError;
use super::format::{own_columns, to_debezium, to_json};
use crate::graph::SinkEdge;
use crate::stage::Stage;
use crate::stage::catalog::{Connector, Format, Table};

/// An epoch's rows as text: JSON, or Debezium's where rows can be taken back or the table says so.
///
/// # Errors
/// If a column's type has no JSON.
pub fn render(table: Option<&Table>, edge: &SinkEdge, rows: &RecordBatch) -> Result<Vec<u8>, RunError> {
    let wrong = |e: arrow::error::ArrowError| RunError::new(format!("table `{}`: {e}", edge.table));
    let changes = edge.updating || table.is_some_and(|t| t.format == Format::DebeziumJson);
    if !changes {
        return to_json(&own_columns(rows)).map_err(wrong);
    }
    let columns = table.and_then(|t| t.columns.as_deref()).unwrap_or_default();
    let key: Vec<usize> = columns.iter().enumerate().filter(|(_, c)| c.primary_key).map(|(i, _)| i).collect();
    to_debezium(rows, &key).map_err(wrong)
}

enum Target {
    Nothing,
    Text(Box<dyn Write + Send>),
    Parquet(Box<ArrowWriter<File>>),
}

/// Files and standard output.
pub struct FileSinks {
    tables: HashMap<String, Table>,
    targets: Vec<Target>,
}

impl FileSinks {
    /// Creates the files of a stage's sinks; paths are relative to `base`. What is no file is given the text that `elsewhere` has for it, if any.
    ///
    /// # Errors
    /// If a file cannot be created, a sink is of another kind, or `elsewhere` says so.
    pub fn create(
        stage: &Stage,
        base: &Path,
        mut elsewhere: impl FnMut(&Table) -> Result<Option<Box<dyn Write + Send>>, String>,
    ) -> Result<FileSinks, RunError> {
        let mut targets = Vec::new();
        for edge in &stage.graph.sinks {
            let Some(table) = stage.table(&edge.table) else {
                targets.push(Target::Text(Box::new(std::io::stdout())));
                continue;
            };
            targets.push(match table.connector {
                Connector::Blackhole => Target::Nothing,
                Connector::Stdout => Target::Text(Box::new(std::io::stdout())),
                Connector::SingleFile | Connector::Filesystem => {
                    let path = table.option("path").ok_or_else(|| RunError::new(format!("table `{}` has no path", table.name)))?;
                    let path = base.join(path.strip_prefix("file://").unwrap_or(path));
                    let wrong = |e: &dyn std::fmt::Display| RunError::new(format!("table `{}`: {}: {e}", table.name, path.display()));
                    let file = File::create(&path).map_err(|e| wrong(&e))?;
                    if table.format == Format::Parquet {
                        let schema = stage.graph.schema(edge.node);
                        let own = arrow::datatypes::Schema::new(schema.fields()[crate::rows::META..].to_vec());
                        Target::Parquet(Box::new(ArrowWriter::try_new(file, Arc::new(own), None).map_err(|e| wrong(&e))?))
                    } else {
                        Target::Text(Box::new(BufWriter::new(file)))
                    }
                }
                other => match elsewhere(table) {
                    Ok(Some(text)) => Target::Text(text),
                    Ok(None) => {
                        return Err(RunError::new(format!(
                            "table `{}`: a stage by itself writes files and topics; connector '{}' is for the job",
                            table.name,
                            other.name()
                        )));
                    }
                    Err(error) => return Err(RunError::new(format!("table `{}`: {error}", table.name))),
                },
            });
        }
        Ok(FileSinks { tables: stage.tables.iter().map(|t| (t.name.clone(), t.clone())).collect(), targets })
    }

    /// Writes an epoch's rows.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&mut self, number: usize, edge: &SinkEdge, rows: &RecordBatch) -> Result<(), RunError> {
        let table = self.tables.get(&edge.table);
        let wrong = |e: &dyn std::fmt::Display| RunError::new(format!("table `{}`: {e}", edge.table));
        match &mut self.targets[number] {
            Target::Nothing => Ok(()),
            Target::Text(file) => file.write_all(&render(table, edge, rows)?).map_err(|e| wrong(&e)),
            Target::Parquet(writer) => writer.write(&own_columns(rows)).map_err(|e| wrong(&e)),
        }
    }

    /// Ends the files.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn finish(&mut self) -> Result<(), RunError> {
        for target in std::mem::take(&mut self.targets) {
            match target {
                Target::Nothing => {}
                Target::Text(mut file) => file.flush().map_err(|e| RunError::new(format!("cannot write the rows: {e}")))?,
                Target::Parquet(writer) => {
                    writer.close().map_err(|e| RunError::new(format!("cannot write the rows: {e}")))?;
                }
            }
        }
        Ok(())
    }
}
