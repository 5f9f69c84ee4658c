//! Drives one sink of one stream: when to commit, when to try again, what was committed before.
//!
//! # Design
//!
//! Epochs come in order. Those that the sink has committed in an earlier life are skipped. The others are written, and committed in
//! groups: `interval` after their first rows came, or when `rows_max` rows are written or half of what the queue may hold, so that the other half can fill meanwhile; but
//! only when the epoch log is durable through the group, since a result must not outlive the record of the epoch that it came from. A group that an earlier life began is committed through
//! exactly the epoch that it recorded.
//!
//! A sink that is down is tried again, with a backoff that doubles up to a limit, for as long as it takes: meanwhile its queue fills, and the
//! job holds back. What retrying cannot mend ends the job.
//!
//! A group is committed for its rows: a stream without any leaves no trace of how far it has come. Where that must be known afterwards from the sink
//! alone, the last epoch is [recorded](Driver::records_end) all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::OutputStream;
use orderflow_sinks::{EpochRows, Recovered, Sink, SinkError};
use tokio::sync::watch;

use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::sink_hub::{QueueEnd, SinkHub};

/// When a sink commits and how it is tried again.
#[derive(Clone, Copy, Debug)]
pub struct DriverSettings {
    /// Longest time from an epoch's end until its commit begins, where none is under way: then that one's end.
    pub interval: Duration,
    /// Rows in a group after which it is committed.
    pub rows_max: u64,
    /// Wait after a first failure.
    pub backoff_min: Duration,
    /// Longest wait between two tries.
    pub backoff_max: Duration,
}

/// A sink of a stream with what it needs to go on by itself.
pub struct Driver {
    /// Which sink, which stream, and where.
    pub label: String,
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// Its stream.
    pub stream: OutputStream,
    /// Settings.
    pub settings: DriverSettings,
    /// Where rows come from.
    pub queue: QueueEnd,
    /// Told when there is room again.
    pub hub: Arc<SinkHub>,
    /// How far the epoch log is durable.
    pub durable: watch::Receiver<Epoch>,
    /// How far this sink has committed: nothing that it lacks is in an epoch up to this one.
    pub committed: watch::Sender<Epoch>,
    /// How far it has come by its own store, which is told of epochs with rows.
    pub recorded: watch::Sender<Epoch>,
    /// Whether the sink's own store is told of the last epoch, also where that has no rows.
    pub records_end: bool,
    /// Counters.
    pub metrics: Metrics,
    /// Where to say what cannot be mended.
    pub failure: Failure,
}

/// What a group has come to.
#[derive(Default)]
struct Group {
    rows: u64,
    /// What its deliveries take in the queue until it is committed.
    weight: u64,
    through: Option<Epoch>,
    /// When its first rows came to the queue.
    since: Option<Instant>,
}

/// The job is ending: there is nothing more to do.
struct Ended;

impl Driver {
    /// What a checkpoint knows it by, wherever it is: the kind of sink and the stream.
    pub fn id(&self) -> String {
        format!("{} {}", self.sink.name(), self.stream.name())
    }

    /// Finds out what was committed before.
    pub async fn recover(&mut self) -> Result<Recovered, String> {
        let mut backoff = self.settings.backoff_min;
        loop {
            match self.sink.recover().await {
                Ok(recovered) => return Ok(recovered),
                Err(error @ SinkError::Refused { .. }) => return Err(error.to_string()),
                Err(error) => self.pause(&error, &mut backoff).await.map_err(|Ended| error.to_string())?,
            }
        }
    }

    /// Writes and commits until the queue ends.
    pub async fn run(mut self, recovered: Recovered) {
        let (failure, what) = (self.failure.clone(), format!("sink {}, stream {}", self.sink.name(), self.stream.name()));
        // Whoever ended it has said why.
        if std::panic::AssertUnwindSafe(self.drive(recovered)).catch_unwind().await.is_err() {
            failure.report(format!("{what} failed; this is a bug, please report it"));
        }
    }

    async fn drive(&mut self, recovered: Recovered) -> Result<(), Ended> {
        let Recovered { committed, mut group_through } = recovered;
        self.is_through(committed);
        self.recorded.send_replace(committed);
        let mut alive = Instant::now() + KEEP_ALIVE;
        let mut group = Group::default();
        let mut last = committed;
        // Deliveries that came while a commit was under way. The next group has them all, also where its first ones waited for so long that it is due.
        let mut piled_up = 0_usize;
        loop {
            let deadline = group.since.map(|since| since + self.settings.interval).filter(|_| piled_up == 0);
            let delivery = tokio::select! {
                biased;
                () = sleep_until(Some(alive)), if group.through.is_none() && group_through.is_none() => {
                    alive = Instant::now() + self.keep_alive().await?;
                    continue;
                }
                () = sleep_until(deadline), if group.through.is_some() && group_through.is_none() => None,
                delivery = self.queue.deliveries.recv() => Some(delivery),
            };
            piled_up = piled_up.saturating_sub(1);
            let full = match delivery {
                None => true,
                Some(None) => {
                    // A group that an earlier life began ends at no other epoch; if its rest has not come, it comes in the next life.
                    if group_through.is_none() {
                        if self.records_end && last > committed {
                            group.through = Some(last);
                        }
                        self.commit(&mut group).await?;
                    }
                    return Ok(());
                }
                Some(Some(delivery)) => {
                    let (epoch, at, weight) = (delivery.epoch, delivery.at, delivery.weight());
                    last = last.max(epoch);
                    let begun = group_through == Some(epoch);
                    if begun {
                        group_through = None;
                    }
                    if group_through.is_some() {
                        // It may be larger than the queue of today, and waits for its last epoch alone.
                        self.hub.taken(&self.stream, &self.queue.backlog, weight);
                    } else {
                        group.weight += weight;
                    }
                    if let Some(rows) = delivery.rows.filter(|_| epoch > committed) {
                        group.rows += rows.num_rows() as u64;
                        self.write(epoch, rows).await?;
                        group.since.get_or_insert(at);
                    }
                    if group.rows > 0 || begun {
                        group.through = Some(epoch);
                    } else {
                        // There is nothing to commit.
                        self.hub.taken(&self.stream, &self.queue.backlog, std::mem::take(&mut group.weight));
                        self.is_through(epoch);
                    }
                    self.show_backlog();
                    let enough = group.rows >= self.settings.rows_max || group.weight >= self.queue.backlog.rows_max() / 2;
                    begun || (group_through.is_none() && enough)
                }
            };
            if full {
                self.commit(&mut group).await?;
                piled_up = self.queue.deliveries.len();
                alive = Instant::now() + KEEP_ALIVE;
            }
        }
    }

    /// Nothing up to this epoch is missing.
    fn is_through(&self, epoch: Epoch) {
        if self.committed.send_if_modified(|known| epoch > std::mem::replace(known, epoch.max(*known))) {
            self.metrics.sink_through(self.sink.name(), self.stream.name(), epoch);
        }
    }

    fn show_backlog(&self) {
        self.metrics.sink_backlog(self.sink.name(), self.stream.name(), self.queue.backlog.rows());
    }

    /// Keeps what the sink's store would forget. When to do so again.
    async fn keep_alive(&mut self) -> Result<Duration, Ended> {
        match self.sink.keep_alive().await {
            Ok(()) => Ok(KEEP_ALIVE),
            Err(SinkError::Unavailable { what, reason }) => {
                // The store forgets in days: the job need not hold back for it.
                tracing::warn!(what, reason, retry_in_s = KEEP_ALIVE_RETRY.as_secs(), "the sink's record could not be renewed");
                Ok(KEEP_ALIVE_RETRY)
            }
            Err(error) => {
                self.failure.report(format!("sink {}, stream {}: {error}", self.sink.name(), self.stream.name()));
                Err(Ended)
            }
        }
    }

    async fn write(&mut self, epoch: Epoch, rows: arrow::array::RecordBatch) -> Result<(), Ended> {
        let mut backoff = self.settings.backoff_min;
        loop {
            match self.sink.write(EpochRows { epoch, rows: rows.clone() }).await {
                Ok(()) => return Ok(()),
                Err(error) => self.pause(&error, &mut backoff).await?,
            }
        }
    }

    async fn commit(&mut self, group: &mut Group) -> Result<(), Ended> {
        let Some(through) = group.through else { return Ok(()) };
        loop {
            tokio::select! {
                durable = self.durable.wait_for(|&durable| durable >= through) => {
                    if durable.is_err() {
                        self.failure.report("the epoch log ended before the sinks did; this is a bug, please report it");
                        return Err(Ended);
                    }
                    break;
                }
                () = tokio::time::sleep(FAILURE_CHECK) => if self.failure.is_set() { return Err(Ended) },
            }
        }
        let mut backoff = self.settings.backoff_min;
        let started = Instant::now();
        while let Err(error) = self.sink.commit(through).await {
            self.pause(&error, &mut backoff).await?;
        }
        let took = started.elapsed();
        let (sink, stream) = (self.sink.name(), self.stream.name());
        self.metrics.sink_rows(sink, stream, group.rows);
        tracing::debug!(sink, stream, %through, rows = group.rows, since_first = ?group.since.map(|since| since.elapsed()), ?took, "committed");
        self.metrics.sink_commit(sink, took);
        self.hub.taken(&self.stream, &self.queue.backlog, group.weight);
        self.show_backlog();
        self.is_through(through);
        if self.sink.keeps_record() {
            self.recorded.send_replace(through);
        }
        *group = Group::default();
        if let Err(error) = self.sink.maintain().await {
            // Nothing of the results depends on it; it is due again after the next commit.
            tracing::warn!(sink = self.sink.name(), stream = self.stream.name(), %error, "maintenance failed");
        }
        Ok(())
    }

    async fn pause(&mut self, error: &SinkError, backoff: &mut Duration) -> Result<(), Ended> {
        let (sink, stream) = (self.sink.name(), self.stream.name());
        if matches!(error, SinkError::Refused { .. }) {
            self.failure.report(format!("sink {sink}, stream {stream}: {error}"));
        }
        if self.failure.is_set() {
            return Err(Ended);
        }
        tracing::warn!(sink, stream, %error, retry_in_ms = backoff.as_millis() as u64, "sink unavailable");
        self.metrics.sink_retry(sink, stream);
        self.show_backlog();
        let until = Instant::now() + *backoff;
        while Instant::now() < until {
            tokio::time::sleep(FAILURE_CHECK.min(until - Instant::now())).await;
            if self.failure.is_set() {
                return Err(Ended);
            }
        }
        *backoff = (*backoff * 2).min(self.settings.backoff_max);
        Ok(())
    }
}

/// How often a sink that has nothing to commit renews what its store would forget: brokers keep offsets for a week.
const KEEP_ALIVE: Duration = Duration::from_secs(60 * 60);
/// When it tries again, if it could not.
const KEEP_ALIVE_RETRY: Duration = Duration::from_secs(60);

/// How soon a waiting sink notices that the job is ending.
const FAILURE_CHECK: Duration = Duration::from_millis(100);

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::{Int64Array, RecordBatch};
    use async_trait::async_trait;
    use orderflow_operators::streams::Stream;
    use tokio::sync::{Semaphore, mpsc};
    use tokio::time::timeout;

    use super::*;

    /// A sink whose commits wait until they are let through.
    struct Slow {
        begun: mpsc::UnboundedSender<Epoch>,
        let_through: Arc<Semaphore>,
        written: Arc<Mutex<Vec<Epoch>>>,
    }

    #[async_trait]
    impl Sink for Slow {
        fn name(&self) -> &str {
            "slow"
        }

        async fn recover(&mut self) -> Result<Recovered, SinkError> {
            Ok(Recovered { committed: Epoch(0), group_through: None })
        }

        async fn write(&mut self, rows: EpochRows) -> Result<(), SinkError> {
            self.written.lock().unwrap().push(rows.epoch);
            Ok(())
        }

        async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
            self.begun.send(through).unwrap();
            self.let_through.acquire().await.unwrap().forget();
            Ok(())
        }
    }

    /// Longer than any step of the test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// What waited longer than the interval while a commit was under way is committed at once, and all of it together.
    #[tokio::test]
    async fn what_piled_up_behind_a_slow_commit_is_committed_at_once_and_together() {
        let interval = Duration::from_secs(3);
        let (stream, metrics) = (OutputStream::from(Stream::OrderDecisions), Metrics::new());
        let hub = Arc::new(SinkHub::new(metrics.clone(), || 0));
        let queue = hub.queue(&stream, 1_000_000);
        let (begun, mut commits) = mpsc::unbounded_channel();
        let (let_through, written) = (Arc::new(Semaphore::new(0)), Arc::default());
        let sink = Slow { begun, let_through: let_through.clone(), written: Arc::clone(&written) };
        let (committed, mut through) = watch::channel(Epoch(0));
        let (_durable, durable) = watch::channel(Epoch(100));
        let driver = Driver {
            label: "slow".to_owned(),
            sink: Box::new(sink),
            stream: stream.clone(),
            settings: DriverSettings { interval, rows_max: 1_000_000, backoff_min: interval, backoff_max: interval },
            queue,
            hub: hub.clone(),
            durable,
            committed,
            recorded: watch::Sender::new(Epoch(0)),
            records_end: false,
            metrics,
            failure: Failure::default(),
        };
        let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap();
        let driven = tokio::spawn(driver.run(Recovered { committed: Epoch(0), group_through: None }));
        assert!(hub.offer(&stream, Epoch(1), Some(&rows)));
        assert_eq!(timeout(LONG, commits.recv()).await.unwrap(), Some(Epoch(1)));
        for epoch in 2..=6 {
            assert!(hub.offer(&stream, Epoch(epoch), (epoch % 2 == 0).then_some(&rows)));
        }
        tokio::time::sleep(interval).await;
        let_through.add_permits(1);
        // Not only after another interval.
        assert_eq!(timeout(interval, commits.recv()).await.unwrap(), Some(Epoch(6)));
        assert_eq!(*written.lock().unwrap(), [1, 2, 4, 6].map(Epoch));
        let_through.add_permits(1);
        timeout(LONG, through.wait_for(|&through| through == Epoch(6))).await.unwrap().unwrap();
        driven.abort();
    }
}
