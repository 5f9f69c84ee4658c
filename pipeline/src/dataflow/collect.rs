//! The end of the dataflow: a stream's rows of an epoch, from all workers, in canonical order, handed to the sinks.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::{SortColumn, cast, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use orderflow_operators::batch::Batch;
use orderflow_operators::columns::{micros, text, u32s, u64s};
use orderflow_operators::dataflow::{At, Batches, Clock, Parts, Stash, concat, in_order, is_past, read_clock, stashing_input};
use orderflow_operators::epoch::{Epoch, EpochInfo, Place};
use orderflow_operators::exchange::to_worker;
use orderflow_operators::rows::PLACE;
use orderflow_operators::streams::{OutputStream, Stream};
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::Shared;
use crate::stages::{JobStream, REJECTS, stage_rows};

/// Brings the rows of the job's stream of this `number` together on one worker, and hands each epoch to the hub. The output has no rows: its
/// frontier says which epochs the sinks have taken.
pub(super) fn collect<'scope>(
    scope: Scope<'scope, u64>,
    number: usize,
    rows: Vec<Batches<'scope>>,
    clock: Batches<'scope>,
    shared: &Shared,
) -> Batches<'scope> {
    // Streams are spread over workers; a stream's epochs have one writer, which keeps their order.
    let is_owner = number % scope.peers() == scope.index();
    let JobStream { stream, changes, .. } = shared.settings.stages.streams[number].clone();
    let mut builder = OperatorBuilder::new(format!("collect {stream}"), scope);
    let mut inputs: Vec<_> = rows.into_iter().map(|rows| stashing_input(&mut builder, rows, to_worker(number))).collect();
    let mut clock_input = builder.new_input(clock, Pipeline);
    let (_output, done) = builder.new_output::<Batch>();
    let activator = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    let hub = shared.hub.clone();
    if is_owner {
        hub.on_room(&stream, move || {
            // The worker may have ended already.
            let _ = activator.activate();
        });
    }
    let schema = stream.schema(&shared.settings.windows);
    builder.build(move |capabilities| {
        drop(capabilities);
        let (mut stash, mut clock) = (Stash::new(), Clock::new());
        let mut ready: VecDeque<(Capability<u64>, Epoch, Option<RecordBatch>)> = VecDeque::new();
        move |frontiers| {
            for input in &mut inputs {
                input(&mut stash);
            }
            read_clock(&mut clock_input, &mut clock, 1);
            while let Some(first) = clock.first_entry().filter(|e| frontiers.iter().all(|f| is_past(f, *e.key()))) {
                let (time, (info, mut capabilities)) = first.remove_entry();
                if let (true, Some(capability)) = (is_owner, capabilities.pop()) {
                    let batches = stash.remove(&time).unwrap_or_default();
                    let rows = match &stream {
                        OutputStream::Own(stream) => epoch_rows(*stream, &schema, &info, batches),
                        OutputStream::Stage(stream) if stream.name == REJECTS => rejected_rows(&schema, &info, batches),
                        OutputStream::Stage(_) => concat(batches).map(|rows| stage_rows(&schema, changes, info.epoch, rows)),
                    };
                    hub.decided(&stream, &info, rows.as_ref());
                    ready.push_back((capability, info.epoch, rows));
                }
            }
            // In order, and none before there is room: the capabilities hold the job back meanwhile.
            while let Some((_, epoch, rows)) = ready.front() {
                if !hub.offer(&stream, *epoch, rows.as_ref()) {
                    break;
                }
                ready.pop_front();
            }
        }
    });
    done
}

/// The rows in canonical order, with the columns that readers see.
fn epoch_rows(stream: Stream, schema: &SchemaRef, info: &EpochInfo, batches: Vec<Batch>) -> Option<RecordBatch> {
    let rows = match stream {
        Stream::ReservationEvents => reservation_events_in_order(batches)?,
        _ => in_order(batches)?,
    };
    let mut columns: Vec<ArrayRef> = epoch_and_place(info.epoch, u64s(&rows, PLACE)).into();
    // The place before them and, in reservation events, the ordinal behind them have done their work.
    columns.extend(rows.columns()[1..].iter().take(schema.fields().len() - 3).cloned());
    Some(RecordBatch::try_new(schema.clone(), columns).expect("the columns fit the stream's schema"))
}

/// The columns `epoch`, `split` and `offset` of rows of these places.
pub(super) fn epoch_and_place(epoch: Epoch, places: &[u64]) -> [ArrayRef; 3] {
    let has_place = |p: &u64| !Place(*p).is_after_rows();
    let nulls = (!places.iter().all(has_place)).then(|| NullBuffer::from_iter(places.iter().map(has_place)));
    [
        Arc::new(Int64Array::from(vec![epoch.0 as i64; places.len()])),
        Arc::new(Int32Array::new(places.iter().map(|&p| Place(p).split()).collect(), nulls.clone())),
        Arc::new(Int64Array::new(places.iter().map(|&p| Place(p).offset()).collect(), nulls)),
    ]
}

/// Rows that stages left out, by their place and then by all that they have. Their columns are the stage, then those of
/// [`reject_schema`](orderflow_sql::reject_schema).
fn rejected_rows(schema: &SchemaRef, info: &EpochInfo, batches: Vec<Batch>) -> Option<RecordBatch> {
    let rows = concat(batches)?;
    let by = [1, 0, 2, 3, 4, 5].map(|column| SortColumn { values: rows.column(column).clone(), options: None });
    let order = lexsort_to_indices(&by, None).expect("texts, times and numbers can be sorted");
    let rows = take_record_batch(&rows, &order).expect("the order is of these rows");
    let [epoch, split, offset] = epoch_and_place(info.epoch, u64s(&rows, 1));
    let [stage, kind, time, detail, row] = [0, 2, 3, 4, 5].map(|column| rows.column(column).clone());
    let time = cast(&time, schema.field(5).data_type()).expect("times of two zones can be cast");
    let columns = vec![epoch, stage, split, offset, kind, time, detail, row];
    Some(RecordBatch::try_new(schema.clone(), columns).expect("the columns fit the stream's schema"))
}

/// By place and line; what has no place by (event time, order id, line).
pub(super) fn reservation_events_in_order(batches: Vec<Batch>) -> Option<RecordBatch> {
    const ORDER_ID: usize = 1;
    const EVENT_TIME: usize = 5;
    const ORDINAL: usize = 8;
    let parts = Parts::new(batches);
    let mut rows: Vec<(u64, u32, At)> = Vec::with_capacity(parts.batches.iter().map(RecordBatch::num_rows).sum());
    for (part, batch) in parts.batches.iter().enumerate() {
        let (places, ordinals) = (u64s(batch, PLACE), u32s(batch, ORDINAL));
        parts.each(part, |at| rows.push((places[at.1], ordinals[at.1], at)));
    }
    rows.sort_by_key(|&(place, ordinal, _)| (place, ordinal));
    let after = rows.partition_point(|&(place, ..)| Place(place) != Place::AFTER_ROWS);
    let expiry = |&(_, ordinal, (part, row)): &(u64, u32, At)| {
        let batch = &parts.batches[part];
        (micros(batch, EVENT_TIME)[row], text(batch, ORDER_ID).value(row), ordinal)
    };
    rows[after..].sort_by(|a, b| expiry(a).cmp(&expiry(b)));
    let rows: Vec<At> = rows.into_iter().map(|(_, _, at)| at).collect();
    (!rows.is_empty()).then(|| parts.interleave(&rows))
}

/// How many rows there are of each decision; the columns are those of `order_decisions`.
pub(crate) fn count_decisions(rows: &RecordBatch) -> crate::job_plan::DecisionCounts {
    let mut counts = crate::job_plan::DecisionCounts::default();
    let column = |name: &str| rows.column_by_name(name).map(|c| c.as_string::<i32>());
    if let (Some(decisions), Some(reasons)) = (column("decision"), column("reason")) {
        for row in 0..rows.num_rows() {
            let count = match (decisions.value(row), reasons.value(row)) {
                ("accepted", _) => &mut counts.accepted,
                ("review", _) => &mut counts.review,
                (_, "invalid") => &mut counts.invalid,
                (_, "duplicate") => &mut counts.duplicate,
                (_, "conflict") => &mut counts.conflict,
                (_, "fraud") => &mut counts.fraud,
                _ => &mut counts.out_of_stock,
            };
            *count += 1;
        }
    }
    counts
}
