//! Benchmarks of the live job between topics of a real Kafka, which they start. The job runs in a process of its own, so that its CPU time is its
//! alone; the producer and the consumer are in this one.
//!
//! ```text
//! cargo run --release -p orderflow-benches --bin live -- latency --orders-per-s 36000 --seconds 30
//! cargo run --release -p orderflow-benches --bin live -- throughput --orders 1000000
//! ```

mod stalls;

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use orderflow::allocator;
use orderflow::config::Config;
use orderflow::job;
use orderflow::job_plan::{Handles, Progress, RunPlan, Stop};
use orderflow::source::{KafkaSettings, TopicWriter};
use orderflow_fixtures::Topic;
use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ServeCommand, ServerOptions, serve_from_env};
use orderflow_fixtures::generate::{GenerateSettings, Generator};
use orderflow_fixtures::kafka_broker::KafkaBroker;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::stalls::Meter;

/// That of the job's binary.
#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "Benchmarks of the live job on a real Kafka")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Produces orders at a pace and consumes their decisions with isolation read_committed: how long from one to the other.
    Latency {
        /// Orders that are produced a second, with all that comes with them; several are tried one after the other.
        #[arg(long, value_delimiter = ',', default_value = "36000")]
        orders_per_s: Vec<f64>,
        /// How long; seconds.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
        /// How long before, for the broker's compiler to see what is hot; seconds. That does not count.
        #[arg(long, default_value_t = 30.0)]
        warm_up_seconds: f64,
        /// Worker threads of the job.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Partitions of the topic of orders.
        #[arg(long, default_value_t = 4)]
        partitions: u32,
        /// librdkafka's `linger.ms` of the producer.
        #[arg(long, default_value_t = 5)]
        producer_linger_ms: u32,
        /// Java heap of the broker.
        #[arg(long, default_value = "1g")]
        heap: String,
        /// Where the broker's messages are: a folder in memory (/dev/shm) is as if it had a disk of its own, where the job's `fsync` does not wait for
        /// its writes.
        #[arg(long, default_value_os_t = std::env::temp_dir())]
        broker_folder: PathBuf,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// Lets the job take on topics that are full, with the Kafka sink alone and with all sinks.
    Throughput {
        /// Orders to produce before.
        #[arg(long, default_value_t = 1_000_000)]
        orders: u64,
        /// Runs of each.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Worker threads of the job.
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Java heap of the broker.
        #[arg(long, default_value = "1g")]
        heap: String,
        /// More settings, as the job takes them.
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// The job, in this process: what the others start. It ends when its standard input does, or after so many rows.
    #[command(hide = true)]
    Run {
        #[arg(long)]
        rows: Option<u64>,
        /// Say so when so many rows are through.
        #[arg(long, default_value_t = 0)]
        ready_rows: u64,
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// ClickHouse, in this process.
    #[command(hide = true)]
    ClickHouse,
}

fn main() -> ExitCode {
    allocator::set_up();
    let done = match Arguments::parse().bench {
        Bench::Latency {
            orders_per_s,
            seconds,
            warm_up_seconds,
            workers,
            partitions,
            producer_linger_ms,
            heap,
            broker_folder,
            settings,
        } => {
            let plan = LatencyPlan { seconds, warm_up_seconds, workers, partitions, producer_linger_ms, heap, broker_folder, settings };
            println!("{LATENCY_HEAD}");
            orders_per_s.iter().try_for_each(|&rate| plan.run(rate).map(|row| println!("{row}")))
        }
        Bench::Throughput { orders, runs, workers, heap, settings } => throughput(orders, runs, workers, &heap, &settings),
        Bench::Run { rows, ready_rows, settings } => run(rows, ready_rows, &settings),
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

// --- the job in a process of its own -------------------------------------------------------

/// The job in this process. A line says that it is at work, a line of numbers is its answer.
fn run(rows: Option<u64>, ready_rows: u64, settings: &[String]) -> Outcome<()> {
    let config = Config::load(None, settings)?;
    let stop = Stop::default();
    let asked = stop.clone();
    let ready = Once::new();
    let progress = Arc::new(move |progress: Progress| {
        if progress.rows_done >= ready_rows {
            ready.call_once(|| println!("{READY}"));
        }
        if rows.is_some_and(|rows| progress.rows_done >= rows) {
            asked.request();
        }
    });
    if rows.is_none() {
        let asked = stop.clone();
        std::thread::spawn(move || {
            // It ends when whoever started this does.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            asked.request();
        });
    }
    if std::env::var_os("RUST_LOG").is_some() {
        orderflow::logging::start(&config.log, BoxMakeWriter::new(std::io::stderr));
    }
    let handles = Handles { stop, progress, ..Handles::quiet() };
    let summary = job::run(RunPlan { config, cluster: None, drain: false, handles })?;
    let latency = summary.latency.unwrap_or_default();
    let [p50, p99] = [latency.p50, latency.p99].map(|time| time.as_secs_f64() * 1e3);
    println!("{} {} {} {p50} {p99}", summary.decisions.total(), summary.epochs, summary.seconds);
    Ok(())
}

/// The job's first line.
const READY: &str = "ready";

/// What the job said and took.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    orders: f64,
    epochs: f64,
    seconds: f64,
    cpu_seconds: f64,
    /// From arrival to decision; milliseconds.
    p50_ms: f64,
    p99_ms: f64,
}

fn start(rows: Option<u64>, ready_rows: u64, settings: &[String]) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg("--ready-rows").arg(ready_rows.to_string());
    if let Some(rows) = rows {
        command.arg("--rows").arg(rows.to_string());
    }
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Waits for its end, for what it used, and reads its answer.
fn finish(mut child: Child) -> Outcome<Measured> {
    let mut answer = String::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut answer)?;
    }
    finish_with(child, answer)
}

/// The same, where it was read already.
fn finish_with(child: Child, answer: String) -> Outcome<Measured> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value of that plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and was not waited for; both pointers are to live values of the right types.
    if unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let status = ExitStatus::from_raw(status);
    if !status.success() {
        return Err(format!("the job ended with {status}").into());
    }
    let numbers: Vec<f64> = answer.split_whitespace().filter(|word| *word != READY).map(str::parse).collect::<Result<_, _>>()?;
    let &[orders, epochs, seconds, p50_ms, p99_ms] = numbers.as_slice() else {
        return Err(format!("the job answered `{answer}`").into());
    };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let cpu_seconds = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Measured { orders, epochs, seconds, cpu_seconds, p50_ms, p99_ms })
}

/// User and system time of a process so far; seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    // Behind the name, which may hold anything.
    let fields: Vec<&str> = status.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // SAFETY: a call that takes and gives numbers.
    (ticks(11) + ticks(12)) / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// User and system time of all processes so far; seconds.
fn cpu_seconds_of_all() -> f64 {
    let status = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = status.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // The fourth and fifth are those of doing nothing.
    let busy: f64 = ticks.iter().take(3).chain(ticks.iter().skip(5).take(2)).sum();
    // SAFETY: a call that takes and gives numbers.
    busy / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

fn topics(broker: &KafkaBroker, properties: &[(&str, &str)]) -> KafkaSettings {
    KafkaSettings {
        brokers: broker.address(),
        orders_topic: "orders".to_owned(),
        inventory_topic: "inventory".to_owned(),
        group_id: String::new(),
        start_wait: Duration::from_secs(60),
        properties: properties.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}

fn job_settings(broker: &KafkaBroker, folder: &Path, workers: usize, more: &[String]) -> Vec<String> {
    let own = [
        format!("job.data_dir={}", folder.display()),
        format!("job.workers={workers}"),
        format!("source.kafka.brokers={}", broker.address()),
        "sinks.kafka.enabled=true".to_owned(),
        "sinks.delta.enabled=false".to_owned(),
        "metrics.listen=".to_owned(),
    ];
    own.into_iter().chain(more.iter().cloned()).collect()
}

fn engine_topic(topic: Topic) -> orderflow_operators::decoder::Topic {
    match topic {
        Topic::Inventory => orderflow_operators::decoder::Topic::Inventory,
        Topic::Orders => orderflow_operators::decoder::Topic::Orders,
    }
}

// --- latency -------------------------------------------------------------------------------

/// Heads of the columns that `latency` fills. CPU is in cores, from the end of the warm-up to the last result.
const LATENCY_HEAD: &str = "\
| orders/s | decisions counted | p50, ms | p90, ms | p99, ms | most, ms | p99 where the machine did not stand still | of all decisions, % | within the job: p50 | p99 | epochs/s | job's CPU | broker's | producer's and consumer's | others' |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// How long the first and the last results may take.
const RESULTS_WAIT: Duration = Duration::from_secs(60);
/// So long after the last result there are no more.
const SILENCE: Duration = Duration::from_secs(3);
/// Time between two portions of the producer.
const STEP: Duration = Duration::from_millis(1);
/// In the place of a time: nothing was produced there.
const UNKNOWN: u32 = u32::MAX;

/// When each message of each partition of `orders` was produced: microseconds since the start.
struct Produced {
    started: Instant,
    partitions: Vec<Vec<AtomicU32>>,
    /// Messages that have a decision, so far.
    placed: AtomicU64,
    /// All are produced.
    ended: AtomicBool,
}

struct LatencyPlan {
    seconds: f64,
    warm_up_seconds: f64,
    workers: usize,
    partitions: u32,
    producer_linger_ms: u32,
    heap: String,
    broker_folder: PathBuf,
    settings: Vec<String>,
}

impl LatencyPlan {
    /// A row of the table.
    fn run(&self, orders_per_s: f64) -> Outcome<String> {
        let partitions = self.partitions;
        let folder = tempfile::tempdir()?;
        let broker_folder = tempfile::tempdir_in(&self.broker_folder)?;
        let broker = KafkaBroker::start(broker_folder.path(), &self.heap)?;
        let linger_ms = self.producer_linger_ms.to_string();
        let writer_settings = topics(&broker, &[("linger.ms", &linger_ms)]);
        let mut writer = TopicWriter::connect(writer_settings.clone(), partitions, 1)?;
        let orders = (orders_per_s * (self.warm_up_seconds + self.seconds)) as u64;
        let generated = GenerateSettings { orders, rate_per_s: orders_per_s, order_splits: partitions, ..GenerateSettings::default() };
        let mut generator = Generator::new(generated)?;
        // Stock that is there before the first order. The row behind it is the first of those that count.
        let mut opening = 0;
        let first = loop {
            match generator.next_row() {
                Some(stock) if stock.opening => {
                    writer.send(engine_topic(stock.topic), stock.split, stock.key.as_bytes(), stock.payload)?;
                    opening += 1;
                }
                row => break row.map(|row| (row.topic, row.split, row.key.to_owned(), row.payload.to_vec())),
            }
        };
        writer.finish(RESULTS_WAIT)?;
        let mut writer = TopicWriter::connect(writer_settings, partitions, 1)?;
        let mut job = start(None, opening, &job_settings(&broker, &folder.path().join("job"), self.workers, &self.settings))?;
        let mut said = BufReader::new(job.stdout.take().ok_or("the job has no output")?);
        said.read_line(&mut String::new())?;
        let pids = [job.id(), broker.process_id().unwrap_or_default() as u32, std::process::id()];

        // Of each of the three, and of all processes.
        let used = || [cpu_seconds(pids[0]), cpu_seconds(pids[1]), cpu_seconds(pids[2]), cpu_seconds_of_all()];

        // Some two and a half messages come with an order; one partition may have more than its share.
        let most = (orders * 3 / u64::from(partitions) + 100_000) as usize;
        let times = || (0..most).map(|_| AtomicU32::new(UNKNOWN)).collect();
        let consumer = consumer(&broker.address(), "orderflow.order_decisions")?;
        let produced = Produced {
            started: Instant::now(),
            partitions: (0..partitions).map(|_| times()).collect(),
            placed: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        let started = produced.started;
        let warm = Duration::from_secs_f64(self.warm_up_seconds);
        let mut cpu_before = None;
        let meter = Meter::start();
        let (Seen { decisions, mut latencies, mut calm }, elapsed) = std::thread::scope(|scope| -> Outcome<_> {
            let consume = scope.spawn(|| consume(&consumer, &produced, warm.as_micros() as u32, meter.as_ref()));
            let mut next = vec![0_usize; partitions as usize];
            // Messages are due as their orders are.
            let mut produce = |topic: Topic, split: u32, key: &[u8], payload: &[u8]| -> Outcome<()> {
                let due = Duration::from_secs_f64(produced.placed.load(Ordering::Relaxed) as f64 / orders_per_s);
                if due.saturating_sub(started.elapsed()) >= STEP {
                    writer.serve()?;
                    std::thread::sleep(STEP);
                }
                if cpu_before.is_none() && started.elapsed() >= warm {
                    cpu_before = Some((Instant::now(), used()));
                }
                if topic == Topic::Orders {
                    let partition = split as usize;
                    let at = next[partition];
                    next[partition] += 1;
                    produced.partitions[partition][at].store(started.elapsed().as_micros() as u32, Ordering::Relaxed);
                    let is_placed = payload.starts_with(br#"{"type":"order_placed""#);
                    produced.placed.fetch_add(u64::from(is_placed), Ordering::Relaxed);
                }
                Ok(writer.send(engine_topic(topic), split, key, payload)?)
            };
            if let Some((topic, split, key, payload)) = &first {
                produce(*topic, *split, key.as_bytes(), payload)?;
            }
            while let Some(row) = generator.next_row() {
                produce(row.topic, row.split, row.key.as_bytes(), row.payload)?;
            }
            writer.finish(RESULTS_WAIT)?;
            let elapsed = started.elapsed().as_secs_f64();
            produced.ended.store(true, Ordering::Release);
            Ok((consume.join().map_err(|_| "the consumer failed")??, elapsed))
        })?;
        let (cpu_until, cpu_after) = (Instant::now(), used());
        let (counted_from, cpu_before) = cpu_before.ok_or("it ended before it was warm")?;
        let counted_seconds = cpu_until.duration_since(counted_from).as_secs_f64();
        drop(job.stdin.take());
        let mut answer = String::new();
        said.read_to_string(&mut answer)?;
        let measured = finish_with(job, answer)?;
        if decisions as f64 != measured.orders {
            return Err(format!("{decisions} decisions were read, of {} that the job made", measured.orders).into());
        }
        latencies.sort_unstable();
        calm.sort_unstable();
        let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| quantile_ms(&latencies, share));
        let (calm_p99, calm_share) = (quantile_ms(&calm, 0.99), calm.len() as f64 / latencies.len().max(1) as f64 * 100.0);
        let cores = |at: usize| (cpu_after[at] - cpu_before[at]) / counted_seconds;
        Ok(format!(
            "| {:.0} | {} | {p50:.1} | {p90:.1} | {p99:.1} | {most:.1} | {calm_p99:.1} | {calm_share:.1} | {:.1} | {:.1} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
            measured.orders / elapsed,
            latencies.len(),
            measured.p50_ms,
            measured.p99_ms,
            measured.epochs / elapsed,
            cores(0),
            cores(1),
            cores(2),
            cores(3) - cores(0) - cores(1) - cores(2),
        ))
    }
}

fn consumer(brokers: &str, topic: &str) -> Outcome<BaseConsumer> {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("group.id", "bench"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("fetch.wait.max.ms", "100"),
        ("fetch.queue.backoff.ms", "5"),
    ] {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let started = Instant::now();
    loop {
        let metadata = consumer.fetch_metadata(Some(topic), RESULTS_WAIT)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if partitions > 0 {
            let mut list = TopicPartitionList::new();
            for partition in 0..partitions as i32 {
                list.add_partition_offset(topic, partition, Offset::Beginning)?;
            }
            consumer.assign(&list)?;
            return Ok(consumer);
        }
        if started.elapsed() > RESULTS_WAIT {
            return Err(format!("the job does not make {topic}").into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Of microseconds in order, in milliseconds.
fn quantile_ms(latencies: &[u32], share: f64) -> f64 {
    let at = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
    latencies.get(at).map_or(f64::NAN, |&us| f64::from(us) / 1e3)
}

/// What came to the consumer.
#[derive(Default)]
struct Seen {
    decisions: u64,
    /// Of those that were produced behind the warm-up; microseconds.
    latencies: Vec<u32>,
    /// Of those of them that came where the machine did not stand still.
    calm: Vec<u32>,
}

/// Takes all decisions.
fn consume(consumer: &BaseConsumer, produced: &Produced, warm_us: u32, meter: Option<&Meter>) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let now = produced.started.elapsed().as_micros() as u32;
                let value = message.payload().unwrap_or_default();
                let (split, offset) = (number(value, b"\"split\":"), number(value, b"\"offset\":"));
                // The first split is that of inventory.
                let time = produced.partitions[split as usize - 1][offset as usize].load(Ordering::Relaxed);
                if time != UNKNOWN && time >= warm_us {
                    seen.latencies.push(now - time);
                    if meter.is_some_and(|meter| meter.is_calm(Duration::ZERO)) {
                        seen.calm.push(now - time);
                    }
                }
                seen.decisions += 1;
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => eprintln!("consumer: {error}"),
        }
        // A few of those that were sent are malformed, and nothing comes of them here.
        if produced.ended.load(Ordering::Acquire) && last.elapsed() > SILENCE {
            return Ok(seen);
        }
        if last.elapsed() > RESULTS_WAIT {
            return Err(format!("no decision came for {} s, after {}", RESULTS_WAIT.as_secs(), seen.decisions));
        }
    }
}

/// The number behind a key, which stands near the beginning.
fn number(json: &[u8], key: &[u8]) -> u64 {
    let at = json.windows(key.len()).position(|bytes| bytes == key).map_or(json.len(), |at| at + key.len());
    json[at..].iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |number, byte| number * 10 + u64::from(byte - b'0'))
}

// --- throughput ----------------------------------------------------------------------------

fn throughput(orders: u64, runs: usize, workers: usize, heap: &str, settings: &[String]) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let broker = KafkaBroker::start(folder.path(), heap)?;
    let serve = ServeCommand::this_program(["click-house"])?;
    let server = ClickHouseServer::start(ServerOptions::new(folder.path().join("clickhouse"), serve))?;
    let generated = GenerateSettings { orders, ..GenerateSettings::default() };
    let mut generator = Generator::new(generated.clone())?;
    let mut writer = TopicWriter::connect(topics(&broker, &[]), generated.order_splits, generated.inventory_splits)?;
    let mut rows = 0_u64;
    while let Some(row) = generator.next_row() {
        writer.send(engine_topic(row.topic), row.split, row.key.as_bytes(), row.payload)?;
        rows += 1;
    }
    writer.finish(RESULTS_WAIT)?;
    println!("{orders} orders, {rows} messages; {workers} workers\n");
    println!("| sinks | run | orders/s | CPU s per million orders | broker's CPU s per million |\n| --- | --- | --- | --- | --- |");
    for run in 1..=runs {
        for (name, all) in [("kafka", false), ("kafka + delta + clickhouse", true)] {
            let job_folder = folder.path().join("job");
            let mut settings = job_settings(&broker, &job_folder, workers, settings);
            settings.push(format!("sinks.delta.enabled={all}"));
            settings.push(format!("sinks.clickhouse.enabled={all}"));
            settings.push(format!("sinks.clickhouse.url={}", server.url()));
            // A job, topics and a database of its own: what another run committed would be skipped.
            settings.push(format!("job.id=run-{run}-{all}"));
            settings.push(format!("sinks.clickhouse.database=run_{run}_{all}"));
            settings.push(format!("sinks.kafka.topic_prefix=run-{run}-{all}."));
            let broker_pid = broker.process_id().unwrap_or_default() as u32;
            let broker_before = cpu_seconds(broker_pid);
            let measured = finish(start(Some(rows), 0, &settings)?)?;
            let per_million = 1e6 / measured.orders;
            println!(
                "| {name} | {run} | {:.0} K | {:.2} | {:.2} |",
                measured.orders / measured.seconds / 1e3,
                measured.cpu_seconds * per_million,
                (cpu_seconds(broker_pid) - broker_before) * per_million
            );
            std::fs::remove_dir_all(&job_folder)?;
        }
    }
    Ok(())
}
