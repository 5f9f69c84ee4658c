//! Filling a sink by playing again what a job has recorded.
//!
//! # Design
//!
//! A backfill is a job that has no life of its own: it takes state from a checkpoint, plays the epochs that the log has behind it, and
//! gives the rows to one sink. It neither writes to the log nor becomes its writer, makes and removes no checkpoint, and ends with the log as that
//! was when it began. So the job itself may run meanwhile, as long as it does not write to the same sink.
//!
//! The sink remembers in its own store how far it has come, as always; at the end, and also where a backfill is stopped, each of its streams
//! is told the last epoch, be there rows in it or not. From there on a job that has this sink, too, goes on from a checkpoint of that epoch or one before.
//!
//! A second backfill of the same sink goes on where the first one ended: from the newest checkpoint that leaves no gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::Recovered;
use tokio::sync::watch;

use super::runtimes::Runtimes;
use super::sinks::Known;
use super::{JobError, checkpoints, last_commits, recover, settings, sinks, sinks_ahead, splits, stages, workers};
use crate::checkpoint::{CheckpointError, CheckpointStore, Loader, Manifest, Resumed};
use crate::config::Config;
use crate::dataflow::{Shared, States};
use crate::epoch_log::{self, EpochLogError, EpochRecord, LogHeader, LogHome};
use crate::failure::Failure;
use crate::job_plan::{BackfillFrom, BackfillPlan, Summary};
use crate::metrics::cpu_seconds;
use crate::sealer::{Cut, SplitStart};
use crate::sink_driver::Driver;
use crate::sink_hub::SinkHub;
use crate::source::{FileSource, KafkaSource, Source};
use crate::status::Phase;
use crate::worker::{Head, WorkerPlan};

/// What is read of a job, and where.
struct Recorded {
    source: Arc<dyn Source>,
    /// Where a new job would start, by split.
    starts: Vec<SplitStart>,
    /// By topic, what tells it from another one of its name.
    topics: BTreeMap<String, String>,
    log_home: LogHome,
    live: bool,
}

impl Recorded {
    /// The job of these settings; what they leave out of where its results and checkpoints are is filled in.
    fn open(plan: &BackfillPlan, config: &mut Config) -> Result<Recorded, JobError> {
        let limits = settings::source_limits(config);
        let folder = plan.replay.as_ref().map_or(&config.job.data_dir, |replay| &replay.out).clone();
        let log_home = if plan.replay.is_some() { LogHome::Folder(folder.clone()) } else { settings::log_home(config) };
        // Before anything makes it.
        if let LogHome::Folder(folder) = &log_home
            && !folder.is_dir()
        {
            return Err(EpochLogError::Missing { log: folder.display().to_string() }.into());
        }
        if config.sinks.delta.url.is_empty() {
            config.sinks.delta.url = folder.join("delta").display().to_string();
        }
        if config.checkpoint.url.is_empty() {
            config.checkpoint.url = checkpoints::folder(&folder);
        }
        let start = |offset| SplitStart { offset, weight: 1, opening: false };
        Ok(match &plan.replay {
            Some(replay) => {
                let source = FileSource::open_folder(&replay.input, limits)?;
                let starts = source.splits().iter().map(|_| start(0)).collect();
                Recorded { source: Arc::new(source), starts, topics: BTreeMap::new(), log_home, live: false }
            }
            None => {
                let source = KafkaSource::connect(settings::kafka(config), limits)?;
                let starts = source.start_offsets()?.into_iter().map(start).collect();
                let topics = source.identities().clone();
                Recorded { source: Arc::new(source), starts, topics, log_home, live: true }
            }
        })
    }

    /// What the log was begun with, and its epochs behind `base`.
    fn tape(&self, base: Epoch, header: &LogHeader) -> Result<(LogHeader, Vec<EpochRecord>), JobError> {
        let (begun, tape) = epoch_log::read_with_header(&self.log_home, base)?;
        if let Some(what) = begun.difference(header) {
            return Err(JobError::Setting(format!("the epoch log in {} cannot be played: {what}", self.log_home)));
        }
        Ok((begun, tape))
    }
}

/// Fills the sink, through the last epoch that the log has at the start.
///
/// # Errors
/// With one message that says what to do. The same command then goes on where it was.
pub fn backfill(plan: BackfillPlan) -> Result<Summary, JobError> {
    let (started, cpu_before) = (Instant::now(), cpu_seconds());
    let mut config = plan.config.clone();
    config.sinks.only(plan.sink);
    let recorded = Recorded::open(&plan, &mut config)?;
    let handles = &plan.handles;
    handles.health.set(Phase::Recovering);
    let mut settings = settings::operators(&config, recorded.live)?;
    settings.stages.print_nothing();
    let settings = Arc::new(settings);
    let header = settings::header(&config, &settings, &*recorded.source, &recorded.starts, &recorded.topics);
    let store = checkpoints::store(&config, &config.job.data_dir)?;
    let runtime = Runtimes::start(config.job.worker_count())?;
    // Before anything is made in the sink: whether this is the job that was recorded.
    let asked_for = runtime.block_on(asked_for(&store, &header, &plan.from))?;
    let behind = asked_for.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
    let (begun, mut tape) = recorded.tape(behind, &header)?;
    let end = tape.last().map_or(behind, |record| record.epoch);

    let (failure, metrics) = (Failure::default(), handles.metrics.clone());
    let hub = Arc::new(SinkHub::new(metrics.clone(), || Utc::now().timestamp_micros()));
    // All that is played is in the log, and durable.
    let (durable, durable_seen) = watch::channel(Epoch(0));
    let mut drivers = sinks::drivers(&config, &settings, &hub, &metrics, &failure, durable_seen, |_| true)?;
    drivers.iter_mut().for_each(|driver| driver.records_end = true);
    let committed: Vec<watch::Receiver<Epoch>> = drivers.iter().map(|driver| driver.committed.subscribe()).collect();
    let prepared = recover(&runtime, drivers, &handles.stop).and_then(|recovered| {
        if let Some(message) = sinks_ahead(sinks::through(&recovered), end) {
            return Err(JobError::Sink(message));
        }
        let known = sinks::known(&recovered);
        let base = runtime.block_on(async {
            if !is_filled(&recovered, end) {
                not_the_jobs_own(&store, &known).await?;
            }
            base(&store, &header, asked_for, &known).await
        })?;
        Ok((recovered, base))
    });
    let (recovered, base) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            // A sink may hang in a call that blocks.
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let nothing = Summary { epochs: end.0, epochs_replayed: end.0, ..Summary::default() };
    if is_filled(&recovered, end) {
        tracing::info!(epoch = end.0, "the sink has everything already");
        return Ok(nothing);
    }
    let behind = base.as_ref().map_or(Epoch(0), |base| base.epoch);
    tape.retain(|record| record.epoch > behind);
    tracing::info!(behind = behind.0, through = end.0, "filling the sink");

    durable.send_replace(end);
    let sinks_through = sinks::through(&recovered);
    let rows_total = Some(tape.iter().map(EpochRecord::offsets).sum());
    let unplayable = |what: String| JobError::Setting(format!("the epoch log in {} cannot be played: {what}", recorded.log_home));
    let known = splits::Known::new(&*recorded.source, &begun, &recorded.starts, base.as_ref(), &tape).map_err(unplayable)?;
    let stages = stages::Known::new(&begun, base.as_ref(), &tape, &settings.stages.meaning(), false, &[]).map_err(unplayable)?;
    let (sealer, names) = known.of_the_log().sealer(Cut::Recorded, config.epoch.rows_max, tape, base.as_ref());
    let head = Head {
        sealer,
        names,
        log: None,
        clock: Box::new(|_| 0),
        stop: handles.stop.clone(),
        progress: handles.progress.clone(),
        committed: committed.clone(),
        rows_total,
        health: handles.health.clone(),
        checkpoints: None,
    };
    let loader = base.map(|manifest| Loader::new(store, manifest, runtime.handle().clone()));
    let tasks = sinks::start(&runtime, recovered);
    let worker_plan = WorkerPlan {
        mark_bytes: settings::mark_bytes(&config, recorded.source.splits().len()),
        source: recorded.source,
        in_flight: config.epoch.in_flight as u64,
        durable,
        clustered: false,
        meaning: header.settings.clone(),
        sinks_through,
        resumed: behind,
        stop: handles.stop.clone(),
        shared: Shared {
            settings,
            hub: hub.clone(),
            metrics,
            failure: failure.clone(),
            states: States { loader, writers: None },
            stage_begins: stages.begins,
            first_worker: 0,
        },
    };
    let done = match workers::run(worker_plan, Some(head), config.job.worker_count(), &config.job.id, None, &failure) {
        Ok(done) => done,
        Err(error) => {
            runtime.shutdown_background();
            return Err(error);
        }
    };
    hub.close();
    last_commits(tasks, done, rows_total, &committed, handles, &failure);
    if let Some(message) = failure.message() {
        runtime.shutdown_background();
        return Err(JobError::of(&failure, message));
    }
    runtime.shutdown_timeout(super::LEAVE);
    let (decisions, dead_letters) = hub.counts();
    let done = done.unwrap_or_default();
    Ok(Summary {
        rows_in: done.rows,
        decisions,
        dead_letters,
        unknown_fields: handles.metrics.unknown_fields(),
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds() - cpu_before,
        stopped: done.stopped && done.last < end,
        ..nothing
    })
}

fn is_filled(recovered: &[(Driver, Recovered)], end: Epoch) -> bool {
    recovered.iter().all(|(_, known)| known.committed >= end)
}

/// The checkpoint that was asked for; none for the start.
async fn asked_for(store: &CheckpointStore, header: &LogHeader, from: &BackfillFrom) -> Result<Option<Manifest>, JobError> {
    let BackfillFrom::Checkpoint(wanted) = from else { return Ok(None) };
    let found = store.find(wanted).await?;
    Ok(Some(store.of_job(Resumed::whole(store, &found).await?.manifest, header)?))
}

/// The state to begin with: that of the checkpoint that was asked for or, where the sink is further already, of a newer one.
async fn base(
    store: &CheckpointStore,
    header: &LogHeader,
    asked_for: Option<Manifest>,
    sinks: &[Known],
) -> Result<Option<Manifest>, JobError> {
    let behind = asked_for.as_ref().map_or(Epoch(0), |manifest| manifest.epoch);
    // A sink that has nothing is to begin here. One that has something must not lack what comes then.
    if let Some(Known { label, committed, .. }) = sinks.iter().find(|sink| sink.committed > Epoch(0) && sink.committed < behind) {
        return Err(JobError::Setting(format!(
            "sink {label} has committed through epoch {committed} and would lack what is behind it up to epoch {behind}: choose a checkpoint of \
             epoch {committed} or before, `start`, or an empty sink"
        )));
    }
    let filled = sinks.iter().map(|sink| sink.committed).min().unwrap_or_default();
    for listed in store.list().await?.into_iter().filter(|listed| listed.epoch > behind && listed.epoch <= filled) {
        match Resumed::whole(store, &listed).await {
            Ok(resumed) if resumed.manifest.header.difference(header).is_none() => return Ok(Some(resumed.manifest)),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a checkpoint is passed over"),
        }
    }
    Ok(asked_for)
}

/// Refuses a sink that the job writes to: the two would get into each other's way. If the newest checkpoint that can be read names it, but it has not even what was
/// before that checkpoint, then it was emptied or restored, and the job needs it filled.
async fn not_the_jobs_own(store: &CheckpointStore, sinks: &[Known]) -> Result<(), JobError> {
    let mut damaged = None;
    let mut newest = None;
    for listed in store.list().await?.iter().filter(|listed| listed.name.is_none()) {
        match store.manifest(listed).await {
            Ok(manifest) => {
                newest = Some(manifest);
                break;
            }
            // Or just removed, as the job that runs has made newer ones.
            Err(error @ CheckpointError::Damaged { .. }) => damaged = damaged.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    let manifest = match (newest, damaged) {
        (Some(manifest), _) => manifest,
        (None, Some(error)) => return Err(error.into()),
        (None, None) => return Ok(()),
    };
    let is_its_own = |sink: &&Known| {
        let named = manifest.sinks.get(&sink.id).is_some_and(|then| then.label == sink.label);
        named && sink.committed >= manifest.epoch
    };
    match sinks.iter().find(is_its_own) {
        Some(Known { label, .. }) => Err(JobError::Setting(format!(
            "the job writes to sink {label} itself, as its checkpoint of epoch {} says: it needs no backfill; to fill another one, change the sink's \
             settings",
            manifest.epoch
        ))),
        None => Ok(()),
    }
}
