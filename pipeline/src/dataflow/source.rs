//! Seals in, rows out: the dataflow's first operator, and the clock beside it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use orderflow_operators::batch::{Batch, register_schema};
use orderflow_operators::columns::{bools, i64s, u32s, u64s};
use orderflow_operators::dataflow::{Batches, clock_row, clock_schema, epoch_of, is_past};
use orderflow_operators::decoder::{Decoded, Decoder, Topic};
use orderflow_operators::epoch::{EpochInfo, Micros, Place};
use orderflow_operators::exchange::by_worker;
use orderflow_operators::rows::{lifecycle, malformed, movements, orders};
use orderflow_operators::watermark::{SplitProgress, Watermark, WatermarkState};
use timely::container::NoopBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{InputHandle, Scope};

use super::Shared;
use super::readers::Readers;
use crate::epoch_log::EpochRecord;
use crate::metrics::Metrics;
use crate::source::Message;

/// Where worker 0 puts seals in.
pub type SealInput = InputHandle<u64, NoopBuilder<Batch>>;

/// In the place of a split's number: the row says only that there is an epoch, and when it was sealed.
const NO_SPLIT: u32 = u32::MAX;

fn number(name: &str) -> Field {
    Field::new(name, DataType::UInt32, false)
}
fn int(name: &str) -> Field {
    Field::new(name, DataType::Int64, false)
}

/// worker (uint32), sealed_at (int64, microseconds), split (uint32), start, end (int64), checkpoint (boolean)
fn seal_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let checkpoint = Field::new("checkpoint", DataType::Boolean, false);
        Arc::new(Schema::new(vec![number("worker"), int("sealed_at"), number("split"), int("start"), int("end"), checkpoint]))
    });
    SCHEMA.clone()
}

/// worker (uint32), sealed_at (int64, microseconds), split (uint32), rows (uint64), event_time_max (int64 or null, microseconds), checkpoint (boolean)
fn progress_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let event_time_max = Field::new("event_time_max", DataType::Int64, true);
        let rows = Field::new("rows", DataType::UInt64, false);
        let checkpoint = Field::new("checkpoint", DataType::Boolean, false);
        Arc::new(Schema::new(vec![number("worker"), int("sealed_at"), number("split"), rows, event_time_max, checkpoint]))
    });
    SCHEMA.clone()
}

/// The worker that reads `split`, in a life of a job that began with so many. Neighbours go together, so that most of what the workers send to others is
/// in canonical order, worker by worker; those that came since take turns.
pub fn owner_of_split(split: u32, splits: usize, peers: usize) -> usize {
    let split = split as usize;
    if split < splits { split * peers / splits } else { split % peers }
}

/// What the source of each of `peers` workers is told of an epoch: that there is one, its ranges of that worker's splits, of `splits` at first, and whether
/// a checkpoint is of its end.
pub fn seal_batch(record: &EpochRecord, splits: usize, peers: usize, checkpoint: bool) -> RecordBatch {
    let ranges = record.ranges.iter().map(|(&split, &(start, end))| (owner_of_split(split, splits, peers), split, start, end));
    let mut rows: Vec<(usize, u32, i64, i64)> = (0..peers).map(|worker| (worker, NO_SPLIT, 0, 0)).chain(ranges).collect();
    rows.sort_by_key(|&(worker, ..)| worker);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.0 as u32))),
        Arc::new(Int64Array::from(vec![record.sealed_at_micros(); rows.len()])),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))),
        Arc::new(BooleanArray::from(vec![checkpoint; rows.len()])),
    ];
    RecordBatch::try_new(seal_schema(), columns).expect("the columns fit the schema of seals")
}

/// What comes out of the source.
pub(super) struct Sources<'scope> {
    pub orders: Batches<'scope>,
    pub lifecycle: Batches<'scope>,
    pub movements: Batches<'scope>,
    pub malformed: Batches<'scope>,
    pub progress: Batches<'scope>,
}

/// A seal that waits for its rows.
struct Seal {
    time: u64,
    capabilities: Vec<Capability<u64>>,
    sealed_at: Micros,
    ranges: Vec<(u32, i64, i64)>,
    checkpoint: bool,
}

const OUTPUTS: usize = 5;

/// Answers each seal with the rows of its ranges, decoded.
pub(super) fn source<'scope>(
    scope: Scope<'scope, u64>,
    seals: Batches<'scope>,
    readers: Rc<RefCell<Readers>>,
    shared: &Shared,
) -> Sources<'scope> {
    let (worker, peers) = (scope.index(), scope.peers());
    let mut builder = OperatorBuilder::new("source".to_owned(), scope);
    register_schema(&seal_schema());
    let mut seals = builder.new_input(seals, by_worker(0));
    readers.borrow_mut().source_operator = builder.operator_info().address.to_vec();
    let mut outputs = Vec::new();
    let streams: [Batches<'scope>; OUTPUTS] =
        [orders::decoded(), lifecycle::schema(), movements::schema(), malformed::schema(), progress_schema()].map(|schema| {
            register_schema(&schema);
            let (output, stream) = builder.new_output::<Batch>();
            outputs.push(OutputBuilder::<u64, NoopBuilder<Batch>>::from(output));
            stream
        });
    let [inventory_name, orders_name] = shared.settings.topics.clone();
    let mut decoder = Decoder::new(&orders_name, &inventory_name);
    let (metrics, failure, hub) = (shared.metrics.clone(), shared.failure.clone(), shared.hub.clone());
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut waiting: VecDeque<Seal> = VecDeque::new();
        move |_frontiers| {
            seals.for_each(|cap, data| {
                if let Some(rows) = std::mem::take(data).into_rows() {
                    let capabilities = (0..OUTPUTS).map(|port| cap.retain(port)).collect();
                    waiting.push_back(read_seal(*cap.time(), capabilities, &rows));
                }
            });
            while let Some(seal) = waiting.front() {
                let mut readers = readers.borrow_mut();
                let epoch = epoch_of(seal.time);
                if let Some(arrival) = readers.oldest_arrival(seal.ranges.iter().map(|r| r.0)) {
                    hub.arrived(epoch, arrival);
                }
                let decoded = match decode(&mut readers, &mut decoder, seal) {
                    Ok(Some(decoded)) => decoded,
                    Ok(None) => break,
                    Err(error) => return failure.report(error),
                };
                count(&metrics, &decoded, [&inventory_name, &orders_name]);
                let progress = progress_rows(worker, peers, seal.sealed_at, seal.checkpoint, &decoded.progress);
                let batches = [decoded.orders, decoded.lifecycle, decoded.movements, decoded.malformed, Some(progress)];
                for ((output, capability), rows) in outputs.iter_mut().zip(&seal.capabilities).zip(batches) {
                    if let Some(rows) = rows {
                        output.activate().session_with_builder(capability).give_container(&mut Batch::from(rows));
                    }
                }
                waiting.pop_front();
            }
        }
    });
    let [orders, lifecycle, movements, malformed, progress] = streams;
    Sources { orders, lifecycle, movements, malformed, progress }
}

fn read_seal(time: u64, capabilities: Vec<Capability<u64>>, rows: &RecordBatch) -> Seal {
    let (splits, starts, ends) = (u32s(rows, 2), i64s(rows, 3), i64s(rows, 4));
    let ranges = (0..rows.num_rows()).filter(|&r| splits[r] != NO_SPLIT).map(|r| (splits[r], starts[r], ends[r])).collect();
    Seal { time, capabilities, sealed_at: i64s(rows, 1)[0], ranges, checkpoint: bools(rows, 5).value(0) }
}

/// The rows of a seal's ranges; `None` while they are not all read.
fn decode(readers: &mut Readers, decoder: &mut Decoder, seal: &Seal) -> Result<Option<Decoded>, crate::source::SourceError> {
    if !readers.have(&seal.ranges)? {
        return Ok(None);
    }
    for &(split, start, end) in &seal.ranges {
        let (topic, messages) = readers.take(split, start, end)?.expect("the reader has the range");
        for (offset, message) in messages.iter() {
            let place = Place::new(split, offset);
            match message {
                Message::Whole(bytes) => decoder.push(topic, place, bytes),
                Message::Oversized { start, bytes } => decoder.push_oversized(topic, place, start, bytes),
            }
        }
    }
    Ok(Some(decoder.finish()))
}

fn count(metrics: &Metrics, decoded: &Decoded, [inventory, orders]: [&str; 2]) {
    let rows = |batch: &Option<RecordBatch>| batch.as_ref().map_or(0, |b| b.num_rows() as u64);
    metrics.rows("decode", rows(&decoded.orders) + rows(&decoded.lifecycle) + rows(&decoded.movements) + rows(&decoded.malformed));
    let dead = |topic: Topic| {
        let name = match topic {
            Topic::Inventory => inventory,
            Topic::Orders => orders,
        };
        decoded
            .malformed
            .as_ref()
            .map_or(0, |b| b.column(malformed::TOPIC).as_string::<i32>().iter().filter(|t| *t == Some(name)).count() as u64)
    };
    if decoded.malformed.is_some() || decoded.unknown_fields > 0 {
        metrics.decoded(orders, dead(Topic::Orders), decoded.unknown_fields);
        metrics.decoded(inventory, dead(Topic::Inventory), 0);
    }
}

/// What every worker's clock is told of this worker's splits; this worker's own also that there is an epoch.
fn progress_rows(worker: usize, peers: usize, sealed_at: Micros, checkpoint: bool, progress: &[SplitProgress]) -> RecordBatch {
    let all = (0..peers).flat_map(|to| progress.iter().map(move |p| (to, p.split, p.rows, p.event_time_max)));
    let rows: Vec<_> = [(worker, NO_SPLIT, 0, None)].into_iter().chain(all).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.0 as u32))),
        Arc::new(Int64Array::from(vec![sealed_at; rows.len()])),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.3))),
        Arc::new(BooleanArray::from(vec![checkpoint; rows.len()])),
    ];
    RecordBatch::try_new(progress_schema(), columns).expect("the columns fit the schema of progress")
}

/// Turns every worker's progress into one row an epoch on each worker. All compute the same watermark.
pub(super) fn clock<'scope>(
    scope: Scope<'scope, u64>,
    progress: Batches<'scope>,
    mut watermark: Watermark,
    mut recorder: Option<impl FnMut(&EpochInfo, &WatermarkState) + 'static>,
    metrics: Metrics,
) -> Batches<'scope> {
    let mut builder = OperatorBuilder::new("clock".to_owned(), scope);
    let mut input = builder.new_input(progress, by_worker(0));
    register_schema(&clock_schema());
    let (output, stream) = builder.new_output::<Batch>();
    let mut output = OutputBuilder::<u64, NoopBuilder<Batch>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut stash: std::collections::BTreeMap<u64, (Capability<u64>, Vec<RecordBatch>)> = Default::default();
        move |frontiers| {
            input.for_each(|cap, data| {
                if let Some(rows) = std::mem::take(data).into_rows() {
                    stash.entry(*cap.time()).or_insert_with(|| (cap.retain(0), Vec::new())).1.push(rows);
                }
            });
            while let Some(first) = stash.first_entry().filter(|e| is_past(&frontiers[0], *e.key())) {
                let (time, (capability, batches)) = first.remove_entry();
                let (sealed_at, checkpoint) = (i64s(&batches[0], 1)[0], bools(&batches[0], 5).value(0));
                let info = watermark.advance(epoch_of(time), sealed_at, checkpoint, batches.iter().flat_map(read_progress));
                metrics.watermark(info.watermark);
                if let Some(recorder) = &mut recorder {
                    recorder(&info, watermark.state());
                }
                output.activate().session_with_builder(&capability).give_container(&mut Batch::from(clock_row(&info)));
            }
        }
    });
    stream
}

fn read_progress(rows: &RecordBatch) -> Vec<SplitProgress> {
    let (splits, counts) = (u32s(rows, 2), u64s(rows, 3));
    let times = rows.column(4).as_primitive::<Int64Type>();
    let progress =
        |r: usize| SplitProgress { split: splits[r], rows: counts[r], event_time_max: times.is_valid(r).then(|| times.value(r)) };
    (0..rows.num_rows()).filter(|&r| splits[r] != NO_SPLIT).map(progress).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orderflow_operators::epoch::Epoch;

    #[test]
    fn a_seal_reaches_every_worker_with_its_ranges() {
        let record = EpochRecord {
            epoch: Epoch(3),
            sealed_at: 7,
            ranges: [(0, (1, 2)), (1, (3, 4)), (2, (5, 6))].into(),
            splits: Default::default(),
            stages: Default::default(),
        };
        let rows = seal_batch(&record, 3, 2, false);
        assert_eq!(u32s(&rows, 0), [0, 0, 0, 1, 1]);
        assert_eq!(u32s(&rows, 2), [NO_SPLIT, 0, 1, NO_SPLIT, 2]);
        assert_eq!(i64s(&rows, 1)[0], 7000);
    }

    #[test]
    fn each_split_has_one_owner() {
        for (splits, peers) in [(1, 1), (1, 7), (5, 2), (7, 7), (128, 3), (3, 128)] {
            let owners: Vec<usize> = (0..splits).map(|split| owner_of_split(split, splits as usize, peers)).collect();
            assert!(owners.is_sorted() && owners.iter().all(|&owner| owner < peers), "{splits} splits, {peers} workers: {owners:?}");
            let most = (0..peers).map(|peer| owners.iter().filter(|&&owner| owner == peer).count()).max();
            assert_eq!(most, Some((splits as usize).div_ceil(peers)), "{splits} splits, {peers} workers");
        }
    }

    #[test]
    fn progress_survives_its_way() {
        let progress =
            [SplitProgress { split: 4, rows: 2, event_time_max: Some(-5) }, SplitProgress { split: 6, rows: 1, event_time_max: None }];
        let rows = progress_rows(1, 1, 9, false, &progress);
        assert_eq!(read_progress(&rows), progress);
    }
}
