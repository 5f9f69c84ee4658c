//! Against a store in memory that fails when it is told to, and against local disk.

use std::sync::atomic::{AtomicU64, Ordering};

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use orderflow_faults::store::{Call, Fault, Faults, FaultyStore};
use proptest::prelude::*;

use super::super::test_records::{header, record, records};
use super::*;

/// A store in memory that fails when it is told to.
#[derive(Debug, Default)]
struct Memory {
    store: Arc<InMemory>,
    faults: Faults,
}

impl Memory {
    /// The next puts have these faults; then all is well again.
    fn next(&self, faults: &[Fault]) {
        self.faults.clear();
        self.faults.add(Call::Put, "", faults);
    }
}

fn chain(store: &Arc<Memory>) -> Chain {
    let objects = FaultyStore::new(store.store.clone(), &store.faults).creates_only();
    Chain::new(Arc::new(objects), Path::from("job/log"), "mem://job/log".to_owned()).unwrap()
}

fn open(store: &Arc<Memory>, after: u64) -> (ObjectLog, Vec<EpochRecord>) {
    ObjectLog::open_in(chain(store), &header(), Epoch(after)).unwrap()
}

fn read(store: &Arc<Memory>, after: u64) -> std::result::Result<Vec<EpochRecord>, EpochLogError> {
    ObjectLog::read_in(&chain(store), Epoch(after)).map(|(_, records)| records)
}

fn names(store: &Arc<Memory>) -> Vec<String> {
    let chain = chain(store);
    let mut names = chain.runtime.block_on(chain.store.list("")).unwrap();
    names.sort_unstable();
    names
}

#[test]
fn continues_where_it_was() {
    let store = Arc::new(Memory::default());
    assert!(matches!(read(&store, 0), Err(EpochLogError::Missing { .. })));
    let (mut log, found) = open(&store, 0);
    assert_eq!(found, []);
    assert_eq!(read(&store, 0).unwrap(), []);
    log.append(&records(1..4)).unwrap();
    log.append(&records(4..6)).unwrap();
    drop(log);
    let (mut log, found) = open(&store, 0);
    assert_eq!(found, records(1..6));
    log.append(&records(6..7)).unwrap();
    assert_eq!(read(&store, 0).unwrap(), records(1..7));
    let expected =
        ["000000000001-0000.log", "000000000001-0001.log", "000000000004-0000.log", "000000000006-0000.log", "000000000006-0001.log"];
    assert_eq!(names(&store), expected);
    for after in 0..7 {
        assert_eq!(read(&store, after).unwrap(), records(after + 1..7), "behind {after}");
    }
    assert!(matches!(read(&store, 7), Err(EpochLogError::TooShort { last: 6, after: 7, .. })));
    let other = LogHeader { job: "other".into(), ..header() };
    for after in [0, 6] {
        let error = ObjectLog::open_in(chain(&store), &other, Epoch(after)).err().unwrap();
        assert!(matches!(error, EpochLogError::Different { .. }), "{error}");
    }
    log.append(&records(7..8)).expect("who was refused took nothing over");
}

#[test]
fn of_two_writers_the_later_takes_over() {
    let store = Arc::new(Memory::default());
    let (mut first, _) = open(&store, 0);
    first.append(&records(1..3)).unwrap();
    let (mut second, found) = open(&store, 0);
    assert_eq!(found, records(1..3));
    // Whether the second has appended yet or not.
    for round in 0..2 {
        let error = first.append(&records(3..5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "another orderflow with job.id \"test\" took over its epoch log mem://job/log, and this one stops: run one at a time; if both \
             are wanted, give each a job.id and an epoch log of its own"
        );
        second.append(&[record(3 + round)]).unwrap();
    }
    assert_eq!(read(&store, 0).unwrap(), records(1..5));
}

/// The opening's name is taken by an append that came between: it is read, and the opening put behind it.
#[test]
fn an_append_that_comes_while_the_log_is_taken_over_is_in_it() {
    let store = Arc::new(Memory::default());
    let (mut first, _) = open(&store, 0);
    first.append(&records(1..3)).unwrap();
    let reader = chain(&store);
    let stale = reader.read(Epoch(0)).unwrap();
    first.append(&records(3..5)).unwrap();
    let opening = object(&Head { generation: 2, writer: "b".into(), opens: Some(header()) }, &[]);
    assert_eq!(reader.put(stale.next, opening).unwrap(), Put::Taken);
    let (_second, found) = open(&store, 0);
    assert_eq!(found, records(1..5));
}

/// Reading all takes longer than the writer's pauses, and more so the longer it lives.
#[test]
fn a_writer_that_goes_on_appending_is_taken_over() {
    let store = Arc::new(Memory::default());
    let (mut first, _) = open(&store, 0);
    let appended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for epoch in 1..100_000 {
                if let Err(error) = first.append(&[record(epoch)]) {
                    assert!(matches!(error, EpochLogError::TakenOver { .. }), "{error}");
                    return;
                }
                appended.store(epoch, Ordering::Release);
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("nobody took it over");
        });
        while appended.load(Ordering::Acquire) < 1000 {
            assert!(!writer.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut second, found) = open(&store, 0);
        writer.join().unwrap();
        let last = appended.load(Ordering::Acquire);
        assert_eq!(found, records(1..last + 1));
        second.append(&[record(last + 1)]).unwrap();
        assert_eq!(read(&store, 0).unwrap(), records(1..last + 2));
    });
}

#[test]
fn what_came_meanwhile_is_read_on() {
    let store = Arc::new(Memory::default());
    let (mut first, _) = open(&store, 0);
    first.append(&records(1..3)).unwrap();
    let reader = chain(&store);
    let mut known = reader.read(Epoch(1)).unwrap();
    reader.read_on(&mut known).unwrap();
    assert_eq!(known.next, Link { epoch: 3, n: 0 });
    // As many as are asked for by name, and more.
    for (from, to) in [(3, 4), (4, 4 + READS as u64), (4 + READS as u64, 100)] {
        (from..to).for_each(|epoch| first.append(&[record(epoch)]).unwrap());
        reader.read_on(&mut known).unwrap();
        assert_eq!((known.sequence.last(), known.next), (Epoch(to - 1), Link { epoch: to, n: 0 }));
    }
    // A group, and another writer's opening.
    first.append(&records(100..105)).unwrap();
    let (mut second, _) = open(&store, 100);
    second.append(&records(105..107)).unwrap();
    reader.read_on(&mut known).unwrap();
    assert_eq!((known.generation, known.next), (2, Link { epoch: 107, n: 0 }));
    assert_eq!(known.sequence.finish("log").unwrap(), records(2..107));
}

#[test]
fn many_writers_at_once() {
    let store = Arc::new(Memory::default());
    drop(open(&store, 0));
    let taken = |error: &EpochLogError| matches!(error, EpochLogError::TakenOver { .. });
    let acknowledged: Vec<Vec<EpochRecord>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_i64)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    for _ in 0..8 {
                        let Ok((mut log, found)) = ObjectLog::open_in(chain(store), &header(), Epoch(0)) else { continue };
                        for next in (found.len() as u64 + 1..).take(5) {
                            let mine = EpochRecord { sealed_at: writer, ..record(next) };
                            match log.append(std::slice::from_ref(&mine)) {
                                Ok(()) => acknowledged.push(mine),
                                Err(error) => {
                                    assert!(taken(&error), "{error}");
                                    break;
                                }
                            }
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let mut acknowledged = acknowledged.concat();
    acknowledged.sort_by_key(|record| record.epoch);
    assert_eq!(read(&store, 0).unwrap(), acknowledged, "what was acknowledged is there, once, and nothing else");
}

#[test]
fn an_answer_that_is_lost_is_no_other_writer() {
    use Fault::{AnswerLost, Lost};
    let store = Arc::new(Memory::default());
    store.next(&[Lost, AnswerLost]);
    let (mut log, _) = open(&store, 0);
    for faults in [&[AnswerLost][..], &[Lost], &[Lost, AnswerLost]] {
        store.next(faults);
        let next = read(&store, 0).unwrap().len() as u64 + 1;
        log.append(&records(next..next + 2)).unwrap();
    }
    assert_eq!(read(&store, 0).unwrap(), records(1..7));
}

#[test]
fn patience_ends() {
    let check = |fault: Fault, expected: &str| {
        let store = Arc::new(Memory::default());
        let (mut log, _) = open(&store, 0);
        log.chain.store.patience = Duration::from_millis(200);
        store.next(&[fault; 20]);
        let error = log.append(&records(1..2)).unwrap_err();
        assert!(matches!(&error, EpochLogError::Unknown { reason, .. } if reason.contains(expected)), "{error}");
        store.next(&[]);
        assert_eq!(open(&store, 0).1, [], "what was not put is not there");
    };
    check(Fault::Lost, "the network is down");
    check(Fault::Full, "No space left on device");
    check(Fault::Hangs, "no answer within");
}

#[test]
fn a_store_that_is_slow_or_full_for_a_while_is_waited_for() {
    use Fault::{Full, Lost, Slow};
    let store = Arc::new(Memory::default());
    let (mut log, _) = open(&store, 0);
    store.next(&[Full, Slow(Duration::from_millis(20)), Full, Lost]);
    log.append(&records(1..3)).unwrap();
    log.append(&records(3..4)).unwrap();
    for (call, faults) in [(Call::List, [Lost, Slow(Duration::from_millis(20))]), (Call::Get, [Lost, Lost])] {
        store.faults.clear();
        store.faults.add(call, "", &faults);
        assert_eq!(read(&store, 0).unwrap(), records(1..4));
        assert_eq!(store.faults.left(), 0, "{call:?}");
    }
}

#[test]
fn damage_is_told() {
    let store = Arc::new(Memory::default());
    let (mut log, _) = open(&store, 0);
    (1..5).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    drop(log);
    let chain = chain(&store);
    for (name, expected) in [
        ("000000000001-0000.log", "before it, 000000000001-0000.log is missing"),
        ("000000000001-0001.log", "before it, 000000000001-0001.log is missing"),
        ("000000000003-0000.log", "before it, 000000000003-0000.log is missing"),
    ] {
        let path = Path::from(format!("job/log/epochs/{name}"));
        let whole = chain.runtime.block_on(async { store.store.get(&path).await.unwrap().bytes().await.unwrap() });
        let put = |bytes: Vec<u8>| chain.runtime.block_on(store.store.put(&path, bytes.into())).unwrap();
        let check = |expected: &str| {
            let error = chain.read(Epoch(0)).err().unwrap();
            assert!(matches!(error, EpochLogError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        };
        for at in 0..whole.len() {
            put(whole[..at].to_vec());
            check("is damaged");
        }
        let mut bytes = whole.to_vec();
        bytes[20] ^= 1;
        put(bytes);
        check("line 1: its checksum does not fit");
        chain.runtime.block_on(store.store.delete(&path)).unwrap();
        check(expected);
        put(whole.to_vec());
    }
    // A record twice, a record too many.
    let path = Path::from("job/log/epochs/000000000005-0000.log");
    let head = |generation| Head { generation, writer: "x".into(), opens: None };
    for (bytes, expected) in [
        (object(&head(1), &records(4..5)), "epoch 4 follows epoch 4"),
        (object(&head(2), &records(5..6)), "it has generation 2 where 1 was expected"),
        (object(&head(1), &[]), "it has no records"),
    ] {
        chain.runtime.block_on(store.store.put(&path, bytes.into())).unwrap();
        let error = chain.read(Epoch(0)).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

fn drop_old(store: &Arc<Memory>, through: u64) -> Option<Epoch> {
    chain(store).drop_old(&Old { through: Epoch(through), sealed_before: i64::MAX }).unwrap()
}

#[test]
fn old_objects_are_dropped_and_openings_stay() {
    let store = Arc::new(Memory::default());
    let (mut log, _) = open(&store, 0);
    log.append(&records(1..3)).unwrap();
    log.append(&records(3..4)).unwrap();
    (0..2).for_each(|_| drop(open(&store, 0)));
    let (mut log, _) = open(&store, 0);
    (4..9).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    assert_eq!(drop_old(&store, 1), None, "the group goes on");
    assert_eq!(chain(&store).drop_old(&Old { through: Epoch(8), sealed_before: 1 }).unwrap(), None, "none was put so long ago");
    assert_eq!(drop_old(&store, 2), Some(Epoch(2)));
    assert_eq!(drop_old(&store, 2), None);
    assert_eq!(drop_old(&store, 6), Some(Epoch(6)));
    let kept = [
        "000000000001-0000.log",
        "000000000004-0000.log",
        "000000000004-0001.log",
        "000000000004-0002.log",
        "000000000007-0000.log",
        "000000000008-0000.log",
        "dropped-000000000006",
    ];
    assert_eq!(names(&store), kept);
    for after in 0..6 {
        let error = read(&store, after).unwrap_err();
        assert!(matches!(error, EpochLogError::Dropped { first: 7, .. }), "behind {after}: {error}");
    }
    for after in 6..9 {
        assert_eq!(read(&store, after).unwrap(), records(after + 1..9), "behind {after}");
    }
    assert_eq!(drop_old(&store, 8), Some(Epoch(7)), "the last object stays");
    let (mut log, found) = open(&store, 7);
    assert_eq!(found, records(8..9));
    log.append(&records(9..12)).unwrap();
    assert_eq!(read(&store, 7).unwrap(), records(8..12));
    // Some were removed, others not.
    let left = Link { epoch: 5, n: 0 }.name();
    chain(&store).put(Link { epoch: 5, n: 0 }, object(&log.head, &records(5..6))).unwrap();
    assert!(matches!(read(&store, 0).unwrap_err(), EpochLogError::Dropped { first: 8, .. }));
    assert_eq!(read(&store, 8).unwrap(), records(9..12));
    assert_eq!(drop_old(&store, 9), Some(Epoch(8)));
    assert!(!names(&store).contains(&left));
    // A gap behind the mark is none that dropping made.
    let chain = chain(&store);
    let path = Path::from(format!("job/log/epochs/{}", Link { epoch: 9, n: 0 }.name()));
    chain.runtime.block_on(store.store.delete(&path)).unwrap();
    let error = read(&store, 8).unwrap_err();
    assert!(matches!(error, EpochLogError::Damaged { .. }), "{error}");
}

/// However long it slept: what it knows is gone, the names that it wants are free or are openings.
#[test]
fn a_writer_that_slept_while_objects_were_dropped_takes_nothing_over() {
    let store = Arc::new(Memory::default());
    let (mut sleeper, _) = open(&store, 0);
    sleeper.append(&records(1..4)).unwrap();
    // It has read the log, and not opened it yet.
    let opener = chain(&store);
    let read_long_ago = opener.read(Epoch(0)).unwrap();
    let (mut log, _) = open(&store, 0);
    // It wants the name of a group.
    let second = chain(&store);
    let read_since = second.read(Epoch(0)).unwrap();
    (4..20).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    assert_eq!(drop_old(&store, 19), Some(Epoch(18)));
    assert!(matches!(sleeper.append(&records(4..5)).unwrap_err(), EpochLogError::TakenOver { .. }));
    for (chain, read, put) in [(opener, read_long_ago, Put::Taken), (second, read_since, Put::Done)] {
        let opening = object(&Head { generation: 9, writer: "late".into(), opens: Some(header()) }, &[]);
        assert_eq!(chain.put(read.next, opening).unwrap(), put);
        assert!(chain.is_behind_the_end(read.next).unwrap());
    }
    log.append(&records(20..22)).unwrap();
    assert_eq!(read(&store, 18).unwrap(), records(19..22));
    assert_eq!(drop_old(&store, 19), Some(Epoch(19)));
    assert_eq!(open(&store, 19).1, records(20..22));
}

#[test]
fn large_groups_are_cut_so_that_they_are_found() {
    let store = Arc::new(Memory::default());
    let (mut log, _) = open(&store, 0);
    log.append(&records(1..10_000)).unwrap();
    log.append(&records(10_000..10_010)).unwrap();
    assert_eq!(names(&store).len(), 5);
    for after in [0, 1, 4095, 4096, 4097, 9998, 9999, 10_000, 10_009] {
        assert_eq!(read(&store, after).unwrap(), records(after + 1..10_010), "behind {after}");
    }
}

#[test]
fn on_local_disk() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap().to_string();
    in_store(&ObjectSettings { url, storage: BTreeMap::new() });
}

/// As `sinks/tests/delta_s3.rs`, whose head says how to have a store.
#[test]
fn in_a_store_that_speaks_s3() {
    let Ok(endpoint) = std::env::var("ORDERFLOW_TEST_S3") else {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED the epoch log in S3: no store, set ORDERFLOW_TEST_S3\n");
        return;
    };
    let key = |variable: &str| std::env::var(variable).unwrap_or_else(|_| "test".to_owned());
    let storage = [
        ("aws_endpoint", endpoint),
        ("aws_region", "us-east-1".to_owned()),
        ("aws_access_key_id", key("AWS_ACCESS_KEY_ID")),
        ("aws_secret_access_key", key("AWS_SECRET_ACCESS_KEY")),
    ];
    let url = format!("s3://orderflow-test/epoch-log-{}", Uuid::new_v4());
    in_store(&ObjectSettings { url, storage: storage.map(|(name, value)| (name.to_owned(), value)).into() });
}

fn in_store(settings: &ObjectSettings) {
    let (mut first, found) = ObjectLog::open(settings, &header(), Epoch(0)).unwrap();
    assert_eq!(found, []);
    (1..20).for_each(|epoch| first.append(&[record(epoch)]).unwrap());
    let (mut second, found) = ObjectLog::open(settings, &header(), Epoch(7)).unwrap();
    assert_eq!(found, records(8..20));
    let error = first.append(&records(20..21)).unwrap_err();
    assert!(matches!(error, EpochLogError::TakenOver { .. }), "{error}");
    second.append(&records(20..23)).unwrap();
    assert_eq!(ObjectLog::read(settings, Epoch(0)).unwrap(), records(1..23));
    assert_eq!(ObjectLog::read(settings, Epoch(20)).unwrap(), records(21..23));
    let now = chrono::Utc::now().timestamp_millis();
    let old = |sealed_before| Old { through: Epoch(15), sealed_before };
    assert_eq!(ObjectLog::drop_old(settings, &old(now - 3_600_000)).unwrap(), None);
    assert_eq!(ObjectLog::drop_old(settings, &old(now + 3_600_000)).unwrap(), Some(Epoch(15)));
    assert_eq!(super::super::read(&super::super::LogHome::Objects(settings.clone())).unwrap(), records(16..23));
    assert!(matches!(ObjectLog::read(settings, Epoch(7)), Err(EpochLogError::Dropped { first: 16, .. })));
    let (mut third, found) = ObjectLog::open(settings, &header(), Epoch(18)).unwrap();
    assert_eq!(found, records(19..23));
    third.append(&records(23..24)).unwrap();
}

#[test]
fn wrong_settings_are_named() {
    let check = |url: &str, storage: &[(&str, &str)], expected: &str| {
        let storage = storage.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let error = ObjectLog::read(&ObjectSettings { url: url.into(), storage }, Epoch(0)).unwrap_err();
        assert!(matches!(error, EpochLogError::Refused { .. }) && error.to_string().contains(expected), "{error}");
    };
    check("s3://bucket", &[("aws_regoin", "x")], "it has no option \"aws_regoin\"; correct epoch_log.home and epoch_log.storage");
    check("ftp://bucket", &[], "ftp is none of file, s3, gs, az, abfss");
    check("file:///proc/self/cmdline/log", &[], "give a folder");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// However groups, failures, restarts and other writers come: what was acknowledged is there, once, in order.
    #[test]
    fn restarted_at_any_point_it_is_contiguous(
        steps in prop::collection::vec((1_u64..6, 0_u8..7, 0_u64..20), 1..20),
    ) {
        let store = Arc::new(Memory::default());
        let (mut log, _) = open(&store, 0);
        let (mut next, mut first) = (1, 1);
        for (count, step, after) in steps {
            let after = after.max(first - 1);
            match step {
                0 => store.next(&[Fault::Lost]),
                1 => store.next(&[Fault::AnswerLost]),
                // Ended in an append that was not acknowledged, but may have got through.
                2 | 3 => {
                    log.chain.store.patience = Duration::ZERO;
                    store.next(&[if step == 2 { Fault::Lost } else { Fault::AnswerLost }]);
                    prop_assert!(log.append(&records(next..next + count)).is_err());
                    let (again, found) = open(&store, after.min(next - 1));
                    log = again;
                    let last = after.min(next - 1) + found.len() as u64;
                    prop_assert_eq!(last, if step == 2 { next - 1 } else { next + count - 1 });
                    next = last + 1;
                }
                4 => {
                    let (mut older, found) = (log, open(&store, first - 1));
                    prop_assert!(older.append(&records(next..next + count)).is_err());
                    log = found.0;
                    prop_assert_eq!(found.1, records(first..next));
                }
                5 => first = drop_old(&store, after.min(next - 1)).map_or(first, |last| last.0 + 1),
                _ => {}
            }
            log.append(&records(next..next + count)).unwrap();
            next += count;
            let after = after.clamp(first - 1, next - 1);
            prop_assert_eq!(read(&store, after).unwrap(), records(after + 1..next));
        }
        prop_assert_eq!(read(&store, first - 1).unwrap(), records(first..next));
    }
}
