//! Rows that arrive at a pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::buffer::Feed;

/// How often a reading thread looks for what it waits for.
const LOOK: Duration = Duration::from_millis(10);
/// From when all that comes at once was taken out of the buffers until the first row at a pace: what was taken last is still on its way.
const SETTLE: Duration = Duration::from_millis(500);
/// Times further off cannot be computed with: a hundred years.
const MAX_PAUSE_S: f64 = 3e9;

/// The splits that are read of which rows that come at once, before those at a pace, are not all taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Ahead(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    now: AtomicUsize,
    ever: AtomicUsize,
}

impl Ahead {
    /// One more, until what is returned is dropped.
    pub fn one(&self) -> OneAhead {
        self.0.ever.fetch_add(1, Ordering::AcqRel);
        self.0.now.fetch_add(1, Ordering::AcqRel);
        OneAhead(self.clone())
    }

    fn is_empty(&self) -> bool {
        self.0.now.load(Ordering::Acquire) == 0
    }

    fn was_any(&self) -> bool {
        self.0.ever.load(Ordering::Acquire) > 0
    }
}

/// Such a split.
#[derive(Debug)]
pub(super) struct OneAhead(Ahead);

impl OneAhead {
    /// Waits until what was pushed is taken.
    pub fn until_taken(self, feed: &Feed) {
        until(feed, || feed.is_drained());
    }
}

impl Drop for OneAhead {
    fn drop(&mut self) {
        self.0.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The pace of a split.
#[derive(Debug)]
pub(super) struct Pace {
    /// Rows a second.
    rate: f64,
    /// The offset of the first row at the pace; those before it come at once.
    from: i64,
    /// While they do.
    own: Option<OneAhead>,
    ahead: Ahead,
    /// When the first one is due, once all that comes before it has come.
    start: Option<Instant>,
}

impl Pace {
    /// Of a split that is read from `offset` on, at so many rows a second from offset `from` on, behind all that `ahead` counts.
    pub fn new(rate: f64, offset: i64, from: i64, ahead: &Ahead) -> Pace {
        Pace { rate, from: from.max(offset), own: (offset < from).then(|| ahead.one()), ahead: ahead.clone(), start: None }
    }

    /// Of a split that ended before it came to its pace.
    pub fn into_ahead(self) -> Option<OneAhead> {
        self.own
    }

    /// Rows that arrive together: those of a millisecond.
    pub fn step(&self) -> usize {
        ((self.rate / 1000.0) as usize).max(1)
    }

    /// Waits until the row at `offset` is due, or nobody wants it.
    pub fn wait(&mut self, offset: i64, feed: &Feed) {
        if offset < self.from {
            return;
        }
        let start = *self.start.get_or_insert_with(|| {
            if let Some(own) = self.own.take() {
                own.until_taken(feed);
            }
            until(feed, || self.ahead.is_empty());
            Instant::now() + if self.ahead.was_any() { SETTLE } else { Duration::ZERO }
        });
        let due = start + Duration::from_secs_f64(((offset - self.from) as f64 / self.rate).min(MAX_PAUSE_S));
        while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero() && !feed.is_abandoned()) {
            thread::sleep(rest.min(LOOK));
        }
    }
}

/// Waits until it holds, or nobody wants what the split has.
fn until(feed: &Feed, holds: impl Fn() -> bool) {
    while !holds() && !feed.is_abandoned() {
        thread::sleep(LOOK);
    }
}
