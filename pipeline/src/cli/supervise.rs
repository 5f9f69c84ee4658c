//! `--supervise`: runs the same command as a child process, and again when it failed.
//!
//! The child has the supervisor's arguments and one more, which says that it is one and how often it was started again. Its standard input is a pipe
//! from the supervisor: a byte asks it to stop, and so does the pipe's end, which comes when the supervisor was killed. So a child never outlives
//! its supervisor for long. It is a pipe and not a signal since a terminal or a service manager may signal both processes: the child would
//! take the second signal for the wish to end at once.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use clap::Args;
use orderflow::config::Config;
use orderflow::job_plan::Stop;
use orderflow::logging;
use orderflow::supervisor::{Supervision, Verdict};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, EXIT_SETTINGS, EXIT_TAKEN_OVER};

/// Who starts the job, and again when it failed.
#[derive(Args)]
pub(super) struct SuperviseArgs {
    /// Start the job as a process of its own, and again when it fails: see [supervise] in the settings
    #[arg(long)]
    supervise: bool,
    /// This is such a process, and was started again so often before
    #[arg(long, value_name = "RESTARTS", hide = true)]
    supervised: Option<u64>,
}

impl SuperviseArgs {
    /// Whether this process is to start the job as another one.
    pub(super) fn is_supervisor(&self) -> bool {
        self.supervise && self.supervised.is_none()
    }

    /// How often a supervisor has started this job again, if it has one.
    pub(super) fn restarts(&self) -> Option<u64> {
        self.supervised
    }
}

/// Asks `stop` when the supervisor does, or is gone.
pub(super) fn stop_with_supervisor(stop: Stop) -> Result<(), CliError> {
    let listen = move || {
        // Whatever comes, and be it nothing any more, means the same.
        let _ = std::io::stdin().lock().read(&mut [0]);
        if !stop.requested() {
            tracing::warn!("stopping, as the supervisor asks: what is in flight is still committed");
            stop.request();
        }
    };
    std::thread::Builder::new()
        .name("supervisor".into())
        .spawn(listen)
        .map_err(|error| CliError::Failed(format!("cannot wait for the supervisor: {error}")))?;
    Ok(())
}

/// Runs this command as a child process until it ends well, is told to stop, cannot be mended by another start, or has failed too often.
pub(super) fn supervise(config: &Config) -> Result<(), CliError> {
    logging::start(&config.log, tracing_subscriber::fmt::writer::BoxMakeWriter::new(std::io::stderr));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_supervise)?;
    runtime.block_on(async {
        let supervisor = Supervisor {
            // Now: a path that is asked for after the file was replaced leads nowhere.
            program: std::env::current_exe().map_err(cannot_supervise)?,
            supervision: Supervision::new(config.supervise.clone()),
            signals: Signals::new().map_err(cannot_supervise)?,
        };
        supervisor.run(config).await
    })
}

fn cannot_supervise(error: std::io::Error) -> CliError {
    CliError::Failed(format!("cannot supervise: {error}"))
}

struct Supervisor {
    program: PathBuf,
    supervision: Supervision,
    signals: Signals,
}

impl Supervisor {
    async fn run(mut self, config: &Config) -> Result<(), CliError> {
        loop {
            let started = Instant::now();
            let ended = match self.command().spawn() {
                Ok(mut child) => {
                    tracing::info!(pid = child.id(), restarts = self.supervision.restarts(), "the job is started");
                    match self.watch(&mut child).await.map_err(cannot_supervise)? {
                        Ended::Stopped(status) => return finish(status),
                        Ended::ByItself(status) if status.success() => return Ok(()),
                        // Its message is the last line.
                        Ended::ByItself(status) if status.code().is_some_and(is_final) => return finish(status),
                        Ended::ByItself(status) => status.to_string(),
                    }
                }
                Err(error) => format!("cannot start {}: {error}", self.program.display()),
            };
            match self.supervision.failed(Instant::now(), started.elapsed(), chance()) {
                Verdict::Restart { after } => {
                    let restarts = self.supervision.restarts();
                    tracing::warn!(ended, restarts, after_ms = after.as_millis() as u64, "the job failed and is started again");
                    tokio::select! {
                        () = tokio::time::sleep(after) => {}
                        () = self.signals.next() => {
                            return Err(CliError::Failed("stopped while a job that had failed was waiting to be started again".to_owned()));
                        }
                    }
                }
                Verdict::GiveUp { failures } => {
                    let window = config.supervise.window;
                    return Err(CliError::Failed(format!(
                        "the job failed {failures} times within {window} and is not started again (the last time: {ended}); the messages above say \
                         why, supervise.failures_max is the limit"
                    )));
                }
            }
        }
    }

    /// This command with what tells the child that it is one, behind the name of the subcommand: what the user gave comes last.
    fn command(&self) -> Command {
        let mut given = std::env::args_os().skip(1);
        let mut command = Command::new(&self.program);
        command.args(given.next());
        command.arg(OsString::from(format!("--supervised={}", self.supervision.restarts()))).args(given);
        command.stdin(Stdio::piped());
        command
    }

    /// Waits for the child's end. The first signal asks it to stop, the second ends it at once.
    async fn watch(&mut self, child: &mut Child) -> std::io::Result<Ended> {
        let mut stdin = child.stdin.take();
        tokio::select! {
            status = child.wait() => return status.map(Ended::ByItself),
            () = self.signals.next() => {}
        }
        if let Some(pipe) = &mut stdin {
            // A child that has ended does not read it.
            let _ = pipe.write_all(b"s").await;
        }
        tokio::select! {
            status = child.wait() => return status.map(Ended::Stopped),
            () = self.signals.next() => {}
        }
        tracing::warn!("ending the job at once");
        child.start_kill()?;
        child.wait().await.map(Ended::Stopped)
    }
}

/// How a child came to its end.
enum Ended {
    /// Nobody asked it to.
    ByItself(ExitStatus),
    /// A signal did.
    Stopped(ExitStatus),
}

/// Whether another start would end alike.
fn is_final(status: i32) -> bool {
    [EXIT_SETTINGS, EXIT_TAKEN_OVER].map(i32::from).contains(&status)
}

/// The child's status as this process's; a signal as shells give it.
fn finish(status: ExitStatus) -> Result<(), CliError> {
    use std::os::unix::process::ExitStatusExt;
    if status.success() {
        return Ok(());
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).and_then(|code| u8::try_from(code).ok());
    Err(CliError::Told(code.unwrap_or(1)))
}

/// A number from 0 to 1 that processes started together do not share.
fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => {}, _ = self.terminate.recv() => {} }
    }
}
