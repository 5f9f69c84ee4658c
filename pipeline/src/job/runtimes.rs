//! The threads on which sinks and checkpoints do their I/O.

use std::ops::Deref;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::JobError;

/// Two runtimes: one whose threads let the workers go before them, for what comes in bursts and whose readers wait for seconds, and one for
/// sinks whose readers wait for every row. Where it is not said which, it is the first.
pub(super) struct Runtimes {
    patient: Runtime,
    prompt: Runtime,
}

impl Runtimes {
    /// For a process with so many workers.
    pub fn start(workers: usize) -> Result<Runtimes, JobError> {
        let cannot = |error: std::io::Error| JobError::Start(error.to_string());
        let patient = Builder::new_multi_thread()
            .worker_threads(workers.clamp(2, 8))
            .thread_name("io")
            .on_thread_start(step_back)
            .enable_all()
            .build()
            .map_err(cannot)?;
        // Its tasks only hand over: what takes time they do in threads of their own.
        let prompt = Builder::new_multi_thread().worker_threads(1).thread_name("io-prompt").enable_all().build().map_err(cannot)?;
        Ok(Runtimes { patient, prompt })
    }

    /// The runtime for a sink of this name. The threads that a client starts are as patient as the one that starts it.
    pub fn of_sink(&self, name: &str) -> &Runtime {
        if name == "kafka" { &self.prompt } else { &self.patient }
    }

    /// Ends without a wait for what hangs.
    pub fn shutdown_background(self) {
        self.patient.shutdown_background();
        self.prompt.shutdown_background();
    }

    /// Ends, and waits so long for each.
    pub fn shutdown_timeout(self, wait: Duration) {
        self.prompt.shutdown_timeout(wait);
        self.patient.shutdown_timeout(wait);
    }
}

impl Deref for Runtimes {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.patient
    }
}

/// Lets the workers go before this thread where both want a core: encoding files comes in bursts, and would be latency of every epoch
/// meanwhile. A thread has a priority of its own on Linux; elsewhere nothing happens.
fn step_back() {
    /// As `nice -n 10`.
    const NICE: i32 = 10;
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers alone; 0 is the calling thread. If it is refused, latency is all that suffers.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
}
