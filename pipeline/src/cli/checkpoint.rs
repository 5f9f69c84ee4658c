//! `orderflow checkpoint` and `orderflow state`.

use std::io::{self, Write};
use std::path::PathBuf;

use chrono::DateTime;
use clap::{Args, Subcommand, ValueEnum};
use orderflow::checkpoint::{CheckpointStore, FileKind, Listed, Manifest};
use orderflow::config::Config;
use orderflow::{job, state_query};

use super::CliError;
use super::backfill::START;
use super::settings::SettingsArgs;
use super::table::{grouped, render};

/// List, show, keep and drop checkpoints
///
/// A job goes on from its newest checkpoint by itself. A savepoint is one that has a name, and is kept until it is dropped.
#[derive(Subcommand)]
pub(super) enum CheckpointCommand {
    /// List the checkpoints that there are, the newest first
    #[command(after_help = "Example:\n  orderflow checkpoint list --folder out")]
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show what is in a checkpoint
    Show {
        /// Its epoch or, of a savepoint, its name; without it, the newest
        #[arg(value_name = "CHECKPOINT")]
        which: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Keep the newest checkpoint under a name
    #[command(after_help = "Example:\n  orderflow checkpoint savepoint before-upgrade --config my.toml")]
    Savepoint {
        /// Letters, digits, dots, dashes and underscores
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Drop a checkpoint or savepoint; files that nothing else needs go with the job's next checkpoint
    Drop {
        /// Its epoch or, of a savepoint, its name
        #[arg(value_name = "CHECKPOINT")]
        which: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Where a job's checkpoints are.
#[derive(Args)]
pub(super) struct Place {
    /// Folder of the job: --out of a replay; without it, job.data_dir. checkpoint.url comes before both
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Place {
    fn open(&self) -> Result<(Config, CheckpointStore), CliError> {
        let config = self.settings.load([])?;
        let folder = self.folder.clone().unwrap_or_else(|| config.job.data_dir.clone());
        if config.checkpoint.url.is_empty() && !folder.join("checkpoints").is_dir() {
            return Err(CliError::Failed(format!(
                "there are no checkpoints in {}: give --folder, or the settings of the job by --config",
                folder.display()
            )));
        }
        let store = job::checkpoint_store(&config, &folder).map_err(CliError::failed)?;
        Ok((config, store))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(CliError::failed)
}

/// The checkpoint of that epoch or name; the newest without one.
async fn find(store: &CheckpointStore, which: Option<&str>) -> Result<Listed, CliError> {
    let listed = store.list().await.map_err(CliError::failed)?;
    let fits = |listed: &&Listed| match which {
        None => listed.name.is_none(),
        Some(which) => listed.name.as_deref() == Some(which) || (listed.name.is_none() && listed.epoch.0.to_string() == which),
    };
    listed.iter().find(fits).cloned().ok_or_else(|| {
        let wanted = which.map_or_else(|| "at all".to_owned(), |which| format!("`{which}`"));
        CliError::Failed(format!(
            "there is no checkpoint {wanted} in {}; `orderflow checkpoint list` shows those that there are",
            store.url()
        ))
    })
}

pub(super) fn checkpoint(command: CheckpointCommand) -> Result<(), CliError> {
    let runtime = runtime()?;
    let mut out = io::stdout().lock();
    match command {
        CheckpointCommand::List { place } => {
            let (_, store) = place.open()?;
            let rows = runtime.block_on(async {
                let mut rows = Vec::new();
                for listed in store.list().await.map_err(CliError::failed)? {
                    let name = listed.name.clone().unwrap_or_default();
                    rows.push(match store.manifest(&listed).await {
                        Ok(manifest) => vec![
                            listed.epoch.to_string(),
                            name,
                            time(manifest.created_at),
                            manifest.files.len().to_string(),
                            grouped(manifest.bytes()),
                        ],
                        Err(error) => vec![listed.epoch.to_string(), name, error.to_string(), String::new(), String::new()],
                    });
                }
                Ok::<_, CliError>(rows)
            })?;
            let heads = ["epoch", "name", "made", "files", "bytes"].map(str::to_owned);
            writeln!(out, "{}", render(&format!("Checkpoints in {}", store.url()), &heads, &rows))?;
        }
        CheckpointCommand::Show { which, place } => {
            let (_, store) = place.open()?;
            let manifest = runtime.block_on(async {
                let listed = find(&store, which.as_deref()).await?;
                store.manifest(&listed).await.map_err(CliError::failed)
            })?;
            show(&mut out, &manifest)?;
        }
        CheckpointCommand::Savepoint { name, place } => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let is_taken = name.parse::<u64>().is_ok() || name == START;
            if name.is_empty() || name.len() > 100 || !name.chars().all(allowed) || is_taken {
                return Err(CliError::Usage(format!(
                    "`{name}` cannot be a name: letters, digits, dots, dashes and underscores, not a number, not `{START}`"
                )));
            }
            let (_, store) = place.open()?;
            let epoch = runtime.block_on(async {
                let listed = find(&store, None).await?;
                store.save(&listed, &name).await.map_err(CliError::failed)?;
                Ok::<_, CliError>(listed.epoch)
            })?;
            writeln!(out, "the state at the end of epoch {epoch} is kept as {name}")?;
        }
        CheckpointCommand::Drop { which, place } => {
            let (_, store) = place.open()?;
            runtime.block_on(async {
                let listed = find(&store, Some(&which)).await?;
                store.remove_checkpoint(&listed).await.map_err(CliError::failed)
            })?;
            writeln!(out, "{which} is dropped")?;
        }
    }
    Ok(())
}

fn show(out: &mut impl Write, manifest: &Manifest) -> io::Result<()> {
    writeln!(out, "epoch      {}", manifest.epoch)?;
    writeln!(out, "job        {}", manifest.header.job)?;
    writeln!(out, "sealed     {}", time(manifest.sealed_at))?;
    writeln!(out, "made       {}", time(manifest.created_at))?;
    writeln!(out, "watermark  {}", time(manifest.watermark.watermark.div_euclid(1000)))?;
    for (name, offset) in manifest.header.splits.iter().zip(&manifest.offsets) {
        writeln!(out, "next       {name} from {offset}")?;
    }
    for sink in manifest.sinks.values() {
        writeln!(out, "committed  {}", sink.label)?;
    }
    let operators: std::collections::BTreeSet<&str> = manifest.files.values().map(|file| file.operator.as_str()).collect();
    let rows = operators.into_iter().map(|operator| {
        let of = |kind: FileKind| manifest.files.values().filter(move |file| file.operator == operator && file.kind == kind);
        let sum = |kind, of_file: fn(&orderflow::checkpoint::DataFile) -> u64| grouped(of(kind).map(of_file).sum());
        let (bases, changes) = (FileKind::Bases, FileKind::Changes);
        vec![
            operator.to_owned(),
            sum(bases, |file| file.rows),
            sum(bases, |file| file.bytes),
            sum(changes, |file| file.rows),
            sum(changes, |file| file.bytes),
            manifest.oldest_base(operator).to_string(),
        ]
    });
    let heads = ["state", "rows in bases", "bytes", "rows of changes", "bytes", "changes since epoch"].map(str::to_owned);
    writeln!(out, "\n{}", render("Files", &heads, &rows.collect::<Vec<_>>()))
}

fn time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms)
        .filter(|_| ms > i64::MIN / 1000)
        .map_or_else(|| "none".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string())
}

/// Ask the state of a checkpoint with SQL
///
/// Tables: stock, reservations, orders and movements (ids that are remembered), customer, card, device and ip (windows of the
/// fraud features). The job may run meanwhile.
#[derive(Args)]
#[command(after_help = "Examples:
  orderflow state 'SELECT sku, on_hand - reserved AS available FROM stock ORDER BY available LIMIT 10'
  orderflow state 'SELECT status, count(*) FROM reservations GROUP BY status' --folder out --format json")]
pub(super) struct StateArgs {
    /// The query
    sql: String,
    /// Epoch or name of a checkpoint; without it, the newest
    #[arg(long, value_name = "CHECKPOINT")]
    at: Option<String>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A table for people
    Table,
    /// One JSON object a line
    Json,
}

pub(super) fn state(args: &StateArgs) -> Result<(), CliError> {
    let (config, store) = args.place.open()?;
    let listed = runtime()?.block_on(find(&store, args.at.as_deref()))?;
    let answer = state_query::query(&config, &store, &listed, &args.sql).map_err(CliError::failed)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match args.format {
        Format::Table => {
            writeln!(
                out,
                "{}",
                arrow::util::pretty::pretty_format_batches_with_schema(answer.schema, &answer.rows).map_err(CliError::failed)?
            )?;
            eprintln!("state at the end of epoch {}", answer.epoch);
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(&mut out);
            writer.write_batches(&answer.rows.iter().collect::<Vec<_>>()).and_then(|()| writer.finish()).map_err(CliError::failed)?;
        }
    }
    Ok(out.flush()?)
}
