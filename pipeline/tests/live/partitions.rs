//! Partitions that are added, and topics that are not what they were.

use orderflow_fixtures::generate::GenerateSettings;

use crate::common::{assert_equal, tables};
use crate::job::LiveJob;
use crate::{broker, eventually, sinks, topics};

fn generated(seed: u64, orders: u64, order_splits: u32, inventory_splits: u32) -> GenerateSettings {
    GenerateSettings { orders, seed, skus: 100, customers: 400, order_splits, inventory_splits, ..GenerateSettings::default() }
}

/// Also over restarts with other numbers of workers and processes, with and without checkpoints, some of them while nobody looks.
#[test]
fn partitions_are_added() {
    let Some((folder, broker)) = broker("partitions_are_added") else { return };
    let brokers = broker.address();
    topics::create(&brokers, "inventory", 1);
    topics::create(&brokers, "orders", 2);
    topics::write(&brokers, &generated(1, 1500, 2, 1));
    let job = LiveJob::new(&folder.path().join("job"), &brokers, [1, 2], &["sinks.kafka.enabled=true", "epoch.rows_max=500"]);

    let running = job.start(&["--workers", "2"]);
    job.wait_until_all_is_sealed();
    topics::add_partitions(&brokers, "orders", 4);
    topics::add_partitions(&brokers, "inventory", 2);
    topics::write(&brokers, &generated(2, 1500, 4, 2));
    job.wait_until_all_is_sealed();
    running.kill();

    // While it does not run; and what it had is played from the log.
    topics::add_partitions(&brokers, "orders", 5);
    topics::write(&brokers, &generated(3, 1000, 5, 2));
    let running = job.start(&["--workers", "3"]);
    job.wait_until_all_is_sealed();
    topics::add_partitions(&brokers, "inventory", 3);
    running.stop();
    topics::write(&brokers, &generated(4, 1000, 5, 3));

    // As two processes, of which one hears of new partitions from the other.
    let ports: Vec<u16> = {
        let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
    };
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]);
    let second = job.start(&["--workers", "1", "--hosts", &hosts, "--process", "1"]);
    let first = job.start(&["--workers", "1", "--hosts", &hosts, "--process", "0"]);
    job.wait_until_all_is_sealed();
    topics::add_partitions(&brokers, "orders", 7);
    topics::write(&brokers, &generated(5, 1000, 7, 3));
    job.wait_until_all_is_sealed();
    first.kill();
    drop(second);

    // Without checkpoints all is played from the log's start.
    std::fs::remove_dir_all(job.folder.join("checkpoints")).unwrap();
    let running = job.start(&["--workers", "1"]);
    topics::write(&brokers, &generated(6, 500, 7, 3));
    job.wait_until_all_is_sealed();
    running.stop();

    let names = job.splits(&job.epochs());
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(names[..3], ["inventory/0", "orders/0", "orders/1"]);
    let expected = job.expected();
    assert_equal(&tables(&job.folder), &expected, "added partitions");
    sinks::assert_same_rows(&sinks::kafka(&brokers), &expected, "added partitions, topics");
}

/// What cannot go on says so; each with a job of its own.
#[test]
fn topics_that_are_not_what_they_were() {
    let Some((folder, broker)) = broker("topics_that_are_not_what_they_were") else { return };
    let brokers = broker.address();
    let job = |name: &str| {
        let id = format!("job.id={name}");
        LiveJob::new(&folder.path().join(name), &brokers, [1, 2], &[&id, "job.workers=1", "checkpoint.interval=0"])
    };
    // Brokers that are not there.
    let nobody = LiveJob::new(&folder.path().join("nobody"), "127.0.0.1:1", [1, 2], &["source.kafka.start_wait=1 s"]);
    let error = nobody.refusal();
    assert!(error.contains("no broker of 127.0.0.1:1 answered within 1 s"), "{error}");

    // A topic that is not there.
    topics::create(&brokers, "inventory", 1);
    let error = job("missing").refusal();
    assert!(error.contains("topic `orders` does not exist at") && error.contains("create it, for example with"), "{error}");

    // Messages that retention removed before they were read.
    topics::create(&brokers, "orders", 2);
    topics::write(&brokers, &generated(1, 300, 2, 1));
    let read = job("retention");
    let running = read.start(&[]);
    read.wait_until_all_is_sealed();
    running.kill();
    topics::write(&brokers, &generated(2, 300, 2, 1));
    let ends_then = topics::ends(&brokers, "orders");
    topics::remove_records(&brokers, "orders", 1, ends_then[1]);
    let error = read.refusal();
    // What the recovery plays back is gone.
    assert!(error.contains("orders/1: the next message to read has offset 0, but the broker has only"), "{error}");
    assert!(error.contains("Raise the topic's retention"), "{error}");

    // A topic that was made anew, with as many messages as before.
    let read = job("anew");
    let mut running = read.start(&[]);
    eventually("it reads", || !read.epochs().is_empty());
    topics::remove(&brokers, "orders");
    topics::create(&brokers, "orders", 2);
    topics::write(&brokers, &generated(3, 900, 2, 1));
    eventually("it notices while it runs", || !running.is_running());
    let error = running.failure();
    assert!(error.contains("was removed and made anew while the job ran") || error.contains("the topic was made anew"), "{error}");
    let error = read.refusal();
    assert!(error.contains("removed and made anew since (orders)") && error.contains("another job.id"), "{error}");
}
