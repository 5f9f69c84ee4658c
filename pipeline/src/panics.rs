//! Panics, as failures of the job: one message, with the place, instead of a trace on the terminal.
//!
//! A panic hook is the only way to the place of a panic, and the only way to hear of one in a thread that timely made for
//! its connections to other processes. The hook is put in once for the process; panics of threads that are none of the job's go to the hook before it.

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::sync::{Mutex, Once, PoisonError};

use crate::failure::Failure;

thread_local! {
    /// The failure of the job that this thread works for.
    static WORKER: RefCell<Option<(usize, Failure)>> = const { RefCell::new(None) };
}

/// Jobs of several processes: timely's connection threads do not say whose they are.
static CLUSTERED: Mutex<Vec<Failure>> = Mutex::new(Vec::new());

/// What timely names the threads that send to and receive from other processes; and the thread that waits for these.
const CONNECTION_THREADS: [&str; 3] = ["timely:send", "timely:recv", "workers"];

/// From now on a panic of this thread, worker `index` of a job, is reported to the job's failure.
pub fn watch_worker(index: usize, failure: &Failure) {
    install();
    WORKER.set(Some((index, failure.clone())));
}

/// While it lives, a connection to another process that breaks is reported to the job's failure.
pub struct ConnectionWatch(Failure);

impl ConnectionWatch {
    /// Begins.
    pub fn start(failure: &Failure) -> Self {
        install();
        clustered().push(failure.clone());
        ConnectionWatch(failure.clone())
    }
}

impl Drop for ConnectionWatch {
    fn drop(&mut self) {
        clustered().retain(|failure| !failure.is(&self.0));
    }
}

fn clustered() -> std::sync::MutexGuard<'static, Vec<Failure>> {
    CLUSTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !report(info) {
                before(info);
            }
        }));
    });
}

/// Whether it was a thread of a job's.
fn report(info: &PanicHookInfo<'_>) -> bool {
    let message = info.payload_as_str().unwrap_or("no message");
    // Not while the thread's own values are being dropped or in use.
    let worker = WORKER.try_with(|worker| worker.try_borrow().ok().and_then(|worker| worker.clone())).ok().flatten();
    if let Some((index, failure)) = worker {
        let place = info.location().map_or(String::new(), |at| format!(" at {at}"));
        tracing::debug!("worker {index} panicked{place}: {message}\n{}", std::backtrace::Backtrace::force_capture());
        failure.report(format!("worker {index} failed{place}: {message}; this is a bug, please report it"));
        return true;
    }
    let thread = std::thread::current();
    if thread.name().is_some_and(|name| CONNECTION_THREADS.iter().any(|prefix| name.starts_with(prefix))) {
        for failure in clustered().iter() {
            failure.report(format!("lost another process of the job ({message}); start all of them again, they go on where they were"));
        }
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_panic_is_its_jobs_failure() {
        let (failure, other) = (Failure::default(), Failure::default());
        let watched = failure.clone();
        let thread = std::thread::spawn(move || {
            watch_worker(3, &watched);
            panic!("{} is wrong", "this");
        });
        assert!(thread.join().is_err());
        let message = failure.message().unwrap_or_default();
        assert!(message.starts_with("worker 3 failed at pipeline/src/panics.rs:") && message.contains(": this is wrong; "), "{message}");
        assert!(!other.is_set());
    }

    #[test]
    fn a_broken_connection_is_the_failure_of_jobs_that_have_some() {
        let (failure, ended) = (Failure::default(), Failure::default());
        let watch = ConnectionWatch::start(&failure);
        drop(ConnectionWatch::start(&ended));
        let thread = std::thread::Builder::new().name("timely:recv-1".into()).spawn(|| panic!("socket closed")).expect("starts");
        assert!(thread.join().is_err());
        drop(watch);
        assert!(failure.message().is_some_and(|m| m.contains("socket closed")), "{:?}", failure.message());
        assert!(!ended.is_set());
    }
}
