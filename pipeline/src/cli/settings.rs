//! `orderflow config`, and the arguments by which every command takes its settings.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use orderflow::config::{COMMENTED_DEFAULTS, Config, ConfigError};

use super::CliError;

/// Where a command's settings come from.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct SettingsArgs {
    /// Settings file; what it leaves out has its default
    #[arg(long, value_name = "FILE", env = "ORDERFLOW_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, over the file's: --set epoch.rows_max=1000; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl SettingsArgs {
    /// The settings, with `more` of the form `key=value` over all others.
    pub(super) fn load(&self, more: impl IntoIterator<Item = String>) -> Result<Config, ConfigError> {
        let overrides: Vec<String> = self.overrides.iter().cloned().chain(more).collect();
        Config::load(self.config.as_deref(), &overrides)
    }
}

/// Check or show settings
#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a settings file, and say what is wrong with it and what to do
    #[command(after_help = "Example:\n  orderflow config check orderflow.toml")]
    Check {
        /// The file; without it, that of --config
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print the settings in force, secrets as stars
    #[command(
        after_help = "Examples:\n  orderflow config show --set watermark.delay='1 min'\n  orderflow config show --defaults > orderflow.toml"
    )]
    Show {
        /// Print the commented file of all defaults instead
        #[arg(long)]
        defaults: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

pub(super) fn config(command: ConfigCommand) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match command {
        ConfigCommand::Check { file, mut settings } => {
            settings.config = file.or(settings.config);
            let config = settings.load([])?;
            config.fraud.model_text()?;
            let stages = orderflow::job::check(&config).map_err(|e| CliError::Usage(e.to_string()))?;
            match settings.config {
                Some(path) => writeln!(out, "{} is right", path.display())?,
                None => writeln!(out, "the settings are right (no file was given)")?,
            }
            for stage in &stages.stages {
                let streams: Vec<&str> = stage.outputs.iter().map(|&number| stages.streams[number].stream.name()).collect();
                writeln!(out, "stage {}: {} operators, writes {}", stage.name, stage.stage.graph.len(), streams.join(", "))?;
            }
        }
        ConfigCommand::Show { defaults: true, .. } => out.write_all(COMMENTED_DEFAULTS.as_bytes())?,
        ConfigCommand::Show { settings, .. } => out.write_all(settings.load([])?.to_toml().as_bytes())?,
    }
    Ok(())
}
