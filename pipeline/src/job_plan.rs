//! What the command line asks of the engine, and what it gets back: plain values, no behaviour of the engine's.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Config, SinkKind};
use crate::metrics::{Latency, Metrics};
use crate::status::Health;

/// A replay: the whole job over a fixture folder, to the end of its files.
#[derive(Clone)]
pub struct ReplayPlan {
    /// All settings. `job.workers` is how many threads this process has.
    pub config: Config,
    /// Folder with `inventory-*.jsonl` and `orders-*.jsonl` (also `.gz`, `.zst`), one split a file.
    pub input: PathBuf,
    /// Folder of the epoch log and, unless the settings say otherwise, of the tables: `OUT/delta/<stream>`.
    pub out: PathBuf,
    /// As if live: so many rows arrive a second, and epochs are cut as they do. None: as fast as it goes.
    pub rate: Option<f64>,
    /// The other processes of the job, if it has any.
    pub cluster: Option<Cluster>,
    /// What both kinds of run have.
    pub handles: Handles,
}

/// A live run: topics in, until it is told to stop or has drained them.
#[derive(Clone)]
pub struct RunPlan {
    /// All settings. `job.workers` is how many threads this process has.
    pub config: Config,
    /// The other processes of the job, if it has any.
    pub cluster: Option<Cluster>,
    /// Whether it ends with what the topics hold at its start. In a job of several processes, process 0 says so.
    pub drain: bool,
    /// What both kinds of run have.
    pub handles: Handles,
}

/// A backfill: what a job has recorded is played again into one sink.
#[derive(Clone)]
pub struct BackfillPlan {
    /// The settings of the job, with those of the sink as it is to be filled.
    pub config: Config,
    /// The sink.
    pub sink: SinkKind,
    /// Behind what its rows begin.
    pub from: BackfillFrom,
    /// For a replay, its folders; none: the job reads topics.
    pub replay: Option<ReplayFolders>,
    /// What all kinds of run have.
    pub handles: Handles,
}

/// Where a backfill begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackfillFrom {
    /// With the first epoch.
    Start,
    /// Behind the checkpoint of this epoch, or the savepoint of this name.
    Checkpoint(String),
}

/// The folders of a replay.
#[derive(Clone, Debug)]
pub struct ReplayFolders {
    /// Its input.
    pub input: PathBuf,
    /// Its epoch log, its checkpoints and its tables.
    pub out: PathBuf,
}

/// What a run is told and tells while it goes on.
#[derive(Clone)]
pub struct Handles {
    /// Counted as the job goes on.
    pub metrics: Metrics,
    /// Called a few times a second at most, from any thread.
    pub progress: ProgressFn,
    /// Looked at between epochs.
    pub stop: Stop,
    /// The job says here what phase of its life it is in.
    pub health: Health,
}

impl Handles {
    /// New metrics, progress to nobody, no stop.
    pub fn quiet() -> Self {
        Handles { metrics: Metrics::new(), progress: Arc::new(|_| ()), stop: Stop::default(), health: Health::default() }
    }
}

/// Takes reports of progress.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// The processes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// `host:port` of each process, the same list in every process. All have the same number of workers.
    pub hosts: Vec<String>,
    /// Which of them this one is, from 0. Process 0 seals epochs and writes to the sinks' commit logs.
    pub process: usize,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Input rows whose epoch has left the dataflow.
    pub rows_done: u64,
    /// Rows of the whole input, where known. It may grow while files are still being counted.
    pub rows_total: Option<u64>,
    /// The last epoch that left the dataflow.
    pub epoch: u64,
    /// The last epoch that every sink has committed.
    pub epoch_committed: u64,
    /// Whether the input has ended and only sinks are still at work.
    pub draining: bool,
}

/// Asks a run to end after the epochs in flight: sealed, decided, committed. Clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }
    /// Whether somebody asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a run did, all processes' rows together where it is process 0, from its own start: rows of an earlier run that it took over
/// are in `epochs_replayed` only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Epochs in the epoch log at the end.
    pub epochs: u64,
    /// How many of them were in it at the start.
    pub epochs_replayed: u64,
    /// Input rows processed.
    pub rows_in: u64,
    /// Rows of each decision.
    pub decisions: DecisionCounts,
    /// Malformed messages.
    pub dead_letters: u64,
    /// Fields that no message type has.
    pub unknown_fields: u64,
    /// Wall-clock time from start to last commit; seconds.
    pub seconds: f64,
    /// CPU time of this process, user and system, in the same time; seconds.
    pub cpu_seconds: f64,
    /// Time from orders' arrival to their decisions leaving the dataflow, in this process.
    pub latency: Option<Latency>,
    /// Whether it was asked to stop before the input's end.
    pub stopped: bool,
}

/// Rows of `order_decisions` by decision and reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecisionCounts {
    /// `accepted`
    pub accepted: u64,
    /// `review`
    pub review: u64,
    /// `rejected / invalid`
    pub invalid: u64,
    /// `rejected / duplicate`
    pub duplicate: u64,
    /// `rejected / conflict`
    pub conflict: u64,
    /// `rejected / fraud`
    pub fraud: u64,
    /// `rejected / out_of_stock`
    pub out_of_stock: u64,
}

impl DecisionCounts {
    /// Each kind's name and count.
    pub fn by_kind(&self) -> [(&'static str, u64); 7] {
        [
            ("accepted", self.accepted),
            ("review", self.review),
            ("rejected / invalid", self.invalid),
            ("rejected / duplicate", self.duplicate),
            ("rejected / conflict", self.conflict),
            ("rejected / fraud", self.fraud),
            ("rejected / out_of_stock", self.out_of_stock),
        ]
    }
    /// Adds the counts of `other`, kind by kind.
    pub fn add(&mut self, other: &DecisionCounts) {
        self.accepted += other.accepted;
        self.review += other.review;
        self.invalid += other.invalid;
        self.duplicate += other.duplicate;
        self.conflict += other.conflict;
        self.fraud += other.fraud;
        self.out_of_stock += other.out_of_stock;
    }
    /// All decisions: one for each well-formed order.
    pub fn total(&self) -> u64 {
        self.by_kind().iter().map(|(_, count)| count).sum()
    }
}

impl Summary {
    /// Orders decided a second of wall-clock time; 0 where no time passed.
    pub fn orders_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.decisions.total() as f64 / self.seconds } else { 0.0 }
    }
    /// CPU seconds of the process for a million orders; 0 where there were none.
    pub fn cpu_seconds_per_million(&self) -> f64 {
        match self.decisions.total() {
            0 => 0.0,
            orders => self.cpu_seconds * 1e6 / orders as f64,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows in {} epochs, {} orders decided in {:.1} s ({:.0} orders/s, {:.2} CPU s per million orders)",
            self.rows_in,
            self.epochs,
            self.decisions.total(),
            self.seconds,
            self.orders_per_second(),
            self.cpu_seconds_per_million()
        )
    }
}
