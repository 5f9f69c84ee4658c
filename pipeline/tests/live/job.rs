//! The live job as a process, and what must come out of what its topics hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use orderflow_fixtures::Topic;
use orderflow_fixtures::reference::{self, EpochRecord, ReferenceSettings, Split};
use serde_json::Value;

use crate::common::Tables;
use crate::{eventually, topics};

/// A live job's settings; it can be started again and again.
pub struct LiveJob {
    pub folder: PathBuf,
    pub brokers: String,
    pub settings: Vec<String>,
    /// Partitions of `inventory` and `orders` when it was begun.
    pub begun_with: [usize; 2],
}

impl LiveJob {
    pub fn new(folder: &Path, brokers: &str, begun_with: [usize; 2], settings: &[&str]) -> LiveJob {
        let own = [
            format!("job.data_dir={}", folder.display()),
            format!("source.kafka.brokers={brokers}"),
            "source.kafka.discovery_interval=200 ms".to_owned(),
            "source.kafka.start_wait=3 s".to_owned(),
            "sinks.delta.commit_interval=500 ms".to_owned(),
            "sinks.kafka.retry_backoff_max=1 s".to_owned(),
            "sinks.clickhouse.retry_backoff_max=1 s".to_owned(),
            "checkpoint.interval=1 s".to_owned(),
            "metrics.listen=".to_owned(),
            "log.level=warn".to_owned(),
        ];
        let settings = own.into_iter().chain(settings.iter().map(|&setting| setting.to_owned())).collect();
        LiveJob { folder: folder.to_owned(), brokers: brokers.to_owned(), settings, begun_with }
    }

    /// `orderflow run`; what it says goes to a file.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
        command.arg("run").args(self.settings.iter().flat_map(|setting| ["--set", setting])).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub fn start(&self, more: &[&str]) -> Running {
        std::fs::create_dir_all(&self.folder).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        Running { child: self.command(more).stderr(log).spawn().unwrap(), log: self.log_path() }
    }

    /// Its end, which comes by itself.
    pub fn output(&self) -> Output {
        self.command(&[]).stderr(Stdio::piped()).output().unwrap()
    }

    /// Runs it to its end, which must be an error; its last line.
    pub fn refusal(&self) -> String {
        let output = self.output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        said.lines().last().unwrap_or_default().to_owned()
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.join("stderr.log")
    }

    /// What `orderflow epochs` prints.
    pub fn epochs(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
        // Of a log that is not in a folder the settings say where it is.
        let in_folder = !self.settings.iter().any(|setting| setting.starts_with("epoch_log.home"));
        let config = self.folder.join("empty.toml");
        if in_folder {
            command.arg("epochs").arg(&self.folder);
        } else {
            std::fs::write(&config, "").unwrap();
            command.arg("epochs").arg("--config").arg(&config).args(self.settings.iter().flat_map(|setting| ["--set", setting]));
        }
        let output = command.output().unwrap();
        // There is none before the job has begun.
        if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { String::new() }
    }

    /// The splits' names by number: those that it was begun with, and those that the log says came later.
    pub fn splits(&self, epochs: &str) -> Vec<String> {
        let [inventory, orders] = self.begun_with;
        let begun = |topic: &'static str, count| (0..count).map(move |partition| format!("{topic}/{partition}"));
        let mut names: Vec<String> = begun("inventory", inventory).chain(begun("orders", orders)).collect();
        for line in epochs.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            for (number, split) in record["splits"].as_object().into_iter().flatten() {
                assert_eq!(number.parse::<usize>().unwrap(), names.len(), "numbers go on: {line}");
                names.push(split["name"].as_str().unwrap().to_owned());
            }
        }
        names
    }

    /// Waits until all that the topics hold is in epochs.
    pub fn wait_until_all_is_sealed(&self) {
        let ends: BTreeMap<String, i64> = ["inventory", "orders"]
            .into_iter()
            .flat_map(|topic| {
                (0..).zip(topics::ends(&self.brokers, topic)).map(move |(at, end): (usize, i64)| (format!("{topic}/{at}"), end))
            })
            .filter(|&(_, end)| end > 0)
            .collect();
        eventually(&format!("all rows are in epochs: {ends:?}; {}", self.log_path().display()), || {
            let log = self.epochs();
            let names = self.splits(&log);
            let mut sealed: BTreeMap<String, i64> = BTreeMap::new();
            for record in EpochRecord::parse_log(&log).unwrap() {
                for (split, (_, end)) in record.ranges {
                    sealed.insert(names[split as usize].clone(), end);
                }
            }
            sealed == ends
        });
    }

    /// What must come out of the rows that the topics hold, under the epochs of the log.
    pub fn expected(&self) -> Tables {
        let log = self.epochs();
        let mut partitions: BTreeMap<String, BTreeMap<i64, Vec<u8>>> = BTreeMap::new();
        for topic in ["inventory", "orders"] {
            partitions.extend((0..).zip(topics::read(&self.brokers, topic)).map(|(at, rows): (usize, _)| (format!("{topic}/{at}"), rows)));
        }
        let splits: Vec<Split> = self
            .splits(&log)
            .into_iter()
            .map(|name| {
                let topic = if name.starts_with("orders/") { Topic::Orders } else { Topic::Inventory };
                Split { topic, rows: partitions.remove(&name).unwrap() }
            })
            .collect();
        let settings = ReferenceSettings { future_max_us: Some(300_000_000), ..ReferenceSettings::default() };
        let streams = reference::run(&settings, None, &splits, &EpochRecord::parse_log(&log).unwrap()).unwrap();
        streams.iter().map(|(name, rows)| (name.to_owned(), rows.to_vec())).collect()
    }
}

/// A job that runs. It is killed when this is dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub fn stop(mut self) {
        assert!(self.is_running(), "{}", self.log());
        // SAFETY: a system call on numbers; the child is ours and was not waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let mut status = None;
        eventually("a job that is asked to stop does", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{}", self.log());
    }

    /// Its end, which comes by itself and is an error; its last line.
    #[track_caller]
    pub fn failure(mut self) -> String {
        eventually("the job ends", || !self.is_running());
        assert!(!self.child.wait().unwrap().success());
        self.log().lines().last().unwrap_or_default().to_owned()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
