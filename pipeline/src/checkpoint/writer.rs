//! Puts what recorders send into files of the store, beside the workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use orderflow_faults::{Point, check};
use orderflow_operators::dataflow::concat;
use orderflow_operators::epoch::{Epoch, EpochInfo};
use orderflow_operators::features::KeyKind;
use orderflow_operators::keys::owned_groups;
use orderflow_operators::watermark::WatermarkState;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::groups::GroupRecorder;
use super::manifest::{Base, DataFile, FileKind, ORDERS, Part};
use super::recorder::{Channel, Recorder, RecorderSettings, Waiting, Written};
use super::store::CheckpointStore;

/// Bytes of a file that are sent at a time.
const PIECE_BYTES: usize = 8 << 20;
/// Fewer rows of changes are put together.
const BATCH_ROWS: usize = 16 << 10;
/// Longest time for a piece.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a writer for each recorder, and tells what they have written.
#[derive(Clone)]
pub struct Writers {
    runtime: Handle,
    store: CheckpointStore,
    settings: RecorderSettings,
    /// The last epoch that is in an earlier checkpoint.
    resumed: Epoch,
    finished: mpsc::UnboundedSender<Finished>,
    /// How many there are, the clock among them.
    count: Arc<AtomicUsize>,
    /// As [`Channel::renewal`], for the windows of the fraud features.
    renewal: Arc<AtomicU64>,
}

/// A writer has written all of its operator on its worker up to an epoch.
#[derive(Debug)]
pub(crate) struct Finished {
    pub epoch: Epoch,
    pub part: Part,
    /// From the clock alone.
    pub watermark: Option<WatermarkState>,
}

impl Writers {
    /// On `runtime`, into `store`; what they have finished comes out at the other end.
    pub(crate) fn new(
        runtime: Handle,
        store: CheckpointStore,
        settings: RecorderSettings,
        resumed: Epoch,
    ) -> (Writers, mpsc::UnboundedReceiver<Finished>) {
        let (finished, parts) = mpsc::unbounded_channel();
        (Writers { runtime, store, settings, resumed, finished, count: Arc::default(), renewal: Arc::default() }, parts)
    }

    /// How many there are: known when all workers have their dataflow, which is before any epoch is over.
    pub(crate) fn count(&self) -> Arc<AtomicUsize> {
        self.count.clone()
    }

    /// To be told up to which epoch changes of orders are missing, on whatever worker: the windows of the fraud features are then written anew.
    pub(crate) fn renewal(&self) -> Arc<AtomicU64> {
        self.renewal.clone()
    }

    /// The clock takes part in checkpoints, too: on one worker of each process.
    pub fn clock(&self) -> impl FnMut(&EpochInfo, &WatermarkState) + use<> {
        self.count.fetch_add(1, Ordering::AcqRel);
        let finished = self.finished.clone();
        move |info, state| {
            if info.checkpoint {
                // The coordinator ends when the job does.
                let _ = finished.send(Finished { epoch: info.epoch, part: Part::default(), watermark: Some(state.clone()) });
            }
        }
    }

    /// A recorder for `worker`'s part of an operator, of `peers`.
    pub fn recorder(&self, operator: &str, worker: usize, peers: usize) -> Recorder {
        Recorder::new(self.settings, self.start(operator, worker, peers), worker, peers)
    }

    /// A recorder for `worker`'s part of a SQL stage's operator, of `peers`.
    pub fn group_recorder(&self, operator: &str, worker: usize, peers: usize) -> GroupRecorder {
        let is_resumed = self.resumed > Epoch(0);
        GroupRecorder::new(self.settings, self.start(operator, worker, peers), worker, peers, is_resumed)
    }

    /// Starts a writer.
    fn start(&self, operator: &str, worker: usize, peers: usize) -> Channel {
        self.count.fetch_add(1, Ordering::AcqRel);
        let (written, queue) = mpsc::unbounded_channel();
        let waiting = Arc::<Waiting>::default();
        let broken = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            store: self.store.clone(),
            operator: operator.to_owned(),
            worker,
            peers,
            groups: owned_groups(worker, peers).map(|group| group.0).collect(),
            behind: self.resumed,
            lost: None,
            based: BTreeMap::new(),
            broken: broken.clone(),
            changes: None,
            bases: None,
            part: Part::default(),
        };
        self.runtime.spawn(writer.run(queue, waiting.clone(), self.finished.clone()));
        let rests_on_orders = KeyKind::ALL.iter().any(|kind| kind.name() == operator);
        let renewal = rests_on_orders.then(|| self.renewal.clone());
        Channel { written, waiting, broken, renewal }
    }
}

struct Writer {
    store: CheckpointStore,
    operator: String,
    worker: usize,
    peers: usize,
    groups: Vec<u16>,
    /// The epoch up to which files have been finished.
    behind: Epoch,
    /// Changes up to here are missing.
    lost: Option<Epoch>,
    /// By group, the epoch of the newest base that was written since something was lost.
    based: BTreeMap<u16, Epoch>,
    /// Tells the recorder that something could not be written.
    broken: Arc<AtomicBool>,
    changes: Option<File>,
    bases: Option<File>,
    part: Part,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Written>, waiting: Arc<Waiting>, finished: mpsc::UnboundedSender<Finished>) {
        while let Some(written) = queue.recv().await {
            let (is_base, bytes) = (written.is_base(), written.bytes());
            match written {
                Written::Changes { epoch, rows } => self.changes(epoch, &rows).await,
                Written::Base { epoch, group, rows } => self.base(epoch, group.0, rows.as_ref()).await,
                Written::Lost { epoch } => {
                    self.lost = self.lost.max(Some(epoch));
                    self.based.retain(|_, base| *base >= epoch);
                }
                Written::Checkpoint { epoch } => {
                    let part = self.finish(epoch).await;
                    if finished.send(Finished { epoch, part, watermark: None }).is_err() {
                        return;
                    }
                }
            }
            waiting.done(is_base, bytes);
        }
    }

    async fn changes(&mut self, epoch: Epoch, rows: &RecordBatch) {
        let mut file = match self.changes.take() {
            Some(file) => file,
            None => File::new(&self.store, self.name(FileKind::Changes), FileKind::Changes, with_epoch_schema(rows.schema_ref())),
        };
        // A file of many small batches is mostly their headers.
        file.small.push(with_epoch(rows, epoch, &file.schema));
        let mut written = Ok(());
        if file.small.iter().map(RecordBatch::num_rows).sum::<usize>() >= BATCH_ROWS {
            written = file.write_small().await;
        }
        self.changes = Some(file);
        self.check(epoch, written);
    }

    async fn base(&mut self, epoch: Epoch, group: u16, rows: Option<&RecordBatch>) {
        let mut base = Base { epoch, file: None };
        if let Some(rows) = rows {
            if self.bases.is_none() {
                self.bases = Some(File::new(&self.store, self.name(FileKind::Bases), FileKind::Bases, rows.schema()));
            }
            if let Some(file) = &mut self.bases {
                base.file = Some(file.name.clone());
                let written = file.write(rows).await;
                if !self.check(epoch, written) {
                    return;
                }
            }
        }
        self.part.bases.entry(self.operator.clone()).or_default().insert(group, base);
        if self.lost.is_some() {
            self.based.insert(group, epoch);
        }
    }

    fn check(&mut self, epoch: Epoch, written: Result<(), String>) -> bool {
        if let Err(error) = &written {
            tracing::warn!(operator = self.operator, worker = self.worker, epoch = epoch.0, error, "a checkpoint's file failed");
            self.fail(epoch);
        }
        written.is_ok()
    }

    /// What is in the files under way is gone, and so are all bases in them.
    fn fail(&mut self, epoch: Epoch) {
        (self.changes, self.bases) = (None, None);
        self.part = Part::default();
        self.lost = self.lost.max(Some(epoch));
        self.based.clear();
        self.broken.store(true, Ordering::Relaxed);
    }

    async fn finish(&mut self, epoch: Epoch) -> Part {
        let mut part = std::mem::take(&mut self.part);
        let mut failure = None;
        for file in [self.changes.take(), self.bases.take()].into_iter().flatten() {
            let (name, kind) = (file.name.clone(), file.kind);
            match file.finish().await {
                Ok((rows, bytes, crc32)) => {
                    let (operator, first_epoch) = (self.operator.clone(), self.behind.next());
                    let (worker, peers) = (self.worker, self.peers);
                    part.files.insert(name, DataFile { operator, kind, worker, peers, first_epoch, last_epoch: epoch, rows, bytes, crc32 });
                }
                Err(error) => failure = Some(error),
            }
        }
        self.behind = epoch;
        if let Some(error) = failure {
            self.check(epoch, Err(error));
            part = Part::default();
        }
        // The windows of the fraud features, on any worker, rest on these changes, and their writers do not know of the loss.
        part.orders_lost = self.lost.filter(|_| self.operator == ORDERS);
        match self.lost {
            Some(lost) if self.groups.iter().any(|group| self.based.get(group).is_none_or(|base| *base < lost)) => {
                part.incomplete = Some(format!("{} on worker {} is behind, or could not be written", self.operator, self.worker));
            }
            _ => self.lost = None,
        }
        part
    }

    fn name(&self, kind: FileKind) -> String {
        let kind = match kind {
            FileKind::Bases => "bases",
            FileKind::Changes => "changes",
        };
        format!("{:020}-{}-{}-{kind}-{}.arrow", self.behind.next().0, self.operator, self.worker, Uuid::new_v4().simple())
    }
}

/// The columns of changes in a file: those of the state, and in which epoch it changed.
fn with_epoch_schema(schema: &SchemaRef) -> SchemaRef {
    let epoch = Arc::new(Field::new(EPOCH, DataType::UInt64, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([epoch]).collect::<Vec<_>>()))
}

/// The column of the epoch, the last one of changes.
const EPOCH: &str = "changed_in";

fn with_epoch(rows: &RecordBatch, epoch: Epoch, schema: &SchemaRef) -> RecordBatch {
    let epochs: ArrayRef = Arc::new(UInt64Array::from(vec![epoch.0; rows.num_rows()]));
    let columns = rows.columns().iter().cloned().chain([epochs]).collect();
    RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of the state, and an epoch")
}

/// A file under way.
struct File {
    name: String,
    kind: FileKind,
    schema: SchemaRef,
    /// Batches that wait for more.
    small: Vec<RecordBatch>,
    encoder: StreamWriter<Vec<u8>>,
    upload: BufWriter,
    crc32: crc32fast::Hasher,
    rows: u64,
    bytes: u64,
}

impl File {
    fn new(store: &CheckpointStore, name: String, kind: FileKind, schema: SchemaRef) -> File {
        let encoder = StreamWriter::try_new(Vec::new(), &schema).expect("memory takes the schema");
        let objects: Arc<dyn ObjectStore> = store.raw();
        let upload = BufWriter::with_capacity(objects, store.data_path(&name), PIECE_BYTES);
        File { name, kind, schema, small: Vec::new(), encoder, upload, crc32: crc32fast::Hasher::new(), rows: 0, bytes: 0 }
    }

    async fn write(&mut self, rows: &RecordBatch) -> Result<(), String> {
        self.encoder.write(rows).map_err(|e: ArrowError| e.to_string())?;
        self.rows += rows.num_rows() as u64;
        self.send().await
    }

    async fn write_small(&mut self) -> Result<(), String> {
        match concat(std::mem::take(&mut self.small)) {
            Some(rows) => self.write(&rows).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self) -> Result<(), String> {
        let bytes = Bytes::from(std::mem::take(self.encoder.get_mut()));
        self.crc32.update(&bytes);
        self.bytes += bytes.len() as u64;
        check(Point::CheckpointFile).map_err(|e| e.to_string())?;
        let sent = tokio::time::timeout(PIECE_TIMEOUT, self.upload.put(bytes)).await;
        sent.map_err(|_| timed_out())?.map_err(|e| e.to_string())
    }

    async fn finish(mut self) -> Result<(u64, u64, u32), String> {
        self.write_small().await?;
        self.encoder.finish().map_err(|e: ArrowError| e.to_string())?;
        self.send().await?;
        check(Point::CheckpointFileEnd).map_err(|e| e.to_string())?;
        let done = tokio::time::timeout(PIECE_TIMEOUT, self.upload.shutdown()).await;
        done.map_err(|_| timed_out())?.map_err(|e| e.to_string())?;
        check(Point::CheckpointFileDone).map_err(|e| e.to_string())?;
        Ok((self.rows, self.bytes, self.crc32.finalize()))
    }
}

fn timed_out() -> String {
    format!("the store did not answer within {} s", PIECE_TIMEOUT.as_secs())
}
