//! A job's latencies, of the times in which the machine did not stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use orderflow::metrics::{Latency, LatencyHistogram, Metrics};

use crate::stalls::Meter;

/// How finely latencies are told apart by time.
const SLICE: Duration = Duration::from_millis(100);

/// Tells them apart while a job runs.
pub struct Calm {
    ended: Arc<AtomicBool>,
    slicer: thread::JoinHandle<LatencyHistogram>,
}

impl Calm {
    /// Watches until [`Calm::end`]. `None` without the right to run ahead of other threads.
    pub fn watch(metrics: Metrics) -> Option<Calm> {
        let meter = Meter::start()?;
        let ended = Arc::new(AtomicBool::new(false));
        let slicer = thread::spawn({
            let ended = ended.clone();
            move || {
                let (mut calm, mut before) = (LatencyHistogram::default(), metrics.latencies());
                while !ended.load(Ordering::Relaxed) {
                    thread::sleep(SLICE);
                    let now = metrics.latencies();
                    if meter.is_calm(SLICE) {
                        calm.add(&now.since(&before));
                    }
                    before = now;
                }
                calm
            }
        });
        Some(Calm { ended, slicer })
    }

    /// What was seen, and which share of `all` it is.
    pub fn end(self, all: &LatencyHistogram) -> (Latency, f64) {
        self.ended.store(true, Ordering::Relaxed);
        let calm = self.slicer.join().unwrap_or_default();
        (calm.quantiles().unwrap_or_default(), calm.rows() as f64 / all.rows().max(1) as f64)
    }
}
