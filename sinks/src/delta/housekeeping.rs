//! Compaction of small files, and removal of what no reader needs.
//!
//! # Design
//!
//! A table's files, in the order of their epochs, are cut into runs of neighbours, and each run becomes one file: rows stay in
//! canonical order, and a reader of some epochs still opens few files. Of a run, files that are larger than all behind them
//! together are left alone: a byte is so rewritten a logarithmic number of times, however slowly a table grows.
//!
//! The compaction of a run is one entry of the log that changes no row; it carries no `txn`, so the table's epoch stays. It runs
//! in the sink's own task, between two of its commits, for as long as a [`Budget`] allows; the rest is for the next call.
//!
//! delta-rs lets a compaction through that removes what another one has removed meanwhile, as neither changes rows, and both
//! merged files stay. So **an entry of a compaction is put as the version behind the one that was looked at, or not at all**: if
//! that is taken, the next call looks for runs anew.
//!
//! A file that is gone or cannot be read as one of the table's is said once and is then left alone in this life, with the others
//! of its run compacted on either side of it. Vacuum and the cleaning of the log do not wait for any of this to succeed.
//!
//! # When
//!
//! A *round* is all three. It is due when the table's version has passed a multiple of `optimize_commits` since the last round or
//! the start of this life, so that lives which end before they have made as many commits add up. What a kill between such a
//! commit and its round leaves out, the first call of a life makes up for: then a round is also due if there are as many small
//! files. A failure is due again as late as a success, lest a table that cannot be compacted holds up each commit.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::TimeDelta;
use deltalake::kernel::transaction::{CommitProperties, TransactionError};
use deltalake::kernel::{Action, Remove};
use deltalake::operations::vacuum::VacuumMode;
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, DeltaTableError, checkpoints};
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;
use parquet::errors::ParquetError;
use serde_json::Value;

use super::error::classify;
use super::file::{EncodedFile, Encoder, FileFormat};
use super::settings::DeltaSettings;
use super::table::TableSpec;
use crate::SinkError;

/// Most files of a run: with small ones a run is long in files before it is in bytes.
const RUN_FILES_MAX: usize = 256;
/// Files that are read at the same time.
const READS: usize = 8;

/// How much one call compacts: a run in any case, and no further one beyond these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Of files that are read.
    pub bytes: u64,
    pub time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { bytes: 256 << 20, time: Duration::from_secs(3) }
    }
}

/// What one life remembers of a table's housekeeping.
pub(super) struct Housekeeping {
    /// The version from which the next round is counted.
    counted_from: u64,
    is_new: bool,
    /// The last call has not compacted all that it could.
    has_rest: bool,
    /// Files that cannot be compacted.
    pub unfit: BTreeSet<Path>,
    pub budget: Budget,
}

impl Housekeeping {
    /// For a table as it is when a life begins, with a round each `every` versions.
    pub fn new(table: &DeltaTable, every: u64) -> Housekeeping {
        let version = table.version().unwrap_or(0);
        let counted_from = version - version.checked_rem(every).unwrap_or(0);
        Housekeeping { counted_from, is_new: true, has_rest: false, unfit: BTreeSet::new(), budget: Budget::default() }
    }

    /// Does what is due. Of several errors the first is told; behind one, `table` may lack the newest versions.
    pub async fn run(
        &mut self,
        spec: &TableSpec,
        format: &Arc<FileFormat>,
        settings: &DeltaSettings,
        table: &mut DeltaTable,
    ) -> Result<(), SinkError> {
        let (every, bytes_target) = (settings.optimize_commits, settings.optimize_bytes_target);
        let version = table.version().unwrap_or(0);
        let mut is_due = version.saturating_sub(self.counted_from) >= every;
        if std::mem::take(&mut self.is_new) && !is_due {
            let files = candidates(table).map_err(|e| classify(&spec.stream, e))?;
            is_due = runs_of(&files, &self.unfit, bytes_target).iter().map(|run| run.len() as u64).sum::<u64>() >= every;
        }
        if !is_due && !self.has_rest {
            return Ok(());
        }
        let mut done = self.compact(spec, format, bytes_target, table).await;
        if table.state.is_none() {
            // Vacuum must not take for garbage what an entry names whose answer was lost.
            let loaded = table.load().await.map_err(|e| classify(&spec.stream, e));
            if loaded.is_err() {
                return done.and(loaded);
            }
        }
        if is_due {
            if !settings.vacuum_retention.is_zero() {
                done = done.and(vacuum(spec, settings.vacuum_retention, table).await);
            }
            done = done.and(clean_log(spec, table).await);
            self.counted_from = table.version().unwrap_or(version);
        } else {
            // Its own entries do not count.
            self.counted_from += table.version().unwrap_or(version).saturating_sub(version);
        }
        done
    }

    /// Makes one file of each run of small ones, as far as the budget goes. If an entry was put and may not be there, `table` has no
    /// state afterwards.
    async fn compact(
        &mut self,
        spec: &TableSpec,
        format: &Arc<FileFormat>,
        bytes_target: u64,
        table: &mut DeltaTable,
    ) -> Result<(), SinkError> {
        self.has_rest = false;
        let files = candidates(table).map_err(|e| classify(&spec.stream, e))?;
        let store = table.object_store();
        let (started, mut bytes) = (Instant::now(), 0);
        spec.point(Point::DeltaCompact)?;
        for run in runs_of(&files, &self.unfit, bytes_target) {
            let run_bytes: u64 = run.iter().map(|file| file.bytes).sum();
            if bytes > 0 && (bytes + run_bytes > self.budget.bytes || started.elapsed() >= self.budget.time) {
                self.has_rest = true;
                break;
            }
            bytes += run_bytes;
            let merged = match merge(spec, format, store.as_ref(), run).await {
                Ok(merged) => merged,
                Err(Unmerged::Unfit { file, why }) => {
                    tracing::warn!(stream = spec.stream, %file, why, "a file of a Delta table cannot be compacted, and stays as it is");
                    self.unfit.insert(file);
                    // The others of the run.
                    self.has_rest = true;
                    continue;
                }
                Err(Unmerged::Store(error)) => return Err(error),
            };
            let add = merged.put(store.as_ref(), false).await.map_err(|e| classify(&spec.stream, e))?;
            let mut actions: Vec<Action> = run.iter().map(|file| Action::Remove(file.remove.clone())).collect();
            actions.push(Action::Add(add));
            let target_size = i64::try_from(bytes_target).unwrap_or(i64::MAX);
            let operation = DeltaOperation::Optimize { predicate: None, target_size };
            spec.point(Point::DeltaCompactFile)?;
            // Tried again, it would go behind whatever was written meanwhile.
            let properties = CommitProperties::default().with_max_retries(0);
            if let Err(error) = spec.append(table, actions, properties, operation).await {
                table.state = None;
                self.has_rest = is_outrun(&error);
                return if self.has_rest { Ok(()) } else { Err(classify(&spec.stream, error)) };
            }
            tracing::debug!(stream = spec.stream, files = run.len(), "compacted files of a Delta table");
            spec.point(Point::DeltaCompacted)?;
        }
        Ok(())
    }
}

/// The version is taken: by somebody else, or by this entry, if the answer to its first put was lost.
fn is_outrun(error: &DeltaTableError) -> bool {
    matches!(error, DeltaTableError::Transaction { source: TransactionError::MaxCommitAttempts(_) })
}

/// A file as the log knows it.
struct Candidate {
    path: Path,
    bytes: u64,
    rows: i64,
    first_epoch: u64,
    remove: Remove,
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

/// Runs of neighbours that shall become one file of about `target` bytes; none goes across an unfit file.
fn runs_of<'a>(files: &'a [Candidate], unfit: &BTreeSet<Path>, target: u64) -> Vec<&'a [Candidate]> {
    let mut all = Vec::new();
    for part in files.split(|file| unfit.contains(&file.path)) {
        let sizes: Vec<u64> = part.iter().map(|file| file.bytes).collect();
        all.extend(runs(&sizes, target).into_iter().map(|run| &part[run]));
    }
    all
}

/// Places of neighbours that shall become one file of about `target` bytes.
fn runs(sizes: &[u64], target: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < sizes.len() {
        let mut end = start + 1;
        let mut bytes = sizes[start];
        while end < sizes.len() && end - start < RUN_FILES_MAX && bytes + sizes[end] <= target {
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

/// Why a run was not merged.
enum Unmerged {
    /// For a file that would be in the way the next time, too.
    Unfit {
        file: Path,
        why: String,
    },
    Store(SinkError),
}

impl Unmerged {
    fn unfit(file: &Candidate, why: impl Display) -> Unmerged {
        Unmerged::Unfit { file: file.path.clone(), why: why.to_string() }
    }
}

async fn merge(spec: &TableSpec, format: &Arc<FileFormat>, store: &dyn ObjectStore, run: &[Candidate]) -> Result<EncodedFile, Unmerged> {
    let first = run.first().expect("a run has files");
    let mut encoder = Encoder::new(format.clone()).map_err(|e| Unmerged::unfit(first, e))?;
    let reads: Vec<_> = run.iter().map(|file| read(store, file)).collect();
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((file, bytes)) = reads.next().await {
        let bytes = bytes.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Unmerged::unfit(file, "it is gone"),
            error => Unmerged::Store(classify(&spec.stream, error)),
        })?;
        let appended = tokio::task::spawn_blocking(move || {
            let rows = encoder.append(bytes)?;
            Ok::<_, ParquetError>((encoder, rows))
        });
        let (filled, rows) = appended.await.map_err(|e| Unmerged::unfit(file, e))?.map_err(|e| Unmerged::unfit(file, e))?;
        encoder = filled;
        if rows != file.rows {
            return Err(Unmerged::unfit(file, format!("it has {rows} rows, the log says {}", file.rows)));
        }
    }
    let epoch = Epoch(first.first_epoch);
    let merged = tokio::task::spawn_blocking(move || encoder.finish(epoch)).await;
    merged.map_err(|e| Unmerged::unfit(first, e))?.map_err(|e| Unmerged::unfit(first, e))
}

async fn read<'a>(store: &dyn ObjectStore, file: &'a Candidate) -> (&'a Candidate, object_store::Result<Bytes>) {
    let bytes = async { store.get(&file.path).await?.bytes().await };
    (file, bytes.await)
}

/// Removes files that no version younger than `retention` needs, those of killed lives too, and entries of the log behind its
/// own retention.
async fn vacuum(spec: &TableSpec, retention: Duration, table: &mut DeltaTable) -> Result<(), SinkError> {
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
async fn clean_log(spec: &TableSpec, table: &DeltaTable) -> Result<(), SinkError> {
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

    #[test]
    fn a_run_is_short_enough_to_be_read_soon() {
        check(&[0; 600], expect!["[0..256, 256..512, 512..600]"]);
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
