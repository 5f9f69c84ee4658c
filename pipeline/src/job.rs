//! A job from its start to its end: opens the log and the sinks, runs the workers, waits for the last commit.

mod backfill;
mod checkpoints;
mod runtimes;
mod settings;
mod sinks;
mod splits;
mod stages;
mod workers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::Recovered;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::runtimes::Runtimes;
use crate::checkpoint::{CheckpointError, CheckpointStore, Manifest, SinkSeen};
use crate::config::{Config, Interval, ReplayClock};
use crate::dataflow::Shared;
use crate::epoch_log::{self, EpochLogError, EpochRecord, LogHeader, LogHome, LogWriter, OpenLog};
use crate::failure::Failure;
use crate::job_plan::{Cluster, Handles, Progress, ReplayPlan, RunPlan, Stop, Summary};
use crate::metrics::cpu_seconds;
use crate::sealer::{Cut, SplitStart};
use crate::sink_driver::Driver;
use crate::sink_hub::SinkHub;
use crate::source::{FileSource, KafkaSettings, KafkaSource, Source, SourceError, Split};
use crate::status::Phase;
use crate::worker::{Head, HeadSummary, WorkerPlan};

pub use backfill::backfill;

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
    /// Another job of the same name took this one's place.
    #[error("{0}")]
    TakenOver(String),
    /// Something failed while it ran. What was committed stays, and the same command goes on from there.
    #[error("{0}")]
    Failed(String),
}

impl JobError {
    /// Whether the same command with the same settings would end alike, until somebody changes one of them.
    pub fn is_of_settings(&self) -> bool {
        match self {
            JobError::Setting(_) => true,
            JobError::EpochLog(error) => matches!(error, EpochLogError::Different { .. } | EpochLogError::Refused { .. }),
            JobError::Checkpoint(error) => matches!(error, CheckpointError::Different { .. } | CheckpointError::Address(_)),
            _ => false,
        }
    }

    /// Whether another job of the same name took this one's place.
    pub fn is_taken_over(&self) -> bool {
        matches!(self, JobError::TakenOver(_) | JobError::EpochLog(EpochLogError::TakenOver { .. }))
    }

    /// What a job with this failure ends with.
    fn of(failure: &Failure, message: &str) -> JobError {
        if failure.is_taken_over() { JobError::TakenOver(message.to_owned()) } else { JobError::Failed(message.to_owned()) }
    }
}

/// A job with everything chosen.
pub struct Job {
    /// All settings.
    pub config: Config,
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// For each split: where a new job starts, and its part of the input.
    pub starts: Vec<SplitStart>,
    /// By topic, what tells it from another one of its name, where brokers say it.
    pub topics: BTreeMap<String, String>,
    /// How epochs are cut.
    pub cut: Cut,
    /// By split, where the job ends, if it is to end before its input.
    pub until: Option<BTreeMap<String, i64>>,
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
    let log_home = LogHome::Folder(out);
    if let Some(rate) = rate {
        source = source.paced(rate, OPENING, &epoch_log::ends(&log_home)?);
        cut = Cut::Live { linger: config.epoch.linger.as_duration() };
    }
    let is_opening = |split: &Split| split.name.starts_with(OPENING);
    let starts = source.splits().iter().zip(source.sizes());
    let starts = starts.map(|(split, weight)| SplitStart { offset: 0, weight, opening: is_opening(split) }).collect();
    let job = Job {
        source: Arc::new(source),
        starts,
        topics: BTreeMap::new(),
        cut,
        until: None,
        live: false,
        log_home,
        cluster,
        handles,
        rows_total: None,
        config,
    };
    job.execute()
}

/// Runs the job on topics until it is asked to stop, or has drained them.
///
/// # Errors
/// With one message that says what to do. The same command then goes on where the job was.
pub fn run(plan: RunPlan) -> Result<Summary, JobError> {
    let RunPlan { mut config, cluster, drain, handles } = plan;
    let mut source = KafkaSource::connect(settings::kafka(&config), settings::source_limits(&config))?;
    if config.sinks.delta.url.is_empty() {
        config.sinks.delta.url = config.job.data_dir.join("delta").display().to_string();
    }
    let names = || source.splits().iter().map(|split| split.name.clone());
    let until = if drain { Some(names().zip(source.end_offsets()?).collect()) } else { None };
    let starts = source.start_offsets()?.into_iter().map(|offset| SplitStart { offset, weight: 1, opening: false }).collect();
    let topics = source.identities().clone();
    let discovery = config.source.kafka.discovery_interval.as_duration();
    // Process 0 seals, and tells the others.
    if !discovery.is_zero() && cluster.as_ref().is_none_or(|cluster| cluster.process == 0) {
        source = source.discover(discovery)?;
    }
    let job = Job {
        source: Arc::new(source),
        starts,
        topics,
        cut: Cut::Live { linger: config.epoch.linger.as_duration() },
        until,
        live: true,
        log_home: settings::log_home(&config),
        cluster,
        handles,
        rows_total: None,
        config,
    };
    job.execute()
}

/// The brokers that a job with these settings reads from.
pub fn kafka_settings(config: &Config) -> KafkaSettings {
    settings::kafka(config)
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

/// Plans what settings name, as a job would before it begins: rules, the model, the stages, which are told.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check(config: &Config) -> Result<crate::stages::Stages, JobError> {
    let settings = operator_settings(config)?;
    settings.stages.check_targets(config).map_err(|e| JobError::Setting(e.to_string()))?;
    Ok(settings.stages)
}

/// What the operators are told by these settings.
pub(crate) fn operator_settings(config: &Config) -> Result<crate::dataflow::Settings, JobError> {
    settings::operators(config, false)
}

/// How soon the end of a part is noticed.
const POLL: Duration = Duration::from_millis(20);
/// How long workers may take to leave after a failure, and what goes on beside a replay may take to end after it.
const LEAVE: Duration = Duration::from_secs(2);
/// How long a job that was asked to stop waits for its last checkpoint: without it, the next life plays some epochs more.
const LAST_CHECKPOINT: Duration = Duration::from_secs(30);

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
        settings.stages.check_targets(config).map_err(|e| JobError::Setting(e.to_string()))?;
        let header = settings::header(config, &settings, &*self.source, &self.starts, &self.topics);

        let checkpoints = checkpoints::Checkpoints::open(config)?;

        let runtime = Runtimes::start(config.job.worker_count())?;

        // Process 0 keeps the log, and with it the right to run. What lies before the newest checkpoint is hardly ever needed.
        let newest_manifest = if process == 0 { checkpoints.newest(&runtime, &header)? } else { None };
        let newest = newest_manifest.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
        let opened = if process == 0 { Some(open_log(&self.log_home, &header, newest, checkpoints.url())?) } else { None };
        let begun = opened.as_ref().map(|(log, ..)| log.header().clone());
        // The guard is held until the last commit: a second job must not begin while this one's sinks are at work.
        let (log, mut tape, _guard) = match opened {
            Some((log, tape, guard)) => (Some(log), tape, Some(guard)),
            None => (None, Vec::new(), None),
        };
        let meaning = settings.stages.meaning();
        let stages_behind = |manifest: Option<&Manifest>, tape: &[EpochRecord]| match &begun {
            Some(begun) => stages::Known::new(begun, manifest, tape, &meaning, self.cut != Cut::Replay, &config.stages.abandoned)
                .map_err(|what| self.different(what)),
            // Process 0 tells the others where stages begin.
            None => Ok(stages::Known::default()),
        };
        // Before anything is made in a sink.
        stages_behind(newest_manifest.as_ref(), &tape)?;
        let replayed = tape.last().map_or(newest, |r| r.epoch);
        let (durable, durable_seen) = watch::channel(replayed);

        // Sinks: what they committed is known before the first row moves.
        let hub = Arc::new(SinkHub::new(metrics.clone(), || Utc::now().timestamp_micros()));
        let mine = |stream: usize| (stream % peers) / workers == process;
        let drivers = sinks::drivers(config, &settings, &hub, &metrics, &failure, durable_seen.clone(), mine)?;
        let seen = |d: &Driver| SinkSeen {
            id: d.id(),
            label: d.label.clone(),
            committed: d.committed.subscribe(),
            recorded: d.recorded.subscribe(),
        };
        let seen: Vec<SinkSeen> = drivers.iter().map(seen).collect();
        let committed: Vec<watch::Receiver<Epoch>> = drivers.iter().map(|d| d.committed.subscribe()).collect();
        let recovered = match recover(&runtime, drivers, &self.handles.stop) {
            Ok(recovered) => recovered,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let sinks_through = sinks::through(&recovered);
        if process == 0
            && let Some(message) = sinks_ahead(sinks_through, replayed)
        {
            return Err(JobError::Sink(message));
        }
        let known = sinks::known(&recovered);
        let resumed = checkpoints.resume(&runtime, &header, &known, &settings.stages, process, processes)?;
        let mut resumed = resumed.map(|resumed| resumed.manifest);
        let behind = resumed.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
        if process == 0 && behind < newest {
            tape = epoch_log::read_after(&self.log_home, behind).map_err(|error| match error {
                EpochLogError::Dropped { .. } => JobError::Sink(format!(
                    "some sinks cannot go on from any checkpoint that there is, as the warnings above say, and {error}; fill them by `orderflow backfill`, \
                     or take them out of the settings"
                )),
                error => error.into(),
            })?;
        }
        let stages = stages_behind(resumed.as_ref(), &tape)?;
        let of_checkpoints = stages.in_header(&header);
        if let Some(manifest) = &mut resumed {
            manifest.retain_stages(|stage| meaning.contains_key(stage) && !stages.begins.contains_key(stage));
        }
        let tasks = sinks::start(&runtime, recovered);
        let states = checkpoints::Start {
            process,
            processes,
            sinks: seen,
            header: of_checkpoints,
            log_home: self.log_home.clone(),
            durable: durable_seen,
        };
        let checkpoints::Running { states, trigger, task } = checkpoints.start(config, &runtime, resumed, states, &metrics, &failure)?;

        let head = match log {
            None => None,
            Some(log) => {
                let resumed = states.loader.as_ref().map(|loader| loader.manifest());
                let begun = begun.as_ref().unwrap_or(&header);
                let known = splits::Known::new(&*self.source, begun, &self.starts, resumed, &tape).map_err(|what| self.different(what))?;
                // A checkpoint names the splits and stages of its epoch, and the log those that came later.
                let of_played = known.added_none()
                    && stages.are_as_before()
                    && tape.iter().all(|record| record.splits.is_empty() && record.stages.is_empty());
                let (mut sealer, names) = known.sealer(self.cut, config.epoch.rows_max, tape, resumed);
                stages.tell();
                sealer = sealer.with_stages(stages.changes);
                if let Some(until) = &self.until {
                    let of_split = |name: &String| *until.get(name).expect("inputs that are gone have been refused");
                    sealer = sealer.until(&names.iter().map(of_split).collect::<Vec<_>>());
                }
                let failed = failure.clone();
                let log = LogWriter::start(log, durable.clone(), move |error| match error {
                    EpochLogError::TakenOver { .. } => failed.report_taken_over(error),
                    _ => failed.report(error),
                })
                .map_err(|e| JobError::Start(e.to_string()))?;
                Some(Head {
                    sealer,
                    names,
                    log: Some(log),
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
                        of_played,
                    }),
                })
            }
        };
        if head.is_none() {
            // What process 0 has to take up again, only it knows.
            self.handles.health.set(Phase::Live);
        }
        let plan = WorkerPlan {
            source: self.source.clone(),
            mark_bytes: settings::mark_bytes(config, self.source.splits().len()),
            in_flight: config.epoch.in_flight as u64,
            durable,
            clustered: processes > 1,
            meaning: header.settings.clone(),
            sinks_through,
            stop: self.handles.stop.clone(),
            resumed: states.loader.as_ref().map_or(Epoch(0), |loader| loader.manifest().epoch),
            shared: Shared {
                settings,
                hub: hub.clone(),
                metrics,
                failure: failure.clone(),
                states,
                stage_begins: stages.begins,
                first_worker: process * workers,
            },
        };
        let done = match workers::run(plan, head, workers, &config.job.id, self.cluster.clone(), &failure) {
            Ok(done) => done,
            Err(error) => {
                // A sink may hang in a call that blocks.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        hub.close();

        last_commits(tasks, done, self.rows_total, &committed, &self.handles, &failure);
        // The last checkpoint of a job that was asked to stop, and what is tidied up behind one.
        if let Some(task) = task {
            let (started, longest) = (Instant::now(), if self.live { LAST_CHECKPOINT } else { LEAVE });
            while !task.is_finished() && !failure.is_set() && started.elapsed() < longest {
                std::thread::sleep(POLL);
            }
        }
        if let Some(message) = failure.message() {
            runtime.shutdown_background();
            return Err(JobError::of(&failure, message));
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

impl Job {
    /// The log is of another job than this.
    fn different(&self, what: String) -> JobError {
        JobError::EpochLog(EpochLogError::Different { log: self.log_home.to_string(), what })
    }
}

/// Opens the log behind a checkpoint.
fn open_log(home: &LogHome, header: &LogHeader, checkpoint: Epoch, checkpoints: &str) -> Result<OpenLog, JobError> {
    epoch_log::open_after(home, header, checkpoint).map_err(|error| match error {
        EpochLogError::TooShort { last, .. } => JobError::Failed(format!(
            "the checkpoint of epoch {checkpoint} in {checkpoints} is of this job, but its epoch log ends with epoch {last}: it was lost; put back the \
             folder with the log, or choose another job.id and other tables for a job that begins anew"
        )),
        error => error.into(),
    })
}

/// Asks the sinks what they have committed, until somebody asks the job to stop.
fn recover(runtime: &Runtimes, drivers: Vec<Driver>, stop: &Stop) -> Result<Vec<(Driver, Recovered)>, JobError> {
    let recovered = runtime.block_on(async {
        tokio::select! {
            recovered = sinks::recover(runtime, drivers) => recovered,
            () = stopped(stop) => Err("stopped before all sinks had said what they have; nothing is lost, and the next start goes on".to_owned()),
        }
    });
    recovered.map_err(JobError::Sink)
}

/// Waits until the sinks, whose queues are closed, have committed what was in them.
fn last_commits(
    mut tasks: Vec<JoinHandle<()>>,
    done: Option<HeadSummary>,
    rows_total: Option<u64>,
    committed: &[watch::Receiver<Epoch>],
    handles: &Handles,
    failure: &Failure,
) {
    let (rows_done, epoch) = done.map_or((0, 0), |done| (done.rows, done.last.0));
    while !tasks.is_empty() && !failure.is_set() {
        tasks.retain(|task| !task.is_finished());
        let epoch_committed = committed.iter().map(|c| c.borrow().0).min().unwrap_or(0);
        (handles.progress)(Progress { rows_done, rows_total, epoch, epoch_committed, draining: true });
        std::thread::sleep(POLL);
    }
}

/// Ends when somebody asks the job to.
async fn stopped(stop: &Stop) {
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
    // Once for each epoch, however often it is asked while there is nothing to seal.
    let mut ahead = None;
    Ok(Box::new(move |epoch| {
        let ahead_ms = match ahead {
            Some((of, ahead_ms)) if of == epoch => ahead_ms,
            _ => orderflow_faults::clock_ahead_ms(),
        };
        ahead = Some((epoch, ahead_ms));
        Utc::now().timestamp_millis().saturating_add(ahead_ms)
    }))
}
