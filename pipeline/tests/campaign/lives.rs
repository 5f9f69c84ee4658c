//! A job from its first start to its end: lives that are killed, on 1, 2, 4, 1 … workers.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use orderflow::config::Config;
use orderflow::epoch_log::LogHome;
use orderflow::source::{KafkaSettings, write_topics};
use orderflow_faults::{KILLED, Point, VARIABLE};
use orderflow_fixtures::generate::{Compression, GenerateSettings, write_folder};
use orderflow_fixtures::reference::{self, EpochRecord, Split};
use orderflow_operators::decoder;
use orderflow_operators::epoch::Epoch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::common::Tables;
use super::compare;
use super::plan::{Kill, Settings, Way};
use super::servers::Servers;
use super::stage;

/// Longest life.
const LONG: Duration = Duration::from_secs(120);
/// Time between two looks at what a job has done.
const LOOK: Duration = Duration::from_millis(5);
/// Workers by life.
const WORKERS: [u32; 4] = [1, 2, 4, 1];

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// At this point, or at any moment.
    Killed(Option<Point>),
    /// With all of its input processed and committed.
    Whole,
}

pub struct Job<'a> {
    servers: &'a Servers,
    settings: Settings,
    /// Of topics and database.
    name: String,
    input: PathBuf,
    out: PathBuf,
    stage: PathBuf,
    splits: Vec<Split>,
    lives: usize,
    whole: bool,
    kept: bool,
    random: ChaCha8Rng,
}

impl<'a> Job<'a> {
    pub fn new(servers: &'a Servers, settings: Settings, name: &str, random: &mut impl Rng) -> Job<'a> {
        let name = format!("{name}_{:?}", settings.way).to_lowercase();
        let folder = servers.folder.path().join(&name);
        let (input, out) = (folder.join("input"), folder.join("out"));
        std::fs::create_dir_all(&out).unwrap();
        let orders = if settings.way.is_live() { 1500 } else { 3000 };
        let generate = GenerateSettings {
            orders,
            seed: random.random(),
            skus: 80,
            customers: 300,
            order_splits: 2,
            malformed_share: 0.01,
            invalid_share: 0.01,
            ..GenerateSettings::default()
        };
        write_folder(&generate, Compression::Plain, &input, |_| ()).unwrap();
        let splits = reference::read_folder(&input).unwrap();
        let random = ChaCha8Rng::seed_from_u64(random.random());
        let stage = stage::write(&folder);
        let job = Job { servers, settings, name, input, out, stage, splits, lives: 0, whole: false, kept: false, random };
        if job.settings.way.is_live() {
            job.produce();
        }
        job
    }

    pub fn lives(&self) -> usize {
        self.lives
    }

    pub fn is_new(&self) -> bool {
        self.lives == 0
    }

    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Puts all that there is of it where it stays.
    pub fn keep(&mut self) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("orderflow-campaign-{}-{}", std::process::id(), self.name));
        std::fs::rename(self.out.parent().unwrap(), &folder).unwrap();
        self.kept = true;
        folder
    }

    fn topics(&self) -> KafkaSettings {
        let topic = |of: &str| format!("{}.{of}", self.name);
        let brokers = self.servers.kafka.as_ref().expect("a live job has brokers").address();
        KafkaSettings {
            brokers,
            orders_topic: topic("orders"),
            inventory_topic: topic("inventory"),
            group_id: self.name.clone(),
            start_wait: LONG,
            properties: Default::default(),
        }
    }

    /// All input, a partition for each file.
    fn produce(&self) {
        let of = |topic: orderflow_fixtures::Topic| self.splits.iter().filter(move |split| split.topic == topic);
        let (inventory, orders) = (orderflow_fixtures::Topic::Inventory, orderflow_fixtures::Topic::Orders);
        let rows = [(inventory, decoder::Topic::Inventory), (orders, decoder::Topic::Orders)].into_iter().flat_map(|(topic, to)| {
            let partitions = (0..).zip(of(topic));
            partitions.flat_map(move |(partition, split)| split.rows.values().map(move |row| (to, partition, "", row.clone())))
        });
        write_topics(rows, self.topics(), of(orders).count() as u32, of(inventory).count() as u32, LONG).unwrap();
    }

    /// What this job's settings are, besides the defaults.
    fn config(&self) -> Vec<String> {
        let Settings { way, rows_max, checkpoint_ms, delta_ms, other_ms, optimize_commits, vacuums, drops, .. } = self.settings;
        let mut set = vec![
            // What is told of each epoch is all that is known of those that were dropped.
            "log.level=warn,orderflow::epoch_log=trace".to_owned(),
            "log.format=json".to_owned(),
            format!("epoch_log.keep={}", if drops { "1 ms" } else { "0" }),
            format!("job.id={}", self.name),
            format!("epoch.rows_max={rows_max}"),
            format!("checkpoint.interval={checkpoint_ms} ms"),
            "checkpoint.keep=1".to_owned(),
            "replay.checkpoints=true".to_owned(),
            format!("sinks.delta.commit_interval={delta_ms} ms"),
            format!("sinks.delta.optimize_commits={optimize_commits}"),
            format!("sinks.delta.vacuum_retention={}", if vacuums { "1 ms" } else { "1 h" }),
            format!("stages.files=[{:?}]", self.stage),
        ];
        if let (Way::Replay, Some(server)) = (way, &self.servers.clickhouse) {
            set.extend([
                "sinks.clickhouse.enabled=true".to_owned(),
                format!("sinks.clickhouse.url={}", server.url()),
                format!("sinks.clickhouse.database={}", self.name),
                format!("sinks.clickhouse.commit_interval={other_ms} ms"),
            ]);
        }
        if way.is_live() {
            let KafkaSettings { brokers, orders_topic, inventory_topic, .. } = self.topics();
            let home = match way {
                Way::LiveTopic => format!("kafka:{}.epochs", self.name),
                _ => url::Url::from_directory_path(self.out.join("log")).unwrap().to_string(),
            };
            set.extend([
                format!("source.kafka.brokers={brokers}"),
                format!("source.orders_topic={orders_topic}"),
                format!("source.inventory_topic={inventory_topic}"),
                format!("job.data_dir={}", self.out.display()),
                format!("epoch_log.home={home}"),
                "sinks.kafka.enabled=true".to_owned(),
                "sinks.kafka.partitions=2".to_owned(),
                format!("sinks.kafka.topic_prefix={}.", self.name),
                format!("sinks.kafka.commit_interval={other_ms} ms"),
                "metrics.listen=".to_owned(),
            ]);
        } else {
            set.extend(["sinks.jsonl.enabled=true".to_owned(), format!("sinks.jsonl.path={}", self.out.join("jsonl").display())]);
        }
        set
    }

    fn command(&self, workers: u32, faults: &str, checkpoints: bool) -> Command {
        let mut command = Command::new(&self.servers.binary);
        if self.settings.way.is_live() {
            // It ends with what its topics hold.
            command.args(["run", "--drain"]);
        } else {
            command.arg("replay").arg(&self.input).arg("--out").arg(&self.out);
            self.settings.rate.iter().for_each(|rate| _ = command.args(["--rate", &rate.to_string()]));
        }
        command.arg("--no-progress").args(["--workers", &workers.to_string()]);
        self.config().iter().for_each(|set| _ = command.args(["--set", set]));
        if !checkpoints {
            command.args(["--set", "checkpoint.interval=0"]);
        }
        let segments = format!("epoch_log.local.segment.bytes=return({})", self.settings.segment_bytes);
        command.env(VARIABLE, format!("{segments};epoch_log.topic.header.epochs=return(3);{faults}"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// One life.
    pub fn live(&mut self, kill: Kill) -> Ended {
        let faults = match &kill {
            Kill::At(points) => {
                let point = |(point, passing): &(Point, u32)| format!("{}={}*off->1*return(kill)", point.name(), passing - 1);
                points.iter().map(point).collect::<Vec<_>>().join(";").replace("=0*off->", "=")
            }
            _ => String::new(),
        };
        self.live_with(&faults, kill)
    }

    /// One life with these faults.
    pub fn live_with(&mut self, faults: &str, kill: Kill) -> Ended {
        let workers = WORKERS[self.lives % WORKERS.len()];
        self.lives += 1;
        let deadline = match kill {
            Kill::After(wait) => Some(Instant::now() + wait),
            _ => None,
        };
        let processes = self.start(workers, faults, &kill);
        self.until_it_ends(processes, deadline)
    }

    fn start(&mut self, workers: u32, faults: &str, kill: &Kill) -> Vec<Process> {
        // Now and then a life makes none: what there is already is taken up all the same.
        let checkpoints = !faults.is_empty() || self.random.random_bool(0.8);
        if self.settings.way != Way::Processes {
            return vec![Process::start(self.command(workers, faults, checkpoints), self.log(0))];
        }
        let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let hosts: Vec<String> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        drop(listeners);
        // Of one point only one process may know.
        let of_one = kill.point().map(|point| match point.name() {
            name if name.starts_with("checkpoint.part") => 1,
            name if ["checkpoint.manifest", "checkpoint.garbage", "epoch_log."].iter().any(|part| name.starts_with(part)) => 0,
            _ => self.random.random_range(0..2),
        });
        let process = |process: usize| {
            let armed = if of_one.is_none_or(|of| of == process) { faults } else { "" };
            let mut command = self.command(workers.div_ceil(2), armed, checkpoints);
            command.args(["--hosts", &hosts.join(","), "--process", &process.to_string()]);
            Process::start(command, self.log(process))
        };
        vec![process(0), process(1)]
    }

    fn log(&self, process: usize) -> PathBuf {
        self.log_of(self.lives, process)
    }

    fn log_of(&self, life: usize, process: usize) -> PathBuf {
        self.out.join(format!("life-{life:03}-{process}.log"))
    }

    fn until_it_ends(&mut self, mut processes: Vec<Process>, deadline: Option<Instant>) -> Ended {
        let started = Instant::now();
        loop {
            std::thread::sleep(LOOK);
            if processes.iter_mut().any(|process| process.ended().is_some_and(|status| status.signal().is_some())) {
                // What is left of it finds out by itself, or is killed, too.
                std::thread::sleep(Duration::from_millis(self.random.random_range(0..100)));
                let point = processes.iter().find_map(Process::killed_at);
                processes.iter_mut().for_each(Process::kill);
                return Ended::Killed(Some(point.expect("a signal that ends it comes from a point, or from here")));
            }
            if processes.iter_mut().all(|process| process.ended().is_some_and(|status| status.success())) {
                self.whole = true;
                return Ended::Whole;
            }
            let has_failed = |process: &mut Process| process.ended().is_some_and(|status| status.code().is_some_and(|code| code != 0));
            if let Some(failed) = processes.iter_mut().position(has_failed) {
                // The other one was just killed, and this one saw it first.
                std::thread::sleep(Duration::from_millis(200));
                let what = processes[failed].said();
                if !processes.iter_mut().any(|process| process.ended().is_some_and(|status| status.signal().is_some())) {
                    panic!("{} failed: {what}", self.name);
                }
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                processes.iter_mut().for_each(Process::kill);
                return Ended::Killed(None);
            }
            assert!(started.elapsed() < LONG, "{} does not end: {}", self.name, processes[0].said());
        }
    }

    /// Makes a savepoint of a job that does not run, and kills that at a point, if there is a checkpoint to make it of.
    pub fn savepoint(&mut self, point: Point) -> bool {
        let mut command = Command::new(&self.servers.binary);
        let name = format!("savepoint{}", self.random.random::<u32>());
        command.args(["checkpoint", "savepoint", &name, "--folder"]).arg(&self.out);
        command.env(VARIABLE, format!("{}=return(kill)", point.name())).stdout(Stdio::null());
        let mut process = Process::start(command, self.log(9));
        while process.ended().is_none() {
            std::thread::sleep(LOOK);
        }
        process.killed_at() == Some(point)
    }

    fn home(&self) -> LogHome {
        let mut config = Config::default();
        if !self.settings.way.is_live() {
            return LogHome::Folder(self.out.clone());
        }
        let topics = self.topics();
        config.job.id = self.name.clone();
        config.source.kafka.brokers = topics.brokers;
        config.epoch_log.home = match self.settings.way {
            Way::LiveTopic => format!("kafka:{}.epochs", self.name),
            _ => url::Url::from_directory_path(self.out.join("log")).unwrap().to_string(),
        };
        orderflow::job::log_home(&config)
    }

    /// The epoch log: what anybody may read of it, and before that what was dropped.
    pub fn epochs(&self) -> Vec<EpochRecord> {
        let kept = orderflow::job::epochs(&self.home()).expect("the job has an epoch log");
        let first = kept.first().expect("it has epochs").epoch;
        let told = self.told_epochs();
        let dropped = told.range(..first).map(|(_, record)| record);
        let lines: String = dropped.chain(&kept).map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
        kept.iter().for_each(|record| assert_eq!(told.get(&record.epoch), Some(record), "{}: the log has what was told last", self.name));
        assert!(self.settings.drops || first == Epoch(1), "{}: it keeps all epochs", self.name);
        EpochRecord::parse_log(&lines).unwrap()
    }

    /// The epochs of which all lives told; of those that were told twice, as they were told last.
    fn told_epochs(&self) -> BTreeMap<Epoch, orderflow::epoch_log::EpochRecord> {
        let mut told = BTreeMap::new();
        for life in 1..=self.lives {
            let said = std::fs::read_to_string(self.log_of(life, 0)).unwrap();
            let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let records = events.filter_map(|event| serde_json::from_str(event.get("record")?.as_str()?).ok());
            told.extend(records.map(|record: orderflow::epoch_log::EpochRecord| (record.epoch, record)));
        }
        told
    }

    /// Every sink has what the serial reference computes.
    #[track_caller]
    pub fn check(&self, what: &str) {
        let epochs = self.epochs();
        let streams = reference::run(&Default::default(), None, &self.splits, &epochs).unwrap();
        let mut expected: Tables = streams.iter().map(|(name, rows)| (name.to_owned(), rows.to_vec())).collect();
        if self.settings.way.is_live() {
            // They name the topic.
            let topics = self.topics();
            for row in expected.get_mut("dead_letters").into_iter().flatten() {
                let topic = if row["topic"] == "orders" { &topics.orders_topic } else { &topics.inventory_topic };
                row.insert("topic".to_owned(), topic.clone().into());
            }
        }
        super::common::assert_equal(&super::common::tables(&self.out), &expected, &format!("{what}: delta"));
        expected.extend(stage::expected(&expected["order_decisions"]));
        compare::delta(&self.out, &stage::STREAMS, &expected, &format!("{what}: delta"));
        if self.settings.way.is_live() {
            let broker = self.servers.kafka.as_ref().expect("a live job has brokers");
            compare::kafka(&broker.address(), &format!("{}.", self.name), &expected, &format!("{what}: kafka"));
        } else {
            compare::jsonl(&self.out.join("jsonl"), &expected, &format!("{what}: jsonl"));
        }
        if let (Way::Replay, Some(server)) = (self.settings.way, &self.servers.clickhouse) {
            compare::clickhouse(server, &self.name, &expected, &format!("{what}: clickhouse"));
        }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if let Some(server) = &self.servers.clickhouse {
            let _ = server.post(&format!("DROP DATABASE IF EXISTS {}", self.name));
        }
        if !self.kept && !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(self.out.parent().unwrap());
        }
    }
}

/// A process of the job. It ends with this.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Process {
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Process { child, log }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn killed_at(&self) -> Option<Point> {
        let said = self.said();
        let mut names = said.lines().filter_map(|line| line.strip_prefix(KILLED));
        names.find_map(|name| Point::ALL.into_iter().find(|point| point.name() == name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
