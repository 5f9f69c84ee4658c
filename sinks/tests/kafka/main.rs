//! The Kafka sink against a real broker, which `deploy/dev/kafka.sh` fetches and starts; without Java or Maven these tests say that
//! they were skipped.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail it")]

mod broker;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::Stream;
use orderflow_sinks::kafka::{KafkaSettings, KafkaSink, Step};
use orderflow_sinks::{EpochRows, Recovered, Sink, SinkError};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;

use broker::{Broker, LONG, read, reader};

const TOPIC: &str = "orderflow.order_lines";
const STEPS: [Step; 5] = [Step::Begun, Step::HalfSent, Step::Sent, Step::Acknowledged, Step::Committed];

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![field("epoch", DataType::Int64), field("offset", DataType::Int64), field("order_id", DataType::Utf8)]))
}

/// Rows are a function of the epoch: as many as its number says, at most 40.
fn rows(epoch: u64) -> EpochRows {
    let count = row_count(epoch) as i64;
    let columns: [ArrayRef; 3] = [
        Arc::new(Int64Array::from(vec![epoch as i64; count as usize])),
        Arc::new((0..count).collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values((0..count).map(|n| format!("o-{}", n % 11)))),
    ];
    EpochRows { epoch: Epoch(epoch), rows: RecordBatch::try_new(schema(), columns.to_vec()).unwrap() }
}

fn row_count(epoch: u64) -> u64 {
    1 + epoch * 7 % 40
}

/// Seeded by `TEST_SEED`, or anew; prints the seed.
fn random() -> ChaCha8Rng {
    let anew = || uuid::Uuid::new_v4().as_u64_pair().0;
    let seed = std::env::var("TEST_SEED").ok().map_or_else(anew, |seed| seed.parse().unwrap());
    eprintln!("TEST_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

fn sink(settings: &KafkaSettings) -> KafkaSink {
    KafkaSink::new(Stream::OrderLines, schema(), settings.clone()).unwrap()
}

async fn recovered(settings: &KafkaSettings) -> (KafkaSink, Epoch) {
    let mut sink = sink(settings);
    let start = Instant::now();
    loop {
        match sink.recover().await {
            Ok(Recovered { committed, group_through: None }) => return (sink, committed),
            Ok(other) => panic!("{other:?}"),
            Err(error @ SinkError::Refused { .. }) => panic!("{error}"),
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    }
}

async fn write(sink: &mut KafkaSink, epochs: std::ops::RangeInclusive<u64>) {
    for epoch in epochs {
        sink.write(rows(epoch)).await.unwrap();
    }
}

/// Commits as the job does: what is unavailable is tried again.
async fn commit(sink: &mut KafkaSink, through: u64) -> u32 {
    let start = Instant::now();
    for failures in 0.. {
        match sink.commit(Epoch(through)).await {
            Ok(()) => return failures,
            Err(error @ SinkError::Refused { .. }) => panic!("{error}"),
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("the loop ends with a commit or in time")
}

fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker.address()).create().unwrap()
}

/// As the brokers do with a group that has not committed for a week.
async fn forget_record(broker: &Broker) {
    let forgotten = admin(broker).delete_groups(&["job.order_lines.sink"], &AdminOptions::new()).await.unwrap();
    assert_eq!(forgotten, [Ok("job.order_lines.sink".to_owned())]);
}

/// The error of a commit that is tried until it is refused.
async fn refusal(sink: &mut KafkaSink, through: u64) -> String {
    let start = Instant::now();
    loop {
        match sink.commit(Epoch(through)).await {
            Ok(()) => panic!("it was committed"),
            Err(error @ SinkError::Refused { .. }) => return error.to_string(),
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each row of the epochs once, with its key and header, in order within a key.
fn check_exactly_once(broker: &Broker, topic: &str, through: u64) {
    let count: u64 = (1..=through).map(row_count).sum();
    let read = read(&broker.address(), topic, count as usize);
    let mut found: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    let mut last: BTreeMap<String, (i32, (u64, u64))> = BTreeMap::new();
    for message in &read {
        let place = (message.value["epoch"].as_u64().unwrap(), message.value["offset"].as_u64().unwrap());
        let key = message.key.clone().unwrap();
        assert_eq!(message.value["order_id"].as_str(), Some(key.as_str()));
        assert_eq!(message.headers["epoch"], place.0.to_string());
        *found.entry(place).or_default() += 1;
        if let Some((partition, before)) = last.insert(key, (message.partition, place)) {
            assert!(partition == message.partition && before < place, "{before:?} then {message:?}");
        }
    }
    let expected: BTreeMap<_, _> = (1..=through).flat_map(|epoch| (0..row_count(epoch)).map(move |n| ((epoch, n), 1))).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_recovered() {
    let Some(broker) = Broker::start("what_is_committed_is_recovered") else { return };
    let settings = broker.settings();
    let (mut first, committed) = recovered(&settings).await;
    assert_eq!(committed, Epoch(0));
    let metadata = reader(&broker.address()).fetch_metadata(Some(TOPIC), LONG).unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 3);

    write(&mut first, 1..=3).await;
    first.commit(Epoch(2)).await.unwrap();
    check_exactly_once(&broker, TOPIC, 2);
    first.commit(Epoch(2)).await.unwrap();
    first.commit(Epoch(3)).await.unwrap();
    // Without rows.
    first.commit(Epoch(9)).await.unwrap();
    drop(first);
    let (mut second, committed) = recovered(&settings).await;
    assert_eq!(committed, Epoch(9));
    assert_eq!(second.recover().await.unwrap().committed, Epoch(9));
    check_exactly_once(&broker, TOPIC, 3);

    // Other jobs and prefixes have topics and records of their own.
    let other = KafkaSettings { topic_prefix: "other.".into(), job: "other".into(), partitions: 1, ..settings.clone() };
    let (mut sink, committed) = recovered(&other).await;
    assert_eq!(committed, Epoch(0));
    write(&mut sink, 1..=1).await;
    sink.commit(Epoch(1)).await.unwrap();
    check_exactly_once(&broker, "other.order_lines", 1);

    // The brokers forget a group after some time; then its topic tells.
    forget_record(&broker).await;
    assert_eq!(recovered(&settings).await.1, Epoch(3));
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_once_wherever_a_commit_ends() {
    let Some(broker) = Broker::start("each_row_once_wherever_a_commit_ends") else { return };
    let settings = broker.settings();
    let mut random = random();
    let mut known = 0;
    // Each step, each way to go on; then more in any order.
    for round in 0..20 {
        let step = STEPS.get(round / 2).copied().unwrap_or_else(|| *STEPS.choose(&mut random).unwrap());
        let same_sink_goes_on = round % 2 == 0;
        let (mut sink, committed) = recovered(&settings).await;
        assert_eq!(committed, Epoch(known), "round {round}");
        let stop = Arc::new(AtomicBool::new(false));
        let armed = stop.clone();
        sink.on_step(move |at| assert!(at != step || !armed.swap(false, Ordering::SeqCst), "ended at {at:?}, as the test wants"));
        for _ in 0..random.random_range(0..3) {
            let through = known + random.random_range(1..4);
            write(&mut sink, known + 1..=through).await;
            sink.commit(Epoch(through)).await.unwrap();
            known = through;
        }
        let through = known + random.random_range(2..5);
        write(&mut sink, known + 1..=through).await;
        stop.store(true, Ordering::SeqCst);
        assert!(sink.commit(Epoch(through)).await.is_err(), "round {round}");
        if same_sink_goes_on {
            commit(&mut sink, through).await;
        }
        if same_sink_goes_on || step == Step::Committed {
            known = through;
        }
    }
    check_exactly_once(&broker, TOPIC, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sinks_the_older_is_refused() {
    let Some(broker) = Broker::start("of_two_sinks_the_older_is_refused") else { return };
    let settings = broker.settings();
    let (mut older, _) = recovered(&settings).await;
    write(&mut older, 1..=1).await;
    older.commit(Epoch(1)).await.unwrap();
    let (mut newer, committed) = recovered(&settings).await;
    assert_eq!(committed, Epoch(1));
    write(&mut older, 2..=2).await;
    for _ in 0..2 {
        let error = older.commit(Epoch(2)).await.unwrap_err();
        assert!(matches!(error, SinkError::Refused { .. }) && error.to_string().contains("has taken over"), "{error}");
    }
    // It has done the newer no harm.
    write(&mut newer, 2..=3).await;
    newer.commit(Epoch(3)).await.unwrap();
    check_exactly_once(&broker, TOPIC, 3);

    // Also when it comes in the middle of a transaction of the older.
    let third = Mutex::new(Some(sink(&settings)));
    let (tell, told) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    newer.on_step(move |step| {
        if step == Step::Acknowledged
            && let Some(mut third) = third.lock().unwrap().take()
        {
            assert_eq!(runtime.block_on(third.recover()).unwrap().committed, Epoch(3));
            tell.send(third).unwrap();
        }
    });
    write(&mut newer, 4..=5).await;
    let error = newer.commit(Epoch(5)).await.unwrap_err();
    assert!(matches!(error, SinkError::Refused { .. }) && error.to_string().contains("has taken over"), "{error}");
    let mut third = told.recv_timeout(LONG).unwrap();
    write(&mut third, 4..=5).await;
    third.commit(Epoch(5)).await.unwrap();
    check_exactly_once(&broker, TOPIC, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_timed_out_is_done_again() {
    let Some(broker) = Broker::start("a_transaction_that_timed_out_is_done_again") else { return };
    let properties = BTreeMap::from([("transaction.timeout.ms".to_owned(), "1000".to_owned())]);
    let settings = KafkaSettings { properties, ..broker.settings() };
    let (mut sink, _) = recovered(&settings).await;
    write(&mut sink, 1..=1).await;
    let once = AtomicBool::new(true);
    sink.on_step(move |step| {
        if step == Step::Acknowledged && once.swap(false, Ordering::SeqCst) {
            // The development broker looks for such transactions every second.
            std::thread::sleep(Duration::from_secs(5));
        }
    });
    assert!(commit(&mut sink, 1).await > 0, "a transaction that the coordinator ended cannot be committed");
    check_exactly_once(&broker, TOPIC, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_brokers_forgot_is_written_again() {
    let Some(broker) = Broker::start("a_record_that_the_brokers_forgot_is_written_again") else { return };
    let settings = broker.settings();
    let (mut sink, _) = recovered(&settings).await;
    write(&mut sink, 1..=3).await;
    sink.commit(Epoch(3)).await.unwrap();
    let mut known = 3;
    // The commit that was not answered did not go through, or did.
    for step in [Step::Begun, Step::Committed] {
        let armed = AtomicBool::new(true);
        sink.on_step(move |at| assert!(at != step || !armed.swap(false, Ordering::SeqCst), "ended at {at:?}, as the test wants"));
        write(&mut sink, known + 1..=known + 2).await;
        known += 2;
        assert!(sink.commit(Epoch(known)).await.is_err());
        forget_record(&broker).await;
        commit(&mut sink, known).await;
    }
    check_exactly_once(&broker, TOPIC, known);

    // Of epochs without rows, of which the topic does not tell.
    sink.commit(Epoch(20)).await.unwrap();
    forget_record(&broker).await;
    sink.keep_alive().await.unwrap();
    drop(sink);
    assert_eq!(recovered(&settings).await.1, Epoch(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_removed_ends_the_sink() {
    let Some(broker) = Broker::start("a_topic_that_was_removed_ends_the_sink") else { return };
    let (mut sink, _) = recovered(&broker.settings()).await;
    write(&mut sink, 1..=2).await;
    sink.commit(Epoch(2)).await.unwrap();
    let armed = AtomicBool::new(true);
    sink.on_step(move |at| assert!(at != Step::Begun || !armed.swap(false, Ordering::SeqCst), "ended at {at:?}, as the test wants"));
    write(&mut sink, 3..=3).await;
    assert!(sink.commit(Epoch(3)).await.is_err());
    let admin = admin(&broker);
    assert_eq!(admin.delete_topics(&[TOPIC], &AdminOptions::new()).await.unwrap(), [Ok(TOPIC.to_owned())]);
    let (start, reader) = (Instant::now(), reader(&broker.address()));
    while !reader.fetch_metadata(Some(TOPIC), LONG).unwrap().topics().iter().all(|topic| topic.partitions().is_empty()) {
        assert!(start.elapsed() < LONG, "the topic stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let error = refusal(&mut sink, 3).await;
    assert!(error.contains("the topic was removed"), "{error}");
    // Also if it was made anew.
    let new = NewTopic::new(TOPIC, 3, TopicReplication::Fixed(1));
    assert_eq!(admin.create_topics([&new], &AdminOptions::new()).await.unwrap(), [Ok(TOPIC.to_owned())]);
    let error = refusal(&mut sink, 3).await;
    assert!(error.contains("the topic was removed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_group_is_several_transactions() {
    let Some(broker) = Broker::start("a_large_group_is_several_transactions") else { return };
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    let columns = vec![
        field("epoch", DataType::Int64),
        field("offset", DataType::Int64),
        field("order_id", DataType::Utf8),
        field("rest", DataType::Utf8),
    ];
    let schema = Arc::new(Schema::new(columns));
    let mut sink = KafkaSink::new(Stream::OrderLines, schema.clone(), broker.settings()).unwrap();
    sink.recover().await.unwrap();
    let begun = Arc::new(AtomicU32::new(0));
    let count = begun.clone();
    sink.on_step(move |at| assert!(at != Step::Begun || count.fetch_add(1, Ordering::SeqCst) != 2, "ended at {at:?}, as the test wants"));
    // Of 9 MB each.
    for epoch in 1..=4 {
        let columns: [ArrayRef; 4] = [
            Arc::new(Int64Array::from(vec![epoch; 10])),
            Arc::new((0..10_i64).collect::<Int64Array>()),
            Arc::new(StringArray::from(vec!["a"; 10])),
            Arc::new(StringArray::from(vec!["x".repeat(900_000); 10])),
        ];
        let rows = RecordBatch::try_new(schema.clone(), columns.to_vec()).unwrap();
        sink.write(EpochRows { epoch: Epoch(epoch as u64), rows }).await.unwrap();
    }
    assert!(sink.commit(Epoch(9)).await.is_err());
    sink.commit(Epoch(9)).await.unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 5, "the first two are not done again");
    let mut found: Vec<_> = read(&broker.address(), TOPIC, 40)
        .iter()
        .map(|message| (message.value["epoch"].as_i64().unwrap(), message.value["offset"].as_i64().unwrap()))
        .collect();
    found.sort_unstable();
    assert!(found.into_iter().eq((1..=4_i64).flat_map(|epoch| (0..10_i64).map(move |n| (epoch, n)))));
    assert_eq!(sink.recover().await.unwrap().committed, Epoch(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_once_when_the_broker_is_killed() {
    let Some(broker) = Broker::start("each_row_once_when_the_broker_is_killed") else { return };
    let broker = Arc::new(broker);
    let (mut sink, _) = recovered(&broker.settings()).await;
    let mut known = 0;
    for step in STEPS {
        let (killed, restart) = (AtomicBool::new(false), broker.clone());
        let (tell, told) = std::sync::mpsc::channel();
        sink.on_step(move |at| {
            if at == step && !killed.swap(true, Ordering::SeqCst) {
                restart.kill();
                tell.send(()).unwrap();
            }
        });
        let starting = broker.clone();
        let starts = tokio::task::spawn_blocking(move || {
            told.recv_timeout(LONG).unwrap();
            std::thread::sleep(Duration::from_millis(700));
            starting.up();
        });
        write(&mut sink, known + 1..=known + 3).await;
        commit(&mut sink, known + 3).await;
        starts.await.unwrap();
        known += 3;
    }
    // At any time, with the sink that goes on or a new one.
    let mut random = random();
    for round in 0..2 {
        let (killing, delay) = (broker.clone(), Duration::from_micros(random.random_range(0..60_000)));
        sink.on_step(|_| {});
        let restarts = tokio::task::spawn_blocking(move || {
            std::thread::sleep(delay);
            killing.kill();
            killing.up();
        });
        for _ in 0..30 {
            write(&mut sink, known + 1..=known + 1).await;
            commit(&mut sink, known + 1).await;
            known += 1;
        }
        restarts.await.unwrap();
        if round == 0 {
            drop(sink);
            let committed;
            (sink, committed) = recovered(&broker.settings()).await;
            assert_eq!(committed, Epoch(known));
        }
    }
    check_exactly_once(&broker, TOPIC, known);
}

/// Not a test but a measurement, on one broker on this machine: how long a commit of 50 ms of rows takes while all streams commit.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn how_long_a_commit_takes() {
    const ROWS: i64 = 36_000 / 20;
    let Some(broker) = Broker::start("how_long_a_commit_takes") else { return };
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    let schema =
        Arc::new(Schema::new(vec![field("order_id", DataType::Utf8), field("sku", DataType::Utf8), field("rest", DataType::Utf8)]));
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|n| format!("o-{n}"))));
    let rest: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| "x".repeat(300))));
    let rows = RecordBatch::try_new(schema.clone(), vec![ids.clone(), ids, rest]).unwrap();
    let streams = Stream::ALL.map(|stream| {
        let (schema, settings, rows) = (schema.clone(), KafkaSettings { partitions: 4, ..broker.settings() }, rows.clone());
        tokio::spawn(async move {
            let mut sink = KafkaSink::new(stream, schema, settings).unwrap();
            sink.recover().await.unwrap();
            let (mut took, mut tick) = (Vec::new(), tokio::time::interval(Duration::from_millis(50)));
            for epoch in 1..=200 {
                tick.tick().await;
                let start = Instant::now();
                sink.write(EpochRows { epoch: Epoch(epoch), rows: rows.clone() }).await.unwrap();
                let written = start.elapsed();
                sink.commit(Epoch(epoch)).await.unwrap();
                took.push((start.elapsed(), written));
            }
            // Without the start of the broker's own code.
            let mut took = took.split_off(20);
            took.sort();
            (stream, [50, 90, 99].map(|percent| took[took.len() * percent / 100]))
        })
    });
    for stream in streams {
        let (stream, [p50, p90, p99]) = stream.await.unwrap();
        println!("{stream}: p50 {p50:?}, p90 {p90:?}, p99 {p99:?} (of it to encode)");
    }
}
