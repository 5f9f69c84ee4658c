//! The job: settings, command line, sources, epochs, dataflow and sinks put together.

pub mod config;
pub mod job_plan;
pub mod logging;
pub mod metrics;
pub mod status;
