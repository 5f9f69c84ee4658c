//! A job from its start to its end: opens the log and the sinks, runs the workers, waits for the last commit.

mod checkpoints;
mod settings;
mod sinks;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use orderflow_operators::epoch::Epoch;
use tokio::sync::watch;

use crate::checkpoint::{CheckpointError, CheckpointStore, Resumed};
use crate::config::{Config, Interval, ReplayClock};
use crate::dataflow::Shared;
use crate::epoch_log::{self, EpochLogError, EpochRecord, LogHeader, LogHome, LogWriter};
use crate::failure::Failure;
use crate::job_plan::{Cluster, Handles, Progress, ReplayPlan, RunPlan, Summary};
use crate::metrics::cpu_seconds;
use crate::panics::ConnectionWatch;
use crate::sealer::{Cut, Sealer, SplitStart};
use crate::sink_hub::SinkHub;
use crate::source::{FileSource, KafkaSource, Source, SourceError, Split};
use crate::status::Phase;
use crate::worker::{Head, HeadSummary, WorkerPlan};

/// Why a job ended before its input.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The epoch log.
    #[error(transparent)]
    EpochLog(#[from] EpochLogError),
    /// A source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A setting that only shows to be wrong when it is used.
    #[error("{0}")]
    Setting(String),
    /// Checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A sink that cannot be written to.
    #[error("{0}")]
    Sink(String),
    /// Threads or sockets.
    #[error("cannot start: {0}")]
    Start(String),
    /// Something failed while it ran. What was committed stays, and the same command goes on from there.
    #[error("{0}")]
    Failed(String),
}

/// A job with everything chosen.
pub struct Job {
    /// All settings.
    pub config: Config,
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// For each split: where a new job starts, and its part of the input.
    pub starts: Vec<SplitStart>,
    /// How epochs are cut.
    pub cut: Cut,
    /// Whether `future` is checked: not in replays of files.
    pub live: bool,
    /// Where the epoch log is kept.
    pub log_home: LogHome,
    /// The other processes.
    pub cluster: Option<Cluster>,
    /// What both kinds of run have.
    pub handles: Handles,
    /// Rows of the whole input, where known.
    pub rows_total: Option<u64>,
}

/// How the names of files begin that have the stock at the beginning: a replay takes them before all others.
const OPENING: &str = "inventory-opening";

/// Runs the whole job over a fixture folder, to the end of its files.
///
/// # Errors
/// With one message that says what to do. The same command then goes on where the job was.
pub fn replay(plan: ReplayPlan) -> Result<Summary, JobError> {
    let ReplayPlan { mut config, input, out, rate, cluster, handles } = plan;
    let mut source = FileSource::open_folder(&input, settings::source_limits(&config))?;
    if config.sinks.delta.url.is_empty() {
        config.sinks.delta.url = out.join("delta").display().to_string();
    }
    if config.checkpoint.url.is_empty() {
        config.checkpoint.url = checkpoints::folder(&out);
    }
    if !config.replay.checkpoints {
        config.checkpoint.interval = Interval::millis(0);
    }
    let mut cut = Cut::Replay;
    if let Some(rate) = rate {
        source = source.paced(rate, OPENING);
        cut = Cut::Live { linger: config.epoch.linger.as_duration() };
    }
    let is_opening = |split: &Split| split.name.starts_with(OPENING);
    let starts = source.splits().iter().zip(source.sizes());
    let starts = starts.map(|(split, weight)| SplitStart { offset: 0, weight, opening: is_opening(split) }).collect();
    let log_home = LogHome::Folder(out);
    let job = Job { source: Arc::new(source), starts, cut, live: false, log_home, cluster, handles, rows_total: None, config };
    job.execute()
}

/// Runs the job on topics until it is asked to stop.
///
/// # Errors
/// With one message that says what to do. The same command then goes on where the job was.
pub fn run(plan: RunPlan) -> Result<Summary, JobError> {
    let RunPlan { mut config, cluster, handles } = plan;
    let source = KafkaSource::connect(settings::kafka(&config), settings::source_limits(&config))?;
    if config.sinks.delta.url.is_empty() {
        config.sinks.delta.url = config.job.data_dir.join("delta").display().to_string();
    }
    let starts = source.start_offsets()?.into_iter().map(|offset| SplitStart { offset, weight: 1, opening: false }).collect();
    let job = Job {
        source: Arc::new(source),
        starts,
        cut: Cut::Live { linger: config.epoch.linger.as_duration() },
        live: true,
        log_home: settings::log_home(&config),
        cluster,
        handles,
        rows_total: None,
        config,
    };
    job.execute()
}

/// Where a live job with these settings keeps its epoch log.
pub fn log_home(config: &Config) -> LogHome {
    settings::log_home(config)
}

/// The epoch log of a job, which may be in use.
///
/// # Errors
/// If there is none, it is damaged, or cannot be read.
pub fn epochs(home: &LogHome) -> Result<Vec<EpochRecord>, EpochLogError> {
    epoch_log::read(home)
}

/// Where the checkpoints of the job in `folder` are.
///
/// # Errors
/// If `checkpoint.url` or an option of it makes no sense.
pub fn checkpoint_store(config: &Config, folder: &Path) -> Result<CheckpointStore, CheckpointError> {
    checkpoints::store(config, folder)
}

/// What the operators are told by these settings.
pub(crate) fn operator_settings(config: &Config) -> Result<crate::dataflow::Settings, JobError> {
    settings::operators(config, false)
}

/// How soon the end of a part is noticed.
const POLL: Duration = Duration::from_millis(20);
/// How long workers may take to leave after a failure.
const LEAVE: Duration = Duration::from_secs(2);
/// How long a job that was asked to stop waits for its last checkpoint: without it, the next life plays some epochs more.
const LAST_CHECKPOINT: Duration = Duration::from_secs(30);
/// How long processes of a job wait for each other at the start.
const MEET: Duration = Duration::from_secs(60);

impl Job {
    /// Runs it.
    ///
    /// # Errors
    /// With one message that says what to do.
    pub fn execute(self) -> Result<Summary, JobError> {
        let (started, cpu_before) = (Instant::now(), cpu_seconds());
        let config = &self.config;
        let (process, processes) = self.cluster.as_ref().map_or((0, 1), |c| (c.process, c.hosts.len()));
        let workers = config.job.worker_count();
        let peers = workers * processes;
        let failure = Failure::default();
        let metrics = self.handles.metrics.clone();
        self.handles.health.set(Phase::Recovering);
        let settings = Arc::new(settings::operators(config, self.live)?);
        let header = LogHeader {
            format: LogHeader::FORMAT,
            job: config.job.id.clone(),
            splits: self.source.splits().iter().map(|s| s.name.clone()).collect(),
            settings: settings::meaning(config, &settings),
        };

        let checkpoints = checkpoints::Checkpoints::open(config)?;

        // Process 0 keeps the log, and with it the right to run.
        let opened = if process == 0 { Some(epoch_log::open(&self.log_home, &header)?) } else { None };
        // The guard is held until the last commit: a second job must not begin while this one's sinks are at work.
        let (log, tape, _guard) = match opened {
            Some((log, tape, guard)) => (Some(log), tape, Some(guard)),
            None => (None, Vec::new(), None),
        };
        let replayed = tape.last().map_or(Epoch(0), |r| r.epoch);
        let (durable, durable_seen) = watch::channel(replayed);

        // Sinks: what they committed is known before the first row moves.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.job.worker_count().clamp(2, 8))
            .thread_name("io")
            .on_thread_start(step_back)
            .enable_all()
            .build()
            .map_err(|e| JobError::Start(e.to_string()))?;
        let hub = Arc::new(SinkHub::new(metrics.clone(), || Utc::now().timestamp_micros()));
        let mine = |stream: usize| (stream % peers) / workers == process;
        let drivers = sinks::drivers(config, &settings, &hub, &metrics, &failure, durable_seen.clone(), mine)?;
        let labels: Vec<String> = drivers.iter().map(|driver| driver.label.clone()).collect();
        let committed: Vec<watch::Receiver<Epoch>> = drivers.iter().map(|d| d.committed.subscribe()).collect();
        let stop = self.handles.stop.clone();
        let recovered = runtime.block_on(async {
            tokio::select! {
                recovered = sinks::recover(drivers) => recovered,
                () = stopped(&stop) => Err("stopped while a sink was unavailable".to_owned()),
            }
        });
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(message) => {
                runtime.shutdown_background();
                return Err(JobError::Sink(message));
            }
        };
        let sinks_through = sinks::through(&recovered);
        if process == 0
            && let Some(message) = sinks_ahead(sinks_through, replayed)
        {
            return Err(JobError::Sink(message));
        }
        let resumed = checkpoints.resume(&runtime, &header, &labels, process, processes)?;
        if process == 0
            && let Some(Resumed { manifest }) = &resumed
            && manifest.epoch > replayed
        {
            return Err(JobError::Failed(format!(
                "the checkpoint of epoch {} in {} is of this job, but its epoch log ends with epoch {}: it was lost; put back the folder with the log, or \
                 choose another job.id and other tables for a job that begins anew",
                manifest.epoch,
                checkpoints.url(),
                replayed.0
            )));
        }
        let tasks = sinks::start(&runtime, recovered);
        let states = checkpoints::Start { process, processes, labels, header, committed: committed.clone(), durable: durable_seen };
        let checkpoints::Running { states, trigger, mut task } =
            checkpoints.start(config, &runtime, resumed, states, &metrics, &failure)?;

        let head = match log {
            None => None,
            Some(log) => {
                let resumed = states.loader.as_ref().map(|loader| loader.manifest());
                let behind = resumed.map_or(Epoch(0), |manifest| manifest.epoch);
                let tape = tape.into_iter().filter(|record| record.epoch > behind).collect();
                let mut sealer = Sealer::new(self.cut, config.epoch.rows_max, tape, &self.starts);
                if let Some(manifest) = resumed {
                    sealer = sealer.resume(manifest.epoch, manifest.sealed_at, &manifest.offsets);
                }
                let failed = failure.clone();
                let log = LogWriter::start(log, durable.clone(), move |error| failed.report(error))
                    .map_err(|e| JobError::Start(e.to_string()))?;
                Some(Head {
                    sealer,
                    log,
                    clock: seal_clock(config, self.cut)?,
                    stop: self.handles.stop.clone(),
                    progress: self.handles.progress.clone(),
                    committed: committed.clone(),
                    rows_total: self.rows_total,
                    health: self.handles.health.clone(),
                    checkpoints: trigger.clone().map(|trigger| crate::worker::Checkpoints {
                        trigger,
                        interval: config.checkpoint.interval.as_duration(),
                        at_stop: self.live,
                    }),
                })
            }
        };
        if head.is_none() {
            // What process 0 has to take up again, only it knows.
            self.handles.health.set(Phase::Live);
        }
        let plan = Arc::new(WorkerPlan {
            source: self.source.clone(),
            mark_bytes: settings::mark_bytes(config, self.source.splits().len()),
            in_flight: config.epoch.in_flight as u64,
            durable,
            clustered: processes > 1,
            sinks_through,
            stop: self.handles.stop.clone(),
            resumed: states.loader.as_ref().map_or(Epoch(0), |loader| loader.manifest().epoch),
            shared: Shared { settings, hub: hub.clone(), metrics, failure: failure.clone(), states, first_worker: process * workers },
        });
        let done = match run_workers(plan, head, workers, self.cluster.clone(), &failure) {
            Ok(done) => done,
            Err(error) => {
                // A sink may hang in a call that blocks.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        hub.close();

        // The last commits.
        let mut tasks = tasks;
        while !tasks.is_empty() && !failure.is_set() {
            tasks.retain(|task| !task.is_finished());
            let epoch_committed = committed.iter().map(|c| c.borrow().0).min().unwrap_or(0);
            let rows_done = done.map_or(0, |d| d.rows);
            let epoch = done.map_or(0, |d| d.last.0);
            (self.handles.progress)(Progress { rows_done, rows_total: self.rows_total, epoch, epoch_committed, draining: true });
            std::thread::sleep(POLL);
        }
        // The last checkpoint of a job that was asked to stop.
        if let Some(task) = task.as_mut().filter(|_| self.live) {
            let started = Instant::now();
            while !task.is_finished() && !failure.is_set() && started.elapsed() < LAST_CHECKPOINT {
                std::thread::sleep(POLL);
            }
        }
        if let Some(message) = failure.message() {
            runtime.shutdown_background();
            return Err(JobError::Failed(message.to_owned()));
        }
        runtime.shutdown_timeout(LEAVE);
        let (decisions, dead_letters) = hub.counts();
        let done = done.unwrap_or_default();
        Ok(Summary {
            epochs: done.last.0,
            epochs_replayed: replayed.0,
            rows_in: done.rows,
            decisions,
            dead_letters,
            unknown_fields: self.handles.metrics.unknown_fields(),
            seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - cpu_before,
            latency: self.handles.metrics.latency(),
            stopped: done.stopped,
        })
    }
}

/// Lets the workers go before this thread where both want a core: encoding files comes in bursts, and would be latency of every epoch
/// meanwhile. A thread has a priority of its own on Linux; elsewhere nothing happens.
fn step_back() {
    /// As `nice -n 10`.
    const NICE: i32 = 10;
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers alone; 0 is the calling thread. If it is refused, latency is all that suffers.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
}

/// Ends when somebody asks the job to.
async fn stopped(stop: &crate::job_plan::Stop) {
    while !stop.requested() {
        tokio::time::sleep(POLL).await;
    }
}

/// What to say if sinks have committed more than the epoch log knows of: its epochs would be taken for theirs, and skipped.
pub(crate) fn sinks_ahead(sinks_through: Epoch, log_through: Epoch) -> Option<String> {
    (sinks_through > log_through).then(|| {
        format!(
            "the sinks have committed epoch {} of this job, but its epoch log ends with epoch {}: it is the log of another job, or was \
             lost; put back the folder with the log, or choose another job.id and other tables for a job that begins anew",
            sinks_through.0, log_through.0
        )
    })
}

/// What gives new epochs their sealing time.
fn seal_clock(config: &Config, cut: Cut) -> Result<Box<dyn FnMut(Epoch) -> i64 + Send>, JobError> {
    if cut == Cut::Replay && config.replay.clock == ReplayClock::Fixed {
        let start = DateTime::parse_from_rfc3339(&config.replay.start)
            .map_err(|e| JobError::Setting(format!("replay.start \"{}\": {e}; write it like 2026-01-05T10:00:00Z", config.replay.start)))?;
        return Ok(crate::worker::fixed_clock(start.timestamp_millis(), config.replay.step.as_micros() / 1000));
    }
    Ok(Box::new(|_| Utc::now().timestamp_millis().saturating_add(orderflow_faults::clock_ahead_ms())))
}

/// Runs the workers in threads of their own, so that one that hangs after a failure cannot keep the job from ending.
fn run_workers(
    plan: Arc<WorkerPlan>,
    head: Option<Head>,
    workers: usize,
    cluster: Option<Cluster>,
    failure: &Failure,
) -> Result<Option<HeadSummary>, JobError> {
    let communication = match cluster {
        Some(Cluster { hosts, process }) => {
            timely::CommunicationConfig::Cluster { threads: workers, process, addresses: hosts, report: false, zerocopy: false }
        }
        None if workers == 1 => timely::CommunicationConfig::Thread,
        None => timely::CommunicationConfig::Process(workers),
    };
    let _watch = matches!(communication, timely::CommunicationConfig::Cluster { .. }).then(|| ConnectionWatch::start(failure));
    let config = timely::Config { communication, worker: timely::WorkerConfig::default() };
    let (sender, results) = mpsc::channel();
    let (met, meeting) = mpsc::channel();
    let (head, met) = (Mutex::new(head), Mutex::new(met));
    let failed = failure.clone();
    let body = move |worker: &mut timely::worker::Worker| {
        // Nobody listens any more once the job has given up waiting.
        let _ = met.lock().unwrap_or_else(PoisonError::into_inner).send(());
        let head = if worker.index() == 0 { head.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
        crate::panics::watch_worker(worker.index(), &plan.shared.failure);
        let run = std::panic::catch_unwind(AssertUnwindSafe(|| crate::worker::run(worker, &plan, head)));
        run.unwrap_or_else(|_reported| {
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
            None
        })
    };
    std::thread::Builder::new()
        .name("workers".into())
        .spawn(move || {
            let result = timely::execute(config, body).map(|guards| guards.join());
            let _ = sender.send(result);
        })
        .map_err(|e| JobError::Start(e.to_string()))?;

    let clustered = meeting.recv_timeout(MEET);
    if clustered.is_err() && !failed.is_set() {
        // Either the workers' threads could not start, which their result says, or the other processes did not come.
        if let Ok(Err(error)) = results.recv_timeout(LEAVE) {
            return Err(JobError::Start(error));
        }
        return Err(JobError::Start(format!("the job's other processes did not answer within {} s; start all of them", MEET.as_secs())));
    }
    let mut give_up: Option<Instant> = None;
    loop {
        match results.recv_timeout(POLL) {
            Ok(Ok(workers)) => {
                let mut summary = None;
                for worker in workers {
                    match worker {
                        Ok(head) => summary = summary.or(head),
                        Err(error) => failed.report(format!("a worker failed: {error}")),
                    }
                }
                return match failed.message() {
                    Some(message) => Err(JobError::Failed(message.to_owned())),
                    None => Ok(summary),
                };
            }
            Ok(Err(error)) => return Err(JobError::Start(error)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let message = failed.message().unwrap_or("the workers' thread ended without a result");
                return Err(JobError::Failed(message.to_owned()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(message) = failed.message()
            && *give_up.get_or_insert_with(|| Instant::now() + LEAVE) < Instant::now()
        {
            return Err(JobError::Failed(message.to_owned()));
        }
    }
}
