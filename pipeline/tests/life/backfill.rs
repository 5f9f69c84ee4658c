//! `orderflow backfill`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use orderflow_fixtures::reference::{ReferenceSettings, STREAMS};
use rand::Rng;
use serde_json::Value;

use crate::common::{self, Tables, assert_equal, expected, manifests, replay_command, tables};
use crate::{ended, eventually, generated, log_bytes, seeded, set};

const OFTEN: [&str; 4] =
    ["epoch.rows_max=200", "sinks.delta.commit_interval=10 ms", "checkpoint.interval=30 ms", "replay.checkpoints=true"];

/// Plays a part of a replay, and kills it behind its first `checkpoints` new checkpoints.
#[track_caller]
fn killed_behind(input: &Path, out: &Path, checkpoints: usize) {
    let settings = set(&OFTEN);
    let arguments: Vec<&str> = settings.iter().map(String::as_str).chain(["--rate", "800", "--workers", "2"]).collect();
    common::killed_behind(input, out, checkpoints, &arguments);
}

/// The rest of a replay; gives what it logged.
fn the_rest(input: &Path, out: &Path, settings: &[&str]) -> String {
    let settings = set(&[&OFTEN[..], settings].concat());
    let arguments: Vec<&str> = settings.iter().map(String::as_str).chain(["--workers", "3"]).collect();
    let child = replay_command(input, out, &arguments).args(["--set", "log.level=info"]).spawn().unwrap();
    let (status, log) = ended(child);
    assert_eq!(status, Some(0), "{log}");
    log
}

fn orderflow(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn backfill(input: &Path, out: &Path, sink: &str, from: &str, settings: &[&str]) -> Command {
    let mut command = orderflow(&["backfill", "--sink", sink, "--from", from, "--no-progress", "--workers", "2"]);
    command.arg("--input").arg(input).arg("--folder").arg(out).args(set(&["sinks.delta.commit_interval=10 ms"])).args(set(settings));
    command
}

#[track_caller]
fn filled(command: &mut Command) -> String {
    let (status, log) = ended(command.spawn().unwrap());
    assert_eq!(status, Some(0), "{log}");
    log
}

#[track_caller]
fn refused(command: &mut Command, message: &str) {
    let (status, log) = ended(command.spawn().unwrap());
    assert!(status.is_some_and(|status| status != 0) && log.contains("error: ") && log.contains(message), "{status:?} {log}");
}

fn savepoint(out: &Path, name: &str) -> u64 {
    assert!(orderflow(&["checkpoint", "savepoint", name, "--folder"]).arg(out).status().unwrap().success());
    let saved =
        std::fs::read_dir(out.join("checkpoints/savepoints")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let of_that_name = |file: String| file.strip_suffix(&format!("-{name}.json"))?.parse().ok();
    saved.filter_map(of_that_name).next().unwrap()
}

/// Of a checkpoint, by its manifest.
fn epoch_of(manifest: &Path) -> u64 {
    manifest.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// The rows of epochs behind one.
fn behind(tables: &Tables, epoch: u64) -> Tables {
    let is_behind = |row: &&_| -> bool {
        let row: &orderflow_fixtures::reference::Row = row;
        row["epoch"].as_u64().unwrap() > epoch
    };
    tables.iter().map(|(stream, rows)| (stream.clone(), rows.iter().filter(is_behind).cloned().collect())).collect()
}

/// The places of the rows in a folder of JSON lines, as they stand there.
fn places(folder: &Path, stream: &str) -> Vec<[Value; 3]> {
    let text = std::fs::read_to_string(folder.join(format!("{stream}.jsonl"))).unwrap_or_default();
    let place = |row: &Value| ["epoch", "split", "offset"].map(|column| row[column].clone());
    text.lines().map(|line| place(&serde_json::from_str(line).unwrap())).collect()
}

/// From the start, into two kinds of sinks, killed at random; and then once more, which changes nothing.
#[test]
fn from_the_start_through_kills() {
    let (seed, mut random) = seeded();
    let input = generated(seed, 3_000);
    let (out, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = the_rest(input.path(), out.path(), &[]);
    assert!(!log.contains("lacks"), "{log}");
    let manifests_before = manifests(out.path());
    let (log_before, before) = (log_bytes(out.path()), tables(out.path()));
    let expected = expected(input.path(), out.path(), &ReferenceSettings::default());

    let (delta, lines) = (other.path().join("delta"), other.path().join("lines"));
    let settings = [format!("sinks.delta.url={}", delta.display()), format!("sinks.jsonl.path={}", lines.display())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for sink in ["delta", "jsonl"] {
        for _ in 0..4 {
            let mut child = backfill(input.path(), out.path(), sink, "start", &settings).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(50..500)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        filled(&mut backfill(input.path(), out.path(), sink, "start", &settings));
        let again = filled(&mut backfill(input.path(), out.path(), sink, "start", &settings));
        assert!(again.contains("the sink has everything already"), "{again}");
    }
    assert_equal(&tables(other.path()), &expected, &format!("a backfill, seed {seed}"));
    for stream in STREAMS {
        let rows: Vec<[Value; 3]> =
            expected[stream].iter().map(|row| ["epoch", "split", "offset"].map(|column| row[column].clone())).collect();
        assert_eq!(places(&lines, stream), rows, "{stream}, seed {seed}");
    }
    // The job itself is as it was.
    assert_eq!((log_bytes(out.path()), manifests(out.path())), (log_before, manifests_before));
    assert_equal(&tables(out.path()), &before, "the job's own tables");
}

/// A sink that begins behind a savepoint; the job then goes on with it from a checkpoint.
#[test]
fn from_a_savepoint_and_then_with_the_job() {
    let input = generated(31, 6_000);
    let (out, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    killed_behind(input.path(), out.path(), 3);
    let epoch = savepoint(out.path(), "kept");
    killed_behind(input.path(), out.path(), 3);
    let later = savepoint(out.path(), "later");

    let settings = [format!("sinks.delta.url={}", other.path().join("delta").display())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let log = filled(&mut backfill(input.path(), out.path(), "delta", "kept", &settings));
    let through: u64 = log.split("the sink has everything through epoch ").nth(1).unwrap().trim().parse().unwrap();
    let so_far = behind(&expected(input.path(), out.path(), &ReferenceSettings::default()), epoch);
    assert_equal(&tables(other.path()), &so_far, "behind a savepoint");

    // The job goes on without the sink, and the sink catches up: from the newest checkpoint that it has the epochs before of.
    killed_behind(input.path(), out.path(), 4);
    let log = filled(&mut backfill(input.path(), out.path(), "delta", "kept", &settings));
    let newest = manifests(out.path()).iter().map(|path| epoch_of(path)).filter(|&epoch| epoch <= through).fold(later, u64::max);
    assert!(log.contains(&format!("behind={newest} ")), "{newest} {through} {log}");

    // And then with it: from a checkpoint that was made when the job did not have it.
    let log = the_rest(input.path(), out.path(), &settings);
    assert!(log.contains("going on from a checkpoint") && !log.contains("lacks what came before it"), "{log}");
    let all = behind(&expected(input.path(), out.path(), &ReferenceSettings::default()), epoch);
    assert_equal(&tables(other.path()), &all, "the job with a sink that was filled");
}

#[test]
fn what_would_leave_a_gap_or_mix_results_is_refused() {
    let input = generated(32, 6_000);
    let (out, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    killed_behind(input.path(), out.path(), 2);
    let first = savepoint(out.path(), "first");
    let url = format!("sinks.delta.url={}", other.path().join("delta").display());
    let run = |sink: &str, from: &str, settings: &[&str]| backfill(input.path(), out.path(), sink, from, settings);
    filled(&mut run("delta", "first", &[&url]));

    killed_behind(input.path(), out.path(), 4);
    killed_behind(input.path(), out.path(), 4);
    let second = savepoint(out.path(), "second");
    assert!(second > first);
    refused(&mut run("delta", "second", &[&url]), &format!("would lack what is behind it up to epoch {second}"));
    refused(&mut run("delta", "third", &[&url]), "there is no checkpoint third");
    refused(&mut run("delta", "first", &[&url, "fraud.reject=0.95"]), "fraud.reject: 0.9 then, 0.95 now");
    let lines = other.path().join("lines");
    let path = format!("sinks.jsonl.path={}", lines.display());
    refused(&mut run("jsonl", "start", &[&path, "dedup.horizon=12 h"]), "dedup.horizon: 24h then, 12h now");
    refused(&mut run("jsonl", "start", &[&path, "job.id=another"]), r#"it belongs to the job "orderflow", this is "another""#);
    assert!(!lines.exists(), "what is refused leaves the sink alone");
    // Its own tables: those of the newest checkpoint.
    refused(&mut run("delta", "start", &[]), "the job writes to sink delta");
    let nothing = tempfile::tempdir().unwrap();
    refused(&mut backfill(input.path(), nothing.path(), "jsonl", "start", &[&path]), "there is no epoch log");
    assert!(std::fs::read_dir(nothing.path()).unwrap().all(|entry| entry.unwrap().file_name() != "epochs.log"));
}

/// A table that was lost is what the checkpoints say is there; a backfill is the way to have it again.
#[test]
fn a_sink_that_was_lost_is_filled_again() {
    let input = generated(33, 4_000);
    let out = tempfile::tempdir().unwrap();
    killed_behind(input.path(), out.path(), 4);
    std::fs::remove_dir_all(out.path().join("delta")).unwrap();
    filled(&mut backfill(input.path(), out.path(), "delta", "start", &[]));
    let log = the_rest(input.path(), out.path(), &[]);
    assert!(log.contains("going on from a checkpoint"), "{log}");
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), "a lost sink");
}

/// What is older than every checkpoint goes; what checkpoints and savepoints need stays.
#[test]
fn old_epochs_are_dropped() {
    let input = generated(34, 6_000);
    let out = tempfile::tempdir().unwrap();
    let settings = set(&[&OFTEN[..], &["epoch_log.keep=1 ms"]].concat());
    let life = |arguments: &[&str]| {
        let mut command = replay_command(input.path(), out.path(), &settings.iter().map(String::as_str).collect::<Vec<_>>());
        command.args(arguments).env(orderflow_faults::VARIABLE, "epoch_log.local.segment.bytes=return(600)");
        command
    };
    let firsts = || -> Vec<u64> {
        let printed = orderflow(&["epochs"]).arg(out.path()).stdout(Stdio::piped()).output().unwrap();
        let epoch = |line: &str| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64().unwrap();
        String::from_utf8(printed.stdout).unwrap().lines().map(epoch).collect()
    };
    // It makes checkpoints at its own pace, so it goes on until it has dropped something.
    let mut child = life(&["--rate", "600", "--workers", "2"]).spawn().unwrap();
    eventually("epochs are dropped", || {
        assert!(child.try_wait().unwrap().is_none(), "the replay ended too soon");
        manifests(out.path()).len() > 1 && !out.path().join("epochs.log").exists()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let (status, log) = ended(life(&["--workers", "2"]).spawn().unwrap());
    assert_eq!(status, Some(0), "{log}");
    let kept = firsts();
    assert!(kept[0] > 1 && kept.is_sorted_by(|a, b| a + 1 == *b), "{kept:?}");
    let oldest = epoch_of(&manifests(out.path())[0]);
    assert!(kept[0] <= oldest + 1, "what is behind epoch {oldest} is kept");

    // Nothing can begin where there is nothing.
    let other = tempfile::tempdir().unwrap();
    let url = format!("sinks.delta.url={}", other.path().join("delta").display());
    let needed = format!("begins with epoch {}, and what comes behind epoch 0 is needed", kept[0]);
    refused(&mut backfill(input.path(), out.path(), "delta", "start", &[&url]), &needed);
    filled(&mut backfill(input.path(), out.path(), "delta", &oldest.to_string(), &[&url]));
    let before = tables(out.path());
    assert_equal(&tables(other.path()), &behind(&before, oldest), "behind the oldest checkpoint");
    // A start goes on from the newest, whatever is left; a sink that has lost all cannot.
    let (status, log) = ended(life(&[]).spawn().unwrap());
    assert_eq!(status, Some(0), "{log}");
    assert_equal(&tables(out.path()), &before, "started again");
    std::fs::remove_dir_all(out.path().join("delta")).unwrap();
    refused(&mut life(&[]), "some sinks cannot go on from any checkpoint that there is");
}
