//! Law 2: a replay that is killed at any moment and started again ends with the tables of one that was not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{assert_equal, expect_success, expected, replay_command, tables};
use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ClickHouseServerError, ServeCommand, ServerOptions, serve_from_env};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::reference::{ReferenceSettings, STREAMS};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The seed of a test, as it is told; the same again by `ORDERFLOW_TEST_SEED`.
fn seeded() -> (u64, ChaCha8Rng) {
    let seed: u64 = std::env::var("ORDERFLOW_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("ORDERFLOW_TEST_SEED={seed}");
    (seed, ChaCha8Rng::seed_from_u64(seed))
}

fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders, seed, skus: 200, customers: 900, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

/// Starts the command and kills it, up to `kills_max` times, until it ends by itself; gives how often it was killed.
fn killed_until_it_ends(mut command: impl FnMut(&mut ChaCha8Rng) -> Command, kills_max: usize, random: &mut ChaCha8Rng) -> usize {
    for kills in 0..kills_max {
        let mut child = command(random).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_millis(random.random_range(20..600));
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            if child.try_wait().unwrap().is_some() {
                expect_success(child);
                return kills;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    expect_success(command(random).spawn().unwrap());
    kills_max
}

fn random_workers(random: &mut ChaCha8Rng) -> &'static str {
    ["1", "2", "4"][random.random_range(0..3)]
}

/// Also none at all: what there is already is taken up all the same.
fn random_checkpoints(random: &mut ChaCha8Rng) -> &'static str {
    ["checkpoint.interval=0", "checkpoint.interval=30 ms", "checkpoint.interval=150 ms"][random.random_range(0..3)]
}

#[test]
fn killed_twenty_times() {
    /// Kills that must hit a running replay.
    const KILLS: usize = 20;
    let (seed, mut random) = seeded();
    let input = generated(seed, 20_000);
    let (mut kills, mut replays) = (0, 0);
    while kills < KILLS {
        replays += 1;
        assert!(replays <= KILLS * 5, "replays end before they can be killed (seed {seed})");
        let out = tempfile::tempdir().unwrap();
        let command = |random: &mut ChaCha8Rng| {
            let often = ["epoch.rows_max=100", "sinks.delta.commit_interval=20 ms", "replay.checkpoints=true", random_checkpoints(random)];
            let more = [&often.map(|setting| ["--set", setting]).concat()[..], &["--workers", random_workers(random)]].concat();
            replay_command(input.path(), out.path(), &more)
        };
        kills += killed_until_it_ends(command, KILLS - kills, &mut random);
        let expected = expected(input.path(), out.path(), &ReferenceSettings::default());
        assert_equal(&tables(out.path()), &expected, &format!("killed, seed {seed}"));
    }
    println!("{kills} kills over {replays} replays");
}

/// Delta Lake and ClickHouse together, each of which was somewhere else when the job died.
#[test]
fn killed_with_both_sinks() {
    const KILLS: usize = 12;
    let (seed, mut random) = seeded();
    let folder = tempfile::tempdir().unwrap();
    let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
    let server = match ClickHouseServer::start(ServerOptions::new(folder.path().join("clickhouse"), command)) {
        Err(ClickHouseServerError::Platform) => return eprintln!("SKIPPED: there is no development ClickHouse for this platform"),
        server => server.unwrap(),
    };
    let input = generated(seed, 20_000);
    let replay = |out: &Path, database: &str, workers: &str, checkpoints: &str| {
        let settings = [
            checkpoints.to_owned(),
            "replay.checkpoints=true".into(),
            "epoch.rows_max=200".to_owned(),
            // The same sealing times, and so the same rows, every time.
            "replay.clock=fixed".into(),
            "sinks.delta.commit_interval=30 ms".into(),
            "sinks.clickhouse.enabled=true".into(),
            "sinks.clickhouse.commit_interval=20 ms".into(),
            format!("sinks.clickhouse.url={}", server.url()),
            format!("sinks.clickhouse.database={database}"),
        ];
        let more: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).chain(["--workers", workers]).collect();
        replay_command(input.path(), out, &more)
    };
    let undisturbed = folder.path().join("undisturbed");
    expect_success(replay(&undisturbed, "undisturbed", "2", "checkpoint.interval=0").spawn().unwrap());
    let expected = expected(input.path(), &undisturbed, &ReferenceSettings::default());

    let (mut kills, mut replays) = (0, 0);
    while kills < KILLS {
        replays += 1;
        assert!(replays <= KILLS * 3, "replays end before they can be killed (seed {seed})");
        let (out, database) = (folder.path().join(format!("killed-{replays}")), format!("killed_{replays}"));
        kills += killed_until_it_ends(
            |random| replay(&out, &database, random_workers(random), random_checkpoints(random)),
            KILLS - kills,
            &mut random,
        );
        assert_equal(&tables(&out), &expected, &format!("killed, seed {seed}"));
        for stream in STREAMS {
            let rows = |sql: String| server.post(&sql).unwrap().trim().to_owned();
            let count = |database: &str| rows(format!("SELECT count() FROM {database}.{stream}"));
            assert_eq!(count(&database), expected[stream].len().to_string(), "{stream}, seed {seed}");
            let differing =
                |a: &str, b: &str| rows(format!("SELECT count() FROM (SELECT * FROM {a}.{stream} EXCEPT ALL SELECT * FROM {b}.{stream})"));
            assert_eq!(differing("undisturbed", &database), "0", "{stream}, seed {seed}");
            assert_eq!(differing(&database, "undisturbed"), "0", "{stream}, seed {seed}");
        }
    }
    println!("{kills} kills over {replays} replays");
}

/// Not a test: the ClickHouse server of the others, which start this binary again.
#[test]
fn clickhouse_server_process() {
    serve_from_env();
}
