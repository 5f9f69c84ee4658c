//! The command line: what a user may ask for, and how it is answered.
//!
//! Results go to standard output, everything else to standard error. The exit status is 0 when all was done, 1 when something went
//! wrong, with one message that starts with `error:`, 2 when the command or the settings are wrong, and 3 when another job took this one's place.

mod arroyo;
mod backfill;
mod checkpoint;
mod demo;
mod generate;
mod job;
mod progress;
mod report;
mod settings;
mod sql;
mod supervise;
mod table;

use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{CommandFactory, Parser, Subcommand};
use orderflow::config::ConfigError;
use orderflow::epoch_log::LogHome;

/// A stream-processing job for orders: exactly once, deterministic, in one binary.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Start with `orderflow demo`. Every setting is in orderflow.toml, with its default and its trade-off.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(job::RunArgs),
    Replay(job::ReplayArgs),
    Backfill(backfill::BackfillArgs),
    Generate(generate::GenerateArgs),
    Epochs(EpochsArgs),
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    State(checkpoint::StateArgs),
    Report(report::ReportArgs),
    #[command(subcommand)]
    Sql(sql::SqlCommand),
    #[command(subcommand)]
    Arroyo(arroyo::ArroyoCommand),
    Demo(demo::DemoArgs),
    #[command(subcommand)]
    Config(settings::ConfigCommand),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    DevClickhouse(demo::ServerArgs),
}

/// Print the epoch log of a job, one JSON object a line
///
/// Each line has the epoch's number, its sealing time and, for each split, the offsets [start, end) that it covers. The log may be
/// in use.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  orderflow epochs out | tail -1
  orderflow epochs --config orderflow.toml    (of a run, wherever epoch_log.home says)")]
struct EpochsArgs {
    /// Folder of the job: --out of a replay, job.data_dir of a run; it goes before the settings
    #[arg(value_name = "OUT", required_unless_present = "config")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    settings: settings::SettingsArgs,
}

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "Example:\n  orderflow completions bash > ~/.local/share/bash-completion/completions/orderflow")]
struct CompletionsArgs {
    shell: clap_complete::Shell,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The command asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Something went wrong; the text is the whole message.
    #[error("{0}")]
    Failed(String),
    /// Another job took this one's place; the text is the whole message.
    #[error("{0}")]
    TakenOver(String),
    /// Standard output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A child process that has said why ended with this status.
    #[error("")]
    Told(u8),
}

/// The status of a wrong command or wrong settings: the same command fails again.
const EXIT_SETTINGS: u8 = 2;
/// The status when another job took this one's place: starting it again would take it back.
const EXIT_TAKEN_OVER: u8 = 3;

impl CliError {
    /// Any error as the whole message.
    fn failed(error: impl std::fmt::Display) -> Self {
        CliError::Failed(error.to_string())
    }

    fn exit_status(&self) -> u8 {
        match self {
            CliError::Config(_) | CliError::Usage(_) => EXIT_SETTINGS,
            CliError::Failed(_) | CliError::Output(_) => 1,
            CliError::TakenOver(_) => EXIT_TAKEN_OVER,
            CliError::Told(status) => *status,
        }
    }
}

/// Runs the command of this process.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    keep_panics_quiet();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| execute(cli.command)));
    match result.unwrap_or_else(|_| Err(CliError::Failed(panic_message()))) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads the output has seen enough, as in `orderflow epochs out | head`.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(error.exit_status())
        }
    }
}

fn execute(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(args) => job::run(args),
        Command::Replay(args) => job::replay(args),
        Command::Backfill(args) => backfill::backfill(args),
        Command::Generate(args) => generate::generate(args),
        Command::Epochs(args) => epochs(&args),
        Command::Checkpoint(command) => checkpoint::checkpoint(command),
        Command::State(args) => checkpoint::state(&args),
        Command::Report(args) => report::report(&args),
        Command::Sql(command) => sql::sql(command),
        Command::Arroyo(command) => arroyo::arroyo(command),
        Command::Demo(args) => demo::demo(args),
        Command::Config(command) => settings::config(command),
        Command::Completions(args) => completions(&args),
        Command::DevClickhouse(args) => demo::serve(args),
    }
}

fn epochs(args: &EpochsArgs) -> Result<(), CliError> {
    let home = match &args.folder {
        Some(folder) => LogHome::Folder(folder.clone()),
        None => orderflow::job::log_home(&args.settings.load([])?),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    for record in orderflow::job::epochs(&home).map_err(CliError::failed)? {
        serde_json::to_writer(&mut out, &record).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "orderflow", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// The last panic's text, for the one message at the end.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// A panic is a bug, and told as one at the end; until then it goes to the log, not raw to the terminal.
fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        tracing::debug!(place, text, "panic");
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{text} ({place})"));
    }));
}

fn panic_message() -> String {
    let text = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    format!("internal error: {}; this is a bug, please report it", text.as_deref().unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_commands_are_refused() {
        let check = |line: &str, expected: clap::error::ErrorKind| {
            let error = Cli::try_parse_from(line.split(' ')).err().unwrap_or_else(|| panic!("`{line}` is accepted"));
            assert_eq!(error.kind(), expected, "{line}: {error}");
        };
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument, ValueValidation};
        check("orderflow replay in", MissingRequiredArgument);
        check("orderflow replay in --out out --workers many", ValueValidation);
        check("orderflow replay in --out out --hosts a:1,b:2", MissingRequiredArgument);
        check("orderflow generate --orders 5 --out a --brokers b:1", ArgumentConflict);
        check("orderflow generate --orders 5", MissingRequiredArgument);
        check("orderflow epochs", MissingRequiredArgument);
        check("orderflow backfill --sink delta", MissingRequiredArgument);
        check("orderflow backfill --sink delta --from start --input in", MissingRequiredArgument);
    }

    #[test]
    fn completions_name_every_command() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "orderflow", &mut script);
            let script = String::from_utf8(script).expect("scripts are text");
            for command in [
                "run",
                "replay",
                "backfill",
                "generate",
                "epochs",
                "checkpoint",
                "state",
                "report",
                "sql",
                "arroyo",
                "demo",
                "config",
                "completions",
            ] {
                assert!(script.contains(command), "{shell}: {command}");
            }
        }
    }
}
