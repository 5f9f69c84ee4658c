//! Between the dataflow and the sinks: a bounded queue for each sink of each stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::array::RecordBatch;
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros};
use orderflow_operators::streams::Stream;
use tokio::sync::mpsc;

use crate::dataflow::count_decisions;
use crate::job_plan::DecisionCounts;
use crate::metrics::Metrics;

/// What a sink's task is sent.
#[derive(Debug)]
pub enum Delivery {
    /// A stream's rows of an epoch.
    Rows(Epoch, RecordBatch),
    /// All of the epoch has been sent.
    Through(Epoch),
}

/// How many rows wait for a sink, and how many may.
pub struct Backlog {
    rows: AtomicU64,
    rows_max: u64,
}

impl Backlog {
    /// Rows that wait.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }
}

struct Queue {
    deliveries: mpsc::UnboundedSender<Delivery>,
    backlog: Arc<Backlog>,
}

/// The sink's end of a queue.
pub struct QueueEnd {
    /// What was sent. Its length is bounded by the backlog's rows and the epochs in flight.
    pub deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// What waits.
    pub backlog: Arc<Backlog>,
}

/// The time now, where the process may look at it: operators may not.
pub type WallClock = fn() -> Micros;

/// The queues, and what is known of epochs on their way.
pub struct SinkHub {
    queues: Mutex<HashMap<Stream, Vec<Queue>>>,
    on_room: Mutex<HashMap<Stream, Box<dyn Fn() + Send>>>,
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
    pub fn queue(&self, stream: Stream, rows_max: u64) -> QueueEnd {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog { rows: AtomicU64::new(0), rows_max });
        let queue = Queue { deliveries: sender, backlog: backlog.clone() };
        lock(&self.queues).entry(stream).or_default().push(queue);
        QueueEnd { deliveries, backlog }
    }

    /// Calls `wake` whenever a queue of `stream` has become shorter.
    pub fn on_room(&self, stream: Stream, wake: impl Fn() + Send + 'static) {
        lock(&self.on_room).insert(stream, Box::new(wake));
    }

    /// Sends an epoch's rows of a stream to all its sinks; false if one of them has no room: then nothing was sent.
    pub fn offer(&self, stream: Stream, epoch: Epoch, rows: Option<&RecordBatch>) -> bool {
        let queues = lock(&self.queues);
        let queues = queues.get(&stream).map_or(&[][..], Vec::as_slice);
        if queues.iter().any(|q| q.backlog.rows() >= q.backlog.rows_max) {
            return false;
        }
        for queue in queues {
            // A closed queue means that its sink failed and the job is ending.
            if let Some(rows) = rows {
                queue.backlog.rows.fetch_add(rows.num_rows() as u64, Ordering::Relaxed);
                let _ = queue.deliveries.send(Delivery::Rows(epoch, rows.clone()));
            }
            let _ = queue.deliveries.send(Delivery::Through(epoch));
        }
        true
    }

    /// A sink has done with `rows` rows of `stream`.
    pub fn taken(&self, stream: Stream, backlog: &Backlog, rows: u64) {
        backlog.rows.fetch_sub(rows, Ordering::Relaxed);
        if let Some(wake) = lock(&self.on_room).get(&stream) {
            wake();
        }
    }

    /// An epoch's oldest row in some split arrived at `arrival`.
    pub fn arrived(&self, epoch: Epoch, arrival: Instant) {
        let mut arrivals = lock(&self.arrivals);
        arrivals.entry(epoch).and_modify(|first| *first = (*first).min(arrival)).or_insert(arrival);
    }

    /// An epoch's rows of a stream have left the operators.
    pub fn decided(&self, stream: Stream, info: &EpochInfo, rows: Option<&RecordBatch>) {
        match stream {
            Stream::OrderDecisions => {
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
                let since_seal = std::time::Duration::from_micros(((self.now)() - info.sealed_at).max(0) as u64);
                self.metrics.epoch_decided(info.epoch, since_seal, arrival.map(|(_, first)| first.elapsed()));
            }
            Stream::DeadLetters => {
                self.dead_letters.fetch_add(rows.map_or(0, |r| r.num_rows() as u64), Ordering::Relaxed);
            }
            _ => {}
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
