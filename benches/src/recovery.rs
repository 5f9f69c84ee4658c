//! How long a job with much state takes to be live again, and what checkpoints of that state cost.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use orderflow::checkpoint::CheckpointStore;
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};

use crate::{Measured, Outcome, Replay, cell, finish, start};

/// What to measure.
pub struct Plan {
    pub orders: u64,
    pub customers: u64,
    pub runs: usize,
    pub workers: usize,
    pub settings: Vec<String>,
}

/// Between the checkpoints of the job that is killed. Behind the last one there are so up to a million orders, which a replay reads in that time: as many as
/// come in half a minute at 36 000 a second.
const INTERVAL: &str = "checkpoint.interval=3 s";
/// Orders a second, where they come at a pace.
const PACE: f64 = 36_000.0;
/// Of the input, what comes before the state is measured.
const BEFORE: f64 = 0.8;

pub fn recovery(plan: &Plan) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("fixture");
    let generated = GenerateSettings { orders: plan.orders, customers: plan.customers, ..GenerateSettings::default() };
    let written = write_folder(&generated, Compression::Plain, &input, |_| ())?;
    let rows = (written.rows as f64 * BEFORE) as u64;
    let settings = |more: &[&str]| -> Vec<String> {
        let mut settings = plan.settings.clone();
        settings.extend([format!("job.workers={}", plan.workers), "sinks.delta.enabled=false".into(), "replay.checkpoints=true".into()]);
        settings.extend(more.iter().map(|setting| (*setting).to_owned()));
        settings
    };

    // The state, as a job leaves it that is killed.
    let made = folder.path().join("made");
    let child = start(Replay { rows_max: Some(rows), ..Replay::new(&input, &made, &settings(&[INTERVAL])) })?;
    if finish(child).is_ok() {
        return Err("the job ended before it was killed".into());
    }
    let store = CheckpointStore::open(&made.join("checkpoints").display().to_string(), &Default::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let listed = runtime.block_on(store.list())?;
    let newest = listed.first().ok_or("the job was killed before its first checkpoint: give more orders")?;
    let newest = runtime.block_on(store.manifest(newest))?;
    println!(
        "{} orders of {} customers; killed behind {rows} messages; the newest checkpoint is of epoch {}: {} files, {} MiB\n",
        plan.orders,
        plan.customers,
        newest.epoch,
        newest.files.len(),
        newest.bytes() >> 20
    );

    println!("| from there | s to the first new epoch | s to the end | CPU s |\n| --- | --- | --- | --- |");
    let out = folder.path().join("out");
    let (none, often) = ("checkpoint.interval=0 s", "checkpoint.interval=2 s");
    let variants = [("no checkpoints", none), ("a checkpoint every 2 s", often)];
    let mut measured = vec![Vec::new(); variants.len()];
    for _ in 0..plan.runs {
        for (&(_, interval), measured) in variants.iter().zip(&mut measured) {
            copy(&made, &out)?;
            measured.push(finish(start(Replay::new(&input, &out, &settings(&[interval])))?)?);
            std::fs::remove_dir_all(&out)?;
        }
    }
    for ((name, _), measured) in variants.iter().zip(&measured) {
        let cell = |of: fn(&Measured) -> f64| cell(measured, 1, of);
        println!("| {name} | {} | {} | {} |", cell(|m| m.live_seconds), cell(|m| m.seconds), cell(|m| m.cpu_seconds));
    }

    // The same state while orders come at a pace, in turns.
    println!(
        "\n| with {} K orders a second | run | p50, ms | p99, ms | most, ms | p99 where the machine did not stand still | of all orders, % | CPU, cores |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |",
        PACE / 1e3
    );
    let rate = PACE * written.rows as f64 / plan.orders as f64;
    for run in 1..=plan.runs {
        for (name, interval) in [("no checkpoints", none), ("a checkpoint every 10 s", "checkpoint.interval=10 s")] {
            copy(&made, &out)?;
            let settings = settings(&[interval]);
            let m = finish(start(Replay { rate: Some(rate), with_memory: true, ..Replay::new(&input, &out, &settings) })?)?;
            println!(
                "| {name} | {run} | {:.1} | {:.1} | {:.0} | {:.1} | {:.1} | {:.2} |",
                m.p50_ms,
                m.p99_ms,
                m.max_ms,
                m.calm_p99_ms,
                m.calm_share * 100.0,
                m.cpu_seconds / m.seconds
            );
            std::fs::remove_dir_all(&out)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status()?;
    // The copy is not to be written back while something is measured.
    let synced = Command::new("sync").status()?;
    std::thread::sleep(Duration::from_secs(2));
    if status.success() && synced.success() { Ok(()) } else { Err("cannot copy the job's folder".into()) }
}
