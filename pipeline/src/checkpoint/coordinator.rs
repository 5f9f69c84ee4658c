//! Makes checkpoints of what the writers have written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::watermark::WatermarkState;
use tokio::sync::{mpsc, watch};

use super::CheckpointError;
use super::manifest::{Manifest, Part, SinkThen};
use super::store::CheckpointStore;
use super::writer::Finished;
use crate::epoch_log::{Dropper, LogHeader};
use crate::failure::Failure;
use crate::metrics::Metrics;

/// What a coordinator is told once.
pub struct CoordinatorSettings {
    /// Which process this is, and of how many.
    pub process: usize,
    /// Processes of the job.
    pub processes: usize,
    /// How many checkpoints are kept.
    pub keep: usize,
    /// The job, its splits, the settings on which results depend.
    pub header: LogHeader,
}

/// An epoch of which a checkpoint is to be.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub epoch: Epoch,
    pub sealed_at: i64,
    /// The splits that there are, by number.
    pub splits: Vec<String>,
    /// Where the next epoch begins, by split.
    pub offsets: Vec<i64>,
}

/// The sealer's side: begins checkpoints, one at a time.
#[derive(Clone)]
pub(crate) struct Trigger {
    begun: mpsc::UnboundedSender<Begun>,
    under_way: Arc<AtomicBool>,
    /// Changes of orders up to this epoch are missing.
    lost: Arc<AtomicU64>,
}

impl Trigger {
    /// Whether one is being made.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire)
    }

    /// Up to which epoch changes of orders are missing, so that the windows of the fraud features must be written anew; 0: nothing is missing.
    pub fn orders_lost(&self) -> Epoch {
        Epoch(self.lost.load(Ordering::Acquire))
    }

    /// A checkpoint is of the state after this epoch.
    pub fn begin(&self, begun: Begun) {
        self.under_way.store(true, Ordering::Release);
        // The coordinator ends when the job does.
        let _ = self.begun.send(begun);
    }
}

/// A sink as checkpoints see it.
#[derive(Clone, Debug)]
pub(crate) struct SinkSeen {
    /// Its kind and its stream.
    pub id: String,
    /// Which sink, which stream, and where.
    pub label: String,
    /// How far it has committed.
    pub committed: watch::Receiver<Epoch>,
    /// How far it has come by its own store.
    pub recorded: watch::Receiver<Epoch>,
}

/// Each process has one; that of process 0 makes the manifests.
pub struct Coordinator {
    pub(crate) settings: CoordinatorSettings,
    pub(crate) store: CheckpointStore,
    /// Operators on workers of this process, and the clock.
    pub(crate) writers: Arc<AtomicUsize>,
    pub(crate) finished: mpsc::UnboundedReceiver<Finished>,
    /// The checkpoint that the next one goes on from.
    pub(crate) last: Manifest,
    /// This process's sinks.
    pub(crate) sinks: Vec<SinkSeen>,
    /// Of epochs that no checkpoint needs.
    pub(crate) dropper: Option<Dropper>,
    /// How far the epoch log is durable.
    pub(crate) durable: watch::Receiver<Epoch>,
    pub(crate) metrics: Metrics,
    pub(crate) failure: Failure,
}

/// First and longest wait between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The job is ending.
struct Ended;

impl Coordinator {
    /// Makes checkpoints until the job ends; and the trigger for it.
    pub(crate) fn start(self, runtime: &tokio::runtime::Handle) -> (Trigger, tokio::task::JoinHandle<()>) {
        let (begun, queue) = mpsc::unbounded_channel();
        let trigger = Trigger { begun, under_way: Arc::default(), lost: Arc::default() };
        let shared = trigger.clone();
        let task = runtime.spawn(async move {
            let Trigger { under_way, lost, .. } = shared;
            let mut coordinator = self;
            let _ended = coordinator.run(queue, under_way, lost).await;
            if let Some(dropper) = coordinator.dropper {
                dropper.finish().await;
            }
        });
        (trigger, task)
    }

    async fn run(
        &mut self,
        mut begun: mpsc::UnboundedReceiver<Begun>,
        under_way: Arc<AtomicBool>,
        told_lost: Arc<AtomicU64>,
    ) -> Result<(), Ended> {
        let mut own: BTreeMap<Epoch, (usize, Part, Option<WatermarkState>)> = BTreeMap::new();
        // What was written since the last manifest.
        let mut pending = Part::default();
        let mut orders_lost: Option<Epoch> = None;
        while let Some(Finished { epoch, part, watermark }) = self.finished.recv().await {
            let (count, whole, clock) = own.entry(epoch).or_default();
            *count += 1;
            merge(whole, part);
            *clock = clock.take().or(watermark);
            if *count < self.writers.load(Ordering::Acquire) {
                continue;
            }
            let started = Instant::now();
            let Some((_, mut part, watermark)) = own.remove(&epoch) else { continue };
            self.sinks_through(epoch).await?;
            let then = |sink: &SinkSeen| SinkThen { label: sink.label.clone(), recorded: *sink.recorded.borrow() };
            part.sinks = self.sinks.iter().map(|sink| (sink.id.clone(), then(sink))).collect();
            if self.settings.process > 0 {
                let (store, process) = (&self.store, self.settings.process);
                self.until_done(|| store.put_part(epoch, process, &part).map_ok(Some).boxed()).await?;
                continue;
            }
            merge(&mut pending, part);
            for process in 1..self.settings.processes {
                merge(&mut pending, self.until_done(|| self.store.part(epoch, process).boxed()).await?);
            }
            // The sealer began it before any operator could end it.
            let Some(begun) = begun.recv().await else { return Ok(()) };
            debug_assert_eq!(begun.epoch, epoch);
            orders_lost = orders_lost.max(pending.orders_lost.take());
            if let Some(lost) = orders_lost {
                if self.last.does_without(lost, &pending) {
                    orders_lost = None;
                } else {
                    told_lost.store(lost.0, Ordering::Release);
                    let why = || format!("changes of orders up to epoch {lost} are missing, what rests on them is written anew");
                    pending.incomplete.get_or_insert_with(why);
                }
            }
            match pending.incomplete.take() {
                Some(why) => tracing::warn!(epoch = epoch.0, why, "no checkpoint could be made of this epoch"),
                None => {
                    self.durable_through(epoch).await?;
                    self.commit(begun, watermark.unwrap_or_default(), std::mem::take(&mut pending), started).await?;
                }
            }
            under_way.store(false, Ordering::Release);
        }
        Ok(())
    }

    async fn commit(&mut self, begun: Begun, watermark: WatermarkState, part: Part, started: Instant) -> Result<(), Ended> {
        let mut manifest = self.last.clone();
        (manifest.epoch, manifest.sealed_at, manifest.offsets) = (begun.epoch, begun.sealed_at, begun.offsets);
        manifest.created_at = Utc::now().timestamp_millis();
        manifest.header = LogHeader { splits: begun.splits, ..self.settings.header.clone() };
        manifest.watermark = watermark;
        manifest.sinks.clear();
        let bytes: u64 = part.files.values().map(|file| file.bytes).sum();
        manifest.extend(part);
        debug_assert_eq!(manifest.fault(), None);
        // One that is there already is of the same state: an earlier life made it.
        let made = self.until_done(|| self.store.commit(&manifest).map_ok(Some).boxed()).await?;
        self.last = manifest;
        self.metrics.checkpoint(begun.epoch, bytes, self.last.bytes(), started.elapsed());
        tracing::info!(epoch = begun.epoch.0, bytes, seconds = started.elapsed().as_secs_f64(), made, "checkpoint");
        if let Err(error) = self.store.collect_garbage(self.settings.keep, begun.epoch).await {
            // It is due again after the next one.
            tracing::warn!(%error, "old checkpoints could not be removed");
        }
        self.drop_old_epochs(begun.sealed_at).await;
        Ok(())
    }

    async fn drop_old_epochs(&mut self, now: i64) {
        let Some(dropper) = self.dropper.as_mut().filter(|dropper| dropper.is_due()) else { return };
        match self.store.list().await {
            Ok(listed) => listed.last().into_iter().for_each(|oldest| dropper.start(oldest.epoch, now)),
            Err(error) => tracing::warn!(%error, "old epochs could not be dropped"),
        }
    }

    async fn sinks_through(&mut self, epoch: Epoch) -> Result<(), Ended> {
        for sink in &mut self.sinks {
            through(&mut sink.committed, epoch, &self.failure).await?;
        }
        Ok(())
    }

    async fn durable_through(&mut self, epoch: Epoch) -> Result<(), Ended> {
        through(&mut self.durable, epoch, &self.failure).await
    }

    /// Tries until there is something, for as long as the job lives: meanwhile there is no newer checkpoint, and that is all.
    async fn until_done<'a, T>(&self, step: impl Fn() -> Step<'a, T>) -> Result<T, Ended> {
        let (mut wait, longest) = BACKOFF;
        loop {
            match step().await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "a checkpoint waits");
                    self.metrics.checkpoint_failed();
                }
            }
            if self.failure.is_set() {
                return Err(Ended);
            }
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(longest);
        }
    }
}

/// Something that may fail, and may not be there yet.
type Step<'a, T> = BoxFuture<'a, Result<Option<T>, CheckpointError>>;

async fn through(seen: &mut watch::Receiver<Epoch>, epoch: Epoch, failure: &Failure) -> Result<(), Ended> {
    loop {
        let waited = tokio::time::timeout(BACKOFF.1, seen.wait_for(|&seen| seen >= epoch)).await.map(|seen| seen.is_ok());
        match waited {
            Ok(true) => return Ok(()),
            // Who would tell has ended.
            Ok(false) => return Err(Ended),
            Err(_) if failure.is_set() => return Err(Ended),
            Err(_) => {}
        }
    }
}

/// Adds what a writer or a process has written.
fn merge(whole: &mut Part, part: Part) {
    whole.files.extend(part.files);
    for (operator, bases) in part.bases {
        whole.bases.entry(operator).or_default().extend(bases);
    }
    whole.sinks.extend(part.sinks);
    whole.incomplete = whole.incomplete.take().or(part.incomplete);
    whole.orders_lost = whole.orders_lost.max(part.orders_lost);
}
