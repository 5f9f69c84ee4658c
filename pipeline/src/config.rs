//! Settings: one plain value, read from `orderflow.toml`, checked once, and passed by value to what needs it.
//!
//! The file `orderflow.toml` at the root of the repository lists every setting with its default, unit and trade-off; a test
//! holds it equal to [`Config::default`]. A setting is taken from, in rising precedence: the default, the file, `--set key=value`.
//! Every text in the file may name environment variables as `${NAME}` or `${NAME:-default}`.
//!
//! Names of settings are those of the specification where it has one: `watermark.delay`, `dedup.horizon`, `reservation.hold`.

mod check;
mod load;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Problem};
pub use values::{ByteSize, Interval, Properties, Secret};

/// The commented list of all settings, as it stands in the repository: the defaults.
pub const COMMENTED_DEFAULTS: &str = include_str!("../../orderflow.toml");

/// All settings of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The job itself.
    pub job: JobConfig,
    /// Where rows come from.
    pub source: SourceConfig,
    /// How the input is cut into epochs.
    pub epoch: EpochConfig,
    /// Where a live job keeps how its input was cut.
    pub epoch_log: EpochLogConfig,
    /// How far event time has come.
    pub watermark: WatermarkConfig,
    /// Rules of a single order.
    pub validate: ValidateConfig,
    /// First occurrence of an id.
    pub dedup: DedupConfig,
    /// Fraud features and score.
    pub fraud: FraudConfig,
    /// Holds of stock.
    pub reservation: ReservationConfig,
    /// Known currencies and their value: millionths of a minor unit of the reference currency for one minor unit.
    pub currencies: Currencies,
    /// SQL stages over the job's streams.
    pub stages: StagesConfig,
    /// How long a recovery takes at most, and where it goes on from.
    pub checkpoint: CheckpointConfig,
    /// Replays of fixture folders.
    pub replay: ReplayConfig,
    /// When a job that failed is started again.
    pub supervise: SuperviseConfig,
    /// Where streams land.
    pub sinks: SinksConfig,
    /// Metrics and status page.
    pub metrics: MetricsConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Config {
    /// Reads the settings of `path` (none: the defaults), then applies `overrides` of the form `key=value`.
    ///
    /// # Errors
    /// What is wrong, with file, line and key: all problems of one kind at once, so that a file is not mended one key a run.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Config, ConfigError> {
        load::load(path, overrides, &|name| std::env::var(name).ok())
    }

    /// [`load`](Config::load) of a text, in which no environment variable has a value; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As there.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Config, ConfigError> {
        load::parse(name, text, overrides, &|_| None)
    }

    /// The settings as TOML, every key written out, secrets as stars.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are tables of texts and numbers, all of which TOML has")
    }
}

/// `[job]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobConfig {
    /// The job's name, in every sink's record of what was committed. Two jobs that write to the same tables need two.
    pub id: String,
    /// Folder of what the job keeps on local disk: the epoch log, unless `epoch_log.home` names another home. A replay keeps it in its
    /// output folder instead.
    pub data_dir: PathBuf,
    /// Worker threads of this process; 0: one for each core.
    pub workers: usize,
}

impl Default for JobConfig {
    fn default() -> Self {
        JobConfig { id: "orderflow".into(), data_dir: "data".into(), workers: 0 }
    }
}

impl JobConfig {
    /// The number of worker threads, with 0 resolved to the machine's cores.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Topic of orders and what happens to them.
    pub orders_topic: String,
    /// Topic of stock movements.
    pub inventory_topic: String,
    /// A longer message is malformed.
    pub message_bytes_max: ByteSize,
    /// Fetched ahead for each split, not yet in an epoch.
    pub buffer_bytes_max: ByteSize,
    /// The brokers.
    pub kafka: KafkaConfig,
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig {
            orders_topic: "orders".into(),
            inventory_topic: "inventory".into(),
            message_bytes_max: ByteSize::mib(16),
            buffer_bytes_max: ByteSize::mib(16),
            kafka: KafkaConfig::default(),
        }
    }
}

/// `[source.kafka]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// How long the start of a job waits for brokers that do not answer.
    pub start_wait: Interval,
    /// Time between two looks for partitions that were added to the topics; 0: none.
    pub discovery_interval: Interval,
    /// librdkafka's own settings, over the job's tuning of them.
    pub properties: Properties,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig {
            brokers: "127.0.0.1:9092".into(),
            start_wait: Interval::seconds(60),
            discovery_interval: Interval::seconds(10),
            properties: Properties::default(),
        }
    }
}

/// `[epoch]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EpochConfig {
    /// Most rows in an epoch, over all splits.
    pub rows_max: u64,
    /// Most bytes of input in an epoch, over all splits; an epoch has one row at least.
    pub bytes_max: ByteSize,
    /// Least time between two seals while the job is not behind.
    pub linger: Interval,
    /// Most epochs between the sealer and the end of the dataflow.
    pub in_flight: usize,
}

impl Default for EpochConfig {
    fn default() -> Self {
        EpochConfig { rows_max: 32_768, bytes_max: ByteSize::mib(64), linger: Interval::millis(5), in_flight: 4 }
    }
}

/// `[epoch_log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EpochLogConfig {
    /// Empty: in `job.data_dir`. `kafka:<topic>`, or the URL of a folder in an object store. A replay keeps it in its output folder.
    pub home: String,
    /// Of a topic: `host:port`, separated by commas. Empty: those of `source.kafka`, with its properties.
    pub brokers: String,
    /// Of a topic: librdkafka's own settings, over those of `source.kafka` where its brokers are used.
    pub properties: Properties,
    /// Of a URL: the object store's own options.
    pub storage: Properties,
    /// How long epochs are kept from which no checkpoint goes on; 0: for ever.
    pub keep: Interval,
}

impl Default for EpochLogConfig {
    fn default() -> Self {
        EpochLogConfig {
            home: String::new(),
            brokers: String::new(),
            properties: Properties::default(),
            storage: Properties::default(),
            keep: Interval::hours(7 * 24),
        }
    }
}

impl EpochLogConfig {
    /// How the home of a topic begins.
    pub const TOPIC: &str = "kafka:";
}

/// `[watermark]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatermarkConfig {
    /// How far the watermark stays behind the event times seen.
    pub delay: Interval,
    /// After this time without a row a split no longer holds the watermark back.
    pub idle: Interval,
}

impl Default for WatermarkConfig {
    fn default() -> Self {
        WatermarkConfig { delay: Interval::seconds(5), idle: Interval::seconds(30) }
    }
}

/// `[validate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidateConfig {
    /// Longest order or customer id, or SKU; bytes of UTF-8.
    pub id_bytes_max: usize,
    /// Most lines of an order.
    pub lines_max: usize,
    /// Largest quantity of a line.
    pub quantity_max: i64,
    /// Largest price of a unit; minor units.
    pub unit_price_max: i64,
    /// An order further ahead of its epoch's sealing time is invalid. Off in replays of files.
    pub future_max: Interval,
    /// Rules of the user's own, after the built-in ones, in this order.
    pub rules: Vec<RuleConfig>,
}

impl Default for ValidateConfig {
    fn default() -> Self {
        ValidateConfig {
            id_bytes_max: 64,
            lines_max: 100,
            quantity_max: 10_000,
            unit_price_max: 100_000_000,
            future_max: Interval::minutes(5),
            rules: Vec::new(),
        }
    }
}

/// `[[validate.rules]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// What stands in `detail` of an order that breaks it.
    pub name: String,
    /// A SQL predicate over an order's columns that holds for good orders.
    pub sql: String,
}

/// `[dedup]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// How long, in event time, an id is remembered.
    pub horizon: Interval,
}

impl Default for DedupConfig {
    fn default() -> Self {
        DedupConfig { horizon: Interval::hours(24) }
    }
}

/// `[fraud]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FraudConfig {
    /// Lengths of the sliding windows, rising.
    pub windows: Vec<Interval>,
    /// At this score or above an order is to be reviewed.
    pub review: f64,
    /// At this score or above an order is rejected.
    pub reject: f64,
    /// The model's file; empty: [`BASELINE_MODEL`].
    pub model: PathBuf,
}

/// The model that ships with the project; JSON.
pub const BASELINE_MODEL: &str = include_str!("../../fixtures/models/baseline.json");

impl Default for FraudConfig {
    fn default() -> Self {
        FraudConfig {
            windows: vec![Interval::minutes(5), Interval::hours(1), Interval::hours(24)],
            review: 0.70,
            reject: 0.90,
            model: PathBuf::new(),
        }
    }
}

impl FraudConfig {
    /// The text of the model's file, or of the built-in one.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn model_text(&self) -> Result<String, ConfigError> {
        if self.model.as_os_str().is_empty() {
            return Ok(BASELINE_MODEL.to_owned());
        }
        std::fs::read_to_string(&self.model).map_err(|source| ConfigError::Unreadable { path: self.model.clone(), source })
    }
}

/// `[reservation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReservationConfig {
    /// How long, in event time, stock is held for an order that is not paid.
    pub hold: Interval,
}

impl Default for ReservationConfig {
    fn default() -> Self {
        ReservationConfig { hold: Interval::minutes(15) }
    }
}

/// `[currencies]`: code → value of one minor unit in millionths of the reference currency's minor unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Currencies(pub BTreeMap<String, i64>);

/// The table that ships with the project; the reference currency is USD.
const CURRENCIES: [(&str, i64); 12] = [
    ("AUD", 650_000),
    ("BRL", 180_000),
    ("CAD", 730_000),
    ("CHF", 1_120_000),
    ("CNY", 140_000),
    ("EUR", 1_080_000),
    ("GBP", 1_270_000),
    ("INR", 12_000),
    // No minor unit: one yen is 0.67 cents.
    ("JPY", 670_000),
    ("MXN", 55_000),
    ("SEK", 95_000),
    ("USD", 1_000_000),
];

impl Default for Currencies {
    fn default() -> Self {
        Currencies(CURRENCIES.iter().map(|&(code, rate_ppm)| (code.to_owned(), rate_ppm)).collect())
    }
}

/// `[replay]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Which clock gives epochs their sealing times.
    pub clock: ReplayClock,
    /// The fixed clock's first sealing time; RFC 3339.
    pub start: String,
    /// The fixed clock's step from one epoch to the next; whole milliseconds.
    pub step: Interval,
    /// Whether a replay makes checkpoints.
    pub checkpoints: bool,
}

/// Which clock gives a replay's epochs their sealing times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayClock {
    /// The machine's.
    #[default]
    Wall,
    /// One that starts at `replay.start` and goes on by `replay.step` an epoch: two replays give the same bytes, `sealed_at` included.
    Fixed,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        ReplayConfig {
            clock: ReplayClock::default(),
            start: "2026-01-05T10:00:00Z".into(),
            step: Interval::millis(100),
            checkpoints: false,
        }
    }
}

/// `[supervise]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuperviseConfig {
    /// Wait after a first failure; doubles with each further one.
    pub backoff_min: Interval,
    /// Longest wait before the job is started again.
    pub backoff_max: Interval,
    /// A job that ran for so long was healthy: the next wait is the first again.
    pub healthy_after: Interval,
    /// With so many failures within `window` there is no further start; 0: no limit.
    pub failures_max: u64,
    /// The time in which failures are counted.
    pub window: Interval,
}

impl Default for SuperviseConfig {
    fn default() -> Self {
        SuperviseConfig {
            backoff_min: Interval::millis(500),
            backoff_max: Interval::seconds(15),
            healthy_after: Interval::minutes(2),
            failures_max: 10,
            window: Interval::minutes(5),
        }
    }
}

/// `[sinks]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinksConfig {
    /// Delta Lake tables.
    pub delta: DeltaConfig,
    /// ClickHouse tables.
    pub clickhouse: ClickHouseConfig,
    /// Topics of Kafka or Redpanda.
    pub kafka: KafkaSinkConfig,
    /// JSON lines, for a look.
    pub jsonl: JsonLinesConfig,
}

/// The kinds of sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// Delta Lake.
    Delta,
    /// ClickHouse.
    ClickHouse,
    /// Kafka or Redpanda.
    Kafka,
    /// JSON lines.
    JsonLines,
}

impl SinksConfig {
    /// Turns on this sink and no other.
    pub fn only(&mut self, kind: SinkKind) {
        self.delta.enabled = kind == SinkKind::Delta;
        self.clickhouse.enabled = kind == SinkKind::ClickHouse;
        self.kafka.enabled = kind == SinkKind::Kafka;
        self.jsonl.enabled = kind == SinkKind::JsonLines;
    }
}

/// What every sink has: a queue before it and a wait after a failure. In each sink's own section.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeliveryConfig {
    /// Rows that may wait for the sink; then the job holds back.
    pub queue_rows_max: u64,
    /// Wait after a first failure; doubles with each further one.
    pub retry_backoff_min: Interval,
    /// Longest wait between two tries.
    pub retry_backoff_max: Interval,
}

macro_rules! delivery {
    ($($type:ty),*) => {$(
        impl $type {
            /// The settings that every sink has.
            pub fn delivery(&self) -> DeliveryConfig {
                DeliveryConfig {
                    queue_rows_max: self.queue_rows_max,
                    retry_backoff_min: self.retry_backoff_min,
                    retry_backoff_max: self.retry_backoff_max,
                }
            }
        }
    )*};
}

delivery!(DeltaConfig, ClickHouseConfig, KafkaSinkConfig, JsonLinesConfig);

/// `[sinks.delta]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeltaConfig {
    /// Whether the job writes to it.
    pub enabled: bool,
    /// Folder of the tables, one below it for each stream: a path or a URL. Empty: `delta` in the job's (or the replay's) folder.
    pub url: String,
    /// Longest time from an epoch's end until its commit begins, where none is under way.
    pub commit_interval: Interval,
    /// Most rows of a stream in a commit; what is over goes to the next.
    pub commit_rows_max: u64,
    /// Parquet compression of new files: `none`, `snappy`, `zstd` or `zstd(1)` to `zstd(22)`.
    pub compression: String,
    /// That of the files that they are compacted into.
    pub optimize_compression: String,
    /// Commits between two checkpoints of a table's log.
    pub checkpoint_commits: u64,
    /// Commits between two compactions of small files; 0: never.
    pub optimize_commits: u64,
    /// How long files that no version needs are kept before they are removed; 0: for ever.
    pub vacuum_retention: Interval,
    /// The object store's own options: keys, region, endpoint.
    pub storage: Properties,
    /// Rows that may wait.
    pub queue_rows_max: u64,
    /// Wait after a first failure.
    pub retry_backoff_min: Interval,
    /// Longest wait between two tries.
    pub retry_backoff_max: Interval,
}

/// `[stages]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StagesConfig {
    /// Files of stages, in the order in which they are built; the last part of a path may have stars.
    pub files: Vec<String>,
    /// Names of stages that are no longer there, and without whose missing results the job may go on.
    pub abandoned: Vec<String>,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Time between two checkpoints; 0: none.
    pub interval: Interval,
    /// Where they are kept: a folder, or a URL of an object store; empty: `checkpoints` in the job's folder.
    pub url: String,
    /// How many are kept.
    pub keep: usize,
    /// State that may wait to be written, for each operator of a worker.
    pub buffer_bytes_max: ByteSize,
    /// The object store's own options: keys, region, endpoint.
    pub storage: Properties,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            interval: Interval::seconds(30),
            url: String::new(),
            keep: 3,
            buffer_bytes_max: ByteSize::mib(64),
            storage: Properties::default(),
        }
    }
}

const QUEUE_ROWS_MAX: u64 = 200_000;
const RETRY_BACKOFF_MIN: Interval = Interval::millis(100);
const RETRY_BACKOFF_MAX: Interval = Interval::seconds(30);

impl Default for DeltaConfig {
    fn default() -> Self {
        DeltaConfig {
            enabled: true,
            url: String::new(),
            commit_interval: Interval::seconds(5),
            commit_rows_max: 500_000,
            compression: "snappy".into(),
            optimize_compression: "zstd(1)".into(),
            checkpoint_commits: 50,
            optimize_commits: 100,
            vacuum_retention: Interval::hours(168),
            storage: Properties::default(),
            queue_rows_max: QUEUE_ROWS_MAX,
            retry_backoff_min: RETRY_BACKOFF_MIN,
            retry_backoff_max: RETRY_BACKOFF_MAX,
        }
    }
}

/// `[sinks.clickhouse]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClickHouseConfig {
    /// Whether the job writes to it.
    pub enabled: bool,
    /// The server's HTTP interface.
    pub url: String,
    /// The job's database; created by the job, never `default`.
    pub database: String,
    /// User name.
    pub user: String,
    /// The user's password.
    pub password: Secret,
    /// Longest time from an epoch's end until its insert begins, where none is under way.
    pub commit_interval: Interval,
    /// Most rows of a stream in an insert.
    pub commit_rows_max: u64,
    /// Rows that may wait.
    pub queue_rows_max: u64,
    /// Wait after a first failure.
    pub retry_backoff_min: Interval,
    /// Longest wait between two tries.
    pub retry_backoff_max: Interval,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        ClickHouseConfig {
            enabled: false,
            url: "http://127.0.0.1:8123".into(),
            database: "orderflow".into(),
            user: "default".into(),
            password: Secret::default(),
            commit_interval: Interval::millis(1000),
            commit_rows_max: 250_000,
            queue_rows_max: QUEUE_ROWS_MAX,
            retry_backoff_min: RETRY_BACKOFF_MIN,
            retry_backoff_max: RETRY_BACKOFF_MAX,
        }
    }
}

/// `[sinks.kafka]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSinkConfig {
    /// Whether the job writes to it.
    pub enabled: bool,
    /// `host:port`, separated by commas; empty: those of `source.kafka`, with its TLS and SASL.
    pub brokers: String,
    /// A topic's name is this and the stream's name.
    pub topic_prefix: String,
    /// Partitions of a topic that the job makes.
    pub partitions: u16,
    /// Replicas of a topic that the job makes; 0: the cluster's own number.
    pub replication_factor: u16,
    /// Most bytes of a message; a longer row has its longest texts cut.
    pub message_bytes_max: ByteSize,
    /// Which streams; empty: all.
    pub streams: Vec<String>,
    /// Longest time from an epoch's end until its commit begins, where none is under way.
    pub commit_interval: Interval,
    /// Most rows of a stream in a transaction.
    pub commit_rows_max: u64,
    /// librdkafka's own settings, over the sink's tuning of them.
    pub properties: Properties,
    /// Rows that may wait.
    pub queue_rows_max: u64,
    /// Wait after a first failure.
    pub retry_backoff_min: Interval,
    /// Longest wait between two tries.
    pub retry_backoff_max: Interval,
}

impl Default for KafkaSinkConfig {
    fn default() -> Self {
        KafkaSinkConfig {
            enabled: false,
            brokers: String::new(),
            topic_prefix: "orderflow.".into(),
            partitions: 4,
            replication_factor: 0,
            message_bytes_max: ByteSize::bytes(1_000_000),
            streams: Vec::new(),
            commit_interval: Interval::millis(50),
            commit_rows_max: 50_000,
            properties: Properties::default(),
            queue_rows_max: QUEUE_ROWS_MAX,
            retry_backoff_min: RETRY_BACKOFF_MIN,
            retry_backoff_max: RETRY_BACKOFF_MAX,
        }
    }
}

/// `[sinks.jsonl]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonLinesConfig {
    /// Whether the job writes to it.
    pub enabled: bool,
    /// Folder of one file for each stream, or `-` for standard output.
    pub path: String,
    /// Which streams; empty: all.
    pub streams: Vec<String>,
    /// Rows that may wait.
    pub queue_rows_max: u64,
    /// Wait after a first failure.
    pub retry_backoff_min: Interval,
    /// Longest wait between two tries.
    pub retry_backoff_max: Interval,
}

impl Default for JsonLinesConfig {
    fn default() -> Self {
        JsonLinesConfig {
            enabled: false,
            path: "-".into(),
            streams: Vec::new(),
            queue_rows_max: QUEUE_ROWS_MAX,
            retry_backoff_min: RETRY_BACKOFF_MIN,
            retry_backoff_max: RETRY_BACKOFF_MAX,
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// `host:port` of `/metrics`, `/healthz`, `/readyz` and the status page of `orderflow run`; empty: none.
    pub listen: String,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig { listen: "127.0.0.1:9600".into() }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged: a level, or directives such as `info,rdkafka=debug`.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), format: LogFormat::Text }
    }
}
