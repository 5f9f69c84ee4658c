//! Benchmarks of the live job between topics of a real Kafka, which they start. The job runs in a process of its own, so that its CPU time is its
//! alone; the producer and the consumer are in this one.
//!
//! ```text
//! cargo run --release -p orderflow-benches --bin live -- latency --orders-per-s 36000 --seconds 30
//! cargo run --release -p orderflow-benches --bin live -- throughput --orders 1000000
//! ```

use std::error::Error;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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
        /// How long; seconds. The first tenth does not count.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
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
        Bench::Latency { orders_per_s, seconds, workers, partitions, producer_linger_ms, heap, settings } => {
            orders_per_s.iter().try_for_each(|&rate| {
                latency(rate, seconds, workers, partitions, producer_linger_ms, &heap, &settings).map(|row| println!("{row}"))
            })
        }
        Bench::Throughput { orders, runs, workers, heap, settings } => throughput(orders, runs, workers, &heap, &settings),
        Bench::Run { rows, settings } => run(rows, &settings),
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

/// The job in this process. One line of numbers is its answer.
fn run(rows: Option<u64>, settings: &[String]) -> Outcome<()> {
    let config = Config::load(None, settings)?;
    let stop = Stop::default();
    let asked = stop.clone();
    let progress = Arc::new(move |progress: Progress| {
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
    let summary = job::run(RunPlan { config, cluster: None, handles })?;
    let latency = summary.latency.unwrap_or_default();
    let [p50, p99] = [latency.p50, latency.p99].map(|time| time.as_secs_f64() * 1e3);
    println!("{} {} {} {p50} {p99}", summary.decisions.total(), summary.epochs, summary.seconds);
    Ok(())
}

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

fn start(rows: Option<u64>, settings: &[String]) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run");
    if let Some(rows) = rows {
        command.arg("--rows").arg(rows.to_string());
    }
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Waits for its end, for what it used, and reads its answer.
fn finish(mut child: Child) -> Outcome<Measured> {
    drop(child.stdin.take());
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value of that plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and was not waited for; both pointers are to live values of the right types.
    if unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let mut answer = String::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut answer)?;
    }
    let status = ExitStatus::from_raw(status);
    if !status.success() {
        return Err(format!("the job ended with {status}").into());
    }
    let numbers: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
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

/// How long the first and the last results may take.
const RESULTS_WAIT: Duration = Duration::from_secs(60);
/// Time between two portions of the producer.
const STEP: Duration = Duration::from_millis(1);
/// Results of which the time is not known to a reader that is as slow as that are lost to the figures.
const UNKNOWN: u32 = u32::MAX;

/// When each message of each partition of `orders` was produced: microseconds since the start.
struct Produced {
    started: Instant,
    partitions: Vec<Vec<AtomicU32>>,
    /// Messages that have a decision, so far.
    placed: AtomicU64,
    /// All are produced.
    ended: AtomicU64,
}

fn latency(
    orders_per_s: f64,
    seconds: f64,
    workers: usize,
    partitions: u32,
    linger_ms: u32,
    heap: &str,
    settings: &[String],
) -> Outcome<String> {
    let folder = tempfile::tempdir()?;
    let broker = KafkaBroker::start(folder.path(), heap)?;
    let linger_ms = linger_ms.to_string();
    let writer_settings = topics(&broker, &[("linger.ms", &linger_ms)]);
    let mut writer = TopicWriter::connect(writer_settings.clone(), partitions, 1)?;
    let orders = (orders_per_s * seconds) as u64;
    let generated = GenerateSettings { orders, rate_per_s: orders_per_s, order_splits: partitions, ..GenerateSettings::default() };
    let mut generator = Generator::new(generated)?;
    // Stock that is there before the first order. The row behind it is the first of those that count.
    let first = loop {
        match generator.next_row() {
            Some(stock) if stock.opening => writer.send(engine_topic(stock.topic), stock.split, stock.key.as_bytes(), stock.payload)?,
            row => break row.map(|row| (row.topic, row.split, row.key.to_owned(), row.payload.to_vec())),
        }
    };
    writer.finish(RESULTS_WAIT)?;
    let mut writer = TopicWriter::connect(writer_settings, partitions, 1)?;
    let job = start(None, &job_settings(&broker, &folder.path().join("job"), workers, settings))?;
    let (job_pid, broker_pid) = (job.id(), broker.process_id().unwrap_or_default() as u32);

    // Some two and a half messages come with an order; one partition may have more than its share.
    let most = (orders * 3 / u64::from(partitions) + 100_000) as usize;
    let times = || (0..most).map(|_| AtomicU32::new(UNKNOWN)).collect();
    let produced = Produced {
        started: Instant::now(),
        partitions: (0..partitions).map(|_| times()).collect(),
        placed: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    };
    let consumer = consumer(&broker.address(), "orderflow.order_decisions")?;
    // The job has made its topics, and is at work.
    std::thread::sleep(Duration::from_secs(2));
    let cpu_before = [job_pid, broker_pid, std::process::id()].map(cpu_seconds);
    let started = Instant::now();
    let warm_us = ((started - produced.started).as_secs_f64() + seconds / 10.0) * 1e6;
    let mut latencies = std::thread::scope(|scope| -> Outcome<Vec<u32>> {
        let consume = scope.spawn(|| consume(&consumer, &produced, warm_us as u32));
        let mut next = vec![0_usize; partitions as usize];
        // Messages are due as their orders are.
        let mut produce = |topic: Topic, split: u32, key: &[u8], payload: &[u8]| -> Outcome<()> {
            let due = Duration::from_secs_f64(produced.placed.load(Ordering::Relaxed) as f64 / orders_per_s);
            if due.saturating_sub(started.elapsed()) >= STEP {
                writer.serve()?;
                std::thread::sleep(STEP);
            }
            if topic == Topic::Orders {
                let partition = split as usize;
                let at = next[partition];
                next[partition] += 1;
                produced.partitions[partition][at].store(produced.started.elapsed().as_micros() as u32, Ordering::Relaxed);
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
        produced.ended.store(1, Ordering::Release);
        Ok(consume.join().map_err(|_| "the consumer failed")??)
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    let cpu_after = [job_pid, broker_pid, std::process::id()].map(cpu_seconds);
    let measured = finish(job)?;
    latencies.sort_unstable();
    let at = |share: f64| latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1))).copied();
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| f64::from(at(share).unwrap_or_default()) / 1e3);
    let cores = |at: usize| (cpu_after[at] - cpu_before[at]) / elapsed;
    Ok(format!(
        "| {:.0} | {} | {p50:.1} | {p90:.1} | {p99:.1} | {most:.1} | {:.1} | {:.1} | {:.0} | {:.2} | {:.2} | {:.2} |",
        measured.orders / elapsed,
        latencies.len(),
        measured.p50_ms,
        measured.p99_ms,
        measured.epochs / elapsed,
        cores(0),
        cores(1),
        cores(2),
    ))
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

/// Takes all decisions; the latencies of those that were produced later than `warm_us`, in microseconds.
fn consume(consumer: &BaseConsumer, produced: &Produced, warm_us: u32) -> Result<Vec<u32>, String> {
    let mut latencies = Vec::new();
    let (mut seen, mut last) = (0_u64, Instant::now());
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let now = produced.started.elapsed().as_micros() as u32;
                let value = message.payload().unwrap_or_default();
                let (split, offset) = (number(value, b"\"split\":"), number(value, b"\"offset\":"));
                // The first split is that of inventory.
                let time = produced.partitions[split as usize - 1][offset as usize].load(Ordering::Relaxed);
                if time != UNKNOWN && time >= warm_us {
                    latencies.push(now - time);
                }
                seen += 1;
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => eprintln!("consumer: {error}"),
        }
        if produced.ended.load(Ordering::Acquire) == 1 && seen >= produced.placed.load(Ordering::Relaxed) {
            return Ok(latencies);
        }
        if last.elapsed() > RESULTS_WAIT {
            return Err(format!("{seen} of {} decisions came", produced.placed.load(Ordering::Relaxed)));
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
            let measured = finish(start(Some(rows), &settings)?)?;
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
