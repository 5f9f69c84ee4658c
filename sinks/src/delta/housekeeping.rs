//! Compaction of small files, and removal of what no reader needs.
//!
//! # Design
//!
//! A table's files, in the order of their epochs, are cut into runs of neighbours, and each run becomes one file: rows stay in
//! canonical order, and a reader of some epochs still opens few files. Of a run, files that are larger than all behind them
//! together are left alone: a byte is so rewritten a logarithmic number of times, however slowly a table grows.
//!
//! A compaction is one entry of the log that changes no row; it carries no `txn`, so the table's epoch stays. It runs in the
//! sink's own task, between two of its commits. If somebody else has rewritten one of the files meanwhile, delta-rs refuses the
//! entry and nothing has happened.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::kernel::{Action, Remove};
use deltalake::operations::vacuum::VacuumMode;
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, DeltaTableError, checkpoints};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;
use parquet::errors::ParquetError;
use serde_json::Value;

use super::error::{classify, what};
use super::file::{EncodedFile, Encoder, FileFormat};
use super::table::TableSpec;
use crate::SinkError;

/// A file as the log knows it.
struct Candidate {
    path: Path,
    bytes: u64,
    rows: i64,
    first_epoch: u64,
    remove: Remove,
}

/// Makes one file of each run of small ones.
pub(super) async fn compact(
    spec: &TableSpec,
    format: &Arc<FileFormat>,
    bytes_target: u64,
    table: &mut DeltaTable,
) -> Result<(), SinkError> {
    let files = candidates(table).map_err(|e| classify(&spec.stream, e))?;
    let sizes: Vec<u64> = files.iter().map(|f| f.bytes).collect();
    let store = table.object_store();
    let mut actions = Vec::new();
    spec.point(Point::DeltaCompact)?;
    for run in runs(&sizes, bytes_target) {
        let files = &files[run];
        let merged = merge(spec, format, store.as_ref(), files).await?;
        let add = merged.put(store.as_ref(), false).await.map_err(|e| classify(&spec.stream, e))?;
        actions.extend(files.iter().map(|file| Action::Remove(file.remove.clone())));
        actions.push(Action::Add(add));
    }
    if actions.is_empty() {
        return Ok(());
    }
    tracing::debug!(stream = spec.stream, actions = actions.len(), "compacted a Delta table");
    let operation = DeltaOperation::Optimize { predicate: None, target_size: i64::try_from(bytes_target).unwrap_or(i64::MAX) };
    spec.point(Point::DeltaCompactFile)?;
    spec.append(table, actions, CommitProperties::default(), operation).await.map_err(|e| classify(&spec.stream, e))?;
    spec.point(Point::DeltaCompacted)
}

/// Files that can be compacted, by their first epoch. Not those with rows deleted by mark, nor those of which the epochs are
/// not known.
fn candidates(table: &DeltaTable) -> Result<Vec<Candidate>, DeltaTableError> {
    let mut files: Vec<Candidate> = table
        .snapshot()?
        .log_data()
        .iter()
        .filter(|file| file.deletion_vector_descriptor().is_none())
        .filter_map(|file| {
            let statistics: Value = serde_json::from_str(&file.stats()?).ok()?;
            Some(Candidate {
                path: file.object_store_path(),
                bytes: u64::try_from(file.size()).ok()?,
                rows: statistics.get("numRecords")?.as_i64()?,
                first_epoch: statistics.get("minValues")?.get("epoch")?.as_u64()?,
                remove: file.remove_action(false),
            })
        })
        .collect();
    files.sort_by(|a, b| (a.first_epoch, &a.path).cmp(&(b.first_epoch, &b.path)));
    Ok(files)
}

/// Neighbours that shall become one file of about `target` bytes.
fn runs(sizes: &[u64], target: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < sizes.len() {
        let mut end = start + 1;
        let mut bytes = sizes[start];
        while end < sizes.len() && bytes + sizes[end] <= target {
            bytes += sizes[end];
            end += 1;
        }
        let mut first = start;
        while first < end && sizes[first] > bytes - sizes[first] {
            bytes -= sizes[first];
            first += 1;
        }
        if end - first > 1 {
            runs.push(first..end);
        }
        start = end;
    }
    runs
}

async fn merge(spec: &TableSpec, format: &Arc<FileFormat>, store: &dyn ObjectStore, files: &[Candidate]) -> Result<EncodedFile, SinkError> {
    let unusable = |e: &dyn std::fmt::Display| SinkError::refused(what(&spec.stream), format!("compaction: {e}"));
    let mut encoder = Encoder::new(format.clone()).map_err(|e| unusable(&e))?;
    for file in files {
        let bytes = async { store.get(&file.path).await?.bytes().await }.await.map_err(|e| classify(&spec.stream, e))?;
        encoder = tokio::task::spawn_blocking(move || {
            encoder.append(bytes)?;
            Ok::<_, ParquetError>(encoder)
        })
        .await
        .map_err(|e| unusable(&e))?
        .map_err(|e| unusable(&e))?;
    }
    let first = Epoch(files.first().map_or(0, |file| file.first_epoch));
    let merged = tokio::task::spawn_blocking(move || encoder.finish(first)).await.map_err(|e| unusable(&e))?.map_err(|e| unusable(&e))?;
    let rows: i64 = files.iter().map(|file| file.rows).sum();
    if merged.rows != rows {
        return Err(unusable(&format!("the files have {} rows, the log says {rows}", merged.rows)));
    }
    Ok(merged)
}

/// Removes files that no version younger than `retention` needs, those of killed lives too, and entries of the log behind its
/// own retention.
pub(super) async fn vacuum(spec: &TableSpec, retention: Duration, table: &mut DeltaTable) -> Result<(), SinkError> {
    let failed = |e: DeltaTableError| classify(&spec.stream, e);
    let retention = TimeDelta::from_std(retention).unwrap_or(TimeDelta::MAX);
    let vacuum = table
        .clone()
        .vacuum()
        .with_mode(VacuumMode::Full)
        .with_retention_period(retention)
        // The setting may be shorter than what the table was made with.
        .with_enforce_retention_duration(false)
        .with_commit_properties(CommitProperties::default().with_cleanup_expired_logs(Some(false)));
    spec.point(Point::DeltaVacuum)?;
    let (vacuumed, metrics) = vacuum.await.map_err(failed)?;
    *table = vacuumed;
    spec.point(Point::DeltaVacuumed)?;
    tracing::debug!(stream = spec.stream, files = metrics.files_deleted.len(), "vacuumed a Delta table");
    Ok(())
}

/// Removes entries of the log that are older than the table's `delta.logRetentionDuration` and behind a checkpoint.
pub(super) async fn clean_log(spec: &TableSpec, table: &DeltaTable) -> Result<(), SinkError> {
    let entries = checkpoints::cleanup_metadata(table, None).await.map_err(|e| classify(&spec.stream, e))?;
    tracing::debug!(stream = spec.stream, entries, "removed old entries of a Delta table's log");
    spec.point(Point::DeltaLogCleaned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(sizes: &[u64], expected: Expect) {
        expected.assert_eq(&format!("{:?}", runs(sizes, 100)));
    }

    #[test]
    fn neighbours_become_one_file() {
        check(&[], expect!["[]"]);
        check(&[5], expect!["[]"]);
        check(&[5, 5, 5], expect!["[0..3]"]);
        check(&[60, 60, 60], expect!["[]"]);
        check(&[40, 60, 30, 30], expect!["[0..2, 2..4]"]);
        check(&[200, 5, 5], expect!["[1..3]"]);
    }

    #[test]
    fn a_large_file_waits_until_as_much_has_come() {
        check(&[50, 10, 10, 10], expect!["[1..4]"]);
        check(&[50, 30, 10, 10], expect!["[0..4]"]);
        check(&[60, 30, 5, 5], expect!["[2..4]"]);
    }

    /// Total bytes rewritten while a table grows by 1 at a time, compacted every 10.
    #[test]
    fn a_byte_is_rewritten_a_few_times() {
        let (mut sizes, mut rewritten) = (Vec::new(), 0);
        for round in 1..=1000_u64 {
            sizes.push(1);
            if round % 10 == 0 {
                let mut merged = Vec::new();
                let mut at = 0;
                for run in runs(&sizes, 100) {
                    merged.extend_from_slice(&sizes[at..run.start]);
                    merged.push(sizes[run.clone()].iter().sum());
                    rewritten += sizes[run.clone()].iter().sum::<u64>();
                    at = run.end;
                }
                merged.extend_from_slice(&sizes[at..]);
                sizes = merged;
            }
        }
        assert_eq!(sizes.iter().sum::<u64>(), 1000);
        assert!(sizes.len() <= 25, "{sizes:?}");
        assert!(rewritten <= 4000, "{rewritten}");
    }
}
