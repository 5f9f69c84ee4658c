//! A SQL stage that all jobs have: what it makes of each decision, and what it counts, in every sink.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use orderflow_fixtures::reference::Row;
use serde_json::{Value, json};

/// Its streams: a row for each decision, and how many of each kind there were so far.
pub const STREAMS: [&str; 2] = ["decided", "decided_counts"];

const SQL: &str = "
CREATE TABLE decided (order_id TEXT, decision TEXT) WITH (connector = 'stream');
INSERT INTO decided SELECT order_id, decision FROM order_decisions;
CREATE TABLE decided_counts (decision TEXT PRIMARY KEY, orders BIGINT) WITH (connector = 'stream');
INSERT INTO decided_counts SELECT decision, count(*) FROM order_decisions GROUP BY decision;
";

/// Writes its file.
pub fn write(folder: &Path) -> PathBuf {
    let path = folder.join("decided.sql");
    std::fs::write(&path, SQL).unwrap();
    path
}

fn row(value: Value) -> Row {
    value.as_object().unwrap().clone()
}

/// What must come out for these decisions.
pub fn expected(decisions: &[Row]) -> [(String, Vec<Row>); 2] {
    let of = |row: &Row, name: &str| row[name].clone();
    let decided =
        decisions.iter().map(|d| row(json!({"epoch": of(d, "epoch"), "order_id": of(d, "order_id"), "decision": of(d, "decision")})));
    let mut counts = Vec::new();
    let mut known: BTreeMap<&str, u64> = BTreeMap::new();
    for epoch in decisions.chunk_by(|a, b| a["epoch"] == b["epoch"]) {
        let before = known.clone();
        for row in epoch {
            *known.entry(row["decision"].as_str().unwrap()).or_default() += 1;
        }
        let touched: BTreeSet<&str> = epoch.iter().map(|row| row["decision"].as_str().unwrap()).collect();
        let mut push = |decision: &str, orders: u64, is_retract: bool| {
            counts.push(row(json!({"epoch": of(&epoch[0], "epoch"), "is_retract": is_retract, "decision": decision, "orders": orders})));
        };
        for decision in touched {
            before.get(decision).iter().for_each(|&&orders| push(decision, orders, true));
            push(decision, known[decision], false);
        }
    }
    [(STREAMS[0].to_owned(), decided.collect()), (STREAMS[1].to_owned(), counts)]
}
