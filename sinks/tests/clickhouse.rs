//! The ClickHouse sink against a real server, which the tests start. Skipped, loudly, where it cannot be fetched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clickhouse_rows;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use clickhouse_rows::{EXTREME_TIMES, Random, decisions, decisions_at, lines, sample};
use expect_test::{Expect, expect};
use orderflow_fixtures::clickhouse_server::{
    ClickHouseServer, ClickHouseServerError, Credentials, ServeCommand, ServerOptions, ensure_library, serve_from_env,
};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::Stream;
use orderflow_sinks::clickhouse::reports::Report;
use orderflow_sinks::clickhouse::{ClickHouseSettings, ClickHouseSink, InsertCompression};
use orderflow_sinks::{EpochRows, Recovered, Sink, SinkError};

/// Lets this binary be the server, see [`ServeCommand::this_test`].
#[test]
fn clickhouse_server_process() {
    serve_from_env();
}

fn start(name: &str, credentials: Option<Credentials>) -> Option<ClickHouseServer> {
    match ensure_library() {
        Ok(_) => {}
        Err(error @ (ClickHouseServerError::Platform | ClickHouseServerError::NpmMissing | ClickHouseServerError::Npm { .. })) => {
            eprintln!("SKIPPED, nothing was tested: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
    let options = ServerOptions { credentials, ..ServerOptions::new(server_folder(name), command) };
    Some(ClickHouseServer::start(options).unwrap())
}

/// A new folder for this process. Folders of processes that have ended are removed: a server in a static outlives every destructor.
fn server_folder(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clickhouse-sink");
    std::fs::create_dir_all(&root).unwrap();
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        let gone = |id: &str| !PathBuf::from("/proc").join(id).exists();
        if entry.file_name().to_str().and_then(|name| name.split('-').next()).is_some_and(gone) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    root.join(format!("{}-{name}", std::process::id()))
}

/// One server for all tests that leave it alone; each has a database.
static SHARED: LazyLock<Option<ClickHouseServer>> = LazyLock::new(|| start("shared", None));

fn settings(server: &ClickHouseServer, database: &str) -> ClickHouseSettings {
    ClickHouseSettings { url: server.url(), database: database.into(), job: "test".into(), ..ClickHouseSettings::default() }
}

fn sink(stream: Stream, settings: &ClickHouseSettings) -> ClickHouseSink {
    ClickHouseSink::new(stream, stream.schema(&WindowSet::default()), settings.clone()).unwrap()
}

fn rows(epoch: u64, rows: arrow::array::RecordBatch) -> EpochRows {
    EpochRows { epoch: Epoch(epoch), rows }
}

/// A sink that has recovered, from nothing.
async fn fresh(stream: Stream, settings: &ClickHouseSettings) -> ClickHouseSink {
    let mut sink = sink(stream, settings);
    assert_eq!(sink.recover().await.unwrap(), Recovered::default());
    sink
}

fn check(server: &ClickHouseServer, sql: &str, expected: Expect) {
    expected.assert_eq(&server.post(sql).unwrap());
}

#[tokio::test]
async fn every_stream_comes_back_as_it_was_written() {
    let Some(server) = SHARED.as_ref() else { return };
    let text = written_and_read(server, InsertCompression::None).await;
    expect![[r#"
        order_decisions
        [3, 1, 0, "o-3-0", "c-0", "2026-01-05 10:00:02.000000", "EUR", 3, 0, 1, 2, "accepted", "", [], 0, "baseline\/1", 0, 0, "DE", null, "2026-02-04 10:00:00.000000"]
        [3, 1, 1, "o-3-1", "c-1", "2026-01-05 10:00:02.100000", "JPY", 103, 90, 2, 3, "accepted", "", [], 0.1, "baseline\/1", 1, 1, null, "FR", "2026-02-04 10:00:00.000000"]
        [3, 1, 2, "o-3-2", "c-2", "2026-01-05 10:00:02.200000", "USD", 203, 180, 3, 4, "accepted", "", [], 0.2, "baseline\/1", 2, 2, "US", null, "2026-02-04 10:00:00.000000"]
        [3, 1, 3, "o-3-3", "c-3", "2026-01-05 10:00:02.300000", "EUR", 303, 270, 4, 5, "accepted", "", [], 0.3, "baseline\/1", 3, 3, "DE", "FR", "2026-02-04 10:00:00.000000"]
        [3, 1, 4, "o-3-4", "c-4", "2026-01-05 10:00:02.400000", "JPY", 403, 360, 1, 2, "review", "", [], 0.4, "baseline\/1", 4, 4, null, null, "2026-02-04 10:00:00.000000"]
        [3, 1, 5, "o-3-5", "c-5", "2026-01-05 10:00:02.500000", "USD", 503, 450, 2, 3, "review", "", [], 0.5, "baseline\/1", 5, 5, "US", "FR", "2026-02-04 10:00:00.000000"]
        [3, 1, 6, "o-3-6", "c-6", "2026-01-05 10:00:02.600000", "EUR", 603, 540, 3, 4, "rejected", "fraud", [], 0.6, "baseline\/1", 6, 6, "DE", null, "2026-02-04 10:00:00.000000"]
        [3, 1, 7, "o-3-7", "c-7", "2026-01-05 10:00:02.700000", "JPY", 703, 630, 4, 5, "rejected", "out_of_stock", ["SKU-0","SKU-9"], 0.7, "baseline\/1", 7, 7, null, "FR", "2026-02-04 10:00:00.000000"]
        [3, 1, 8, "o-3-8", "c-8", "2026-01-05 10:00:02.800000", "USD", null, null, 1, null, "rejected", "invalid", ["bad_price"], null, null, null, null, "US", null, "2026-02-04 10:00:00.000000"]
        [3, 1, 9, "o-3-9", "c-9", "2026-01-05 10:00:02.900000", "EUR", null, null, 2, null, "rejected", "duplicate", [], null, null, null, null, "DE", "FR", "2026-02-04 10:00:00.000000"]
        order_lines
        [3, 1, 0, "o-3-0", "c-0", "2026-01-05 10:00:00.000000", "SKU-0", 1, 250, 250]
        [3, 1, 1, "o-3-1", "c-1", "2026-01-05 10:00:00.000001", "SKU-1", 2, 250, 500]
        reservation_events
        [3, 1, 10, "o-1", "SKU-1", 2, "held", "2026-01-05 10:00:00.000000", 9223372036854775807, 2]
        [3, 2, 11, "o-2", null, null, "ignored", "2026-01-05 10:00:00.000001", null, null]
        [3, null, null, "o-3", "SKU-3", 4, "expired", "2026-01-05 09:59:59.999999", 0, 0]
        stock_movements
        [3, 0, 0, "m-1", "SKU-1", "stock_received", 100, "2026-01-05 10:00:00.000000", 100, 0]
        [3, 0, 1, "m-'\"\\\n?", "SKU-ü", "stock_counted", -9223372036854775808, "2026-01-05 10:00:00.000000", -1, 7]
        dead_letters
        [3, 1, 5, "orders", "7B2261223AFF00", "invalid UTF-8"]
        [3, 1, 6, "orders", "", "empty"]
    "#]].assert_eq(&text);
    assert_eq!(written_and_read(server, InsertCompression::Lz4).await, text);
}

/// Each stream's sample as JSON, after a trip to the server.
async fn written_and_read(server: &ClickHouseServer, compression: InsertCompression) -> String {
    let database = format!("round_trip_{compression:?}");
    let settings = ClickHouseSettings { compression, ..settings(server, &database) };
    let mut text = String::new();
    for stream in Stream::ALL {
        let mut sink = fresh(stream, &settings).await;
        sink.write(rows(1, sample(stream))).await.unwrap();
        sink.commit(Epoch(1)).await.unwrap();
        let columns = match stream {
            // Of the features one with and one without a window.
            Stream::OrderDecisions => {
                "epoch, split, offset, order_id, customer_id, event_time, currency, total, amount, line_count, unit_count, decision, \
                 reason, detail, fraud_score, model, customer_orders_5m, country_mismatch, billing_country, shipping_country, sealed_at"
            }
            Stream::DeadLetters => "epoch, split, offset, topic, hex(raw), error",
            _ => "*",
        };
        text += &format!("{stream}\n");
        text +=
            &server.post(&format!("SELECT {columns} FROM {database}.{stream} ORDER BY epoch, offset FORMAT JSONCompactEachRow")).unwrap();
    }
    text
}

#[tokio::test]
async fn columns_are_those_of_the_stream_in_its_order() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "columns");
    for stream in Stream::ALL {
        fresh(stream, &settings).await;
        let sql = format!("SELECT name FROM system.columns WHERE database = 'columns' AND table = '{stream}' ORDER BY position");
        let schema = stream.schema(&WindowSet::default());
        let expected: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(server.post(&sql).unwrap().lines().collect::<Vec<_>>(), expected, "{stream}");
    }
}

#[tokio::test]
async fn any_event_time_is_kept_and_none_makes_many_parts() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "times");
    let mut random = Random::new();
    let mut times = EXTREME_TIMES.to_vec();
    times.extend((0..20_000).map(|_| random.next() as i64));
    for stream in [Stream::OrderDecisions, Stream::OrderLines] {
        let mut sink = fresh(stream, &settings).await;
        let batch = match stream {
            Stream::OrderDecisions => decisions_at(1, &times),
            _ => lines(1, &times),
        };
        sink.write(rows(1, batch)).await.unwrap();
        sink.commit(Epoch(1)).await.unwrap();
        let stored = server.post(&format!("SELECT toUnixTimestamp64Micro(event_time) FROM times.{stream} ORDER BY offset")).unwrap();
        let stored: Vec<i64> = stored.lines().map(|line| line.parse().unwrap()).collect();
        assert!(stored == times, "{stream}: event times changed");
        let parts = format!("SELECT count() FROM system.parts WHERE database = 'times' AND table = '{stream}' AND active");
        assert_eq!(server.post(&parts).unwrap(), "1\n");
        // Readers can print what they find.
        server.post(&format!("SELECT event_time FROM times.{stream} FORMAT CSV")).unwrap();
    }
    for report in Report::ALL {
        report.run(&settings, 1000).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_that_was_cut_off_is_ended_with_the_same_inserts() {
    let Some(server) = SHARED.as_ref() else { return };
    let first = ClickHouseSettings { insert_rows_max: 100, ..settings(server, "cut_off") };
    let mut sink = fresh(Stream::OrderDecisions, &first).await;
    let write = async |sink: &mut ClickHouseSink| {
        for epoch in 1..=10 {
            sink.write(rows(epoch, decisions(epoch, 500))).await.unwrap();
        }
    };
    write(&mut sink).await;
    let count = || server.post("SELECT count() FROM cut_off.order_decisions").unwrap().trim().parse::<u64>().unwrap();
    {
        let mut commit = std::pin::pin!(sink.commit(Epoch(8)));
        // 4000 rows are 40 inserts: some are there and some are not when the future is dropped, as a job dies.
        while count() < 700 {
            tokio::select! {
                biased;
                result = &mut commit => panic!("the commit ended too soon: {result:?}"),
                () = tokio::time::sleep(Duration::from_micros(200)) => {}
            }
        }
    }
    assert!((700..4000).contains(&count()));

    // Another life, with other settings: the record holds.
    let second = ClickHouseSettings { insert_rows_max: 170, ..first };
    let mut sink = self::sink(Stream::OrderDecisions, &second);
    let recovered = Recovered { committed: Epoch(0), group_through: Some(Epoch(8)) };
    assert_eq!(sink.recover().await.unwrap(), recovered);
    assert_eq!(sink.recover().await.unwrap(), recovered);
    write(&mut sink).await;
    let error = sink.commit(Epoch(5)).await.unwrap_err();
    assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("through epoch 8")), "{error}");
    sink.commit(Epoch(8)).await.unwrap();
    assert_eq!(count(), 4000);
    // Rows that came before the commit was asked for, but are behind it, belong to the next.
    sink.commit(Epoch(10)).await.unwrap();
    sink.commit(Epoch(10)).await.unwrap();
    assert_eq!(count(), 5000);
    assert_exact(server, "cut_off", 10, 500);

    let mut sink = self::sink(Stream::OrderDecisions, &second);
    assert_eq!(sink.recover().await.unwrap(), Recovered { committed: Epoch(10), group_through: None });
}

/// Facts and views hold epochs `1..=epochs` of `decisions(_, rows)` once.
fn assert_exact(server: &ClickHouseServer, database: &str, epochs: u64, rows: u64) {
    let line = |sql: &str| server.post(&sql.replace("DB", database)).unwrap().trim().to_owned();
    let total = epochs * rows;
    assert_eq!(line("SELECT count(), uniqExact(epoch, offset) FROM DB.order_decisions"), format!("{total}\t{total}"));
    let facts_and_views = [
        (
            "SELECT count(), sum(total) FROM DB.order_decisions WHERE decision IN ('accepted', 'review')",
            "SELECT sum(orders), sum(revenue) FROM DB.revenue_by_minute",
        ),
        (
            "SELECT count(), countIf(reason = 'fraud') FROM DB.order_decisions WHERE fraud_score IS NOT NULL",
            "SELECT sum(orders), sum(fraud) FROM DB.fraud_by_hour",
        ),
        (
            "SELECT sum(length(detail)) FROM DB.order_decisions WHERE reason = 'out_of_stock'",
            "SELECT sum(orders) FROM DB.stock_outs_by_hour",
        ),
        ("SELECT count() FROM DB.order_decisions", "SELECT sum(orders) FROM DB.decisions_by_minute"),
        ("SELECT count() FROM DB.order_decisions", "SELECT sum(orders) FROM DB.latency_by_minute"),
    ];
    for (facts, view) in facts_and_views {
        let facts = line(facts);
        assert!(!facts.starts_with('0'), "nothing to compare");
        assert_eq!(line(view), facts, "{view}");
    }
}

/// Jobs die at any moment, and the server too, with SIGKILL. What is there at the end is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epochs_are_there_once_whoever_dies() {
    const EPOCHS: u64 = 60;
    const ROWS: u64 = 3000;
    let Some(server) = start("deaths", None) else { return };
    let settings = ClickHouseSettings { insert_rows_max: 2000, request_timeout: Duration::from_secs(20), ..settings(&server, "deaths") };
    let server = Arc::new(Mutex::new(server));
    let mut random = Random::new();
    let (mut job_deaths, mut server_deaths, mut unfinished) = (0, 0, 0);
    for life in 0.. {
        // A life: it ends when a call fails, or at a random moment.
        let mut sink = sink(Stream::OrderDecisions, &settings);
        let Recovered { committed, mut group_through } = sink.recover().await.unwrap();
        if committed.0 == EPOCHS {
            break;
        }
        unfinished += u32::from(group_through.is_some());
        // Lives become longer, so that on a slow machine too one is long enough for its commit.
        let patience = Duration::from_micros(random.below(100_000 + 20_000 * life));
        let mut groups = Random(random.next());
        let work = async {
            let mut epoch = committed.0;
            while epoch < EPOCHS {
                let through = group_through.take().map_or_else(|| (epoch + 1 + groups.below(6)).min(EPOCHS), |through| through.0);
                while epoch < through {
                    epoch += 1;
                    sink.write(rows(epoch, decisions(epoch, ROWS))).await?;
                }
                sink.commit(Epoch(through)).await?;
            }
            Ok::<(), SinkError>(())
        };
        // Every third death is the server's, in the middle of the life.
        let killer = (random.below(3) == 0 && server_deaths < 12).then(|| {
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                std::thread::sleep(patience / 2);
                server.lock().unwrap_or_else(PoisonError::into_inner).kill();
            })
        });
        match tokio::time::timeout(patience, work).await {
            Ok(Err(error)) => assert!(matches!(error, SinkError::Unavailable { .. }), "{error}"),
            Ok(Ok(())) => {}
            Err(_) => job_deaths += 1,
        }
        if let Some(killer) = killer {
            killer.await.unwrap();
            server_deaths += 1;
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.lock().unwrap().restart().unwrap()).await.unwrap();
        }
    }
    eprintln!("{job_deaths} jobs and {server_deaths} servers died, {unfinished} commits were found unfinished");
    assert_exact(&server.lock().unwrap(), "deaths", EPOCHS, ROWS);
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_until_it_is_back() {
    let Some(mut server) = start("down", None) else { return };
    let settings = settings(&server, "down");
    let mut sink = fresh(Stream::OrderLines, &settings).await;
    sink.write(rows(1, lines(1, &[0; 100]))).await.unwrap();
    server.kill();
    for _ in 0..2 {
        let error = sink.commit(Epoch(1)).await.unwrap_err();
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error}");
    }
    let error = self::sink(Stream::OrderLines, &settings).recover().await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable { .. }), "{error}");
    server.restart().unwrap();
    sink.commit(Epoch(1)).await.unwrap();
    check(
        &server,
        "SELECT count() FROM down.order_lines",
        expect![[r#"
        100
    "#]],
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_unavailable() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ClickHouseSettings {
        url: format!("http://{}", silent.local_addr().unwrap()),
        request_timeout: Duration::from_millis(50),
        ..ClickHouseSettings::default()
    };
    let error = sink(Stream::OrderLines, &settings).recover().await.unwrap_err();
    assert!(matches!(&error, SinkError::Unavailable { reason, .. } if reason == "no answer within 0.05 s"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let credentials = Credentials { user: "orderflow".into(), password: "right".into() };
    let Some(server) = start("password", Some(credentials)) else { return };
    let settings =
        |password: &str| ClickHouseSettings { user: "orderflow".into(), password: password.into(), ..settings(&server, "password") };
    let error = sink(Stream::OrderLines, &settings("wrong")).recover().await.unwrap_err();
    assert!(
        matches!(&error, SinkError::Refused { reason, .. } if reason.ends_with("check sinks.clickhouse.user and sinks.clickhouse.password")),
        "{error}"
    );
    fresh(Stream::OrderLines, &settings("right")).await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let refused = |settings: ClickHouseSettings| {
        let schema = Stream::OrderLines.schema(&WindowSet::default());
        ClickHouseSink::new(Stream::OrderLines, schema, settings).map(|_| ()).unwrap_err().to_string()
    };
    let default = ClickHouseSettings::default;
    let errors = [
        refused(ClickHouseSettings { url: "localhost:8123".into(), ..default() }),
        refused(ClickHouseSettings { database: String::new(), ..default() }),
        refused(ClickHouseSettings { insert_rows_max: 500_001, ..default() }),
    ];
    expect![[r#"
        ClickHouse at localhost:8123: use the settings: sinks.clickhouse.url must be like http://host:8123 or https://host:8443
        ClickHouse at http://127.0.0.1:8123: use the settings: sinks.clickhouse.database and job.id must have a name
        ClickHouse at http://127.0.0.1:8123: use the settings: an insert has 1 to 500000 rows, and more than 0 bytes"#]]
    .assert_eq(&errors.join("\n"));
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_left_alone() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "newer");
    fresh(Stream::OrderLines, &settings).await;
    server.post("INSERT INTO newer.schema_versions (version, name) VALUES (99, 'future')").unwrap();
    let error = sink(Stream::OrderLines, &settings).recover().await.unwrap_err();
    assert!(matches!(error, SinkError::Refused { .. }));
    expect!["ClickHouse at URL: read schema_versions: database `newer` has version 99 of the tables, made by a newer release of orderflow; this one knows version 2: run that release, or set sinks.clickhouse.database to another database"].assert_eq(&error.to_string().replace(&server.url(), "URL"));
}

#[tokio::test]
async fn a_table_of_somebody_else_is_refused() {
    let Some(server) = SHARED.as_ref() else { return };
    server.post("CREATE DATABASE foreign").unwrap();
    server.post("CREATE TABLE foreign.order_lines (epoch Int64, order_id UInt8) ENGINE = MergeTree ORDER BY epoch").unwrap();
    let error = sink(Stream::OrderLines, &settings(server, "foreign")).recover().await.unwrap_err();
    assert!(matches!(error, SinkError::Refused { .. }));
    expect!["ClickHouse at URL: check the columns of order_lines: table order_lines is not the job's: split is missing, offset is missing, order_id is UInt8, not String, customer_id is missing, event_time is missing, sku is missing, quantity is missing, unit_price is missing, line_total is missing; rename it, or use another database"].assert_eq(&error.to_string().replace(&server.url(), "URL"));
}

/// A `begun` row that a dying job sent, and that reached the server only after its successor had looked.
#[tokio::test]
async fn a_begin_that_arrives_late_is_not_believed() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "late");
    let late = |life: u64, through: u64| {
        let sql = format!(
            "INSERT INTO late.orderflow_commits VALUES ('test', 'order_lines', {life}, 'begun', 1, {through}, 10, 1000, 1, now64(3))"
        );
        server.post(&sql).unwrap();
    };
    // Life 1 knows nothing; life 2 begins a commit through 4; then life 1's arrives.
    fresh(Stream::OrderLines, &settings).await;
    fresh(Stream::OrderLines, &settings).await;
    late(2, 4);
    late(1, 7);
    let recovered = sink(Stream::OrderLines, &settings).recover().await.unwrap();
    assert_eq!(recovered, Recovered { committed: Epoch(0), group_through: Some(Epoch(4)) });
}

/// Two jobs of one id that are both alive: the older one hears of it at its next commit, whatever it had begun, and has written nothing that the newer one
/// does not count in.
#[tokio::test]
async fn of_two_living_jobs_the_older_one_ends() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "living");
    let write = async |sink: &mut ClickHouseSink, epochs: std::ops::RangeInclusive<u64>| {
        for epoch in epochs {
            sink.write(rows(epoch, decisions(epoch, 500))).await.unwrap();
        }
    };
    let taken_over =
        |error: SinkError| assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("another job")), "{error}");
    let mut older = fresh(Stream::OrderDecisions, &settings).await;
    write(&mut older, 1..=2).await;
    older.commit(Epoch(2)).await.unwrap();
    write(&mut older, 3..=4).await;
    let mut newer = sink(Stream::OrderDecisions, &settings);
    assert_eq!(newer.recover().await.unwrap(), Recovered { committed: Epoch(2), group_through: None });
    taken_over(older.commit(Epoch(4)).await.unwrap_err());
    write(&mut newer, 3..=6).await;
    newer.commit(Epoch(6)).await.unwrap();
    assert_exact(server, "living", 6, 500);

    // The one that took over a commit that was begun is taken over itself.
    write(&mut newer, 7..=8).await;
    let mut third = sink(Stream::OrderDecisions, &settings);
    third.recover().await.unwrap();
    taken_over(newer.commit(Epoch(8)).await.unwrap_err());
    taken_over(newer.commit(Epoch(8)).await.unwrap_err());
    // What the second had begun when it was told is nobody's, or ended alike.
    let mut fourth = sink(Stream::OrderDecisions, &settings);
    let begun = fourth.recover().await.unwrap();
    assert_eq!(begun, Recovered { committed: Epoch(6), group_through: Some(Epoch(8)) });
    taken_over(third.commit(Epoch(7)).await.unwrap_err());
    write(&mut fourth, 7..=8).await;
    fourth.commit(Epoch(8)).await.unwrap();
    assert_exact(server, "living", 8, 500);
}

#[tokio::test]
async fn other_windows_add_columns() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "windows");
    fresh(Stream::OrderDecisions, &settings).await;
    let windows = WindowSet::new(&[60_000_000, 3_600_000_000]).unwrap();
    let schema = Stream::OrderDecisions.schema(&windows);
    ClickHouseSink::new(Stream::OrderDecisions, schema, settings).unwrap().recover().await.unwrap();
    check(
        server,
        "SELECT name, type FROM system.columns WHERE database = 'windows' AND name LIKE 'device_orders_%' ORDER BY position",
        expect![[r#"
            device_orders_1m	Nullable(Int64)
            device_orders_5m	Nullable(Int64)
            device_orders_1h	Nullable(Int64)
            device_orders_24h	Nullable(Int64)
        "#]],
    );
}

#[tokio::test]
async fn two_jobs_and_all_streams_start_at_once() {
    let Some(server) = SHARED.as_ref() else { return };
    let jobs = ["a", "b"].into_iter().flat_map(|job| Stream::ALL.map(|stream| (job, stream)));
    let starts = jobs.map(|(job, stream)| {
        let settings = ClickHouseSettings { job: job.into(), ..settings(server, "at_once") };
        async move {
            let mut sink = fresh(stream, &settings).await;
            sink.write(rows(3, sample(stream))).await.unwrap();
            sink.commit(Epoch(3)).await.unwrap();
        }
    });
    futures::future::join_all(starts).await;
    check(
        server,
        "SELECT job, count(DISTINCT stream) FROM at_once.orderflow_commits WHERE state = 'committed' GROUP BY job ORDER BY job",
        expect![[r#"
            a	5
            b	5
        "#]],
    );
    // Each job has written its rows: tokens of two jobs differ.
    check(
        server,
        "SELECT count() / 2 = uniqExact(epoch, offset) FROM at_once.order_lines",
        expect![[r#"
        1
    "#]],
    );
}

#[tokio::test]
async fn reports_answer_from_the_views() {
    let Some(server) = SHARED.as_ref() else { return };
    let settings = settings(server, "reports");
    let mut sink = fresh(Stream::OrderDecisions, &settings).await;
    for epoch in 1..=3 {
        sink.write(rows(epoch, decisions(epoch, 1000))).await.unwrap();
        sink.commit(Epoch(epoch)).await.unwrap();
    }
    let mut text = String::new();
    for report in Report::ALL {
        let table = report.run(&settings, 3).await.unwrap();
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        text += &format!("{}\n{}\n", table.title, table.columns.join(" | "));
        for row in &table.rows {
            text += &format!("{}\n", row.join(" | "));
        }
        // The same query by another program.
        server.post(&report.sql("reports", 3)).unwrap();
    }
    expect![[r#"
        Revenue per minute and currency, in minor units
        minute | currency | orders | units | revenue
        2026-01-05 10:04:00 | EUR | 120 | 420 | 8370360
        2026-01-05 10:04:00 | JPY | 120 | 420 | 8370360
        2026-01-05 10:04:00 | USD | 120 | 420 | 8370360
        Fraud per hour and billing country
        hour | country | orders | review | fraud | fraud_percent | fraud_amount
        2026-01-05 10:00:00 | DE | 801 | 198 | 102 | 12.73 | 4599180
        2026-01-05 10:00:00 | - | 801 | 201 | 99 | 12.36 | 4419360
        2026-01-05 10:00:00 | US | 798 | 201 | 99 | 12.41 | 4508460
        SKUs that ran out
        sku | orders_refused | hours | first_hour | last_hour
        SKU-9 | 300 | 1 | 2026-01-05 10:00:00 | 2026-01-05 10:00:00
        SKU-0 | 60 | 1 | 2026-01-05 10:00:00 | 2026-01-05 10:00:00
        SKU-1 | 60 | 1 | 2026-01-05 10:00:00 | 2026-01-05 10:00:00
        Decisions per minute
        minute | orders | accepted | review | invalid | duplicate | fraud | out_of_stock | accepted_percent
        2026-01-05 10:04:00 | 600 | 240 | 120 | 60 | 60 | 60 | 60 | 60
        2026-01-05 10:03:00 | 600 | 240 | 120 | 60 | 60 | 60 | 60 | 60
        2026-01-05 10:02:00 | 600 | 240 | 120 | 60 | 60 | 60 | 60 | 60
        Milliseconds from event time to sealing, per minute
        minute | orders | p50 | p90 | p99 | p999 | max
        2026-02-04 10:00:00 | 1000 | 2591750100 | 2591790000 | 2591799000 | 2591799800 | 2591800000
        2026-01-25 10:00:00 | 1000 | 1727850100 | 1727890000 | 1727899000 | 1727899900 | 1727900000
        2026-01-15 10:00:00 | 1000 | 863950000 | 863989950 | 863999000 | 863999900 | 864000000
    "#]]
    .assert_eq(&text);
}
