//! `orderflow sql`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use clap::{Args, Subcommand, ValueEnum};
use orderflow_operators::epoch::EpochInfo;
use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::Stream;
use orderflow_sql::golden::test_folder;
use orderflow_sql::graph::SinkEdge;
use orderflow_sql::run::{FileSinks, RunSettings, Summary, run};
use orderflow_sql::stage::{NamedStream, Stage};

use super::CliError;
use super::settings::SettingsArgs;

/// Check, explain, run and test stages: SQL files in Arroyo's dialect
#[derive(Subcommand)]
pub(super) enum SqlCommand {
    /// Say whether stages can be planned, and what is wrong with those that cannot
    #[command(after_help = "Example:\n  orderflow sql check sql/stages/*.sql")]
    Check {
        /// Stages
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print the plan of a stage
    #[command(after_help = "Examples:
  orderflow sql explain sql/stages/revenue.sql
  orderflow sql explain sql/stages/revenue.sql --format dot | dot -Tsvg > plan.svg")]
    Explain {
        /// The stage
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// As text, or as a graph for Graphviz
        #[arg(long, default_value = "text")]
        format: ExplainFormat,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Run a stage by itself, on files
    #[command(after_help = "Example:\n  orderflow sql run pipeline.sql --workers 4")]
    Run(RunStageArgs),
    /// Test the stages of a folder against its golden files
    #[command(after_help = "Example:\n  orderflow sql test sql/tests/stages")]
    Test {
        /// Folder of stages, with inputs/ and golden/
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Write what comes out into golden/ first
        #[arg(long)]
        update: bool,
    },
}

#[derive(Args)]
pub(super) struct RunStageArgs {
    /// The stage; it reads tables of connector single_file and filesystem
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder that paths in the stage are relative to; without it, the current one
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Worker threads; the result is the same for every number
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    workers: u16,
    /// Rows of an epoch. What is late depends on it, as the watermark goes on by epochs
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    epoch_rows: u64,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ExplainFormat {
    Text,
    Dot,
}

/// Runs the command.
pub(super) fn sql(command: SqlCommand) -> Result<(), CliError> {
    match command {
        SqlCommand::Check { files, settings } => check(&files, &streams(&settings)?),
        SqlCommand::Explain { file, format, settings } => {
            let stage = plan(&file, &streams(&settings)?)?;
            let text = match format {
                ExplainFormat::Text => stage.graph.to_text(),
                ExplainFormat::Dot => stage.graph.to_dot(),
            };
            Ok(io::stdout().write_all(text.as_bytes())?)
        }
        SqlCommand::Run(args) => run_stage(args),
        SqlCommand::Test { folder, update } => test(&folder, update),
    }
}

/// The job's own streams, as stages see them.
fn streams(settings: &SettingsArgs) -> Result<Vec<NamedStream>, CliError> {
    let config = settings.load([])?;
    let widths: Vec<i64> = config.fraud.windows.iter().map(|w| w.as_micros()).collect();
    let windows = WindowSet::new(&widths).map_err(|e| CliError::Usage(format!("fraud.windows: {e}")))?;
    Ok(Stream::ALL.map(|stream| NamedStream { name: stream.name().to_owned(), schema: stream.schema(&windows), updating: false }).to_vec())
}

fn plan(file: &Path, streams: &[NamedStream]) -> Result<Stage, CliError> {
    let text = std::fs::read_to_string(file).map_err(|e| CliError::Failed(format!("{}: {e}", file.display())))?;
    Stage::plan(&text, streams).map_err(|e| CliError::Failed(format!("{}: {e}", file.display())))
}

fn check(files: &[PathBuf], streams: &[NamedStream]) -> Result<(), CliError> {
    let mut wrong = Vec::new();
    for file in files {
        match plan(file, streams) {
            Ok(stage) => {
                let sinks = stage.graph.sinks.len();
                writeln!(io::stdout(), "{}: fine, {} operators, {sinks} outputs", file.display(), stage.graph.len())?;
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(CliError::Failed(wrong.join("\n"))) }
}

fn run_stage(args: RunStageArgs) -> Result<(), CliError> {
    let stage = plan(&args.file, &[])?;
    let base = args.base.unwrap_or_else(|| PathBuf::from("."));
    let sinks = Arc::new(Mutex::new(FileSinks::create(&stage, &base).map_err(CliError::failed)?));
    let to = sinks.clone();
    let settings = RunSettings { base, workers: usize::from(args.workers), epoch_rows: args.epoch_rows, stop_after: None, resume: None };
    let write = move |number: usize, edge: &SinkEdge, _: &EpochInfo, rows: RecordBatch| {
        to.lock().unwrap_or_else(PoisonError::into_inner).write(number, edge, &rows)
    };
    let summary = run(&stage, settings, Box::new(write)).map_err(CliError::failed)?;
    sinks.lock().unwrap_or_else(PoisonError::into_inner).finish().map_err(CliError::failed)?;
    report(&stage, &summary)
}

fn report(stage: &Stage, summary: &Summary) -> Result<(), CliError> {
    let mut out = io::stderr();
    writeln!(out, "{} rows in {} epochs", summary.rows_in, summary.epochs)?;
    for (edge, rows) in stage.graph.sinks.iter().zip(&summary.rows_out) {
        let name = if edge.table.is_empty() { "the query" } else { &edge.table };
        writeln!(out, "{name}: {rows} rows")?;
    }
    let told = [
        (summary.malformed, "messages could not be read", &summary.first_malformed),
        (summary.errors, "rows were left out: an expression has no value for them", &summary.first_error),
        (summary.late, "rows were late: their window was over", &None),
    ];
    for (count, what, example) in told {
        if count > 0 {
            let example = example.as_ref().map(|e| format!("; the first: {e}")).unwrap_or_default();
            writeln!(out, "{count} {what}{example}")?;
        }
    }
    Ok(())
}

fn test(folder: &Path, update: bool) -> Result<(), CliError> {
    let mut failed = 0;
    let outcomes = test_folder(folder, update, |outcome| {
        let line = match &outcome.error {
            None => format!("ok     {}", outcome.name),
            Some(error) => {
                failed += 1;
                format!("WRONG  {}\n{error}", outcome.name)
            }
        };
        // Who reads the output may be gone; the exit status still tells.
        let _ = writeln!(io::stdout(), "{line}");
    });
    let outcomes = outcomes.map_err(CliError::Failed)?;
    if failed > 0 {
        return Err(CliError::Failed(format!("{failed} of {} stages are wrong", outcomes.len())));
    }
    Ok(())
}
