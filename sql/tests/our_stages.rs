//! Our stages over the streams of the recorded fixture, as the serial reference gives them. `UPDATE_GOLDEN=1` writes what comes out.
//!
//! `live_stock` is not among them: which of two streams' rows is the last one is known in the job only.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use orderflow_fixtures::reference::{self, EpochRecord, ReferenceSettings};
use orderflow_sql::run::{RunSettings, render, run};
use orderflow_sql::stage::Stage;

/// The streams' columns that stages read. Rows are late by less than a day.
const DECLARED: &str = "
CREATE TABLE order_decisions (order_id TEXT, customer_id TEXT, event_time TIMESTAMP, currency TEXT, total BIGINT, amount BIGINT, unit_count BIGINT,
  decision TEXT, reason TEXT, detail TEXT[], fraud_score DOUBLE, billing_country TEXT,
  WATERMARK FOR event_time AS event_time - INTERVAL '1 day'
) WITH (connector = 'single_file', path = 'order_decisions.json', format = 'json', type = 'source');
CREATE TABLE order_lines (order_id TEXT, event_time TIMESTAMP, sku TEXT, quantity BIGINT, WATERMARK FOR event_time AS event_time - INTERVAL '1 day'
) WITH (connector = 'single_file', path = 'order_lines.json', format = 'json', type = 'source');
CREATE TABLE reservation_events (order_id TEXT, sku TEXT, quantity BIGINT, kind TEXT, event_time TIMESTAMP, on_hand BIGINT, reserved BIGINT,
  WATERMARK FOR event_time AS event_time - INTERVAL '1 day'
) WITH (connector = 'single_file', path = 'reservation_events.json', format = 'json', type = 'source');
";

fn lines(folder: &Path, text: &str, epoch_rows: u64, workers: usize) -> Vec<String> {
    let stage = Stage::plan(&format!("{DECLARED}{text}"), &[]).unwrap_or_else(|error| panic!("{error}"));
    let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
    let to = bytes.clone();
    let sink = Box::new(move |_: usize, edge: &_, _: &_, rows: RecordBatch| {
        to.lock().unwrap().extend(render(None, edge, &rows)?);
        Ok(())
    });
    let settings = RunSettings { base: folder.to_owned(), workers, epoch_rows, stop_after: None, resume: None };
    let summary = run(&stage, settings, sink).unwrap();
    assert_eq!((summary.late, summary.errors, summary.malformed), (0, 0, 0), "{:?} {:?}", summary.first_error, summary.first_malformed);
    let text = String::from_utf8(std::mem::take(&mut *bytes.lock().unwrap())).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn stages_over_the_recorded_fixture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let splits = reference::read_folder(&root.join("../fixtures/recorded/small")).unwrap();
    let epochs = EpochRecord::cut(&splits, 100, 1_767_607_200_000, 100);
    let streams = reference::run(&ReferenceSettings::default(), None, &splits, &epochs).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, rows) in streams.iter() {
        let text: String = rows.iter().map(|row| format!("{}\n", serde_json::to_string(row).unwrap())).collect();
        std::fs::write(folder.path().join(format!("{name}.json")), text).unwrap();
    }
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for name in
        ["revenue_per_minute", "fraud_rate_per_hour", "stock_outs_per_hour", "top_skus_per_hour", "customer_sessions", "late_payments"]
    {
        let text = std::fs::read_to_string(root.join(format!("stages/{name}.sql"))).unwrap();
        let golden = root.join(format!("tests/our_stages/{name}.json"));
        let whole = lines(folder.path(), &text, 1_000_000, 1);
        if update {
            std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
            std::fs::write(&golden, whole.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
        assert!(!expected.is_empty(), "{name} has rows");
        assert_eq!(whole.join("\n"), expected.trim_end(), "{name}");
        assert_eq!(lines(folder.path(), &text, 50, 2).join("\n"), expected.trim_end(), "{name}, in epochs of 50 rows with 2 workers");
    }
}
