//! `run --drain`, and restarts of a live job, against librdkafka's mock brokers in this process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use orderflow::source::{KafkaSettings, write_topics};
use orderflow_fixtures::reference::{ReferenceSettings, Row, STREAMS};
use orderflow_operators::decoder::Topic;
use rdkafka::mocking::MockCluster;
use serde_json::Value;

use crate::common::{assert_equal, delta_table, epochs, expected, tables};
use crate::{LONG, ended, eventually, generated, log_bytes, signal};

/// A fixture's files, each to be a partition.
struct Files(Vec<(Topic, u32, Vec<Vec<u8>>)>);

impl Files {
    fn read(folder: &Path) -> Files {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
        names.sort();
        let mut partitions = [0, 0];
        let files = names.into_iter().map(|path| {
            let topic = if path.file_name().unwrap().to_string_lossy().starts_with("inventory") { Topic::Inventory } else { Topic::Orders };
            let partition = &mut partitions[topic as usize];
            *partition += 1;
            let bytes = std::fs::read(&path).unwrap();
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            (topic, *partition - 1, bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect())
        });
        Files(files.collect())
    }

    /// Brokers that have the topics, with nothing in them.
    fn topics(&self) -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
        let cluster = MockCluster::new(1).unwrap();
        for (name, topic) in [("inventory", Topic::Inventory), ("orders", Topic::Orders)] {
            cluster.create_topic(name, self.partitions(topic), 1).unwrap();
        }
        cluster
    }

    fn partitions(&self, of: Topic) -> i32 {
        self.0.iter().filter(|(topic, ..)| *topic == of).count() as i32
    }

    /// How many lines are in so many percent of each file.
    fn lines(&self, percent: usize) -> u64 {
        self.0.iter().map(|(.., lines)| (lines.len() * percent / 100) as u64).sum()
    }

    /// Writes a part of each file.
    fn write(&self, brokers: &str, percent: std::ops::Range<usize>) {
        let rows = self.0.iter().flat_map(|(topic, partition, lines)| {
            let at = |percent: usize| lines.len() * percent / 100;
            lines[at(percent.start)..at(percent.end)].iter().map(|line| (*topic, *partition, "key", line))
        });
        let settings = KafkaSettings {
            brokers: brokers.to_owned(),
            orders_topic: "orders".into(),
            inventory_topic: "inventory".into(),
            group_id: "test".into(),
            start_wait: LONG,
            properties: Default::default(),
        };
        let (orders, inventory) = (self.partitions(Topic::Orders) as u32, self.partitions(Topic::Inventory) as u32);
        write_topics(rows, settings, orders, inventory, LONG).unwrap();
    }
}

fn run(brokers: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
    let brokers = format!("source.kafka.brokers={brokers}");
    let folder = format!("job.data_dir={}", out.display());
    let settings =
        [&brokers, &folder, "metrics.listen=", "epoch.rows_max=300", "sinks.delta.commit_interval=50 ms", "checkpoint.interval=200 ms"];
    command.arg("run").args(settings.iter().flat_map(|setting| ["--set", setting])).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs to the end of a drain; gives what it said.
fn drained(brokers: &str, out: &Path, workers: &str) -> String {
    drained_with(brokers, out, &["--workers", workers])
}

fn drained_with(brokers: &str, out: &Path, more: &[&str]) -> String {
    let (status, log) = ended(run(brokers, out, &[&["--drain"], more].concat()).spawn().unwrap());
    assert_eq!(status, Some(0), "{log}");
    log
}

fn rows_in(out: &Path) -> u64 {
    let records = orderflow_fixtures::reference::EpochRecord::parse_log(&epochs(out)).unwrap();
    let records = records.iter().flat_map(|record| record.ranges.values().map(|(start, end)| (end - start) as u64));
    records.sum()
}

#[test]
fn a_live_job_is_drained_stopped_and_started_with_other_workers() {
    let input = generated(21, 4_000);
    let files = Files::read(input.path());
    let cluster = files.topics();
    let brokers = cluster.bootstrap_servers();
    let out = tempfile::tempdir().unwrap();

    // Empty topics: nothing to do, and it ends all the same.
    drained(&brokers, out.path(), "1");
    assert_eq!(rows_in(out.path()), 0);

    // A part, and no more than there is at the start.
    files.write(&brokers, 0..30);
    let log = drained(&brokers, out.path(), "1");
    assert_eq!(rows_in(out.path()), files.lines(30), "{log}");
    assert!(log.contains(" INFO checkpoint epoch="), "{log}");

    // In the midst of load it is stopped, and goes on with more workers and with fewer.
    for (workers, share) in [("3", 30..60), ("2", 60..90)] {
        std::thread::scope(|scope| {
            let (files, brokers) = (&files, &brokers);
            scope.spawn(move || {
                // Each begins with a new producer, which takes a second.
                for percent in share.step_by(6) {
                    files.write(brokers, percent..percent + 6);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let before = log_bytes(out.path());
            let child = run(brokers, out.path(), &["--workers", workers]).spawn().unwrap();
            eventually("epochs are sealed", || log_bytes(out.path()) > before + 500);
            signal(child.id(), libc::SIGTERM);
            let (status, log) = ended(child);
            assert_eq!(status, Some(0), "{log}");
            assert!(log.contains("going on from a checkpoint"), "{log}");
            assert!(log.contains(" INFO checkpoint epoch="), "it stopped without a checkpoint: {log}");
        });
    }
    files.write(&brokers, 90..100);
    let log = drained(&brokers, out.path(), "4");
    assert!(log.contains("going on from a checkpoint"), "{log}");
    assert_eq!(rows_in(out.path()), files.lines(100));

    let expected = expected(input.path(), out.path(), &ReferenceSettings::default());
    assert_equal(&tables(out.path()), &expected, "drained");

    // There is nothing more: no epoch is added.
    let before = epochs(out.path());
    drained(&brokers, out.path(), "2");
    assert_eq!(epochs(out.path()), before);
    assert!(STREAMS.iter().all(|stream| !expected[*stream].is_empty()), "every stream has rows");
}

/// A stage is in the job for some of its lives: it has the rows of their epochs, and those alone.
#[test]
fn a_stage_comes_to_a_live_job_and_is_taken_away() {
    let input = generated(22, 2_000);
    let files = Files::read(input.path());
    let cluster = files.topics();
    let brokers = cluster.bootstrap_servers();
    let (out, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let stage = |name: &str| {
        let path = folder.path().join(name);
        let text = "CREATE TABLE seen WITH (connector = 'stream'); INSERT INTO seen SELECT order_id, decision FROM order_decisions";
        std::fs::write(&path, text).unwrap();
        format!("stages.files=[{path:?}]")
    };
    let (first, second) = (stage("first.sql"), stage("second.sql"));
    let none = "stages.files=[]".to_owned();
    for (percent, stages) in [(0..30, &none), (30..50, &first), (50..60, &first), (60..80, &none), (80..100, &second)] {
        if percent.start == 80 {
            let (status, log) = ended(run(&brokers, out.path(), &["--drain", "--set", &first]).spawn().unwrap());
            assert_eq!(status, Some(2), "{log}");
            assert!(log.contains("stage first was taken away from this job before, and cannot come again"), "{log}");
        }
        files.write(&brokers, percent);
        let log = drained_with(&brokers, out.path(), &["--workers", "2", "--set", stages]);
        assert!(!log.contains("passed over"), "{log}");
    }

    let records: Vec<Value> = epochs(out.path()).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<(u64, String)> = records
        .iter()
        .flat_map(|record| {
            let stages = record["stages"].as_object().into_iter().flatten();
            stages.map(|(name, meaning)| {
                (record["epoch"].as_u64().unwrap(), format!("{name} {}", if meaning.is_null() { "goes" } else { "comes" }))
            })
        })
        .collect();
    let [(comes, _), (goes, _), (second, _)] = &named[..] else { panic!("{named:?}") };
    assert_eq!(named.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>(), ["first comes", "first goes", "second comes"]);
    let row = |row: &Row| Value::from(vec![row["epoch"].clone(), row["order_id"].clone(), row["decision"].clone()]).to_string();
    let mut expected: Vec<String> = delta_table(out.path(), "order_decisions")
        .iter()
        .filter(|row| row["epoch"].as_u64().is_some_and(|epoch| (comes..goes).contains(&&epoch) || epoch >= *second))
        .map(row)
        .collect();
    let mut found: Vec<String> = delta_table(out.path(), "seen").iter().map(row).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert!(!expected.is_empty(), "nothing was decided, so nothing is tested");
    assert_eq!(found, expected);
}

/// A stage without whose results the job may go on, as it may be what brought it down.
#[test]
fn a_stage_that_is_abandoned_holds_up_nothing() {
    let input = generated(23, 1_500);
    let files = Files::read(input.path());
    let cluster = files.topics();
    let brokers = cluster.bootstrap_servers();
    let (out, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("failing.sql");
    let text = "CREATE TABLE seen WITH (connector = 'stream'); INSERT INTO seen SELECT order_id, decision FROM order_decisions";
    std::fs::write(&path, text).unwrap();
    let with = format!("stages.files=[{path:?}]");
    files.write(&brokers, 0..50);
    let mut child = run(&brokers, out.path(), &["--set", &with, "--set", "checkpoint.interval=0 s"]).spawn().unwrap();
    let records = || std::fs::read_to_string(out.path().join("epochs.log")).map_or(0, |log| log.lines().skip(1).count());
    eventually("epochs are sealed", || records() > 1);
    child.kill().unwrap();
    child.wait().unwrap();

    let (status, log) = ended(run(&brokers, out.path(), &["--drain"]).spawn().unwrap());
    assert_eq!(status, Some(2), "{log}");
    assert!(log.contains(r#"do without them: stages.abandoned = ["failing"]"#), "{log}");
    files.write(&brokers, 50..100);
    let abandoned = r#"stages.abandoned=["failing"]"#;
    drained_with(&brokers, out.path(), &["--workers", "3", "--set", abandoned]);
    // It is so for good, whatever the settings say.
    drained_with(&brokers, out.path(), &["--workers", "1"]);
    let expected = expected(input.path(), out.path(), &ReferenceSettings::default());
    assert_equal(&tables(out.path()), &expected, "without the stage");
}
