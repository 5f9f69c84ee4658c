//! The laws of the specification (section 5) as properties of what a job writes, each by itself, over inputs, cuts into epochs and workers that a seed
//! chooses. Only the third asks the serial reference for rows. A failing case says its seed; the same again by `ORDERFLOW_TEST_SEED`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use common::{Tables, assert_equal, epochs, expect_success, expected, replay_command, seeded, tables};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::hostile;
use orderflow_fixtures::reference::{EpochRecord, Ledger, ReferenceSettings, STREAMS, Streams, check_nothing_lost, read_folder};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Cases of each law.
const CASES: u64 = 5;

/// An input and a way to replay it.
struct Case {
    input: PathBuf,
    out: PathBuf,
    workers: usize,
    rows_max: u32,
    random: ChaCha8Rng,
    what: String,
    folder: tempfile::TempDir,
}

impl Case {
    fn new(law: u64, number: u64, seed: u64) -> Case {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ (law << 40) ^ (number << 32));
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input");
        let of_input = random.random();
        let is_hostile = random.random_bool(0.4);
        if is_hostile {
            hostile::write_folder(of_input, random.random_range(300..2_000), &input).unwrap();
        } else {
            let settings = GenerateSettings {
                orders: random.random_range(200..3_000),
                seed: of_input,
                skus: random.random_range(5..300),
                customers: random.random_range(20..500),
                order_splits: random.random_range(1..5),
                ..GenerateSettings::default()
            };
            write_folder(&settings, Compression::Plain, &input, |_| ()).unwrap();
        }
        let workers = random.random_range(1..=5);
        let rows_max = *[1, 7, 50, 400, 5_000, 65_536].choose(&mut random).unwrap();
        // Epochs of one row take their time.
        let rows_max = if rows_max == 1 && !is_hostile { 3 } else { rows_max };
        let what = format!("seed {seed}, case {number}: {workers} workers, epochs of {rows_max}, hostile: {is_hostile}");
        Case { out: folder.path().join("out"), input, workers, rows_max, random, what, folder }
    }

    /// A replay on so many workers, with more settings.
    fn start(&self, out: &Path, workers: usize, more: &[&str]) -> Child {
        let mut command = replay_command(&self.input, out, &["--workers", &workers.to_string()]);
        command.arg("--set").arg(format!("epoch.rows_max={}", self.rows_max));
        more.iter().for_each(|set| _ = command.args(["--set", set]));
        command.spawn().unwrap()
    }

    fn replay(&self, out: &Path, workers: usize, more: &[&str]) {
        expect_success(self.start(out, workers, more));
    }

    fn run(&self) -> Tables {
        self.replay(&self.out, self.workers, &[]);
        tables(&self.out)
    }

    fn epochs(&self) -> Vec<EpochRecord> {
        EpochRecord::parse_log(&epochs(&self.out)).unwrap()
    }
}

/// Shows a law in some cases.
fn holds(law: u64, check: impl Fn(Case)) {
    let (seed, _) = seeded();
    for number in 0..CASES {
        check(Case::new(law, number, seed));
    }
}

fn streams(tables: &Tables) -> Streams {
    tables.iter().map(|(name, rows)| (name.as_str(), rows.clone())).collect()
}

/// The same rows and the same epoch log give the same bytes in every stream, whatever the workers.
#[test]
fn determinism() {
    let to = |out: &Path| format!("sinks.jsonl.path={}", out.join("lines").display());
    holds(1, |mut case| {
        case.replay(&case.out, case.workers, &["sinks.jsonl.enabled=true", &to(&case.out)]);
        let again = case.folder.path().join("again");
        std::fs::create_dir(&again).unwrap();
        std::fs::copy(case.out.join("epochs.log"), again.join("epochs.log")).unwrap();
        let workers = case.random.random_range(1..=6);
        case.replay(&again, workers, &["sinks.jsonl.enabled=true", &to(&again)]);
        assert_eq!(std::fs::read(again.join("epochs.log")).unwrap(), std::fs::read(case.out.join("epochs.log")).unwrap(), "{}", case.what);
        for stream in STREAMS {
            let bytes = |out: &Path| std::fs::read(out.join("lines").join(format!("{stream}.jsonl"))).unwrap();
            assert!(bytes(&case.out) == bytes(&again), "{}: {stream} has other bytes with {workers} workers", case.what);
        }
    });
}

/// Every sink holds each epoch's rows exactly once, however often the job died.
#[test]
fn exactly_once() {
    holds(2, |mut case| {
        let often = ["checkpoint.interval=20 ms", "replay.checkpoints=true", "sinks.delta.commit_interval=10 ms"];
        for _ in 0..case.random.random_range(1..4) {
            let workers = case.random.random_range(1..=4);
            let mut child = case.start(&case.out, workers, &often);
            std::thread::sleep(Duration::from_millis(case.random.random_range(20..500)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        case.replay(&case.out, case.workers, &often);
        // A decision, a movement and a dead letter are of one row of the input; a line and an event also of one SKU and kind.
        for (name, rows) in &tables(&case.out) {
            let mut seen = BTreeSet::new();
            for row in rows.iter().filter(|row| !row["split"].is_null()) {
                let column = |name: &str| row.get(name).map(ToString::to_string).unwrap_or_default();
                let key = ["epoch", "split", "offset", "sku", "kind"].map(column);
                assert!(seen.insert(key.clone()), "{}: {name} has {key:?} twice", case.what);
            }
        }
        check_nothing_lost(&streams(&tables(&case.out)), &read_folder(&case.input).unwrap(), &case.epochs())
            .unwrap_or_else(|broken| panic!("{}: {broken}", case.what));
    });
}

/// Every stream equals that of the serial walk.
#[test]
fn serial() {
    holds(3, |case| {
        let found = case.run();
        assert_equal(&found, &expected(&case.input, &case.out, &ReferenceSettings::default()), &case.what);
    });
}

/// What is on hand and reserved is what movements and reservations add up to, at every change and at the end, and no order is partly held.
#[test]
fn conservation() {
    holds(4, |case| {
        let found = case.run();
        let mut ledger = Ledger::default();
        ledger.add(&streams(&found)).and_then(|()| ledger.check_reserved()).unwrap_or_else(|broken| panic!("{}: {broken}", case.what));
        // All lines of an order, or none.
        let lines = |rows: &[orderflow_fixtures::reference::Row], is_held: &dyn Fn(&orderflow_fixtures::reference::Row) -> bool| {
            let mut lines: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
            for row in rows.iter().filter(|row| is_held(row)) {
                let place = ["epoch", "split", "offset"].map(|name| row[name].to_string()).join(" ");
                let sku = row["sku"].to_string();
                assert!(lines.entry(place).or_default().insert(sku, row["quantity"].as_i64().unwrap()).is_none(), "{}", case.what);
            }
            lines
        };
        let held = lines(&found["reservation_events"], &|row| row["kind"] == "held");
        let ordered = lines(&found["order_lines"], &|_| true);
        assert_eq!(held, ordered, "{}", case.what);
    });
}

/// Each row of the input is one decision, one dead letter, a life-cycle message or a movement.
#[test]
fn nothing_lost() {
    holds(5, |case| {
        let found = case.run();
        check_nothing_lost(&streams(&found), &read_folder(&case.input).unwrap(), &case.epochs())
            .unwrap_or_else(|broken| panic!("{}: {broken}", case.what));
    });
}
