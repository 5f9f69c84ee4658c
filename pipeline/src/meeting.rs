//! How the processes of a job find each other.
//!
//! # Design
//!
//! Each process listens at its own address, connects to those before it, and is connected to by those behind it. On each connection both sides say
//! [who they are](Hello). A process that has a connection to every other one says on each of them that it is ready, and the job begins when it has
//! heard that from all.
//!
//! Processes start at different moments, and start again after failures, so a connection may be to a process that is gone by the time the last one
//! comes. Until it is ready a process therefore looks after the connections that it has: one that broke is made again. Whoever says it is ready to a process that has
//! just died begins, notices at once, and starts anew; the others are still here and meet it then.
//!
//! All waiting is bounded. What a process of an earlier release or of other settings says is no reason to give up before that: it may be about
//! to be replaced.
//!
//! A host can vanish without a word, by a power cut or a cut cable. Connections are therefore probed when they are quiet, and broken when
//! nothing is acknowledged for [`SILENCE_MAX`].

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use orderflow_operators::epoch::Epoch;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use crate::job_plan::Cluster;

/// What a process says of itself. All of a job say the same but for `process` and `stage_begins`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The job's name.
    pub job: String,
    /// The release of the program.
    pub release: String,
    /// All processes, as they know each other.
    pub hosts: Vec<String>,
    /// Worker threads of each process.
    pub workers: usize,
    /// Which of `hosts` it is.
    pub process: usize,
    /// By key, the settings on which results depend, and by SQL stage, what its results depend on.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The streams of the job, in the order in which they are built, each with the stages that write it.
    #[serde(default)]
    pub streams: Vec<String>,
    /// From process 0, which has the epoch log: by stage, the first epoch that it reads, where that is behind the state.
    #[serde(default)]
    pub stage_begins: BTreeMap<String, Epoch>,
}

impl Hello {
    /// What keeps the two from being processes of one job, said so that a user knows what to do.
    fn difference(&self, other: &Hello) -> Option<String> {
        let differs = |what: &str, there: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug| {
            Some(format!("it has {what} {there:?}, this one {here:?}: start all processes with the same"))
        };
        if other.job != self.job {
            return differs("job.id", &other.job, &self.job);
        }
        if other.release != self.release {
            return differs("release", &other.release, &self.release);
        }
        if other.hosts != self.hosts {
            return differs("--hosts", &other.hosts.join(","), &self.hosts.join(","));
        }
        if other.workers != self.workers {
            return differs("--workers", &other.workers, &self.workers);
        }
        let of = |hello: &Hello, but: &Hello| -> Vec<String> {
            let other = hello.settings.iter().filter(|(key, value)| but.settings.get(*key) != Some(value));
            other.map(|(key, value)| format!("{key}: {value}")).collect()
        };
        if other.settings != self.settings {
            return differs("settings", &of(other, self).join(", "), &of(self, other).join(", "));
        }
        if other.streams != self.streams {
            return differs("stages.files in the order of", &other.streams.join(", "), &self.streams.join(", "));
        }
        None
    }
}

/// Why processes did not meet.
#[derive(Debug, thiserror::Error)]
pub enum MeetingError {
    /// Some did not come in time.
    #[error("the job's other processes did not come within {waited_s} s; start all of them. {missing}")]
    Missing {
        /// How long they were waited for; seconds.
        waited_s: u64,
        /// Of each, what is known of it.
        missing: String,
    },
    /// It cannot listen at its own address.
    #[error("cannot listen at {address}, the address of --process {process} in --hosts: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The number of this process.
        process: usize,
        /// What happened.
        source: io::Error,
    },
    /// The job ended before.
    #[error("stopped while it was waiting for the job's other processes")]
    Over,
}

/// Time between two looks at who has come.
const LOOK: Duration = Duration::from_millis(20);
/// Time between two tries to connect.
const CONNECT_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait for a connection to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Longest wait for the other side's hello, by who connected: the other one may have callers before it.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// The same by who was called.
const CALLER_WAIT: Duration = Duration::from_secs(1);
/// No hello is longer.
const HELLO_BYTES_MAX: usize = 1 << 20;
/// What a process sends when it has all connections.
const READY: u8 = b'!';
/// When a connection counts as broken: nothing that was sent is acknowledged for so long.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A quiet connection is probed so often.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A connection to another process, and what that said of itself.
pub type Met = (TcpStream, Hello);

/// Meets the other processes: gives a connection to each, by its number, and what it said; none for this one.
///
/// # Errors
/// If they do not all come within `wait`, or before `is_over`.
pub fn meet(cluster: &Cluster, hello: &Hello, wait: Duration, is_over: &dyn Fn() -> bool) -> Result<Vec<Option<Met>>, MeetingError> {
    let started = Instant::now();
    let mut meeting = Meeting {
        peers: cluster.hosts.iter().map(|_| Peer::default()).collect(),
        listener: None,
        cluster,
        hello,
        last_process: cluster.process + 1 == cluster.hosts.len(),
    };
    loop {
        if is_over() {
            return Err(MeetingError::Over);
        }
        let listening = meeting.listen();
        meeting.connect();
        meeting.look_after();
        if listening.is_ok() && meeting.is_ready() {
            return Ok(meeting.peers.into_iter().map(Peer::hand_over).collect());
        }
        if started.elapsed() >= wait {
            listening?;
            return Err(MeetingError::Missing { waited_s: wait.as_secs(), missing: meeting.missing() });
        }
        std::thread::sleep(LOOK);
    }
}

struct Meeting<'a> {
    /// By number; this process's own has nothing.
    peers: Vec<Peer>,
    listener: Option<TcpListener>,
    cluster: &'a Cluster,
    hello: &'a Hello,
    /// Nobody connects to it.
    last_process: bool,
}

#[derive(Default)]
struct Peer {
    connection: Option<Connection>,
    tried: Option<Instant>,
    /// Why there is no connection.
    reason: Option<String>,
}

struct Connection {
    stream: TcpStream,
    hello: Hello,
    /// Whether the peer was told that this process is ready.
    told: bool,
    /// Whether it said so itself.
    ready: bool,
}

impl Peer {
    fn met(&mut self, (stream, hello): Met) {
        *self = Peer { connection: Some(Connection { stream, hello, told: false, ready: false }), tried: None, reason: None };
    }

    fn failed(&mut self, reason: String) {
        self.connection = None;
        self.reason = Some(reason);
    }

    fn is_here(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.ready)
    }

    /// Whoever takes it waits as long as it likes. A stream whose time-outs cannot be taken off is broken, and shows it.
    fn hand_over(self) -> Option<Met> {
        let Connection { stream, hello, .. } = self.connection?;
        let _ = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
        Some((stream, hello))
    }
}

impl Meeting<'_> {
    /// Accepts those who come.
    fn listen(&mut self) -> Result<(), MeetingError> {
        if self.last_process {
            return Ok(());
        }
        let process = self.cluster.process;
        let address = &self.cluster.hosts[process];
        if self.listener.is_none() {
            // Its name may not be known yet, or the address still be taken.
            let bound = TcpListener::bind(address.as_str()).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            self.listener = Some(bound.map_err(|source| MeetingError::Listen { address: address.clone(), process, source })?);
        }
        while let Some(listener) = &self.listener {
            // What is wrong with one caller is no concern of the others.
            let Ok((stream, _)) = listener.accept() else { break };
            match self.answer(stream) {
                Ok((peer, met)) => self.peers[peer].met(met),
                Err((Some(peer), reason)) => self.peers[peer].failed(reason),
                Err((None, reason)) => tracing::debug!(reason, "a caller that is none of the job's processes"),
            }
        }
        Ok(())
    }

    /// Hears who calls, and says who this is.
    fn answer(&self, stream: TcpStream) -> Result<(usize, Met), (Option<usize>, String)> {
        let unknown = |reason: io::Error| (None, reason.to_string());
        stream.set_nonblocking(false).map_err(unknown)?;
        prepare(&stream, CALLER_WAIT).map_err(unknown)?;
        let other = hear(&stream).map_err(unknown)?;
        // Also to one that does not fit, so that it can say why.
        let said = say(&stream, self.hello);
        let peer = Some(other.process).filter(|&peer| peer > self.cluster.process && peer < self.peers.len());
        match (peer, self.hello.difference(&other)) {
            (Some(peer), None) => said.map(|()| (peer, (stream, other))).map_err(|error| (Some(peer), error.to_string())),
            (Some(peer), Some(difference)) => Err((Some(peer), difference)),
            (None, _) => Err((None, format!("it says that it is process {}", other.process))),
        }
    }

    /// Connects to the processes before this one.
    fn connect(&mut self) {
        for number in 0..self.cluster.process {
            let is_due = self.peers[number].tried.is_none_or(|tried| tried.elapsed() >= CONNECT_INTERVAL);
            if self.peers[number].connection.is_some() || !is_due {
                continue;
            }
            self.peers[number].tried = Some(Instant::now());
            match self.call(number) {
                Ok(met) => self.peers[number].met(met),
                Err(reason) => self.peers[number].failed(reason),
            }
        }
    }

    fn call(&self, number: usize) -> Result<Met, String> {
        let failed = |error: io::Error| error.to_string();
        let stream = connect(&self.cluster.hosts[number]).map_err(failed)?;
        prepare(&stream, ANSWER_WAIT).map_err(failed)?;
        say(&stream, self.hello).map_err(failed)?;
        let other = hear(&stream).map_err(failed)?;
        if other.process != number {
            return Err(format!("it says that it is process {}: give all the same --hosts, and each its own --process", other.process));
        }
        match self.hello.difference(&other) {
            None => Ok((stream, other)),
            Some(difference) => Err(difference),
        }
    }

    /// Forgets connections that broke, tells the others when all are there, and hears it from them.
    fn look_after(&mut self) {
        let process = self.cluster.process;
        let all_here = |peers: &[Peer]| peers.iter().enumerate().all(|(number, peer)| number == process || peer.connection.is_some());
        for peer in &mut self.peers {
            if let Some(connection) = &mut peer.connection
                && let Err(error) = connection.look()
            {
                peer.failed(format!("it went away again: {error}"));
            }
        }
        if all_here(&self.peers) {
            for peer in &mut self.peers {
                if let Some(connection) = &mut peer.connection
                    && let Err(error) = connection.tell()
                {
                    peer.failed(format!("it went away again: {error}"));
                }
            }
        }
    }

    /// Whether all others know that all are here.
    fn is_ready(&self) -> bool {
        let is_ready = |peer: &Peer| peer.connection.as_ref().is_some_and(|connection| connection.told && connection.ready);
        self.peers.iter().enumerate().all(|(number, peer)| number == self.cluster.process || is_ready(peer))
    }

    fn missing(&self) -> String {
        let missing = self.peers.iter().enumerate().filter(|&(number, peer)| number != self.cluster.process && !peer.is_here());
        let lines: Vec<String> = missing
            .map(|(number, peer)| {
                let reason =
                    peer.reason.as_deref().unwrap_or(if peer.connection.is_some() { "it waits for others" } else { "it did not call" });
                format!("process {number} ({}): {reason}", self.cluster.hosts[number])
            })
            .collect();
        lines.join("; ")
    }
}

impl Connection {
    /// Whether it still stands, and whether the peer is ready. What comes after that is not this module's to read.
    fn look(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut byte = [0];
        let seen = match self.stream.peek(&mut byte) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if self.ready => Ok(()),
            Ok(_) if byte[0] == READY => self.stream.read_exact(&mut byte).map(|()| self.ready = true),
            Ok(_) => Err(io::Error::new(ErrorKind::InvalidData, "what it says makes no sense")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        };
        self.stream.set_nonblocking(false)?;
        seen
    }

    fn tell(&mut self) -> io::Result<()> {
        if !self.told {
            self.stream.write_all(&[READY])?;
            self.told = true;
        }
        Ok(())
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "its name has no address");
    for address in address.to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&address, CONNECT_WAIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// No wait on it is longer than `wait` until it is handed over; no silence longer than [`SILENCE_MAX`] afterwards.
fn prepare(stream: &TcpStream, wait: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_INTERVAL).with_interval(PROBE_INTERVAL))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    Ok(())
}

fn say(mut stream: &TcpStream, hello: &Hello) -> io::Result<()> {
    let mut line = serde_json::to_vec(hello)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads a line, and nothing behind it: that is for whoever the connection is handed to.
fn hear(mut stream: &TcpStream) -> io::Result<Hello> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < HELLO_BYTES_MAX {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(serde_json::from_slice(&line)?);
        }
        line.push(byte[0]);
    }
    Err(io::Error::new(ErrorKind::InvalidData, "what it says makes no sense"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn cluster(processes: usize) -> Cluster {
        let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        Cluster { hosts: listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect(), process: 0 }
    }

    fn hello(cluster: &Cluster, process: usize) -> Hello {
        Hello {
            job: "a".into(),
            release: "1".into(),
            hosts: cluster.hosts.clone(),
            workers: 2,
            process,
            settings: [("dedup.horizon".to_owned(), "24 h".to_owned())].into(),
            streams: vec!["order_lines".to_owned()],
            stage_begins: BTreeMap::new(),
        }
    }

    fn attend(cluster: &Cluster, process: usize, wait: Duration) -> Result<Vec<Option<Met>>, MeetingError> {
        meet(&Cluster { process, ..cluster.clone() }, &hello(cluster, process), wait, &|| false)
    }

    /// Sends each peer this process's number, and checks what it hears from them.
    fn talk(process: usize, connections: &[Option<Met>]) {
        for (number, connection) in connections.iter().enumerate() {
            assert_eq!(connection.is_none(), number == process);
            if let Some((stream, hello)) = connection {
                let mut stream = stream;
                assert_eq!(hello.process, number);
                stream.write_all(&[process as u8]).unwrap();
            }
        }
        for (number, connection) in connections.iter().enumerate() {
            if let Some((stream, _)) = connection {
                let mut stream = stream;
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                assert_eq!(usize::from(byte[0]), number);
            }
        }
    }

    #[test]
    fn all_meet_in_whatever_order_they_come() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let cluster = cluster(3);
            thread::scope(|scope| {
                for process in order {
                    let cluster = &cluster;
                    scope.spawn(move || talk(process, &attend(cluster, process, LONG).unwrap()));
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
    }

    /// Process 2 comes, is met by process 0, and dies before process 1 comes.
    #[test]
    fn one_that_died_while_it_waited_is_met_again() {
        let cluster = cluster(3);
        let (met, meeting) = mpsc::channel();
        thread::scope(|scope| {
            let all = &cluster;
            scope.spawn(move || {
                let connections = attend(all, 0, LONG).unwrap();
                talk(0, &connections);
                met.send(()).unwrap();
            });
            let gone = attend(all, 2, Duration::from_millis(400)).unwrap_err();
            assert!(gone.to_string().contains(&format!("process 1 ({})", all.hosts[1])), "{gone}");
            assert!(meeting.try_recv().is_err(), "process 0 did not wait for the others");
            scope.spawn(move || talk(1, &attend(all, 1, LONG).unwrap()));
            scope.spawn(move || talk(2, &attend(all, 2, LONG).unwrap()));
        });
        meeting.recv().unwrap();
    }

    #[test]
    fn strangers_do_not_disturb() {
        let cluster = cluster(2);
        thread::scope(|scope| {
            let all = &cluster;
            let first = scope.spawn(move || talk(0, &attend(all, 0, LONG).unwrap()));
            while connect(&all.hosts[0]).is_err() {
                thread::sleep(Duration::from_millis(5));
            }
            let mut stranger = connect(&all.hosts[0]).unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let _silent = connect(&all.hosts[0]).unwrap();
            talk(1, &attend(all, 1, LONG).unwrap());
            first.join().unwrap();
        });
    }

    #[track_caller]
    fn check_difference(change: impl Fn(&mut Hello), expected: &str) {
        let cluster = cluster(2);
        let mut other = hello(&cluster, 1);
        change(&mut other);
        let (first, second) = thread::scope(|scope| {
            // It listens until the other one has given up.
            let first = scope.spawn(|| attend(&cluster, 0, Duration::from_millis(1_500)));
            let second = meet(&Cluster { process: 1, ..cluster.clone() }, &other, Duration::from_millis(700), &|| false);
            (first.join().unwrap().unwrap_err(), second.unwrap_err())
        });
        assert!(first.to_string().contains(expected), "{first}");
        assert!(second.to_string().contains("start all processes with the same"), "{second}");
    }

    #[test]
    fn processes_that_differ_say_how() {
        check_difference(|other| other.workers = 4, "it has --workers 4, this one 2: start all processes with the same");
        check_difference(|other| other.job = "b".into(), r#"it has job.id "b", this one "a""#);
        check_difference(|other| other.release = "2".into(), r#"it has release "2", this one "1""#);
        let horizon = |other: &mut Hello| _ = other.settings.insert("dedup.horizon".into(), "12 h".into());
        check_difference(horizon, r#"it has settings "dedup.horizon: 12 h", this one "dedup.horizon: 24 h""#);
        let more = |other: &mut Hello| other.streams.insert(0, "revenue of [a]".into());
        check_difference(more, r#"it has stages.files in the order of "revenue of [a], order_lines", this one "order_lines""#);
    }

    #[test]
    fn waiting_ends() {
        let cluster = cluster(2);
        let error = attend(&cluster, 1, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("Connection refused"), "{error}");
        let error = attend(&cluster, 0, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().ends_with("it did not call"), "{error}");
        assert!(matches!(meet(&cluster, &hello(&cluster, 0), LONG, &|| true), Err(MeetingError::Over)));
        let _taken = TcpListener::bind(&cluster.hosts[0]).unwrap();
        assert!(matches!(attend(&cluster, 0, Duration::from_millis(100)), Err(MeetingError::Listen { .. })));
    }
}
