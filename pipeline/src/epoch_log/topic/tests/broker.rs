//! A broker of a test's own.

use std::io::Write;

use orderflow_fixtures::kafka_broker::{KafkaBroker, KafkaBrokerError};
use tempfile::TempDir;

/// A broker that ends with this value. Its data outlive a [kill](Broker::kill).
pub(super) struct Broker {
    kafka: KafkaBroker,
    /// Removed when the broker has ended.
    _folder: TempDir,
}

impl Broker {
    /// Starts one; none, and a line that says so, where what it needs is not installed.
    pub fn start(test: &str) -> Option<Broker> {
        let folder = tempfile::tempdir().unwrap();
        match KafkaBroker::start(folder.path(), "256m") {
            Ok(kafka) => Some(Broker { kafka, _folder: folder }),
            Err(error @ KafkaBrokerError::Missing { .. }) => {
                // Past the capture of a test's output: nothing was tested.
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts it again.
    pub fn restart(&self) {
        self.kafka.up().unwrap();
    }

    /// Ends it at once, as a power failure of the process would.
    pub fn kill(&self) {
        self.kafka.kill();
    }

    pub fn address(&self) -> String {
        self.kafka.address()
    }
}
