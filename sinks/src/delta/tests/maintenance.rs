//! Housekeeping: when it comes, and what comes of it when something is wrong.

use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

use orderflow_faults::store::{Call, Fault, Faults};

use super::super::housekeeping::Budget;
use super::faults::faulty_sink;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

async fn commit_each(sink: &mut DeltaSink, epochs: impl IntoIterator<Item = u64>) {
    for epoch in epochs {
        write_all(sink, [epoch]).await;
        sink.commit(Epoch(epoch)).await.unwrap();
    }
}

async fn commit_and_maintain_each(sink: &mut DeltaSink, epochs: impl IntoIterator<Item = u64>) {
    for epoch in epochs {
        commit_each(sink, [epoch]).await;
        sink.maintain().await.unwrap();
    }
}

async fn files_count(folder: &Path) -> usize {
    open(folder).await.snapshot().unwrap().log_data().num_files()
}

/// A file of this age in the table's folder.
fn aged(folder: &Path, name: &str, age: Duration) -> PathBuf {
    let path = table_folder(folder).join(name);
    File::create(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    path
}

#[tokio::test]
async fn lives_that_are_short_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DeltaSettings { optimize_commits: 4, ..settings(folder.path()) };
    for epoch in 1..=12 {
        let mut sink = sink_with(settings.clone());
        sink.recover().await.unwrap();
        commit_and_maintain_each(&mut sink, [epoch]).await;
    }
    let files = files_count(folder.path()).await;
    assert!(files < 8, "{files}");
    assert_holds(folder.path(), 1..=12).await;
}

#[tokio::test]
async fn a_backlog_is_compacted_over_several_calls() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sink_with(DeltaSettings { optimize_commits: 0, ..settings(folder.path()) });
    first.recover().await.unwrap();
    commit_and_maintain_each(&mut first, 1..=24).await;
    let files = names(&table_folder(folder.path())).into_iter().filter(|name| name.ends_with(".parquet"));
    let bytes = files.map(|name| table_folder(folder.path()).join(name).metadata().unwrap().len());
    let optimize_bytes_target = 6 * bytes.max().unwrap();
    let mut second = sink_with(DeltaSettings { optimize_commits: 20, optimize_bytes_target, ..settings(folder.path()) });
    second.recover().await.unwrap();
    // A run a call.
    second.state.as_mut().unwrap().housekeeping.budget = Budget { bytes: 1, ..Budget::default() };
    let version = async || open(folder.path()).await.version().unwrap();
    let mut calls = 0;
    loop {
        let next = 25 + calls;
        commit_each(&mut second, [next]).await;
        let before = version().await;
        second.maintain().await.unwrap();
        let entries = version().await - before;
        assert!(entries <= 1, "{entries} entries in a call");
        assert_holds(folder.path(), 1..=next).await;
        if entries == 0 {
            break;
        }
        calls += 1;
    }
    let files = files_count(folder.path()).await;
    assert!(calls >= 3 && files <= 12, "{files} files after {calls} calls");
}

#[tokio::test]
async fn a_file_that_cannot_be_compacted_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink_with(DeltaSettings { optimize_commits: 9, vacuum_retention: HOUR, ..settings(folder.path()) });
    sink.recover().await.unwrap();
    let orphan = aged(folder.path(), "orphan.parquet", 2 * HOUR);
    commit_and_maintain_each(&mut sink, 1..=8).await;
    let path = |epoch: u64| {
        let begin = format!("epoch-{epoch:012}");
        let name = names(&table_folder(folder.path())).into_iter().find(|name| name.starts_with(&begin)).unwrap();
        table_folder(folder.path()).join(name)
    };
    let damaged = [path(3), path(6)];
    let whole = damaged.clone().map(|path| std::fs::read(path).unwrap());
    std::fs::remove_file(&damaged[0]).unwrap();
    std::fs::write(&damaged[1], "no Parquet").unwrap();
    commit_and_maintain_each(&mut sink, 9..=12).await;
    assert_eq!(sink.state.as_ref().unwrap().housekeeping.unfit.len(), 2);
    assert!(!orphan.exists(), "vacuum comes all the same");
    let files = files_count(folder.path()).await;
    assert!(files <= 7, "{files}: the others are compacted");
    for (path, bytes) in damaged.iter().zip(whole) {
        std::fs::write(path, bytes).unwrap();
    }
    assert_holds(folder.path(), 1..=12).await;
}

#[tokio::test]
async fn vacuum_does_not_wait_for_a_compaction_to_succeed() {
    // The merged file is not there; or the entry is, and nobody knows.
    for (part_of_name, fault) in [("epoch-", Fault::Lost), (".json", Fault::AnswerLost)] {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let settings = DeltaSettings { optimize_commits: 4, vacuum_retention: Duration::from_millis(1), ..settings(folder.path()) };
        let mut sink = faulty_sink(settings, &faults);
        sink.recover().await.unwrap();
        commit_each(&mut sink, 1..=4).await;
        let orphan = aged(folder.path(), "orphan.parquet", HOUR);
        faults.add(Call::Put, part_of_name, &[fault]);
        let error = sink.maintain().await.unwrap_err();
        assert!(matches!(&error, SinkError::Unavailable { reason, .. } if reason.contains("the network is down")), "{error}");
        assert!(!orphan.exists(), "{part_of_name}");
        assert_holds(folder.path(), 1..=4).await;
        commit_and_maintain_each(&mut sink, 5..=12).await;
        assert_holds(folder.path(), 1..=12).await;
        let files = files_count(folder.path()).await;
        assert!(files < 8, "{part_of_name}: {files}");
    }
}

/// delta-rs would let both through, and all rows be there twice.
#[tokio::test]
async fn of_two_compactions_one_gets_through() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DeltaSettings { optimize_commits: 4, ..settings(folder.path()) };
    let (mut one, mut other) = (sink_with(settings.clone()), sink_with(settings));
    one.recover().await.unwrap();
    commit_each(&mut one, 1..=4).await;
    other.recover().await.unwrap();
    one.maintain().await.unwrap();
    other.maintain().await.unwrap();
    assert_eq!(files_count(folder.path()).await, 1);
    assert_holds(folder.path(), 1..=4).await;
    commit_each(&mut other, [5]).await;
    assert_holds(folder.path(), 1..=5).await;
}

#[tokio::test]
async fn another_jobs_commit_is_noticed_behind_housekeeping() {
    // With a compaction, and with a vacuum alone.
    for optimize_bytes_target in [64 << 20, 1] {
        let folder = tempfile::tempdir().unwrap();
        let settings = DeltaSettings { optimize_commits: 2, optimize_bytes_target, vacuum_retention: HOUR, ..settings(folder.path()) };
        let (mut one, mut other) = (sink_with(settings.clone()), sink_with(settings));
        one.recover().await.unwrap();
        commit_each(&mut one, 1..=2).await;
        aged(folder.path(), "orphan.parquet", 2 * HOUR);
        other.recover().await.unwrap();
        commit_each(&mut other, [3]).await;
        one.maintain().await.unwrap();
        write_all(&mut one, 3..=4).await;
        let error = one.commit(Epoch(4)).await.unwrap_err();
        assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("another job of the same job.id")), "{error}");
        assert_holds(folder.path(), 1..=3).await;
    }
}

#[tokio::test]
async fn what_killed_lives_left_half_written_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    sink(folder.path()).recover().await.unwrap();
    let old = aged(folder.path(), "_delta_log/00000000000000000001.json#12", 25 * HOUR);
    let young = aged(folder.path(), "epoch-000000000001.parquet#12", 23 * HOUR);
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    assert!(!old.exists() && young.exists());
    commit_each(&mut sink, [1]).await;
    assert_holds(folder.path(), [1]).await;
}
