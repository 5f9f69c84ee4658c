mod faults;
mod kills;
mod maintenance;
mod tables;

use std::path::Path;
use std::time::Duration;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use deltalake::datafusion::prelude::{SessionContext, col};
use url::Url;

use super::*;

/// Every type that streams have.
fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("epoch", DataType::Int64, false),
        Field::new("split", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("order_id", DataType::Utf8, false),
        Field::new("raw", DataType::Binary, true),
        Field::new("event_time", time, false),
        Field::new("detail", DataType::List(Arc::new(Field::new("item", DataType::Utf8, false))), false),
        Field::new("total", DataType::Int64, true),
        Field::new("fraud_score", DataType::Float64, true),
    ]))
}

/// Rows of an epoch, as a function of its number.
fn rows(epoch: u64) -> EpochRows {
    let count = 1 + epoch as usize % 4;
    let each = 0..count as i64;
    let mut detail = ListBuilder::new(StringBuilder::new()).with_field(Field::new("item", DataType::Utf8, false));
    for row in each.clone() {
        detail.append_value((0..row).map(|i| Some(format!("rule_{i}"))));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![epoch as i64; count])),
        Arc::new(Int32Array::from(vec![0; count])),
        Arc::new(Int64Array::from_iter_values(each.clone())),
        Arc::new(StringArray::from_iter_values(each.clone().map(|i| format!("o-{epoch}-{i}")))),
        Arc::new(BinaryArray::from_iter(each.clone().map(|i| (i > 0).then_some(b"\xff\x00")))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(each.clone().map(|i| 1_767_607_200_123_456 + i)).with_timezone("UTC")),
        Arc::new(detail.finish()),
        Arc::new(Int64Array::from_iter(each.clone().map(|i| (i != 1).then_some(i)))),
        Arc::new(Float64Array::from_iter(each.map(|i| (i > 0).then_some(0.5)))),
    ];
    EpochRows { epoch: Epoch(epoch), rows: RecordBatch::try_new(schema(), columns).unwrap() }
}

fn settings(folder: &Path) -> DeltaSettings {
    DeltaSettings { url: folder.display().to_string(), file_rows_target: 5, checkpoint_interval: 10, ..DeltaSettings::default() }
}

fn sink_with(settings: DeltaSettings) -> DeltaSink {
    DeltaSink::new("job", "order_decisions", schema(), settings).unwrap()
}

fn sink(folder: &Path) -> DeltaSink {
    sink_with(settings(folder))
}

fn table_folder(folder: &Path) -> std::path::PathBuf {
    folder.join("order_decisions")
}

async fn open(folder: &Path) -> DeltaTable {
    deltalake::open_table(Url::from_directory_path(table_folder(folder)).unwrap()).await.unwrap()
}

/// The table as delta-rs reads it, in canonical order.
async fn read(table: &DeltaTable) -> RecordBatch {
    let frame = SessionContext::new().read_table(table.table_provider().await.unwrap()).unwrap();
    let order = ["epoch", "split", "offset"].map(|name| col(name).sort(true, false)).to_vec();
    let batches = frame.sort(order).unwrap().collect().await.unwrap();
    concat_batches(&batches.first().map_or_else(schema, |b| b.schema()), &batches).unwrap()
}

/// The table has the rows of `epochs`, each once, and nothing else.
async fn assert_holds(folder: &Path, epochs: impl IntoIterator<Item = u64>) {
    let found = read(&open(folder).await).await;
    let batches: Vec<RecordBatch> = epochs.into_iter().map(|epoch| rows(epoch).rows).collect();
    let expected = concat_batches(&schema(), &batches).unwrap();
    let place = |batch: &RecordBatch| -> Vec<(i64, String)> {
        let epochs = batch.column_by_name("epoch").unwrap().as_primitive::<Int64Type>().values().to_vec();
        let ids = arrow::compute::cast(batch.column_by_name("order_id").unwrap(), &DataType::Utf8).unwrap();
        epochs.into_iter().zip(ids.as_string::<i32>().iter().map(|id| id.unwrap().to_owned())).collect()
    };
    assert_eq!(place(&found), place(&expected));
}

async fn write_all(sink: &mut DeltaSink, epochs: impl IntoIterator<Item = u64>) {
    for epoch in epochs {
        sink.write(rows(epoch)).await.unwrap();
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
