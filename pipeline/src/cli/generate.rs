//! `orderflow generate`: seeded orders into a folder or a topic.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use orderflow::config::SourceConfig;
use orderflow::source::{KafkaSettings, TopicWriter};
use orderflow_fixtures::Topic;
use orderflow_fixtures::generate::{Compression, FlashSale, GenerateSettings, Generator, Written, write_folder};
use orderflow_operators::decoder;

use super::CliError;
use super::progress::{Display, set_total};
use super::settings::SettingsArgs;
use super::table::grouped;

/// Generate orders and stock movements, into a folder or into topics
///
/// Customers with cards, devices and addresses, SKUs by a Zipf law, duplicates, conflicts, bursts of stolen cards, cancellations,
/// payments, shipments, restocks, malformed messages, and a flash sale if asked for. The same settings give the same bytes on every
/// machine. Shares are probabilities for each order, 0 to 1.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow generate --orders 100000 --seed 1 --out fixture
  orderflow generate --orders 5000000 --flash-sale --order-splits 8 --compress zstd --out fixture
  orderflow generate --orders 1000000 --brokers localhost:19092")]
pub(super) struct GenerateArgs {
    /// Orders placed, not counting duplicates and conflicts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    orders: u64,
    /// Seed of everything that looks like chance
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    target: Target,
    /// A rush on ten scarce SKUs in the middle
    #[arg(long)]
    flash_sale: bool,
    #[command(flatten)]
    knobs: Knobs,
    /// Compression of the files
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Compress::None, conflicts_with = "brokers")]
    compress: Compress,
    /// No progress bar
    #[arg(long)]
    no_progress: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Folder to write inventory-*.jsonl and orders-*.jsonl to
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Brokers to send to, as host:port, separated by commas; names of topics, and TLS, are those of the settings
    #[arg(long, value_name = "B")]
    brokers: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "What they are like")]
struct Knobs {
    /// When the first order arrives (RFC 3339) [default: 2026-01-05T10:00:00Z; to brokers: so that the last arrives now]
    #[arg(long, value_name = "TIME")]
    start: Option<DateTime<Utc>>,
    /// Orders a second of event time
    #[arg(long, value_name = "N", default_value_t = defaults().rate_per_s)]
    rate: f64,
    /// SKUs of which there is little stock, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = defaults().scarce_share)]
    scarce: f64,
    /// Customers
    #[arg(long, value_name = "N", default_value_t = defaults().customers)]
    customers: u64,
    /// SKUs
    #[arg(long, value_name = "N", default_value_t = defaults().skus)]
    skus: u64,
    /// Exponent of the SKUs' Zipf law; 0 sells all alike
    #[arg(long, value_name = "S", default_value_t = defaults().sku_zipf)]
    zipf: f64,
    /// Files of orders, or partitions of their topic where it has to be made
    #[arg(long, value_name = "N", default_value_t = defaults().order_splits)]
    order_splits: u32,
    /// Files of stock movements, or partitions of their topic
    #[arg(long, value_name = "N", default_value_t = defaults().inventory_splits)]
    inventory_splits: u32,
    /// Orders sent twice
    #[arg(long, value_name = "SHARE", default_value_t = defaults().duplicate_share)]
    duplicates: f64,
    /// Order ids sent again with other content
    #[arg(long, value_name = "SHARE", default_value_t = defaults().conflict_share)]
    conflicts: f64,
    /// Orders that break a rule
    #[arg(long, value_name = "SHARE", default_value_t = defaults().invalid_share)]
    invalid: f64,
    /// Malformed messages
    #[arg(long, value_name = "SHARE", default_value_t = defaults().malformed_share)]
    malformed: f64,
    /// Orders that are cancelled
    #[arg(long, value_name = "SHARE", default_value_t = defaults().cancel_share)]
    cancels: f64,
    /// Orders that are paid
    #[arg(long, value_name = "SHARE", default_value_t = defaults().payment_share)]
    payments: f64,
    /// Orders that are shipped; not more than are paid
    #[arg(long, value_name = "SHARE", default_value_t = defaults().ship_share)]
    shipments: f64,
    /// Orders of stolen cards, in bursts; 0.25 at most
    #[arg(long, value_name = "SHARE", default_value_t = defaults().fraud_share)]
    fraud: f64,
    /// Orders that arrive up to a minute late
    #[arg(long, value_name = "SHARE", default_value_t = defaults().late_share)]
    late: f64,
    /// Stock movements behind an order
    #[arg(long, value_name = "SHARE", default_value_t = defaults().restock_share)]
    restocks: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compress {
    None,
    Gzip,
    Zstd,
}

fn defaults() -> GenerateSettings {
    GenerateSettings::default()
}

impl GenerateArgs {
    fn generate_settings(&self) -> GenerateSettings {
        let knobs = &self.knobs;
        let start_us = match (knobs.start, &self.target.brokers) {
            (Some(start), _) => start.timestamp_micros(),
            (None, Some(_)) => Utc::now().timestamp_micros() - (self.orders as f64 / knobs.rate.max(0.001) * 1e6) as i64,
            (None, None) => defaults().start_us,
        };
        GenerateSettings {
            orders: self.orders,
            seed: self.seed,
            start_us,
            rate_per_s: knobs.rate,
            customers: knobs.customers,
            skus: knobs.skus,
            sku_zipf: knobs.zipf,
            order_splits: knobs.order_splits,
            inventory_splits: knobs.inventory_splits,
            duplicate_share: knobs.duplicates,
            conflict_share: knobs.conflicts,
            invalid_share: knobs.invalid,
            malformed_share: knobs.malformed,
            cancel_share: knobs.cancels,
            payment_share: knobs.payments,
            ship_share: knobs.shipments,
            fraud_share: knobs.fraud,
            late_share: knobs.late,
            restock_share: knobs.restocks,
            scarce_share: knobs.scarce,
            flash_sale: self.flash_sale.then(FlashSale::default),
        }
    }
}

pub(super) fn generate(args: GenerateArgs) -> Result<(), CliError> {
    let config = args.settings.load([])?;
    let settings = args.generate_settings();
    settings.check().map_err(|e| CliError::Usage(e.to_string()))?;
    let display = Display::new(!args.no_progress);
    let started = Instant::now();
    let (written, target) = match (&args.target.out, &args.target.brokers) {
        (Some(folder), _) => {
            let compression = match args.compress {
                Compress::None => Compression::Plain,
                Compress::Gzip => Compression::Gzip,
                Compress::Zstd => Compression::Zstd,
            };
            (into_folder(&settings, compression, folder, &display)?, folder.display().to_string())
        }
        (None, Some(brokers)) => (into_topics(&settings, &config.source, brokers, &display)?, brokers.clone()),
        (None, None) => return Err(CliError::Usage("give --out or --brokers".to_owned())),
    };
    let size = indicatif::HumanBytes(written.bytes);
    eprintln!("{} messages, {size}, to {target} in {:.1} s", grouped(written.rows), started.elapsed().as_secs_f64());
    Ok(())
}

/// The demo's input: an ordinary day with a flash sale.
pub(super) fn demo_fixture(orders: u64, seed: u64, folder: &Path, display: &Display) -> Result<u64, CliError> {
    let ended = GenerateSettings { orders, seed, flash_sale: Some(FlashSale::default()), ..defaults() };
    let span_us = (orders as f64 / ended.rate_per_s * 1e6) as i64;
    // The orders of the minutes before now, so that the reports' times are of today.
    let settings = GenerateSettings { start_us: Utc::now().timestamp_micros() - span_us, ..ended };
    Ok(into_folder(&settings, Compression::Plain, folder, display)?.rows)
}

fn into_folder(settings: &GenerateSettings, compression: Compression, folder: &Path, display: &Display) -> Result<Written, CliError> {
    let bar = bar(settings, display);
    let written = write_folder(settings, compression, folder, |written| bar.set_position(written.rows));
    bar.finish_and_clear();
    written.map_err(CliError::failed)
}

/// How long the last messages may take to be acknowledged.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_secs(120);
/// Messages between two steps of the bar.
const BAR_STEP: u64 = 16_384;

/// A split of the fixture is a partition, so that all messages of a key are in one, in their order.
fn into_topics(settings: &GenerateSettings, source: &SourceConfig, brokers: &str, display: &Display) -> Result<Written, CliError> {
    let topics = KafkaSettings {
        brokers: brokers.to_owned(),
        orders_topic: source.orders_topic.clone(),
        inventory_topic: source.inventory_topic.clone(),
        group_id: String::new(),
        start_wait: source.kafka.start_wait.as_duration(),
        properties: source.kafka.properties.0.clone(),
    };
    let mut generator = Generator::new(settings.clone()).map_err(CliError::failed)?;
    let mut writer = TopicWriter::connect(topics, settings.order_splits, settings.inventory_splits).map_err(CliError::failed)?;
    let bar = bar(settings, display);
    let mut sent = 0_u64;
    while let Some(row) = generator.next_row() {
        let topic = match row.topic {
            Topic::Orders => decoder::Topic::Orders,
            Topic::Inventory => decoder::Topic::Inventory,
        };
        writer.send(topic, row.split, row.key.as_bytes(), row.payload).map_err(CliError::failed)?;
        sent += 1;
        if sent.is_multiple_of(BAR_STEP) {
            bar.set_position(sent);
        }
    }
    let written = writer.finish(ACKNOWLEDGE_WAIT).map_err(CliError::failed)?;
    bar.finish_and_clear();
    Ok(Written { rows: written.orders + written.inventory, bytes: written.bytes })
}

fn bar(settings: &GenerateSettings, display: &Display) -> ProgressBar {
    let bar = display.bar("generate", "messages");
    set_total(&bar, messages_about(settings), "messages");
    bar
}

/// About how many messages there will be, for the bar.
fn messages_about(s: &GenerateSettings) -> u64 {
    let follow_ups =
        [s.duplicate_share, s.conflict_share, s.malformed_share, s.cancel_share, s.payment_share, s.ship_share, s.restock_share];
    let hot_skus = s.flash_sale.map_or(0, |sale| sale.hot_skus);
    s.skus + hot_skus + (s.orders as f64 * (1.0 + follow_ups.iter().sum::<f64>())) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: GenerateArgs,
    }

    fn settings(line: &str) -> GenerateSettings {
        Command::parse_from(line.split(' ')).args.generate_settings()
    }

    #[test]
    fn without_knobs_it_is_the_default() {
        assert_eq!(settings("generate --orders 100000 --out x"), GenerateSettings::default());
        let sale = settings("generate --orders 7 --seed 3 --out x --flash-sale --skus 5 --start 1970-01-01T00:00:01Z");
        let expected =
            GenerateSettings { orders: 7, seed: 3, skus: 5, start_us: 1_000_000, flash_sale: Some(FlashSale::default()), ..defaults() };
        assert_eq!(sale, expected);
    }

    #[test]
    fn what_goes_to_brokers_is_not_of_the_future() {
        let before = Utc::now().timestamp_micros();
        let settings = settings("generate --orders 30000 --rate 3000 --brokers b:1");
        let from_now_us = settings.start_us - before;
        assert!((-10_000_000..=-9_000_000).contains(&from_now_us) || Utc::now().timestamp_micros() - before > 1_000_000, "{from_now_us}");
    }

    #[test]
    fn the_bar_is_about_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = Command::parse_from("generate --orders 5000 --skus 300 --flash-sale --out x".split(' ')).args;
        let settings = args.generate_settings();
        let written = into_folder(&settings, Compression::Plain, folder.path(), &Display::new(false)).expect("writes");
        let ratio = messages_about(&settings) as f64 / written.rows as f64;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}
