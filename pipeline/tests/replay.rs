//! Laws 1 to 3 on whole replays: whatever the workers, epochs, processes and inputs, the tables are those of the serial reference.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{assert_equal, expect_success, expected, recorded, replay, replay_command, tables};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::hostile;
use orderflow_fixtures::reference::ReferenceSettings;

/// Both have a table of their own, so that one mistake is not made twice.
#[test]
fn the_reference_has_the_currencies_of_the_settings() {
    assert_eq!(ReferenceSettings::default().currencies, orderflow::config::Config::default().currencies.0);
}

/// Replays `input` and compares.
#[track_caller]
fn check(input: &Path, workers: usize, rows_max: u64) {
    let out = tempfile::tempdir().unwrap();
    let rows = format!("epoch.rows_max={rows_max}");
    replay(input, out.path(), &["--workers", &workers.to_string(), "--set", &rows]);
    let what = format!("{}, {workers} workers, epochs of {rows_max}", input.display());
    assert_equal(&tables(out.path()), &expected(input, out.path(), &ReferenceSettings::default()), &what);
}

fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders, seed, skus: 300, customers: 500, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

#[test]
fn the_recorded_fixture() {
    for workers in [1, 2, 4, 7] {
        for rows_max in [1, 100, 65_536] {
            check(&recorded(), workers, rows_max);
        }
    }
}

#[test]
fn generated_fixtures() {
    for seed in [1, 2, 3] {
        let input = generated(seed, 6_000);
        for (workers, rows_max) in [(1, 65_536), (2, 1_000), (4, 100), (7, 65_536), (7, 333)] {
            check(input.path(), workers, rows_max);
        }
    }
}

#[test]
fn hostile_fixtures() {
    for seed in [1, 2, 3, 4] {
        let input = tempfile::tempdir().unwrap();
        hostile::write_folder(seed, 1_500, input.path()).unwrap();
        for (workers, rows_max) in [(1, 65_536), (1, 1), (2, 100), (4, 1), (7, 65_536)] {
            check(input.path(), workers, rows_max);
        }
    }
}

#[test]
fn two_processes() {
    let input = generated(4, 5_000);
    let hostile = tempfile::tempdir().unwrap();
    hostile::write_folder(9, 800, hostile.path()).unwrap();
    for input in [input.path(), hostile.path()] {
        let out = tempfile::tempdir().unwrap();
        let hosts = free_hosts(2);
        let part = |process: &str| {
            let more = ["--workers", "2", "--hosts", &hosts, "--process", process, "--set", "epoch.rows_max=777"];
            replay_command(input, out.path(), &more).spawn().unwrap()
        };
        let (first, second) = (part("0"), part("1"));
        expect_success(first);
        expect_success(second);
        assert_equal(&tables(out.path()), &expected(input, out.path(), &ReferenceSettings::default()), "two processes");
    }
}

#[test]
fn when_a_process_dies_the_other_says_so_and_both_go_on_later() {
    let input = generated(5, 3_000);
    let out = tempfile::tempdir().unwrap();
    let parts = |more: &[&str]| {
        let hosts = free_hosts(2);
        ["0", "1"].map(|process| {
            let cluster = ["--workers", "1", "--hosts", &hosts, "--process", process, "--set", "sinks.delta.commit_interval=100 ms"];
            replay_command(input.path(), out.path(), &[&cluster[..], more].concat()).spawn().unwrap()
        })
    };
    // At a pace that takes longer than what follows.
    let [first, mut second] = parts(&["--rate", "100"]);
    let started = std::time::Instant::now();
    while std::fs::metadata(out.path().join("epochs.log")).map_or(0, |log| log.len()) < 1_000 {
        assert!(started.elapsed().as_secs() < 30, "no epochs were logged");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    second.kill().unwrap();
    second.wait().unwrap();
    let output = first.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("error: lost another process of the job"), "{message}");

    let [first, second] = parts(&[]);
    expect_success(first);
    expect_success(second);
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), "after a process died");
}

/// The sealer waits for what a small buffer cannot hold at once; recovery needs ranges larger than the buffer of today.
#[test]
fn buffers_smaller_than_epochs() {
    let input = generated(6, 4_000);
    // Messages of many marks each.
    let orders = input.path().join("orders-000.jsonl");
    let mut lines = std::fs::read(&orders).unwrap();
    (0..5).for_each(|_| lines.splice(0..0, [vec![b'x'; 300_000], vec![b'\n']].concat()).for_each(drop));
    std::fs::write(&orders, lines).unwrap();
    let out = tempfile::tempdir().unwrap();
    let small = ["--set", "source.buffer_bytes_max=128 KiB", "--workers", "2"];
    replay(input.path(), out.path(), &small);
    let found = tables(out.path());
    assert_equal(&found, &expected(input.path(), out.path(), &ReferenceSettings::default()), "a small buffer");

    let out = tempfile::tempdir().unwrap();
    replay(input.path(), out.path(), &["--workers", "1"]);
    let before = tables(out.path());
    std::fs::remove_dir_all(out.path().join("delta")).unwrap();
    replay(input.path(), out.path(), &small);
    assert_equal(&tables(out.path()), &before, "recovered with a small buffer");
}

/// A group of epochs that no queue can hold would never be committed.
#[test]
fn queues_smaller_than_commits() {
    let input = generated(7, 4_000);
    let out = tempfile::tempdir().unwrap();
    let settings = ["epoch.rows_max=100", "sinks.delta.queue_rows_max=1000", "sinks.delta.commit_interval=1 h"];
    replay(input.path(), out.path(), &settings.map(|setting| ["--set", setting]).concat());
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), "a small queue");
}

#[test]
fn sinks_that_know_more_than_the_log_are_refused() {
    let out = tempfile::tempdir().unwrap();
    replay(&recorded(), out.path(), &["--set", "epoch.rows_max=50"]);
    let before = tables(out.path());
    std::fs::remove_file(out.path().join("epochs.log")).unwrap();
    let output = replay_command(&recorded(), out.path(), &[]).spawn().unwrap().wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("but its epoch log ends with epoch 0"), "{message}");
    assert_equal(&tables(out.path()), &before, "refused");
}

#[test]
fn a_finished_replay_is_left_as_it_is() {
    let out = tempfile::tempdir().unwrap();
    replay(&recorded(), out.path(), &["--workers", "1"]);
    let before = tables(out.path());
    replay(&recorded(), out.path(), &["--workers", "2"]);
    assert_equal(&tables(out.path()), &before, "replayed twice");
}

/// Addresses that nobody listens on at the moment.
fn free_hosts(processes: usize) -> String {
    let listeners: Vec<_> = (0..processes).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect::<Vec<_>>().join(",")
}
