//! A real broker, on ports and in a folder of its own, and a reader of what it holds.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orderflow_sinks::kafka::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

/// No wait is longer.
pub const LONG: Duration = Duration::from_secs(90);

/// Apache Kafka, one node. It ends with the test.
pub struct Broker {
    port: u16,
    folder: TempDir,
}

impl Broker {
    /// Starts one, where it can be had.
    pub fn start(test: &str) -> Option<Broker> {
        for program in ["java", "mvn"] {
            if !Command::new(program).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
                // Past the capture of a test's output: nothing was tested.
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no `{program}` to run Kafka with (see deploy/dev/kafka.sh)");
                return None;
            }
        }
        let broker = Broker { port: two_free_ports(), folder: tempfile::tempdir().unwrap() };
        broker.up();
        Some(broker)
    }

    /// Starts it, after [`kill`](Broker::kill) again.
    pub fn up(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/kafka.sh");
        let mut start = Command::new("bash");
        start.arg(script).arg("start").env("KAFKA_PORT", self.port.to_string()).env("KAFKA_DATA", self.folder.path().join("data"));
        let status = start.env("KAFKA_HEAP", "256m").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "Kafka does not start: {:?}", std::fs::read_to_string(self.folder.path().join("data/server.log")));
    }

    /// Ends it as a power cut would, except that the disk keeps what it was told.
    pub fn kill(&self) {
        let Ok(pid) = std::fs::read_to_string(self.folder.path().join("data/pid")) else { return };
        let pid: i32 = pid.trim().parse().unwrap();
        // SAFETY: a system call on a number; the process is this broker's, which only `kill` ends.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        eventually("a killed broker ends", || TcpStream::connect(("127.0.0.1", self.port)).is_err());
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn settings(&self) -> KafkaSettings {
        KafkaSettings { brokers: self.address(), job: "job".to_owned(), partitions: 3, ..KafkaSettings::default() }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The broker takes a port, its controller the next.
fn two_free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A message as a read-committed reader has it.
#[derive(Debug)]
pub struct Read {
    pub partition: i32,
    pub key: Option<String>,
    pub value: serde_json::Value,
    pub headers: BTreeMap<String, String>,
}

pub fn reader(brokers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers),
        ("group.id", "reader"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("fetch.wait.max.ms", "20"),
    ] {
        config.set(name, value);
    }
    config.create().unwrap()
}

/// All that is committed, once there are `count` messages or more.
pub fn read(brokers: &str, topic: &str, count: usize) -> Vec<Read> {
    let start = Instant::now();
    loop {
        let read = read_to_end(brokers, topic);
        // The markers that make a transaction visible may come a moment after its end was answered.
        if read.len() >= count {
            return read;
        }
        assert!(start.elapsed() < LONG, "{} of {count} messages are in {topic}", read.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read_to_end(brokers: &str, topic: &str) -> Vec<Read> {
    let consumer = reader(brokers);
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut open, mut read, start) = (list.count(), Vec::new(), Instant::now());
    while open > 0 {
        assert!(start.elapsed() < LONG, "{open} partitions of {topic} have no end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter().collect::<Vec<_>>());
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                read.push(Read {
                    partition: message.partition(),
                    key: message.key().map(text),
                    value: serde_json::from_slice(message.payload().unwrap()).unwrap(),
                    headers: headers.map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect(),
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    read
}
