//! From the settings to running sinks.

use std::sync::Arc;
use std::time::Duration;

use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::OutputStream;
use orderflow_sinks::clickhouse::{ClickHouseSettings, ClickHouseSink};
use orderflow_sinks::delta::{DeltaSettings, DeltaSink};
use orderflow_sinks::jsonl::{JsonLinesSink, JsonLinesTarget};
use orderflow_sinks::kafka::{KafkaSettings, KafkaSink};
use orderflow_sinks::{Recovered, Sink, SinkError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::JobError;
use super::runtimes::Runtimes;
use crate::config::{Config, DeliveryConfig, Interval, SinkKind};
use crate::dataflow::Settings;
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::sink_driver::{Driver, DriverSettings};
use crate::sink_hub::SinkHub;
use crate::stages::{ChangesSink, JobStream, Target, change_schema};

/// A driver for each enabled sink of each stream for which `mine` holds.
pub(super) fn drivers(
    config: &Config,
    settings: &Settings,
    hub: &Arc<SinkHub>,
    metrics: &Metrics,
    failure: &Failure,
    durable: watch::Receiver<Epoch>,
    mine: impl Fn(usize) -> bool,
) -> Result<Vec<Driver>, JobError> {
    let mut drivers = Vec::new();
    let mut add = |stream: &OutputStream, sink: Box<dyn Sink>, place: &str, interval: Interval, rows_max: u64, delivery: DeliveryConfig| {
        drivers.push(Driver {
            label: format!("{} {} in {place}", sink.name(), stream.name()),
            sink,
            stream: stream.clone(),
            settings: DriverSettings {
                interval: interval.as_duration(),
                rows_max,
                backoff_min: delivery.retry_backoff_min.as_duration(),
                backoff_max: delivery.retry_backoff_max.as_duration(),
            },
            queue: hub.queue(stream, delivery.queue_rows_max),
            hub: hub.clone(),
            durable: durable.clone(),
            committed: watch::channel(Epoch(0)).0,
            recorded: watch::channel(Epoch(0)).0,
            records_end: false,
            metrics: metrics.clone(),
            failure: failure.clone(),
        });
    };
    let refused = |e: SinkError| JobError::Sink(e.to_string());
    for (_, job_stream) in settings.stages.streams.iter().enumerate().filter(|&(number, _)| mine(number)) {
        let JobStream { stream, target, .. } = job_stream;
        let schema = stream.schema(&settings.windows);
        // Messages and lines may be of changes.
        let written = job_stream.debezium.as_ref().map_or_else(|| schema.clone(), |_| change_schema(&schema));
        let sinks = &config.sinks;
        // Whether sinks of a kind get it, and the address that its table gives instead of that of the settings.
        let goes_to = |kind: SinkKind| match target {
            Target::All => Some(None),
            Target::Only(only, address) if *only == kind => Some(address.clone()),
            _ => None,
        };
        let chosen = |streams: &[String]| *target != Target::All || streams.is_empty() || streams.iter().any(|s| s == stream.name());
        if let Some(folder) = goes_to(SinkKind::Delta).filter(|_| sinks.delta.enabled) {
            let settings = delta(config)?;
            let settings = DeltaSettings { url: folder.unwrap_or(settings.url), ..settings };
            let place = settings.url.clone();
            let sink = DeltaSink::new(&config.job.id, stream.name(), schema.clone(), settings).map_err(refused)?;
            let (interval, rows_max) = (sinks.delta.commit_interval, sinks.delta.commit_rows_max);
            add(stream, Box::new(sink), &place, interval, rows_max, sinks.delta.delivery());
        }
        if goes_to(SinkKind::ClickHouse).is_some() && sinks.clickhouse.enabled {
            let sink = ClickHouseSink::new(stream.clone(), schema.clone(), clickhouse(config)).map_err(refused)?;
            let place = format!("{} {}", sinks.clickhouse.url, sinks.clickhouse.database);
            let (interval, rows_max) = (sinks.clickhouse.commit_interval, sinks.clickhouse.commit_rows_max);
            add(stream, Box::new(sink), &place, interval, rows_max, sinks.clickhouse.delivery());
        }
        if let Some(brokers) = goes_to(SinkKind::Kafka).filter(|_| sinks.kafka.enabled && chosen(&sinks.kafka.streams)) {
            let mut settings = kafka(config);
            if *target != Target::All {
                // Its table names the topic.
                settings.topic_prefix.clear();
                settings.brokers = brokers.unwrap_or(settings.brokers);
            }
            let place = format!("{} {}", settings.brokers, settings.topic_prefix);
            let (interval, rows_max) = (sinks.kafka.commit_interval, sinks.kafka.commit_rows_max);
            let sink = KafkaSink::new(stream.clone(), written.clone(), settings).map_err(refused)?;
            add(stream, as_messages(job_stream, Box::new(sink)), &place, interval, rows_max, sinks.kafka.delivery());
        }
        let path = match target {
            Target::Stdout => Some("-"),
            _ => goes_to(SinkKind::JsonLines)
                .filter(|_| sinks.jsonl.enabled && chosen(&sinks.jsonl.streams))
                .map(|_| sinks.jsonl.path.as_str()),
        };
        if let Some(path) = path {
            let target = match path {
                "-" => JsonLinesTarget::Stdout,
                path => JsonLinesTarget::Folder(path.into()),
            };
            let sink = JsonLinesSink::new(stream.name(), written, target);
            // For a look: at once.
            add(stream, as_messages(job_stream, Box::new(sink)), path, Interval::millis(100), u64::MAX, sinks.jsonl.delivery());
        }
    }
    Ok(drivers)
}

/// A sink of messages or lines, which are Debezium's where the stream's table says so.
fn as_messages(stream: &JobStream, sink: Box<dyn Sink>) -> Box<dyn Sink> {
    match &stream.debezium {
        Some(key) => Box::new(ChangesSink::new(sink, key.clone())),
        None => sink,
    }
}

/// Asks each sink what it has committed, all at the same time.
pub(super) async fn recover(runtimes: &Runtimes, drivers: Vec<Driver>) -> Result<Vec<(Driver, Recovered)>, String> {
    let recovering = drivers.into_iter().map(|mut driver| async move {
        let label = driver.label.clone();
        let recovered = runtimes.of_sink(driver.sink.name()).spawn(async move {
            let recovered = driver.recover().await?;
            Ok::<_, String>((driver, recovered))
        });
        recovered.await.unwrap_or_else(|error| Err(format!("sink {label} failed ({error}); this is a bug, please report it")))
    });
    futures::future::try_join_all(recovering).await
}

/// The last epoch that any of them has committed, or began to commit.
pub(super) fn through(recovered: &[(Driver, Recovered)]) -> Epoch {
    recovered.iter().map(|(_, known)| known.group_through.unwrap_or(known.committed).max(known.committed)).max().unwrap_or_default()
}

/// What each of them is known by, and what it has committed.
pub(super) fn known(recovered: &[(Driver, Recovered)]) -> Vec<Known> {
    let known = |(driver, known): &(Driver, Recovered)| Known {
        id: driver.id(),
        label: driver.label.clone(),
        stream: driver.stream.clone(),
        committed: known.committed,
        keeps_record: driver.sink.keeps_record(),
    };
    recovered.iter().map(known).collect()
}

/// A sink of a stream, by what its own store says.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The kind of sink and the stream.
    pub id: String,
    /// Which sink, which stream, and where.
    pub label: String,
    /// The stream.
    pub stream: OutputStream,
    /// Everything through this epoch is in it.
    pub committed: Epoch,
    /// Whether it knows: else it lacks nothing, as nobody can say what.
    pub keeps_record: bool,
}

/// Starts them.
pub(super) fn start(runtimes: &Runtimes, recovered: Vec<(Driver, Recovered)>) -> Vec<JoinHandle<()>> {
    recovered.into_iter().map(|(driver, recovered)| runtimes.of_sink(driver.sink.name()).spawn(driver.run(recovered))).collect()
}

fn delta(config: &Config) -> Result<DeltaSettings, JobError> {
    let delta = &config.sinks.delta;
    let compression = |key: &str, text: &str| text.parse().map_err(|e| JobError::Setting(format!("sinks.delta.{key}: {e}")));
    Ok(DeltaSettings {
        url: delta.url.clone(),
        compression: compression("compression", &delta.compression)?,
        optimize_compression: compression("optimize_compression", &delta.optimize_compression)?,
        checkpoint_interval: delta.checkpoint_commits,
        storage: delta.storage.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        optimize_commits: delta.optimize_commits,
        vacuum_retention: Duration::from_micros(delta.vacuum_retention.as_micros().max(0) as u64),
        ..DeltaSettings::default()
    })
}

fn clickhouse(config: &Config) -> ClickHouseSettings {
    let clickhouse = &config.sinks.clickhouse;
    ClickHouseSettings {
        url: clickhouse.url.clone(),
        database: clickhouse.database.clone(),
        user: clickhouse.user.clone(),
        password: clickhouse.password.reveal().to_owned(),
        job: config.job.id.clone(),
        ..ClickHouseSettings::default()
    }
}

fn kafka(config: &Config) -> KafkaSettings {
    let kafka = &config.sinks.kafka;
    let source = &config.source.kafka;
    let own = kafka.properties.iter();
    // The source's brokers are reached as the source reaches them; what else is tuned there is tuned for reading.
    let access = |name: &str| ["security.", "sasl.", "ssl.", "enable.ssl.", "broker.address."].iter().any(|start| name.starts_with(start));
    let (brokers, properties) = match kafka.brokers.as_str() {
        "" => (&source.brokers, source.properties.iter().filter(|(name, _)| access(name)).chain(own).collect::<Vec<_>>()),
        _ => (&kafka.brokers, own.collect()),
    };
    KafkaSettings {
        brokers: brokers.clone(),
        topic_prefix: kafka.topic_prefix.clone(),
        job: config.job.id.clone(),
        partitions: kafka.partitions,
        replication_factor: kafka.replication_factor,
        message_bytes_max: kafka.message_bytes_max.as_usize(),
        properties: properties.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}
