//! `orderflow report`: the reporting views of ClickHouse as tables.

use std::io::{self, Write};

use clap::Args;
use clap::builder::PossibleValuesParser;
use orderflow::config::ClickHouseConfig;
use orderflow_sinks::clickhouse::ClickHouseSettings;
use orderflow_sinks::clickhouse::reports::{Report, ReportTable};

use super::CliError;
use super::settings::SettingsArgs;
use super::table::render;

/// Print reports from ClickHouse: revenue, fraud, stock-outs, acceptance, latency
///
/// They are read from the reporting views that the job keeps there, and are as fresh as its last commit.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow report
  orderflow report revenue stock-outs --limit 5
  orderflow report --url http://clickhouse:8123 --set sinks.clickhouse.user=reader
  orderflow report latency --sql    (the query itself, for another client)")]
pub(super) struct ReportArgs {
    /// Which reports; all without a name
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(Report::ALL.map(Report::name)))]
    names: Vec<String>,
    /// The server's HTTP interface, instead of that of the settings
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The job's database, instead of that of the settings
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Most rows of a report
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Print the queries instead of running them
    #[arg(long)]
    sql: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn report(args: &ReportArgs) -> Result<(), CliError> {
    let url = args.url.as_ref().map(|url| format!("sinks.clickhouse.url={url}"));
    let database = args.database.as_ref().map(|name| format!("sinks.clickhouse.database={name}"));
    let config = args.settings.load(url.into_iter().chain(database))?.sinks.clickhouse;
    let chosen = |report: &Report| args.names.is_empty() || args.names.iter().any(|name| name == report.name());
    let reports: Vec<Report> = Report::ALL.into_iter().filter(chosen).collect();
    let mut out = io::stdout().lock();
    if args.sql {
        for report in reports {
            writeln!(out, "-- {}\n{};\n", report.title(), report.sql(&config.database, args.limit))?;
        }
        return Ok(());
    }
    for table in run(&reports, &config, args.limit)? {
        writeln!(out, "{}", render(table.title, &table.columns, &table.rows))?;
    }
    Ok(())
}

/// The answers of `reports` from the server of `config`.
pub(super) fn run(reports: &[Report], config: &ClickHouseConfig, limit: u64) -> Result<Vec<ReportTable>, CliError> {
    let settings = ClickHouseSettings {
        url: config.url.clone(),
        database: config.database.clone(),
        user: config.user.clone(),
        password: config.password.reveal().to_owned(),
        ..ClickHouseSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::failed)?;
    runtime.block_on(async {
        let mut tables = Vec::with_capacity(reports.len());
        for report in reports {
            tables.push(report.run(&settings, limit).await.map_err(CliError::failed)?);
        }
        Ok(tables)
    })
}
