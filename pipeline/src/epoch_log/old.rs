//! Dropping what is old.
//!
//! A start needs the epochs behind the checkpoint that it goes on from. Those before the oldest checkpoint there is, savepoints
//! among them, nobody can go on from any more, unless all of the input is still there and everything is to be computed anew. So they are
//! kept for a while, and then dropped, the oldest first: a log has no gaps, but it may begin behind epoch 1.

use std::time::{Duration, Instant};

use orderflow_operators::epoch::Epoch;
use tokio::task::JoinHandle;

use super::local::LocalLog;
use super::objects::ObjectLog;
use super::topic::TopicLog;
use super::{EpochLogError, EpochRecord, LogHome};

/// Which epochs are old.
#[derive(Clone, Copy, Debug)]
pub(super) struct Old {
    /// No later ones: the epoch of the oldest checkpoint.
    pub through: Epoch,
    /// Nor those sealed at this time or later: milliseconds since 1970.
    pub sealed_before: i64,
}

impl Old {
    /// Whether what comes before this record is old.
    pub(super) fn is_before(&self, record: &EpochRecord) -> bool {
        record.epoch.0 <= self.through.0 + 1 && record.sealed_at < self.sealed_before
    }
}

/// Drops epochs that are old, not all of them at once: whole segments, as the home has them. Its writer may go on meanwhile. Returns the last epoch that is gone,
/// if any went.
///
/// # Errors
/// If the log is damaged, or cannot be read or written; it can be tried again.
fn drop_old(home: &LogHome, old: &Old) -> Result<Option<Epoch>, EpochLogError> {
    match home {
        LogHome::Folder(folder) => LocalLog::drop_old(folder, old),
        LogHome::Topic(settings) => TopicLog::drop_old(settings, old),
        LogHome::Objects(settings) => ObjectLog::drop_old(settings, old),
    }
}

/// Drops old epochs of a job from time to time, beside it.
pub struct Dropper {
    home: LogHome,
    keep: Duration,
    due: Instant,
    under_way: Option<JoinHandle<()>>,
}

impl Dropper {
    /// Longest time between two looks for what is old.
    const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);

    /// For a job that keeps epochs so long; `None` if that is for ever.
    pub fn new(home: &LogHome, keep: Duration) -> Option<Dropper> {
        (!keep.is_zero()).then(|| Dropper { home: home.clone(), keep, due: Instant::now(), under_way: None })
    }

    /// Whether it is time to look.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.due && self.under_way.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Drops what is old now, at `now` in milliseconds since 1970, where `oldest` is the oldest checkpoint.
    pub fn start(&mut self, oldest: Epoch, now: i64) {
        let keep_ms = i64::try_from(self.keep.as_millis()).unwrap_or(i64::MAX);
        let old = Old { through: oldest, sealed_before: now.saturating_sub(keep_ms) };
        let home = self.home.clone();
        self.due = Instant::now() + (self.keep / 16).min(Self::PAUSE_MAX);
        self.under_way = Some(tokio::task::spawn_blocking(move || match drop_old(&home, &old) {
            Ok(None) => {}
            Ok(Some(through)) => tracing::info!(log = %home, through = through.0, "old epochs were dropped"),
            // They are old the next time, too.
            Err(error) => tracing::warn!(%error, "old epochs could not be dropped"),
        }));
    }

    /// Waits for what is being dropped.
    pub async fn finish(self) {
        if let Some(under_way) = self.under_way {
            // It has said what it came to.
            let _ended = under_way.await;
        }
    }
}
