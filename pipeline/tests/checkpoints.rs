//! Law 1 over checkpoints: whatever a job goes on from, and with how many workers, the tables are those of the serial reference.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{assert_equal, expect_success, expected, manifest, manifests, replay_command, tables};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::hostile;
use orderflow_fixtures::reference::ReferenceSettings;
use serde_json::Value;

fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders, seed, skus: 200, customers: 400, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

const OFTEN: [&str; 8] = [
    "--set",
    "epoch.rows_max=200",
    "--set",
    "sinks.delta.commit_interval=10 ms",
    "--set",
    "checkpoint.interval=20 ms",
    "--set",
    "replay.checkpoints=true",
];

/// Starts a replay at a pace, and kills it behind its first `checkpoints` new checkpoints.
#[track_caller]
fn killed_behind(input: &Path, out: &Path, checkpoints: usize, more: &[&str]) {
    common::killed_behind(input, out, checkpoints, &[&OFTEN[..], &["--rate", "600"], more].concat());
}

/// The rest of a replay; gives what it logged.
fn the_rest(input: &Path, out: &Path, more: &[&str]) -> String {
    let child = replay_command(input, out, &[&OFTEN[..], more].concat()).args(["--set", "log.level=info"]).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    log
}

#[track_caller]
fn check(input: &Path, out: &Path, what: &str) {
    assert_equal(&tables(out), &expected(input, out, &ReferenceSettings::default()), what);
}

#[test]
fn other_workers_go_on() {
    let input = generated(1, 8_000);
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 3, &["--workers", "1"]);
    for (workers, then) in [("2", "4"), ("4", "7"), ("7", "1")] {
        killed_behind(input.path(), out.path(), 2, &["--workers", workers]);
        assert!(!manifests(out.path()).is_empty(), "{workers} workers left no checkpoint to {then}");
    }
    let log = the_rest(input.path(), out.path(), &["--workers", "3"]);
    assert!(log.contains("going on from a checkpoint"), "{log}");
    check(input.path(), out.path(), "other workers");
    // A life that was killed before it had removed one left it to the next that makes a checkpoint.
    let most = if log.contains(" INFO checkpoint epoch=") { 3 } else { 4 };
    assert!(manifests(out.path()).len() <= most, "old checkpoints are removed");
}

#[test]
fn hostile_input_goes_on() {
    let input = tempfile::tempdir().unwrap();
    hostile::write_folder(5, 2_500, input.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 3, &["--workers", "2"]);
    the_rest(input.path(), out.path(), &["--workers", "3"]);
    check(input.path(), out.path(), "hostile input");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let input = generated(2, 6_000);
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 3, &["--workers", "2"]);
    let manifests = manifests(out.path());
    let (before, newest) = (manifest(&manifests[manifests.len() - 2]), manifest(&manifests[manifests.len() - 1]));
    let files = |manifest: &Value| manifest["files"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let new = files(&newest).into_iter().find(|file| !files(&before).contains(file)).unwrap();
    let path = out.path().join("checkpoints/data").join(new);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let log = the_rest(input.path(), out.path(), &["--workers", "2"]);
    assert!(log.contains("its checksum is another"), "{log}");
    assert!(log.contains(&format!("going on from a checkpoint epoch={}", before["epoch"])), "{log}");
    check(input.path(), out.path(), "a damaged checkpoint");
}

/// Without one that can be used, the log is played from its start.
#[test]
fn without_checkpoints_the_log_is_enough() {
    let input = generated(3, 4_000);
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 2, &["--workers", "2"]);
    for path in manifests(out.path()) {
        std::fs::write(path, "{").unwrap();
    }
    let log = the_rest(input.path(), out.path(), &["--workers", "2"]);
    assert!(!log.contains("going on from a checkpoint"), "{log}");
    check(input.path(), out.path(), "damaged manifests");
}

/// A sink that has none of the rows before a checkpoint cannot go on from it.
#[test]
fn a_new_sink_gets_all_rows() {
    let input = generated(4, 4_000);
    let (out, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    killed_behind(input.path(), out.path(), 2, &["--workers", "2"]);
    let url = elsewhere.path().join("delta").display().to_string();
    let log = the_rest(input.path(), out.path(), &["--workers", "2", "--set", &format!("sinks.delta.url={url}")]);
    assert!(log.contains("lacks what came before it"), "{log}");
    let expected = expected(input.path(), out.path(), &ReferenceSettings::default());
    assert_equal(&tables(elsewhere.path()), &expected, "a new sink");
}

/// A job that has much to play back makes checkpoints of it, so that one which is killed again and again gets through.
#[test]
fn what_is_played_back_has_checkpoints_too() {
    let input = generated(16, 6_000);
    let out = tempfile::tempdir().unwrap();
    let small = ["--workers", "2", "--set", "epoch.rows_max=20"];
    let none = [&OFTEN[..], &small, &["--rate", "3000", "--set", "checkpoint.interval=1 h"]].concat();
    // Behind the header.
    let logged = || std::fs::read_to_string(out.path().join("epochs.log")).map_or(0, |log| log.lines().skip(1).count());
    let mut child = replay_command(input.path(), out.path(), &none).spawn().unwrap();
    let started = Instant::now();
    while logged() < 300 {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "{} epochs", logged());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(manifests(out.path()).is_empty());
    let (mut played, last) = (0, logged() as u64);
    for _ in 0..4 {
        killed_behind(input.path(), out.path(), 1, &small);
        let newest = manifest(&manifests(out.path()).pop().unwrap());
        played += u64::from(newest["epoch"].as_u64().unwrap() < last);
    }
    assert!(played > 0, "no checkpoint of what was played back");
    the_rest(input.path(), out.path(), &["--workers", "3"]);
    check(input.path(), out.path(), "checkpoints of what was played back");
}

/// A sink is known by what its store says, not by how it is addressed.
#[test]
fn a_sink_that_moved_goes_on() {
    let input = generated(14, 4_000);
    let (out, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    killed_behind(input.path(), out.path(), 2, &["--workers", "2"]);
    let moved = elsewhere.path().join("delta");
    std::fs::rename(out.path().join("delta"), &moved).unwrap();
    let log = the_rest(input.path(), out.path(), &["--workers", "2", "--set", &format!("sinks.delta.url={}", moved.display())]);
    assert!(log.contains("going on from a checkpoint") && !log.contains("lacks what came before it"), "{log}");
    let expected = expected(input.path(), out.path(), &ReferenceSettings::default());
    assert_equal(&tables(elsewhere.path()), &expected, "a sink that moved");
}

/// A table that is gone, or is as it was before a checkpoint, gets what it lacks; the others skip what they have.
#[test]
fn a_sink_that_was_emptied_is_filled_again() {
    let input = generated(15, 4_000);
    let out = tempfile::tempdir().unwrap();
    // Behind a checkpoint by which there is something in it.
    let has_lines = || {
        let newest = manifest(manifests(out.path()).last()?);
        newest["sinks"]["delta order_lines"]["recorded"].as_u64().filter(|&epoch| epoch > 0)
    };
    while has_lines().is_none() {
        killed_behind(input.path(), out.path(), 3, &["--workers", "2"]);
    }
    std::fs::remove_dir_all(out.path().join("delta/order_lines")).unwrap();
    let log = the_rest(input.path(), out.path(), &["--workers", "2"]);
    assert!(log.contains("sink delta order_lines") && log.contains("lacks what came before it"), "{log}");
    check(input.path(), out.path(), "a table that was removed");
}

#[test]
fn two_processes_go_on() {
    let input = generated(5, 6_000);
    let out = tempfile::tempdir().unwrap();
    let part = |hosts: &str, process: &str, more: &[&str]| {
        let more = [&OFTEN[..], &["--workers", "2", "--hosts", hosts, "--process", process], more].concat();
        replay_command(input.path(), out.path(), &more).spawn().unwrap()
    };
    let hosts = free_hosts(2);
    let mut parts = ["0", "1"].map(|process| part(&hosts, process, &["--rate", "600"]));
    let started = Instant::now();
    while manifests(out.path()).len() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "no checkpoint was made");
        std::thread::sleep(Duration::from_millis(5));
    }
    for part in &mut parts {
        part.kill().unwrap();
        part.wait().unwrap();
    }
    let hosts = free_hosts(2);
    ["0", "1"].map(|process| part(&hosts, process, &[])).into_iter().for_each(expect_success);
    check(input.path(), out.path(), "two processes");
}

fn free_hosts(processes: usize) -> String {
    let listeners: Vec<_> = (0..processes).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect::<Vec<_>>().join(",")
}

/// Runs `orderflow` with the folder of a job.
fn orderflow(out: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
    let output = command.args(arguments).arg("--folder").arg(out).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn the_state_can_be_asked() {
    let input = generated(6, 4_000);
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 3, &["--workers", "2"]);
    orderflow(out.path(), &["checkpoint", "savepoint", "kept"]).unwrap();
    let shown = orderflow(out.path(), &["checkpoint", "show", "kept"]).unwrap();
    let epoch: i64 = shown.lines().next().unwrap().trim_start_matches("epoch").trim().parse().unwrap();
    the_rest(input.path(), out.path(), &["--workers", "2"]);

    // What each SKU had at the end of that epoch, by the streams.
    let mut units: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut changes = Vec::new();
    let tables = tables(out.path());
    for row in tables["stock_movements"].iter().chain(&tables["reservation_events"]) {
        if let (Some(sku), Some(on_hand)) = (row["sku"].as_str(), row["on_hand"].as_i64()) {
            let place = ["split", "offset"].map(|column| row[column].as_i64().unwrap_or(i64::MAX));
            changes.push((row["epoch"].as_i64().unwrap(), place, sku.to_owned(), (on_hand, row["reserved"].as_i64().unwrap())));
        }
    }
    changes.sort_by_key(|(epoch, place, ..)| (*epoch, *place));
    for (_, _, sku, now) in changes.into_iter().filter(|(changed, ..)| *changed <= epoch) {
        units.insert(sku, now);
    }
    units.retain(|_, units| *units != (0, 0));
    let json = orderflow(out.path(), &["state", "SELECT * FROM stock ORDER BY sku", "--at", "kept", "--format", "json"]).unwrap();
    let found: BTreeMap<String, (i64, i64)> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| (row["sku"].as_str().unwrap().to_owned(), (row["on_hand"].as_i64().unwrap(), row["reserved"].as_i64().unwrap())))
        .collect();
    assert_eq!(found, units);

    // What orders hold is what SKUs have reserved.
    let held = "SELECT sum(quantity) AS held FROM reservations";
    let held: Value = serde_json::from_str(&orderflow(out.path(), &["state", held, "--at", "kept", "--format", "json"]).unwrap()).unwrap();
    assert_eq!(held["held"].as_i64(), Some(units.values().map(|units| units.1).sum()));

    let error = orderflow(out.path(), &["state", "SELECT * FROM stocks"]).unwrap_err();
    assert!(error.contains("there are the tables stock (sku, on_hand, reserved)"), "{error}");
    let error = orderflow(out.path(), &["state", "DROP TABLE stock"]).unwrap_err();
    assert!(error.starts_with("error: "), "{error}");
    let error = orderflow(out.path(), &["checkpoint", "savepoint", "kept"]).unwrap_err();
    assert!(error.contains("choose another name"), "{error}");
    orderflow(out.path(), &["checkpoint", "drop", "kept"]).unwrap();
    assert!(orderflow(out.path(), &["checkpoint", "show", "kept"]).is_err());
}
