//! From the settings to checkpoints that are taken up and made.

use std::path::Path;

use orderflow_operators::epoch::Epoch;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::JobError;
use super::sinks::Known;
use super::stages::is_in;
use crate::checkpoint::{
    CheckpointError, CheckpointStore, Coordinator, CoordinatorSettings, Loader, Manifest, RecorderSettings, Resumed, SinkSeen, Trigger,
    Writers,
};
use crate::config::Config;
use crate::dataflow::States;
use crate::epoch_log::{Dropper, LogHeader, LogHome};
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::stages::Stages;

/// A group is written whole again after so many checkpoints at the latest: that bounds the files of a checkpoint.
const BASE_CHECKPOINTS_MAX: u64 = 32;

/// Where a job in this folder keeps its checkpoints, unless the settings say otherwise.
pub(super) fn folder(of_job: &Path) -> String {
    of_job.join("checkpoints").display().to_string()
}

/// The store of the checkpoints of the job in a folder.
pub(super) fn store(config: &Config, of_job: &Path) -> Result<CheckpointStore, CheckpointError> {
    let checkpoint = &config.checkpoint;
    let address = if checkpoint.url.is_empty() { folder(of_job) } else { checkpoint.url.clone() };
    CheckpointStore::open(&address, &checkpoint.storage.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// A job's checkpoints before it runs.
pub(super) struct Checkpoints {
    store: CheckpointStore,
}

/// What is known when they start.
pub(super) struct Start {
    pub process: usize,
    pub processes: usize,
    /// This process's sinks.
    pub sinks: Vec<SinkSeen>,
    pub header: LogHeader,
    /// Where process 0 keeps the epoch log.
    pub log_home: LogHome,
    pub durable: watch::Receiver<Epoch>,
}

/// A job's checkpoints while it runs.
pub(super) struct Running {
    pub states: States,
    pub trigger: Option<Trigger>,
    /// Ends when there is nothing more to make a checkpoint of.
    pub task: Option<JoinHandle<()>>,
}

impl Checkpoints {
    pub fn open(config: &Config) -> Result<Checkpoints, JobError> {
        Ok(Checkpoints { store: store(config, &config.job.data_dir)? })
    }

    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// The newest one, whole or not.
    pub fn newest(&self, runtime: &Runtime, header: &LogHeader) -> Result<Option<Manifest>, JobError> {
        Ok(runtime.block_on(Resumed::newest_manifest(&self.store, header))?)
    }

    /// The newest one from which all of `sinks` can go on: those that had committed through its epoch when it was made and have not lost any of it, and
    /// those that say now that they have. The first is more, as a sink commits nothing where its stream has no rows; the second takes in a sink that
    /// was filled otherwise. What only stages write that come after it lacks nothing.
    pub fn resume(
        &self,
        runtime: &Runtime,
        header: &LogHeader,
        sinks: &[Known],
        stages: &Stages,
        process: usize,
        processes: usize,
    ) -> Result<Option<Resumed>, JobError> {
        let comes_after = |sink: &Known, manifest: &Manifest| {
            let writers = stages.writers(sink.stream.name());
            !writers.is_empty() && writers.iter().all(|stage| !is_in(stage, manifest))
        };
        let lacks = |sink: &Known, manifest: &Manifest| match manifest.sinks.get(&sink.id) {
            _ if !sink.keeps_record => false,
            Some(then) => sink.committed < then.recorded,
            None => sink.committed < manifest.epoch && !comes_after(sink, manifest),
        };
        let usable = |manifest: &Manifest| match sinks.iter().find(|sink| lacks(sink, manifest)) {
            Some(Known { label, committed, .. }) => {
                Err(format!("sink {label} lacks what came before it (it has committed through epoch {committed})"))
            }
            None => Ok(()),
        };
        if processes == 1 {
            return Ok(runtime.block_on(Resumed::newest(&self.store, header, true, usable))?);
        }
        // All processes must take the same one, and each knows its own sinks only.
        let resumed = runtime.block_on(Resumed::newest(&self.store, header, process == 0, |_| Ok(())))?;
        if let Some(Err(why)) = resumed.as_ref().map(|resumed| usable(&resumed.manifest)) {
            return Err(JobError::Sink(format!(
                "{why}: fill it by `orderflow backfill`, or start the job once as one process, which plays the epochs that it lacks"
            )));
        }
        Ok(resumed)
    }

    pub fn start(
        self,
        config: &Config,
        runtime: &Runtime,
        resumed: Option<Manifest>,
        start: Start,
        metrics: &Metrics,
        failure: &Failure,
    ) -> Result<Running, JobError> {
        let Start { process, processes, sinks, header, log_home, durable } = start;
        if let Some(manifest) = &resumed {
            tracing::info!(epoch = manifest.epoch.0, bytes = manifest.bytes(), "going on from a checkpoint");
        }
        let loader = resumed.clone().map(|manifest| Loader::new(self.store.clone(), manifest, runtime.handle().clone()));
        if config.checkpoint.interval.as_micros() == 0 {
            return Ok(Running { states: States { loader, writers: None }, trigger: None, task: None });
        }
        let settings = RecorderSettings {
            waiting_bytes_max: config.checkpoint.buffer_bytes_max.as_usize(),
            base_checkpoints_max: BASE_CHECKPOINTS_MAX,
        };
        let last = resumed.unwrap_or_else(|| Manifest::nothing(header.clone()));
        let (writers, finished) = Writers::new(runtime.handle().clone(), self.store.clone(), settings, last.epoch);
        runtime.block_on(self.store.forget_life(process))?;
        let coordinator = Coordinator {
            settings: CoordinatorSettings { process, processes, keep: config.checkpoint.keep, header },
            store: self.store,
            writers: writers.count(),
            finished,
            last,
            sinks,
            dropper: Dropper::new(&log_home, config.epoch_log.keep.as_duration()).filter(|_| process == 0),
            durable,
            metrics: metrics.clone(),
            failure: failure.clone(),
        };
        let (trigger, task) = coordinator.start(runtime.handle());
        Ok(Running { states: States { loader, writers: Some(writers) }, trigger: Some(trigger), task: Some(task) })
    }
}
