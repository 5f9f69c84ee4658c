//! What is chosen for a run, and by which points it is to be killed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use orderflow_faults::Point;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

/// What a job reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Files into Delta Lake, ClickHouse and JSON lines; the epoch log in a folder.
    Replay,
    /// Files into Delta Lake and JSON lines, by two processes.
    Processes,
    /// Topics into Delta Lake and topics; the epoch log in a topic.
    LiveTopic,
    /// Topics into Delta Lake and topics; the epoch log in an object store.
    LiveObjects,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::Replay, Way::Processes, Way::LiveTopic, Way::LiveObjects];

    /// The points that such a job passes.
    pub fn points(self) -> Vec<Point> {
        Point::ALL.into_iter().filter(|point| self.passes(point.name())).collect()
    }

    pub fn is_live(self) -> bool {
        matches!(self, Way::LiveTopic | Way::LiveObjects)
    }

    fn passes(self, point: &str) -> bool {
        let is = |part: &str| point.starts_with(part);
        if is("delta.") {
            return true;
        }
        let of_parts = is("checkpoint.part") || is("checkpoint.garbage.part");
        match self {
            Way::Replay => (is("checkpoint.") && !of_parts) || is("clickhouse.") || is("jsonl.") || is("epoch_log.local."),
            Way::Processes => (is("checkpoint.") && !is("checkpoint.savepoint")) || is("jsonl.") || is("epoch_log.local."),
            Way::LiveTopic => is("kafka.") || is("epoch_log.topic.") || (is("checkpoint.") && !of_parts && !is("checkpoint.savepoint")),
            Way::LiveObjects => is("kafka.") || is("epoch_log.objects.") || (is("checkpoint.") && !of_parts && !is("checkpoint.savepoint")),
        }
    }
}

/// How a job runs. Nothing of it may be seen in the results.
#[derive(Clone, Debug)]
pub struct Settings {
    pub way: Way,
    pub rows_max: u32,
    pub checkpoint_ms: u32,
    pub delta_ms: u32,
    pub other_ms: u32,
    pub optimize_commits: u32,
    pub vacuums: bool,
    pub segment_bytes: u32,
    /// Whether old epochs are dropped, as soon as they can be.
    pub drops: bool,
    /// Messages a second, where they come from files; none: as fast as can be.
    pub rate: Option<u32>,
}

impl Settings {
    pub fn random(way: Way, random: &mut impl Rng) -> Settings {
        fn any(random: &mut impl Rng, of: &[u32]) -> u32 {
            *of.choose(random).expect("there are some")
        }
        Settings {
            way,
            rows_max: any(random, &[30, 60, 100, 200]),
            checkpoint_ms: any(random, &[10, 30, 80]),
            delta_ms: any(random, &[10, 20, 50]),
            other_ms: any(random, &[5, 10, 40]),
            optimize_commits: any(random, &[2, 3, 5]),
            vacuums: random.random(),
            segment_bytes: any(random, &[600, 2000, 64 << 20]),
            drops: random.random(),
            rate: Some(any(random, &[0, 3_000, 8_000])).filter(|&rate| rate > 0),
        }
    }

    /// So that all that a job may come to, it comes to soon.
    pub fn eventful(way: Way, random: &mut impl Rng) -> Settings {
        let often = Settings::random(way, random);
        Settings {
            rows_max: 60,
            checkpoint_ms: 10,
            optimize_commits: 2,
            vacuums: true,
            segment_bytes: 600,
            drops: true,
            rate: Some(4_000),
            ..often
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, epochs of {} rows, checkpoints after {} ms", self.way, self.rows_max, self.checkpoint_ms)
    }
}

/// How a life is to end.
#[derive(Clone, Debug)]
pub enum Kill {
    /// At the first of these points that is passed for so many times.
    At(Vec<(Point, u32)>),
    /// At any moment.
    After(Duration),
    /// By itself.
    Never,
}

impl Kill {
    pub fn after(random: &mut impl Rng, way: Way) -> Kill {
        // A live job takes a while to reach its brokers.
        let range = if way.is_live() { 300..3500 } else { 20..700 };
        Kill::After(Duration::from_millis(random.random_range(range)))
    }

    pub fn is_never(&self) -> bool {
        matches!(self, Kill::Never)
    }

    /// The one point, if it is to be there.
    pub fn point(&self) -> Option<Point> {
        match self {
            Kill::At(points) => points.first().map(|&(point, _)| point),
            _ => None,
        }
    }

    /// The point of a savepoint, which is made between two lives.
    pub fn savepoint(&self) -> Option<Point> {
        self.point().filter(|point| matches!(point, Point::Savepoint | Point::SavepointDone))
    }
}

/// Which points come next: all in turn, in an order of the seed, those that were missed again.
pub struct Plan {
    ways: Vec<Way>,
    queue: VecDeque<Point>,
    /// By point, the most passings before a kill.
    passings: BTreeMap<Point, u32>,
    hits: BTreeMap<Point, usize>,
}

impl Plan {
    pub fn new(random: &mut impl Rng, ways: &[Way]) -> Plan {
        let mut points: Vec<Point> = Point::ALL.into_iter().filter(|point| ways.iter().any(|way| way.passes(point.name()))).collect();
        points.shuffle(random);
        let passings = points.iter().map(|&point| (point, 8)).collect();
        let hits = points.iter().map(|&point| (point, 0)).collect();
        Plan { ways: ways.to_vec(), queue: points.into(), passings, hits }
    }

    /// All points that are in reach.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.passings.keys().copied()
    }

    /// The way of a run, and how its first lives end.
    pub fn next(&mut self, random: &mut impl Rng) -> (Way, Vec<Kill>) {
        let first = self.queue.front().copied().expect("points come back");
        let ways: Vec<Way> = self.ways.iter().copied().filter(|way| way.passes(first.name())).collect();
        let way = *ways.choose(random).expect("a point is of some way");
        let mut kills = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            let Some(at) = self.queue.iter().position(|point| way.passes(point.name())) else { break };
            let point = self.queue.remove(at).expect("it is there");
            // Something to go on from, or to be removed.
            let before = match point.name() {
                name if name.starts_with("checkpoint.restore") || name.starts_with("checkpoint.savepoint") => {
                    Some(Point::CheckpointManifestDone)
                }
                "checkpoint.garbage.file.after" => Some(Point::CheckpointManifest),
                _ => None,
            };
            if let Some(before) = before.filter(|_| kills.is_empty()) {
                kills.push(Kill::At(vec![(before, random.random_range(1..=3))]));
            }
            kills.push(Kill::At(vec![(point, random.random_range(1..=self.passings[&point]))]));
            if random.random_bool(0.3) {
                kills.push(Kill::after(random, way));
            }
        }
        (way, kills)
    }

    pub fn hit(&mut self, point: Point) {
        *self.hits.entry(point).or_default() += 1;
        // Behind those that were not.
        if !self.queue.contains(&point) {
            self.queue.push_back(point);
        }
    }

    /// The job ended before: the next time fewer passings are waited for.
    pub fn missed(&mut self, point: Point) {
        if let Some(passings) = self.passings.get_mut(&point) {
            *passings = (*passings / 2).max(1);
        }
        if self.queue.contains(&point) {
            return;
        }
        match self.hits.get(&point) {
            Some(0) => self.queue.push_front(point),
            _ => self.queue.push_back(point),
        }
    }
}
