//! Stores that fail, disks that fill up and clocks that jump: what the job does then is in README.md, under "When things go wrong".

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{assert_equal, epochs, expected, replay_command, tables};
use orderflow_faults::VARIABLE;
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::reference::{EpochRecord, ReferenceSettings};
use serde_json::Value;

/// No wait is longer.
const LONG: Duration = Duration::from_secs(90);

const OFTEN: [&str; 8] = [
    "--set",
    "epoch.rows_max=200",
    "--set",
    "sinks.delta.commit_interval=10 ms",
    "--set",
    "checkpoint.interval=20 ms",
    "--set",
    "replay.checkpoints=true",
];

fn generated(seed: u64, orders: u64) -> tempfile::TempDir {
    let input = tempfile::tempdir().unwrap();
    let settings = GenerateSettings { orders, seed, skus: 200, customers: 400, ..GenerateSettings::default() };
    write_folder(&settings, Compression::Plain, input.path(), |_| ()).unwrap();
    input
}

/// A job's process; it ends with this.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(input: &Path, out: &Path, more: &[&str], faults: &str) -> Process {
        let mut command = replay_command(input, out, &[&OFTEN[..], more].concat());
        static PROCESSES: AtomicUsize = AtomicUsize::new(0);
        let log = out.with_extension(format!("{}.log", PROCESSES.fetch_add(1, Ordering::Relaxed)));
        command.args(["--set", "log.level=info"]);
        let child = command.env(VARIABLE, faults).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Process { child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    fn until(&mut self, what: &str, holds: impl Fn(&str) -> bool) {
        let started = Instant::now();
        while !holds(&self.said()) {
            assert!(started.elapsed() < LONG, "not within {} s: {what}: {}", LONG.as_secs(), self.said());
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before {what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its exit status, and all that it said.
    fn end(mut self) -> (bool, String) {
        let ended = self.child.wait().unwrap();
        (ended.success(), self.said())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// The whole of what a job did, in a folder of its own.
struct Out {
    folder: tempfile::TempDir,
}

impl Out {
    fn new() -> Out {
        Out { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path().join("checkpoints").join(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| !name.contains('#')).collect()
    }

    /// The job goes on to its end, on another number of workers.
    #[track_caller]
    fn the_rest(&self, input: &Path) {
        let (whole, said) = Process::start(input, &self.path(), &["--workers", "3"], "").end();
        assert!(whole, "{said}");
        assert!(said.contains("going on from a checkpoint"), "{said}");
    }

    #[track_caller]
    fn check(&self, input: &Path, what: &str) {
        assert_equal(&tables(&self.path()), &expected(input, &self.path(), &ReferenceSettings::default()), what);
    }

    /// Of data files begun by the oldest checkpoint there are those that manifests name.
    #[track_caller]
    fn check_no_file_is_left(&self) {
        let manifests = self.names("manifests");
        let read = |name: &String| -> Value {
            serde_json::from_slice(&std::fs::read(self.path().join("checkpoints/manifests").join(name)).unwrap()).unwrap()
        };
        let named: BTreeSet<String> =
            manifests.iter().flat_map(|name| read(name)["files"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()).collect();
        let oldest = manifests.first().unwrap().trim_end_matches(".json").to_owned();
        let left: Vec<String> = self
            .names("data")
            .into_iter()
            .filter(|name| name.split('-').next() <= Some(oldest.as_str()) && !named.contains(name))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A job meets `faults` and says one of `expected`; makes checkpoints again; is killed, and goes on from one of these.
#[track_caller]
fn check_checkpoints_come_again(seed: u64, more: &[&str], faults: &str, expected: &[&str]) {
    let (input, out) = (generated(seed, 8_000), Out::new());
    let more = [&["--rate", "600", "--workers", "2"], more].concat();
    let mut job = Process::start(input.path(), &out.path(), &more, faults);
    job.until(&expected.join(" or "), |said| expected.iter().any(|expected| said.contains(expected)));
    two_more(&out, &mut job);
    drop(job);
    out.the_rest(input.path());
    out.check(input.path(), faults);
    out.check_no_file_is_left();
}

/// Waits for two newer checkpoints.
#[track_caller]
fn two_more(out: &Out, job: &mut Process) {
    let newest = out.names("manifests").pop_last();
    let mut newer = BTreeSet::new();
    job.until("two newer checkpoints", |_| true);
    let started = Instant::now();
    while newer.len() < 2 {
        newer.extend(out.names("manifests").into_iter().filter(|name| Some(name) > newest.as_ref()));
        assert!(started.elapsed() < LONG, "no checkpoint comes any more: {}", job.said());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_manifest_that_cannot_be_put_waits() {
    check_checkpoints_come_again(1, &[], "checkpoint.manifest.before=1*off->4*return(timeout)", &["a checkpoint waits"]);
    // It is put, and nobody knows.
    check_checkpoints_come_again(2, &[], "checkpoint.manifest.after=1*off->2*return(error)", &["a checkpoint waits"]);
}

#[test]
fn files_that_cannot_be_written_cost_a_checkpoint() {
    let full = "checkpoint.file.finish.before=5*off->40*return(enospc)";
    check_checkpoints_come_again(3, &[], full, &["no checkpoint could be made of this epoch"]);
    check_checkpoints_come_again(4, &[], "checkpoint.garbage.before=2*return(error)", &["old checkpoints could not be removed"]);
}

/// What is said while changes are missing. Of several reasons the first is told.
const LOST: &str = "no checkpoint could be made of this epoch";

/// The store is so slow that changes are dropped, those of orders among them, on which the windows of the fraud features rest.
#[test]
fn lost_changes_of_orders_are_made_up_for() {
    let slow = "checkpoint.file.before=20*off->8*sleep(400)";
    check_checkpoints_come_again(5, &["--set", "checkpoint.buffer_bytes_max=64 KiB"], slow, &[LOST]);
}

/// What one process has lost, all of them write anew.
#[test]
fn changes_of_orders_that_one_process_lost_are_made_up_for() {
    let (input, out) = (generated(6, 8_000), Out::new());
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let hosts = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect::<Vec<_>>().join(",");
    drop(listeners);
    let full = "checkpoint.file.finish.before=12*off->40*return(enospc)";
    let mut processes = [("0", ""), ("1", full)].map(|(process, faults)| {
        let more = ["--rate", "600", "--workers", "2", "--hosts", &hosts, "--process", process];
        Process::start(input.path(), &out.path(), &more, faults)
    });
    processes[0].until("the loss", |said| said.contains(LOST));
    two_more(&out, &mut processes[0]);
    drop(processes);
    out.the_rest(input.path());
    out.check(input.path(), full);
    out.check_no_file_is_left();
}

/// The log cannot grow: the job ends, says why, and goes on from what was durable.
#[test]
fn a_full_disk_of_the_epoch_log_ends_the_job() {
    let input = generated(7, 1_000);
    // While a write takes long, the epochs that come meanwhile wait for the next one: for many writes, the input takes its time.
    let slow = ["--rate", "500", "--workers", "2"];
    for point in ["epoch_log.local.write.before", "epoch_log.local.sync.before", "epoch_log.local.segment.before"] {
        let out = Out::new();
        let faults = format!("epoch_log.local.segment.bytes=return(500);{point}=2*off->1*return(enospc)");
        let (whole, said) = Process::start(input.path(), &out.path(), &slow, &faults).end();
        assert!(!whole, "{point}: {said}");
        assert!(said.contains("No space left on device") && said.contains("can be started again once that is mended"), "{point}: {said}");
        let (whole, said) = Process::start(input.path(), &out.path(), &["--workers", "1"], "").end();
        assert!(whole, "{said}");
        out.check(input.path(), point);
    }
}

/// Clocks that jump by hours, forward and back, in a life and between two: sealing times do not go back, and what follows from them is right.
#[test]
fn a_clock_that_jumps_is_followed_forward_only() {
    const HOUR: i64 = 3_600_000;
    const WALL: &str = "replay.clock=wall";
    let (input, out) = (generated(8, 3_000), Out::new());
    let jumps = format!("seal_clock.ahead_ms=20*return(0)->10*return({})->10*return({})->return({HOUR})", 5 * HOUR, -3 * HOUR);
    let killed = format!("{jumps};epoch_log.local.sync.after=40*off->return(kill)");
    let (whole, said) =
        Process::start(input.path(), &out.path(), &["--set", "epoch.rows_max=40", "--workers", "2", "--set", WALL], &killed).end();
    assert!(!whole && said.contains("killed at"), "{said}");
    let (whole, said) = Process::start(
        input.path(),
        &out.path(),
        &["--set", "epoch.rows_max=40", "--set", WALL],
        &format!("seal_clock.ahead_ms=return({})", -9 * HOUR),
    )
    .end();
    assert!(whole, "{said}");
    out.check(input.path(), "a clock that jumps");
    let epochs = EpochRecord::parse_log(&epochs(&out.path())).unwrap();
    let times: Vec<i64> = epochs.iter().map(|epoch| epoch.sealed_at_ms).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times.last().unwrap() - times[0] >= 5 * HOUR, "it jumped forward");
}

/// A file system of its own that is full soon, where this machine's user may have one.
#[test]
fn disks_that_are_full() {
    let input = generated(9, 6_000);
    let mut mounts = Command::new("unshare");
    mounts.args(["--user", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]).stderr(Stdio::null());
    if !mounts.status().is_ok_and(|status| status.success()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED disks_that_are_full: this user may not mount a file system (unshare --user --mount)");
        return;
    }
    // What is on the small disk; what the job says; whether it goes on by itself once there is room.
    for (setting, said, goes_on) in [
        ("sinks.delta.url=DISK/delta", "sink unavailable", true),
        // Of a file or of the manifest, whichever comes first.
        ("checkpoint.url=DISK/checkpoints", "No space left on device", true),
        ("job.id=orderflow", "No space left on device", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (disk, out) = (folder.path().join("disk"), folder.path().join("out"));
        std::fs::create_dir_all(&disk).unwrap();
        let on_disk = |text: &str| text.replace("DISK", &disk.display().to_string());
        // Without a sink on it the log is alone there, and has a page.
        let (job_out, size) = if goes_on { (out.clone(), "200k") } else { (disk.join("out"), "8k") };
        let elsewhere = format!("sinks.delta.url={}", folder.path().join("delta").display());
        let setting = if goes_on { on_disk(setting) } else { elsewhere.clone() };
        let mut job = replay_command(input.path(), &job_out, &OFTEN);
        job.args(["--workers", "2", "--set", &setting, "--set", "sinks.delta.retry_backoff_max=200 ms", "--set", "epoch.rows_max=20"]);
        // One that goes on takes its time: there is more than one checkpoint, however long one takes.
        job.args(if goes_on { ["--rate", "2000"] } else { ["--set", "replay.checkpoints=false"] });
        let log = folder.path().join("log");
        // The file system is the shell's alone, and gone with it.
        let script = r#"
            set -e
            mount -t tmpfs -o size="$SIZE" tmpfs "$DISK"
            if [ "$GOES_ON" = true ]; then
                "$@" 2>"$LOG" &
                job=$!
                for _ in $(seq 600); do grep -q "$SAID" "$LOG" && break; kill -0 $job; sleep 0.1; done
                sleep 0.3
                mount -o remount,size=200m "$DISK"
                wait $job
            else
                ! "$@" 2>"$LOG"
                mount -o remount,size=200m "$DISK"
                "$@"
            fi
            cp -r "$DISK" "$COPY"
        "#;
        let mut shell = Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(job.get_program()).args(job.get_args());
        let copy = folder.path().join("copy");
        shell.env("DISK", &disk).env("SIZE", size).env("LOG", &log).env("SAID", said).env("COPY", &copy);
        shell.env("GOES_ON", goes_on.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        let output = shell.output().unwrap();
        let logged = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(output.status.success(), "{setting}: {} {logged}", String::from_utf8_lossy(&output.stderr));
        assert!(logged.contains(said), "{setting}: {logged}");
        if !goes_on {
            assert!(logged.contains("can be started again once that is mended"), "{logged}");
            std::fs::rename(copy.join("out"), &out).unwrap();
        } else if setting.contains("delta") {
            std::fs::rename(copy.join("delta"), out.join("delta")).unwrap();
        }
        let results = if goes_on { out.clone() } else { folder.path().to_owned() };
        assert_equal(&tables(&results), &expected(input.path(), &out, &ReferenceSettings::default()), &setting);
    }
}
