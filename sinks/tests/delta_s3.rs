//! Delta tables in a store that speaks S3's protocol. These tests need one, and say so when they have none:
//!
//! ```text
//! pip install 'moto[server]' && moto_server -p 5000 &
//! curl -X PUT http://127.0.0.1:5000/orderflow-test
//! ORDERFLOW_TEST_S3=http://127.0.0.1:5000 cargo test -p orderflow-sinks --test delta_s3
//! ```
//!
//! The bucket `orderflow-test` must exist; for a store with users, set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail it")]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use deltalake::datafusion::prelude::{SessionContext, col};
use orderflow_operators::epoch::Epoch;
use orderflow_sinks::delta::{DeltaSettings, DeltaSink};
use orderflow_sinks::{EpochRows, Sink, SinkError};
use url::Url;

const BUCKET: &str = "orderflow-test";

/// A folder of its own in the store, if there is one.
fn settings(test: &str) -> Option<DeltaSettings> {
    let Ok(endpoint) = std::env::var("ORDERFLOW_TEST_S3") else {
        // Past the capture of a test's output: nothing was tested.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no S3 store, set ORDERFLOW_TEST_S3 (see the head of tests/delta_s3.rs)");
        return None;
    };
    let key = |variable: &str| std::env::var(variable).unwrap_or_else(|_| "test".to_owned());
    let options = [
        ("aws_endpoint", endpoint),
        ("aws_region", "us-east-1".to_owned()),
        ("aws_access_key_id", key("AWS_ACCESS_KEY_ID")),
        ("aws_secret_access_key", key("AWS_SECRET_ACCESS_KEY")),
    ];
    Some(DeltaSettings {
        url: format!("s3://{BUCKET}/{test}-{}", uuid::Uuid::new_v4()),
        storage: options.map(|(name, value)| (name.to_owned(), value)).into(),
        file_rows_target: 3,
        checkpoint_interval: 4,
        optimize_commits: 5,
        ..DeltaSettings::default()
    })
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(["epoch", "offset"].map(|name| Field::new(name, DataType::Int64, false)).to_vec()))
}

fn rows(epoch: u64) -> EpochRows {
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![epoch as i64; 2])), Arc::new(Int64Array::from(vec![0, 1]))];
    EpochRows { epoch: Epoch(epoch), rows: RecordBatch::try_new(schema(), columns).unwrap() }
}

fn sink(settings: &DeltaSettings) -> DeltaSink {
    DeltaSink::new("job", "order_lines", schema(), settings.clone()).unwrap()
}

/// The epochs in the table, as another reader finds them by its URL.
async fn epochs(settings: &DeltaSettings) -> Vec<i64> {
    let url = Url::parse(&format!("{}/order_lines", settings.url)).unwrap();
    let table = deltalake::open_table_with_storage_options(url, settings.storage.clone().into_iter().collect()).await.unwrap();
    let frame = SessionContext::new().read_table(table.table_provider().await.unwrap()).unwrap();
    let batches = frame.sort(vec![col("epoch").sort(true, false)]).unwrap().collect().await.unwrap();
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn twice(epochs: impl Iterator<Item = i64>) -> Vec<i64> {
    epochs.flat_map(|epoch| [epoch, epoch]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_epoch_once_through_kills_and_housekeeping() {
    let Some(settings) = settings("kills") else { return };
    let settings = DeltaSettings { vacuum_retention: Duration::from_millis(1), ..settings };
    for life in 0..4_u64 {
        let mut sink = sink(&settings);
        assert_eq!(sink.recover().await.unwrap().committed, Epoch(life * 6));
        for epoch in life * 6 + 1..=life * 6 + 6 {
            sink.write(rows(epoch)).await.unwrap();
            sink.commit(Epoch(epoch)).await.unwrap();
            sink.maintain().await.unwrap();
        }
        // Killed with rows that are not committed.
        for epoch in life * 6 + 7..=life * 6 + 9 {
            sink.write(rows(epoch)).await.unwrap();
        }
    }
    assert_eq!(epochs(&settings).await, twice(1..=24));
}

/// The store creates an entry of the log only if it is absent: otherwise the second would replace the first's.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_jobs_one_gets_through() {
    let Some(settings) = settings("two-jobs") else { return };
    let (mut one, mut other) = (sink(&settings), sink(&settings));
    for sink in [&mut one, &mut other] {
        sink.recover().await.unwrap();
        sink.write(rows(1)).await.unwrap();
    }
    let (one_done, other_done) = tokio::join!(one.commit(Epoch(1)), other.commit(Epoch(1)));
    assert!(one_done.is_ok() != other_done.is_ok(), "{one_done:?}, {other_done:?}");
    assert_eq!(epochs(&settings).await, twice(1..=1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_refused() {
    let Some(settings) = settings("missing") else { return };
    let settings = DeltaSettings { url: "s3://orderflow-no-such-bucket/tables".to_owned(), ..settings };
    let error = sink(&settings).recover().await.unwrap_err();
    assert!(matches!(error, SinkError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_options_are_refused() {
    let storage = BTreeMap::from([("aws_acces_key".to_owned(), "x".to_owned())]);
    let settings = DeltaSettings { url: format!("s3://{BUCKET}/tables"), storage, ..DeltaSettings::default() };
    let error = DeltaSink::new("job", "order_lines", schema(), settings).err().expect("the option is misspelt");
    assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("aws_acces_key")), "{error}");
}
