//! Law 2: a replay that is killed at any moment and started again ends with the tables of one that was not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{assert_equal, expected, replay_command, tables};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::reference::ReferenceSettings;
use rand::{Rng, SeedableRng};

/// Kills that must hit a running replay.
const KILLS: usize = 20;

#[test]
fn killed_twenty_times() {
    let seed: u64 = std::env::var("ORDERFLOW_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("ORDERFLOW_TEST_SEED={seed}");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders: 20_000, seed, skus: 200, customers: 900, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();

    let (mut kills, mut rounds) = (0, 0);
    // Each round is one folder: killed until it ends by itself.
    while kills < KILLS {
        rounds += 1;
        assert!(rounds <= KILLS * 5, "replays end before they can be killed (seed {seed})");
        let out = tempfile::tempdir().unwrap();
        loop {
            let workers = ["1", "2", "4"][random.random_range(0..3)];
            let more = ["--workers", workers, "--set", "epoch.rows_max=100", "--set", "sinks.delta.commit_interval=\"20 ms\""];
            let mut child = replay_command(input.path(), out.path(), &more).spawn().unwrap();
            let wait = Duration::from_millis(random.random_range(20..600));
            let deadline = Instant::now() + wait;
            let mut status = None;
            while status.is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
                status = child.try_wait().unwrap();
            }
            match status {
                Some(status) => {
                    let output = child.wait_with_output().unwrap();
                    assert!(status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
                    break;
                }
                None if kills < KILLS => {
                    kills += 1;
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
                None => {
                    common::expect_success(child);
                    break;
                }
            }
        }
        assert_equal(
            &tables(out.path()),
            &expected(input.path(), out.path(), &ReferenceSettings::default()),
            &format!("killed, seed {seed}"),
        );
    }
    println!("{kills} kills over {rounds} replays");
}
