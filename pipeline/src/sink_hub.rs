//! Between the dataflow and the sinks: a bounded queue for each sink of each stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros};
use orderflow_operators::streams::{OutputStream, Stream};
use orderflow_sinks::batches;
use tokio::sync::mpsc;

use crate::dataflow::count_decisions;
use crate::job_plan::DecisionCounts;
use crate::metrics::Metrics;
use crate::stages::REJECTS;

/// What a sink's task is sent: an epoch of its stream, whole.
#[derive(Debug)]
pub struct Delivery {
    /// The epoch.
    pub epoch: Epoch,
    /// Its rows, if it has any.
    pub rows: Option<RecordBatch>,
    /// When it was sent.
    pub at: Instant,
}

impl Delivery {
    /// What it takes in a queue: its rows, where these are not larger than usual; and one, since epochs without rows wait, too.
    pub fn weight(&self) -> u64 {
        1 + self.rows.as_ref().map_or(0, |rows| batches::weight(rows) as u64)
    }
}

/// How many rows (and epochs) wait for a sink, and how many may.
pub struct Backlog {
    rows: AtomicU64,
    rows_max: u64,
}

impl Backlog {
    /// Rows that wait, and epochs.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// How many may wait.
    pub fn rows_max(&self) -> u64 {
        self.rows_max
    }
}

struct Queue {
    deliveries: mpsc::UnboundedSender<Delivery>,
    backlog: Arc<Backlog>,
}

/// The sink's end of a queue.
pub struct QueueEnd {
    /// What was sent. Its length is bounded by the backlog.
    pub deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// What waits.
    pub backlog: Arc<Backlog>,
}

/// Epochs whose rows' arrival is remembered; more than may be in flight.
const ARRIVALS_MAX: usize = 4096;

/// How far a sealing time may be off: it is whole milliseconds of the clock on the wall.
const CLOCKS_DIFFER: Duration = Duration::from_millis(10);

/// The time now, where the process may look at it: operators may not.
pub type WallClock = fn() -> Micros;

/// The queues, and what is known of epochs on their way.
pub struct SinkHub {
    queues: Mutex<HashMap<OutputStream, Vec<Queue>>>,
    on_room: Mutex<HashMap<OutputStream, Box<dyn Fn() + Send>>>,
    arrivals: Mutex<BTreeMap<Epoch, Instant>>,
    decisions: Mutex<DecisionCounts>,
    dead_letters: AtomicU64,
    metrics: Metrics,
    now: WallClock,
}

impl SinkHub {
    /// Without queues.
    pub fn new(metrics: Metrics, now: WallClock) -> Self {
        SinkHub {
            queues: Mutex::default(),
            on_room: Mutex::default(),
            arrivals: Mutex::default(),
            decisions: Mutex::default(),
            dead_letters: AtomicU64::new(0),
            metrics,
            now,
        }
    }

    /// Adds a queue for a sink of `stream` in which `rows_max` rows may wait (and one epoch more).
    pub fn queue(&self, stream: &OutputStream, rows_max: u64) -> QueueEnd {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog { rows: AtomicU64::new(0), rows_max });
        let queue = Queue { deliveries: sender, backlog: backlog.clone() };
        lock(&self.queues).entry(stream.clone()).or_default().push(queue);
        QueueEnd { deliveries, backlog }
    }

    /// Calls `wake` whenever a queue of `stream` has become shorter.
    pub fn on_room(&self, stream: &OutputStream, wake: impl Fn() + Send + 'static) {
        lock(&self.on_room).insert(stream.clone(), Box::new(wake));
    }

    /// Sends an epoch's rows of a stream to all its sinks; false if one of them has no room: then nothing was sent.
    pub fn offer(&self, stream: &OutputStream, epoch: Epoch, rows: Option<&RecordBatch>) -> bool {
        let queues = lock(&self.queues);
        let queues = queues.get(stream).map_or(&[][..], Vec::as_slice);
        if queues.iter().any(|q| q.backlog.rows() >= q.backlog.rows_max) {
            return false;
        }
        let at = Instant::now();
        for queue in queues {
            // A closed queue means that its sink failed and the job is ending.
            let delivery = Delivery { epoch, rows: rows.cloned(), at };
            queue.backlog.rows.fetch_add(delivery.weight(), Ordering::Relaxed);
            let _ = queue.deliveries.send(delivery);
        }
        true
    }

    /// A sink has done with deliveries of `stream` of so much [`weight`](Delivery::weight).
    pub fn taken(&self, stream: &OutputStream, backlog: &Backlog, weight: u64) {
        backlog.rows.fetch_sub(weight, Ordering::Relaxed);
        if let Some(wake) = lock(&self.on_room).get(stream) {
            wake();
        }
    }

    /// An epoch's oldest row in some split arrived at `arrival`.
    pub fn arrived(&self, epoch: Epoch, arrival: Instant) {
        let mut arrivals = lock(&self.arrivals);
        // Where the decisions are another process's, nobody takes them out.
        while arrivals.len() >= ARRIVALS_MAX {
            arrivals.pop_first();
        }
        arrivals.entry(epoch).and_modify(|first| *first = (*first).min(arrival)).or_insert(arrival);
    }

    /// An epoch's rows of a stream have left the operators.
    pub fn decided(&self, stream: &OutputStream, info: &EpochInfo, rows: Option<&RecordBatch>) {
        match stream {
            OutputStream::Own(Stream::OrderDecisions) => {
                if let Some(rows) = rows {
                    let counts = count_decisions(rows);
                    self.metrics.decisions(&counts);
                    lock(&self.decisions).add(&counts);
                }
                let arrival = {
                    let mut arrivals = lock(&self.arrivals);
                    let later = arrivals.split_off(&info.epoch.next());
                    std::mem::replace(&mut *arrivals, later).pop_last().filter(|(epoch, _)| *epoch == info.epoch)
                };
                let since_seal = Duration::from_micros(((self.now)() - info.sealed_at).max(0) as u64);
                let orders = rows.map_or(0, |rows| rows.num_rows() as u64);
                // An epoch that was sealed before its rows came is one of an earlier life: they are here again, and had arrived long before.
                let since_arrival = arrival.map(|(_, first)| first.elapsed()).filter(|since| *since + CLOCKS_DIFFER >= since_seal);
                tracing::debug!(epoch = info.epoch.0, orders, ?since_seal, ?since_arrival, "decided");
                self.metrics.epoch_decided(info.epoch, orders, since_seal, since_arrival);
            }
            OutputStream::Own(Stream::DeadLetters) => {
                self.dead_letters.fetch_add(rows.map_or(0, |r| r.num_rows() as u64), Ordering::Relaxed);
            }
            OutputStream::Stage(stream) if stream.name == REJECTS => {
                if let Some(rows) = rows {
                    self.rejected(rows);
                }
            }
            _ => {}
        }
    }

    /// Counts what stages left out; the log has an example now and then, however many there are.
    fn rejected(&self, rows: &RecordBatch) {
        let column = |name: &str| rows.column_by_name(name).map(|column| column.as_string::<i32>());
        let (Some(stages), Some(kinds)) = (column("stage"), column("kind")) else { return };
        let (Some(details), Some(texts)) = (column("detail"), column("row")) else { return };
        let mut counts: BTreeMap<(&str, &str), (u64, usize)> = BTreeMap::new();
        for row in 0..rows.num_rows() {
            counts.entry((stages.value(row), kinds.value(row))).or_insert((0, row)).0 += 1;
        }
        for ((stage, kind), (count, row)) in counts {
            let total = self.metrics.stage_rejects(stage, kind, count);
            // The first one, and each time that there are ten times as many.
            if total.checked_ilog10() != (total - count).checked_ilog10() {
                let (detail, row) = (details.value(row), texts.value(row));
                tracing::warn!(stage, kind, total, detail, row, "a stage leaves rows out; they are in the stream {REJECTS}");
            }
        }
    }

    /// Decisions so far, and malformed messages.
    pub fn counts(&self) -> (DecisionCounts, u64) {
        (*lock(&self.decisions), self.dead_letters.load(Ordering::Relaxed))
    }

    /// Ends all queues: their sinks commit what they have and end.
    pub fn close(&self) {
        lock(&self.queues).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What it guards is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
