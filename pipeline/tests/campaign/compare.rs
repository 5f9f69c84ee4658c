//! What sinks besides Delta Lake hold, row for row against the serial reference.

use std::path::Path;

use chrono::{DateTime, SecondsFormat};
use orderflow_fixtures::clickhouse_server::ClickHouseServer;
use orderflow_fixtures::reference::Row;
use serde_json::Value;

use super::common::{Tables, delta_table};
use super::{broker, stage};

/// Columns that are times.
const TIMES: [&str; 2] = ["event_time", "sealed_at"];
/// Whose text is free.
const FREE: &str = "error";

/// A row of the reference as sinks write it: times as RFC 3339, bytes as `bytes` makes of them.
fn shown(row: &Row, bytes: fn(&str) -> String) -> Row {
    let column = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Number(micros) if TIMES.contains(&name.as_str()) => {
                let micros = micros.as_i64().expect("times are whole microseconds");
                let time = DateTime::from_timestamp_micros(micros);
                time.map_or_else(|| micros.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Micros, true)).into()
            }
            Value::String(hex) if name == "raw" => bytes(hex).into(),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    row.iter().map(column).collect()
}

/// Bytes of hexadecimal digits as text.
fn as_text(hex: &str) -> String {
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64()),
        _ => found == expected,
    }
}

/// By epoch and place, then by all that is in them.
fn in_order(rows: &mut [Row]) {
    rows.sort_by_cached_key(|row| {
        let number = |name: &str| row.get(name).and_then(Value::as_i64).unwrap_or(i64::MAX);
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let units = ["quantity", "on_hand", "reserved", "orders"].map(number);
        (["epoch", "split", "offset"].map(number), ["order_id", "sku", "kind", "decision"].map(text), units)
    });
}

#[track_caller]
fn assert_rows(found: &[Row], expected: &[Row], what: &str) {
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (name, value) in expected.iter().filter(|(name, _)| *name != FREE) {
            let held = found.get(name).unwrap_or(&Value::Null);
            assert!(same(held, value), "{what} row {at}: {name} is {held}, expected {value}: {found:?}");
        }
    }
    assert_eq!(found.len(), expected.len(), "{what} has another number of rows");
}

fn rows_of_lines(text: &str) -> Vec<Row> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Tables of streams besides the job's own.
#[track_caller]
pub fn delta(out: &Path, streams: &[&str], expected: &Tables, what: &str) {
    for &stream in streams {
        let (mut found, mut rows) = (delta_table(out, stream), expected[stream].clone());
        in_order(&mut found);
        in_order(&mut rows);
        assert_rows(&found, &rows, &format!("{what} {stream}"));
    }
}

/// Files of lines: those of the job's own streams in the order in which they were written.
#[track_caller]
pub fn jsonl(folder: &Path, expected: &Tables, what: &str) {
    for (stream, rows) in expected {
        let mut found = rows_of_lines(&std::fs::read_to_string(folder.join(format!("{stream}.jsonl"))).unwrap());
        let mut rows: Vec<Row> = rows.iter().map(|row| shown(row, as_text)).collect();
        if stage::STREAMS.contains(&stream.as_str()) {
            in_order(&mut found);
            in_order(&mut rows);
        }
        assert_rows(&found, &rows, &format!("{what} {stream}"));
    }
}

/// Topics as a reader of committed messages has them.
#[track_caller]
pub fn kafka(brokers: &str, prefix: &str, expected: &Tables, what: &str) {
    for (stream, rows) in expected {
        let read = broker::read(brokers, &format!("{prefix}{stream}"), rows.len());
        let mut found: Vec<Row> = read.into_iter().map(|message| serde_json::from_value(message.value).unwrap()).collect();
        let mut rows: Vec<Row> = rows.iter().map(|row| shown(row, as_text)).collect();
        in_order(&mut found);
        in_order(&mut rows);
        assert_rows(&found, &rows, &format!("{what} {stream}"));
    }
}

/// Tables of a database, and the totals that views made of them.
#[track_caller]
pub fn clickhouse(server: &ClickHouseServer, database: &str, expected: &Tables, what: &str) {
    for (stream, rows) in expected {
        let columns = if stream == "dead_letters" { "* REPLACE(lower(hex(raw)) AS raw)" } else { "*" };
        let form = "FORMAT JSONEachRow SETTINGS date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0";
        let mut found = rows_of_lines(&server.post(&format!("SELECT {columns} FROM {database}.{stream} {form}")).unwrap());
        let mut rows: Vec<Row> = rows.iter().map(|row| shown(row, str::to_owned)).collect();
        in_order(&mut found);
        in_order(&mut rows);
        assert_rows(&found, &rows, &format!("{what} {stream}"));
    }
    for (of_view, of_table) in [
        ("sum(orders) FROM revenue_by_minute", "count() FROM order_decisions WHERE decision IN ('accepted', 'review')"),
        (
            "sum(revenue) FROM revenue_by_minute",
            "sum(toInt128(ifNull(total, 0))) FROM order_decisions WHERE decision IN ('accepted', 'review')",
        ),
        ("sum(orders) FROM fraud_by_hour", "count() FROM order_decisions WHERE fraud_score IS NOT NULL"),
        ("sum(orders) FROM decisions_by_minute", "count() FROM order_decisions"),
    ] {
        let total = |sql: &str| server.post(&format!("SELECT {}", sql.replace("FROM ", &format!("FROM {database}.")))).unwrap();
        assert_eq!(total(of_view), total(of_table), "{what}: {of_view}");
    }
}
