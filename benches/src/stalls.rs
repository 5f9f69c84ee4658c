//! When the machine itself stood still: a virtual one does, when its host gives the time to others.
//!
//! A thread a core, ahead of all others (`SCHED_FIFO`), asks to be woken each millisecond, as `cyclictest` does. Load of the machine's own hardly ever makes it
//! late.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Between two wakings.
const TICK: Duration = Duration::from_millis(1);
/// So late, it was not the job.
const LATE: Duration = Duration::from_millis(4);
/// How long a stall shows behind its end: in what had to wait.
const AFTER: Duration = Duration::from_millis(500);
const PRIORITY: libc::c_int = 50;

/// Knows when a core was last late.
pub struct Meter {
    begun: Instant,
    /// Microseconds since then; 0 for never.
    last_stall: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Meter {
    /// Measures until it is dropped. `None` without the right to run ahead of other threads.
    pub fn start() -> Option<Meter> {
        let begun = Instant::now();
        let (last_stall, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut all_ahead = true;
        for core in 0..cores {
            let (sender, ahead) = mpsc::channel();
            let (ended, last_stall) = (ended.clone(), last_stall.clone());
            thread::spawn(move || {
                let may = run_ahead(core);
                let _ = sender.send(may);
                let mut due = Instant::now();
                while may && !ended.load(Ordering::Relaxed) {
                    due += TICK;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let now = Instant::now();
                    if now.saturating_duration_since(due) >= LATE {
                        last_stall.store((now - begun).as_micros() as u64, Ordering::Relaxed);
                        due = now;
                    }
                }
            });
            all_ahead &= ahead.recv().unwrap_or(false);
        }
        all_ahead.then_some(Meter { begun, last_stall, ended })
    }

    /// Whether no core was late during `time` until now, nor so shortly before that it still shows.
    pub fn is_calm(&self, time: Duration) -> bool {
        match self.last_stall.load(Ordering::Relaxed) {
            0 => true,
            at => self.begun.elapsed() >= Duration::from_micros(at) + AFTER + time,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Has this thread run on one core, ahead of all that are not as this. Whether it may.
fn run_ahead(core: usize) -> bool {
    // SAFETY: both calls are of this thread and read plain structs that are alive; an all-zero `cpu_set_t` is a set without a core.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut cores);
        let parameter = libc::sched_param { sched_priority: PRIORITY };
        libc::sched_setaffinity(0, size_of_val(&cores), &cores) == 0
            && libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_FIFO, &parameter) == 0
    }
}
