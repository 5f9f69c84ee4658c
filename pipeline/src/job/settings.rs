//! From the user's settings to those of the parts.

use std::collections::BTreeMap;

use orderflow_operators::deduplicate::DeduplicateSettings;
use orderflow_operators::features::WindowSet;
use orderflow_operators::score::{Model, Thresholds};
use orderflow_operators::validate::{Predicate, ValidateSettings};
use orderflow_operators::watermark::WatermarkSettings;
use orderflow_sql::SqlPredicate;

use super::JobError;
use crate::config::{Config, EpochLogConfig};
use crate::dataflow::Settings;
use crate::epoch_log::{LogHeader, LogHome, ObjectSettings, TopicSettings};
use crate::sealer::{MARKS_MAX, SplitStart};
use crate::source::{KafkaSettings, Source, SourceLimits};
use crate::stages::{MEANING, Stages};

/// Least bytes between two marks of a split: an epoch of less is not worth its overhead.
const MARK_BYTES_MIN: u64 = 64 << 10;

/// Bytes of a split between two of the marks by which the sealer bounds an epoch's bytes.
pub(super) fn mark_bytes(config: &Config, splits: usize) -> u64 {
    let wanted = (config.epoch.bytes_max.as_u64() / (MARKS_MAX * splits.max(1)) as u64).max(MARK_BYTES_MIN);
    // A full buffer has as many marks as bound an epoch, so that a sealer that waits for them never waits in vain.
    wanted.min(config.source.buffer_bytes_max.as_u64() / MARKS_MAX as u64).max(1)
}

/// How far sources read ahead.
pub(super) fn source_limits(config: &Config) -> SourceLimits {
    SourceLimits {
        buffer_bytes_max: config.source.buffer_bytes_max.as_usize(),
        message_bytes_max: config.source.message_bytes_max.as_usize(),
        ..SourceLimits::default()
    }
}

/// The brokers.
pub(super) fn kafka(config: &Config) -> KafkaSettings {
    KafkaSettings {
        brokers: config.source.kafka.brokers.clone(),
        orders_topic: config.source.orders_topic.clone(),
        inventory_topic: config.source.inventory_topic.clone(),
        group_id: config.job.id.clone(),
        start_wait: config.source.kafka.start_wait.as_duration(),
        properties: config.source.kafka.properties.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    }
}

/// Where the epoch log of a live job is.
pub(super) fn log_home(config: &Config) -> LogHome {
    let log = &config.epoch_log;
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    if log.home.is_empty() {
        return LogHome::Folder(config.job.data_dir.clone());
    }
    let Some(topic) = log.home.strip_prefix(EpochLogConfig::TOPIC) else {
        return LogHome::Objects(ObjectSettings { url: log.home.clone(), storage: log.storage.iter().map(owned).collect() });
    };
    let mut properties = BTreeMap::new();
    let mut brokers = &log.brokers;
    if brokers.is_empty() {
        // The same brokers let the job in with the same TLS and SASL.
        brokers = &config.source.kafka.brokers;
        properties.extend(config.source.kafka.properties.iter().map(owned));
    }
    properties.extend(log.properties.iter().map(owned));
    LogHome::Topic(TopicSettings { brokers: brokers.clone(), topic: topic.to_owned(), job: config.job.id.clone(), properties })
}

/// What operators are told.
pub(super) fn operators(config: &Config, live: bool) -> Result<Settings, JobError> {
    let setting = |e: &dyn std::fmt::Display| JobError::Setting(e.to_string());
    let widths: Vec<i64> = config.fraud.windows.iter().map(|w| w.as_micros()).collect();
    let windows = WindowSet::new(&widths).map_err(|e| setting(&format_args!("fraud.windows: {e}")))?;
    let model = config.fraud.model_text().map_err(|e| setting(&e))?;
    let model = Model::from_json(&model, &windows).map_err(|e| setting(&format_args!("model {}: {e}", config.fraud.model.display())))?;
    let rules = config.validate.rules.clone();
    let plan = move || rules.iter().map(|rule| SqlPredicate::plan(&rule.name, &rule.sql)).collect::<Result<Vec<_>, _>>();
    // Once here, so that a bad rule ends the job before it began.
    plan().map_err(|e| setting(&e))?;
    let predicates = move || -> Vec<Box<dyn Predicate>> {
        let rules = plan().expect("the rules have been planned before");
        rules.into_iter().map(|rule| Box::new(rule) as Box<dyn Predicate>).collect()
    };
    let stages = Stages::load(&config.stages.files, &windows).map_err(|e| setting(&e))?;
    stages.check(config).map_err(|e| setting(&e))?;
    let limits = &config.validate;
    let horizon = config.dedup.horizon.as_micros();
    Ok(Settings {
        topics: [config.source.inventory_topic.clone(), config.source.orders_topic.clone()],
        watermark: WatermarkSettings { delay: config.watermark.delay.as_micros(), idle: config.watermark.idle.as_micros() },
        validate: ValidateSettings {
            order_id_bytes_max: limits.id_bytes_max,
            customer_id_bytes_max: limits.id_bytes_max,
            sku_bytes_max: limits.id_bytes_max,
            lines_max: limits.lines_max,
            quantity_max: limits.quantity_max,
            unit_price_max: limits.unit_price_max,
            future_max: live.then(|| limits.future_max.as_micros()),
            dedup_horizon: horizon,
            currencies: config.currencies.0.clone(),
        },
        predicates: Box::new(predicates),
        deduplicate: DeduplicateSettings { horizon },
        windows,
        model,
        thresholds: Thresholds { reject: config.fraud.reject, review: config.fraud.review },
        hold: config.reservation.hold.as_micros(),
        stages,
    })
}

/// What tells a job's epoch log and checkpoints from those of another one, or of another meaning.
pub(super) fn header(
    config: &Config,
    settings: &Settings,
    source: &dyn Source,
    starts: &[SplitStart],
    topics: &BTreeMap<String, String>,
) -> LogHeader {
    LogHeader {
        format: LogHeader::FORMAT,
        job: config.job.id.clone(),
        splits: source.splits().iter().map(|split| split.name.clone()).collect(),
        starts: starts.iter().map(|start| start.offset).collect(),
        topics: topics.clone(),
        settings: meaning(config, settings),
    }
}

/// The settings on which results depend, as text: a job continues only under the same.
fn meaning(config: &Config, settings: &Settings) -> BTreeMap<String, String> {
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let mut meaning: BTreeMap<String, String> = [
        ("watermark.delay", config.watermark.delay.label()),
        ("watermark.idle", config.watermark.idle.label()),
        ("dedup.horizon", config.dedup.horizon.label()),
        ("reservation.hold", config.reservation.hold.label()),
        ("fraud.review", text(&config.fraud.review)),
        ("fraud.reject", text(&config.fraud.reject)),
        ("fraud.windows", config.fraud.windows.iter().map(|w| w.label()).collect::<Vec<_>>().join(", ")),
        ("validate.future_max", text(&settings.validate.future_max)),
        ("source.message_bytes_max", config.source.message_bytes_max.as_u64().to_string()),
        ("currencies", text(&config.currencies.0)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let limits = &config.validate;
    meaning.insert("validate.id_bytes_max".into(), limits.id_bytes_max.to_string());
    meaning.insert("validate.lines_max".into(), limits.lines_max.to_string());
    meaning.insert("validate.quantity_max".into(), limits.quantity_max.to_string());
    meaning.insert("validate.unit_price_max".into(), limits.unit_price_max.to_string());
    for rule in &limits.rules {
        meaning.insert(format!("validate.rules.{}", rule.name), rule.sql.clone());
    }
    meaning.extend(settings.stages.meaning().into_iter().map(|(stage, of)| (format!("{MEANING}{stage}"), of)));
    // The model's weights are its meaning, not its file's name.
    if let Ok(model) = config.fraud.model_text() {
        let sum = crc32fast::hash(model.as_bytes());
        meaning.insert("fraud.model".into(), format!("{} (checksum {sum:08x})", settings.model.label()));
    }
    meaning
}
