//! A broker of a test's own, by `deploy/dev/kafka.sh`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A broker that ends with this value. Its data outlive a [kill](Broker::kill).
pub(super) struct Broker {
    port: u16,
    folder: TempDir,
}

impl Broker {
    /// Starts one; none, and a line that says so, where what it needs is not installed.
    pub fn start(test: &str) -> Option<Broker> {
        for (program, version) in [("java", "-version"), ("mvn", "-version")] {
            let found = Command::new(program).arg(version).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !found.is_ok_and(|status| status.success()) {
                // Past the capture of a test's output: nothing was tested.
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no Kafka broker, as `{program}` is not installed");
                return None;
            }
        }
        let broker = Broker { port: free_port(), folder: tempfile::tempdir().unwrap() };
        broker.restart();
        Some(broker)
    }

    /// Starts it again.
    pub fn restart(&self) {
        self.script("start");
    }

    /// Ends it at once, as a power failure of the process would.
    pub fn kill(&self) {
        let pid: i32 = std::fs::read_to_string(self.data().join("pid")).unwrap().trim().parse().unwrap();
        // SAFETY: the call takes numbers alone.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        // Its port is free when it is gone.
        let answers = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        (0..1_000).take_while(|_| answers()).for_each(|_| std::thread::sleep(Duration::from_millis(10)));
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("kafka")
    }

    fn script(&self, command: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/kafka.sh");
        let done = Command::new(script)
            .arg(command)
            .env("KAFKA_PORT", self.port.to_string())
            .env("KAFKA_DATA", self.data())
            .env("KAFKA_HEAP", "256m")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would hide the first.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.script("wipe")));
        } else {
            self.script("wipe");
        }
    }
}

/// A port that nobody listens on, nor on the next, which is the controller's.
fn free_port() -> u16 {
    let free = |_| {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
    };
    (0..100).find_map(free).unwrap()
}
