//! kill -9 of the broker and of ClickHouse under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ClickHouseServerError, ServeCommand, ServerOptions};
use orderflow_fixtures::generate::GenerateSettings;

use crate::common::{assert_equal, tables};
use crate::job::LiveJob;
use crate::{broker, sinks, topics};

/// Kafka in; Delta Lake, ClickHouse and Kafka out. Broker and server die in turn while orders come, and come back on their data some seconds later.
/// `ORDERFLOW_OUTAGES` (3) makes it longer, `ORDERFLOW_OUTAGES_ORDERS_PER_S` (1500) heavier.
#[test]
fn killed_under_load() {
    let Some((folder, broker)) = broker("killed_under_load") else { return };
    let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
    let mut server = match ClickHouseServer::start(ServerOptions::new(folder.path().join("clickhouse"), command)) {
        Err(ClickHouseServerError::Platform) => return eprintln!("SKIPPED: there is no development ClickHouse for this platform"),
        server => server.unwrap(),
    };
    let number = |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (outages, rate) = (number("ORDERFLOW_OUTAGES", 3), number("ORDERFLOW_OUTAGES_ORDERS_PER_S", 1_500));
    let brokers = broker.address();
    topics::create(&brokers, "inventory", 1);
    topics::create(&brokers, "orders", 4);
    let url = format!("sinks.clickhouse.url={}", server.url());
    let settings = ["sinks.kafka.enabled=true", "sinks.clickhouse.enabled=true", &url, "job.workers=2"];
    let job = LiveJob::new(&folder.path().join("job"), &brokers, [1, 4], &settings);
    let mut running = job.start(&[]);

    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (brokers, done) = (brokers.clone(), done.clone());
        let generated = GenerateSettings { orders: 100_000_000, skus: 500, customers: 2_000, ..GenerateSettings::default() };
        std::thread::spawn(move || topics::write_at(&brokers, &generated, rate as f64, || !done.load(Ordering::Relaxed)))
    };
    // The broker, the server, both: one after the other.
    for outage in 0..outages {
        std::thread::sleep(Duration::from_secs(2));
        let (kafka, clickhouse) = [(true, false), (false, true), (true, true)][outage % 3];
        if kafka {
            broker.kill();
        }
        if clickhouse {
            server.kill();
        }
        std::thread::sleep(Duration::from_secs(1));
        if kafka {
            broker.up().unwrap();
        }
        if clickhouse {
            server.restart().unwrap();
        }
        assert!(running.is_running(), "{}", running.log());
    }
    std::thread::sleep(Duration::from_secs(1));
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    job.wait_until_all_is_sealed();
    running.stop();

    let expected = job.expected();
    let orders = expected["order_decisions"].len();
    println!("{outages} outages, {orders} decisions");
    assert_equal(&tables(&job.folder), &expected, "outages, Delta Lake");
    sinks::assert_same_rows(&sinks::clickhouse(&server, "orderflow"), &expected, "outages, ClickHouse");
    sinks::assert_same_rows(&sinks::kafka(&brokers), &expected, "outages, Kafka");
}

/// The epoch log is on the same brokers. The job may end, where it cannot know what became of an append; started again it goes on.
#[test]
fn killed_with_the_log_in_a_topic() {
    let Some((folder, broker)) = broker("killed_with_the_log_in_a_topic") else { return };
    let brokers = broker.address();
    topics::create(&brokers, "inventory", 1);
    topics::create(&brokers, "orders", 2);
    let job = LiveJob::new(
        &folder.path().join("job"),
        &brokers,
        [1, 2],
        &["sinks.kafka.enabled=true", "epoch_log.home=kafka:epochs", "job.workers=1", "source.kafka.start_wait=60 s"],
    );
    let mut running = job.start(&[]);
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (brokers, done) = (brokers.clone(), done.clone());
        let generated = GenerateSettings { orders: 100_000_000, skus: 100, customers: 500, order_splits: 2, ..GenerateSettings::default() };
        std::thread::spawn(move || topics::write_at(&brokers, &generated, 500.0, || !done.load(Ordering::Relaxed)))
    };
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(2));
        broker.kill();
        std::thread::sleep(Duration::from_millis(500));
        broker.up().unwrap();
        if !running.is_running() {
            let said = running.failure();
            assert!(said.contains("start the job again"), "{said}");
            running = job.start(&[]);
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    job.wait_until_all_is_sealed();
    running.stop();
    let expected = job.expected();
    assert_equal(&tables(&job.folder), &expected, "log in a topic, Delta Lake");
    sinks::assert_same_rows(&sinks::kafka(&brokers), &expected, "log in a topic, Kafka");
}
