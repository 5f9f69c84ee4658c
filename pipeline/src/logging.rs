//! Logs: structured lines on standard error, so that standard output stays for results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogConfig, LogFormat};

/// Libraries that tell of every table they open. To hear them, name them: `info,buoyant_kernel=info`.
const QUIET: &str = "buoyant_kernel=warn,deltalake_core=warn";

/// Starts logging for the whole process. `RUST_LOG` goes before `log.level`. Lines are written through `writer`: standard error, or
/// what keeps them apart from a progress bar. A second call changes nothing: a process has one log.
pub fn start(config: &LogConfig, writer: BoxMakeWriter) {
    let directives = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| config.level.clone());
    // The settings' level was checked; a wrong RUST_LOG is not worth a job.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{directives}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
