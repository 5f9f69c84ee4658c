//! Stages inside the job: whatever the workers, epochs and kills, their streams are those of the same stages by themselves over what the serial
//! reference gives, and the last state of `live_stock` is the stock.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use common::{delta_table, epochs, manifest, manifests, replay, replay_command};
use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ClickHouseServerError, ServeCommand, ServerOptions, serve_from_env};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::hostile;
use orderflow_fixtures::reference::{self, BASELINE, EpochRecord, Model, ReferenceSettings, Row, Streams, Walk};
use orderflow_sql::run::{RunSettings, render, run};
use orderflow_sql::stage::Stage;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

/// Our stages but `live_stock`, which reads two streams; what its windows' ends are.
const WINDOWED: [(&str, &str, i64); 6] = [
    ("revenue_per_minute", "minute", 60),
    ("fraud_rate_per_hour", "hour", 3600),
    ("stock_outs_per_hour", "hour", 3600),
    ("top_skus_per_hour", "hour", 3600),
    ("customer_sessions", "ended", 0),
    ("late_payments", "hour", 3600),
];

/// Lets this binary be the server, see [`ServeCommand::this_test`].
#[test]
fn clickhouse_server_process() {
    serve_from_env();
}

/// Hours of event time, of which much comes late.
fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings {
        orders,
        seed,
        skus: 60,
        customers: 600,
        rate_per_s: orders as f64 / 9_000.0,
        late_share: 0.05,
        scarce_share: 0.3,
        fraud_share: 0.05,
        ..GenerateSettings::default()
    };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

fn our_stages() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/stages").canonicalize().unwrap().display().to_string()
}

/// Settings of a replay with our stages, its lines in `OUT/lines`.
fn settings(out: &Path, rows_max: u64) -> Vec<String> {
    let set = [
        format!("stages.files=[\"{}/*.sql\"]", our_stages()),
        format!("epoch.rows_max={rows_max}"),
        "replay.clock=fixed".to_owned(),
        "sinks.jsonl.enabled=true".to_owned(),
        format!("sinks.jsonl.path={}", out.join("lines").display()),
    ];
    set.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect()
}

fn with<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    settings.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// The lines of a stream.
fn lines(out: &Path, stream: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(out.join("lines").join(format!("{stream}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the serial reference gives, with the watermark after each epoch and the stock at the end.
struct Reference {
    epochs: Vec<(Streams, Option<i64>)>,
    stock: BTreeMap<String, (i64, i64)>,
}

impl Reference {
    fn new(input: &Path, out: &Path) -> Reference {
        let splits = reference::read_folder(input).unwrap();
        let settings = ReferenceSettings::default();
        let model = Model::parse(BASELINE, &settings.fraud_windows_us).unwrap();
        let mut walk = Walk::new(settings, model);
        let records = EpochRecord::parse_log(&epochs(out)).unwrap();
        let epochs = records.iter().map(|record| (walk.epoch(record, &splits).unwrap(), walk.watermark())).collect();
        let stock = walk.stock().skus().iter().map(|(sku, units)| (sku.clone(), (units.on_hand, units.reserved)));
        Reference { epochs, stock: stock.collect() }
    }

    fn watermark(&self) -> i64 {
        self.epochs.last().and_then(|(_, watermark)| *watermark).unwrap()
    }
}

/// The streams' columns that stages read, and how far event time had come before each row.
const DECLARED: &str = "
CREATE TABLE order_decisions (order_id TEXT, customer_id TEXT, event_time TIMESTAMP, currency TEXT, total BIGINT, amount BIGINT, unit_count BIGINT,
  decision TEXT, reason TEXT, detail TEXT[], fraud_score DOUBLE, billing_country TEXT, w TIMESTAMP, WATERMARK FOR event_time AS w
) WITH (connector = 'single_file', path = 'order_decisions.json', format = 'json', type = 'source');
CREATE TABLE order_lines (order_id TEXT, event_time TIMESTAMP, sku TEXT, quantity BIGINT, w TIMESTAMP, WATERMARK FOR event_time AS w
) WITH (connector = 'single_file', path = 'order_lines.json', format = 'json', type = 'source');
CREATE TABLE reservation_events (order_id TEXT, sku TEXT, quantity BIGINT, kind TEXT, event_time TIMESTAMP, on_hand BIGINT, reserved BIGINT, w TIMESTAMP,
  WATERMARK FOR event_time AS w
) WITH (connector = 'single_file', path = 'reservation_events.json', format = 'json', type = 'source');
";

/// Rows that come out of the stage by itself, and how many were late. Each row is an epoch of its own: the watermark before it must be that before its epoch in the
/// job, so behind an epoch's rows stands one of long ago that brings the watermark on.
fn by_itself(folder: &Path, stage: &str) -> (Vec<Row>, u64) {
    let text = std::fs::read_to_string(Path::new(&our_stages()).join(format!("{stage}.sql"))).unwrap();
    let stage = Stage::plan(&format!("{DECLARED}{text}"), &[]).unwrap_or_else(|error| panic!("{error}"));
    let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
    let to = bytes.clone();
    let sink = Box::new(move |_: usize, edge: &_, _: &_, rows: RecordBatch| {
        to.lock().unwrap().extend(render(None, edge, &rows)?);
        Ok(())
    });
    let settings = RunSettings { base: folder.to_owned(), workers: 1, epoch_rows: 1, stop_after: None, resume: None };
    let summary = run(&stage, settings, sink).unwrap();
    assert_eq!((summary.errors, summary.malformed), (0, 0), "{:?} {:?}", summary.first_error, summary.first_malformed);
    let text = String::from_utf8(std::mem::take(&mut *bytes.lock().unwrap())).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), summary.late)
}

fn write_streams(reference: &Reference, folder: &Path) {
    for stream in ["order_decisions", "order_lines", "reservation_events"] {
        let mut text = String::new();
        let mut before: Option<i64> = None;
        for (streams, after) in &reference.epochs {
            for row in streams.rows(stream) {
                let mut row = row.clone();
                row.insert("w".to_owned(), json!(before));
                writeln!(text, "{}", Value::Object(row)).unwrap();
            }
            let none = json!({"event_time": 0, "order_id": "", "customer_id": "", "decision": "rejected", "reason": "", "kind": "", "detail": [], "w": after});
            writeln!(text, "{none}").unwrap();
            before = *after;
        }
        std::fs::write(folder.join(format!("{stream}.json")), text).unwrap();
    }
}

/// Microseconds since 1970 of a time as lines have it.
fn micros(time: &Value) -> i64 {
    let text = time.as_str().unwrap_or_else(|| panic!("{time} is no time"));
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

/// A row without its epoch, its times as numbers, as text that can be sorted.
fn comparable(mut row: Row) -> String {
    row.remove("epoch");
    for (name, value) in &mut row {
        if TIMES.contains(&name.as_str()) {
            *value = json!(micros(value));
        } else if name == "rate" {
            *value = json!(value.as_f64());
        }
    }
    text(row)
}

/// Columns that are times.
const TIMES: [&str; 6] = ["minute", "hour", "started", "ended", "held_at", "paid_at"];

/// A row as text, whatever the order of its columns.
fn text(row: Row) -> String {
    serde_json::to_string(&row.into_iter().collect::<BTreeMap<String, Value>>()).unwrap()
}

fn sorted(rows: impl IntoIterator<Item = Row>) -> Vec<String> {
    let mut rows: Vec<String> = rows.into_iter().map(comparable).collect();
    rows.sort_unstable();
    rows
}

/// Compares the lines of all our stages with what must come out.
#[track_caller]
fn check(input: &Path, out: &Path, what: &str) {
    let reference = Reference::new(input, out);
    let folder = tempfile::tempdir().unwrap();
    write_streams(&reference, folder.path());
    let begin = GenerateSettings::default().start_us - 86_400_000_000;
    let rejects = lines(out, "stage_rejects");
    for (stage, time, width) in WINDOWED {
        let (expected, late) = by_itself(folder.path(), stage);
        // What stands behind an epoch's rows is of 1970; windows that event time has not left are still open in the job.
        let is_over = |row: &Row| micros(&row[time]) > begin && micros(&row[time]) + width * 1_000_000 <= reference.watermark();
        let (found, expected) = (sorted(lines(out, stage)), sorted(expected.into_iter().filter(is_over)));
        // In one epoch all stock comes before all orders, and nothing runs out.
        assert!(!expected.is_empty() || reference.epochs.len() < 5, "{what}: {stage} has no rows, so nothing is tested");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{what}: {stage}");
        }
        assert_eq!(found.len(), expected.len(), "{what}: {stage} has another number of rows");
        if stage == "revenue_per_minute" {
            let found = rejects.iter().filter(|row| row["stage"] == stage).count() as u64;
            assert_eq!(found, late, "{what}: late rows of {stage}");
        }
    }
    check_stock(&reference, &lines(out, "live_stock"), what);
}

/// What `live_stock` must give, by a walk over the streams in canonical order.
#[track_caller]
fn check_stock(reference: &Reference, found: &[Row], what: &str) {
    let mut table: BTreeMap<String, [i64; 4]> = BTreeMap::new();
    let mut found = found.iter();
    let row = |epoch: usize, retract: bool, sku: &str, [on_hand, reserved, available, changes]: [i64; 4]| {
        let row = json!({
            "epoch": epoch, "is_retract": retract, "sku": sku, "on_hand": on_hand, "reserved": reserved, "available": available, "changes": changes
        });
        text(row.as_object().unwrap().clone())
    };
    for (number, (streams, _)) in reference.epochs.iter().enumerate() {
        let movements = streams.rows("stock_movements").iter();
        let mut changes: Vec<&Row> = movements.chain(streams.rows("reservation_events")).filter(|row| !row["sku"].is_null()).collect();
        let place = |row: &Row| (row["split"].as_i64().unwrap_or(i64::MAX), row["offset"].as_i64().unwrap_or(i64::MAX));
        // Stable: expiries stay in their order.
        changes.sort_by_key(|row| place(row));
        let before = table.clone();
        let mut touched = std::collections::BTreeSet::new();
        for row in changes {
            let sku = row["sku"].as_str().unwrap();
            let (on_hand, reserved) = (row["on_hand"].as_i64().unwrap(), row["reserved"].as_i64().unwrap());
            let entry = table.entry(sku.to_owned()).or_default();
            *entry = [on_hand, reserved, on_hand - reserved, entry[3] + 1];
            touched.insert(sku.to_owned());
        }
        let epoch = number + 1;
        let taken_back = touched.iter().filter_map(|sku| before.get(sku).map(|of| row(epoch, true, sku, *of)));
        let mut expected: Vec<String> = taken_back.chain(touched.iter().map(|sku| row(epoch, false, sku, table[sku]))).collect();
        let mut of_epoch: Vec<String> = found.by_ref().take(expected.len()).map(|row| text(row.clone())).collect();
        expected.sort_unstable();
        of_epoch.sort_unstable();
        assert_eq!(of_epoch, expected, "{what}: live_stock of epoch {epoch}");
    }
    assert_eq!(found.next(), None, "{what}: live_stock has more rows");
    let last: BTreeMap<String, (i64, i64)> = table.iter().map(|(sku, of)| (sku.clone(), (of[0], of[1]))).collect();
    assert_eq!(last, reference.stock, "{what}: the last state of live_stock is the stock");
}

#[test]
fn our_stages_with_any_workers_and_epochs() {
    let seed = 11;
    let input = generated(seed, 5_000);
    for rows_max in [100, 1_500, 65_536] {
        let mut first: Option<Vec<String>> = None;
        for workers in ["1", "2", "4"] {
            let out = tempfile::tempdir().unwrap();
            let more = ["--workers", workers, "--set", "sinks.delta.enabled=false"];
            replay(input.path(), out.path(), &with(&settings(out.path(), rows_max), &more));
            let what = format!("seed {seed}, {workers} workers, epochs of {rows_max}");
            let files = WINDOWED.iter().map(|stage| stage.0).chain(["live_stock", "stage_rejects"]);
            let read = |stream: &str| std::fs::read_to_string(out.path().join(format!("lines/{stream}.jsonl"))).unwrap();
            let texts: Vec<String> = files.map(read).collect();
            match &first {
                None => {
                    check(input.path(), out.path(), &what);
                    first = Some(texts);
                }
                Some(first) => assert!(*first == texts, "{what}: other bytes than with one worker"),
            }
        }
    }
}

/// No input stops a stage, and what it makes of it does not depend on the workers.
#[test]
fn hostile_input() {
    for seed in [5, 6] {
        let input = tempfile::tempdir().unwrap();
        hostile::write_folder(seed, 1_500, input.path()).unwrap();
        let mut first: Option<Vec<String>> = None;
        for workers in ["1", "3"] {
            let out = tempfile::tempdir().unwrap();
            let more = ["--workers", workers, "--set", "sinks.delta.enabled=false"];
            replay(input.path(), out.path(), &with(&settings(out.path(), 150), &more));
            let files = WINDOWED.iter().map(|stage| stage.0).chain(["live_stock", "stage_rejects"]);
            let read = |stream: &str| std::fs::read_to_string(out.path().join(format!("lines/{stream}.jsonl"))).unwrap();
            let texts: Vec<String> = files.map(read).collect();
            assert!(
                first.get_or_insert_with(|| texts.clone()) == &texts,
                "seed {seed}, {workers} workers: other bytes than with one worker"
            );
            let reference = Reference::new(input.path(), out.path());
            check_stock(&reference, &lines(out.path(), "live_stock"), &format!("seed {seed}, {workers} workers"));
        }
    }
}

/// Starts a replay at a pace, and kills it behind its first new `checkpoints` checkpoints.
#[track_caller]
fn killed_behind(input: &Path, out: &Path, checkpoints: usize, settings: &[&str]) {
    common::killed_behind(input, out, checkpoints, &[settings, &["--rate", "600"]].concat());
}

#[test]
fn our_stages_go_on_with_other_workers() {
    let seed = 12;
    let input = generated(seed, 6_000);
    let out = tempfile::tempdir().unwrap();
    let often = ["--set", "replay.checkpoints=true", "--set", "checkpoint.interval=50 ms", "--set", "sinks.delta.enabled=false"];
    let settings = settings(out.path(), 300);
    for workers in ["1", "4", "2"] {
        killed_behind(input.path(), out.path(), 4, &with(&settings, &[&often[..], &["--workers", workers]].concat()));
    }
    let command = with(&settings, &[&often[..], &["--workers", "3"]].concat());
    let output = replay_command(input.path(), out.path(), &command).args(["--set", "log.level=info"]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("going on from a checkpoint"), "{log}");
    check(input.path(), out.path(), &format!("seed {seed}, killed"));
}

/// A stage of the opening stock only: nothing changes it later.
#[test]
fn a_group_that_did_not_change_is_not_written_again() {
    let (input, folder, out) = (generated(13, 500), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let opening = "CREATE TABLE opening (sku TEXT, received BIGINT) WITH (connector = 'stream');
        INSERT INTO opening SELECT sku, count(*) FROM stock_movements WHERE event_time < '2026-01-05T10:00:00Z' GROUP BY sku";
    std::fs::write(folder.path().join("opening.sql"), opening).unwrap();
    let mut settings = settings(out.path(), 100);
    settings[1] = format!("stages.files={}", json!([folder.path().join("opening.sql")]));
    let often = ["replay.checkpoints=true", "checkpoint.interval=20 ms", "checkpoint.keep=1000", "sinks.delta.enabled=false"];
    let often: Vec<&str> = often.into_iter().flat_map(|set| ["--set", set]).chain(["--rate", "400", "--workers", "1"]).collect();
    replay(input.path(), out.path(), &with(&settings, &often));
    let movements = std::fs::read_to_string(input.path().join("inventory-opening.jsonl")).unwrap().lines().count();
    let is_behind_the_opening = |manifest: &Value| {
        let splits = manifest["header"]["splits"].as_array().unwrap();
        let at = splits.iter().position(|split| split == "inventory-opening.jsonl").unwrap();
        manifest["offsets"][at] == movements
    };
    let (mut kept, mut all) = (0, 0);
    for pair in manifests(out.path()).windows(2) {
        let (before, after) = (manifest(&pair[0]), manifest(&pair[1]));
        if !is_behind_the_opening(&before) {
            continue;
        }
        for (operator, bases) in after["bases"].as_object().unwrap().iter().filter(|(operator, _)| operator.starts_with("stage.")) {
            for (group, base) in bases.as_object().unwrap().iter().filter(|(_, base)| !base["file"].is_null()) {
                kept += usize::from(before["bases"][operator][group] == *base);
                all += 1;
            }
        }
    }
    // Each has its turn now and then, so that files of long ago are needed no more.
    assert!(all > 100 && kept > all * 9 / 10 && kept < all, "{kept} of {all} groups are those of the checkpoint before");
}

/// The first epoch of each stage that came, as the log says.
fn begins(out: &Path) -> BTreeMap<String, u64> {
    let records = epochs(out).lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
    let named = records.iter().filter_map(|record| Some((record["epoch"].as_u64()?, record["stages"].as_object()?)));
    named.flat_map(|(epoch, stages)| stages.keys().map(move |name| (name.clone(), epoch))).collect()
}

/// A job gets one stage and then another between its lives, of which none ends well: each reads all rows from its first epoch on, and none before.
#[test]
fn stages_that_come_to_a_job_begin_with_its_next_epoch() {
    let (seed, folder, out) = (16, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = generated(seed, 7_000);
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("10_seen.sql", "CREATE TABLE seen WITH (connector = 'stream'); INSERT INTO seen SELECT order_id, decision FROM order_decisions");
    write(
        "20_counted.sql",
        "CREATE TABLE counted (decision TEXT, orders BIGINT) WITH (connector = 'stream');
         INSERT INTO counted SELECT decision, count(*) FROM seen GROUP BY decision;
         CREATE TABLE counted_stock (sku TEXT, times BIGINT) WITH (connector = 'stream');
         INSERT INTO counted_stock SELECT sku, count(*) FROM stock_movements GROUP BY sku",
    );
    let often = ["--set", "replay.checkpoints=true", "--set", "checkpoint.interval=50 ms", "--set", "sinks.delta.enabled=false"];
    let mut settings = settings(out.path(), 200);
    let with_stages = |settings: &mut Vec<String>, files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| folder.path().join(file).display().to_string()).collect();
        settings[1] = format!("stages.files={}", json!(files));
    };
    let lives: [(&[&str], &str); 3] = [(&[], "2"), (&["10_seen.sql"], "1"), (&["10_seen.sql"], "3")];
    for (files, workers) in lives {
        with_stages(&mut settings, files);
        killed_behind(input.path(), out.path(), 3, &with(&settings, &[&often[..], &["--workers", workers]].concat()));
    }
    // Of the second process's epochs, only the first one knows which were there before.
    with_stages(&mut settings, &["10_seen.sql", "20_counted.sql"]);
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let hosts = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect::<Vec<_>>().join(",");
    drop(listeners);
    let pair = ["0", "1"].map(|process| {
        let cluster = ["--rate", "4000", "--workers", "2", "--hosts", &hosts, "--process", process];
        replay_command(input.path(), out.path(), &with(&settings, &[&often[..], &cluster].concat())).spawn().unwrap()
    });
    for process in pair {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    let begins = begins(out.path());
    let (seen_from, counted_from) = (begins["10_seen"], begins["20_counted"]);
    assert!(1 < seen_from && seen_from < counted_from, "{begins:?}");
    let since = |stream: &str, epoch: u64| -> Vec<Row> {
        lines(out.path(), stream).into_iter().filter(|row| row["epoch"].as_u64().unwrap() >= epoch).collect()
    };
    let decided = since("order_decisions", seen_from);
    let of_decision = |row: &Row| json!([row["epoch"], row["order_id"], row["decision"]]).to_string();
    let in_order = |rows: &[Row]| {
        let mut rows: Vec<String> = rows.iter().map(of_decision).collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(in_order(&lines(out.path(), "seen")), in_order(&decided), "seed {seed}, from epoch {seen_from}");

    let count = |rows: Vec<Row>, key: &str| {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        rows.iter().for_each(|row| *counts.entry(row[key].to_string()).or_default() += 1);
        counts
    };
    let last = |stream: &str, key: &str, value: &str| {
        let rows = lines(out.path(), stream);
        let rows = rows.iter().filter(|row| row["is_retract"] == false);
        rows.map(|row| (row[key].to_string(), row[value].as_i64().unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(
        last("counted", "decision", "orders"),
        count(since("seen", counted_from), "decision"),
        "seed {seed}, from epoch {counted_from}"
    );
    let of_stock = since("stock_movements", counted_from).into_iter().filter(|row| !row["sku"].is_null()).collect();
    let found = last("counted_stock", "sku", "times");
    let expected = count(of_stock, "sku");
    assert!(!expected.is_empty(), "no stock moved, so nothing is tested");
    assert_eq!(found.into_iter().filter(|(sku, _)| sku != "null").collect::<BTreeMap<_, _>>(), expected, "seed {seed}");
}

/// Event times are any that 64 bits have: windows end at each of them, also where they begin before the first.
#[test]
fn windows_at_the_ends_of_time() {
    let (input, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let order = |id: &str, event_time: Value| {
        let line = json!({"sku": "S", "quantity": 1, "unit_price": 1});
        json!({"type": "order_placed", "order_id": id, "customer_id": "c", "event_time": event_time, "currency": "USD", "lines": [line]})
    };
    let orders = [
        order("first", json!(-9_223_372_036_854_775_i64)),
        order("usual", json!("2026-01-05T10:00:00Z")),
        order("last", json!("2026-01-06T10:00:00Z")),
    ];
    std::fs::write(input.path().join("orders-000.jsonl"), orders.map(|order| format!("{order}\n")).concat()).unwrap();
    std::fs::write(input.path().join("inventory-000.jsonl"), "").unwrap();
    let stage = out.path().join("counted.sql");
    let text = "CREATE TABLE counted WITH (connector = 'stream');
        INSERT INTO counted SELECT rows FROM (
          SELECT hop(INTERVAL '1 minute', INTERVAL '10 minute') AS window, count(*) AS rows FROM order_decisions GROUP BY 1)";
    std::fs::write(&stage, text).unwrap();
    replay(input.path(), out.path(), &["--set", &format!("stages.files=[{stage:?}]")]);
    // Ten for each of the first two; those of the last are not over.
    assert_eq!(delta_table(out.path(), "counted").len(), 20);
}

#[test]
fn other_stages_than_at_the_beginning_are_refused() {
    let input = generated(14, 500);
    let out = tempfile::tempdir().unwrap();
    let settings = settings(out.path(), 1_000);
    replay(input.path(), out.path(), &with(&settings, &[]));
    let fails = |more: &[&str]| {
        let output = replay_command(input.path(), out.path(), &with(&settings, more)).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let message = fails(&["--set", "stages.files=[]"]);
    assert!(message.contains("begun with stage customer_sessions, which is not there now: put it back"), "{message}");
    assert!(message.contains("begin anew with another epoch log"), "{message}");
    let changed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(our_stages()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, changed.path().join(path.file_name().unwrap())).unwrap();
    }
    let revenue = changed.path().join("revenue_per_minute.sql");
    let text = std::fs::read_to_string(&revenue).unwrap().replace("1 minute", "2 minutes");
    std::fs::write(&revenue, text).unwrap();
    let message = fails(&["--set", &format!("stages.files=[\"{}/*.sql\"]", changed.path().display())]);
    assert!(message.contains("stage revenue_per_minute is not what it was") && !message.contains("live_stock"), "{message}");
}

/// A ClickHouse server, unless it cannot be had here.
fn clickhouse(folder: &Path) -> Option<ClickHouseServer> {
    let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
    match orderflow_fixtures::clickhouse_server::ensure_library() {
        Ok(_) => Some(ClickHouseServer::start(ServerOptions::new(folder, command)).unwrap()),
        Err(error @ (ClickHouseServerError::Platform | ClickHouseServerError::NpmMissing | ClickHouseServerError::Npm { .. })) => {
            eprintln!("SKIPPED ClickHouse, nothing of it was tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_sink_holds_what_the_lines_hold() {
    let (input, out, data) = (generated(15, 3_000), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = clickhouse(data.path());
    let mut settings = settings(out.path(), 700);
    if let Some(server) = &server {
        let set = ["sinks.clickhouse.enabled=true".to_owned(), format!("sinks.clickhouse.url={}", server.url())];
        settings.extend(set.into_iter().flat_map(|set| ["--set".to_owned(), set]));
    }
    replay(input.path(), out.path(), &with(&settings, &["--workers", "2"]));
    let form = "FORMAT JSONEachRow SETTINGS date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0";
    for stream in WINDOWED.iter().map(|stage| stage.0).chain(["live_stock"]) {
        let expected = sorted(lines(out.path(), stream));
        assert!(!expected.is_empty(), "{stream} has no rows, so nothing is tested");
        assert_eq!(sorted(common::delta_table(out.path(), stream).into_iter().map(times_as_text)), expected, "Delta table {stream}");
        if let Some(server) = &server {
            let text = server.post(&format!("SELECT * FROM orderflow.{stream} {form}")).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
            assert_eq!(sorted(rows), expected, "ClickHouse table {stream}");
        }
    }
}

/// Times as lines have them.
fn times_as_text(mut row: Row) -> Row {
    for (name, value) in &mut row {
        if let (true, Some(time)) = (["minute", "hour", "started", "ended", "held_at", "paid_at"].contains(&name.as_str()), value.as_i64())
        {
            *value = chrono::DateTime::from_timestamp_micros(time).unwrap().to_rfc3339().into();
        }
    }
    row
}

/// All messages of a topic.
fn messages(brokers: &str, topic: &str) -> Vec<Row> {
    let mut config = rdkafka::ClientConfig::new();
    for (name, value) in [("bootstrap.servers", brokers), ("group.id", "test"), ("enable.partition.eof", "true")] {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assigned = rdkafka::TopicPartitionList::new();
    assigned.add_partition_offset(topic, 0, rdkafka::Offset::Beginning).unwrap();
    consumer.assign(&assigned).unwrap();
    let (mut rows, started) = (Vec::new(), Instant::now());
    loop {
        assert!(started.elapsed() < Duration::from_secs(60), "{topic} is not read to its end: {rows:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => rows.push(serde_json::from_slice(message.payload().unwrap()).unwrap()),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return rows,
            _ => {}
        }
    }
}

#[test]
fn a_stage_by_itself_reads_and_writes_topics() {
    let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
    // These brokers make no topics when they are asked by their protocol.
    for (topic, partitions) in [("payments", 3), ("sums_1", 1), ("sums_3", 1)] {
        cluster.create_topic(topic, partitions, 1).unwrap();
    }
    let brokers = cluster.bootstrap_servers();
    let producer: BaseProducer = rdkafka::ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for number in 0..600_i64 {
        let minute = format!("2026-01-05T10:{:02}:00Z", number / 60);
        // Over several lines, as people may write it.
        let text = format!("{{\n \"at\": \"2026-01-05T10:{:02}:{:02}Z\",\r\n \"amount\": {number}}}", number / 60, number % 60);
        producer.send(BaseRecord::<str, str>::to("payments").partition((number % 3) as i32).payload(&text)).unwrap();
        *expected.entry(minute).or_default() += number;
    }
    producer.send(BaseRecord::<str, str>::to("payments").partition(0).payload("nonsense")).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let run = |sink: &str, options: &str, workers: &str| {
        let text = format!(
            "CREATE TABLE payments (at TIMESTAMP, amount BIGINT, WATERMARK FOR at) WITH (connector = 'kafka', topic = 'payments', format = 'json', type = 'source');
             CREATE TABLE sums (minute TIMESTAMP, amount BIGINT) WITH (connector = 'kafka', bootstrap_servers = '{brokers}', topic = '{sink}', type = 'sink'{options});
             INSERT INTO sums SELECT window.start, amount FROM (
               SELECT tumble(INTERVAL '1 minute') AS window, sum(amount) AS amount FROM payments GROUP BY window)"
        );
        let path = folder.path().join("sums.sql");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orderflow"));
        command.args(["sql", "run"]).arg(path).args(["--workers", workers, "--set", &format!("source.kafka.brokers={brokers}")]);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for workers in ["1", "3"] {
        let sink = format!("sums_{workers}");
        let (whole, said) = run(&sink, ", format = 'json'", workers);
        assert!(whole, "{said}");
        assert!(said.contains("601 messages of topic payments") && said.contains("1 messages could not be read"), "{said}");
        let found = messages(&brokers, &sink);
        let sums: BTreeMap<String, i64> = found
            .iter()
            .map(|row| (format!("{}Z", row["minute"].as_str().unwrap().trim_end_matches('Z')), row["amount"].as_i64().unwrap()))
            .collect();
        assert_eq!(sums, expected, "{workers} workers");
        assert_eq!(found.len(), expected.len(), "each once");
    }
    let (whole, said) = run("sums_parquet", ", format = 'parquet'", "1");
    assert!(!whole && said.contains("not of 'parquet'"), "{said}");
}
