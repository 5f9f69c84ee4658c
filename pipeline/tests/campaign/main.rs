//! Law 2: a job that is killed at any point, or at any moment, and started again ends with what the serial reference computes, in every sink.
//!
//! [`every_point`] kills it at each [`Point`] once; [`random_lives`] at random. The whole campaign is the same at length, in one command:
//!
//! ```text
//! make campaign RUNS=200 SEED=1
//! ```
//!
//! A *run* is a job from its first start to the end of its input, over as many *lives* as it is killed, on 1, 2, 4, 1 … workers. Its *way*
//! says what it reads and writes. Everything but the moments at which threads get on follows from the seed.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../../sinks/tests/kafka/broker.rs"]
mod broker;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod lives;
mod plan;
mod servers;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use orderflow_faults::Point;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use common::seeded;
use lives::{Ended, Job};
use plan::{Kill, Settings, Way};
use servers::Servers;

/// Kills a job at each of `points` at the first passing, over as many lives and jobs as it takes.
fn every_point(servers: &Servers, way: Way, points: &[Point]) {
    /// Jobs that may come to their end before all points were passed.
    const JOBS: usize = 6;
    let (seed, mut random) = seeded();
    let mut left: BTreeSet<Point> = points.iter().copied().collect();
    for job in 0..JOBS {
        let mut job = Job::new(servers, Settings::eventful(way, &mut random), &format!("every_{job}_{seed}"), &mut random);
        let mut begun = job.is_new();
        loop {
            let savepoints = BTreeSet::from([Point::Savepoint, Point::SavepointDone]);
            if !begun && left.iter().any(|point| savepoints.contains(point)) {
                for point in savepoints {
                    if job.savepoint(point) {
                        left.remove(&point);
                    }
                }
            }
            begun = false;
            let mut at: Vec<(Point, u32)> = left.iter().map(|&point| (point, 1)).collect();
            // So that there are files that belong to nothing.
            let leaves_files = job.is_new() && left.contains(&Point::CheckpointOldFile) && !left.contains(&Point::CheckpointManifest);
            at.extend(leaves_files.then_some((Point::CheckpointManifest, 1)));
            match job.live(Kill::At(at)) {
                Ended::Killed(Some(Point::CheckpointManifest)) if leaves_files => {}
                Ended::Killed(Some(point)) => assert!(left.remove(&point), "{} is killed at only once (seed {seed})", point.name()),
                Ended::Killed(None) => panic!("nobody killed it (seed {seed})"),
                Ended::Whole => break,
            }
        }
        job.check(&format!("every point, {way:?}, seed {seed}"));
        if left.is_empty() {
            return;
        }
    }
    panic!("points that no job passed: {:?} (seed {seed})", left.iter().map(|point| point.name()).collect::<Vec<_>>());
}

#[test]
fn every_point_of_a_replay() {
    let Some(servers) = Servers::clickhouse() else { return };
    every_point(&servers, Way::Replay, &Way::Replay.points());
}

#[test]
fn every_point_of_two_processes() {
    let own = [Point::CheckpointPart, Point::CheckpointPartDone, Point::CheckpointOldPart, Point::CheckpointLife];
    every_point(&Servers::none(), Way::Processes, &own);
}

#[test]
fn every_point_of_a_live_job() {
    let Some(servers) = Servers::kafka("every_point_of_a_live_job") else { return };
    let is_own = |point: &Point| ["kafka.", "epoch_log."].iter().any(|part| point.name().starts_with(part));
    for way in [Way::LiveTopic, Way::LiveObjects] {
        let own: Vec<Point> =
            way.points().into_iter().filter(is_own).filter(|point| way == Way::LiveTopic || point.name().contains("objects")).collect();
        every_point(&servers, way, &own);
    }
}

/// Steps that sinks and checkpoints try again: the job ends whole by itself.
#[test]
fn every_step_that_fails_is_tried_again() {
    let (seed, mut random) = seeded();
    let Some(servers) = Servers::clickhouse() else { return };
    let can_fail = |point: &Point| {
        let name = point.name();
        let of_files = ["checkpoint.file.", "checkpoint.manifest.", "checkpoint.garbage.before"].iter().any(|part| name.starts_with(part));
        of_files || name.ends_with(".drop.before") || ["delta.", "clickhouse.", "jsonl."].iter().any(|part| name.starts_with(part))
    };
    let points = Way::Replay.points().into_iter().filter(can_fail);
    let fails = |point: Point| {
        let mut after = || random.random_range(0..4);
        format!("{}={}*off->1*return(enospc)->{}*off->1*return(timeout)", point.name(), after(), after()).replace("0*off->", "")
    };
    let faults = points.map(fails).collect::<Vec<_>>().join(";");
    let mut job = Job::new(&servers, Settings::eventful(Way::Replay, &mut random), &format!("failing_{seed}"), &mut random);
    assert_eq!(job.live_with(&faults, Kill::Never), Ended::Whole, "seed {seed}");
    job.check(&format!("steps that fail, seed {seed}"));
}

/// No point is in the list alone.
#[test]
fn every_point_is_of_some_way() {
    let passed: BTreeSet<Point> = Way::ALL.into_iter().flat_map(|way| way.points()).collect();
    let dead: Vec<&str> = Point::ALL.into_iter().filter(|point| !passed.contains(point)).map(Point::name).collect();
    assert!(dead.is_empty(), "{dead:?}");
}

/// Kills at any moment, which are between points mostly.
#[test]
fn random_lives() {
    /// Kills that must hit a running job.
    const KILLS: usize = 24;
    let (seed, mut random) = seeded();
    let Some(servers) = Servers::clickhouse() else { return };
    let (mut kills, mut runs) = (0, 0);
    while kills < KILLS {
        runs += 1;
        assert!(runs <= KILLS * 3, "jobs end before they can be killed (seed {seed})");
        let mut job = Job::new(&servers, Settings::random(Way::Replay, &mut random), &format!("random_{runs}_{seed}"), &mut random);
        loop {
            let kill = if kills < KILLS { Kill::after(&mut random, Way::Replay) } else { Kill::Never };
            match job.live(kill) {
                Ended::Killed(_) => kills += 1,
                Ended::Whole => break,
            }
        }
        job.check(&format!("random lives, seed {seed}"));
    }
    println!("{kills} kills over {runs} replays");
}

/// The whole campaign: see the head of this file. `CAMPAIGN_RUNS` and `ORDERFLOW_TEST_SEED` say how long and which.
#[test]
#[ignore = "it takes long: make campaign"]
fn campaign() {
    let runs: usize = std::env::var("CAMPAIGN_RUNS").map_or(200, |runs| runs.parse().expect("CAMPAIGN_RUNS is a number"));
    let (seed, mut random) = seeded();
    let started = Instant::now();
    let servers = Servers::all();
    let ways: Vec<Way> = Way::ALL.into_iter().filter(|way| servers.can(*way)).collect();
    let mut plan = plan::Plan::new(&mut random, &ways);
    let mut table: BTreeMap<&str, usize> = plan.points().map(|point| (point.name(), 0)).collect();
    let mut failed = Vec::new();
    let (mut lives, mut at_random) = (0, 0);
    for run in 1..=runs {
        // A run is the same alone.
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ ((run as u64) << 32));
        let (way, wanted) = plan.next(&mut random);
        let begun = Instant::now();
        let settings = Settings::random(way, &mut random);
        let mut job = Job::new(&servers, settings.clone(), &format!("run_{run}_{seed}"), &mut random);
        let mut story = Vec::new();
        let mut wanted = wanted.into_iter();
        let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            loop {
                let kill = wanted.next().unwrap_or(Kill::Never);
                let done = kill.is_never();
                let asked: Option<Point> = kill.point();
                let ended = match kill.savepoint().filter(|_| !job.is_new()) {
                    Some(point) => {
                        if job.savepoint(point) {
                            Ended::Killed(Some(point))
                        } else {
                            plan.missed(point);
                            continue;
                        }
                    }
                    None => job.live(kill),
                };
                match ended {
                    Ended::Killed(Some(point)) => {
                        plan.hit(point);
                        *table.entry(point.name()).or_default() += 1;
                        story.push(point.name().to_owned());
                    }
                    Ended::Killed(None) => {
                        at_random += 1;
                        story.push("any time".to_owned());
                    }
                    Ended::Whole => {
                        asked.into_iter().for_each(|point| plan.missed(point));
                        assert!(!done || job.is_whole(), "it ends whole");
                        break;
                    }
                }
            }
            // What is left of the plan was not reached.
            wanted.by_ref().filter_map(|kill| kill.point()).for_each(|point| plan.missed(point));
            job.check(&format!("run {run}, seed {seed}"));
        }));
        lives += job.lives();
        let outcome = if whole.is_ok() { "equal" } else { "NOT EQUAL" };
        println!(
            "run {run:3} seed {seed}: {settings}, {} lives, killed at [{}]: {outcome} ({:.1} s)",
            job.lives(),
            story.join(", "),
            begun.elapsed().as_secs_f64()
        );
        if whole.is_err() {
            println!("    kept for a look: {}", job.keep().display());
            failed.push(run);
        }
    }
    println!("\n{:50} kills", "point");
    table.iter().for_each(|(point, kills)| println!("{point:50} {kills:5}"));
    println!("{:50} {at_random:5}", "(any time)");
    let kills = at_random + table.values().sum::<usize>();
    println!("\n{runs} runs, {lives} lives, {kills} kills in {:.0} s, seed {seed}; not equal: {failed:?}", started.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "runs {failed:?} are not equal to the reference (seed {seed})");
    let never: Vec<&&str> = table.iter().filter(|(_, kills)| **kills == 0).map(|(point, _)| point).collect();
    // Each run is for one or two points.
    assert!(never.is_empty() || runs < 2 * table.len(), "points at which nothing was killed: {never:?} (seed {seed})");
}

/// Not a test: the ClickHouse server of the others, which start this binary again.
#[test]
fn clickhouse_server_process() {
    orderflow_fixtures::clickhouse_server::serve_from_env();
}
