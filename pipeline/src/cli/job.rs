//! `orderflow run` and `orderflow replay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use orderflow::config::Config;
use orderflow::job_plan::{Cluster, Handles, ReplayPlan, RunPlan, Stop, Summary};
use orderflow::metrics::Metrics;
use orderflow::status::{Health, Phase, StatusServer};
use orderflow::{job, logging};

use super::CliError;
use super::progress::Display;
use super::settings::SettingsArgs;
use super::supervise::{SuperviseArgs, stop_with_supervisor, supervise};

/// Run the job: topics in, decisions out, until it is told to stop
///
/// SIGINT and SIGTERM end it after what is in flight: sealed, decided, committed. A second one ends it at once, which loses
/// nothing either: it goes on where it was when it is started again.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow run --config orderflow.toml
  orderflow run --set source.kafka.brokers=redpanda:9092 --set sinks.clickhouse.enabled=true
  orderflow run --supervise --config orderflow.toml    (is started again when it fails)
  orderflow run --drain --config orderflow.toml        (a batch: what the topics hold now, then the end)
  orderflow run --hosts a:2101,b:2101 --process 0      (and on host b the same with --process 1)")]
pub(super) struct RunArgs {
    /// Take what the topics hold at the start, commit it, make a checkpoint, and end; with --process, only that of process 0 counts
    #[arg(long)]
    drain: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Run the whole job over a folder of recorded messages, to their end
///
/// Reads inventory-*.jsonl and orders-*.jsonl (also .gz and .zst), one split a file, sorted by name; rows of inventory-opening*
/// come before all others. Writes each stream as a
/// Delta table OUT/delta/STREAM. A replay that was killed goes on where it was when the same command is given again.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow generate --orders 100000 --seed 1 --out fixture
  orderflow replay fixture --out out
  orderflow replay fixture --out out --workers 4 --model model.json --set sinks.clickhouse.enabled=true
  orderflow replay fixture --out out --set replay.clock=fixed    (two such replays give the same bytes)")]
pub(super) struct ReplayArgs {
    /// Folder of recorded messages
    #[arg(value_name = "DIR")]
    input: PathBuf,
    /// Folder of the results and of the epoch log; created if need be
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// As if live: so many rows a second arrive, epochs are cut as they do, and their latency is shown
    #[arg(long, value_name = "ROWS", value_parser = rate)]
    rate: Option<f64>,
    /// Serve metrics and the status page while it runs, at HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct CommonArgs {
    /// Worker threads of this process; 0 for one a core. Results do not depend on it
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Fraud model (JSON) instead of the built-in baseline
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// All processes of the job, as host:port, separated by commas; the same list for each
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', requires = "process")]
    hosts: Vec<String>,
    /// Which of --hosts this process is, from 0
    #[arg(long, value_name = "I", requires = "hosts")]
    process: Option<usize>,
    /// No progress bar
    #[arg(long)]
    no_progress: bool,
    #[command(flatten)]
    supervise: SuperviseArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl CommonArgs {
    fn config(&self) -> Result<Config, CliError> {
        let workers = self.workers.map(|n| format!("job.workers={n}"));
        let model = self.model.as_ref().map(|path| format!("fraud.model={}", path.display()));
        Ok(self.settings.load(workers.into_iter().chain(model))?)
    }

    fn cluster(&self) -> Result<Option<Cluster>, CliError> {
        let Some(process) = self.process else { return Ok(None) };
        if process >= self.hosts.len() {
            let last = self.hosts.len() - 1;
            return Err(CliError::Usage(format!(
                "--process {process} is not in --hosts, which has {}: choose 0 to {last}",
                self.hosts.len()
            )));
        }
        if let Some(wrong) = self.hosts.iter().find(|host| !host.contains(':')) {
            return Err(CliError::Usage(format!("--hosts has `{wrong}` without a port; write host:port")));
        }
        Ok(Some(Cluster { hosts: self.hosts.clone(), process }))
    }
}

pub(super) fn run(args: RunArgs) -> Result<(), CliError> {
    let (config, cluster) = (args.common.config()?, args.common.cluster()?);
    if args.common.supervise.is_supervisor() {
        return supervise(&config);
    }
    // A live job has no end to show the way to.
    let session = Session::start(&config, Stop::default(), false, &config.metrics.listen)?.supervised(&args.common.supervise)?;
    let plan = RunPlan { config, cluster, drain: args.drain, handles: session.handles.clone() };
    session.finish(job::run(plan)).map(drop)
}

pub(super) fn replay(args: ReplayArgs) -> Result<(), CliError> {
    let (config, cluster) = (args.common.config()?, args.common.cluster()?);
    if args.common.supervise.is_supervisor() {
        return supervise(&config);
    }
    let session = Session::start(&config, Stop::default(), !args.common.no_progress, args.metrics.as_deref().unwrap_or_default())?
        .supervised(&args.common.supervise)?;
    let summary = run_replay(session, config, cluster, args.input, args.out, args.rate)?;
    eprintln!("{summary}");
    if let (Some(_), Some(latency)) = (args.rate, summary.latency) {
        eprintln!("from an order's arrival to its decision: {latency}");
    }
    Ok(())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(|| "must be a number above 0".to_owned())
}

/// A replay to its end.
pub(super) fn run_replay(
    session: Session,
    config: Config,
    cluster: Option<Cluster>,
    input: PathBuf,
    out: PathBuf,
    rate: Option<f64>,
) -> Result<Summary, CliError> {
    if !input.is_dir() {
        let hint = "give a folder with inventory-*.jsonl and orders-*.jsonl, or make one with `orderflow generate`";
        return Err(CliError::Usage(format!("there is no folder {}; {hint}", input.display())));
    }
    let plan = ReplayPlan { config, input, out, rate, cluster, handles: session.handles.clone() };
    let summary = session.finish(job::replay(plan))?;
    if summary.stopped {
        return Err(CliError::Failed("stopped before the end of the input; the same command goes on from there".to_owned()));
    }
    Ok(summary)
}

/// What surrounds a running job: logs, bar, status server, signals.
pub(super) struct Session {
    handles: Handles,
    bar: indicatif::ProgressBar,
    server: Option<StatusServer>,
}

impl Session {
    /// Signals ask `stop`; metrics are served at `listen`, nowhere if that is empty.
    pub(super) fn start(config: &Config, stop: Stop, progress: bool, listen: &str) -> Result<Session, CliError> {
        let display = Display::new(progress);
        logging::start(&config.log, display.log_writer());
        let (bar, report) = display.job_bar("replay");
        let handles = Handles { metrics: Metrics::new(), progress: report, stop, health: Health::default() };
        stop_on_signals(handles.stop.clone())?;
        let server = match listen {
            "" => None,
            _ => Some(
                StatusServer::start(listen, &config.job.id, handles.metrics.clone(), handles.health.clone()).map_err(CliError::failed)?,
            ),
        };
        if let Some(server) = &server {
            tracing::info!(address = %server.address(), "status page and metrics are served");
        }
        Ok(Session { handles, bar, server })
    }

    /// Also stops with the supervisor, if there is one.
    fn supervised(self, args: &SuperviseArgs) -> Result<Session, CliError> {
        if let Some(restarts) = args.restarts() {
            self.handles.metrics.restarts(restarts);
            stop_with_supervisor(self.handles.stop.clone())?;
        }
        Ok(self)
    }

    /// What a plan takes of it.
    pub(super) fn handles(&self) -> Handles {
        self.handles.clone()
    }

    /// Ends with what the job ended with.
    pub(super) fn finish(self, result: Result<Summary, job::JobError>) -> Result<Summary, CliError> {
        self.bar.finish_and_clear();
        if result.is_err() {
            self.handles.health.set(Phase::Failed);
        }
        drop(self.server);
        let summary = result.map_err(|error| {
            if error.is_taken_over() {
                CliError::TakenOver(error.to_string())
            } else if error.is_of_settings() {
                CliError::Usage(error.to_string())
            } else {
                CliError::failed(error)
            }
        })?;
        tracing::info!(epochs = summary.epochs, rows = summary.rows_in, orders = summary.decisions.total(), "the job ended");
        Ok(summary)
    }
}

/// The first SIGINT or SIGTERM asks the job to end, the second ends the process.
fn stop_on_signals(stop: Stop) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| CliError::Failed(format!("cannot wait for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let wait = move || {
        let mut next = || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 }
            })
        };
        next();
        tracing::warn!("stopping: what is in flight is still committed; a second signal stops at once");
        stop.request();
        let status = next();
        // Gives the log a moment to be written.
        std::thread::sleep(Duration::from_millis(10));
        std::process::exit(status);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok(())
}
