//! The bounds of every setting. Each message says what is wrong and what to choose.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use orderflow_operators::streams::Stream;
use orderflow_sinks::kafka::{RESERVED_PROPERTIES, topic_name_is_valid};

use super::{Config, EpochLogConfig, Interval};
use crate::epoch_log::TopicSettings;

/// Problems by key; the message follows the key.
struct Report(Vec<(String, String)>);

impl Report {
    fn add(&mut self, key: &str, message: impl Into<String>) {
        self.0.push((key.to_owned(), message.into()));
    }

    fn range<T: PartialOrd + Display + Copy>(&mut self, key: &str, value: T, range: RangeInclusive<T>, why: &str) {
        if !range.contains(&value) {
            self.add(key, format!("is {value}; choose {} to {}: {why}", range.start(), range.end()));
        }
    }

    fn name(&mut self, key: &str, value: &str, bytes_max: usize, also: &str) {
        let wrong = value.chars().any(|c| !(c.is_ascii_alphanumeric() || also.contains(c)));
        if value.is_empty() || value.len() > bytes_max || wrong {
            self.add(key, format!("is `{value}`; choose 1 to {bytes_max} of the characters A-Z a-z 0-9 {also}"));
        }
    }
}

const MINUTE: Interval = Interval::minutes(1);
const DAY: Interval = Interval::hours(24);
const YEAR: Interval = Interval::hours(24 * 366);
const ZERO: Interval = Interval::micros(0);
const MS: Interval = Interval::millis(1);
/// Half of the time for which processes of a job wait for each other at their start.
const BACKOFF_MAX: Interval = Interval::seconds(30);

/// Everything that is out of bounds: key and message.
pub(super) fn check(config: &Config) -> Vec<(String, String)> {
    let mut report = Report(Vec::new());
    job(config, &mut report);
    rules(config, &mut report);
    sinks(config, &mut report);
    report.0
}

fn job(config: &Config, r: &mut Report) {
    r.name("job.id", &config.job.id, 64, "_-.");
    r.range("job.workers", config.job.workers, 0..=128, "a worker owns key groups, of which there are 128; 0 takes all cores");
    for (key, topic) in [("source.orders_topic", &config.source.orders_topic), ("source.inventory_topic", &config.source.inventory_topic)] {
        r.name(key, topic, 249, "_-.");
    }
    if config.source.orders_topic == config.source.inventory_topic {
        r.add("source.inventory_topic", "is the topic of orders too; each has message types of its own, so name two topics");
    }
    let source = &config.source;
    // Texts of an epoch are counted in 32 bits: twice its bytes and a message must stay below.
    let sizes = |mib_max| super::ByteSize::kib(1)..=super::ByteSize::mib(mib_max);
    r.range("source.message_bytes_max", source.message_bytes_max, sizes(256), "a longer message is malformed");
    r.range("source.buffer_bytes_max", source.buffer_bytes_max, sizes(1024), "it is memory, for each split");
    brokers(r, "source.kafka.brokers", &source.kafka.brokers);
    for key in ["bootstrap.servers", "group.id", "enable.auto.commit", "auto.offset.reset"] {
        if source.kafka.properties.0.contains_key(key) {
            let use_instead = if key == "bootstrap.servers" { "; use source.kafka.brokers" } else { "" };
            r.add("source.kafka.properties", format!("has `{key}`, which the job sets itself, as exactly-once rests on it{use_instead}"));
        }
    }
    r.range("epoch.rows_max", config.epoch.rows_max, 1..=1_000_000, "an epoch is held in memory as a whole");
    r.range("epoch.bytes_max", config.epoch.bytes_max, sizes(512), "an epoch is held in memory as a whole");
    r.range("epoch.linger", config.epoch.linger, ZERO..=MINUTE, "it is added to the latency of a quiet job");
    r.range("epoch.in_flight", config.epoch.in_flight, 1..=1_024, "that many epochs are held in memory");
    let checkpoint = &config.checkpoint;
    r.range(
        "checkpoint.interval",
        checkpoint.interval,
        ZERO..=DAY,
        "a recovery plays the epochs behind the last checkpoint; 0 turns them off",
    );
    r.range("checkpoint.keep", checkpoint.keep, 1..=10_000, "an older one is taken where the newest is damaged");
    r.range("checkpoint.buffer_bytes_max", checkpoint.buffer_bytes_max, sizes(65_536), "it is memory, for each operator of a worker");
    if checkpoint.url.contains("://") {
        url(r, "checkpoint.url", &checkpoint.url, &["file", "s3", "s3a", "gs", "az", "abfs", "abfss"]);
    }
    epoch_log(config, r);
    r.range("watermark.delay", config.watermark.delay, ZERO..=DAY, "every timer waits for it");
    r.range("watermark.idle", config.watermark.idle, MS..=DAY, "a split without rows holds every timer back for so long");
    r.range("replay.step", config.replay.step, MS..=DAY, "sealing times have whole milliseconds and rise");
    if config.replay.step.as_micros() % 1_000 != 0 {
        r.add("replay.step", format!("is {}; choose whole milliseconds, as sealing times have them", config.replay.step));
    }
    supervise(config, r);
    if let Err(e) = chrono::DateTime::parse_from_rfc3339(&config.replay.start) {
        r.add("replay.start", format!("is `{}` ({e}); write a time such as 2026-01-05T10:00:00Z", config.replay.start));
    }
    let listen = &config.metrics.listen;
    if !listen.is_empty() && !is_host_and_port(listen) {
        r.add("metrics.listen", format!("is `{listen}`; write an address and a port such as 127.0.0.1:9600, or nothing to have none"));
    }
    if let Err(e) = tracing_subscriber::EnvFilter::builder().parse(&config.log.level) {
        r.add(
            "log.level",
            format!("is `{}` ({e}); write error, warn, info, debug or trace, or directives such as info,rdkafka=debug", config.log.level),
        );
    }
}

fn supervise(config: &Config, r: &mut Report) {
    let supervise = &config.supervise;
    let (min, max) = (supervise.backoff_min, supervise.backoff_max);
    r.range("supervise.backoff_min", min, MS..=BACKOFF_MAX, "it is time without results after a failure");
    r.range("supervise.backoff_max", max, MS..=BACKOFF_MAX, "processes of a job wait a minute for each other, and must meet");
    if min > max {
        r.add("supervise.backoff_max", format!("is {max}, and supervise.backoff_min is {min}; choose one that is not shorter"));
    }
    r.range("supervise.healthy_after", supervise.healthy_after, ZERO..=DAY, "after it a failure is a first one again");
    r.range("supervise.failures_max", supervise.failures_max, 0..=1_000_000, "what fails so often needs somebody to look; 0 is no limit");
    r.range("supervise.window", supervise.window, MS..=YEAR, "failures are counted in it");
}

fn epoch_log(config: &Config, r: &mut Report) {
    let log = &config.epoch_log;
    let topic = log.home.strip_prefix(EpochLogConfig::TOPIC);
    match topic {
        Some(topic) => {
            r.name("epoch_log.home", topic, 249, "_-.");
            if [&config.source.orders_topic, &config.source.inventory_topic].iter().any(|input| *input == topic) {
                r.add("epoch_log.home", format!("is the input `{topic}`; name a topic that nothing else writes to"));
            }
        }
        None if log.home.is_empty() => {}
        None if log.home.contains("://") => url(r, "epoch_log.home", &log.home, &["file", "s3", "s3a", "gs", "az", "abfs", "abfss"]),
        None => r.add(
            "epoch_log.home",
            format!("is `{}`; write kafka:<topic>, a URL such as s3://bucket/folder, or nothing for a file in job.data_dir", log.home),
        ),
    }
    for broker in log.brokers.split(',').filter(|_| !log.brokers.is_empty()) {
        if !is_host_and_port(broker.trim()) {
            r.add(
                "epoch_log.brokers",
                format!("has `{broker}`; write host:port, separated by commas, or nothing for source.kafka.brokers"),
            );
        }
    }
    for key in TopicSettings::RESERVED.into_iter().filter(|key| log.properties.0.contains_key(*key)) {
        let use_instead = if key == "bootstrap.servers" { "; use epoch_log.brokers" } else { "" };
        r.add("epoch_log.properties", format!("has `{key}`, which the job sets itself, as exactly-once rests on it{use_instead}"));
    }
    for (key, given) in [("epoch_log.brokers", !log.brokers.is_empty()), ("epoch_log.properties", !log.properties.0.is_empty())] {
        if given && topic.is_none() {
            r.add(key, "is of no use without a topic; set epoch_log.home to kafka:<topic>, or leave it out");
        }
    }
    if !log.storage.0.is_empty() && !log.home.contains("://") {
        r.add("epoch_log.storage", "is of no use without a URL; set epoch_log.home to one such as s3://bucket/folder, or leave it out");
    }
}

fn rules(config: &Config, r: &mut Report) {
    let v = &config.validate;
    r.range("validate.id_bytes_max", v.id_bytes_max, 1..=65_536, "ids are kept in state");
    r.range("validate.lines_max", v.lines_max, 1..=100_000, "an order is decided as a whole");
    r.range("validate.quantity_max", v.quantity_max, 1..=1_000_000_000_000, "sums must stay within 64 bits");
    r.range("validate.unit_price_max", v.unit_price_max, 0..=1_000_000_000_000, "sums must stay within 64 bits");
    r.range("validate.future_max", v.future_max, ZERO..=YEAR, "an order of the far future moves the watermark there");
    let mut names = BTreeSet::new();
    for rule in &v.rules {
        r.name("validate.rules", &rule.name, 64, "_");
        if !names.insert(&rule.name) {
            r.add("validate.rules", format!("has two rules of the name `{}`; rename one, as orders are reported by it", rule.name));
        }
        if rule.sql.trim().is_empty() {
            r.add(
                "validate.rules",
                format!("has no sql for `{}`; write a predicate that holds for good orders, such as line_count < 50", rule.name),
            );
        }
    }
    r.range("dedup.horizon", config.dedup.horizon, MINUTE..=YEAR, "ids are kept in state for so long");
    divisible(r, "dedup.horizon", config.dedup.horizon, 24, "ids are forgotten in 24ths of it");
    r.range("reservation.hold", config.reservation.hold, MS..=YEAR, "it is how long an unpaid order keeps its stock");

    let fraud = &config.fraud;
    if fraud.windows.is_empty() || fraud.windows.len() > 8 {
        r.add("fraud.windows", format!("has {} windows; choose 1 to 8", fraud.windows.len()));
    }
    for window in &fraud.windows {
        r.range("fraud.windows", *window, Interval::seconds(1)..=YEAR, "orders are counted for so long");
        divisible(r, "fraud.windows", *window, 20, "a window has 20 panes");
    }
    if fraud.windows.windows(2).any(|pair| pair[0] >= pair[1]) {
        r.add("fraud.windows", "does not rise; write each window once, the shortest first");
    }
    r.range("fraud.review", fraud.review, 0.0..=1.0, "a score is a probability");
    r.range("fraud.reject", fraud.reject, 0.0..=1.0, "a score is a probability");
    if fraud.review > fraud.reject {
        r.add("fraud.review", format!("is {}, above fraud.reject, {}; no order would be reviewed", fraud.review, fraud.reject));
    }
    if config.currencies.0.is_empty() {
        r.add("currencies", "is empty, so that every order would be invalid; write at least one, such as USD = 1000000");
    }
    for (code, &rate_ppm) in &config.currencies.0 {
        let key = format!("currencies.{code}");
        if code.len() != 3 || !code.bytes().all(|b| b.is_ascii_uppercase()) {
            r.add(&key, "is not a currency code; write three letters A-Z, such as EUR");
        }
        r.range(&key, rate_ppm, 1..=1_000_000_000_000, "it is the value of one minor unit, in millionths of one of the reference currency");
    }
}

fn divisible(r: &mut Report, key: &str, interval: Interval, parts: i64, why: &str) {
    if interval.as_micros() % parts != 0 {
        r.add(key, format!("is {interval}, which does not divide by {parts} into whole microseconds: {why}"));
    }
}

fn sinks(config: &Config, r: &mut Report) {
    let sinks = &config.sinks;
    for (name, delivery) in [
        ("delta", sinks.delta.delivery()),
        ("clickhouse", sinks.clickhouse.delivery()),
        ("kafka", sinks.kafka.delivery()),
        ("jsonl", sinks.jsonl.delivery()),
    ] {
        let key = |setting: &str| format!("sinks.{name}.{setting}");
        r.range(&key("queue_rows_max"), delivery.queue_rows_max, 1_000..=100_000_000, "rows that wait are memory, about 300 bytes each");
        r.range(&key("retry_backoff_min"), delivery.retry_backoff_min, MS..=MINUTE, "a server that is down should not be hammered");
        r.range(&key("retry_backoff_max"), delivery.retry_backoff_max, MS..=Interval::hours(1), "a server that is back should be noticed");
        if delivery.retry_backoff_min > delivery.retry_backoff_max {
            r.add(&key("retry_backoff_min"), "is above retry_backoff_max; it is the first wait and doubles up to there");
        }
    }
    let delta = &sinks.delta;
    if delta.url.contains("://") {
        url(r, "sinks.delta.url", &delta.url, &["file", "s3", "s3a", "gs", "az", "abfs", "abfss", "memory"]);
    }
    r.range("sinks.delta.commit_interval", delta.commit_interval, ZERO..=Interval::hours(1), "rows are visible after it");
    r.range("sinks.delta.commit_rows_max", delta.commit_rows_max, 1..=100_000_000, "the rows of a commit are held in memory");
    r.range("sinks.delta.checkpoint_commits", delta.checkpoint_commits, 1..=10_000, "readers walk the log from the last checkpoint");
    r.range("sinks.delta.optimize_commits", delta.optimize_commits, 0..=1_000_000, "a compaction rewrites small files; 0 turns it off");
    r.range("sinks.delta.vacuum_retention", delta.vacuum_retention, ZERO..=YEAR, "readers of older versions need the files");
    for (key, compression) in [("compression", &delta.compression), ("optimize_compression", &delta.optimize_compression)] {
        if !compression_is_known(compression) {
            r.add(&format!("sinks.delta.{key}"), format!("is `{compression}`; choose none, snappy, zstd or zstd(1) to zstd(22)"));
        }
    }

    let clickhouse = &sinks.clickhouse;
    url(r, "sinks.clickhouse.url", &clickhouse.url, &["http", "https"]);
    r.name("sinks.clickhouse.database", &clickhouse.database, 64, "_");
    if clickhouse.database == "default" {
        r.add("sinks.clickhouse.database", "is `default`, which is shared and not always atomic; name a database for the job");
    }
    r.range("sinks.clickhouse.commit_interval", clickhouse.commit_interval, ZERO..=MINUTE, "rows are visible after it");
    r.range(
        "sinks.clickhouse.commit_rows_max",
        clickhouse.commit_rows_max,
        1..=500_000,
        "a larger insert is split into parts that do not deduplicate as one",
    );

    kafka(config, r);

    streams(config, r, "sinks.jsonl.streams", &sinks.jsonl.streams);
    if sinks.jsonl.path.is_empty() {
        r.add("sinks.jsonl.path", "is empty; write a folder, or - for standard output");
    }
}

fn kafka(config: &Config, r: &mut Report) {
    let kafka = &config.sinks.kafka;
    if !kafka.brokers.is_empty() {
        brokers(r, "sinks.kafka.brokers", &kafka.brokers);
    }
    let prefix = &kafka.topic_prefix;
    for stream in Stream::ALL {
        let topic = format!("{prefix}{stream}");
        if !topic_name_is_valid(&topic) {
            r.add("sinks.kafka.topic_prefix", format!("is `{prefix}`; choose at most 200 of the characters A-Z a-z 0-9 _-."));
            break;
        }
        if [&config.source.orders_topic, &config.source.inventory_topic].contains(&&topic) {
            r.add("sinks.kafka.topic_prefix", format!("is `{prefix}`, which makes `{topic}`, a topic that the job reads; choose another"));
        }
    }
    r.range("sinks.kafka.partitions", kafka.partitions, 1..=1_000, "each commit touches them all");
    r.range("sinks.kafka.replication_factor", kafka.replication_factor, 0..=100, "0 takes what the cluster does by itself");
    let sizes = super::ByteSize::kib(2)..=super::ByteSize::mib(64);
    r.range("sinks.kafka.message_bytes_max", kafka.message_bytes_max, sizes, "it is memory, here and in the brokers");
    r.range("sinks.kafka.commit_interval", kafka.commit_interval, ZERO..=MINUTE, "rows are visible after it");
    r.range("sinks.kafka.commit_rows_max", kafka.commit_rows_max, 1..=1_000_000, "a transaction must end before the coordinator ends it");
    streams(config, r, "sinks.kafka.streams", &kafka.streams);
    for key in RESERVED_PROPERTIES.into_iter().filter(|&key| kafka.properties.0.contains_key(key)) {
        let use_instead = match key {
            "bootstrap.servers" | "metadata.broker.list" => "; use sinks.kafka.brokers",
            "message.max.bytes" => "; use sinks.kafka.message_bytes_max",
            _ => "",
        };
        r.add("sinks.kafka.properties", format!("has `{key}`, which the sink sets itself, as exactly-once rests on it{use_instead}"));
    }
}

fn brokers(r: &mut Report, key: &str, brokers: &str) {
    for broker in brokers.split(',') {
        if !is_host_and_port(broker.trim()) {
            r.add(key, format!("has `{broker}`; write host:port, separated by commas"));
        }
    }
}

fn streams(config: &Config, r: &mut Report, key: &str, streams: &[String]) {
    for stream in streams {
        // Those of stages are known when these are planned.
        if config.stages.files.is_empty() && !Stream::ALL.iter().any(|known| known.name() == stream) {
            let known: Vec<_> = Stream::ALL.iter().map(|s| s.name()).collect();
            r.add(key, format!("has `{stream}`; streams are {}", known.join(", ")));
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn url(r: &mut Report, key: &str, text: &str, schemes: &[&str]) {
    match url::Url::parse(text) {
        Ok(url) if schemes.contains(&url.scheme()) => {}
        Ok(url) => r.add(key, format!("has the scheme `{}`; choose one of {}", url.scheme(), schemes.join(", "))),
        Err(e) => r.add(key, format!("is `{text}` ({e}); write a URL such as {}://host", schemes[0])),
    }
}

/// Whether `text` names a compression of Parquet that the build has.
fn compression_is_known(text: &str) -> bool {
    let level = text.strip_prefix("zstd(").and_then(|rest| rest.strip_suffix(')')).and_then(|level| level.parse::<u8>().ok());
    ["none", "snappy", "zstd"].contains(&text) || level.is_some_and(|level| (1..=22).contains(&level))
}
