//! What the sinks hold, as the reference has it.

use chrono::DateTime;
use orderflow_fixtures::clickhouse_server::ClickHouseServer;
use orderflow_fixtures::reference::{Row, STREAMS};
use serde_json::Value;

use crate::common::Tables;
use crate::topics;

/// Rows of the topics that a Kafka sink wrote, for readers of committed messages.
pub fn kafka(brokers: &str) -> Tables {
    let rows = |stream: &str| {
        let partitions = topics::read(brokers, &format!("orderflow.{stream}"));
        partitions.iter().flat_map(|rows| rows.values()).map(|message| serde_json::from_slice(message).unwrap()).collect()
    };
    STREAMS.iter().map(|&stream| (stream.to_owned(), rows(stream))).collect()
}

/// Rows of a ClickHouse sink's tables.
pub fn clickhouse(server: &ClickHouseServer, database: &str) -> Tables {
    let rows = |stream: &str| -> Vec<Row> {
        let columns =
            format!("SELECT name, type FROM system.columns WHERE database = '{database}' AND table = '{stream}' ORDER BY position");
        let columns = server.post(&columns).unwrap();
        let shown = columns.lines().filter_map(|line| line.split_once('\t')).map(|(name, kind)| match kind {
            _ if name == "raw" => format!("lower(hex({name})) AS {name}"),
            _ if kind.contains("DateTime64(6") => format!("toUnixTimestamp64Micro({name}) AS {name}"),
            _ if kind.contains("DateTime64(3") => format!("toUnixTimestamp64Milli({name}) * 1000 AS {name}"),
            _ => format!("`{name}`"),
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT * FROM (SELECT {shown} FROM {database}.{stream}) SETTINGS output_format_json_quote_64bit_integers = 0 FORMAT JSONEachRow"
        );
        server.post(&sql).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    STREAMS.iter().map(|&stream| (stream.to_owned(), rows(stream))).collect()
}

/// Compares rows in any order: all columns but the text of errors, which is free.
#[track_caller]
pub fn assert_same_rows(found: &Tables, expected: &Tables, what: &str) {
    for stream in STREAMS {
        let columns: Vec<&String> =
            expected[stream].first().map(|row| row.keys().filter(|name| *name != "error").collect()).unwrap_or_default();
        let texts = |rows: &[Row]| {
            let mut texts: Vec<String> = rows.iter().map(|row| text(row, &columns)).collect();
            texts.sort_unstable();
            texts
        };
        let (found, expected) = (texts(&found[stream]), texts(&expected[stream]));
        let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        let counts = format!("{} rows found, {} expected", found.len(), expected.len());
        assert!(differs.is_none(), "{what}: {stream}, {counts}: {differs:#?}");
        assert_eq!(found.len(), expected.len(), "{what}: {stream}");
    }
}

fn text(row: &Row, columns: &[&String]) -> String {
    let values = columns.iter().map(|name| match (name.as_str(), &row[*name]) {
        ("event_time" | "sealed_at", Value::String(time)) => DateTime::parse_from_rfc3339(time).unwrap().timestamp_micros().to_string(),
        ("fraud_score", Value::Number(number)) => number.as_f64().unwrap().to_string(),
        // Bytes are hexadecimal in the reference, and text in a message.
        ("raw", Value::String(raw)) => match hex(raw) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => raw.clone(),
        },
        (_, value) => value.to_string(),
    });
    values.collect::<Vec<_>>().join("|")
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (!text.is_empty() && text.len().is_multiple_of(2)).then(|| (0..text.len()).step_by(2).map(digits).collect()).flatten()
}
