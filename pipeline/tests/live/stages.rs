//! Streams of stages as topics.

use std::path::Path;

use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use serde_json::Value;

use crate::common::replay;
use crate::{broker, topics};

const STAGE: &str = "
CREATE TABLE sold (sku TEXT PRIMARY KEY, units BIGINT) WITH (connector = 'stream', type = 'sink', format = 'debezium_json');
INSERT INTO sold SELECT sku, sum(quantity) FROM order_lines GROUP BY sku;

CREATE TABLE alerts (order_id TEXT PRIMARY KEY, amount BIGINT) WITH (connector = 'kafka', topic = 'fraud.alerts', format = 'json', type = 'sink');
INSERT INTO alerts SELECT order_id, amount FROM order_decisions WHERE reason = 'fraud' OR decision = 'review';
";

fn values<T: AsRef<[u8]>>(messages: impl IntoIterator<Item = T>) -> Vec<String> {
    let value = |message: T| serde_json::from_slice::<Value>(message.as_ref()).unwrap().to_string();
    let mut values: Vec<String> = messages.into_iter().map(value).collect();
    values.sort_unstable();
    values
}

fn lines(out: &Path, stream: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read(out.join("lines").join(format!("{stream}.jsonl"))).unwrap();
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

#[test]
fn streams_of_stages_are_topics() {
    let Some((_folder, broker)) = broker("streams_of_stages_are_topics") else { return };
    let (input, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = GenerateSettings { orders: 2_000, skus: 40, customers: 300, fraud_share: 0.1, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    let stage = input.path().join("sold.sql");
    std::fs::write(&stage, STAGE).unwrap();
    let set = [
        format!("stages.files=[\"{}\"]", stage.display()),
        "epoch.rows_max=300".to_owned(),
        "sinks.delta.enabled=false".to_owned(),
        "sinks.jsonl.enabled=true".to_owned(),
        format!("sinks.jsonl.path={}", out.path().join("lines").display()),
        "sinks.kafka.enabled=true".to_owned(),
        format!("sinks.kafka.brokers={}", broker.address()),
    ];
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    replay(input.path(), out.path(), &[&set[..], &["--workers", "2"]].concat());

    let topic = |name: &str| topics::read(&broker.address(), name).into_iter().flat_map(|rows| rows.into_values()).collect::<Vec<_>>();
    let sold = values(topic("orderflow.sold"));
    assert!(sold.len() > 40 && sold.iter().any(|change| change.contains("\"op\":\"u\"")), "{} changes", sold.len());
    assert_eq!(sold, values(lines(out.path(), "sold")), "messages are the lines");

    let is_alert = |row: &Value| row["reason"] == "fraud" || row["decision"] == "review";
    let decisions = lines(out.path(), "order_decisions").into_iter().map(|line| serde_json::from_slice::<Value>(&line).unwrap());
    let expected = decisions
        .filter(is_alert)
        .map(|row| serde_json::json!({"epoch": row["epoch"], "order_id": row["order_id"], "amount": row["amount"]}).to_string());
    let expected = values(expected);
    assert!(!expected.is_empty(), "there are no alerts, so nothing is tested");
    assert_eq!(values(topic("fraud.alerts")), expected);
    assert!(!out.path().join("lines/fraud.alerts.jsonl").exists(), "it is for Kafka alone");
}
