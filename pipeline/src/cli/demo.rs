//! `orderflow demo`: the whole job, shown on generated orders, with a ClickHouse of its own.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use orderflow::config::Config;
use orderflow::job_plan::{Stop, Summary};
use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ServeCommand, ServerOptions, serve_foreground, serve_from_env};
use orderflow_sinks::clickhouse::reports::Report;

use super::progress::Display;
use super::table::{grouped, render};
use super::{CliError, generate, job, report};

/// Show the whole job: generate orders with a flash sale, run them into Delta Lake and a real ClickHouse, print the reports
///
/// Starts a ClickHouse of its own (fetched once by npm, checksum verified, into the cache folder), generates orders, replays them
/// through the whole job, and prints throughput, decisions by kind and the reports. Tables and fixture stay in --out.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow demo
  orderflow demo --orders 100000 --keep    (and query its ClickHouse until Ctrl-C)")]
pub(super) struct DemoArgs {
    /// How many orders to generate
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    orders: u64,
    /// Seed of the generator: the same seed gives the same orders
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Folder of the demo; that of an earlier demo is replaced
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    out: PathBuf,
    /// Worker threads; 0 for one a core
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Keep ClickHouse up at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// One setting: --set epoch.rows_max=1000; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// No progress bars
    #[arg(long)]
    no_progress: bool,
}

/// A ClickHouse for development, on 127.0.0.1, without a password
#[derive(Args)]
pub(super) struct ServerArgs {
    /// Its folder
    #[arg(default_value = "data/clickhouse")]
    folder: PathBuf,
    /// Port of the HTTP interface
    #[arg(long, default_value_t = 8123)]
    http_port: u16,
    /// Port of the native interface
    #[arg(long, default_value_t = 9000)]
    tcp_port: u16,
}

/// Most rows of each report.
const REPORT_ROWS: u64 = 10;
/// By this file an earlier demo's folder is told from one that must not be removed.
const MARKER: &str = ".orderflow-demo";

pub(super) fn demo(args: DemoArgs) -> Result<(), CliError> {
    let mut out = io::stdout();
    // Checked before anything is fetched or generated.
    let mut config = load(&args, "http://127.0.0.1:8123")?;
    prepare(&args.out)?;
    let folder = args.out.canonicalize()?;

    writeln!(out, "1. Starting ClickHouse (the first time on a machine it is fetched, 180 MB)")?;
    let command = ServeCommand::this_program(["dev-clickhouse"]).map_err(CliError::failed)?;
    let mut server = ClickHouseServer::start(ServerOptions::new(folder.join("clickhouse"), command)).map_err(CliError::failed)?;
    let url = server.url();
    writeln!(out, "   {url}, version {}", server.post("SELECT version()").unwrap_or_default().trim())?;

    writeln!(out, "2. Generating {} orders with a flash sale, seed {}", grouped(args.orders), args.seed)?;
    let fixture = folder.join("fixture");
    let display = Display::new(!args.no_progress);
    let started = Instant::now();
    let messages = generate::demo_fixture(args.orders, args.seed, &fixture, &display)?;
    writeln!(out, "   {} messages in {:.1} s", grouped(messages), started.elapsed().as_secs_f64())?;

    config = Config { sinks: load(&args, &url)?.sinks, ..config };
    writeln!(out, "3. Running them through the whole job, {} workers, into Delta Lake and ClickHouse", config.job.worker_count())?;
    let clickhouse = config.sinks.clickhouse.clone();
    let job = folder.join("job");
    let stop = Stop::default();
    let session = job::Session::start(&config, stop.clone(), !args.no_progress, "")?;
    let summary = job::run_replay(session, config, None, fixture, job.clone(), None)?;

    writeln!(out, "\n{}", throughput(&summary))?;
    writeln!(out, "{}", decisions(&summary))?;
    for table in report::run(&Report::ALL, &clickhouse, REPORT_ROWS)? {
        writeln!(out, "{}", render(table.title, &table.columns, &table.rows))?;
    }
    writeln!(out, "{}", hints(&job, &args.out))?;
    if args.keep {
        let address = format!("{url}/?database={}&default_format=PrettyCompact", clickhouse.database);
        writeln!(
            out,
            "ClickHouse is up until Ctrl-C:\n  curl '{address}' -d 'SELECT decision, reason, count() FROM order_decisions GROUP BY ALL'"
        )?;
        while !stop.requested() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    server.stop();
    Ok(())
}

/// The demo's settings, with ClickHouse at `url`.
fn load(args: &DemoArgs, url: &str) -> Result<Config, CliError> {
    let own = ["job.id=demo".to_owned(), "log.level=warn".to_owned(), "sinks.clickhouse.enabled=true".to_owned()];
    let workers = args.workers.map(|n| format!("job.workers={n}"));
    let last = format!("sinks.clickhouse.url={url}");
    let overrides: Vec<String> = own.into_iter().chain(args.overrides.iter().cloned()).chain(workers).chain([last]).collect();
    Ok(Config::load(None, &overrides)?)
}

/// An empty folder that is marked as a demo's.
fn prepare(folder: &Path) -> Result<(), CliError> {
    let failed = |what: &str, e: io::Error| CliError::Failed(format!("cannot {what} {}: {e}", folder.display()));
    let marker = folder.join(MARKER);
    match std::fs::read_dir(folder) {
        Ok(mut entries) => {
            if marker.exists() {
                std::fs::remove_dir_all(folder).map_err(|e| failed("remove the earlier demo", e))?;
            } else if entries.next().is_some() {
                let hint = "choose an empty folder by --out";
                return Err(CliError::Failed(format!("{} is not empty and not of an earlier demo; {hint}", folder.display())));
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", e)),
    }
    std::fs::create_dir_all(folder).and_then(|()| std::fs::write(marker, "")).map_err(|e| failed("create", e))
}

fn throughput(summary: &Summary) -> String {
    let heads = ["throughput", ""].map(str::to_owned);
    let rows = [
        ("rows in", grouped(summary.rows_in)),
        ("orders decided", grouped(summary.decisions.total())),
        ("epochs", grouped(summary.epochs)),
        ("seconds, to the last commit", format!("{:.1}", summary.seconds)),
        ("orders a second", grouped(summary.orders_per_second() as u64)),
        ("CPU seconds of the job per million orders", format!("{:.2}", summary.cpu_seconds_per_million())),
    ];
    render("Throughput", &heads, &rows.map(|(name, value)| vec![name.to_owned(), value]))
}

fn decisions(summary: &Summary) -> String {
    let heads = ["decision", "orders", "share"].map(str::to_owned);
    let total = summary.decisions.total().max(1) as f64;
    let row = |(kind, count): (&str, u64)| vec![kind.to_owned(), grouped(count), format!("{:.2} %", count as f64 * 100.0 / total)];
    let mut rows: Vec<_> = summary.decisions.by_kind().into_iter().map(row).collect();
    rows.push(vec!["malformed messages".to_owned(), grouped(summary.dead_letters), String::new()]);
    render("Decisions", &heads, &rows)
}

fn hints(job: &Path, out: &Path) -> String {
    let delta = job.join("delta");
    format!(
        "The tables stay in {delta}; read them with

  Python:  from deltalake import DeltaTable
           DeltaTable('{delta}/order_decisions').to_pandas().groupby(['decision', 'reason']).size()
  DuckDB:  INSTALL delta; LOAD delta;
           SELECT decision, reason, count(*) FROM delta_scan('{delta}/order_decisions') GROUP BY ALL;

The epoch log: orderflow epochs {job}
Again, with ClickHouse kept up: orderflow demo --keep    (replaces {out})",
        delta = delta.display(),
        job = job.display(),
        out = out.display()
    )
}

/// The hidden subcommand: the server itself if this process was started as one, else one in the foreground.
pub(super) fn serve(args: ServerArgs) -> Result<(), CliError> {
    serve_from_env();
    println!("ClickHouse on http://127.0.0.1:{} (native: {}), data in {}", args.http_port, args.tcp_port, args.folder.display());
    let Err(error) = serve_foreground(&args.folder, args.http_port, args.tcp_port);
    Err(CliError::failed(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demos_folder_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let precious = folder.path().join("precious");
        std::fs::write(&precious, "x").expect("writes");
        let error = prepare(folder.path()).expect_err("is not empty").to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert!(precious.exists());

        let fresh = folder.path().join("a/b");
        prepare(&fresh).expect("is created");
        std::fs::write(fresh.join("old"), "x").expect("writes");
        prepare(&fresh).expect("is replaced");
        assert!(!fresh.join("old").exists());
    }

    #[test]
    fn the_demo_settings_can_be_overridden() {
        let args = DemoArgs {
            orders: 1,
            seed: 1,
            out: PathBuf::new(),
            workers: Some(3),
            keep: false,
            overrides: vec!["epoch.rows_max=7".into()],
            no_progress: true,
        };
        let config = load(&args, "http://127.0.0.1:5").expect("right");
        assert_eq!((config.job.workers, config.epoch.rows_max), (3, 7));
        assert!(config.sinks.clickhouse.enabled && config.sinks.delta.enabled);
        assert_eq!(config.sinks.clickhouse.url, "http://127.0.0.1:5");
    }
}
