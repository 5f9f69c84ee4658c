//! The splits that a worker owns: what has been read ahead of them, and what the sealer is told of it.

use std::collections::BTreeMap;
use std::time::Instant;

use orderflow_operators::decoder::Topic;

use crate::sealer::Report;
use crate::source::{Messages, Source, SourceError, Split, SplitReader, Wake};

/// A [`Report`] on its way to worker 0: split, kind, offset.
pub type RemoteReport = (u32, u8, i64);

fn encode(split: u32, report: Report) -> RemoteReport {
    match report {
        Report::End(at) => (split, 0, at),
        Report::Ended => (split, 1, 0),
        Report::Mark(at) => (split, 2, at),
        Report::CaughtUp => (split, 3, 0),
    }
}

impl Report {
    /// What [`Readers::report`] wrote.
    ///
    /// # Panics
    /// If it did not.
    pub fn decode((split, kind, at): RemoteReport) -> (u32, Report) {
        let report = match kind {
            0 => Report::End(at),
            1 => Report::Ended,
            2 => Report::Mark(at),
            3 => Report::CaughtUp,
            _ => unreachable!("reports have four kinds"),
        };
        (split, report)
    }
}

struct Owned {
    topic: Topic,
    reader: SplitReader,
    reported_end: i64,
    reported_ended: bool,
    reported_caught_up: bool,
    /// Bytes up to the last mark.
    marked_bytes: u64,
}

/// The splits that a worker owns, by [`owner_of_split`](super::owner_of_split).
pub struct Readers {
    splits: BTreeMap<u32, Owned>,
    mark_bytes: u64,
    /// The source operator's address in the dataflow: what is to be scheduled when more was read.
    pub source_operator: Vec<usize>,
}

impl Readers {
    /// Of no split yet. `mark_bytes`: bytes of a split between two marks.
    pub fn none(mark_bytes: u64) -> Readers {
        Readers { splits: BTreeMap::new(), mark_bytes, source_operator: Vec::new() }
    }

    /// Starts to read `split` from `offset`.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&mut self, source: &dyn Source, split: &Split, offset: i64, wake: &Wake) -> Result<(), SourceError> {
        let reader = source.open(split, offset, wake.clone())?;
        let owned =
            Owned { topic: split.topic, reader, reported_end: offset, reported_ended: false, reported_caught_up: false, marked_bytes: 0 };
        self.splits.insert(split.number, owned);
        Ok(())
    }

    /// What is new since the last call.
    ///
    /// # Errors
    /// If a reader failed.
    pub fn report(&mut self, reports: &mut Vec<RemoteReport>) -> Result<(), SourceError> {
        for (&split, owned) in &mut self.splits {
            if owned.reported_ended {
                continue;
            }
            if let Some(error) = owned.reader.error() {
                return Err(error);
            }
            let available = owned.reader.available();
            if available.end > owned.reported_end {
                while owned.marked_bytes + self.mark_bytes <= owned.reader.pushed_bytes() {
                    owned.marked_bytes += self.mark_bytes;
                    // One huge message can hold several. One that was taken already lies in an epoch.
                    if let Some(mark) = owned.reader.offset_reaching(owned.marked_bytes) {
                        reports.push(encode(split, Report::Mark(mark)));
                    }
                }
                reports.push(encode(split, Report::End(available.end)));
                owned.reported_end = available.end;
            }
            // Once: who waits for it wants to know of what there was at the start.
            if available.lag == Some(0) && !std::mem::replace(&mut owned.reported_caught_up, true) {
                reports.push(encode(split, Report::CaughtUp));
            }
            if available.ended {
                reports.push(encode(split, Report::Ended));
                owned.reported_ended = true;
            }
        }
        Ok(())
    }

    /// When the oldest message that was not yet taken arrived, of the splits given.
    pub fn oldest_arrival(&self, splits: impl Iterator<Item = u32>) -> Option<Instant> {
        splits.filter_map(|split| self.splits.get(&split)?.reader.available().oldest_arrival).min()
    }

    /// Whether all of `ranges` (split, start, end) have been read.
    ///
    /// # Errors
    /// If one of them never will be.
    pub fn have(&self, ranges: &[(u32, i64, i64)]) -> Result<bool, SourceError> {
        for (split, _, end) in ranges {
            let Some(owned) = self.splits.get(split) else { return Ok(false) };
            if !owned.reader.has(*end)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The messages of a range, or `None` while they are not all there.
    ///
    /// # Errors
    /// If the reader failed: they never will be.
    pub fn take(&mut self, split: u32, start: i64, end: i64) -> Result<Option<(Topic, Messages)>, SourceError> {
        let owned = self.splits.get_mut(&split).expect("the sealer sends a range to the split's owner");
        if let Some(messages) = owned.reader.take(start, end) {
            return Ok(Some((owned.topic, messages)));
        }
        owned.reader.error().map_or(Ok(None), Err)
    }

    /// Of each split: topic, number, messages behind what has been read, bytes read ahead.
    pub fn lags(&self) -> impl Iterator<Item = (Topic, u32, u64, u64)> {
        self.splits.iter().map(|(&split, owned)| {
            let available = owned.reader.available();
            (owned.topic, split, available.rows + available.lag.unwrap_or(0).max(0) as u64, available.bytes)
        })
    }
}
