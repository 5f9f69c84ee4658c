//! When what is known of a key may be forgotten.

use std::collections::BTreeMap;

use arrow::row::OwnedRow;
use orderflow_operators::epoch::Micros;

/// Keys by times. A key may be there several times; who is told of it looks whether it is really due.
pub(crate) struct Timers<K = OwnedRow> {
    by_time: BTreeMap<Micros, Vec<K>>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Timers { by_time: BTreeMap::new() }
    }
}

impl<K: Clone> Timers<K> {
    /// Tells of `key` when the watermark is at `time`.
    pub fn set(&mut self, time: Micros, key: &K) {
        self.by_time.entry(time).or_default().push(key.clone());
    }

    /// The keys that are due, in the order of their times. None at the end of all input, where the watermark is at its end: windows are over
    /// there, but nobody forgets.
    pub fn due(&mut self, watermark: Micros) -> Vec<K> {
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
