//! Nexmark's queries: events a second of one core. Events are made, and put into Arrow batches, before.
//!
//! Each query runs on one worker by the operators and edges of a job, from batches in memory to its last operator; nothing is decoded, sealed or written.
//! What is counted are rows of the tables that it reads, over the worker's CPU time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use clap::Parser;
use orderflow::allocator;
use orderflow_fixtures::nexmark::{Events, NexmarkSettings, generate};
use orderflow_operators::batch::{Batch, register_schema};
use orderflow_operators::columns::micros;
use orderflow_operators::dataflow::{Batches, EpochOperator, clock_row, clock_schema, time_of};
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros, NEVER, Place};
use orderflow_sql::GroupedState;
use orderflow_sql::dataflow::{Host, build};
use orderflow_sql::rows::with_meta;
use orderflow_sql::stage::Stage;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Concatenate, Input as _, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

/// Nexmark's queries, on one core.
#[derive(Parser)]
struct Args {
    /// Events of all kinds.
    #[arg(long, default_value_t = 2_000_000)]
    events: u64,
    /// Events a second of event time.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Events of an epoch.
    #[arg(long, default_value_t = 50_000)]
    epoch_events: u64,
    /// Runs of each query; the best counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Queries; without them all.
    #[arg(value_name = "qN")]
    queries: Vec<String>,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

const SEED: u64 = 1;
/// The watermark is this far behind the events, as where a table declares none.
const DELAY: Micros = 1_000_000;
/// Of a stage's rows, the column of their times.
const TIME: usize = 1;
const TABLES: [&str; 3] = ["person", "auction", "bid"];
/// Epochs in the dataflow.
const IN_FLIGHT: u64 = 4;

fn main() -> Outcome<()> {
    allocator::set_up();
    let args = Args::parse();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/tests/nexmark");
    let gap_micros = (1_000_000 / args.rate.max(1)).max(1) as i64;
    let events = generate(&NexmarkSettings { events: args.events, gap_micros, seed: SEED });
    let input = Arc::new(Prepared::new(&events, args.epoch_events.max(1) as i64 * gap_micros));
    drop(events);
    println!("{} events, {} a second, epochs of {}, seed {SEED}\n", args.events, args.rate, args.epoch_events);
    println!("| query | rows in | rows out | CPU s | rows/s a core |\n| --- | --- | --- | --- | --- |");
    for (name, path) in queries(&folder)? {
        if !args.queries.is_empty() && !args.queries.contains(&name) {
            continue;
        }
        let text = std::fs::read_to_string(folder.join("tables.sql"))? + &std::fs::read_to_string(path)?;
        let stage = text.split("-- over all rows at once:").next().unwrap_or_default();
        let stage = Arc::new(Stage::plan(stage, &[]).map_err(|error| format!("{name}: {error}"))?);
        let mut best: Option<Measured> = None;
        for _ in 0..args.runs.max(1) {
            let measured = run(&stage, &input)?;
            best = Some(best.filter(|best| best.cpu_s <= measured.cpu_s).unwrap_or(measured));
        }
        let Some(Measured { rows_in, rows_out, cpu_s }) = best else { continue };
        println!("| {name} | {rows_in} | {rows_out} | {cpu_s:.2} | {:.0} K |", rows_in as f64 / cpu_s / 1_000.0);
    }
    Ok(())
}

/// The files of the queries, in the order of their numbers.
fn queries(folder: &Path) -> Outcome<Vec<(String, PathBuf)>> {
    let mut queries = BTreeMap::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix('q').and_then(|number| number.parse::<u32>().ok()) {
            queries.insert(number, (name, path));
        }
    }
    Ok(queries.into_values().collect())
}

/// Events as epochs of batches.
struct Prepared {
    /// For each epoch the watermark behind it, and a batch of each of [`TABLES`].
    epochs: Vec<(Micros, Vec<RecordBatch>)>,
    side: RecordBatch,
}

impl Prepared {
    fn new(events: &Events, epoch_micros: i64) -> Prepared {
        let whole = [
            table(
                &events.persons,
                0,
                |p| p.date_time,
                |p| {
                    vec![
                        ("id", ints(p, |p| p.id)),
                        ("name", texts(p, |p| &p.name)),
                        ("city", texts(p, |p| p.city)),
                        ("state", texts(p, |p| p.state)),
                        ("date_time", times(p, |p| p.date_time)),
                    ]
                },
            ),
            table(
                &events.auctions,
                1,
                |a| a.date_time,
                |a| {
                    vec![
                        ("id", ints(a, |a| a.id)),
                        ("item_name", texts(a, |a| &a.item_name)),
                        ("initial_bid", ints(a, |a| a.initial_bid)),
                        ("reserve", ints(a, |a| a.reserve)),
                        ("date_time", times(a, |a| a.date_time)),
                        ("expires", times(a, |a| a.expires)),
                        ("seller", ints(a, |a| a.seller)),
                        ("category", ints(a, |a| a.category)),
                    ]
                },
            ),
            table(
                &events.bids,
                2,
                |b| b.date_time,
                |b| {
                    vec![
                        ("auction", ints(b, |b| b.auction)),
                        ("bidder", ints(b, |b| b.bidder)),
                        ("price", ints(b, |b| b.price)),
                        ("channel", texts(b, |b| &b.channel)),
                        ("url", texts(b, |b| &b.url)),
                        ("date_time", times(b, |b| b.date_time)),
                    ]
                },
            ),
        ];
        let starts = whole.each_ref().map(|rows| micros(rows, TIME));
        let last = starts.iter().filter_map(|times| times.last()).max().copied().unwrap_or(NEVER);
        let mut epochs = Vec::new();
        let mut begin = orderflow_fixtures::nexmark::START;
        while begin <= last {
            let end = begin + epoch_micros;
            let slices = whole.iter().zip(&starts).map(|(rows, times)| {
                let (from, to) = (times.partition_point(|t| *t < begin), times.partition_point(|t| *t < end));
                rows.slice(from, to - from)
            });
            let watermark = if end > last { Micros::MAX } else { end - DELAY };
            epochs.push((watermark, slices.collect()));
            begin = end;
        }
        let keys: Vec<i64> = (0..90).collect();
        let side = table(
            &keys,
            3,
            |_| 0,
            |keys| {
                let values = keys.iter().map(|key| format!("value {key}"));
                vec![("key", ints(keys, |key| *key)), ("value", Arc::new(StringArray::from_iter_values(values)) as ArrayRef)]
            },
        );
        Prepared { epochs, side }
    }
}

fn ints<T>(rows: &[T], value: impl Fn(&T) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(value)))
}

fn times<T>(rows: &[T], value: impl Fn(&T) -> i64) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(value)))
}

fn texts<T>(rows: &[T], value: impl Fn(&T) -> &str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
}

/// Rows with the columns that a stage's rows have before their own.
fn table<T>(rows: &[T], split: u32, time: impl Fn(&T) -> i64, columns: impl Fn(&[T]) -> Vec<(&'static str, ArrayRef)>) -> RecordBatch {
    let places = UInt64Array::from_iter_values((0..rows.len()).map(|offset| Place::new(split, offset as i64).0));
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(places), times(rows, time), Arc::new(BooleanArray::from(vec![false; rows.len()]))];
    let own = columns(rows);
    let fields: Vec<_> =
        own.iter().map(|(name, array)| Arc::new(arrow::datatypes::Field::new(*name, array.data_type().clone(), true))).collect();
    arrays.extend(own.into_iter().map(|(_, array)| array));
    RecordBatch::try_new(with_meta(&fields), arrays).expect("the columns are of one length")
}

struct Measured {
    rows_in: u64,
    rows_out: u64,
    cpu_s: f64,
}

/// The one worker: it keeps nothing.
struct Worker {
    side: RecordBatch,
    failure: Mutex<Option<String>>,
}

impl Host for Worker {
    fn table(&self, _name: &str) -> Option<RecordBatch> {
        Some(self.side.clone())
    }
    fn start(&self, _operator: &str, _state: &mut dyn GroupedState) -> datafusion::error::Result<()> {
        Ok(())
    }
    fn after_epoch(&self, _operator: &str, _info: &EpochInfo, _state: &mut dyn GroupedState) -> datafusion::error::Result<()> {
        Ok(())
    }
    fn fail(&self, message: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
    }
}

fn run(stage: &Arc<Stage>, input: &Arc<Prepared>) -> Outcome<Measured> {
    let (stage, input) = (stage.clone(), input.clone());
    let guards = timely::execute(timely::Config::thread(), move |worker| {
        register_schema(&clock_schema());
        let host = Rc::new(Worker { side: input.side.clone(), failure: Mutex::new(None) });
        let for_stage: Rc<dyn Host> = host.clone();
        let rows_out = Rc::new(Cell::new(0_u64));
        type RowsInput = InputHandle<u64, NoopBuilder<Batch>>;
        let mut clock_input = RowsInput::new_with_builder();
        let mut inputs: BTreeMap<usize, RowsInput> = BTreeMap::new();
        let probe = worker.dataflow::<u64, _, _>(|scope| {
            let clock = scope.input_from(&mut clock_input);
            let mut source = |name: &str| -> Batches<'_> {
                let mut rows = RowsInput::new_with_builder();
                let stream = scope.input_from(&mut rows);
                let place = TABLES.iter().position(|table| *table == name).expect("the queries read these tables");
                inputs.insert(place, rows);
                stream
            };
            let probe = ProbeHandle::new();
            let outputs = match build(scope, "stage", &stage.graph, &clock, &mut source, &for_stage) {
                Ok(outputs) => outputs,
                Err(error) => {
                    host.fail(error.to_string());
                    return probe;
                }
            };
            let ends = outputs.sinks.into_iter().map(|rows| {
                let rows_out = rows_out.clone();
                let [end] = EpochOperator::new("count", scope, clock.clone()).unordered_input(rows, Pipeline).build(
                    [&clock_schema()],
                    Box::new(move |_, inputs, _| rows_out.set(rows_out.get() + inputs[0].take().map_or(0, |rows| rows.num_rows() as u64))),
                );
                end
            });
            let ends: Vec<_> = ends.collect();
            scope.concatenate(ends.into_iter().chain([outputs.rejects])).probe_with(&probe);
            probe
        });
        let mut rows_in = 0;
        let before = cpu_s();
        let mut watermark_before = NEVER;
        for (number, (watermark, batches)) in (1_u64..).zip(&input.epochs) {
            let epoch = Epoch(number);
            for (place, handle) in &mut inputs {
                handle.advance_to(time_of(epoch));
                rows_in += batches[*place].num_rows() as u64;
                if batches[*place].num_rows() > 0 {
                    handle.send_batch(&mut Batch::from(batches[*place].clone()));
                }
                handle.advance_to(time_of(epoch.next()));
            }
            let info = EpochInfo { epoch, sealed_at: number as Micros * 1_000, watermark_before, watermark: *watermark, checkpoint: false };
            watermark_before = *watermark;
            clock_input.advance_to(time_of(epoch));
            clock_input.send_batch(&mut Batch::from(clock_row(&info)));
            clock_input.advance_to(time_of(epoch.next()));
            while probe.less_than(&time_of(Epoch((number + 1).saturating_sub(IN_FLIGHT)))) {
                worker.step();
            }
        }
        drop((clock_input, inputs));
        while !probe.done() {
            worker.step();
        }
        let failure = host.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        (Measured { rows_in, rows_out: rows_out.get(), cpu_s: cpu_s() - before }, failure)
    })?;
    match guards.join().into_iter().next() {
        Some(Ok((measured, None))) => Ok(measured),
        Some(Ok((_, Some(failure)))) => Err(failure.into()),
        Some(Err(error)) => Err(error.into()),
        None => Err("there was no worker".into()),
    }
}

/// CPU seconds of this thread.
fn cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
