//! Benchmarks of the whole job, each replay in a process of its own so that CPU time and memory are the job's alone.
//!
//! ```text
//! cargo run --release -p orderflow-benches --bin end-to-end -- throughput --orders 1000000 --runs 5
//! cargo run --release -p orderflow-benches --bin end-to-end -- latency --orders-per-s 36000 --seconds 30
//! cargo run --release -p orderflow-benches --bin end-to-end -- memory --orders 6000000
//! cargo run --release -p orderflow-benches --bin end-to-end -- recovery --orders 10000000 --customers 1000000
//! cargo run --release -p orderflow-benches --bin end-to-end -- stages --orders 1000000 --pairs 7
//! ```

mod calm;
mod recovery;
mod stages;
mod stalls;

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use orderflow::allocator;
use orderflow::config::Config;
use orderflow::job;
use orderflow::job_plan::{Handles, ReplayPlan};
use orderflow::metrics::LatencyHistogram;
use orderflow::status::Phase;
use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ServeCommand, ServerOptions, serve_from_env};
use orderflow_fixtures::generate::{Compression, FlashSale, GenerateSettings, write_folder};

use crate::calm::Calm;

/// That of the job's binary.
#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "Benchmarks of the whole job")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Replays a generated folder as fast as it goes, with sinks off and on, one after the other in turn.
    Throughput {
        /// Orders to generate.
        #[arg(long, default_value_t = 1_000_000)]
        orders: u64,
        /// Runs of each.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// Lets rows arrive at a pace and shows how long orders take to their decisions.
    Latency {
        /// Orders that arrive a second, with all that comes with them.
        #[arg(long, default_value_t = 36_000.0)]
        orders_per_s: f64,
        /// How long; seconds.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
        /// Runs.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// Replays with state that stops growing, and shows memory over time.
    Memory {
        /// Orders to generate.
        #[arg(long, default_value_t = 6_000_000)]
        orders: u64,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
    },
    /// Kills a job with much state, and shows how long it takes to be live again, and what checkpoints of that state cost.
    Recovery {
        /// Orders to generate; four in five are state when the job is killed.
        #[arg(long, default_value_t = 10_000_000)]
        orders: u64,
        /// Customers who place them.
        #[arg(long, default_value_t = 1_000_000)]
        customers: u64,
        /// Runs of each.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// Replays a folder without and with SQL stages, in turn, and shows what they cost.
    Stages {
        /// Orders to generate.
        #[arg(long, default_value_t = 1_000_000)]
        orders: u64,
        /// Pairs of runs.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
        /// Worker threads.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Files of stages.
        #[arg(long = "stage", default_values_t = ["sql/stages/revenue_per_minute.sql".to_owned()])]
        stages: Vec<String>,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// One replay, in this process: what the others start.
    #[command(hide = true)]
    Replay {
        input: PathBuf,
        out: PathBuf,
        #[arg(long)]
        rate: Option<f64>,
        /// The process kills itself behind so many rows.
        #[arg(long)]
        rows_max: Option<u64>,
        /// Begins with [`TOUCHED_BYTES`] of memory of its own, and keeps them.
        #[arg(long)]
        with_memory: bool,
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// ClickHouse, in this process.
    #[command(hide = true)]
    ClickHouse,
    /// Takes memory, and ends.
    #[command(hide = true)]
    Touch,
}

fn main() -> ExitCode {
    allocator::set_up();
    let done = match Arguments::parse().bench {
        Bench::Throughput { orders, runs, workers, settings } => throughput(orders, runs, workers, &settings),
        Bench::Latency { orders_per_s, seconds, runs, workers, settings } => latency(orders_per_s, seconds, runs, workers, &settings),
        Bench::Memory { orders, workers } => memory(orders, workers),
        Bench::Recovery { orders, customers, runs, workers, settings } => {
            recovery::recovery(&recovery::Plan { orders, customers, runs, workers, settings })
        }
        Bench::Stages { orders, pairs, workers, stages, settings } => stages::stages(orders, pairs, workers, &stages, &settings),
        Bench::Replay { input, out, rate, rows_max, with_memory, settings } => {
            if with_memory {
                // In pieces that the allocator keeps when they are given back.
                drop(std::hint::black_box(vec![vec![1_u8; 1 << 20]; TOUCHED_BYTES >> 20]));
            }
            replay(input, out, rate, rows_max, &settings)
        }
        Bench::Touch => {
            drop(std::hint::black_box(vec![1_u8; TOUCHED_BYTES]));
            Ok(())
        }
        Bench::ClickHouse => {
            serve_from_env();
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

// --- a replay in a process of its own ------------------------------------------------------

/// What a process touches, and gives back, before each replay. A virtual machine's host may take back what is free there and has to find it again: where the
/// figures of RESULTS.md were taken, that costs 2.5 s for 1 GiB, and 0.15 s what had just been in use.
const TOUCHED_BYTES: usize = 4 << 30;

/// What a replay took.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    orders: f64,
    /// From its start to the last commit.
    seconds: f64,
    /// From its start until all epochs of earlier lives were on their way again.
    live_seconds: f64,
    /// User and system time of the process.
    cpu_seconds: f64,
    user_seconds: f64,
    /// Most memory of the process; bytes.
    memory: f64,
    /// From arrival to decision; milliseconds.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Without those of the first seconds ([`WARM_UP`]).
    warm_p99_ms: f64,
    /// Where the machine did not stand still ([`stalls`]), and the share of rows of which that is; not a number where it is not known.
    calm_p99_ms: f64,
    calm_share: f64,
}

/// From the moment on that a job is live. What comes at a pace begins three seconds later, and then finds tables that have yet to grow, and memory that was
/// never used.
const WARM_UP: Duration = Duration::from_secs(15);

/// The job in this process. One line of numbers is its answer.
fn replay(input: PathBuf, out: PathBuf, rate: Option<f64>, rows_max: Option<u64>, settings: &[String]) -> Outcome<()> {
    let started = Instant::now();
    let config = Config::load(None, settings)?;
    let mut handles = Handles::quiet();
    if let Some(rows_max) = rows_max {
        handles.progress = Arc::new(move |progress| {
            if progress.rows_done >= rows_max {
                // SAFETY: a process may send itself a signal.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        });
    }
    let (health, metrics) = (handles.health.clone(), handles.metrics.clone());
    let while_cold = Arc::new(Mutex::new(LatencyHistogram::default()));
    let (sender, live) = mpsc::channel();
    // Nobody waits for its end: the job may end before.
    std::thread::spawn({
        let (metrics, while_cold) = (metrics.clone(), while_cold.clone());
        move || {
            while matches!(health.phase(), Phase::Starting | Phase::Recovering) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = sender.send(started.elapsed());
            std::thread::sleep(WARM_UP);
            *while_cold.lock().unwrap_or_else(PoisonError::into_inner) = metrics.latencies();
        }
    });
    let calm = rate.and_then(|_| Calm::watch(metrics.clone()));
    let summary = job::replay(ReplayPlan { config, input, out, rate, cluster: None, handles })?;
    let live = live.recv()?;
    let while_cold = while_cold.lock().unwrap_or_else(PoisonError::into_inner);
    let (all, warm) = (summary.latency.unwrap_or_default(), metrics.latencies().since(&while_cold).quantiles().unwrap_or_default());
    let [p50, p99, max, warm_p99] = [all.p50, all.p99, all.max, warm.p99].map(|time| time.as_secs_f64() * 1e3);
    let (calm_p99, calm_share) = calm.map_or((f64::NAN, f64::NAN), |calm| {
        let (latency, share) = calm.end(&metrics.latencies());
        (latency.p99.as_secs_f64() * 1e3, share)
    });
    println!(
        "{} {} {} {p50} {p99} {max} {warm_p99} {calm_p99} {calm_share}",
        summary.decisions.total(),
        summary.seconds,
        live.as_secs_f64()
    );
    Ok(())
}

/// A replay that is to be started.
#[derive(Clone, Copy)]
struct Replay<'a> {
    input: &'a Path,
    out: &'a Path,
    settings: &'a [String],
    rate: Option<f64>,
    rows_max: Option<u64>,
    /// It has its memory from the start, as a job has that has run for a while.
    with_memory: bool,
}

impl<'a> Replay<'a> {
    fn new(input: &'a Path, out: &'a Path, settings: &'a [String]) -> Replay<'a> {
        Replay { input, out, settings, rate: None, rows_max: None, with_memory: false }
    }
}

fn start(replay: Replay<'_>) -> Outcome<Child> {
    let program = std::env::current_exe()?;
    if !Command::new(&program).arg("touch").status()?.success() {
        return Err("memory could not be had".into());
    }
    let mut command = Command::new(program);
    command.arg("replay").arg(replay.input).arg(replay.out);
    if let Some(rate) = replay.rate {
        command.arg("--rate").arg(rate.to_string());
    }
    if let Some(rows) = replay.rows_max {
        command.arg("--rows-max").arg(rows.to_string());
    }
    if replay.with_memory {
        command.arg("--with-memory").env("MIMALLOC_PURGE_DELAY", "-1");
    }
    for setting in replay.settings {
        command.arg("--set").arg(setting);
    }
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}

/// Waits for its end, for what it used, and reads its answer.
fn finish(mut child: Child) -> Outcome<Measured> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value of that plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and was not waited for; both pointers are to live values of the right types.
    if unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let mut answer = String::new();
    if let Some(out) = &mut child.stdout {
        std::io::Read::read_to_string(out, &mut answer)?;
    }
    let status = ExitStatus::from_raw(status);
    if !status.success() {
        return Err(format!("the replay ended with {status}").into());
    }
    let numbers: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let &[orders, seconds, live_seconds, p50_ms, p99_ms, max_ms, warm_p99_ms, calm_p99_ms, calm_share] = numbers.as_slice() else {
        return Err(format!("the replay answered `{answer}`").into());
    };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let user_seconds = time(usage.ru_utime);
    let cpu_seconds = user_seconds + time(usage.ru_stime);
    Ok(Measured {
        orders,
        seconds,
        live_seconds,
        cpu_seconds,
        user_seconds,
        memory: usage.ru_maxrss as f64 * 1024.0,
        p50_ms,
        p99_ms,
        max_ms,
        warm_p99_ms,
        calm_p99_ms,
        calm_share,
    })
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

fn column(measured: &[Measured], of: impl Fn(&Measured) -> f64) -> [f64; 3] {
    spread(measured.iter().map(of).collect())
}

/// The same as a table shows it, with so many digits behind the point.
fn cell(measured: &[Measured], digits: usize, of: impl Fn(&Measured) -> f64) -> String {
    let [median, least, most] = column(measured, of);
    format!("{median:.digits$} ({least:.digits$} – {most:.digits$})")
}

fn generate(settings: &GenerateSettings, folder: &Path) -> Outcome<()> {
    let started = Instant::now();
    let written = write_folder(settings, Compression::Plain, folder, |_| ())?;
    println!(
        "{} orders, {} messages, {} MiB, generated in {:.1} s",
        settings.orders,
        written.rows,
        written.bytes >> 20,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

// --- throughput ----------------------------------------------------------------------------

fn throughput(orders: u64, runs: usize, workers: usize, settings: &[String]) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("fixture");
    generate(&GenerateSettings { orders, flash_sale: Some(FlashSale::default()), ..GenerateSettings::default() }, &input)?;
    let serve = ServeCommand::this_program(["click-house"])?;
    let server = ClickHouseServer::start(ServerOptions::new(folder.path().join("clickhouse"), serve))?;
    let variants = [("none", false, false), ("delta", true, false), ("clickhouse", false, true), ("delta + clickhouse", true, true)];
    let mut measured = vec![Vec::new(); variants.len()];
    for run in 0..runs {
        for (&(_, delta, clickhouse), measured) in variants.iter().zip(&mut measured) {
            let mut settings = settings.to_vec();
            settings.push(format!("job.workers={workers}"));
            settings.push(format!("sinks.delta.enabled={delta}"));
            settings.push(format!("sinks.clickhouse.enabled={clickhouse}"));
            settings.push(format!("sinks.clickhouse.url={}", server.url()));
            // A database and a job of its own: what another run committed would be skipped.
            settings.push(format!("sinks.clickhouse.database=run_{run}_{delta}"));
            settings.push(format!("job.id=run-{run}-{delta}"));
            let out = folder.path().join("out");
            measured.push(finish(start(Replay::new(&input, &out, &settings))?)?);
            std::fs::remove_dir_all(&out)?;
        }
    }
    println!("{runs} runs each, {workers} workers: median (least – most)\n");
    println!("| sinks | orders/s | CPU s per million orders | of it user | most memory, MiB |\n| --- | --- | --- | --- | --- |");
    for ((name, ..), measured) in variants.iter().zip(&measured) {
        println!(
            "| {name} | {} K | {} | {} | {} |",
            cell(measured, 0, |m| m.orders / m.seconds / 1e3),
            cell(measured, 2, |m| m.cpu_seconds * 1e6 / m.orders),
            cell(measured, 2, |m| m.user_seconds * 1e6 / m.orders),
            cell(measured, 0, |m| m.memory / 1048576.0)
        );
    }
    Ok(())
}

// --- latency -------------------------------------------------------------------------------

fn latency(orders_per_s: f64, seconds: f64, runs: usize, workers: usize, settings: &[String]) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("fixture");
    let orders = (orders_per_s * seconds) as u64;
    // Event time goes as fast as arrival; payments and what else follows an order within that time come with the others.
    generate(&GenerateSettings { orders, rate_per_s: orders_per_s, ..GenerateSettings::default() }, &input)?;
    let rows = cut_behind_orders(&input)?;
    let rate = rows as f64 / (seconds * ORDERS_KEPT);
    println!(
        "| run | orders/s | CPU, cores | p50, ms | p99, ms | most, ms | p99 without the first 12 s | p99 where the machine did not stand still | of all orders, % |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for run in 1..=runs {
        let out = folder.path().join("out");
        let mut settings = settings.to_vec();
        settings.push(format!("job.workers={workers}"));
        let measured = finish(start(Replay { rate: Some(rate), with_memory: true, ..Replay::new(&input, &out, &settings) })?)?;
        let Measured { orders, seconds, cpu_seconds, p50_ms, p99_ms, max_ms, warm_p99_ms, calm_p99_ms, calm_share, .. } = measured;
        println!(
            "| {run} | {:.0} | {:.2} | {p50_ms:.1} | {p99_ms:.1} | {max_ms:.1} | {warm_p99_ms:.1} | {calm_p99_ms:.1} | {:.1} |",
            orders / seconds,
            cpu_seconds / seconds,
            calm_share * 100.0
        );
        std::fs::remove_dir_all(&out)?;
    }
    Ok(())
}

/// Of the orders, how many the input ends with. Behind the others there are only payments and shipments of another half an hour, with few orders
/// among them: with all of these at an even pace, most orders would come at twice the pace.
const ORDERS_KEPT: f64 = 0.98;

/// Cuts the files of `folder` off behind [`ORDERS_KEPT`]. Returns the rows that are to come at a pace.
fn cut_behind_orders(folder: &Path) -> Outcome<usize> {
    let mut rows = 0;
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        let mut text = std::fs::read(&path)?;
        // Where each order begins.
        let (mut orders, mut lines, mut at) = (Vec::new(), 0, 0);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            if line.starts_with(br#"{"type":"order_placed""#) {
                orders.push((at, lines));
            }
            at += line.len();
            lines += 1;
        }
        if let Some(&(at, before)) = orders.get((orders.len() as f64 * ORDERS_KEPT) as usize) {
            text.truncate(at);
            std::fs::write(&path, &text)?;
            lines = before;
        }
        if !path.to_string_lossy().contains("opening") {
            rows += lines;
        }
    }
    Ok(rows)
}

// --- memory --------------------------------------------------------------------------------

/// Rows of the table.
const SAMPLES: usize = 12;

fn memory(orders: u64, workers: usize) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("fixture");
    let generated = GenerateSettings { orders, customers: 20_000, skus: 10_000, rate_per_s: 3_000.0, ..GenerateSettings::default() };
    generate(&generated, &input)?;
    // Ids are remembered for a minute and holds last for half of one, so that state stops growing early.
    let settings = [format!("job.workers={workers}"), "dedup.horizon=1 min".into(), "reservation.hold=30 s".into()];
    let out = folder.path().join("out");
    let started = Instant::now();
    let child = start(Replay::new(&input, &out, &settings))?;
    let status = format!("/proc/{}/status", child.id());
    let mut samples: Vec<(Duration, u64)> = Vec::new();
    // A process that has ended has no memory any more.
    while let Some(memory) = std::fs::read_to_string(&status).ok().and_then(|text| resident(&text)) {
        samples.push((started.elapsed(), memory));
        std::thread::sleep(Duration::from_millis(100));
    }
    let measured = finish(child)?;
    println!("{:.0} orders in {:.1} s\n\n| seconds | resident, MiB |\n| --- | --- |", measured.orders, measured.seconds);
    for part in samples.chunks(samples.len().div_ceil(SAMPLES).max(1)) {
        let most = part.iter().map(|sample| sample.1).max().unwrap_or_default();
        println!("| up to {:.1} | {} |", part[part.len() - 1].0.as_secs_f64(), most >> 20);
    }
    Ok(())
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
