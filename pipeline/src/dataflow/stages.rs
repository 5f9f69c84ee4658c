//! The stages of the job on its dataflow: what they read, where they stand, what comes out.
//!
//! # Design
//!
//! A stage reads rows where they leave the job's operators, on the worker that made them, before they are collected. What it needs of each beside
//! its columns is made here: its place, its event time, and that it is not taken back. Batches are passed on as they come; stages wait for an
//! epoch's end themselves, where they must.
//!
//! **Order.** Within an epoch rows are in the order of their places, and rows of one place (lines of an order) in that of their values. Holds that expire have
//! no place, and several of one SKU may expire in an epoch: which of them is the last one must be known to whoever asks for the last state of that SKU. So they come
//! together on one worker, which numbers them in the order in which they took effect, as `collect` does for readers. They are few: an epoch's expiries of
//! orders that were not paid.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use orderflow_operators::batch::{Batch, register_schema};
use orderflow_operators::columns::u64s;
use orderflow_operators::dataflow::{Batches, EpochOperator, epoch_of};
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros, Place};
use orderflow_operators::exchange::to_worker;
use orderflow_operators::rows::PLACE;
use orderflow_operators::streams::Stream;
use orderflow_sql::dataflow::{Host, Outputs};
use orderflow_sql::rows::{META, with_meta};
use orderflow_sql::{DataFusionError, GroupedState, reject_schema};
use timely::container::NoopBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::collect::{epoch_and_place, reservation_events_in_order};
use super::{Shared, States};
use crate::checkpoint::{GroupRecorder, restore_groups};
use crate::failure::Failure;
use crate::stages::{JobStage, JobStream, STAGE};

/// Builds all stages: the rows of each stream behind the job's own. `rows_of` gives those of the job's own streams.
pub(super) fn stages<'scope>(
    scope: Scope<'scope, u64>,
    rows_of: impl Fn(Stream) -> Vec<Batches<'scope>>,
    clock: &Batches<'scope>,
    shared: &Shared,
) -> Vec<Vec<Batches<'scope>>> {
    let job = &shared.settings.stages;
    if job.stages.is_empty() {
        return Vec::new();
    }
    let mut sources: HashMap<String, Batches<'scope>> = HashMap::new();
    let mut streams: Vec<Vec<Batches<'scope>>> = vec![Vec::new(); job.streams.len()];
    let mut rejected = Vec::new();
    for stage in &job.stages {
        let host: Rc<dyn Host> = Rc::new(JobHost {
            stage: stage.clone(),
            is_new: shared.stage_begins.contains_key(&stage.name),
            worker: (scope.index(), scope.peers()),
            states: shared.states.clone(),
            failure: shared.failure.clone(),
            recorders: RefCell::default(),
        });
        let mut source = |name: &str| -> Batches<'scope> {
            let made = sources.entry(name.to_owned()).or_insert_with(|| match Stream::ALL.into_iter().find(|own| own.name() == name) {
                Some(own) => own_source(scope, own, rows_of(own), clock, shared),
                None => {
                    let number = job.number(name).expect("the stage was planned over the streams that there are");
                    stage_source(scope, &job.streams[number], streams[number].clone())
                }
            });
            match shared.stage_begins.get(&stage.name) {
                Some(&begins) => map(scope, "stage begins", made.clone(), move |epoch, rows| (epoch >= begins).then_some(rows)),
                None => made.clone(),
            }
        };
        match orderflow_sql::dataflow::build(scope, &format!("{STAGE}{}", stage.name), &stage.stage.graph, clock, &mut source, &host) {
            Ok(Outputs { sinks, rejects }) => {
                sinks.into_iter().zip(&stage.outputs).for_each(|(rows, &number)| streams[number].push(rows));
                rejected.push(named_rejects(scope, &stage.name, rejects));
            }
            Err(error) => shared.failure.report(format!("stage {}: {}", stage.name, error.strip_backtrace())),
        }
    }
    // They are the last stream.
    if let Some(last) = streams.last_mut() {
        *last = rejected;
    }
    streams.split_off(Stream::ALL.len())
}

/// The rows of one of the job's own streams as stages read them.
fn own_source<'scope>(
    scope: Scope<'scope, u64>,
    stream: Stream,
    rows: Vec<Batches<'scope>>,
    clock: &Batches<'scope>,
    shared: &Shared,
) -> Batches<'scope> {
    let to = Readable::new(stream, shared);
    let schema = to.schema.clone();
    match stream {
        Stream::DeadLetters => {
            // What cannot be read has no event time: it is that of its epoch.
            let [made] = EpochOperator::new("stage source dead_letters", scope, clock.clone())
                .unordered_input(scope.concatenate(rows), Pipeline)
                .build(
                    [&schema],
                    Box::new(move |info, inputs, outputs| {
                        if let Some(rows) = inputs[0].take() {
                            let times = vec![info.sealed_at; rows.num_rows()];
                            outputs[0].push(to.rows(info.epoch, u64s(&rows, PLACE).to_vec(), times.into(), &rows));
                        }
                    }),
                );
            made
        }
        Stream::ReservationEvents => {
            let events = scope.concatenate(rows);
            let is_timer =
                |rows: &RecordBatch| u64s(rows, PLACE).iter().map(|&place| Some(Place(place).is_after_rows())).collect::<BooleanArray>();
            let timers = map(scope, "stage expiries", events.clone(), move |_, rows| {
                let timers = is_timer(&rows);
                (timers.true_count() > 0).then(|| filter_record_batch(&rows, &timers).expect("the filter has one value for each row"))
            });
            let among_rows = to.clone();
            let events = map(scope, "stage source reservation_events", events, move |epoch, mut rows| {
                let timers = is_timer(&rows);
                if timers.true_count() > 0 {
                    let others = arrow::compute::not(&timers).expect("a boolean column has a complement");
                    rows = filter_record_batch(&rows, &others).expect("the filter has one value for each row");
                }
                (rows.num_rows() > 0).then(|| among_rows.placed(epoch, &rows))
            });
            let [timers] = EpochOperator::new("stage expiries in order", scope, clock.clone()).unordered_input(timers, to_worker(0)).build(
                [&schema],
                Box::new(move |info, inputs, outputs| {
                    if let Some(rows) = inputs[0].take().and_then(|rows| reservation_events_in_order(vec![rows.into()])) {
                        let places = (0..rows.num_rows() as u64).map(|number| Place::of_timer(number).0).collect();
                        outputs[0].push(to.rows(info.epoch, places, to.event_times(&rows), &rows));
                    }
                }),
            );
            scope.concatenate([events, timers])
        }
        _ => map(scope, &format!("stage source {stream}"), scope.concatenate(rows), move |epoch, rows| Some(to.placed(epoch, &rows))),
    }
}

/// What another stage wrote, as a stage reads it: with its epoch.
fn stage_source<'scope>(scope: Scope<'scope, u64>, stream: &JobStream, rows: Vec<Batches<'scope>>) -> Batches<'scope> {
    let rows = scope.concatenate(rows);
    let name = format!("stage source {}", stream.stream);
    map(scope, &name, rows, |epoch, rows| {
        let (fields, columns) = (rows.schema_ref().fields(), rows.columns());
        let with_epoch = [Arc::new(Field::new("epoch", DataType::Int64, true))];
        let schema = with_meta(with_epoch.iter().chain(&fields[META..]));
        let [epoch, ..] = epoch_and_place(epoch, u64s(&rows, orderflow_sql::rows::PLACE));
        let columns = columns[..META].iter().cloned().chain([epoch]).chain(columns[META..].iter().cloned());
        Some(RecordBatch::try_new(schema, columns.collect()).expect("the columns are those of the batch, and an epoch"))
    })
}

/// Rejected rows with the stage that left them out before them.
fn named_rejects<'scope>(scope: Scope<'scope, u64>, stage: &str, rejects: Batches<'scope>) -> Batches<'scope> {
    let mut fields = vec![Arc::new(Field::new("stage", DataType::Utf8, false))];
    fields.extend(reject_schema().fields().iter().cloned());
    let schema = Arc::new(Schema::new(fields));
    register_schema(&schema);
    let name = stage.to_owned();
    map(scope, "stage rejects", rejects, move |_, rows| {
        let names: ArrayRef = Arc::new(StringArray::from(vec![name.as_str(); rows.num_rows()]));
        let columns = [names].into_iter().chain(rows.columns().iter().cloned()).collect();
        Some(RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of rejects, and a name"))
    })
}

/// Passes on each batch as it comes, made into another one, whose columns the reader has registered.
fn map<'scope>(
    scope: Scope<'scope, u64>,
    name: &str,
    rows: Batches<'scope>,
    made: impl Fn(Epoch, RecordBatch) -> Option<RecordBatch> + 'static,
) -> Batches<'scope> {
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let mut input = builder.new_input(rows, Pipeline);
    let (output, stream) = builder.new_output::<Batch>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batch>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        move |_frontiers| {
            let mut output = output.activate();
            input.for_each(|cap, data| {
                let epoch = epoch_of(*cap.time());
                if let Some(rows) = std::mem::take(data).into_rows().and_then(|rows| made(epoch, rows)) {
                    output.session_with_builder(&cap).give_container(&mut Batch::from(rows));
                }
            });
        }
    });
    stream
}

/// The columns of one of the job's streams as stages read them.
#[derive(Clone)]
struct Readable {
    schema: SchemaRef,
    /// The column of event time among those that the dataflow carries; none if there is none.
    event_time: Option<usize>,
    /// How many of these columns there are, with the place.
    internal: usize,
}

impl Readable {
    fn new(stream: Stream, shared: &Shared) -> Readable {
        let read = orderflow_sql::stage::without_zone(&stream.schema(&shared.settings.windows));
        // Place for place: `epoch`, `split` and `offset` stand for the one column of the place.
        let event_time = read.index_of("event_time").ok().map(|at| at - 2);
        Readable { schema: with_meta(read.fields()), event_time, internal: read.fields().len() - 2 }
    }

    fn event_times(&self, rows: &RecordBatch) -> arrow::buffer::ScalarBuffer<Micros> {
        let at = self.event_time.expect("only dead letters have no event time, and those are given one");
        rows.column(at).as_primitive::<TimestampMicrosecondType>().values().clone()
    }

    /// Rows whose places and times are their own.
    fn placed(&self, epoch: Epoch, rows: &RecordBatch) -> RecordBatch {
        let times = self.event_times(rows);
        self.rows(epoch, u64s(rows, PLACE).to_vec(), times, rows)
    }

    fn rows(&self, epoch: Epoch, places: Vec<u64>, times: arrow::buffer::ScalarBuffer<Micros>, rows: &RecordBatch) -> RecordBatch {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let read = epoch_and_place(epoch, &places);
        columns.push(Arc::new(UInt64Array::from(places)));
        columns.push(Arc::new(TimestampMicrosecondArray::new(times, None)));
        columns.push(Arc::new(BooleanArray::from(vec![false; rows.num_rows()])));
        columns.extend(read);
        columns.extend(rows.columns()[1..self.internal].iter().map(|column| match column.data_type() {
            DataType::Timestamp(..) => {
                Arc::new(column.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(None::<&str>)) as ArrayRef
            }
            _ => column.clone(),
        }));
        RecordBatch::try_new(self.schema.clone(), columns).expect("the columns are those of the stream, behind their place and time")
    }
}

/// A worker's part in a stage's state and lookup tables.
struct JobHost {
    stage: JobStage,
    /// Whether it begins behind the state.
    is_new: bool,
    /// Which worker this is, and of how many.
    worker: (usize, usize),
    states: States,
    failure: Failure,
    recorders: RefCell<BTreeMap<String, GroupRecorder>>,
}

/// What the state of an operator is kept under; names of files are made of it.
fn state_name(operator: &str) -> String {
    operator.replace(' ', ".")
}

impl Host for JobHost {
    fn table(&self, name: &str) -> Option<RecordBatch> {
        self.stage.lookups.get(name).cloned()
    }

    fn start(&self, operator: &str, state: &mut dyn GroupedState) -> Result<(), DataFusionError> {
        let (worker, peers) = self.worker;
        let name = state_name(operator);
        if let Some(loader) = self.states.loader.as_ref().filter(|_| !self.is_new) {
            restore_groups(loader, &name, worker, peers, state).map_err(DataFusionError::Execution)?;
        }
        if let Some(writers) = &self.states.writers {
            self.recorders.borrow_mut().insert(operator.to_owned(), writers.group_recorder(&name, worker, peers));
        }
        Ok(())
    }

    fn after_epoch(&self, operator: &str, info: &EpochInfo, state: &mut dyn GroupedState) -> Result<(), DataFusionError> {
        match self.recorders.borrow_mut().get_mut(operator) {
            Some(recorder) => recorder.epoch(info, || state.dump()),
            None => Ok(()),
        }
    }

    fn fail(&self, message: String) {
        self.failure.report(message);
    }
}
