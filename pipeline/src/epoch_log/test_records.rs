//! What the tests of all homes append.

use std::collections::BTreeMap;
use std::ops::Range;

use orderflow_operators::epoch::Epoch;

use super::{EpochRecord, LogHeader};

pub(super) fn header() -> LogHeader {
    LogHeader {
        format: 1,
        job: "test".into(),
        splits: vec!["orders-0.jsonl".into()],
        starts: vec![0],
        topics: BTreeMap::new(),
        settings: BTreeMap::new(),
    }
}

pub(super) fn record(epoch: u64) -> EpochRecord {
    EpochRecord {
        epoch: Epoch(epoch),
        sealed_at: 1000 + epoch as i64,
        ranges: [(0, (epoch as i64 - 1, epoch as i64))].into(),
        splits: BTreeMap::new(),
        stages: BTreeMap::new(),
    }
}

pub(super) fn records(epochs: Range<u64>) -> Vec<EpochRecord> {
    epochs.map(record).collect()
}
