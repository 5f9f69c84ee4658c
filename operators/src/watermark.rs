//! The watermark: how far event time has come.
//!
//! `W(e)` is the minimum over the active splits of `orders` of the largest event time that each has seen, minus a delay; it
//! never goes back. A split is idle when it had no row in any epoch sealed within `idle` before this epoch's sealing time.
//! It is a function of the epochs' ranges, their sealing times and the rows: every worker computes the same.

use serde::{Deserialize, Serialize};

use crate::epoch::{Epoch, EpochInfo, Micros, NEVER};

/// Settings of the watermark; microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatermarkSettings {
    /// Subtracted from what was seen, so that slightly late rows are not behind it.
    pub delay: Micros,
    /// After this time without a row a split no longer holds the watermark back.
    pub idle: Micros,
}

/// What one epoch brought in one split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitProgress {
    /// The split's number.
    pub split: u32,
    /// Rows of any kind, malformed ones too; not 0.
    pub rows: u64,
    /// The largest event time of its well-formed rows.
    pub event_time_max: Option<Micros>,
}

/// What a split has brought so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The largest event time.
    pub event_time_max: Option<Micros>,
    /// When the last epoch was sealed in which it had a row.
    pub sealed_at_last: Micros,
}

/// How far event time has come after an epoch, and what that rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatermarkState {
    /// The epoch.
    pub epoch: Epoch,
    /// `W(epoch)`.
    pub watermark: Micros,
    /// By split; none where there was never a row, and for splits that do not count.
    pub splits: Vec<Option<Seen>>,
}

/// The watermark after the epochs so far.
#[derive(Clone, Debug)]
pub struct Watermark {
    settings: WatermarkSettings,
    state: WatermarkState,
}

impl Default for WatermarkState {
    /// `W(0)` = −∞.
    fn default() -> Self {
        WatermarkState { epoch: Epoch(0), watermark: NEVER, splits: Vec::new() }
    }
}

impl Watermark {
    /// `W(0)` = −∞.
    pub fn new(settings: WatermarkSettings) -> Self {
        Watermark { settings, state: WatermarkState::default() }
    }

    /// Goes on from an earlier state.
    pub fn resume(settings: WatermarkSettings, state: WatermarkState) -> Self {
        Watermark { settings, state }
    }

    /// What to go on from later.
    pub fn state(&self) -> &WatermarkState {
        &self.state
    }

    /// Takes the next epoch's progress in the splits that count (those of `orders`), and says what operators know of the epoch.
    ///
    /// # Panics
    /// If epochs do not follow on each other.
    pub fn advance(
        &mut self,
        epoch: Epoch,
        sealed_at: Micros,
        checkpoint: bool,
        progress: impl IntoIterator<Item = SplitProgress>,
    ) -> EpochInfo {
        assert_eq!(epoch, self.state.epoch.next(), "epochs come one after the other");
        for p in progress {
            let at = p.split as usize;
            if self.state.splits.len() <= at {
                self.state.splits.resize(at + 1, None);
            }
            let seen = self.state.splits[at].get_or_insert(Seen { event_time_max: None, sealed_at_last: sealed_at });
            seen.sealed_at_last = sealed_at;
            seen.event_time_max = seen.event_time_max.max(p.event_time_max);
        }
        let active = self.state.splits.iter().flatten().filter(|s| sealed_at.saturating_sub(s.sealed_at_last) <= self.settings.idle);
        let least = active.map(|s| s.event_time_max.map_or(NEVER, |t| t.saturating_sub(self.settings.delay))).min();
        let watermark_before = self.state.watermark;
        self.state.watermark = self.state.watermark.max(least.unwrap_or(NEVER));
        self.state.epoch = epoch;
        EpochInfo { epoch, sealed_at, watermark_before, watermark: self.state.watermark, checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(split: u32, time: Micros) -> SplitProgress {
        SplitProgress { split, rows: 1, event_time_max: Some(time) }
    }

    #[test]
    fn least_of_active_splits() {
        let mut w = Watermark::new(WatermarkSettings { delay: 5, idle: 30 });
        // A split that never had a row does not count.
        assert_eq!(w.advance(Epoch(1), 100, false, [row(1, 50)]).watermark, 45);
        // A slower one holds it, and it does not go back.
        assert_eq!(w.advance(Epoch(2), 110, false, [row(2, 20), row(1, 90)]).watermark, 45);
        assert_eq!(w.advance(Epoch(3), 120, false, [row(2, 70)]).watermark, 65);
        // Split 2 is still active 30 after its last row, and idle after 31.
        assert_eq!(w.advance(Epoch(4), 150, false, [row(1, 200)]).watermark, 65);
        let last = w.advance(Epoch(5), 151, false, [row(1, 201)]);
        assert_eq!((last.watermark_before, last.watermark), (65, 196));
        // All idle: it stays.
        assert_eq!(w.advance(Epoch(6), 1000, false, []).watermark, 196);
    }

    #[test]
    fn rows_without_event_time_hold_it() {
        let mut w = Watermark::new(WatermarkSettings { delay: 5, idle: 30 });
        let malformed = SplitProgress { split: 1, rows: 1, event_time_max: None };
        assert_eq!(w.advance(Epoch(1), 0, false, [malformed, row(2, 70)]).watermark, NEVER);
        assert_eq!(w.advance(Epoch(2), 31, false, [row(2, 70)]).watermark, 65);
    }
}
