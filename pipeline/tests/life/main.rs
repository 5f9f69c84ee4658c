//! A job's life: started again by its supervisor, stopped, drained, upgraded, and its results played into another sink. Whatever happens to it, the tables
//! are those of the serial reference.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod backfill;
mod drain;
mod supervise;

use std::path::Path;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use common::seeded;
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};

/// No wait is longer.
const LONG: Duration = Duration::from_secs(60);

fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders, seed, skus: 200, customers: 400, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

/// Looks again and again.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn set(settings: &[&str]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]).collect()
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: a system call on numbers; the process is one that the test has started.
    unsafe { libc::kill(pid as i32, signal) };
}

fn is_alive(pid: u32) -> bool {
    // A child whose end nobody has asked for is still there, as a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Waits for the end; gives its status and its messages.
fn ended(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn log_bytes(out: &Path) -> u64 {
    std::fs::metadata(out.join("epochs.log")).map_or(0, |log| log.len())
}
