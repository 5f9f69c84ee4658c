//! The servers that jobs write to, one of each for all runs.

use std::path::PathBuf;

use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ClickHouseServerError, ServeCommand, ServerOptions};

use super::broker::Broker;
use super::plan::Way;

pub struct Servers {
    /// A folder for all that runs leave.
    pub folder: tempfile::TempDir,
    /// The job's binary, by a name that a build meanwhile does not take away.
    pub binary: PathBuf,
    pub clickhouse: Option<ClickHouseServer>,
    pub kafka: Option<Broker>,
}

impl Servers {
    pub fn none() -> Servers {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("orderflow");
        let built = env!("CARGO_BIN_EXE_orderflow");
        if std::fs::hard_link(built, &binary).is_err() {
            std::fs::copy(built, &binary).unwrap();
        }
        Servers { folder, binary, clickhouse: None, kafka: None }
    }

    /// None where there is no ClickHouse for this machine.
    pub fn clickhouse() -> Option<Servers> {
        let mut servers = Servers::none();
        let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
        match ClickHouseServer::start(ServerOptions::new(servers.folder.path().join("clickhouse"), command)) {
            Err(ClickHouseServerError::Platform) => {
                eprintln!("SKIPPED: there is no development ClickHouse for this platform");
                None
            }
            server => {
                servers.clickhouse = Some(server.unwrap());
                Some(servers)
            }
        }
    }

    /// None where there is no Java.
    pub fn kafka(test: &str) -> Option<Servers> {
        let kafka = Some(Broker::start(test)?);
        Some(Servers { kafka, ..Servers::none() })
    }

    /// All that can be had.
    pub fn all() -> Servers {
        let servers = Servers::clickhouse().unwrap_or_else(Servers::none);
        Servers { kafka: Broker::start("the campaign's live jobs"), ..servers }
    }

    /// Whether a job of this way finds its servers.
    pub fn can(&self, way: Way) -> bool {
        match way {
            Way::Replay => self.clickhouse.is_some(),
            Way::Processes => true,
            Way::LiveTopic | Way::LiveObjects => self.kafka.is_some(),
        }
    }
}
