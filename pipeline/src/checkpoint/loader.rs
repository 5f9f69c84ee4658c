//! Takes up the newest checkpoint that is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, StringArray};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::compute::filter_record_batch;
use arrow::ipc::reader::StreamDecoder;
use bytes::Bytes;
use futures::StreamExt;
use orderflow_faults::{Point, pass};
use orderflow_operators::columns::{text, u64s};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::features::KeyKind;
use orderflow_operators::keys::{KEY_GROUPS, KeyGroup, group_owner, hash, key_group, owned_groups};
use orderflow_operators::snapshot::{KEY, KeyedState};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::CheckpointError;
use super::manifest::{Base, DataFile, FileKind, Manifest, ORDERS};
use super::recorder::all_groups;
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
    /// The newest manifest that can be read, whatever its files are like.
    ///
    /// # Errors
    /// If the store cannot be read, or the newest one is of another release, job or meaning.
    pub async fn newest_manifest(store: &CheckpointStore, header: &LogHeader) -> Result<Option<Manifest>, CheckpointError> {
        for listed in store.list().await? {
            match store.manifest(&listed).await {
                Ok(manifest) => return store.of_job(manifest, header).map(Some),
                Err(CheckpointError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

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
                Ok(Resumed { manifest }) => {
                    let manifest = store.of_job(manifest, header)?;
                    match is_usable(&manifest) {
                        Ok(()) => return Ok(Some(Resumed { manifest })),
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
        self.runtime.spawn(read(self.clone(), Needs::new(&self.manifest, operator, worker, peers), sender));
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

/// What a worker needs of an operator's files.
struct Needs {
    operator: String,
    /// The kind of key, if it is the windows of one: their changes are what orders changed.
    kind: Option<KeyKind>,
    /// By key group, the epoch behind which changes are needed: that of its base. None for groups of other workers.
    behind: [Option<Epoch>; KEY_GROUPS],
    /// By key group, the file of its base.
    bases: BTreeMap<u16, String>,
}

/// Which rows of a file are needed.
enum Needed {
    Nothing,
    All,
    /// Each is to be looked at.
    Some,
}

impl Needs {
    fn new(manifest: &Manifest, operator: &str, worker: usize, peers: usize) -> Needs {
        let none = BTreeMap::new();
        let known: &BTreeMap<u16, Base> = manifest.bases.get(operator).unwrap_or(&none);
        let mut behind = [None; KEY_GROUPS];
        for group in owned_groups(worker, peers) {
            behind[usize::from(group.0)] = Some(known.get(&group.0).map_or(Epoch(0), |base| base.epoch));
        }
        let is_mine = |group: &u16| behind[usize::from(*group)].is_some();
        let bases =
            known.iter().filter(|(group, _)| is_mine(group)).filter_map(|(group, base)| Some((*group, base.file.clone()?))).collect();
        let kind = KeyKind::ALL.into_iter().find(|kind| kind.name() == operator);
        Needs { operator: operator.to_owned(), kind, behind, bases }
    }

    fn of(&self, name: &str, file: &DataFile) -> Needed {
        match file.kind {
            FileKind::Bases if file.operator != self.operator => Needed::Nothing,
            FileKind::Bases if self.bases.values().any(|base| base == name) => Needed::Some,
            FileKind::Bases => Needed::Nothing,
            FileKind::Changes if self.kind.is_some() => {
                let is_late = self.behind.iter().flatten().any(|behind| file.last_epoch > *behind);
                if file.operator == ORDERS && is_late { Needed::Some } else { Needed::Nothing }
            }
            FileKind::Changes if file.operator != self.operator => Needed::Nothing,
            FileKind::Changes => {
                let mut needed = all_groups()
                    .filter(|group| group_owner(*group, file.peers) == file.worker)
                    .map(|group| self.behind[usize::from(group.0)]);
                if needed.clone().all(|behind| behind.is_some_and(|behind| behind < file.first_epoch)) {
                    Needed::All
                } else if needed.any(|behind| behind.is_some_and(|behind| behind < file.last_epoch)) {
                    Needed::Some
                } else {
                    Needed::Nothing
                }
            }
        }
    }

    /// The rows of a batch that are needed, in the columns of the state.
    fn rows(&self, name: &str, file: &DataFile, needed: &Needed, batch: RecordBatch) -> Option<RecordBatch> {
        match (file.kind, needed) {
            _ if batch.num_rows() == 0 => None,
            (_, Needed::Nothing) => None,
            (_, Needed::All) => Some(batch),
            // A batch of bases is of one group.
            (FileKind::Bases, Needed::Some) => {
                let KeyGroup(group) = group_of(text(&batch, KEY), 0);
                (self.bases.get(&group).map(String::as_str) == Some(name)).then_some(batch)
            }
            (FileKind::Changes, Needed::Some) => {
                let epochs = u64s(&batch, batch.num_columns() - 1);
                let is_needed = |KeyGroup(group), row: usize| self.behind[usize::from(group)].is_some_and(|behind| epochs[row] > behind.0);
                if let Some(kind) = self.kind {
                    return kind.changes(&batch, is_needed);
                }
                let keys = text(&batch, KEY);
                let kept = BooleanBuffer::collect_bool(batch.num_rows(), |row| is_needed(group_of(keys, row), row));
                match kept.count_set_bits() {
                    0 => None,
                    all if all == batch.num_rows() => Some(batch),
                    _ => {
                        let kept = BooleanArray::new(kept, None);
                        Some(filter_record_batch(&batch, &kept).expect("the filter has one value for each row"))
                    }
                }
            }
        }
    }
}

fn group_of(keys: &StringArray, row: usize) -> KeyGroup {
    key_group(hash(keys.value(row).as_bytes()))
}

/// Sends an operator's rows of a worker: bases, then changes by epoch.
async fn read(loader: Loader, needs: Needs, batches: mpsc::Sender<Result<RecordBatch, CheckpointError>>) {
    let Loader { store, manifest, .. } = &loader;
    let files = manifest.files.iter().map(|(name, file)| (name, file, needs.of(name, file)));
    let mut files: Vec<(&String, &DataFile, Needed)> = files.filter(|(.., needed)| !matches!(needed, Needed::Nothing)).collect();
    files.sort_by_key(|(name, file, _)| (file.kind == FileKind::Changes, file.first_epoch, *name));
    let reads: Vec<_> = files.iter().map(|&(name, file, _)| read_file(store.clone(), name.clone(), file.clone())).collect();
    let mut reads = futures::stream::iter(reads).buffered(FILES_AHEAD);
    for (name, file, needed) in &files {
        let bytes = match reads.next().await {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return drop(batches.send(Err(error)).await),
            None => return,
        };
        // The arrays point into the file's bytes.
        let (mut decoder, mut rest) = (StreamDecoder::new(), Buffer::from(bytes));
        // A group may have been written again within the file: the last one counts.
        let mut bases = BTreeMap::new();
        loop {
            let rows = match decoder.decode(&mut rest) {
                Ok(Some(batch)) => needs.rows(name, file, needed, batch),
                Ok(None) => break,
                Err(error) => return drop(batches.send(Err(store.damaged(name, error))).await),
            };
            let Some(rows) = rows else { continue };
            if file.kind == FileKind::Bases {
                bases.insert(group_of(text(&rows, KEY), 0).0, rows);
            } else if batches.send(Ok(rows)).await.is_err() {
                return;
            }
        }
        for rows in bases.into_values() {
            if batches.send(Ok(rows)).await.is_err() {
                return;
            }
        }
        if let Err(error) = decoder.finish() {
            return drop(batches.send(Err(store.damaged(name, error))).await);
        }
    }
}

/// Reads a file in a task of its own: it goes on while the worker is busy with those before, and nobody waits for this one.
async fn read_file(store: CheckpointStore, name: String, file: DataFile) -> Result<Bytes, CheckpointError> {
    let what = format!("read data/{name}");
    let mut task = JoinSet::new();
    let reading = store.clone();
    task.spawn(async move { reading.file(&name, &file).await });
    match task.join_next().await.expect("one task was started") {
        Ok(read) => read,
        Err(error) => Err(store.error(what, error.into())),
    }
}
