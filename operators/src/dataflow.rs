//! Epoch-synchronous operators on timely's edges.
//!
//! # Design
//!
//! The timestamp is `epoch << ROUND_BITS | round`. Everything outside a loop lives in round 0, and
//! a feedback edge adds one: a plain `u64` in one scope gives the loop its rounds *and* the order
//! we want (every round of epoch e before epoch e+1), with one-element frontiers throughout.
//!
//! Each worker has a *clock*: a stream with exactly one row for each epoch, its [`EpochInfo`]. An operator
//! built by [`EpochOperator`] takes the clock as an input of its own and runs once for each epoch, in order, when all its inputs
//! are past it; also when there are no rows, which is what timers need. The clock's row carries the capability to answer:
//! the frontier downstream cannot pass an epoch before the operator has run it, however its rows are routed.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use timely::WorkerConfig;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;
use timely::worker::ProgressMode;

use crate::batch::{Batch, register_schema};
use crate::columns::{bools, i64s, u64s};
use crate::epoch::{Epoch, EpochInfo};
use crate::rows::PLACE;

/// Each round decides at least one order, so the rounds of an epoch cannot outnumber its orders (plus one for expiry).
pub const ROUND_BITS: u32 = 20;

/// More rows than this an epoch must not have, so that its rounds fit [`ROUND_BITS`].
pub const EPOCH_ROWS_MAX: u64 = (1 << ROUND_BITS) - 2;

/// A stream of batches in the job's dataflow.
pub type Batches<'scope> = Stream<'scope, u64, Batch>;

/// Round 0 of `epoch`.
pub fn time_of(epoch: Epoch) -> u64 {
    epoch.0 << ROUND_BITS
}

/// The epoch that a time belongs to.
pub fn epoch_of(time: u64) -> Epoch {
    Epoch(time >> ROUND_BITS)
}

/// Which round of a loop within its epoch a time belongs to, from 0.
pub fn round_of(time: u64) -> u32 {
    (time & ((1 << ROUND_BITS) - 1)) as u32
}

/// Whether nothing can come any more at `time` or before.
pub fn is_past(frontier: &MutableAntichain<u64>, time: u64) -> bool {
    !frontier.less_equal(&time)
}

/// How timely's workers go about it: they tell each other of their progress at once.
///
/// By default they hold back what cannot move the frontier yet, and sort all that they hold back in each step. Of a worker that holds nothing up,
/// as epochs are cut by another, that is more and more the longer the job runs: it took half of the CPU time of a job with few rows, and a fifth of one
/// with many.
pub fn worker_config() -> WorkerConfig {
    WorkerConfig::default().progress_mode(ProgressMode::Eager)
}

/// Batches of one stream, whose rows are to be put together.
pub struct Parts {
    /// They; none without rows.
    pub batches: Vec<RecordBatch>,
    picked: Vec<Option<Vec<u32>>>,
}

/// Where a row is: the number of its batch, and its own in there.
pub type At = (usize, usize);

impl Parts {
    /// Those of them that have rows.
    pub fn new<B: Into<Batch>>(parts: Vec<B>) -> Parts {
        let parts = parts.into_iter().map(Into::into).filter(|part| part.num_rows() > 0);
        let (batches, picked) = parts.filter_map(Batch::into_parts).unzip();
        Parts { batches, picked }
    }

    /// Shows where each row of a part is.
    pub fn each(&self, part: usize, mut row: impl FnMut(At)) {
        match &self.picked[part] {
            None => (0..self.batches[part].num_rows()).for_each(|number| row((part, number))),
            Some(picked) => picked.iter().for_each(|&number| row((part, number as usize))),
        }
    }

    /// All rows, one part after the other, in this order of the parts.
    fn concat(mut self, order: &[usize]) -> Option<RecordBatch> {
        match order {
            [] => None,
            &[one] => {
                let rows = self.batches.swap_remove(one);
                match self.picked.swap_remove(one) {
                    None => Some(rows),
                    Some(picked) => Batch::picked(rows, picked).into_rows(),
                }
            }
            _ if self.picked.iter().all(Option::is_none) => {
                let batches = order.iter().map(|&part| &self.batches[part]);
                Some(concat_batches(self.batches[0].schema_ref(), batches).expect("the batches of one stream have one schema"))
            }
            _ => {
                let mut rows = Vec::new();
                order.iter().for_each(|&part| self.each(part, |at| rows.push(at)));
                Some(self.interleave(&rows))
            }
        }
    }

    /// One batch with these rows.
    pub fn interleave(&self, rows: &[At]) -> RecordBatch {
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        interleave_record_batch(&batches, rows).expect("the batches of one stream have one schema, and an epoch's bytes are bounded")
    }
}

/// One batch with all rows of `batches`, one after the other.
pub fn concat<B: Into<Batch>>(batches: Vec<B>) -> Option<RecordBatch> {
    let parts = Parts::new(batches);
    let order: Vec<usize> = (0..parts.batches.len()).collect();
    parts.concat(&order)
}

/// One batch with all rows of `batches`, by ascending place. `None` if there are none.
///
/// What arrives in order, as most does, is not copied, or only concatenated.
pub fn in_order<B: Into<Batch>>(batches: Vec<B>) -> Option<RecordBatch> {
    let parts = Parts::new(batches);
    let places: Vec<&[u64]> = parts.batches.iter().map(|batch| u64s(batch, PLACE)).collect();
    let is_sorted = |part: usize| match &parts.picked[part] {
        None => places[part].is_sorted(),
        Some(picked) => picked.is_sorted_by_key(|&row| places[part][row as usize]),
    };
    let ends = |part: usize| match &parts.picked[part] {
        None => (places[part].first(), places[part].last()),
        Some(picked) => (picked.first().map(|&row| &places[part][row as usize]), picked.last().map(|&row| &places[part][row as usize])),
    };
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&part| ends(part).0);
    if order.windows(2).all(|pair| ends(pair[0]).1 <= ends(pair[1]).0) && order.iter().all(|&part| is_sorted(part)) {
        return parts.concat(&order);
    }
    let mut rows: Vec<(u64, At)> = Vec::with_capacity(places.iter().map(|places| places.len()).sum());
    for &part in &order {
        parts.each(part, |at| rows.push((places[part][at.1], at)));
    }
    // Stable, and made of ascending runs, which the standard sort merges.
    rows.sort_by_key(|row| row.0);
    let rows: Vec<At> = rows.into_iter().map(|(_, at)| at).collect();
    Some(parts.interleave(&rows))
}

// --- the clock -----------------------------------------------------------------------------

/// The clock's rows: epoch (uint64), sealed_at, watermark_before, watermark (int64, microseconds), checkpoint (boolean).
pub fn clock_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let int = |name| Field::new(name, DataType::Int64, false);
        let epoch = Field::new("epoch", DataType::UInt64, false);
        let checkpoint = Field::new("checkpoint", DataType::Boolean, false);
        Arc::new(Schema::new(vec![epoch, int("sealed_at"), int("watermark_before"), int("watermark"), checkpoint]))
    });
    SCHEMA.clone()
}

/// The clock's row for an epoch.
pub fn clock_row(info: &EpochInfo) -> RecordBatch {
    let int = |v| Arc::new(Int64Array::from(vec![v])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(vec![info.epoch.0])),
        int(info.sealed_at),
        int(info.watermark_before),
        int(info.watermark),
        Arc::new(BooleanArray::from(vec![info.checkpoint])),
    ];
    RecordBatch::try_new(clock_schema(), columns).expect("the columns fit the clock's schema")
}

/// What a clock's row says.
pub fn read_clock_row(row: &RecordBatch) -> EpochInfo {
    let int = |column| i64s(row, column)[0];
    let (epoch, checkpoint) = (Epoch(u64s(row, 0)[0]), bools(row, 4).value(0));
    EpochInfo { epoch, sealed_at: int(1), watermark_before: int(2), watermark: int(3), checkpoint }
}

// --- inputs that wait ----------------------------------------------------------------------

/// Batches by time.
pub type Stash = BTreeMap<u64, Vec<Batch>>;

/// Moves what has arrived at one input into the stash given.
pub type Drain = Box<dyn FnMut(&mut Stash)>;

/// The clock's rows that wait for their epoch to be complete, with the capabilities that came with them.
pub type Clock = BTreeMap<u64, (EpochInfo, Vec<Capability<u64>>)>;

/// Adds an input whose batches are stashed by time.
pub fn stashing_input<'scope, P>(builder: &mut OperatorBuilder<'scope, u64>, stream: Batches<'scope>, pact: P) -> Drain
where
    P: ParallelizationContract<u64, Batch>,
    P::Puller: 'static,
{
    let mut input = builder.new_input(stream, pact);
    Box::new(move |stash| {
        input.for_each(|cap, data| {
            let batch = std::mem::take(data);
            if batch.num_rows() > 0 {
                stash.entry(*cap.time()).or_default().push(batch);
            }
        })
    })
}

/// Logic of an [`EpochOperator`]: an epoch, its rows by input (each in canonical order), what to send by output.
pub type Logic = Box<dyn FnMut(&EpochInfo, &mut [Option<RecordBatch>], &mut [Vec<RecordBatch>])>;

/// Builds an operator that runs once for each epoch, when all of it is there.
pub struct EpochOperator<'scope> {
    builder: OperatorBuilder<'scope, u64>,
    clock: Batches<'scope>,
    inputs: Vec<Drain>,
    unordered: Vec<bool>,
    outputs: Vec<OutputBuilder<u64, NoopBuilder<Batch>>>,
}

impl<'scope> EpochOperator<'scope> {
    /// `clock` has one row for each epoch on every worker.
    pub fn new(name: &str, scope: Scope<'scope, u64>, clock: Batches<'scope>) -> Self {
        let builder = OperatorBuilder::new(name.to_owned(), scope);
        EpochOperator { builder, clock, inputs: Vec::new(), unordered: Vec::new(), outputs: Vec::new() }
    }

    /// An input whose rows start with a place, by which they are ordered.
    pub fn input<P>(mut self, stream: Batches<'scope>, pact: P) -> Self
    where
        P: ParallelizationContract<u64, Batch>,
        P::Puller: 'static,
    {
        self.inputs.push(stashing_input(&mut self.builder, stream, pact));
        self.unordered.push(false);
        self
    }

    /// An input whose rows may come in any order; they are only put into one batch.
    pub fn unordered_input<P>(mut self, stream: Batches<'scope>, pact: P) -> Self
    where
        P: ParallelizationContract<u64, Batch>,
        P::Puller: 'static,
    {
        self = self.input(stream, pact);
        if let Some(last) = self.unordered.last_mut() {
            *last = true;
        }
        self
    }

    /// The operator with `N` outputs.
    pub fn build<const N: usize>(mut self, schemas: [&SchemaRef; N], mut logic: Logic) -> [Batches<'scope>; N] {
        let mut clock_input = self.builder.new_input(self.clock, timely::dataflow::channels::pact::Pipeline);
        let streams = schemas.map(|schema| {
            register_schema(schema);
            let (output, stream) = self.builder.new_output::<Batch>();
            self.outputs.push(OutputBuilder::from(output));
            stream
        });
        let (mut inputs, mut outputs, unordered) = (self.inputs, self.outputs, self.unordered);
        self.builder.build(move |capabilities| {
            drop(capabilities);
            let mut clock = Clock::new();
            let mut stashes: Vec<Stash> = inputs.iter().map(|_| Stash::new()).collect();
            let mut rows: Vec<Option<RecordBatch>> = vec![None; inputs.len()];
            let mut sent: Vec<Vec<RecordBatch>> = (0..N).map(|_| Vec::new()).collect();
            move |frontiers| {
                read_clock(&mut clock_input, &mut clock, N);
                for (input, stash) in inputs.iter_mut().zip(&mut stashes) {
                    input(stash);
                }
                while let Some(first) = clock.first_entry().filter(|e| frontiers.iter().all(|f| is_past(f, *e.key()))) {
                    let (time, (info, capabilities)) = first.remove_entry();
                    for ((rows, stash), &unordered) in rows.iter_mut().zip(&mut stashes).zip(&unordered) {
                        let batches = stash.remove(&time).unwrap_or_default();
                        *rows = if unordered { concat(batches) } else { in_order(batches) };
                    }
                    logic(&info, &mut rows, &mut sent);
                    for ((output, sent), capability) in outputs.iter_mut().zip(&mut sent).zip(&capabilities) {
                        let mut output = output.activate();
                        let mut session = output.session_with_builder(capability);
                        for rows in sent.drain(..) {
                            session.give_container(&mut Batch::from(rows));
                        }
                    }
                }
            }
        });
        streams
    }
}

/// Takes the clock's rows that have arrived, with capabilities for the first `outputs` outputs.
pub fn read_clock<P>(input: &mut timely::dataflow::operators::generic::InputHandleCore<u64, Batch, P>, clock: &mut Clock, outputs: usize)
where
    P: timely::communication::Pull<timely::dataflow::channels::Message<u64, Batch>>,
{
    input.for_each(|cap, data| {
        if let Some(row) = std::mem::take(data).into_rows() {
            let capabilities = (0..outputs).map(|port| cap.retain(port)).collect();
            let twice = clock.insert(*cap.time(), (read_clock_row(&row), capabilities));
            assert!(twice.is_none(), "a clock has one row an epoch");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(places: &[u64]) -> RecordBatch {
        RecordBatch::try_from_iter([("place", Arc::new(UInt64Array::from(places.to_vec())) as ArrayRef)]).unwrap()
    }

    #[track_caller]
    fn check(batches: &[&[u64]], expected: &[u64]) {
        let ordered = in_order(batches.iter().map(|b| rows(b)).collect());
        assert_eq!(ordered.map(|b| u64s(&b, PLACE).to_vec()).unwrap_or_default(), expected);
    }

    #[test]
    fn canonical_order() {
        check(&[], &[]);
        check(&[&[]], &[]);
        check(&[&[1, 2], &[], &[3]], &[1, 2, 3]);
        check(&[&[3, 4], &[1, 2]], &[1, 2, 3, 4]);
        check(&[&[1, 5, 9], &[2, 6], &[0, 7]], &[0, 1, 2, 5, 6, 7, 9]);
    }

    #[test]
    fn the_clock_keeps_what_it_is_told() {
        let info = EpochInfo { epoch: Epoch(7), sealed_at: 1, watermark_before: i64::MIN, watermark: -3, checkpoint: true };
        assert_eq!(read_clock_row(&clock_row(&info)), info);
        assert_eq!(epoch_of(time_of(Epoch(7)) + 5), Epoch(7));
    }
}
