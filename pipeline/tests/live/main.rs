//! The live job against a real Kafka and a real ClickHouse: what it does when they die, and when topics are not what they were.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod job;
mod outages;
mod partitions;
mod sinks;
mod stages;
mod topics;

use std::io::Write;
use std::time::{Duration, Instant};

use orderflow_fixtures::kafka_broker::{KafkaBroker, KafkaBrokerError};

/// No wait is longer.
const LONG: Duration = Duration::from_secs(120);

/// A broker and its folder, where it can be had.
fn broker(test: &str) -> Option<(tempfile::TempDir, KafkaBroker)> {
    let folder = tempfile::tempdir().unwrap();
    match KafkaBroker::start(folder.path(), "256m") {
        Ok(broker) => Some((folder, broker)),
        Err(error @ KafkaBrokerError::Missing { .. }) => {
            // Past the capture of a test's output: nothing was tested.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Not a test: the ClickHouse server of the others, which start this binary again.
#[test]
fn clickhouse_server_process() {
    orderflow_fixtures::clickhouse_server::serve_from_env();
}
