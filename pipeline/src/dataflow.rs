//! The job's dataflow: which operator stands where.
//!
//! ```text
//!  seals ─► [source] ─ progress ─► [clock] ─ one row an epoch ─► every operator below
//!              ├ orders ──► [validate] ─by order─► [deduplicate] ──────────────► [score] ─► ┐
//!              │                                       └ by key ─► [features ×4] ──┘         ├─► desk ⇄ stock ─► [collect ×5] ─► sinks
//!              ├ life cycle ───────────────────────────────────────────by order────────────►┤
//!              ├ movements ─by movement─► [deduplicate] ───────────────────by SKU───────────►┘
//!              └ malformed ────────────────────────────────────────────────────────────────────► [collect]
//! ```
//!
//! Stages of the user's stand between what comes out of desk and stock and a `collect` for each of their own streams; see `dataflow/stages.rs`.

mod collect;
mod readers;
mod source;
mod stages;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use orderflow_operators::columns::append;
use orderflow_operators::dataflow::{Batches, EpochOperator};
use orderflow_operators::decoder::Topic;
use orderflow_operators::deduplicate::{Deduplicate, DeduplicateMovements, DeduplicateSettings};
use orderflow_operators::epoch::{Epoch, EpochInfo};
use orderflow_operators::exchange::{by_text, by_worker};
use orderflow_operators::features::{FeatureTable, Features, KeyKind, WindowSet};
use orderflow_operators::reserve::{Desk, ReserveSettings, Sides, Stock, reserve, scored_schema};
use orderflow_operators::rows::{feature_replies, feature_requests, movements, orders};
use orderflow_operators::score::{Model, Thresholds};
use orderflow_operators::snapshot::KeyedState;
use orderflow_operators::streams::Stream;
use orderflow_operators::validate::{Predicate, Validate, ValidateSettings};
use orderflow_operators::watermark::{Watermark, WatermarkSettings};
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Concatenate, Probe};
use timely::dataflow::{ProbeHandle, Scope};

use crate::checkpoint::{Loader, ORDERS, Recorder, Writers};
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::sink_hub::SinkHub;
use crate::stages::Stages;

pub(crate) use collect::count_decisions;
pub use readers::{Readers, RemoteReport};
pub use source::{SealInput, owner_of_split, seal_batch};

/// What the operators are told, the same on every worker.
pub struct Settings {
    /// Names of the inventory and the orders topic.
    pub topics: [String; 2],
    /// How event time goes on.
    pub watermark: WatermarkSettings,
    /// Rules of a single order.
    pub validate: ValidateSettings,
    /// Makes the users' own rules, on each worker.
    pub predicates: Box<dyn Fn() -> Vec<Box<dyn Predicate>> + Send + Sync>,
    /// First occurrences.
    pub deduplicate: DeduplicateSettings,
    /// Windows of the fraud features.
    pub windows: WindowSet,
    /// The model.
    pub model: Model,
    /// When a score is too high.
    pub thresholds: Thresholds,
    /// How long unpaid orders hold stock; microseconds.
    pub hold: i64,
    /// The job's streams, and the stages that write some of them.
    pub stages: Stages,
}

impl Settings {
    /// The name of a topic.
    pub fn topic_name(&self, topic: Topic) -> &str {
        match topic {
            Topic::Inventory => &self.topics[0],
            Topic::Orders => &self.topics[1],
        }
    }
}

/// What a worker's operators share with the rest of its process.
pub struct Shared {
    /// Settings of the operators.
    pub settings: Arc<Settings>,
    /// Where rows go.
    pub hub: Arc<SinkHub>,
    /// Counters.
    pub metrics: Metrics,
    /// Where to say what went wrong.
    pub failure: Failure,
    /// Where the state comes from and goes to.
    pub states: States,
    /// By stage, the first epoch that it reads, where that is behind the state.
    pub stage_begins: BTreeMap<String, Epoch>,
    /// The first worker of this process.
    pub first_worker: usize,
}

/// Where the operators' state comes from and goes to.
#[derive(Clone, Default)]
pub struct States {
    /// The checkpoint to go on from.
    pub loader: Option<Loader>,
    /// Where checkpoints are written.
    pub writers: Option<Writers>,
}

impl States {
    /// Takes up an operator's state, and begins to record it.
    fn attach(&self, operator: &str, scope: Scope<'_, u64>, state: &mut dyn KeyedState, failure: &Failure) -> Option<Recorder> {
        if let Some(loader) = &self.loader
            && let Err(error) = loader.restore(operator, scope.index(), scope.peers(), state)
        {
            failure.report(error);
        }
        let writers = self.writers.as_ref()?;
        // Windows change by what `deduplicate` writes down.
        if KeyKind::ALL.iter().all(|kind| kind.name() != operator) {
            state.keep_changes();
        }
        Some(writers.recorder(operator, scope.index(), scope.peers()))
    }
}

/// Builds the dataflow below `seals` on this worker. The probe says which epochs have left it.
pub fn build<'scope>(
    scope: Scope<'scope, u64>,
    seals: Batches<'scope>,
    readers: Rc<RefCell<Readers>>,
    shared: &Shared,
) -> ProbeHandle<u64> {
    let settings = &shared.settings;
    let metrics = &shared.metrics;
    let windows = &settings.windows;
    let source::Sources { orders, lifecycle, movements, malformed, progress } = source::source(scope, seals, readers, shared);
    let states = &shared.states;
    let watermark = match &states.loader {
        Some(loader) => Watermark::resume(settings.watermark, loader.manifest().watermark.clone()),
        None => Watermark::new(settings.watermark),
    };
    let is_first_here = shared.first_worker == scope.index();
    let clock_recorder = states.writers.as_ref().filter(|_| is_first_here).map(Writers::clock);
    let clock = source::clock(scope, progress, watermark, clock_recorder, metrics.clone());
    let record = |recorder: &mut Option<Recorder>, info: &EpochInfo, state: &mut dyn KeyedState| {
        if let Some(recorder) = recorder {
            recorder.epoch(info, state);
        }
    };

    // -- one order at a time
    let mut validate = Validate::new(settings.validate.clone(), (settings.predicates)());
    let stage = Stage::new("validate", scope.index(), metrics);
    let [orders] = EpochOperator::new("validate", scope, clock.clone()).input(orders, Pipeline).build(
        [&orders::validated()],
        Box::new(move |info, inputs, outputs| {
            if let Some(rows) = inputs[0].take() {
                stage.rows(rows.num_rows());
                outputs[0].push(validate.on_epoch(info, &rows));
            }
        }),
    );

    // -- by order id, and from there by each key
    let mut deduplicate = Deduplicate::new(settings.deduplicate);
    let mut recorder = states.attach(ORDERS, scope, &mut deduplicate, &shared.failure);
    let worker = scope.index() as u32;
    let stage = Stage::new("deduplicate", scope.index(), metrics);
    let request = feature_requests::schema();
    let [orders, by_customer, by_card, by_device, by_ip] =
        EpochOperator::new("deduplicate", scope, clock.clone()).input(orders, by_text(orders::ORDER_ID)).build(
            [&orders::validated(), &request, &request, &request, &request],
            Box::new(move |info, inputs, outputs| {
                if let Some(orders) = deduplicate.on_epoch(info, inputs[0].take().as_ref()) {
                    stage.rows(orders.num_rows());
                    for (kind, output) in KINDS.iter().zip(&mut outputs[1..]) {
                        output.push(kind.request(&orders, worker));
                    }
                    outputs[0].push(orders);
                }
                record(&mut recorder, info, &mut deduplicate);
                stage.state(info.epoch, deduplicate.len(), deduplicate.bytes());
            }),
        );
    let replies = KINDS.map(|kind| kind.name()).into_iter().zip([by_customer, by_card, by_device, by_ip]).map(|(name, requests)| {
        let mut features = Features::new(windows.clone(), settings.deduplicate.horizon);
        let mut recorder = states.attach(name, scope, &mut features, &shared.failure);
        let stage = Stage::new(name, scope.index(), metrics);
        let [replies] = EpochOperator::new(name, scope, clock.clone()).input(requests, by_text(feature_requests::KEY)).build(
            [&feature_replies::schema(windows.len())],
            Box::new(move |info, inputs, outputs| {
                outputs[0].extend(features.on_epoch(info, inputs[0].take().as_ref()));
                record(&mut recorder, info, &mut features);
                stage.state(info.epoch, features.len(), features.bytes());
            }),
        );
        replies
    });

    // -- back at the order
    let scored = scored_schema(windows);
    let mut score = EpochOperator::new("score", scope, clock.clone()).input(orders, Pipeline);
    for replies in replies {
        score = score.unordered_input(replies, by_worker(0));
    }
    let shared_settings = settings.clone();
    let stage = Stage::new("score", scope.index(), metrics);
    let schema = scored.clone();
    let [orders] = score.build(
        [&scored],
        Box::new(move |_info, inputs, outputs| {
            if let Some(orders) = inputs[0].take() {
                stage.rows(orders.num_rows());
                outputs[0].push(score_orders(&shared_settings, &schema, &orders, &mut inputs[1..]));
            }
        }),
    );

    // -- the stock
    let mut deduplicate = DeduplicateMovements::new(settings.deduplicate);
    let mut recorder = states.attach("movements", scope, &mut deduplicate, &shared.failure);
    let stage = Stage::new("deduplicate_movements", scope.index(), metrics);
    let [movements] =
        EpochOperator::new("deduplicate movements", scope, clock.clone()).input(movements, by_text(movements::MOVEMENT_ID)).build(
            [&movements::schema()],
            Box::new(move |info, inputs, outputs| {
                if let Some(rows) = deduplicate.on_epoch(info, inputs[0].take().as_ref()) {
                    stage.rows(rows.num_rows());
                    outputs[0].push(rows);
                }
                record(&mut recorder, info, &mut deduplicate);
                stage.state(info.epoch, deduplicate.len(), deduplicate.bytes());
            }),
        );
    let reserve_settings = ReserveSettings {
        hold: settings.hold,
        thresholds: settings.thresholds,
        model: settings.model.label().to_owned(),
        windows: windows.clone(),
    };
    let (mut desk, mut stock) = (Desk::new(scope.index(), reserve_settings), Stock::new(scope.index()));
    let mut desk_recorder = states.attach("reservations", scope, &mut desk, &shared.failure);
    let mut stock_recorder = states.attach("stock", scope, &mut stock, &shared.failure);
    let (desk_stage, stock_stage) = (Stage::new("reservations", scope.index(), metrics), Stage::new("stock", scope.index(), metrics));
    let counted = metrics.clone();
    let sides = Sides {
        desk,
        stock,
        on_desk: Box::new(move |info, desk, rounds| {
            counted.reservation_rounds(rounds);
            record(&mut desk_recorder, info, desk);
            desk_stage.state(info.epoch, desk.len(), desk.len() * RESERVATION_BYTES);
        }),
        on_stock: Box::new(move |info, stock| {
            record(&mut stock_recorder, info, stock);
            stock_stage.state(info.epoch, stock.len(), stock.len() * SKU_BYTES);
        }),
    };
    let reserved = reserve(scope, sides, clock.clone(), orders, lifecycle, movements);

    // -- out
    let rows_of = |stream| match stream {
        Stream::OrderDecisions => vec![reserved.order_decisions.clone()],
        Stream::OrderLines => vec![reserved.order_lines.clone()],
        Stream::ReservationEvents => vec![reserved.reservation_events.clone(), reserved.ignored.clone()],
        Stream::StockMovements => vec![reserved.stock_movements.clone()],
        Stream::DeadLetters => vec![malformed.clone()],
    };
    let mut rows = Stream::ALL.map(rows_of).to_vec();
    rows.extend(stages::stages(scope, rows_of, &clock, shared));
    let outputs: Vec<_> =
        rows.into_iter().enumerate().map(|(number, rows)| collect::collect(scope, number, rows, clock.clone(), shared)).collect();
    let probe = ProbeHandle::new();
    scope.concatenate(outputs).probe_with(&probe);
    probe
}

/// The key kinds in the order of the dataflow's edges.
const KINDS: [KeyKind; 4] = [KeyKind::Customer, KeyKind::Card, KeyKind::Device, KeyKind::Ip];

/// Counts what passes an operator.
struct Stage {
    name: &'static str,
    worker: usize,
    metrics: Metrics,
}

impl Stage {
    fn new(name: &'static str, worker: usize, metrics: &Metrics) -> Self {
        Stage { name, worker, metrics: metrics.clone() }
    }
    fn rows(&self, rows: usize) {
        self.metrics.rows(self.name, rows as u64);
    }
    /// Now and then: epochs may be as short as a row.
    fn state(&self, epoch: Epoch, entries: usize, bytes: usize) {
        if epoch.0.is_multiple_of(STATE_METRIC_EPOCHS) {
            self.metrics.state(self.name, self.worker, entries as u64, bytes as u64);
        }
    }
}

/// Epochs between two readings of a state's size.
const STATE_METRIC_EPOCHS: u64 = 16;

/// For the metric of the state's size: a reservation with two lines, with its place in the tables.
const RESERVATION_BYTES: usize = 128;
/// The same for a SKU.
const SKU_BYTES: usize = 96;

fn score_orders(settings: &Settings, schema: &SchemaRef, orders: &RecordBatch, replies: &mut [Option<RecordBatch>]) -> RecordBatch {
    let mut table = FeatureTable::new(orders, &settings.windows);
    for (kind, reply) in KINDS.iter().zip(replies) {
        if let Some(reply) = reply.take() {
            table.add(*kind, &reply);
        }
    }
    let features: Vec<Int64Array> = table.finish(orders);
    let score: Float64Array = settings.model.score(orders, &features);
    let features = features.into_iter().map(|f| Arc::new(f) as ArrayRef);
    append(orders, schema, features.chain([Arc::new(score) as ArrayRef]))
}
