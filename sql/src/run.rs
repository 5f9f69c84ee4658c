//! A stage by itself, on files: in this process, with as many workers as wanted.
//!
//! The same operators on the same edges as in the job. The input is cut into epochs of a fixed number of rows from each file, so that a run is a function
//! of the files, the stage and that number; where the input ends, so does event time, and every window is over.

mod format;
mod reader;
mod sinks;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use orderflow_operators::batch::{Batch, register_schema};
use orderflow_operators::columns::{text, u64s};
use orderflow_operators::dataflow::{Batches, EPOCH_ROWS_MAX, EpochOperator, clock_row, clock_schema, time_of, worker_config};
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros, NEVER};
use orderflow_operators::exchange::{Route, RowDistributor, to_worker};
use orderflow_operators::keys::{KeyGroup, owned_groups};
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::operators::{Concatenate, Input as _, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};
use timely::worker::Worker;

use crate::dataflow::{Host, build};
use crate::graph::SinkEdge;
use crate::operators::{GroupedState, reject_schema};
use crate::rows::{PLACE, canonical, with_meta};
use crate::stage::catalog::{Connector, Role};
use crate::stage::{Input, Stage};
pub use format::{changes, to_debezium, to_json};
use reader::{Reader, files};
pub use sinks::{FileSinks, render};

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

impl RunError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        RunError(message.into())
    }
}

/// How a stage is run.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// Paths of tables are relative to this folder.
    pub base: PathBuf,
    /// Worker threads.
    pub workers: usize,
    /// Rows of an epoch, from all files together; at least one from each.
    pub epoch_rows: u64,
    /// Ends behind this epoch, with a snapshot to go on from, unless the input ends before.
    pub stop_after: Option<u64>,
    /// Goes on from a snapshot.
    pub resume: Option<Snapshot>,
}

/// What a run knows at an epoch's end. It can go on with another number of workers.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    epoch: u64,
    offsets: Vec<i64>,
    watermarks: Vec<Option<Micros>>,
    watermark: Option<Micros>,
    states: HashMap<(String, u16), RecordBatch>,
}

impl Snapshot {
    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Epochs.
    pub epochs: u64,
    /// Rows read.
    pub rows_in: u64,
    /// Rows that came out of the stage, by sink.
    pub rows_out: Vec<u64>,
    /// Rows whose window was over.
    pub late: u64,
    /// Rows for which an expression had no value.
    pub errors: u64,
    /// One of those, with the reason.
    pub first_error: Option<String>,
    /// Messages that are none.
    pub malformed: u64,
    /// One of those, with the reason.
    pub first_malformed: Option<String>,
    /// If it was stopped before the input ended.
    pub snapshot: Option<Snapshot>,
}

/// Takes an epoch's rows of a sink, in canonical order: the number of the sink in the graph, the sink, the epoch, the rows as [`crate::rows`] says.
pub type SinkFn = Box<dyn FnMut(usize, &SinkEdge, &EpochInfo, RecordBatch) -> Result<(), RunError> + Send>;

/// Epochs in the dataflow: many, as they may be of one row.
const IN_FLIGHT: u64 = 256;
/// How long a worker sleeps at most when there is nothing to do.
const PARK: Duration = Duration::from_millis(1);

type RowsInput = InputHandle<u64, NoopBuilder<Batch>>;

/// What the workers share.
struct Shared {
    stage: Stage,
    settings: RunSettings,
    lookups: HashMap<String, RecordBatch>,
    sink: Mutex<SinkFn>,
    summary: Mutex<Summary>,
    failure: Mutex<Option<RunError>>,
    states: Mutex<HashMap<(String, u16), RecordBatch>>,
}

impl Shared {
    fn fail(&self, error: RunError) {
        lock(&self.failure).get_or_insert(error);
    }
    fn has_failed(&self) -> bool {
        lock(&self.failure).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a stage on its files.
///
/// # Errors
/// If a file cannot be read, or the stage or its sink fails.
pub fn run(stage: &Stage, settings: RunSettings, sink: SinkFn) -> Result<Summary, RunError> {
    if let Some(stream) = stage.named_streams().next() {
        return Err(RunError::new(format!(
            "the stage reads `{stream}`, a stream of the job: declare it as a table of a file, or run the job with the stage in stages.files"
        )));
    }
    let mut inputs: Vec<(Arc<Input>, PathBuf)> = Vec::new();
    let mut lookups = HashMap::new();
    for input in &stage.inputs {
        if !matches!(input.table.connector, Connector::SingleFile | Connector::Filesystem) {
            let (name, connector) = (&input.table.name, input.table.connector.name());
            return Err(RunError::new(format!(
                "table `{name}`: a stage by itself reads files and topics; connector '{connector}' is for the job"
            )));
        }
        let input = Arc::new(input.clone());
        let paths = files(&input.table, &settings.base)?;
        if input.table.role == Some(Role::Lookup) {
            lookups.insert(input.table.name.clone(), whole_table(&input, &paths)?);
        } else {
            inputs.extend(paths.into_iter().map(|path| (input.clone(), path)));
        }
    }
    let workers = settings.workers.max(1);
    let states = settings.resume.as_ref().map(|s| s.states.clone()).unwrap_or_default();
    let rows_out = vec![0; stage.graph.sinks.len()];
    let shared = Arc::new(Shared {
        stage: stage.clone(),
        lookups,
        sink: Mutex::new(sink),
        summary: Mutex::new(Summary { rows_out, ..Summary::default() }),
        failure: Mutex::new(None),
        states: Mutex::new(states),
        settings,
    });
    let (senders, receivers): (Vec<Sender<EpochInfo>>, Vec<Receiver<EpochInfo>>) = (0..workers).map(|_| channel()).unzip();
    let receivers: Vec<Mutex<Option<Receiver<EpochInfo>>>> = receivers.into_iter().map(|r| Mutex::new(Some(r))).collect();
    let head = Mutex::new(Some((senders, inputs)));
    let for_workers = shared.clone();
    let mut config = if workers == 1 { timely::Config::thread() } else { timely::Config::process(workers) };
    config.worker = worker_config();
    let guards = timely::execute(config, move |worker| {
        let receiver = lock(&receivers[worker.index()]).take().expect("each worker runs once");
        let head = if worker.index() == 0 { lock(&head).take() } else { None };
        work(worker, &for_workers, &receiver, head);
    });
    for result in guards.map_err(RunError::new)?.join() {
        if let Err(message) = result {
            shared.fail(RunError::new(format!("internal error: {message}; this is a bug, please report it")));
        }
    }
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    let mut summary = lock(&shared.summary).clone();
    if let Some(snapshot) = &mut summary.snapshot {
        snapshot.states = std::mem::take(&mut *lock(&shared.states));
    }
    Ok(summary)
}

/// What a lookup table holds: its columns behind the [`META`](crate::rows::META) columns. Paths are relative to `base`.
///
/// # Errors
/// If it is no file, or the file cannot be read.
pub fn lookup_table(input: &Input, base: &Path) -> Result<RecordBatch, RunError> {
    whole_table(&Arc::new(input.clone()), &files(&input.table, base)?)
}

fn whole_table(input: &Arc<Input>, paths: &[PathBuf]) -> Result<RecordBatch, RunError> {
    let mut parts = Vec::new();
    for path in paths {
        let mut reader = Reader::open(input.clone(), path, 0, 0)?;
        while !reader.ended {
            parts.push(reader.read(100_000, 0)?.rows);
        }
    }
    let schema = with_meta(input.table.schema().fields());
    Ok(orderflow_operators::dataflow::concat(parts).unwrap_or_else(|| RecordBatch::new_empty(schema)))
}

/// The worker's part in state and lookup tables.
struct WorkerHost {
    shared: Arc<Shared>,
    groups: Vec<KeyGroup>,
}

impl Host for WorkerHost {
    fn table(&self, name: &str) -> Option<RecordBatch> {
        self.shared.lookups.get(name).cloned()
    }
    fn start(&self, operator: &str, state: &mut dyn GroupedState) -> datafusion::error::Result<()> {
        let Some(snapshot) = &self.shared.settings.resume else { return Ok(()) };
        for group in &self.groups {
            if let Some(rows) = snapshot.states.get(&(operator.to_owned(), group.0)) {
                state.restore(snapshot.watermark.unwrap_or(NEVER), rows)?;
            }
        }
        Ok(())
    }
    fn after_epoch(&self, operator: &str, info: &EpochInfo, state: &mut dyn GroupedState) -> datafusion::error::Result<()> {
        if info.checkpoint {
            let groups = state.dump()?;
            let mut states = lock(&self.shared.states);
            for group in &self.groups {
                states.remove(&(operator.to_owned(), group.0));
            }
            states.extend(groups.into_iter().map(|(group, rows)| ((operator.to_owned(), group.0), rows)));
        }
        Ok(())
    }
    fn fail(&self, message: String) {
        self.shared.fail(RunError::new(message));
    }
}

type Head = (Vec<Sender<EpochInfo>>, Vec<(Arc<Input>, PathBuf)>);

fn work(worker: &mut Worker, shared: &Arc<Shared>, receiver: &Receiver<EpochInfo>, head: Option<Head>) {
    register_schema(&clock_schema());
    let groups = owned_groups(worker.index(), worker.peers()).collect();
    let host: Rc<dyn Host> = Rc::new(WorkerHost { shared: shared.clone(), groups });
    let mut clock_input = RowsInput::new_with_builder();
    let inputs: Rc<RefCell<BTreeMap<String, RowsInput>>> = Rc::default();
    let probe = worker.dataflow::<u64, _, _>(|scope| {
        let clock = scope.input_from(&mut clock_input);
        let made = inputs.clone();
        let mut source = |table: &str| -> Batches<'_> {
            let mut input = RowsInput::new_with_builder();
            let stream = scope.input_from(&mut input);
            let schema = shared.stage.inputs.iter().find(|i| i.table.name == table).map(|i| with_meta(i.table.schema().fields()));
            let schema = schema.unwrap_or_else(clock_schema);
            made.borrow_mut().insert(table.to_owned(), input);
            let pact = DistributorPact(|peers| RowDistributor::new(spread(peers), peers));
            let [stream] = EpochOperator::new("spread", scope, clock.clone())
                .unordered_input(stream, pact)
                .build([&schema], Box::new(|_, inputs, outputs| outputs[0].extend(inputs[0].take())));
            stream
        };
        let probe = ProbeHandle::new();
        let outputs = match build(scope, "stage", &shared.stage.graph, &clock, &mut source, &host) {
            Ok(outputs) => outputs,
            Err(error) => {
                host.fail(error.strip_backtrace());
                return probe;
            }
        };
        let mut ends = Vec::new();
        for (number, (rows, edge)) in outputs.sinks.into_iter().zip(&shared.stage.graph.sinks).enumerate() {
            let (edge, shared) = (edge.clone(), shared.clone());
            let schema = shared.stage.graph.schema(edge.node).clone();
            let [end] = EpochOperator::new("collect", scope, clock.clone()).unordered_input(rows, to_worker(0)).build(
                [&schema],
                Box::new(move |info, inputs, _| {
                    if let Some(rows) = inputs[0].take() {
                        let rows = canonical(rows);
                        lock(&shared.summary).rows_out[number] += rows.num_rows() as u64;
                        if let Err(error) = lock(&shared.sink)(number, &edge, info, rows) {
                            shared.fail(error);
                        }
                    }
                }),
            );
            ends.push(end);
        }
        let shared = shared.clone();
        let [end] = EpochOperator::new("rejects", scope, clock.clone()).unordered_input(outputs.rejects, to_worker(0)).build(
            [&reject_schema()],
            Box::new(move |_, inputs, _| {
                if let Some(rows) = inputs[0].take() {
                    count_rejects(&rows, &mut lock(&shared.summary));
                }
            }),
        );
        ends.push(end);
        scope.concatenate(ends).probe_with(&probe);
        probe
    });
    let mut clock_input = Some(clock_input);
    let mut head = head.and_then(|(senders, files)| match Driver::new(shared.clone(), senders, files, probe.clone()) {
        Ok(driver) => Some(driver),
        Err(error) => {
            shared.fail(error);
            None
        }
    });
    if head.is_none() {
        inputs.borrow_mut().clear();
    }
    while !probe.done() {
        if shared.has_failed() {
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
            return;
        }
        if let Some(driver) = &mut head {
            let stepped = driver.step(&mut inputs.borrow_mut());
            match stepped {
                Ok(true) => {}
                Ok(false) => {
                    inputs.borrow_mut().clear();
                    head = None;
                }
                Err(error) => shared.fail(error),
            }
        }
        loop {
            match receiver.try_recv() {
                Ok(info) => {
                    if let Some(input) = &mut clock_input {
                        input.advance_to(time_of(info.epoch));
                        input.send_batch(&mut Batch::from(clock_row(&info)));
                        input.advance_to(time_of(info.epoch.next()));
                    }
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    clock_input = None;
                    break;
                }
            }
        }
        worker.step_or_park(Some(PARK));
    }
}

/// Rows to workers in turn, by where they come from.
fn spread(peers: usize) -> Route {
    Box::new(move |batch, targets| targets.extend(u64s(batch, PLACE).iter().map(|place| (place % peers as u64) as u32)))
}

fn count_rejects(rows: &RecordBatch, summary: &mut Summary) {
    let (kinds, details, shown) = (text(rows, 1), text(rows, 3), text(rows, 4));
    for row in 0..rows.num_rows() {
        if kinds.value(row) == "late" {
            summary.late += 1;
        } else {
            summary.errors += 1;
            summary.first_error.get_or_insert_with(|| format!("{} ({})", details.value(row), shown.value(row)));
        }
    }
}

/// Cuts the input into epochs.
struct Driver {
    shared: Arc<Shared>,
    senders: Vec<Sender<EpochInfo>>,
    readers: Vec<Reader>,
    tables: Vec<String>,
    watermark: Micros,
    epoch: u64,
    each: usize,
    ended: bool,
    probe: ProbeHandle<u64>,
}

impl Driver {
    fn new(
        shared: Arc<Shared>,
        senders: Vec<Sender<EpochInfo>>,
        files: Vec<(Arc<Input>, PathBuf)>,
        probe: ProbeHandle<u64>,
    ) -> Result<Self, RunError> {
        let resume = shared.settings.resume.clone().unwrap_or_default();
        let mut readers = Vec::new();
        let mut tables = Vec::new();
        for (split, (input, path)) in files.into_iter().enumerate() {
            tables.push(input.table.name.clone());
            let mut reader = Reader::open(input, &path, split as u32, resume.offsets.get(split).copied().unwrap_or(0))?;
            reader.watermark = resume.watermarks.get(split).copied().flatten();
            readers.push(reader);
        }
        let rows = shared.settings.epoch_rows.clamp(1, EPOCH_ROWS_MAX);
        let each = (rows as usize / readers.len().max(1)).max(1);
        Ok(Driver {
            watermark: resume.watermark.unwrap_or(NEVER),
            epoch: resume.epoch,
            shared,
            senders,
            readers,
            tables,
            each,
            ended: false,
            probe,
        })
    }

    /// Seals epochs as far as there is room; says whether there may be more.
    fn step(&mut self, inputs: &mut BTreeMap<String, RowsInput>) -> Result<bool, RunError> {
        while !self.ended {
            let oldest = (self.epoch + 1).saturating_sub(IN_FLIGHT);
            if self.probe.less_than(&time_of(Epoch(oldest))) {
                return Ok(true);
            }
            self.seal(inputs)?;
        }
        self.senders.clear();
        Ok(false)
    }

    fn seal(&mut self, inputs: &mut BTreeMap<String, RowsInput>) -> Result<(), RunError> {
        let epoch = Epoch(self.epoch + 1);
        let sealed_at = epoch.0 as Micros * 1_000;
        inputs.values_mut().for_each(|input| input.advance_to(time_of(epoch)));
        let mut rows_in = 0;
        for (reader, table) in self.readers.iter_mut().zip(&self.tables).filter(|(reader, _)| !reader.ended) {
            let read = reader.read(self.each, sealed_at)?;
            rows_in += read.rows.num_rows() as u64;
            let mut summary = lock(&self.shared.summary);
            summary.malformed += read.malformed;
            if let Some(first) = read.first_malformed {
                summary.first_malformed.get_or_insert(first);
            }
            drop(summary);
            if read.rows.num_rows() > 0
                && let Some(input) = inputs.get_mut(table)
            {
                input.send_batch(&mut Batch::from(read.rows));
            }
        }
        let watermark_before = self.watermark;
        let all_ended = self.readers.iter().all(|reader| reader.ended);
        let stop = self.shared.settings.stop_after == Some(epoch.0) && !all_ended;
        if all_ended {
            self.watermark = Micros::MAX;
        } else {
            let least = self.readers.iter().filter(|r| !r.ended).map(|r| r.watermark.unwrap_or(NEVER)).min().unwrap_or(NEVER);
            self.watermark = self.watermark.max(least);
        }
        let info = EpochInfo { epoch, sealed_at, watermark_before, watermark: self.watermark, checkpoint: stop };
        inputs.values_mut().for_each(|input| input.advance_to(time_of(epoch.next())));
        for sender in &self.senders {
            // A worker that is gone has failed, and said so.
            let _ = sender.send(info);
        }
        self.epoch = epoch.0;
        self.ended = all_ended || stop;
        let mut summary = lock(&self.shared.summary);
        summary.rows_in += rows_in;
        summary.epochs = epoch.0;
        if stop {
            summary.snapshot = Some(Snapshot {
                epoch: epoch.0,
                offsets: self.readers.iter().map(Reader::offset).collect(),
                watermarks: self.readers.iter().map(|r| r.watermark).collect(),
                watermark: Some(self.watermark),
                states: HashMap::new(),
            });
        }
        Ok(())
    }
}
