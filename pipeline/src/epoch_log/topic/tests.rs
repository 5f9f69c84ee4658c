//! Against real brokers: mock ones know no transactions.

mod broker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use rand::{Rng, SeedableRng};

use super::super::test_records::{header, record, records};
use super::*;
use broker::Broker;

const LONG: Duration = Duration::from_secs(60);

fn settings(broker: &Broker, topic: &str, job: &str) -> TopicSettings {
    TopicSettings { brokers: broker.address(), topic: topic.into(), job: job.into(), properties: BTreeMap::new() }
}

fn open(settings: &TopicSettings, after: u64) -> Result<(TopicLog, Vec<EpochRecord>), EpochLogError> {
    TopicLog::open(settings, &LogHeader { job: settings.job.clone(), ..header() }, Epoch(after))
}

fn read(settings: &TopicSettings, after: u64) -> Result<Vec<EpochRecord>, EpochLogError> {
    TopicLog::read(settings, Epoch(after))
}

/// A commit that was acknowledged is seen by readers a moment later.
fn eventually_read(settings: &TopicSettings, expected: &[EpochRecord]) {
    let started = Instant::now();
    while read(settings, 0).unwrap() != expected {
        assert!(started.elapsed() < LONG, "the records are not there");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Writes past the log.
fn produce(settings: &TopicSettings, lines: &[String]) {
    let producer: BaseProducer<Context> = settings.client(&[]).unwrap().create_with_context(Context::default()).unwrap();
    for line in lines {
        producer.send(BaseRecord::<(), str>::to(&settings.topic).partition(0).payload(line)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(LONG).unwrap();
}

fn is_taken_over(error: &EpochLogError) -> bool {
    matches!(error, EpochLogError::TakenOver { .. })
}

#[test]
fn with_a_broker() {
    let Some(broker) = Broker::start("the epoch log in a topic") else { return };
    continues_where_it_was(&broker);
    of_two_writers_the_later_takes_over(&broker);
    another_job_is_refused_and_takes_nothing_over(&broker);
    topics_that_could_lose_records_are_refused(&broker);
    is_read_behind_an_epoch(&broker);
    old_records_are_dropped(&broker);
    damage_is_told(&broker);
    an_open_transaction_hides_nothing(&broker);
}

fn continues_where_it_was(broker: &Broker) {
    let settings = settings(broker, "continues", "test");
    assert!(matches!(read(&settings, 0), Err(EpochLogError::Missing { .. })));
    let (mut log, found) = open(&settings, 0).unwrap();
    assert_eq!(found, []);
    assert_eq!(read(&settings, 0).unwrap(), []);
    let mut next = 1;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    for _ in 0..12 {
        for _ in 0..random.random_range(1..4) {
            let count = random.random_range(1..6);
            log.append(&records(next..next + count)).unwrap();
            next += count;
        }
        drop(log);
        let after = random.random_range(0..next);
        let found;
        (log, found) = open(&settings, after).unwrap();
        assert_eq!(found, records(after + 1..next), "behind {after}");
    }
    assert_eq!(read(&settings, 0).unwrap(), records(1..next));
    let error = open(&settings, next).err().unwrap();
    assert!(matches!(error, EpochLogError::TooShort { .. }), "{error}");
}

fn of_two_writers_the_later_takes_over(broker: &Broker) {
    let settings = settings(broker, "two-writers", "test");
    let (mut first, _) = open(&settings, 0).unwrap();
    first.append(&records(1..3)).unwrap();
    let (mut second, found) = open(&settings, 0).unwrap();
    assert_eq!(found, records(1..3));
    let error = first.append(&records(3..5)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "another orderflow with job.id \"test\" took over its epoch log kafka:two-writers, and this one stops: run one at a time; if both \
         are wanted, give each a job.id and an epoch log of its own"
    );
    second.append(&records(3..4)).unwrap();
    assert!(first.append(&records(3..5)).is_err());

    // Taken over amid an append: what was sent is never seen.
    second.producer.begin_transaction().unwrap();
    let lost = line(&record(4));
    second.producer.send(BaseRecord::<(), str>::to("two-writers").partition(0).payload(&lost)).map_err(|(error, _)| error).unwrap();
    second.producer.flush(LONG).unwrap();
    let (mut third, found) = open(&settings, 0).unwrap();
    assert_eq!(found, records(1..4));
    let KafkaError::Transaction(error) = second.producer.commit_transaction(LONG).unwrap_err() else { panic!("no error of a transaction") };
    assert!(is_taken_over(&second.failed(&KafkaError::Transaction(error), Instant::now())));
    third.append(&records(4..6)).unwrap();
    eventually_read(&settings, &records(1..6));
}

fn another_job_is_refused_and_takes_nothing_over(broker: &Broker) {
    let ours = settings(broker, "two-jobs", "ours");
    let (mut log, _) = open(&ours, 0).unwrap();
    log.append(&records(1..3)).unwrap();
    let theirs = settings(broker, "two-jobs", "theirs");
    let error = open(&theirs, 0).err().unwrap();
    assert!(error.to_string().contains("it belongs to the job \"ours\", this is \"theirs\""), "{error}");
    // The same job with other settings.
    let changed = LogHeader { job: "ours".into(), splits: vec!["orders/7".into()], ..header() };
    assert!(matches!(TopicLog::open(&ours, &changed, Epoch(0)), Err(EpochLogError::Different { .. })));
    // Both had found it empty.
    produce(&theirs, &[line(&LogHeader { job: "theirs".into(), ..header() })]);
    log.append(&records(3..5)).unwrap();
    assert_eq!(open(&ours, 0).unwrap().1, records(1..5));
}

fn topics_that_could_lose_records_are_refused(broker: &Broker) {
    let check = |topic: &str, partitions: i32, own: &[(&str, &str)], expected: &str| {
        let settings = settings(broker, topic, "test");
        crate::source::create_topic(&settings.client(&[]).unwrap(), topic, partitions, 1, own).unwrap();
        let error = open(&settings, 0).err().unwrap();
        assert!(matches!(error, EpochLogError::Refused { .. }) && error.to_string().contains(expected), "{error}");
    };
    let unlimited = [("retention.ms", "-1"), ("retention.bytes", "-1")];
    check("several", 2, &unlimited, "the topic has 2 partitions, and records of several have no order; name a topic with one");
    check("short-lived", 1, &[], "retention.ms is 604800000 where it must be -1, as old records are removed");
    check("small", 1, &[("retention.ms", "-1"), ("retention.bytes", "1000000")], "retention.bytes is 1000000");
    let compact = [unlimited[0], unlimited[1], ("cleanup.policy", "compact,delete")];
    check("compacted", 1, &compact, "cleanup.policy is compact,delete where it must be delete, as compaction removes records");
    let unclean = [unlimited[0], unlimited[1], ("unclean.leader.election.enable", "true")];
    check("unclean", 1, &unclean, "unclean.leader.election.enable is true");
    let properties = [("sasl.pasword".to_owned(), "hush".to_owned())].into();
    let error = open(&TopicSettings { properties, ..settings(broker, "x", "test") }, 0).err().unwrap().to_string();
    assert!(error.contains("`sasl.pasword`") && error.contains("correct epoch_log.properties") && !error.contains("hush"), "{error}");
}

fn is_read_behind_an_epoch(broker: &Broker) {
    let settings = settings(broker, "long", "test");
    let (mut log, _) = open(&settings, 0).unwrap();
    let started = Instant::now();
    (1..50).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    println!("an append takes {:?}", started.elapsed() / 49);
    log.append(&records(50..20_000)).unwrap();
    log.append(&records(20_000..20_010)).unwrap();
    for after in [0, 1, 49, 50, 51, 5_000, 10_001, 19_998, 19_999, 20_000, 20_008, 20_009] {
        let started = Instant::now();
        let (_log, found) = open(&settings, after).unwrap();
        assert_eq!(found, records(after + 1..20_010), "behind {after}");
        println!("opened behind {after} in {:?}", started.elapsed());
    }
    for after in [3, 15_000] {
        assert_eq!(read(&settings, after).unwrap(), records(after + 1..20_010), "behind {after}");
    }
    assert!(matches!(read(&settings, 20_010), Err(EpochLogError::TooShort { last: 20_009, after: 20_010, .. })));
}

fn old_records_are_dropped(broker: &Broker) {
    const HEADER: u64 = 10;
    let settings = settings(broker, "old", "test");
    let (mut log, _) = open(&settings, 0).unwrap();
    log.header_epochs = HEADER;
    (1..8).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    log.append(&records(8..1500)).unwrap();
    log.append(&records(1500..1506)).unwrap();
    let drop_old = |through: u64, sealed_before: i64| {
        TopicLog::drop_old_at(&settings, &Old { through: Epoch(through), sealed_before }, HEADER).unwrap()
    };
    assert_eq!(drop_old(9, i64::MAX), None);
    assert_eq!(drop_old(1505, record(11).sealed_at), None);
    for (through, sealed_before, dropped) in [(10, i64::MAX, 10), (1505, record(21).sealed_at + 1, 20), (1505, i64::MAX, 1500)] {
        assert_eq!(drop_old(through, sealed_before), Some(Epoch(dropped)));
        assert_eq!(drop_old(through, sealed_before), None, "again");
        assert_eq!(read(&settings, dropped).unwrap(), records(dropped + 1..1506));
        let error = read(&settings, dropped - 1).unwrap_err();
        assert!(matches!(error, EpochLogError::Dropped { first, .. } if first == dropped + 1), "{error}");
        assert_eq!(super::super::read(&super::super::LogHome::Topic(settings.clone())).unwrap(), records(dropped + 1..1506));
    }
    let (mut log, found) = open(&settings, 1502).unwrap();
    assert_eq!(found, records(1503..1506));
    log.append(&records(1506..1508)).unwrap();
    assert_eq!(open(&settings, 1500).unwrap().1, records(1501..1508));
    // Without headers in it.
    let settings = TopicSettings { topic: "old-without-headers".into(), ..settings };
    let (mut log, _) = open(&settings, 0).unwrap();
    log.append(&records(1..30)).unwrap();
    assert_eq!(TopicLog::drop_old_at(&settings, &Old { through: Epoch(29), sealed_before: i64::MAX }, HEADER).unwrap(), None);
}

fn damage_is_told(broker: &Broker) {
    let mut wrong = line(&record(4));
    wrong.replace_range(20..21, "#");
    let begun = line(&LogHeader { job: "test".into(), splits: vec!["orders/7".into()], ..header() });
    for (number, (lines, expected)) in [
        // Header, its marker, three records, their marker.
        (vec![wrong], "at offset 6 is damaged: its checksum does not fit"),
        (vec![line(&record(5))], "epoch 5 follows epoch 3"),
        (vec![line(&record(3))], "epoch 3 follows epoch 3"),
        (vec![String::new()], "it is too short"),
        (vec![begun], "there is another header"),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = settings(broker, &format!("damaged-{number}"), "test");
        let (mut log, _) = open(&settings, 0).unwrap();
        log.append(&records(1..4)).unwrap();
        eventually_read(&settings, &records(1..4));
        produce(&settings, &lines);
        for error in [open(&settings, 0).err().unwrap(), read(&settings, 0).unwrap_err()] {
            assert!(matches!(error, EpochLogError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

/// Until the brokers abort it, for its age.
fn an_open_transaction_hides_nothing(broker: &Broker) {
    let settings = settings(broker, "undecided", "test");
    let (mut log, _) = open(&settings, 0).unwrap();
    log.append(&records(1..3)).unwrap();
    let stranger = settings.client(&[("transactional.id", "stranger"), ("transaction.timeout.ms", "1000"), ("message.timeout.ms", "1000")]);
    let stranger: BaseProducer<Context> = stranger.unwrap().create_with_context(Context::default()).unwrap();
    stranger.init_transactions(LONG).unwrap();
    stranger.begin_transaction().unwrap();
    stranger.send(BaseRecord::<(), str>::to("undecided").partition(0).payload("x")).map_err(|(error, _)| error).unwrap();
    stranger.flush(LONG).unwrap();
    log.append(&records(3..5)).unwrap();
    let (_log, found) = open(&settings, 0).unwrap();
    assert_eq!(found, records(1..5));
}

/// Asks the writer to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Brokers are killed amid appends, and started again. What was acknowledged is there, once; what was not is there wholly or not at all.
#[test]
fn brokers_that_are_killed_lose_nothing() {
    const KILLS: u64 = 4;
    const GROUP: u64 = 3;
    let Some(broker) = Broker::start("the epoch log in a topic, its broker killed") else { return };
    let settings = settings(&broker, "killed", "test");
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        // Also when this thread panics.
        let _stop = Stop(&stop);
        let (finished, end) = mpsc::channel();
        let writer = scope.spawn(|| {
            // Dropped when this thread ends, however it does.
            let _finished = finished;
            let mut reopened = 0;
            let (mut log, _) = open(&settings, 0).unwrap();
            while !stop.load(Ordering::Acquire) {
                let last = acknowledged.load(Ordering::Acquire);
                match log.append(&records(last + 1..last + 1 + GROUP)) {
                    Ok(()) => acknowledged.store(last + GROUP, Ordering::Release),
                    Err(error) => {
                        assert!(matches!(error, EpochLogError::Unknown { .. }), "{error}");
                        reopened += 1;
                        let found;
                        (log, found) = open(&settings, 0).unwrap();
                        assert!([last, last + GROUP].contains(&(found.len() as u64)), "{} after {last}", found.len());
                        assert_eq!(found, records(1..found.len() as u64 + 1));
                        acknowledged.store(found.len() as u64, Ordering::Release);
                    }
                }
            }
            reopened
        });
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        for kill in 0..KILLS {
            let before = acknowledged.load(Ordering::Acquire);
            let started = Instant::now();
            while acknowledged.load(Ordering::Acquire) < before + 10 * GROUP && !writer.is_finished() {
                assert!(started.elapsed() < 2 * LONG, "no append after kill {kill}");
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(random.random_range(0..300)));
            broker.kill();
            broker.restart();
        }
        stop.store(true, Ordering::Release);
        assert_eq!(end.recv_timeout(3 * LONG), Err::<(), _>(mpsc::RecvTimeoutError::Disconnected), "the writer ends");
        println!("{} records, opened again {} times", acknowledged.load(Ordering::Acquire), writer.join().unwrap());
    });
    let acknowledged = acknowledged.load(Ordering::Acquire);
    assert_eq!(open(&settings, 0).unwrap().1, records(1..acknowledged + 1));
}
