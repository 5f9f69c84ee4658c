//! `orderflow arroyo`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use orderflow::arroyo::{Arroyo, Pipeline, PipelineSettings};
use orderflow::config::Config;
use orderflow_sql::stage::Stage;
use orderflow_sql::stage::export::{Topics, to_arroyo};

use super::CliError;
use super::settings::SettingsArgs;
use super::sql::{UdfArgs, streams_of};

/// Hand stages to an Arroyo cluster, over the topics that this job publishes
#[derive(Subcommand)]
pub(super) enum ArroyoCommand {
    /// Write stages as Arroyo takes them, with topics in the place of the job's streams
    #[command(after_help = "Example:
  orderflow arroyo export sql/stages/*.sql --out arroyo --brokers redpanda:9092")]
    Export {
        #[command(flatten)]
        stages: StageArgs,
        /// Folder for the stages, and `udfs` in it for the functions that they call
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Validate stages and their functions there, create them, and wait until they run
    #[command(after_help = "Example:
  orderflow arroyo submit --api http://127.0.0.1:5115 sql/stages/revenue_per_minute.sql --brokers redpanda:9092")]
    Submit(SubmitArgs),
}

#[derive(Args)]
pub(super) struct StageArgs {
    /// Stages
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Brokers as Arroyo reaches them; without it, those of sinks.kafka
    #[arg(long, value_name = "HOST:PORT,…")]
    brokers: Option<String>,
    #[command(flatten)]
    udfs: UdfArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Args)]
pub(super) struct SubmitArgs {
    /// Arroyo's API
    #[arg(long, value_name = "URL")]
    api: String,
    /// A token for it
    #[arg(long, value_name = "TOKEN", env = "ARROYO_API_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Subtasks of each operator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    parallelism: u64,
    /// Time between two checkpoints; without it, as Arroyo is set
    #[arg(long, value_name = "LENGTH", value_parser = humantime::parse_duration)]
    checkpoint_interval: Option<Duration>,
    /// How long one request may take; functions are compiled in it
    #[arg(long, value_name = "LENGTH", default_value = "3 min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long to wait until the pipelines run; 0s: not at all
    #[arg(long, value_name = "LENGTH", default_value = "1 min", value_parser = humantime::parse_duration)]
    wait: Duration,
    #[command(flatten)]
    stages: StageArgs,
}

/// Runs the command.
pub(super) fn arroyo(command: ArroyoCommand) -> Result<(), CliError> {
    match command {
        ArroyoCommand::Export { stages, out } => export(&stages, &out),
        ArroyoCommand::Submit(args) => submit(&args),
    }
}

/// The stages for Arroyo. Their names must differ, as they are all that tells them apart there.
fn pipelines(args: &StageArgs) -> Result<Vec<Pipeline>, CliError> {
    let config = args.settings.load([])?;
    let streams = streams_of(&config)?;
    let topics = topics(&config, args.brokers.as_deref());
    let mut pipelines: BTreeMap<String, Pipeline> = BTreeMap::new();
    let mut wrong = Vec::new();
    for file in &args.files {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
        let text = std::fs::read_to_string(file).map_err(|e| CliError::Failed(named(&e)))?;
        let udfs = args.udfs.load(file, &text)?;
        let called = udfs.texts().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let written = Stage::plan_with(&text, &streams, &udfs).and_then(|stage| to_arroyo(&text, &stage, &streams, &topics));
        let query = match written {
            Ok(query) => query,
            Err(error) => {
                wrong.push(named(&error));
                continue;
            }
        };
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if pipelines.insert(name.clone(), Pipeline { name: name.clone(), query, udfs: called }).is_some() {
            return Err(CliError::Usage(format!("two stages have the name {name}; rename one of the files")));
        }
    }
    if !wrong.is_empty() {
        return Err(CliError::Failed(wrong.join("\n")));
    }
    if !config.sinks.kafka.enabled {
        writeln!(io::stderr(), "note: the topics are there only when the job publishes to them: sinks.kafka.enabled = true")?;
    }
    Ok(pipelines.into_values().collect())
}

fn topics(config: &Config, brokers: Option<&str>) -> Topics {
    let kafka = &config.sinks.kafka;
    let own = if kafka.brokers.is_empty() { &config.source.kafka.brokers } else { &kafka.brokers };
    Topics {
        brokers: brokers.unwrap_or(own).to_owned(),
        prefix: kafka.topic_prefix.clone(),
        watermark_delay: config.watermark.delay.as_micros(),
    }
}

fn export(args: &StageArgs, out: &Path) -> Result<(), CliError> {
    let write = |path: &Path, text: &str| -> Result<(), CliError> {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
        made.map_err(|e| CliError::Failed(format!("{}: {e}", path.display())))?;
        Ok(writeln!(io::stdout(), "{}", path.display())?)
    };
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    for pipeline in pipelines(args)? {
        write(&out.join(format!("{}.sql", pipeline.name)), &pipeline.query)?;
        for (name, text) in pipeline.udfs {
            if written.insert(name.clone(), text.clone()).is_none_or(|before| before != text) {
                write(&out.join("udfs").join(format!("{name}.rs")), &text)?;
            }
        }
    }
    Ok(())
}

fn submit(args: &SubmitArgs) -> Result<(), CliError> {
    let api = Arroyo::new(&args.api, args.token.clone(), args.timeout).map_err(|e| CliError::Usage(e.to_string()))?;
    let pipelines = pipelines(&args.stages)?;
    let settings = PipelineSettings { parallelism: args.parallelism, checkpoint_interval: args.checkpoint_interval, wait: args.wait };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ids = runtime.block_on(api.submit(&pipelines, settings)).map_err(CliError::failed)?;
    for (pipeline, id) in pipelines.iter().zip(ids) {
        writeln!(io::stdout(), "{}: {id}", pipeline.name)?;
    }
    Ok(())
}
