//! `orderflow sql`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use clap::{Args, Subcommand, ValueEnum};
use orderflow::config::Config;
use orderflow::job::kafka_settings;
use orderflow::source::{KafkaSettings, TopicLines, copy_topic};
use orderflow_operators::epoch::EpochInfo;
use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::Stream;
use orderflow_sql::golden::test_folder;
use orderflow_sql::graph::SinkEdge;
use orderflow_sql::run::{FileSinks, RunSettings, Summary, run};
use orderflow_sql::stage::catalog::{Connector, Format, Table};
use orderflow_sql::stage::{NamedStream, Stage};
use orderflow_sql::udf::{self, Builder, Definition, Udfs};

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
        udfs: UdfArgs,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print the plan of a stage
    #[command(after_help = "Examples:
  orderflow sql explain sql/stages/revenue.sql
  orderflow sql explain sql/stages/revenue.sql --format svg > plan.svg
  orderflow sql explain sql/stages/revenue.sql --format dot | dot -Tpng > plan.png")]
    Explain {
        /// The stage
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// As text, as a graph for Graphviz, or as a picture
        #[arg(long, default_value = "text")]
        format: ExplainFormat,
        #[command(flatten)]
        udfs: UdfArgs,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Run a stage by itself, on files, or on what topics hold now
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
        #[command(flatten)]
        udfs: UdfArgs,
    },
    /// Functions of one's own, written with Arroyo's crate arroyo-udf-plugin
    #[command(subcommand)]
    Udf(UdfCommand),
}

#[derive(Subcommand)]
pub(super) enum UdfCommand {
    /// Build functions into the cache, where stages find them
    #[command(after_help = "Example:\n  orderflow sql udf build sql/udfs/*.rs")]
    Build {
        /// Rust files, each with one function under #[udf]
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// Where functions are that stages call.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct UdfArgs {
    /// Folder of functions that the stage may call; without it, the nearest folder `udfs` beside the stage or up to two folders above
    #[arg(long, value_name = "DIR")]
    udfs: Option<PathBuf>,
}

impl UdfArgs {
    /// The folder for the stages of a folder.
    fn folder(&self, stages: &Path) -> Option<PathBuf> {
        self.udfs.clone().or_else(|| udf::folder_of(stages))
    }

    /// The functions that a stage's text calls, built and loaded; says so when it builds one, which takes a while.
    pub(super) fn load(&self, stage: &Path, text: &str) -> Result<Udfs, CliError> {
        let Some(folder) = stage.parent().and_then(|beside| self.folder(beside)) else { return Ok(Udfs::default()) };
        let called = udf::called(text, udf::read_folder(&folder).map_err(CliError::failed)?);
        if called.is_empty() {
            return Ok(Udfs::default());
        }
        let builder = Builder::of_user().map_err(CliError::failed)?;
        for definition in called.iter().filter(|definition| !builder.has(definition)) {
            writeln!(io::stderr(), "building {}; the first build takes a minute or two", definition.path.display())?;
        }
        Udfs::load(&called, &builder).map_err(CliError::failed)
    }
}

#[derive(Args)]
pub(super) struct RunStageArgs {
    /// The stage; it reads tables of connector single_file, filesystem and kafka
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
    #[command(flatten)]
    udfs: UdfArgs,
    /// Of these, tables of topics take source.kafka
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ExplainFormat {
    Text,
    Dot,
    Svg,
}

/// Runs the command.
pub(super) fn sql(command: SqlCommand) -> Result<(), CliError> {
    match command {
        SqlCommand::Check { files, udfs, settings } => check(&files, &udfs, &streams(&settings)?),
        SqlCommand::Explain { file, format, udfs, settings } => {
            let stage = plan(&file, &udfs, &streams(&settings)?)?;
            let text = match format {
                ExplainFormat::Text => stage.graph.to_text(),
                ExplainFormat::Dot => stage.graph.to_dot(),
                ExplainFormat::Svg => stage.graph.to_svg(),
            };
            Ok(io::stdout().write_all(text.as_bytes())?)
        }
        SqlCommand::Run(args) => run_stage(args),
        SqlCommand::Test { folder, update, udfs } => test(&folder, &udfs, update),
        SqlCommand::Udf(UdfCommand::Build { files }) => build_udfs(&files),
    }
}

/// The job's own streams, as stages see them.
fn streams(settings: &SettingsArgs) -> Result<Vec<NamedStream>, CliError> {
    streams_of(&settings.load([])?)
}

/// The same, of settings that are loaded.
pub(super) fn streams_of(config: &Config) -> Result<Vec<NamedStream>, CliError> {
    let widths: Vec<i64> = config.fraud.windows.iter().map(|w| w.as_micros()).collect();
    let windows = WindowSet::new(&widths).map_err(|e| CliError::Usage(format!("fraud.windows: {e}")))?;
    Ok(Stream::ALL.map(|stream| NamedStream { name: stream.name().to_owned(), schema: stream.schema(&windows), updating: false }).to_vec())
}

fn plan(file: &Path, udfs: &UdfArgs, streams: &[NamedStream]) -> Result<Stage, CliError> {
    let text = std::fs::read_to_string(file).map_err(|e| CliError::Failed(format!("{}: {e}", file.display())))?;
    Stage::plan_with(&text, streams, &udfs.load(file, &text)?).map_err(|e| CliError::Failed(format!("{}: {e}", file.display())))
}

fn build_udfs(files: &[PathBuf]) -> Result<(), CliError> {
    let builder = Builder::of_user().map_err(CliError::failed)?;
    let mut wrong = Vec::new();
    for file in files {
        match Definition::read(file).and_then(|definition| Ok((builder.build(&definition)?, definition))) {
            Ok((built, definition)) => {
                let how = if built.was_cached { "built before" } else { "built" };
                writeln!(io::stdout(), "{}: {how}, {} in {}", file.display(), definition.signature(), built.library.display())?;
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(CliError::Failed(wrong.join("\n"))) }
}

fn check(files: &[PathBuf], udfs: &UdfArgs, streams: &[NamedStream]) -> Result<(), CliError> {
    let mut wrong = Vec::new();
    for file in files {
        match plan(file, udfs, streams) {
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
    let mut stage = plan(&args.file, &args.udfs, &[])?;
    let base = args.base.unwrap_or_else(|| PathBuf::from("."));
    let config = args.settings.load([])?;
    let sinks = FileSinks::create(&stage, &base, |table| match table.connector {
        Connector::Kafka => {
            let (settings, topic) = topic_of(table, &config)?;
            let lines = TopicLines::connect(&settings, topic).map_err(|e| e.to_string())?;
            Ok(Some(Box::new(lines) as Box<dyn Write + Send>))
        }
        _ => Ok(None),
    });
    let sinks = Arc::new(Mutex::new(sinks.map_err(CliError::failed)?));
    // Gone when the run is over.
    let _copies = copy_topics(&mut stage, &config)?;
    let to = sinks.clone();
    let settings = RunSettings { base, workers: usize::from(args.workers), epoch_rows: args.epoch_rows, stop_after: None, resume: None };
    let write = move |number: usize, edge: &SinkEdge, _: &EpochInfo, rows: RecordBatch| {
        to.lock().unwrap_or_else(PoisonError::into_inner).write(number, edge, &rows)
    };
    let summary = run(&stage, settings, Box::new(write)).map_err(CliError::failed)?;
    sinks.lock().unwrap_or_else(PoisonError::into_inner).finish().map_err(CliError::failed)?;
    report(&stage, &summary)
}

/// Where a table's topic is, and its name.
fn topic_of<'a>(table: &'a Table, config: &Config) -> Result<(KafkaSettings, &'a str), String> {
    let topic = table.option("topic").ok_or("it has no topic: add topic = '…' to its options")?;
    if table.format == Format::Parquet {
        return Err("messages are of format 'json' or 'debezium_json', not of 'parquet'".to_owned());
    }
    let mut settings = kafka_settings(config);
    if let Some(brokers) = table.option("bootstrap_servers") {
        brokers.clone_into(&mut settings.brokers);
    }
    Ok((settings, topic))
}

/// Makes tables of files of those that read topics; the files are in the folder that is returned.
fn copy_topics(stage: &mut Stage, config: &Config) -> Result<Option<tempfile::TempDir>, CliError> {
    let mut folder = None;
    for (number, input) in stage.inputs.iter_mut().enumerate().filter(|(_, input)| input.table.connector == Connector::Kafka) {
        let wrong = |table: &Table, e: &dyn std::fmt::Display| CliError::Failed(format!("table `{}`: {e}", table.name));
        let copies = match &folder {
            Some(folder) => folder,
            None => folder.insert(tempfile::tempdir().map_err(CliError::failed)?),
        };
        let path = copies.path().join(number.to_string());
        std::fs::create_dir(&path).map_err(CliError::failed)?;
        let (settings, topic) = topic_of(&input.table, config).map_err(|e| wrong(&input.table, &e))?;
        let messages = copy_topic(&settings, topic, &path).map_err(|e| wrong(&input.table, &e))?;
        writeln!(io::stderr(), "{messages} messages of topic {topic}")?;
        input.table.connector = Connector::Filesystem;
        input.table.options.push(("path".to_owned(), path.display().to_string()));
    }
    Ok(folder)
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

fn test(folder: &Path, udfs: &UdfArgs, update: bool) -> Result<(), CliError> {
    let mut failed = 0;
    let udfs = udfs.folder(folder);
    let outcomes = test_folder(folder, udfs.as_deref(), update, |outcome| {
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
