//! The job: settings, command line, sources, epochs, dataflow and sinks put together.

pub mod allocator;
pub mod arroyo;
pub mod checkpoint;
pub mod config;
pub mod dataflow;
pub mod epoch_log;
pub mod failure;
pub mod job;
pub mod job_plan;
pub mod logging;
pub mod meeting;
pub mod metrics;
mod panics;
pub mod sealer;
pub mod sink_driver;
pub mod sink_hub;
pub mod source;
pub mod stages;
pub mod state_query;
pub mod status;
pub mod supervisor;
pub mod worker;
