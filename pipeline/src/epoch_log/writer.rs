//! The thread that appends, so that epochs are logged in groups.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread::JoinHandle;

use orderflow_operators::epoch::Epoch;
use tokio::sync::watch;

use super::{EpochLog, EpochLogError, EpochRecord};

/// Epochs that may wait for the log; the sealer's flow control keeps far below.
const QUEUE_MAX: usize = 4096;

/// The writer's thread, and how far the log is durable.
pub struct LogWriter {
    records: Option<mpsc::SyncSender<EpochRecord>>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread. `durable` is told each epoch whose record is on stable storage; `failed` at most once, when appending fails.
    pub fn start(
        mut log: Box<dyn EpochLog>,
        durable: watch::Sender<Epoch>,
        failed: impl FnOnce(EpochLogError) + Send + 'static,
    ) -> std::io::Result<LogWriter> {
        let (records, queue) = mpsc::sync_channel::<EpochRecord>(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("epoch-log".into()).spawn(move || {
            let mut group: Vec<EpochRecord> = Vec::new();
            while let Ok(first) = queue.recv() {
                group.push(first);
                group.extend(queue.try_iter());
                for record in &group {
                    // Before it can be durable: of an epoch that is told twice, the log has what was told last.
                    tracing::trace!(record = serde_json::to_string(record).unwrap_or_default(), "an epoch is logged");
                }
                let appended = std::panic::catch_unwind(AssertUnwindSafe(|| log.append(&group)));
                if let Err(error) = appended.unwrap_or(Err(EpochLogError::Panicked)) {
                    return failed(error);
                }
                if let Some(last) = group.last() {
                    durable.send_modify(|epoch| *epoch = (*epoch).max(last.epoch));
                }
                group.clear();
            }
        })?;
        Ok(LogWriter { records: Some(records), thread: Some(thread) })
    }

    /// Hands over a record. If the writer has failed, nothing happens: it has told so.
    pub fn append(&self, record: EpochRecord) {
        if let Some(records) = &self.records {
            // A closed queue means that the writer failed and the job is ending.
            let _ = records.send(record);
        }
    }
}

impl Drop for LogWriter {
    /// Waits until what was handed over is written.
    fn drop(&mut self) {
        self.records = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where panics are.
            let _ = thread.join();
        }
    }
}
