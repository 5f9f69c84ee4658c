//! When what is known of a key may be forgotten.

use std::collections::BTreeMap;

use arrow::row::OwnedRow;
use orderflow_operators::epoch::Micros;

/// Keys by times. A key may be there several times; who is told of it looks whether it is really due.
#[derive(Default)]
pub(crate) struct Timers {
    by_time: BTreeMap<Micros, Vec<OwnedRow>>,
}

impl Timers {
    /// Tells of `key` when the watermark is at `time`.
    pub fn set(&mut self, time: Micros, key: &OwnedRow) {
        self.by_time.entry(time).or_default().push(key.clone());
    }

    /// The keys that are due, in the order of their times. None at the end of all input, where the watermark is at its end: windows are over
    /// there, but nobody forgets.
    pub fn due(&mut self, watermark: Micros) -> Vec<OwnedRow> {
        let mut due = Vec::new();
        if watermark == Micros::MAX {
            return due;
        }
        while let Some(first) = self.by_time.first_entry().filter(|e| *e.key() <= watermark) {
            due.extend(first.remove());
        }
        due
    }
}
