//! kill -9 of the broker and of ClickHouse under load.

use std::time::Duration;

use orderflow_fixtures::clickhouse_server::{ClickHouseServer, ClickHouseServerError, ServeCommand, ServerOptions};
use orderflow_fixtures::generate::GenerateSettings;

use crate::common::{assert_equal, tables};
use crate::job::LiveJob;
use crate::{broker, sinks, topics};

/// Kafka in; Delta Lake, ClickHouse and Kafka out. Broker and server die in turn while orders come, and come back on their data some seconds later.
/// `ORDERFLOW_OUTAGE_SECONDS` makes it longer than the seconds that it takes by default.
#[test]
fn killed_under_load() {
    let Some((folder, broker)) = broker("killed_under_load") else { return };
    let command = ServeCommand::this_test("clickhouse_server_process").unwrap();
    let mut server = match ClickHouseServer::start(ServerOptions::new(folder.path().join("clickhouse"), command)) {
        Err(ClickHouseServerError::Platform) => return eprintln!("SKIPPED: there is no development ClickHouse for this platform"),
        server => server.unwrap(),
    };
    let seconds: u64 = std::env::var("ORDERFLOW_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(14);
    let rate: f64 = std::env::var("ORDERFLOW_OUTAGE_RATE").ok().and_then(|text| text.parse().ok()).unwrap_or(1_500.0);
    let brokers = broker.address();
    topics::create(&brokers, "inventory", 1);
    topics::create(&brokers, "orders", 4);
    let url = format!("sinks.clickhouse.url={}", server.url());
    let settings = ["sinks.kafka.enabled=true", "sinks.clickhouse.enabled=true", &url, "job.workers=2"];
    let job = LiveJob::new(&folder.path().join("job"), &brokers, [1, 4], &settings);
    let mut running = job.start(&[]);

    let orders = GenerateSettings { orders: (seconds as f64 * rate) as u64, skus: 500, customers: 2_000, ..GenerateSettings::default() };
    let (produced, producing) = std::sync::mpsc::channel();
    let writer = {
        let brokers = brokers.clone();
        std::thread::spawn(move || {
            topics::write(&brokers, &orders, Some(rate), |_| ());
            let _ = produced.send(());
        })
    };
    // The broker, the server, both: one after the other for as long as there is load.
    let mut outages = 0;
    while producing.recv_timeout(Duration::from_secs(2)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        let (kafka, clickhouse) = [(true, false), (false, true), (true, true)][outages % 3];
        outages += 1;
        if kafka {
            broker.kill();
        }
        if clickhouse {
            server.kill();
        }
        std::thread::sleep(Duration::from_millis(1_000));
        if kafka {
            broker.up().unwrap();
        }
        if clickhouse {
            server.restart().unwrap();
        }
        assert!(running.is_running(), "{}", running.log());
    }
    writer.join().unwrap();
    assert!(outages >= 2, "the load ended before the outages");
    job.wait_until_all_is_sealed();
    running.stop();

    let expected = job.expected();
    let orders = expected["order_decisions"].len();
    println!("{outages} outages, {orders} orders");
    assert_equal(&tables(&job.folder), &expected, "outages, Delta Lake");
    sinks::assert_same_rows(&sinks::clickhouse(&server, "orderflow"), &expected, "outages, ClickHouse");
    sinks::assert_same_rows(&sinks::kafka(&brokers), &expected, "outages, Kafka");
}
