//! Runs replays and compares their tables with the serial reference.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use orderflow_fixtures::reference::{self, EpochRecord, ReferenceSettings, Row, STREAMS};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Rows by stream, in order.
pub type Tables = BTreeMap<String, Vec<Row>>;

/// The seed of a test, as it is told; the same again by `ORDERFLOW_TEST_SEED`.
pub fn seeded() -> (u64, ChaCha8Rng) {
    let seed: u64 = std::env::var("ORDERFLOW_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("ORDERFLOW_TEST_SEED={seed}");
    (seed, ChaCha8Rng::seed_from_u64(seed))
}

/// The folder of the fixture that is in the tree.
pub fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/recorded/small")
}

/// `orderflow replay` as a user gives it.
pub fn replay_command(input: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
    command.arg("replay").arg(input).arg("--out").arg(out).arg("--no-progress").args(more);
    command.args(["--set", "log.level=warn"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The manifests of a replay's checkpoints, the oldest first.
pub fn manifests(out: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(out.join("checkpoints/manifests")).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| !path.to_string_lossy().contains('#')).collect();
    paths.sort();
    paths
}

/// What is in a manifest.
pub fn manifest(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Starts a replay, and kills it behind its first `checkpoints` new checkpoints. Its pace is to be such that a slow machine, too, makes these before
/// the input ends.
///
/// # Panics
/// If it ends before, or none come.
#[track_caller]
pub fn killed_behind(input: &Path, out: &Path, checkpoints: usize, more: &[&str]) {
    let known = manifests(out);
    let mut child = replay_command(input, out, more).spawn().unwrap();
    let started = Instant::now();
    let mut seen = BTreeSet::new();
    while seen.len() < checkpoints {
        if child.try_wait().unwrap().is_some() {
            let output = child.wait_with_output().unwrap();
            panic!("the replay ended before it had made {checkpoints} checkpoints: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no checkpoint was made");
        seen.extend(manifests(out).into_iter().filter(|manifest| !known.contains(manifest)));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits for a replay's end.
///
/// # Panics
/// With its messages, unless it ended well.
#[track_caller]
pub fn expect_success(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Runs a replay to its end.
#[track_caller]
pub fn replay(input: &Path, out: &Path, more: &[&str]) {
    expect_success(replay_command(input, out, more).spawn().unwrap());
}

/// What `orderflow epochs` prints.
pub fn epochs(out: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_orderflow")).arg("epochs").arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What must come out of `input` under the epochs that `out` was made with.
pub fn expected(input: &Path, out: &Path, settings: &ReferenceSettings) -> Tables {
    let splits = reference::read_folder(input).unwrap();
    let epochs = EpochRecord::parse_log(&epochs(out)).unwrap();
    let streams = reference::run(settings, None, &splits, &epochs).unwrap();
    streams.iter().map(|(name, rows)| (name.to_owned(), rows.to_vec())).collect()
}

/// The tables of a replay. The files of a table's newest version are read one after the other, as they were written.
pub fn tables(out: &Path) -> Tables {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    STREAMS.iter().map(|&stream| (stream.to_owned(), runtime.block_on(table(&out.join("delta").join(stream))))).collect()
}

/// One Delta table of a replay.
pub fn delta_table(out: &Path, stream: &str) -> Vec<Row> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(table(&out.join("delta").join(stream)))
}

async fn table(folder: &Path) -> Vec<Row> {
    let url = url::Url::from_directory_path(std::fs::canonicalize(folder).unwrap()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let mut files: Vec<Vec<Row>> = Vec::new();
    for uri in table.get_file_uris().unwrap() {
        let path = uri.strip_prefix("file://").unwrap_or(&uri).to_owned();
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
        files.push(reader.flat_map(|batch| rows(&batch.unwrap())).collect());
    }
    files.retain(|rows| !rows.is_empty());
    // A file has a run of epochs; one that an epoch was cut over goes on where the other ended.
    files.sort_by_key(|rows| {
        let number = |name: &str| rows[0].get(name).and_then(Value::as_i64).unwrap_or(i64::MAX);
        (number("epoch"), number("split"), number("offset"))
    });
    files.into_iter().flatten().collect()
}

/// A batch's rows in the reference's form.
pub fn rows(batch: &RecordBatch) -> Vec<Row> {
    let schema = batch.schema();
    (0..batch.num_rows())
        .map(|row| schema.fields().iter().zip(batch.columns()).map(|(f, c)| (f.name().clone(), value(c, row))).collect())
        .collect()
}

fn value(column: &dyn Array, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Timestamp(_, Some(zone)) if &**zone == "UTC" => column.as_primitive::<TimestampMicrosecondType>().value(row).into(),
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::Binary => column.as_binary::<i32>().value(row).iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            (0..items.len()).map(|item| value(&items, item)).collect::<Vec<_>>().into()
        }
        other => panic!("no stream has a column of {other}"),
    }
}

/// Compares tables row for row, all columns but the text of errors, which is free.
///
/// # Panics
/// With the first rows that differ.
#[track_caller]
pub fn assert_equal(found: &Tables, expected: &Tables, what: &str) {
    for stream in STREAMS {
        let (found, expected) = (&found[stream], &expected[stream]);
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let differing: Vec<String> = expected
                .iter()
                .filter(|(name, value)| name.as_str() != "error" && found.get(name.as_str()) != Some(value))
                .map(|(name, value)| format!("{name}: found {}, expected {value}", found.get(name).unwrap_or(&Value::Null)))
                .collect();
            assert!(differing.is_empty(), "{what}: {stream} row {at} ({:?}): {}", place(expected), differing.join("; "));
            assert_eq!(found.len(), expected.len(), "{what}: {stream} has other columns");
        }
        assert_eq!(found.len(), expected.len(), "{what}: {stream} has another number of rows");
    }
}

fn place(row: &Row) -> [&Value; 3] {
    ["epoch", "split", "offset"].map(|name| &row[name])
}
