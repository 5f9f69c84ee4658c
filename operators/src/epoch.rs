//! Epochs, places and what every operator knows about an epoch.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an epoch: 1, 2, 3 … without gaps. 0 is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Microseconds since 1970-01-01T00:00:00Z. `i64::MIN` stands for −∞.
pub type Micros = i64;

/// The watermark before any event time was seen.
pub const NEVER: Micros = i64::MIN;

/// A row's place in the input: its split and its offset there.
///
/// Packed into one word (16 bits of split, 48 of offset), so that canonical order within an epoch is the order of
/// integers. [`Place::OFFSET_MAX`] is nine years of a million messages a second in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

impl Place {
    const OFFSET_BITS: u32 = 48;
    /// The largest offset that a place can hold.
    pub const OFFSET_MAX: i64 = (1 << Self::OFFSET_BITS) - 1;
    /// The largest split number; the one above it is kept for [`Place::AFTER_ROWS`].
    pub const SPLIT_MAX: u32 = u16::MAX as u32 - 1;
    /// After all rows of the epoch: where timers fire. It has neither split nor offset.
    pub const AFTER_ROWS: Place = Place(u64::MAX);

    /// The place of what a timer gives, by its number among those of the epoch: behind all rows, before [`Place::AFTER_ROWS`]. It has neither
    /// split nor offset.
    pub fn of_timer(number: u64) -> Place {
        Place(((Self::SPLIT_MAX as u64 + 1) << Self::OFFSET_BITS) | number)
    }
    /// Whether it is behind all rows of its epoch.
    pub fn is_after_rows(self) -> bool {
        self >= Place::of_timer(0)
    }

    /// The place of `offset` in `split`.
    ///
    /// # Panics
    /// If either is beyond its maximum; sources check both where they enter.
    pub fn new(split: u32, offset: i64) -> Place {
        assert!(split <= Self::SPLIT_MAX && (0..=Self::OFFSET_MAX).contains(&offset), "place out of range: {split}, {offset}");
        Place(((split as u64) << Self::OFFSET_BITS) | offset as u64)
    }
    /// The split's number.
    pub fn split(self) -> i32 {
        (self.0 >> Self::OFFSET_BITS) as i32
    }
    /// The offset in the split.
    pub fn offset(self) -> i64 {
        (self.0 & Self::OFFSET_MAX as u64) as i64
    }
}

/// What every operator may know about the epoch that it processes. The same on every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochInfo {
    /// Its number.
    pub epoch: Epoch,
    /// When it was sealed; whole milliseconds.
    pub sealed_at: Micros,
    /// `W(e−1)`: what rows are compared with.
    pub watermark_before: Micros,
    /// `W(e)`: what timers fire against, after the rows.
    pub watermark: Micros,
    /// Whether a checkpoint is of the state at this epoch's end. Results do not depend on it.
    pub checkpoint: bool,
}
