//! Faults of a table's store, by what they hit.

use std::time::Duration;

use orderflow_faults::store::{Call, Fault, Faults, FaultyStore};

use super::*;

/// What the next call of its kind comes to; then all is well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableFault {
    None,
    /// Of a data file's put.
    Data(Fault),
    /// Of a log entry's put.
    Entry(Fault),
    /// Of reading the log.
    Log(Fault),
}

/// All that a commit must bear.
pub(super) const FAULTS: [TableFault; 8] = [
    TableFault::Data(Fault::Lost),
    TableFault::Data(Fault::AnswerLost),
    TableFault::Data(Fault::Full),
    TableFault::Data(Fault::Slow(Duration::from_millis(5))),
    TableFault::Entry(Fault::Lost),
    TableFault::Entry(Fault::AnswerLost),
    TableFault::Entry(Fault::Full),
    TableFault::Log(Fault::Lost),
];

impl TableFault {
    /// Is what comes next.
    pub fn arm(self, faults: &Faults) {
        faults.clear();
        match self {
            TableFault::None => {}
            TableFault::Data(fault) => faults.add(Call::Put, "epoch-", &[fault]),
            TableFault::Entry(fault) => faults.add(Call::Put, ".json", &[fault]),
            TableFault::Log(fault) => faults.add(Call::List, "_delta_log", &[fault]),
        }
    }
}

/// A sink whose store has faults.
pub(super) fn faulty_sink(settings: DeltaSettings, faults: &Faults) -> DeltaSink {
    let mut sink = sink_with(settings);
    sink.spec.root = Arc::new(FaultyStore::new(sink.spec.root.clone(), faults));
    sink
}
