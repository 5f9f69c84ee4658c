use proptest::prelude::*;

use super::super::test_records::{header, record, records};
use super::*;

/// A segment for each few records.
const SMALL: u64 = 300;

fn open(folder: &Path) -> (LocalLog, Vec<EpochRecord>) {
    LocalLog::open_with(folder, &header(), Epoch(0), SMALL).unwrap()
}

fn read_all(folder: &Path) -> Vec<EpochRecord> {
    LocalLog::read(folder, Epoch(0)).unwrap()
}

fn file_names(folder: &Path) -> Vec<String> {
    Segment::list(folder).unwrap().iter().map(|segment| segment.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn continues_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(matches!(LocalLog::read(folder, Epoch(0)), Err(EpochLogError::Missing { .. })));
    let (mut log, found) = LocalLog::open(folder, &header(), Epoch(0)).unwrap();
    assert_eq!(found, []);
    log.append(&records(1..3)).unwrap();
    assert!(matches!(LocalLog::open(folder, &header(), Epoch(0)), Err(EpochLogError::InUse { .. })));
    drop(log);
    let (mut log, found) = LocalLog::open(folder, &header(), Epoch(0)).unwrap();
    assert_eq!(found, records(1..3));
    log.append(&records(3..4)).unwrap();
    assert_eq!(read_all(folder), records(1..4));
    assert_eq!(file_names(folder), ["epochs.log"]);
}

#[test]
fn a_log_of_one_file_goes_on_in_segments() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut log, _) = LocalLog::open(folder, &header(), Epoch(0)).unwrap();
    log.append(&records(1..10)).unwrap();
    drop(log);
    let (mut log, found) = open(folder);
    assert_eq!(found, records(1..10));
    log.append(&records(10..12)).unwrap();
    assert_eq!(file_names(folder), ["epochs.log", "epochs-000000000010.log"]);
    assert_eq!(read_all(folder), records(1..12));
}

#[test]
fn is_read_behind_an_epoch_from_the_segment_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut log, _) = open(folder);
    (1..30).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    drop(log);
    assert!(file_names(folder).len() > 5);
    for after in 0..30 {
        assert_eq!(LocalLog::read(folder, Epoch(after)).unwrap(), records(after + 1..30), "behind {after}");
        let (_log, found) = LocalLog::open(folder, &header(), Epoch(after)).unwrap();
        assert_eq!(found, records(after + 1..30), "opened behind {after}");
    }
    let error = LocalLog::read(folder, Epoch(30)).unwrap_err();
    assert!(matches!(error, EpochLogError::TooShort { last: 29, after: 30, .. }), "{error}");
    // What is before it is not looked at.
    std::fs::write(folder.join(LOG), "no log").unwrap();
    assert_eq!(LocalLog::read(folder, Epoch(20)).unwrap(), records(21..30));
}

#[test]
fn is_cut_back_to_whole_records_wherever_a_crash_tore_it() {
    for segments in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (mut log, _) = open(folder);
        let begun = if segments { 8 } else { 1 };
        (1..begun).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
        if segments {
            log.begin_segment().unwrap();
        }
        log.append(&records(begun..begun + 3)).unwrap();
        drop(log);
        let path = Segment::list(folder).unwrap().pop().unwrap().path;
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut log, found) = LocalLog::open(folder, &header(), Epoch(0)).unwrap();
            let next = found.len() as u64 + 1;
            assert!(next >= begun, "torn at {len}: what is before is whole");
            log.append(&[record(next)]).unwrap();
            drop(log);
            assert_eq!(read_all(folder), records(1..next + 1), "torn at {len}");
        }
    }
}

#[test]
fn damage_in_its_midst_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut log, _) = open(folder);
    (1..12).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    drop(log);
    let segments = Segment::list(folder).unwrap();
    assert!(segments.len() >= 3);
    let check = |segment: &Segment, bytes: &[u8], expected: &str| {
        let before = std::fs::read(&segment.path).unwrap();
        std::fs::write(&segment.path, bytes).unwrap();
        let error = LocalLog::read(folder, Epoch(0)).unwrap_err();
        assert!(matches!(error, EpochLogError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        std::fs::write(&segment.path, before).unwrap();
    };
    for segment in &segments[..segments.len() - 1] {
        let whole = std::fs::read(&segment.path).unwrap();
        let ends: Vec<usize> = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at).collect();
        let name = segment.path.display();
        for (line, end) in ends.iter().enumerate() {
            let mut bytes = whole.clone();
            bytes[end - 3] ^= 1;
            check(segment, &bytes, &format!("{name}, line {} is damaged: its checksum does not fit", line + 1));
        }
        check(segment, &whole[..whole.len() - 1], "it ends within a line, but there are later files");
        check(segment, &whole[..ends[ends.len() - 2] + 1], "follows epoch");
    }
    // In the last one, something whole must follow.
    let last = &segments[segments.len() - 1];
    let mut bytes = std::fs::read(&last.path).unwrap();
    push_line(&mut bytes, &record(12));
    let end = bytes.iter().position(|b| *b == b'\n').unwrap();
    bytes[end - 3] ^= 1;
    check(last, &bytes, "line 1 is damaged");

    std::fs::remove_file(&segments[0].path).unwrap();
    let error = LocalLog::open(folder, &header(), Epoch(0)).err().unwrap();
    assert!(error.to_string().contains("and what comes behind epoch 0 is needed"), "{error}");
}

#[test]
fn old_segments_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut log, _) = open(folder);
    (1..30).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    let firsts = || Segment::list(folder).unwrap().iter().map(|segment| segment.first).collect::<Vec<_>>();
    let begun = firsts();
    let drop_old = |through: u64, sealed_before: i64| LocalLog::drop_old(folder, &Old { through: Epoch(through), sealed_before }).unwrap();
    assert!(begun.len() > 5);
    // What the second segment begins with is too new, by either measure.
    assert_eq!(drop_old(begun[1] - 2, i64::MAX), None);
    assert_eq!(drop_old(29, record(begun[1]).sealed_at), None);
    assert_eq!(drop_old(begun[2] - 1, i64::MAX), Some(Epoch(begun[2] - 1)));
    assert_eq!(firsts(), begun[2..]);
    assert_eq!(drop_old(29, record(begun[3]).sealed_at + 1), Some(Epoch(begun[3] - 1)));
    let first = begun[3];
    for after in 0..30 {
        let found = LocalLog::read(folder, Epoch(after));
        if after + 1 >= first {
            assert_eq!(found.unwrap(), records(after + 1..30), "behind {after}");
        } else {
            let error = found.unwrap_err();
            assert!(matches!(error, EpochLogError::Dropped { .. }), "{error}");
        }
    }
    assert_eq!(super::super::read(&super::super::LogHome::Folder(folder.to_owned())).unwrap(), records(first..30));
    // The newest segment stays, and is gone on with.
    assert_eq!(drop_old(29, i64::MAX), Some(Epoch(begun[begun.len() - 1] - 1)));
    assert_eq!(firsts(), begun[begun.len() - 1..]);
    log.append(&records(30..40)).unwrap();
    drop(log);
    let (mut log, found) = LocalLog::open_with(folder, &header(), Epoch(35), SMALL).unwrap();
    assert_eq!(found, records(36..40));
    log.append(&[record(40)]).unwrap();
    drop(log);
    let error = LocalLog::open(folder, &header(), Epoch(0)).err().unwrap().to_string();
    assert!(error.contains(&format!("begins with epoch {}, and what comes behind epoch 0 is needed", begun[begun.len() - 1])), "{error}");
}

#[test]
fn another_job_is_refused_behind_any_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = open(folder.path());
    (1..12).for_each(|epoch| log.append(&[record(epoch)]).unwrap());
    drop(log);
    let other = LogHeader { job: "other".into(), ..header() };
    for after in [0, 11] {
        let error = LocalLog::open(folder.path(), &other, Epoch(after)).err().unwrap();
        assert!(error.to_string().contains("it belongs to the job \"test\", this is \"other\""), "{error}");
    }
}

/// The disk was full, or the job killed, when the newest segment was begun.
#[test]
fn a_segment_without_a_header_has_that_of_the_one_before() {
    let other = LogHeader { job: "other".into(), ..header() };
    let grown = LogHeader { splits: vec!["orders-0.jsonl".into(), "orders-1.jsonl".into()], ..header() };
    for bytes in [0, 20] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (mut log, _) = open(folder);
        log.append(&records(1..8)).unwrap();
        log.begin_segment().unwrap();
        drop(log);
        let newest = OpenOptions::new().write(true).open(Segment::at(folder, 8).path).unwrap();
        newest.set_len(bytes).unwrap();
        for after in [6, 7] {
            let found = LocalLog::read_with_header(folder, Epoch(after)).unwrap();
            assert_eq!(found, (header(), records(after + 1..8)), "behind {after}");
            let error = LocalLog::open(folder, &other, Epoch(after)).err().unwrap();
            assert!(matches!(error, EpochLogError::Different { .. }), "behind {after}: {error}");
        }
        assert_eq!(newest.metadata().unwrap().len(), bytes, "who was refused wrote nothing");
        let (mut log, found) = LocalLog::open(folder, &grown, Epoch(7)).unwrap();
        assert_eq!((log.header(), found), (&header(), Vec::new()));
        log.append(&records(8..10)).unwrap();
        drop(log);
        assert_eq!(LocalLog::read_with_header(folder, Epoch(7)).unwrap(), (header(), records(8..10)));
        assert_eq!(read_all(folder), records(1..10));
    }
}

proptest! {
    /// However groups, restarts and torn ends come: what was acknowledged is there, once, in order.
    #[test]
    fn restarted_at_any_point_it_is_contiguous(
        steps in prop::collection::vec((1_u64..6, any::<bool>(), 0_usize..200), 1..25),
        drops in any::<bool>(),
        segment_bytes_max in 1_u64..800,
        after in 0_u64..40,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let reopen = |after| LocalLog::open_with(folder, &header(), Epoch(after), segment_bytes_max).unwrap();
        let (mut log, _) = reopen(0);
        let (mut next, mut first) = (1, 1);
        for (count, restart, torn) in steps {
            log.append(&records(next..next + count)).unwrap();
            next += count;
            let behind = |after: u64| after.clamp(first - 1, next - 1);
            if drops {
                let old = Old { through: Epoch(behind(after)), sealed_before: i64::MAX };
                first = LocalLog::drop_old(folder, &old).unwrap().map_or(first, |last| last.0 + 1);
            }
            let after = after.clamp(first - 1, next - 1);
            if restart {
                drop(log);
                // A crash amid the next group.
                let mut group = Vec::new();
                records(next..next + 3).iter().for_each(|record| push_line(&mut group, record));
                let path = Segment::list(folder).unwrap().pop().unwrap().path;
                OpenOptions::new().append(true).open(path).unwrap().write_all(&group[..torn.min(group.len() - 1)]).unwrap();
                let found;
                (log, found) = reopen(after);
                next = after + found.len() as u64 + 1;
                prop_assert_eq!(found, records(after + 1..next));
            }
        }
        let after = after.clamp(first - 1, next - 1);
        prop_assert_eq!(LocalLog::read(folder, Epoch(first - 1)).unwrap(), records(first..next));
        prop_assert_eq!(LocalLog::read(folder, Epoch(after)).unwrap(), records(after + 1..next));
    }
}
