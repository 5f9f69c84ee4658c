//! Exactly once, whatever happens.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use orderflow_faults::store::{Fault, Faults};

use super::faults::{FAULTS, TableFault, faulty_sink};
use super::*;

#[tokio::test]
async fn what_was_not_committed_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sink(folder.path());
    assert_eq!(first.recover().await.unwrap(), Recovered::default());
    write_all(&mut first, 1..=2).await;
    first.commit(Epoch(2)).await.unwrap();
    // Killed with rows in memory, and in files that are in the store.
    write_all(&mut first, 3..=9).await;
    let state = first.state.as_mut().unwrap();
    for file in &mut state.files {
        file.stored(state.store.as_ref()).await.unwrap();
    }
    drop(first);
    assert_holds(folder.path(), 1..=2).await;

    let mut second = sink(folder.path());
    assert_eq!(second.recover().await.unwrap(), Recovered { committed: Epoch(2), group_through: None });
    write_all(&mut second, 3..=5).await;
    second.commit(Epoch(5)).await.unwrap();
    assert_holds(folder.path(), 1..=5).await;
}

#[tokio::test]
async fn a_repeated_commit_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = sink(folder.path());
    sink.recover().await.unwrap();
    write_all(&mut sink, 1..=2).await;
    for _ in 0..2 {
        sink.commit(Epoch(2)).await.unwrap();
    }
    assert_eq!(open(folder.path()).await.version(), Some(1));
    // Recovered half-way, the same rows come again.
    write_all(&mut sink, 3..=3).await;
    assert_eq!(sink.recover().await.unwrap().committed, Epoch(2));
    write_all(&mut sink, 3..=3).await;
    sink.commit(Epoch(3)).await.unwrap();
    assert_holds(folder.path(), 1..=3).await;
}

#[tokio::test]
async fn epochs_without_rows_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sink(folder.path());
    first.recover().await.unwrap();
    first.commit(Epoch(9)).await.unwrap();
    assert_eq!(sink(folder.path()).recover().await.unwrap().committed, Epoch(9));
    assert_holds(folder.path(), []).await;
}

async fn check_fault(fault: TableFault, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let mut sink = faulty_sink(settings(folder.path()), &faults);
    sink.recover().await.unwrap();
    fault.arm(&faults);
    write_all(&mut sink, 1..=6).await;
    let error = sink.commit(Epoch(6)).await.unwrap_err();
    assert!(matches!(&error, SinkError::Unavailable { reason, .. } if reason.contains(expected)), "{error}");
    sink.commit(Epoch(6)).await.unwrap();
    write_all(&mut sink, 7..=7).await;
    sink.commit(Epoch(7)).await.unwrap();
    assert_holds(folder.path(), 1..=7).await;
    assert_eq!(open(folder.path()).await.version(), Some(2));
}

#[tokio::test]
async fn a_store_that_fails_is_tried_again() {
    check_fault(TableFault::Data(Fault::Lost), "the network is down").await;
    check_fault(TableFault::Entry(Fault::Lost), "the network is down").await;
}

#[tokio::test]
async fn a_full_store_is_tried_again() {
    check_fault(TableFault::Data(Fault::Full), "No space left on device").await;
    check_fault(TableFault::Entry(Fault::Full), "No space left on device").await;
}

#[tokio::test]
async fn a_lost_answer_does_not_double_rows() {
    check_fault(TableFault::Entry(Fault::AnswerLost), "the network is down").await;
    check_fault(TableFault::Data(Fault::AnswerLost), "the network is down").await;
}

#[tokio::test]
async fn of_two_jobs_one_gives_up() {
    let folder = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (sink(folder.path()), sink(folder.path()));
    for sink in [&mut one, &mut other] {
        sink.recover().await.unwrap();
    }
    write_all(&mut one, 1..=2).await;
    write_all(&mut other, 1..=3).await;
    one.commit(Epoch(2)).await.unwrap();
    let error = other.commit(Epoch(3)).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable { .. }), "{error}");
    let error = other.commit(Epoch(3)).await.unwrap_err();
    assert!(matches!(&error, SinkError::Refused { reason, .. } if reason.contains("another job of the same job.id")), "{error}");
    assert!(other.commit(Epoch(3)).await.is_err());
    assert_holds(folder.path(), 1..=2).await;
    assert_eq!(other.recover().await.unwrap().committed, Epoch(2));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Commit(TableFault),
    Maintain,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Write),
        3 => Just(Step::Commit(TableFault::None)),
        1 => proptest::sample::select(&FAULTS[..]).prop_map(Step::Commit),
        1 => Just(Step::Maintain),
        1 => Just(Step::Kill),
    ]
}

/// Whatever is done, in whatever order, each epoch is there once, and `recover` says so.
#[test]
fn each_epoch_once_through_anything() {
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runner
        .run(&proptest::collection::vec(step(), 1..40), |steps| {
            runtime.block_on(walk(&steps));
            Ok(())
        })
        .unwrap();
}

async fn walk(steps: &[Step]) {
    let folder = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let settings = DeltaSettings { checkpoint_interval: 3, optimize_commits: 2, ..settings(folder.path()) };
    let mut sink = faulty_sink(settings.clone(), &faults);
    sink.recover().await.unwrap();
    let (mut committed, mut written) = (0, 0);
    for step in steps {
        match step {
            Step::Write => {
                written += 1;
                sink.write(rows(written)).await.unwrap();
            }
            Step::Commit(fault) => {
                fault.arm(&faults);
                while sink.commit(Epoch(written)).await.is_err() {}
                committed = written;
            }
            Step::Maintain => {
                // A fault that no commit came upon may hit here.
                let _ = sink.maintain().await;
            }
            Step::Kill => {
                sink = faulty_sink(settings.clone(), &faults);
                faults.clear();
                assert_eq!(sink.recover().await.unwrap().committed, Epoch(committed));
                written = committed;
            }
        }
    }
    assert_holds(folder.path(), 1..=committed).await;
}
