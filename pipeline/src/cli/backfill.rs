//! `orderflow backfill`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use orderflow::config::{Config, SinkKind};
use orderflow::job;
use orderflow::job_plan::{BackfillFrom, BackfillPlan, ReplayFolders, Stop};

use super::CliError;
use super::job::Session;
use super::settings::SettingsArgs;

/// Fill a new sink with what a job has recorded
///
/// Plays the epochs behind a checkpoint, or all of them, through the last one that the epoch log has now, into one sink and nothing else. The job may
/// run meanwhile, as long as it does not write to the same sink. A backfill that was ended goes on where it was when it is started again. Then
/// the job can be started with this sink turned on: it goes on there.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow backfill --sink clickhouse --from start --config my.toml --set sinks.clickhouse.database=reports
  orderflow backfill --sink delta --from before-upgrade --config my.toml --set sinks.delta.url=s3://lake/orders
  orderflow backfill --sink jsonl --from start --input fixture --folder out --set sinks.jsonl.path=lines

  Checkpoints come and go while the job runs: keep one first, by `orderflow checkpoint savepoint NAME`.")]
pub(super) struct BackfillArgs {
    /// The sink, as the settings say; whether they turn it on does not matter
    #[arg(long, value_enum)]
    sink: Sink,
    /// Epoch of a checkpoint or name of a savepoint: rows begin behind it; `start` for all
    #[arg(long, value_name = "CHECKPOINT")]
    from: String,
    /// Of a replay: its folder of recorded messages
    #[arg(long, value_name = "DIR", requires = "folder")]
    input: Option<PathBuf>,
    /// Of a replay: its folder, --out
    #[arg(long, value_name = "OUT", requires = "input")]
    folder: Option<PathBuf>,
    /// Worker threads; 0 for one a core. Results do not depend on it
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Fraud model (JSON), if the job has another than the built-in one
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Serve metrics and the status page while it runs, at HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// No progress bar
    #[arg(long)]
    no_progress: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sink {
    /// Delta Lake
    Delta,
    /// ClickHouse
    Clickhouse,
    /// Kafka or Redpanda
    Kafka,
    /// JSON lines
    Jsonl,
}

/// In the place of a checkpoint: with the first epoch.
pub(super) const START: &str = "start";

pub(super) fn backfill(args: BackfillArgs) -> Result<(), CliError> {
    let config = config(&args)?;
    let sink = match args.sink {
        Sink::Delta => SinkKind::Delta,
        Sink::Clickhouse => SinkKind::ClickHouse,
        Sink::Kafka => SinkKind::Kafka,
        Sink::Jsonl => SinkKind::JsonLines,
    };
    let from = match args.from.as_str() {
        START => BackfillFrom::Start,
        checkpoint => BackfillFrom::Checkpoint(checkpoint.to_owned()),
    };
    let replay = args.input.zip(args.folder).map(|(input, out)| ReplayFolders { input, out });
    let session = Session::start(&config, Stop::default(), !args.no_progress, args.metrics.as_deref().unwrap_or_default())?;
    let plan = BackfillPlan { config, sink, from, replay, handles: session.handles() };
    let summary = session.finish(job::backfill(plan))?;
    if summary.stopped {
        return Err(CliError::Failed("stopped before the end of the epoch log; the same command goes on from there".to_owned()));
    }
    eprintln!("the sink has everything through epoch {}", summary.epochs);
    Ok(())
}

fn config(args: &BackfillArgs) -> Result<Config, CliError> {
    let workers = args.workers.map(|n| format!("job.workers={n}"));
    let model = args.model.as_ref().map(|path| format!("fraud.model={}", path.display()));
    Ok(args.settings.load(workers.into_iter().chain(model))?)
}
