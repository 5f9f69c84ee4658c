//! Takes up the newest checkpoint that is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::ipc::reader::StreamReader;
use futures::StreamExt;
use orderflow_faults::{Point, pass};
use orderflow_operators::columns::{text, u64s};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::features::KeyKind;
use orderflow_operators::keys::{KeyGroup, group_owner, hash, key_group};
use orderflow_operators::snapshot::{KEY, KeyedState};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::CheckpointError;
use super::manifest::{Base, DataFile, FileKind, Manifest, ORDERS};
use super::store::{CheckpointStore, Listed};
use crate::epoch_log::LogHeader;

/// Files that are read ahead, for each operator of a worker.
const FILES_AHEAD: usize = 3;
/// Batches that wait for a worker.
const BATCHES_AHEAD: usize = 4;
/// Files that are checked at a time.
const CHECKS: usize = 4;

/// A checkpoint that was found whole, with what a job goes on from.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// It.
    pub manifest: Manifest,
}

/// Reads a checkpoint's state.
#[derive(Clone)]
pub struct Loader {
    store: CheckpointStore,
    manifest: Arc<Manifest>,
    runtime: Handle,
}

impl Resumed {
    /// The newest whole checkpoint of the job of `header` that `is_usable`. Damaged ones are passed over with a warning, and with `repair` removed:
    /// epochs that they stand for will be written again.
    ///
    /// # Errors
    /// If the store cannot be read, or the newest one is of another release, job or meaning.
    pub async fn newest(
        store: &CheckpointStore,
        header: &LogHeader,
        repair: bool,
        is_usable: impl Fn(&Manifest) -> Result<(), String>,
    ) -> Result<Option<Resumed>, CheckpointError> {
        for listed in store.list().await? {
            match Resumed::whole(store, &listed).await {
                Ok(resumed) => {
                    if let Some(what) = resumed.manifest.header.difference(header) {
                        return Err(CheckpointError::Different { url: store.url().to_owned(), epoch: listed.epoch.0, what });
                    }
                    match is_usable(&resumed.manifest) {
                        Ok(()) => return Ok(Some(resumed)),
                        Err(why) => tracing::warn!(epoch = listed.epoch.0, why, "a checkpoint is passed over"),
                    }
                }
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::warn!(epoch = listed.epoch.0, %error, "a checkpoint is damaged; the one before is taken");
                    if repair && listed.name.is_none() {
                        store.remove_checkpoint(&listed).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A checkpoint, all of whose files are there and have the right checksums.
    ///
    /// # Errors
    /// If not.
    pub async fn whole(store: &CheckpointStore, listed: &Listed) -> Result<Resumed, CheckpointError> {
        let manifest = store.manifest(listed).await?;
        let check = |(name, file): (&String, &DataFile)| {
            let (store, name, file) = (store.clone(), name.clone(), file.clone());
            async move { store.file(&name, &file).await.map(|_| ()) }
        };
        let checks: Vec<_> = manifest.files.iter().map(check).collect();
        let mut checks = futures::stream::iter(checks).buffer_unordered(CHECKS);
        while let Some(checked) = checks.next().await {
            checked?;
        }
        drop(checks);
        Ok(Resumed { manifest })
    }
}

impl Loader {
    /// For a checkpoint of `store`.
    pub fn new(store: CheckpointStore, manifest: Manifest, runtime: Handle) -> Loader {
        Loader { store, manifest: Arc::new(manifest), runtime }
    }

    /// The checkpoint.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes up `worker`'s part of an operator, of `peers`. To be called off the runtime's threads.
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn restore(&self, operator: &str, worker: usize, peers: usize, state: &mut dyn KeyedState) -> Result<u64, CheckpointError> {
        pass(Point::CheckpointRestore);
        state.begin_restore(self.manifest.watermark.watermark);
        let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
        self.runtime.spawn(read(self.clone(), operator.to_owned(), worker, peers, sender));
        let mut rows = 0;
        while let Some(batch) = batches.blocking_recv() {
            let batch = batch?;
            rows += batch.num_rows() as u64;
            state.restore(&batch);
        }
        pass(Point::CheckpointRestored);
        Ok(rows)
    }
}

/// Sends an operator's rows of a worker: bases, then changes by epoch.
async fn read(loader: Loader, operator: String, worker: usize, peers: usize, batches: mpsc::Sender<Result<RecordBatch, CheckpointError>>) {
    let Loader { store, manifest, .. } = &loader;
    let kind = KeyKind::ALL.into_iter().find(|kind| kind.name() == operator);
    let changes_of = if kind.is_some() { ORDERS } else { operator.as_str() };
    let is_needed = |file: &DataFile| match file.kind {
        FileKind::Bases => file.operator == operator,
        FileKind::Changes => file.operator == changes_of,
    };
    let mut files: Vec<(&String, &DataFile)> = manifest.files.iter().filter(|(_, file)| is_needed(file)).collect();
    files.sort_by_key(|(name, file)| (file.kind == FileKind::Changes, file.first_epoch, *name));
    let none = BTreeMap::new();
    let bases = manifest.bases.get(&operator).unwrap_or(&none);
    let mine: Vec<bool> = super::recorder::all_groups().map(|group| group_owner(group, peers) == worker).collect();
    let reads: Vec<_> = files.iter().map(|&(name, file)| store.file(name, file)).collect();
    let mut reads = futures::stream::iter(reads).buffered(FILES_AHEAD);
    for &(name, file) in &files {
        let bytes = match reads.next().await {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return drop(batches.send(Err(error)).await),
            None => return,
        };
        let wanted = |group: KeyGroup, epoch: Option<Epoch>| {
            let base: Option<&Base> = bases.get(&group.0);
            mine[usize::from(group.0)]
                && match epoch {
                    None => base.is_some_and(|base| base.file.as_ref() == Some(name)),
                    Some(epoch) => base.is_none_or(|base| epoch > base.epoch),
                }
        };
        let reader = match StreamReader::try_new(std::io::Cursor::new(bytes), None) {
            Ok(reader) => reader,
            Err(error) => return drop(batches.send(Err(store.damaged(name, error))).await),
        };
        for batch in reader {
            let rows = match batch {
                Ok(batch) => match kind.filter(|_| file.kind == FileKind::Changes) {
                    Some(kind) => kind.changes(&batch).and_then(|batch| keep(batch, file.kind, wanted)),
                    None => keep(batch, file.kind, wanted),
                },
                Err(error) => return drop(batches.send(Err(store.damaged(name, error))).await),
            };
            if let Some(rows) = rows
                && batches.send(Ok(rows)).await.is_err()
            {
                return;
            }
        }
    }
}

/// The rows whose group is wanted.
fn keep(batch: RecordBatch, kind: FileKind, wanted: impl Fn(KeyGroup, Option<Epoch>) -> bool) -> Option<RecordBatch> {
    let keys = text(&batch, KEY);
    let epochs = (kind == FileKind::Changes).then(|| u64s(&batch, batch.num_columns() - 1));
    let kept = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
        let group = key_group(hash(keys.value(row).as_bytes()));
        wanted(group, epochs.map(|epochs| Epoch(epochs[row])))
    });
    match kept.count_set_bits() {
        0 => None,
        all if all == batch.num_rows() => Some(batch),
        _ => Some(filter_record_batch(&batch, &BooleanArray::new(kept, None)).expect("the filter has one value for each row")),
    }
}
