//! The first thing that went wrong, and that the job is to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Shared by every part of a job: whoever fails says so here, everybody else looks here and stops.
#[derive(Clone, Default)]
pub struct Failure(Arc<Inner>);

#[derive(Default)]
struct Inner {
    first: OnceLock<String>,
    taken_over: AtomicBool,
    on_failure: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Failure {
    /// Says what went wrong. Only the first message counts: what follows is mostly its echo.
    pub fn report(&self, message: impl ToString) {
        let message = message.to_string();
        tracing::debug!(message, "failure reported");
        if self.0.first.set(message).is_ok() {
            for wake in self.0.on_failure.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                wake();
            }
        }
    }

    /// Says that another job took this one's place: it must not simply be started again.
    pub fn report_taken_over(&self, message: impl ToString) {
        if !self.is_set() {
            self.0.taken_over.store(true, Ordering::Release);
        }
        self.report(message);
    }

    /// Whether the job ends because another one took its place.
    pub fn is_taken_over(&self) -> bool {
        self.0.taken_over.load(Ordering::Acquire)
    }

    /// The message, if something went wrong.
    pub fn message(&self) -> Option<&str> {
        self.0.first.get().map(String::as_str)
    }

    /// Whether something went wrong.
    pub fn is_set(&self) -> bool {
        self.message().is_some()
    }

    /// Whether it is the same as `other`, of the same job.
    pub fn is(&self, other: &Failure) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Calls `wake` when something goes wrong (at once if it has).
    pub fn on_failure(&self, wake: impl Fn() + Send + 'static) {
        if self.is_set() {
            wake();
        }
        self.0.on_failure.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(wake));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_first_message_counts_and_wakes() {
        let failure = Failure::default();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        failure.on_failure(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert!(!failure.is_set());
        failure.report("disk full");
        failure.report("worker 1 stopped");
        assert_eq!((failure.message(), woken.load(Ordering::Relaxed)), (Some("disk full"), 1));
    }
}
