//! `--supervise`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orderflow_fixtures::reference::ReferenceSettings;
use rand::Rng;

use crate::common::{assert_equal, expect_success, expected, replay_command, tables};
use crate::{LONG, ended, eventually, generated, is_alive, log_bytes, seeded, set, signal};

const OFTEN: [&str; 7] = [
    "epoch.rows_max=200",
    "sinks.delta.commit_interval=20 ms",
    "replay.checkpoints=true",
    "checkpoint.interval=50 ms",
    "supervise.backoff_min=20 ms",
    "supervise.backoff_max=200 ms",
    "supervise.failures_max=0",
];

/// A supervisor, and what it says.
struct Supervised {
    supervisor: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Supervised {
    /// `orderflow replay --supervise`.
    fn start(input: &Path, out: &Path, settings: &[&str], more: &[&str]) -> Supervised {
        let settings = set(settings);
        let arguments: Vec<&str> =
            ["--supervise"].into_iter().chain(settings.iter().map(String::as_str)).chain(more.iter().copied()).collect();
        let mut supervisor = replay_command(input, out, &arguments).args(["--set", "log.level=info"]).spawn().unwrap();
        let stderr = supervisor.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        let read = move || BufReader::new(stderr).lines().for_each(|line| lines.lock().unwrap().push(line.unwrap()));
        Supervised { supervisor, log, reader: std::thread::spawn(read) }
    }

    /// The process that does the work, as the supervisor said last, and how often it was started before.
    fn child(&self) -> Option<(u32, u64)> {
        let log = self.log.lock().unwrap();
        let line = log.iter().rev().find(|line| line.contains("the job is started "))?;
        let field = |name: &str| line.split(name).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
        Some((field("pid=")? as u32, field("restarts=")?))
    }

    fn wait_for_child(&self) -> u32 {
        eventually("the supervisor starts the job", || self.child().is_some());
        self.child().unwrap().0
    }

    fn has_ended(&mut self) -> bool {
        self.supervisor.try_wait().unwrap().is_some()
    }

    /// Its status at the end, and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        while !self.has_ended() {
            assert!(started.elapsed() < LONG, "the supervisor does not end: {:?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.supervisor.wait().unwrap();
        self.reader.join().unwrap();
        let log = self.log.lock().unwrap().join("\n");
        (status.code(), log)
    }
}

fn free_hosts(processes: usize) -> String {
    let listeners: Vec<_> = (0..processes).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect::<Vec<_>>().join(",")
}

/// Either process is killed at any moment, also while they meet or take up a checkpoint. Nobody starts them again but their supervisors.
#[test]
fn a_pair_meets_again_after_kills() {
    const KILLS: usize = 10;
    let (seed, mut random) = seeded();
    let input = generated(seed, 5_000);
    let out = tempfile::tempdir().unwrap();
    let hosts = free_hosts(2);
    let mut pair = ["0", "1"].map(|process| {
        let cluster = ["--rate", "4000", "--workers", "2", "--hosts", &hosts, "--process", process];
        Supervised::start(input.path(), out.path(), &OFTEN, &cluster)
    });
    eventually("the pair begins", || log_bytes(out.path()) > 1_000);
    let mut kills = 0;
    while kills < KILLS && !pair.iter_mut().any(Supervised::has_ended) {
        let one = &mut pair[random.random_range(0..2)];
        let child = one.child();
        signal(one.wait_for_child(), libc::SIGKILL);
        // A child whose supervisor has not said so is not killed twice; and the pair is to come to something now and then.
        eventually("a killed job is started again", || one.child() > child || one.has_ended());
        kills += usize::from(one.child() > child);
        std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
    }
    let mut restarts = 0;
    for one in pair {
        let (status, log) = one.end();
        assert_eq!(status, Some(0), "seed {seed}: {log}");
        restarts += log.matches("the job failed and is started again").count();
    }
    assert!(restarts >= kills, "{restarts} restarts after {kills} kills");
    println!("{kills} kills, {restarts} restarts");
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), &format!("a pair, seed {seed}"));
}

/// The job is stopped in the midst of its work, and goes on with more workers and with fewer.
#[test]
fn a_stop_reaches_the_job_and_it_goes_on_with_other_workers() {
    let input = generated(11, 5_000);
    let out = tempfile::tempdir().unwrap();
    for (workers, with) in [("1", libc::SIGTERM), ("3", libc::SIGINT), ("2", libc::SIGTERM)] {
        let before = log_bytes(out.path());
        let supervised = Supervised::start(input.path(), out.path(), &OFTEN, &["--rate", "1000", "--workers", workers]);
        let child = supervised.wait_for_child();
        eventually("epochs are sealed", || log_bytes(out.path()) > before + 2_000);
        signal(supervised.supervisor.id(), with);
        let (status, log) = supervised.end();
        assert!(!is_alive(child), "the job outlives its supervisor");
        // It is a replay, which has an end that it did not reach.
        assert_eq!(status, Some(1), "{log}");
        assert!(log.contains("error: stopped before the end of the input") && !log.contains("is started again"), "{log}");
    }
    let (status, log) = Supervised::start(input.path(), out.path(), &OFTEN, &["--workers", "4"]).end();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("going on from a checkpoint"), "{log}");
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), "other workers");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let input = generated(12, 3_000);
    let out = tempfile::tempdir().unwrap();
    let supervised = Supervised::start(input.path(), out.path(), &OFTEN, &["--rate", "100"]);
    let child = supervised.wait_for_child();
    eventually("epochs are sealed", || log_bytes(out.path()) > 500);
    // It hears nothing any more.
    signal(child, libc::SIGSTOP);
    signal(supervised.supervisor.id(), libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(is_alive(child));
    signal(supervised.supervisor.id(), libc::SIGINT);
    let (status, log) = supervised.end();
    assert_eq!(status, Some(128 + libc::SIGKILL), "{log}");
    assert!(!is_alive(child), "{log}");
}

/// A supervisor that was killed cannot say anything; a job that went on would hold the folder for ever.
#[test]
fn a_job_without_its_supervisor_ends() {
    let input = generated(13, 3_000);
    let out = tempfile::tempdir().unwrap();
    let supervised = Supervised::start(input.path(), out.path(), &OFTEN, &["--rate", "500"]);
    let child = supervised.wait_for_child();
    eventually("epochs are sealed", || log_bytes(out.path()) > 1_000);
    signal(supervised.supervisor.id(), libc::SIGKILL);
    eventually("the job ends", || !is_alive(child));
    let (status, _) = supervised.end();
    assert_eq!(status, None);
    expect_success(replay_command(input.path(), out.path(), &set(&OFTEN).iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap());
    assert_equal(&tables(out.path()), &expected(input.path(), out.path(), &ReferenceSettings::default()), "without its supervisor");
}

#[test]
fn what_another_start_cannot_mend_ends_it() {
    let input = generated(14, 200);
    let out = tempfile::tempdir().unwrap();
    let check = |settings: &[&str], status: i32, starts: usize, message: &str| {
        let (found, log) = Supervised::start(input.path(), out.path(), &[&OFTEN[..], settings].concat(), &[]).end();
        assert_eq!((found, log.matches("the job is started ").count()), (Some(status), starts), "{log}");
        assert!(log.contains(message), "{log}");
    };
    check(&[], 0, 1, "the job ended");
    check(&["epoch.rows_maxx=7"], 2, 0, "did you mean `epoch.rows_max`?");
    check(&["watermark.delay=9 s"], 2, 1, "it was begun with other settings");
    let folder = input.path().join("orders-000.jsonl").display().to_string();
    let limit = ["supervise.failures_max=3", &format!("sinks.delta.url={folder}")];
    check(&limit, 1, 3, "error: the job failed 3 times within 5 min and is not started again");
}

#[test]
fn a_supervised_job_counts_its_restarts() {
    let input = generated(15, 3_000);
    let out = tempfile::tempdir().unwrap();
    let port = free_hosts(1);
    let supervised = Supervised::start(input.path(), out.path(), &OFTEN, &["--rate", "200", "--metrics", &port]);
    signal(supervised.wait_for_child(), libc::SIGKILL);
    let metrics = || -> std::io::Result<String> {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&port)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    eventually("the restart is counted", || metrics().is_ok_and(|text| text.contains("\norderflow_restarts_total 1\n")));
    signal(supervised.supervisor.id(), libc::SIGTERM);
    supervised.end();
}

/// Not by a supervisor: a process that is alone gives up, and says who is missing.
#[test]
fn a_process_that_is_stopped_while_it_waits_for_others_says_so() {
    let input = generated(16, 200);
    let out = tempfile::tempdir().unwrap();
    let hosts = free_hosts(2);
    let cluster = ["--hosts", &hosts, "--process", "0", "--set", "log.level=info"];
    let child = replay_command(input.path(), out.path(), &cluster).spawn().unwrap();
    eventually("it listens", || std::net::TcpStream::connect(hosts.split(',').next().unwrap()).is_ok());
    signal(child.id(), libc::SIGTERM);
    let (status, message) = ended(child);
    assert_eq!(status, Some(1));
    assert!(message.contains("stopped while it was waiting for the job's other processes"), "{message}");
}
