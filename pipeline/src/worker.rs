//! What a worker thread does: reads ahead, on worker 0 seals, and lets the dataflow run.
//!
//! Two dataflows run on every worker. The *job* has epochs as its time. The *control* dataflow has none: it carries what owners of
//! splits have read to the sealer on worker 0, and from there to all where to start reading and how far the epoch log is durable.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use orderflow_operators::batch::Batch;
use orderflow_operators::dataflow::time_of;
use orderflow_operators::epoch::{Epoch, Place};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Input;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::{InputHandle, ProbeHandle};
use timely::worker::Worker;
use tokio::sync::watch;

use crate::checkpoint::{Begun, Trigger, Writers};
use crate::dataflow::{self, Readers, RemoteReport, SealInput, Shared, owner_of_split, seal_batch};
use crate::epoch_log::{AddedSplit, EpochRecord, LogWriter};
use crate::job_plan::{Progress, ProgressFn, Stop};
use crate::sealer::{Next, Report, Sealer};
use crate::source::{Source, Wake};
use crate::status::{Health, Phase};

/// What all workers of a process have in common.
pub struct WorkerPlan {
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// Bytes of a split between two marks.
    pub mark_bytes: u64,
    /// Most epochs between the sealer and the sinks' queues.
    pub in_flight: u64,
    /// Told how far the log is durable: by the log itself on process 0, by the control dataflow on the others.
    pub durable: watch::Sender<Epoch>,
    /// Whether there are other processes.
    pub clustered: bool,
    /// By key, the settings on which results depend: all processes have the same.
    pub meaning: BTreeMap<String, String>,
    /// The last epoch that a sink of this process has committed, or began to commit.
    pub sinks_through: Epoch,
    /// The epoch of the checkpoint that this process goes on from; 0: none.
    pub resumed: Epoch,
    /// Asked between epochs.
    pub stop: Stop,
    /// What the operators need.
    pub shared: Shared,
}

/// What worker 0 has besides.
pub struct Head {
    /// Cuts the epochs.
    pub sealer: Sealer,
    /// The splits' names by number.
    pub names: Vec<String>,
    /// Makes them durable; none where all of them are.
    pub log: Option<LogWriter>,
    /// Gives new epochs their sealing time: milliseconds since 1970.
    pub clock: Box<dyn FnMut(Epoch) -> i64 + Send>,
    /// Asked between epochs.
    pub stop: Stop,
    /// Told now and then.
    pub progress: ProgressFn,
    /// How far each sink of this process has committed.
    pub committed: Vec<watch::Receiver<Epoch>>,
    /// Rows of the whole input, where known.
    pub rows_total: Option<u64>,
    /// Told when the epochs of earlier lives are all on their way again.
    pub health: Health,
    /// Begins checkpoints.
    pub(crate) checkpoints: Option<Checkpoints>,
}

/// When checkpoints are begun.
pub(crate) struct Checkpoints {
    /// Begins one.
    pub trigger: Trigger,
    /// Time between two.
    pub interval: Duration,
    /// Whether one is of the last epoch when the job is asked to stop.
    pub at_stop: bool,
    /// Whether one may be of an epoch that is played back: splits and stages are the same then as behind the last of them.
    pub of_played: bool,
}

/// What worker 0 did.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadSummary {
    /// The last epoch.
    pub last: Epoch,
    /// Offsets in the epochs that went through.
    pub rows: u64,
    /// Whether it ended because it was asked to.
    pub stopped: bool,
}

/// What process 0 tells all workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum ControlMessage {
    /// The log is durable through this epoch.
    Durable(Epoch),
    /// At the start: with which epoch it ended.
    LogEnd(Epoch),
    /// At the start: of which epoch the checkpoint is that process 0 goes on from; 0: none.
    Resumed(Epoch),
    /// Of checkpoints: up to which epoch changes of orders are missing.
    OrdersLost(Epoch),
    /// There is a split that this worker reads from here on.
    Read(Assigned),
}

/// A split and the worker that reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Assigned {
    owner: usize,
    number: u32,
    name: String,
    offset: i64,
}

/// In the place of a report's kind: somebody asked another process than the sealer's to stop.
const STOP: u8 = u8::MAX;

type ReportInput = InputHandle<u64, CapacityContainerBuilder<Vec<RemoteReport>>>;
type ControlInput = InputHandle<u64, CapacityContainerBuilder<Vec<ControlMessage>>>;

/// How long a worker sleeps at most when nothing wakes it.
const PARK_MAX: Duration = Duration::from_millis(100);
/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// How soon it is noticed that a checkpoint is made, and how long the last one waits for the one before.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(10);
const CHECKPOINT_WAIT_MAX: Duration = Duration::from_secs(30);
/// Time between two readings of the splits' lag.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the job on this worker until its input has ended and left the dataflow, or something failed.
pub fn run(worker: &mut Worker, plan: &WorkerPlan, head: Option<Head>) -> Option<HeadSummary> {
    let readers = Rc::new(RefCell::new(Readers::none(plan.mark_bytes)));
    let mut seals = SealInput::new_with_builder();
    let probe = worker.dataflow::<u64, _, _>(|scope| {
        let stream = scope.input_from(&mut seals);
        dataflow::build(scope, stream, readers.clone(), &plan.shared)
    });
    let (mut control, inbox) = control_dataflow(worker, plan);
    let wake = waker(worker, readers.borrow().source_operator.clone());
    plan.shared.failure.on_failure({
        let wake = wake.clone();
        move || wake()
    });
    let mut body =
        Body { plan, readers, control: Some(&mut control), inbox, wake, reports: Vec::new(), stop_told: false, lag_shown: Instant::now() };
    // Workers without a head have no seals to send; their input ends here.
    let mut head = head.map(|head| HeadState::new(head, seals, probe.clone(), worker.peers()));

    let finished = loop {
        if plan.shared.failure.is_set() {
            break false;
        }
        if let Err(error) = body.step(worker, head.as_mut()) {
            plan.shared.failure.report(error);
            break false;
        }
        let mut park = PARK_MAX;
        if let Some(head) = &mut head {
            park = head.step(&mut body).min(PARK_MAX);
        }
        if probe.done() {
            break true;
        }
        worker.step_or_park(Some(park));
    };
    let summary = head.map(|head| head.summary());
    body.control = None;
    drop(body);
    drop(control);
    if !finished {
        // The rest of the job may hang on what failed: leave it.
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    }
    summary
}

struct Control {
    reports: Option<ReportInput>,
    messages: Option<ControlInput>,
}

/// What has come in over the control dataflow.
#[derive(Default)]
struct Inbox {
    reports: Vec<RemoteReport>,
    /// Splits to read, and from where.
    assigned: Vec<Assigned>,
    /// The last epoch of the log at the start.
    log_end: Option<Epoch>,
    /// The epoch of process 0's checkpoint.
    resumed: Option<Epoch>,
}

fn control_dataflow(worker: &mut Worker, plan: &WorkerPlan) -> (Control, Rc<RefCell<Inbox>>) {
    let inbox = Rc::new(RefCell::new(Inbox::default()));
    let (mut reports, mut messages) = (ReportInput::new_with_builder(), ControlInput::new_with_builder());
    worker.dataflow::<u64, _, _>(|scope| {
        let to = inbox.clone();
        scope.input_from(&mut reports).sink(Exchange::new(|_: &RemoteReport| 0), "reports", move |(input, _frontier)| {
            input.for_each(|_time, data| to.borrow_mut().reports.append(data));
        });
        let (to, durable) = (inbox.clone(), plan.durable.clone());
        let renewal = plan.shared.states.writers.as_ref().map(Writers::renewal);
        scope.input_from(&mut messages).broadcast().sink(Pipeline, "control", move |(input, _frontier)| {
            input.for_each(|_time, data| {
                for message in data.drain(..) {
                    match message {
                        // Here, not in the worker's loop: sinks wait for the last one when that loop has ended.
                        ControlMessage::Durable(through) => durable.send_modify(|epoch| *epoch = (*epoch).max(through)),
                        ControlMessage::LogEnd(epoch) => to.borrow_mut().log_end = Some(epoch),
                        ControlMessage::Resumed(epoch) => to.borrow_mut().resumed = Some(epoch),
                        ControlMessage::Read(assigned) => to.borrow_mut().assigned.push(assigned),
                        ControlMessage::OrdersLost(through) => {
                            renewal.iter().for_each(|renewal| _ = renewal.fetch_max(through.0, Ordering::AcqRel))
                        }
                    }
                }
            });
        });
    });
    (Control { reports: Some(reports), messages: Some(messages) }, inbox)
}

/// Sends what was given to a control input. Its time is advanced for that alone: an input's `flush` leaves rows in the exchange behind it.
fn send_now<D: Clone + 'static>(input: &mut InputHandle<u64, CapacityContainerBuilder<Vec<D>>>) {
    let next = *input.time() + 1;
    input.advance_to(next);
}

/// Wakes this worker's thread and schedules its source.
fn waker(worker: &Worker, source_operator: Vec<usize>) -> Wake {
    let thread = std::thread::current();
    let activator = std::sync::Mutex::new(worker.sync_activator_for(source_operator));
    Arc::new(move || {
        if let Ok(activator) = activator.lock() {
            // The worker may have ended.
            let _ = activator.activate();
        }
        thread.unpark();
    })
}

struct Body<'a> {
    plan: &'a WorkerPlan,
    readers: Rc<RefCell<Readers>>,
    control: Option<&'a mut Control>,
    inbox: Rc<RefCell<Inbox>>,
    wake: Wake,
    reports: Vec<RemoteReport>,
    stop_told: bool,
    lag_shown: Instant,
}

impl Body<'_> {
    /// Handles what came over the control dataflow, and tells the sealer what was read.
    fn step(&mut self, worker: &Worker, head: Option<&mut HeadState>) -> Result<(), crate::source::SourceError> {
        let Inbox { reports, assigned, log_end, resumed } = std::mem::take(&mut *self.inbox.borrow_mut());
        if let Some(message) = log_end.and_then(|end| crate::job::sinks_ahead(self.plan.sinks_through, end)) {
            self.plan.shared.failure.report(message);
        }
        if let Some(first) = resumed.filter(|first| *first != self.plan.resumed) {
            let mine = self.plan.resumed;
            self.plan.shared.failure.report(format!(
                "process 0 goes on from the checkpoint of epoch {first}, this one from that of epoch {mine}: give all processes the same \
                 checkpoint.url, and start them again"
            ));
        }
        for Assigned { number, name, offset, .. } in assigned.into_iter().filter(|split| split.owner == worker.index()) {
            let split = self.plan.source.split(number, &name).ok_or(crate::source::SourceError::NoSplit { split: name })?;
            self.readers.borrow_mut().open(&*self.plan.source, &split, offset, &self.wake)?;
        }
        if let Some(head) = head {
            for report in reports {
                if report.1 == STOP {
                    self.plan.stop.request();
                    continue;
                }
                let (split, report) = Report::decode(report);
                head.sealer.hear(split, report);
            }
        } else if self.plan.stop.requested() && !std::mem::replace(&mut self.stop_told, true) {
            self.reports.push((0, STOP, 0));
        }
        if let Some(control) = &mut self.control
            && let Some(input) = &mut control.reports
        {
            self.readers.borrow_mut().report(&mut self.reports)?;
            if !self.reports.is_empty() {
                for report in self.reports.drain(..) {
                    input.send(report);
                }
                send_now(input);
            }
        }
        if self.lag_shown.elapsed() >= LAG_INTERVAL {
            self.lag_shown = Instant::now();
            for (topic, split, lag, bytes) in self.readers.borrow().lags() {
                self.plan.shared.metrics.split(self.plan.shared.settings.topic_name(topic), split, lag, bytes);
            }
        }
        Ok(())
    }

    fn tell_all(&mut self, message: ControlMessage) {
        if let Some(control) = &mut self.control
            && let Some(input) = &mut control.messages
        {
            input.send(message);
            send_now(input);
        }
    }
}

/// Worker 0's part.
struct HeadState {
    sealer: Sealer,
    names: Vec<String>,
    /// How many splits there were at the start.
    splits_at_start: usize,
    log: Option<LogWriter>,
    clock: Box<dyn FnMut(Epoch) -> i64 + Send>,
    stop: Stop,
    progress: ProgressFn,
    committed: Vec<watch::Receiver<Epoch>>,
    rows_total: Option<u64>,
    health: Health,
    checkpoints: Option<Checkpoints>,
    checkpoint_begun: Instant,
    ending_since: Option<Instant>,
    recovered: bool,
    seals: Option<SealInput>,
    probe: ProbeHandle<u64>,
    peers: usize,
    /// Where the next epoch begins, by split.
    offsets: Vec<i64>,
    started: Instant,
    progress_shown: Instant,
    opened: bool,
    durable_told: Epoch,
    lost_told: Epoch,
    next: Epoch,
    /// Epochs in the dataflow, with the rows up to their ends.
    under_way: VecDeque<(Epoch, u64)>,
    rows_sealed: u64,
    rows_done: u64,
    stopped: bool,
}

impl HeadState {
    fn new(head: Head, seals: SealInput, probe: ProbeHandle<u64>, peers: usize) -> Self {
        let Head { sealer, names, log, clock, stop, progress, committed, rows_total, health, checkpoints } = head;
        let (next, offsets) = (sealer.first(), sealer.first_offsets());
        HeadState {
            sealer,
            offsets,
            splits_at_start: names.len(),
            names,
            log,
            clock,
            stop,
            progress,
            committed,
            rows_total,
            health,
            checkpoints,
            checkpoint_begun: Instant::now(),
            ending_since: None,
            recovered: false,
            seals: Some(seals),
            probe,
            peers,
            started: Instant::now(),
            progress_shown: Instant::now(),
            opened: false,
            durable_told: Epoch(0),
            lost_told: Epoch(0),
            next,
            under_way: VecDeque::new(),
            rows_sealed: 0,
            rows_done: 0,
            stopped: false,
        }
    }

    fn summary(&self) -> HeadSummary {
        HeadSummary { last: Epoch(self.next.0 - 1), rows: self.rows_sealed, stopped: self.stopped }
    }

    /// Seals what can be sealed; returns how long nothing needs to be done unless something happens.
    fn step(&mut self, body: &mut Body<'_>) -> Duration {
        if !std::mem::replace(&mut self.opened, true) {
            body.tell_all(ControlMessage::LogEnd(self.sealer.last()));
            body.tell_all(ControlMessage::Resumed(body.plan.resumed));
            for (split, offset) in self.sealer.first_offsets().into_iter().enumerate() {
                body.tell_all(self.assign(split as u32, offset));
            }
        }
        match body.plan.source.added() {
            Ok(added) => added.into_iter().for_each(|split| self.add(body, split)),
            Err(error) => body.plan.shared.failure.report(error),
        }
        if body.plan.clustered {
            let durable = *body.plan.durable.borrow();
            if durable > self.durable_told {
                self.durable_told = durable;
                body.tell_all(ControlMessage::Durable(durable));
            }
        }
        let lost = self.checkpoints.as_ref().map_or(Epoch(0), |checkpoints| checkpoints.trigger.orders_lost());
        if lost > self.lost_told {
            self.lost_told = lost;
            body.tell_all(ControlMessage::OrdersLost(lost));
        }
        while self.under_way.front().is_some_and(|&(epoch, _)| !self.probe.less_than(&time_of(epoch.next()))) {
            self.rows_done = self.under_way.pop_front().map_or(0, |(_, rows)| rows);
        }
        let park = self.seal(body);
        if self.progress_shown.elapsed() >= PROGRESS_INTERVAL {
            self.progress_shown = Instant::now();
            (self.progress)(Progress {
                rows_done: self.rows_done,
                rows_total: self.rows_total,
                epoch: self.next.0 - 1 - self.under_way.len() as u64,
                epoch_committed: self.committed.iter().map(|c| c.borrow().0).min().unwrap_or(0),
                draining: self.seals.is_none(),
            });
        }
        park
    }

    /// Takes on a split that came while the job runs. The next new epoch names it in the log.
    fn add(&mut self, body: &mut Body<'_>, split: AddedSplit) {
        // Once the input is closed nobody would read it; the next life finds it.
        if self.seals.is_none() || self.names.contains(&split.name) {
            return;
        }
        if self.names.len() > Place::SPLIT_MAX as usize {
            return body.plan.shared.failure.report(crate::source::SourceError::TooManySplits { count: self.names.len() + 1 });
        }
        let offset = split.start;
        self.names.push(split.name.clone());
        self.offsets.push(offset);
        let number = self.sealer.add(split);
        let message = self.assign(number, offset);
        tracing::info!(split = self.names[number as usize], offset, number, "a new input");
        body.tell_all(message);
    }

    /// Who reads a split.
    fn assign(&self, number: u32, offset: i64) -> ControlMessage {
        let owner = owner_of_split(number, self.splits_at_start, self.peers);
        ControlMessage::Read(Assigned { owner, number, name: self.names[number as usize].clone(), offset })
    }

    fn seal(&mut self, body: &mut Body<'_>) -> Duration {
        while self.seals.is_some() {
            if self.stop.requested() {
                self.stopped = true;
                if let Some(wait) = self.last_checkpoint(body) {
                    return wait;
                }
                self.finish(body);
                break;
            }
            if self.under_way.len() as u64 >= body.plan.in_flight {
                break;
            }
            let now_ms = (self.clock)(self.next);
            let next = self.sealer.next(now_ms, self.started.elapsed().as_millis() as u64);
            if !self.recovered && !matches!(next, Next::Replayed(_)) {
                self.recovered = true;
                self.health.set(Phase::Live);
            }
            let (record, is_new) = match next {
                Next::Replayed(record) => (record, false),
                Next::Sealed(record) => (record, true),
                Next::After(wait) => return wait,
                Next::Waiting => break,
                Next::Finished => {
                    if let Some(wait) = self.last_checkpoint(body) {
                        return wait;
                    }
                    self.finish(body);
                    break;
                }
            };
            let is_due =
                |c: &Checkpoints| (is_new || c.of_played) && self.checkpoint_begun.elapsed() >= c.interval && !c.trigger.is_under_way();
            let trigger = self.checkpoints.as_ref().filter(|c| is_due(c)).map(|c| c.trigger.clone());
            self.send(body, record, is_new, trigger);
        }
        PARK_MAX
    }

    /// Makes a checkpoint of the last epoch, where one is wanted, so that the next life has nothing to play back. Gives a time to wait while
    /// another one is under way.
    fn last_checkpoint(&mut self, body: &mut Body<'_>) -> Option<Duration> {
        let is_wanted = |c: &Checkpoints| match self.sealer.is_live() {
            true => c.at_stop && self.sealer.last() > body.plan.resumed,
            false => c.at_stop && c.of_played,
        };
        let checkpoints = self.checkpoints.take().filter(is_wanted)?;
        let since = *self.ending_since.get_or_insert_with(Instant::now);
        if checkpoints.trigger.is_under_way() {
            // It may wait for a store that is down: then there is none of the last epoch, which costs the next life some time and nothing else.
            return (since.elapsed() < CHECKPOINT_WAIT_MAX).then(|| {
                self.checkpoints = Some(checkpoints);
                CHECKPOINT_WAIT
            });
        }
        let (now_ms, monotonic_ms) = ((self.clock)(self.next), self.started.elapsed().as_millis() as u64);
        let (record, is_new) = match self.sealer.next_played() {
            Some(record) => (record, false),
            None => (self.sealer.last_one(now_ms, monotonic_ms), true),
        };
        self.send(body, record, is_new, Some(checkpoints.trigger));
        None
    }

    /// Sends an epoch on its way; with a trigger, a checkpoint is of its end.
    fn send(&mut self, body: &Body<'_>, record: EpochRecord, is_new: bool, checkpoint: Option<Trigger>) {
        let Some(seals) = &mut self.seals else { return };
        self.rows_sealed += record.offsets();
        self.under_way.push_back((record.epoch, self.rows_sealed));
        self.next = record.epoch.next();
        for (&split, &(_, end)) in &record.ranges {
            self.offsets[split as usize] = end;
        }
        debug_assert!(!is_new || self.offsets == self.sealer.positions());
        if let Some(trigger) = &checkpoint {
            self.checkpoint_begun = Instant::now();
            let (splits, offsets) = (self.names.clone(), self.offsets.clone());
            trigger.begin(Begun { epoch: record.epoch, sealed_at: record.sealed_at, splits, offsets });
        }
        seals.advance_to(time_of(record.epoch));
        seals.send_batch(&mut Batch::from(seal_batch(&record, self.splits_at_start, self.peers, checkpoint.is_some())));
        // At once, so that the epoch can be over.
        seals.advance_to(time_of(self.next));
        if is_new {
            body.plan.shared.metrics.epoch_sealed(record.epoch, record.offsets());
            self.append(record);
        }
    }

    fn append(&self, record: EpochRecord) {
        if let Some(log) = &self.log {
            log.append(record);
        }
    }

    /// No more epochs: waits for the log, tells the others, and closes the input.
    fn finish(&mut self, body: &mut Body<'_>) {
        self.health.set(Phase::Stopping);
        self.log = None;
        if body.plan.clustered {
            let durable = *body.plan.durable.borrow();
            body.tell_all(ControlMessage::Durable(durable));
        }
        self.seals = None;
        if let Some(control) = &mut body.control {
            control.messages = None;
        }
    }
}

/// Milliseconds for a tape clock that starts at `start` and goes on by `step` an epoch.
pub fn fixed_clock(start: i64, step: i64) -> Box<dyn FnMut(Epoch) -> i64 + Send> {
    Box::new(move |epoch| start + step * (epoch.0 as i64 - 1))
}
