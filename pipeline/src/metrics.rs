//! What the job counts of itself: Prometheus metrics in a registry of its own, passed by value.
//!
//! A [`Metrics`] is cheap to clone and all clones count together. Its methods are called once an epoch, a batch or a commit, never
//! once a row, from any thread. Units stand last in a metric's name. A page that lists them all is `deploy/grafana`'s dashboard.

mod latency;
mod process;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orderflow_operators::epoch::{Epoch, Micros, NEVER};
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::job_plan::DecisionCounts;

pub use latency::{Latency, LatencyHistogram};
pub use process::cpu_seconds;

/// Fine where latencies of epochs are: 1 ms to 10 s.
const LATENCY_BUCKETS_SECONDS: [f64; 29] = [
    0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.010, 0.012, 0.015, 0.020, 0.025, 0.030, 0.040, 0.050, 0.060, 0.080, 0.100,
    0.150, 0.200, 0.300, 0.500, 0.750, 1.0, 2.0, 3.0, 5.0, 10.0,
];
const COMMIT_BUCKETS_SECONDS: [f64; 14] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
const EPOCH_ROWS_BUCKETS: [f64; 12] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 524_288.0, 1_000_000.0];
const ROUNDS_BUCKETS: [f64; 9] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0];

/// The job's metrics.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    rows: IntCounterVec,
    decisions: IntCounterVec,
    dead_letters: IntCounterVec,
    unknown_fields: IntCounterVec,
    epochs_sealed: IntCounter,
    epoch_sealed: IntGauge,
    epoch_decided: IntGauge,
    epoch_rows: Histogram,
    epoch_from_seal: Histogram,
    epoch_from_arrival: Histogram,
    row_latency: Mutex<LatencyHistogram>,
    reservation_rounds: Histogram,
    watermark: Gauge,
    split_lag: IntGaugeVec,
    split_buffer: IntGaugeVec,
    state_entries: IntGaugeVec,
    state_bytes: IntGaugeVec,
    stage_rejects: IntCounterVec,
    sink_rows: IntCounterVec,
    sink_commits: IntCounterVec,
    sink_commit: HistogramVec,
    sink_backlog: IntGaugeVec,
    sink_retries: IntCounterVec,
    sink_epoch: IntGaugeVec,
    checkpoint_epoch: IntGauge,
    checkpoint_written: IntCounter,
    checkpoint_bytes: IntGauge,
    checkpoint_time: Histogram,
    checkpoint_failures: IntCounter,
    restarts: IntCounter,
    process_cpu: Gauge,
    process_memory: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// Makes metrics and puts them into a registry. Names are constants below, each used once, so that no step can fail.
struct Maker(Registry);

const VALID: &str = "metric names are constant, valid and used once";

impl Maker {
    fn add<T: Collector + Clone + 'static>(&self, metric: prometheus::Result<T>) -> T {
        let metric = metric.expect(VALID);
        self.0.register(Box::new(metric.clone())).expect(VALID);
        metric
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

impl Metrics {
    /// Metrics in a new registry, all at 0.
    pub fn new() -> Self {
        let make = Maker(Registry::new());
        let commit = HistogramOpts::new("orderflow_sink_commit_seconds", "Time of a successful commit of a sink")
            .buckets(COMMIT_BUCKETS_SECONDS.to_vec());
        let inner = Inner {
            rows: make.counters("orderflow_rows_total", "Rows that entered a stage", &["stage"]),
            decisions: make.counters("orderflow_decisions_total", "Rows of order_decisions", &["decision", "reason"]),
            dead_letters: make.counters("orderflow_dead_letters_total", "Malformed messages", &["topic"]),
            unknown_fields: make.counters("orderflow_unknown_fields_total", "Fields that no message type has", &["topic"]),
            epochs_sealed: make.add(IntCounter::new("orderflow_epochs_sealed_total", "Epochs sealed since the start of the process")),
            epoch_sealed: make.add(IntGauge::new("orderflow_epoch_sealed", "Number of the last sealed epoch")),
            epoch_decided: make.add(IntGauge::new("orderflow_epoch_decided", "Number of the last epoch that left the dataflow")),
            epoch_rows: make.histogram("orderflow_epoch_rows", "Input rows of an epoch", &EPOCH_ROWS_BUCKETS),
            epoch_from_seal: make.histogram(
                "orderflow_epoch_seal_to_decided_seconds",
                "Time from an epoch's seal to its decisions leaving the dataflow",
                &LATENCY_BUCKETS_SECONDS,
            ),
            epoch_from_arrival: make.histogram(
                "orderflow_epoch_arrival_to_decided_seconds",
                "Time from the arrival of an epoch's oldest row to its decisions leaving the dataflow",
                &LATENCY_BUCKETS_SECONDS,
            ),
            row_latency: Mutex::default(),
            reservation_rounds: make.histogram(
                "orderflow_reservation_rounds",
                "Rounds of the reservation loop in an epoch",
                &ROUNDS_BUCKETS,
            ),
            watermark: make
                .add(Gauge::new("orderflow_watermark_timestamp_seconds", "Watermark, in seconds since 1970; 0 before the first")),
            split_lag: make.gauges("orderflow_split_lag_rows", "Rows of a split that are not yet in an epoch", &["topic", "split"]),
            split_buffer: make.gauges("orderflow_split_buffer_bytes", "Bytes of a split that were read ahead", &["topic", "split"]),
            state_entries: make.gauges("orderflow_state_entries", "Entries of an operator's state on a worker", &["operator", "worker"]),
            state_bytes: make.gauges("orderflow_state_bytes", "Bytes of an operator's state on a worker, about", &["operator", "worker"]),
            stage_rejects: make.counters("orderflow_stage_rejects_total", "Rows that a SQL stage left out", &["stage", "kind"]),
            sink_rows: make.counters("orderflow_sink_rows_total", "Rows that a sink committed", &["sink", "stream"]),
            sink_commits: make.counters("orderflow_sink_commits_total", "Commits of a sink", &["sink", "stream"]),
            sink_commit: make.add(HistogramVec::new(commit, &["sink"])),
            sink_backlog: make.gauges("orderflow_sink_backlog_rows", "Rows that wait for a sink", &["sink", "stream"]),
            sink_retries: make.counters(
                "orderflow_sink_retries_total",
                "Tries of a sink that failed and are made again",
                &["sink", "stream"],
            ),
            sink_epoch: make.gauges(
                "orderflow_sink_epoch_committed",
                "Number of the last epoch of which a sink has all rows",
                &["sink", "stream"],
            ),
            checkpoint_epoch: make.add(IntGauge::new("orderflow_checkpoint_epoch", "Epoch of the newest checkpoint")),
            checkpoint_written: make.add(IntCounter::new("orderflow_checkpoint_written_bytes_total", "Bytes written for checkpoints")),
            checkpoint_bytes: make.add(IntGauge::new("orderflow_checkpoint_bytes", "Bytes of all files of the newest checkpoint")),
            checkpoint_time: make.histogram(
                "orderflow_checkpoint_seconds",
                "Time from the end of a checkpoint's epoch to its commit",
                &COMMIT_BUCKETS_SECONDS,
            ),
            checkpoint_failures: make.add(IntCounter::new("orderflow_checkpoint_failures_total", "Steps of checkpoints that failed")),
            restarts: make.add(IntCounter::new("orderflow_restarts_total", "How often the job failed and its supervisor started it again")),
            process_cpu: make.add(Gauge::new("orderflow_process_cpu_seconds", "CPU time of the process, user and system")),
            process_memory: make.add(IntGauge::new("orderflow_process_resident_bytes", "Resident memory of the process")),
            registry: make.0,
        };
        Metrics(Arc::new(inner))
    }

    /// `rows` more entered `stage`: `decode`, `validate`, `deduplicate`, `features`, `score`, `reserve`.
    pub fn rows(&self, stage: &str, rows: u64) {
        self.0.rows.with_label_values(&[stage]).inc_by(rows);
    }

    /// An epoch's decisions.
    pub fn decisions(&self, counts: &DecisionCounts) {
        for (kind, count) in counts.by_kind() {
            let (decision, reason) = kind.split_once(" / ").unwrap_or((kind, ""));
            self.0.decisions.with_label_values(&[decision, reason]).inc_by(count);
        }
    }

    /// Malformed messages and unknown fields of a topic.
    pub fn decoded(&self, topic: &str, dead_letters: u64, unknown_fields: u64) {
        self.0.dead_letters.with_label_values(&[topic]).inc_by(dead_letters);
        self.0.unknown_fields.with_label_values(&[topic]).inc_by(unknown_fields);
    }

    /// `epoch` was sealed with `rows` input rows.
    pub fn epoch_sealed(&self, epoch: Epoch, rows: u64) {
        self.0.epochs_sealed.inc();
        self.0.epoch_sealed.set(epoch.0 as i64);
        self.0.epoch_rows.observe(rows as f64);
    }

    /// All rows of `epoch` left the dataflow, so long after its seal and, where it is live, after the arrival of its oldest row.
    pub fn epoch_decided(&self, epoch: Epoch, orders: u64, since_seal: Duration, since_arrival: Option<Duration>) {
        self.0.epoch_decided.set(epoch.0 as i64);
        self.0.epoch_from_seal.observe(since_seal.as_secs_f64());
        if let Some(time) = since_arrival {
            self.0.epoch_from_arrival.observe(time.as_secs_f64());
            if orders > 0 {
                self.0.row_latency.lock().unwrap_or_else(PoisonError::into_inner).record(time, orders);
            }
        }
    }

    /// Time from orders' arrival to their decisions leaving the dataflow; each order counts with the arrival of the oldest row of its epoch.
    pub fn latency(&self) -> Option<Latency> {
        self.latencies().quantiles()
    }

    /// All that [`latency`](Metrics::latency) is of.
    pub fn latencies(&self) -> LatencyHistogram {
        self.0.row_latency.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The watermark after the last epoch.
    pub fn watermark(&self, watermark: Micros) {
        self.0.watermark.set(if watermark == NEVER { 0.0 } else { watermark as f64 / 1e6 });
    }

    /// Rounds that the reservation loop took for an epoch.
    pub fn reservation_rounds(&self, rounds: u32) {
        self.0.reservation_rounds.observe(f64::from(rounds));
    }

    /// What of a split is not yet in an epoch: rows up to the broker's (or file's) end, and bytes read ahead.
    pub fn split(&self, topic: &str, split: u32, lag_rows: u64, buffer_bytes: u64) {
        let split = split.to_string();
        self.0.split_lag.with_label_values(&[topic, &split]).set(lag_rows as i64);
        self.0.split_buffer.with_label_values(&[topic, &split]).set(buffer_bytes as i64);
    }

    /// The size of what `operator` keeps on `worker`.
    pub fn state(&self, operator: &str, worker: usize, entries: u64, bytes: u64) {
        let worker = worker.to_string();
        self.0.state_entries.with_label_values(&[operator, &worker]).set(entries as i64);
        self.0.state_bytes.with_label_values(&[operator, &worker]).set(bytes as i64);
    }

    /// A SQL stage left out `rows` rows; so many in all.
    pub fn stage_rejects(&self, stage: &str, kind: &str, rows: u64) -> u64 {
        let counter = self.0.stage_rejects.with_label_values(&[stage, kind]);
        counter.inc_by(rows);
        counter.get()
    }

    /// `sink` committed `rows` rows of `stream`.
    pub fn sink_rows(&self, sink: &str, stream: &str, rows: u64) {
        self.0.sink_rows.with_label_values(&[sink, stream]).inc_by(rows);
        self.0.sink_commits.with_label_values(&[sink, stream]).inc();
    }

    /// A commit of `sink` took `time`.
    pub fn sink_commit(&self, sink: &str, time: Duration) {
        self.0.sink_commit.with_label_values(&[sink]).observe(time.as_secs_f64());
    }

    /// `sink` has all rows of `stream` through `epoch`.
    pub fn sink_through(&self, sink: &str, stream: &str, epoch: Epoch) {
        self.0.sink_epoch.with_label_values(&[sink, stream]).set(epoch.0 as i64);
    }

    /// So many rows of `stream` wait for `sink`.
    pub fn sink_backlog(&self, sink: &str, stream: &str, rows: u64) {
        self.0.sink_backlog.with_label_values(&[sink, stream]).set(rows as i64);
    }

    /// A try of `sink` failed and is made again.
    pub fn sink_retry(&self, sink: &str, stream: &str) {
        self.0.sink_retries.with_label_values(&[sink, stream]).inc();
    }

    /// A checkpoint was made: bytes that were written for it, bytes of all its files, and the time from the end of its epoch.
    pub fn checkpoint(&self, epoch: Epoch, written: u64, bytes: u64, time: Duration) {
        self.0.checkpoint_epoch.set(epoch.0 as i64);
        self.0.checkpoint_written.inc_by(written);
        self.0.checkpoint_bytes.set(bytes as i64);
        self.0.checkpoint_time.observe(time.as_secs_f64());
    }

    /// A step of a checkpoint failed, and is made again.
    pub fn checkpoint_failed(&self) {
        self.0.checkpoint_failures.inc();
    }

    /// The job's supervisor has started it again so often before.
    pub fn restarts(&self, before: u64) {
        self.0.restarts.inc_by(before);
    }

    /// Fields so far that no message type has.
    pub fn unknown_fields(&self) -> u64 {
        let counts = self.0.unknown_fields.collect();
        counts.iter().flat_map(MetricFamily::get_metric).map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// Input rows of all epochs sealed so far.
    pub fn rows_in(&self) -> u64 {
        self.0.epoch_rows.get_sample_sum() as u64
    }

    /// All metrics with their values now.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.0.process_cpu.set(cpu_seconds());
        self.0.process_memory.set(process::resident_bytes() as i64);
        self.0.registry.gather()
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        // Writing to memory cannot fail, and the encoder refuses only families without a metric, which `gather` leaves out.
        TextEncoder::new().encode(&self.gather(), &mut out).expect("gathered families encode");
        String::from_utf8_lossy(&out).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A metric's lines without comments.
    fn lines(metrics: &Metrics, name: &str) -> Vec<String> {
        metrics.render().lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn clones_count_together() {
        let metrics = Metrics::new();
        let clone = metrics.clone();
        std::thread::spawn(move || clone.decisions(&DecisionCounts { accepted: 3, fraud: 1, ..Default::default() })).join().expect("joins");
        metrics.decisions(&DecisionCounts { accepted: 4, ..Default::default() });
        let lines = lines(&metrics, "orderflow_decisions_total");
        assert!(lines.contains(&r#"orderflow_decisions_total{decision="accepted",reason=""} 7"#.to_owned()), "{lines:?}");
        assert!(lines.contains(&r#"orderflow_decisions_total{decision="rejected",reason="fraud"} 1"#.to_owned()), "{lines:?}");
    }

    #[test]
    fn registries_are_apart() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.epoch_sealed(Epoch(7), 100);
        assert_eq!(lines(&a, "orderflow_epoch_sealed"), ["orderflow_epoch_sealed 7"]);
        assert_eq!(lines(&b, "orderflow_epoch_sealed"), ["orderflow_epoch_sealed 0"]);
    }

    #[test]
    fn no_watermark_yet_is_zero() {
        let metrics = Metrics::new();
        metrics.watermark(NEVER);
        assert_eq!(lines(&metrics, "orderflow_watermark"), ["orderflow_watermark_timestamp_seconds 0"]);
        metrics.watermark(1_500_000);
        assert_eq!(lines(&metrics, "orderflow_watermark"), ["orderflow_watermark_timestamp_seconds 1.5"]);
    }

    #[test]
    fn unknown_fields_of_all_topics() {
        let metrics = Metrics::new();
        metrics.decoded("orders", 0, 3);
        metrics.decoded("inventory", 0, 4);
        assert_eq!(metrics.unknown_fields(), 7);
    }

    #[test]
    fn buckets_rise() {
        for buckets in [&LATENCY_BUCKETS_SECONDS[..], &COMMIT_BUCKETS_SECONDS, &EPOCH_ROWS_BUCKETS, &ROUNDS_BUCKETS] {
            assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
