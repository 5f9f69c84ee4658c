//! What readers find.

use expect_test::expect;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;

#[tokio::test]
async fn rows_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, [3]).await;
    sink.commit(Epoch(3)).await.unwrap();
    let table = open(folder.path()).await;
    expect![[r#"
        +-------+-------+--------+----------+------+-----------------------------+--------------------------+-------+-------------+
        | epoch | split | offset | order_id | raw  | event_time                  | detail                   | total | fraud_score |
        +-------+-------+--------+----------+------+-----------------------------+--------------------------+-------+-------------+
        | 3     | 0     | 0      | o-3-0    |      | 2026-01-05T10:00:00.123456Z | []                       | 0     |             |
        | 3     | 0     | 1      | o-3-1    | ff00 | 2026-01-05T10:00:00.123457Z | [rule_0]                 |       | 0.5         |
        | 3     | 0     | 2      | o-3-2    | ff00 | 2026-01-05T10:00:00.123458Z | [rule_0, rule_1]         | 2     | 0.5         |
        | 3     | 0     | 3      | o-3-3    | ff00 | 2026-01-05T10:00:00.123459Z | [rule_0, rule_1, rule_2] | 3     | 0.5         |
        +-------+-------+--------+----------+------+-----------------------------+--------------------------+-------+-------------+
    "#]]
    .assert_eq(&format!("{}\n", arrow::util::pretty::pretty_format_batches(&[read(&table).await]).unwrap()));
}

#[tokio::test]
async fn types_are_those_of_the_specification() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    let schema: serde_json::Value = serde_json::to_value(open(folder.path()).await.snapshot().unwrap().schema()).unwrap();
    let types: String = schema["fields"].as_array().unwrap().iter().map(|f| format!("{} {}\n", f["name"], f["type"])).collect();
    expect![[r#"
        "epoch" "long"
        "split" "integer"
        "offset" "long"
        "order_id" "string"
        "raw" "binary"
        "event_time" "timestamp"
        "detail" {"type":"array","elementType":"string","containsNull":false}
        "total" "long"
        "fraud_score" "double"
    "#]]
    .assert_eq(&types);
}

/// A file's own schema, for readers that look no further.
#[tokio::test]
async fn files_follow_parquet_rules_for_lists() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, [1]).await;
    sink.commit(Epoch(1)).await.unwrap();
    let file = names(&table_folder(folder.path())).into_iter().find(|name| name.ends_with(".snappy.parquet")).unwrap();
    let file = std::fs::File::open(table_folder(folder.path()).join(file)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let paths: Vec<String> = reader.parquet_schema().columns().iter().map(|c| c.path().string()).collect();
    assert!(paths.contains(&"detail.list.element".to_owned()), "{paths:?}");
    expect!["Timestamp(Microsecond, Some(\"UTC\"))"]
        .assert_eq(&format!("{:?}", reader.schema().field_with_name("event_time").unwrap().data_type()));
}

#[tokio::test]
async fn files_have_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, [3]).await;
    sink.commit(Epoch(3)).await.unwrap();
    let statistics = open(folder.path()).await.snapshot().unwrap().log_data().iter().next().unwrap().stats().unwrap();
    let statistics: serde_json::Value = serde_json::from_str(&statistics).unwrap();
    expect![[r#"
        {
          "numRecords": 4,
          "minValues": {
            "epoch": 3,
            "split": 0,
            "offset": 0,
            "order_id": "o-3-0",
            "event_time": "2026-01-05T10:00:00.123456Z",
            "total": 0
          },
          "maxValues": {
            "epoch": 3,
            "split": 0,
            "offset": 3,
            "order_id": "o-3-3",
            "event_time": "2026-01-05T10:00:00.123459Z",
            "total": 3
          },
          "nullCount": {
            "epoch": 0,
            "split": 0,
            "offset": 0,
            "order_id": 0,
            "raw": 1,
            "event_time": 0,
            "total": 1
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&statistics).unwrap());
}

/// An order may claim to be of any time; no such row makes a table unreadable or stops the job.
#[tokio::test]
async fn times_beyond_the_calendar_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink_with(DeltaSettings { optimize_commits: 2, ..settings(folder.path()) });
    sink.recover().await.unwrap();
    let mut times = Vec::new();
    for (epoch, time) in [(1, i64::MIN), (2, i64::MAX), (3, 300_000_000_000_000_000)] {
        let EpochRows { epoch, rows } = rows(epoch * 4);
        let mut columns = rows.columns().to_vec();
        columns[5] = Arc::new(TimestampMicrosecondArray::from(vec![time]).with_timezone("UTC"));
        let rows = RecordBatch::try_new(schema(), columns).unwrap();
        sink.write(EpochRows { epoch, rows }).await.unwrap();
        sink.commit(epoch).await.unwrap();
        sink.maintain().await.unwrap();
        times.push(time);
    }
    let found = read(&open(folder.path()).await).await;
    assert_eq!(found.column(5).as_primitive::<arrow::datatypes::TimestampMicrosecondType>().values().to_vec(), times);
}

#[tokio::test]
async fn rows_are_divided_into_files_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, 1..=8).await;
    sink.commit(Epoch(8)).await.unwrap();
    assert_holds(folder.path(), 1..=8).await;
    let table = open(folder.path()).await;
    let mut ranges: Vec<String> = table
        .snapshot()
        .unwrap()
        .log_data()
        .iter()
        .map(|file| {
            let s: serde_json::Value = serde_json::from_str(&file.stats().unwrap()).unwrap();
            format!("{}..={}: {}", s["minValues"]["epoch"], s["maxValues"]["epoch"], s["numRecords"])
        })
        .collect();
    ranges.sort();
    expect![[r#"
        ["1..=2: 5", "3..=4: 5", "5..=6: 5", "7..=8: 5"]"#]]
    .assert_eq(&format!("{ranges:?}"));
}

#[tokio::test]
async fn a_hundred_commits_with_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sink(folder.path());
    first.recover().await.unwrap();
    for epoch in 1..=105 {
        write_all(&mut first, [epoch]).await;
        first.commit(Epoch(epoch)).await.unwrap();
    }
    let log = names(&table_folder(folder.path()).join("_delta_log"));
    assert_eq!(log.iter().filter(|name| name.contains("checkpoint.parquet")).count(), 10, "{log:?}");
    // The entries before the checkpoint are not needed any more.
    for entry in log.iter().filter(|name| name.ends_with(".json") && name.as_str() < "00000000000000000099.json") {
        std::fs::remove_file(table_folder(folder.path()).join("_delta_log").join(entry)).unwrap();
    }
    let mut second = sink(folder.path());
    assert_eq!(second.recover().await.unwrap().committed, Epoch(105));
    write_all(&mut second, [106]).await;
    second.commit(Epoch(106)).await.unwrap();
    assert_holds(folder.path(), 1..=106).await;
}

#[tokio::test]
async fn housekeeping_keeps_rows_order_and_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DeltaSettings { optimize_commits: 8, vacuum_retention: Duration::from_millis(1), ..settings(folder.path()) };
    let mut first = sink_with(settings.clone());
    first.recover().await.unwrap();
    std::fs::write(table_folder(folder.path()).join("orphan.parquet"), "of a killed life").unwrap();
    for epoch in 1..=23 {
        write_all(&mut first, [epoch]).await;
        first.commit(Epoch(epoch)).await.unwrap();
        if epoch == 8 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        first.maintain().await.unwrap();
    }
    assert_holds(folder.path(), 1..=23).await;
    let mut second = sink_with(settings);
    assert_eq!(second.recover().await.unwrap().committed, Epoch(23));
    let table = open(folder.path()).await;
    let files = table.snapshot().unwrap().log_data().num_files();
    assert!(files < 12, "{files} files after compaction");
    assert!(!names(&table_folder(folder.path())).contains(&"orphan.parquet".to_owned()));
    // In each file, rows are in canonical order.
    for uri in table.get_file_uris().unwrap() {
        let path = Url::parse(&uri).map_or_else(|_| uri.clone().into(), |url| url.to_file_path().unwrap());
        let mut last = (0, -1);
        for batch in ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            for row in 0..batch.num_rows() {
                let value = |column: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
                assert!(last < (value(0), value(2)), "{uri}");
                last = (value(0), value(2));
            }
        }
    }
    write_all(&mut second, [24]).await;
    second.commit(Epoch(24)).await.unwrap();
    assert_holds(folder.path(), 1..=24).await;
}

#[tokio::test]
async fn another_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    sink(folder.path()).recover().await.unwrap();
    let mut fields: Vec<_> = schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields[2] = Field::new("offset", DataType::Utf8, false);
    let mut other = DeltaSink::new("job", "order_decisions", Arc::new(Schema::new(fields)), settings(folder.path())).unwrap();
    let error = other.recover().await.unwrap_err();
    let expected = "has offset Int64 where this job writes offset string (column 3): give sinks.delta.url another folder";
    assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains(expected)), "{error}");
}

#[tokio::test]
async fn rows_of_another_schema_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    let EpochRows { epoch, rows } = rows(1);
    let error = sink.write(EpochRows { epoch, rows: rows.project(&[0]).unwrap() }).await.unwrap_err();
    assert!(matches!(error, SinkError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_file_in_the_place_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "").unwrap();
    let error = sink(&path).recover().await.unwrap_err();
    assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("give one that can be written to")), "{error}");
}

#[tokio::test]
async fn a_folder_that_goes_away_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, [1]).await;
    std::fs::remove_dir_all(table_folder(folder.path())).unwrap();
    std::fs::write(table_folder(folder.path()), "").unwrap();
    assert!(sink.commit(Epoch(1)).await.is_err());
}

#[tokio::test]
async fn a_damaged_log_is_not_taken_for_an_empty_table() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sink(folder.path());
    first.recover().await.unwrap();
    write_all(&mut first, [1]).await;
    first.commit(Epoch(1)).await.unwrap();
    std::fs::write(table_folder(folder.path()).join("_delta_log/00000000000000000001.json"), "{").unwrap();
    assert!(sink(folder.path()).recover().await.is_err());
}

#[tokio::test]
async fn what_is_young_is_not_vacuumed() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink_with(DeltaSettings { optimize_commits: 2, ..settings(folder.path()) });
    sink.recover().await.unwrap();
    std::fs::write(table_folder(folder.path()).join("orphan.parquet"), "of a killed life").unwrap();
    for epoch in 1..=4 {
        write_all(&mut sink, [epoch]).await;
        sink.commit(Epoch(epoch)).await.unwrap();
        sink.maintain().await.unwrap();
    }
    // Of each commit and each compaction, and of nobody.
    let files = names(&table_folder(folder.path())).into_iter().filter(|name| name.ends_with(".parquet")).count();
    assert_eq!((files, open(folder.path()).await.snapshot().unwrap().log_data().num_files()), (4 + 2 + 1, 1));
    assert_holds(folder.path(), 1..=4).await;
}
