//! Golden tests of stages: a folder of SQL files, their inputs, and what must come out.
//!
//! ```text
//! DIR/NAME.sql          a stage; `$input_dir` stands for DIR/inputs, `$output_path` for the sink's file
//! DIR/inputs/…          files that stages read
//! DIR/golden/NAME.json  what comes out, sorted; of changes what is left of them
//! ```
//!
//! Each stage is run whole, in epochs of a few rows and of one row, each with 1, 2 and 4 workers, and stopped twice with its state written down and taken up by
//! another number of workers. For one cut into epochs every run must give the same bytes, and for every cut the same rows.
//!
//! Lines at the top of a stage say what is special: `--fail=TEXT` (it is refused with a message that has the text), `--epoch-rows=N` (only this
//! cut, where what is late depends on it), `--late=N`, `--errors=N` and `--malformed=N` (so many rows do not count).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::run::{RunSettings, Snapshot, Summary, render, run};
use crate::stage::Stage;
use crate::udf;

/// Epochs of so many rows; the first is the whole input.
const CUTS: [u64; 3] = [1_000_000, 7, 1];
const WORKERS: [usize; 3] = [1, 2, 4];

/// The outcome of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What is wrong, if anything.
    pub error: Option<String>,
}

/// What a stage's first lines say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Directives {
    fail: Option<String>,
    epoch_rows: Option<u64>,
    late: u64,
    errors: u64,
    malformed: u64,
}

impl Directives {
    fn read(text: &str) -> Result<Directives, String> {
        let mut directives = Directives::default();
        for line in text.lines().map_while(|line| line.strip_prefix("--")) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let number = || value.trim().parse::<u64>().map_err(|_| format!("--{name}={value}: not a number"));
            match name {
                "fail" => directives.fail = Some(value.trim().to_owned()),
                "epoch-rows" => directives.epoch_rows = Some(number()?),
                "late" => directives.late = number()?,
                "errors" => directives.errors = number()?,
                "malformed" => directives.malformed = number()?,
                _ => {}
            }
        }
        Ok(directives)
    }
}

/// Tests every stage of a folder, in the order of their names; functions of one's own that they call are those of the folder `udfs`. With `update`, what comes out becomes what must.
///
/// # Errors
/// If the folder cannot be read, or has no stage.
pub fn test_folder(folder: &Path, udfs: Option<&Path>, update: bool, mut report: impl FnMut(&Outcome)) -> Result<Vec<Outcome>, String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut stages: Vec<PathBuf> = Vec::new();
    for entry in folder.read_dir().map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.extension().is_some_and(|e| e == "sql") {
            stages.push(path);
        }
    }
    stages.sort();
    if stages.is_empty() {
        return Err(format!("{}: there is no .sql file", folder.display()));
    }
    let outcomes = stages.into_iter().map(|path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let outcome = Outcome { error: test_stage(folder, udfs, &path, &name, update).err(), name };
        report(&outcome);
        outcome
    });
    Ok(outcomes.collect())
}

/// Rendered rows by sink and epoch.
type Rendered = BTreeMap<(usize, u64), Vec<u8>>;

fn test_stage(folder: &Path, udfs: Option<&Path>, path: &Path, name: &str, update: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let directives = Directives::read(&text)?;
    let inputs = folder.join("inputs");
    let text = text.replace("$input_dir", &inputs.display().to_string()).replace("$output_path", "output.json");
    let planned = match udf::Udfs::for_stage(&text, udfs) {
        Ok(udfs) => Stage::plan_with(&text, &[], &udfs).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let stage = match (planned, &directives.fail) {
        (Ok(stage), _) => stage,
        (Err(error), Some(expected)) if error.contains(expected.as_str()) => return Ok(()),
        (Err(error), Some(expected)) => return Err(format!("expected the error {expected:?}, found:\n{error}")),
        (Err(error), None) => return Err(error),
    };
    if let Some(expected) = &directives.fail {
        return match run_once(&stage, folder, 1, CUTS[0], None, None) {
            Err(error) if error.contains(expected.as_str()) => Ok(()),
            Err(error) => Err(format!("expected the error {expected:?}, found: {error}")),
            Ok(_) => Err(format!("expected the error {expected:?}, but it runs")),
        };
    }
    let golden_path = folder.join("golden").join(format!("{name}.json"));
    let cuts = directives.epoch_rows.map_or(CUTS.to_vec(), |rows| vec![rows]);
    for rows in cuts {
        let (first, summary) = run_once(&stage, folder, WORKERS[0], rows, None, None)?;
        for (what, found, expected) in [
            ("late", summary.late, directives.late),
            ("failed", summary.errors, directives.errors),
            ("malformed", summary.malformed, directives.malformed),
        ] {
            if found != expected {
                let example = summary.first_error.as_ref().or(summary.first_malformed.as_ref()).cloned().unwrap_or_default();
                return Err(format!("epochs of {rows} rows: {found} rows {what}, expected {expected}; {example}"));
            }
        }
        let normal = normalized(&stage, &first)?;
        if update && rows == directives.epoch_rows.unwrap_or(CUTS[0]) {
            let parent = golden_path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&golden_path, &normal)).map_err(|e| e.to_string())?;
        }
        let golden = std::fs::read_to_string(&golden_path).map_err(|e| format!("{}: {e}", golden_path.display()))?;
        if normal != golden {
            return Err(format!("epochs of {rows} rows: {}", first_difference(&golden, &normal)));
        }
        for workers in &WORKERS[1..] {
            let (again, _) = run_once(&stage, folder, *workers, rows, None, None)?;
            if again != first {
                return Err(format!("epochs of {rows} rows, {workers} workers: other bytes than with one; {}", differs(&first, &again)));
            }
        }
        let again = with_restarts(&stage, folder, rows, summary.epochs)?;
        if again != first {
            return Err(format!("epochs of {rows} rows, with restarts: other bytes than without; {}", differs(&first, &again)));
        }
    }
    Ok(())
}

/// Stops at a third and at two thirds, and goes on with other numbers of workers.
fn with_restarts(stage: &Stage, folder: &Path, rows: u64, epochs: u64) -> Result<Rendered, String> {
    let mut all = Rendered::new();
    let mut snapshot = None;
    for (part, workers) in [(1, 2), (2, 4), (3, 1)] {
        let stop = if part == 3 { None } else { Some((epochs * part / 3).max(part)) };
        let resumed = snapshot.is_some();
        let (rendered, summary) = run_once(stage, folder, workers, rows, stop, snapshot.take())?;
        all.extend(rendered);
        snapshot = summary.snapshot;
        if snapshot.is_none() {
            // An input of one epoch ends before it can be stopped.
            return if resumed || part == 1 { Ok(all) } else { Err("the run ended too early".to_owned()) };
        }
    }
    Ok(all)
}

fn run_once(
    stage: &Stage,
    folder: &Path,
    workers: usize,
    epoch_rows: u64,
    stop_after: Option<u64>,
    resume: Option<Snapshot>,
) -> Result<(Rendered, Summary), String> {
    let rendered: Arc<Mutex<Rendered>> = Arc::default();
    let to = rendered.clone();
    let tables = stage.tables.clone();
    let sink = Box::new(move |number: usize, edge: &crate::graph::SinkEdge, info: &orderflow_operators::epoch::EpochInfo, rows| {
        let table = tables.iter().find(|t| t.name == edge.table);
        let text = render(table, edge, &rows)?;
        to.lock().unwrap_or_else(PoisonError::into_inner).insert((number, info.epoch.0), text);
        Ok(())
    });
    let settings = RunSettings { base: folder.to_owned(), workers, epoch_rows, stop_after, resume };
    let summary = run(stage, settings, sink).map_err(|e| e.to_string())?;
    let rendered = std::mem::take(&mut *rendered.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((rendered, summary))
}

/// All rows of each sink, sorted; of changes what is left.
fn normalized(stage: &Stage, rendered: &Rendered) -> Result<String, String> {
    let mut text = String::new();
    for (number, edge) in stage.graph.sinks.iter().enumerate() {
        if stage.graph.sinks.len() > 1 {
            let name = if edge.table.is_empty() { "query" } else { &edge.table };
            text.push_str(&format!("-- {number}: {name}\n"));
        }
        let all = rendered.iter().filter(|((sink, _), _)| *sink == number).flat_map(|(_, bytes)| bytes.iter().copied());
        let all = String::from_utf8(all.collect()).map_err(|e| e.to_string())?;
        let changes = edge.updating || stage.table(&edge.table).is_some_and(|t| t.format == crate::stage::catalog::Format::DebeziumJson);
        let mut lines: Vec<String> = if changes { left_of_changes(&all)? } else { all.lines().map(str::to_owned).collect() };
        lines.sort_unstable();
        lines.iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
    }
    Ok(text)
}

fn left_of_changes(changes: &str) -> Result<Vec<String>, String> {
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    for line in changes.lines() {
        let change: serde_json::Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        for (side, by) in [("before", -1), ("after", 1)] {
            if !change[side].is_null() {
                let count = counts.entry(change[side].to_string()).or_default();
                *count += by;
                if *count < 0 {
                    return Err(format!("a row is taken back that is not there: {line}"));
                }
            }
        }
    }
    Ok(counts.into_iter().flat_map(|(row, count)| std::iter::repeat_n(row, count as usize)).collect())
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut expected_lines, mut found_lines) = (expected.lines(), found.lines());
    for number in 1.. {
        match (expected_lines.next(), found_lines.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => {
                let show = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
                return format!("line {number}:\n  expected {}\n  found    {}", show(a), show(b));
            }
        }
    }
    "the same lines".to_owned()
}

fn differs(first: &Rendered, again: &Rendered) -> String {
    let keys = first.keys().chain(again.keys());
    let mut keys: Vec<_> = keys.filter(|key| first.get(key) != again.get(key)).collect();
    keys.sort_unstable();
    let Some((sink, epoch)) = keys.first() else { return String::new() };
    let show = |of: &Rendered| of.get(&(*sink, *epoch)).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    format!("sink {sink}, epoch {epoch}: {}", first_difference(&show(first), &show(again)))
}
