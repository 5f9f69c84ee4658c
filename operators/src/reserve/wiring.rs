//! Desk and stock on the dataflow's edges, and the loop between them.

use arrow::array::RecordBatch;
use timely::container::NoopBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::{ParallelizationContract, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, ConnectLoop, Feedback};

use std::collections::BTreeMap;

use super::messages::{decision, decision_schema, request, request_schema, verdict, verdict_schema};
use super::{Desk, Finished, Settled, Stock};
use crate::batch::{Batch, register_schema};
use crate::dataflow::{Batches, Clock, Stash, concat, epoch_of, in_order, is_past, read_clock, round_of, stashing_input, time_of};
use crate::epoch::{Epoch, EpochInfo};
use crate::exchange::{by_text, by_worker};
use crate::rows::{lifecycle, movements};
use crate::streams::{self, Stream};

/// The streams that come out of the reservation, each as [`streams::internal_schema`] has it.
pub struct Reserved<'scope> {
    /// `order_decisions`, on the order's worker.
    pub order_decisions: Batches<'scope>,
    /// `order_lines`, on the order's worker.
    pub order_lines: Batches<'scope>,
    /// `reservation_events` of SKUs, on the SKU's worker.
    pub reservation_events: Batches<'scope>,
    /// `reservation_events` of kind `ignored`, on the order's worker.
    pub ignored: Batches<'scope>,
    /// `stock_movements`, on the SKU's worker.
    pub stock_movements: Batches<'scope>,
}

/// Told after each epoch: of the desk, and of the rounds that it took until every order was decided.
pub type DeskObserver = Box<dyn FnMut(&EpochInfo, &mut Desk, u32)>;
/// Told after each epoch: of the stock.
pub type StockObserver = Box<dyn FnMut(&EpochInfo, &mut Stock)>;

/// A worker's two sides of the reservation, and who is told after each epoch how it went.
pub struct Sides {
    /// Its orders.
    pub desk: Desk,
    /// Its SKUs.
    pub stock: Stock,
    /// Told of the desk.
    pub on_desk: DeskObserver,
    /// Told of the stock.
    pub on_stock: StockObserver,
}

/// Decides the `scored` orders ([`super::scored_schema`], already on the worker of their order id) against the stock that `movements` (first-seen ones) make.
pub fn reserve<'scope>(
    scope: Scope<'scope, u64>,
    sides: Sides,
    clock: Batches<'scope>,
    scored: Batches<'scope>,
    lifecycle: Batches<'scope>,
    movements: Batches<'scope>,
) -> Reserved<'scope> {
    let Sides { desk, stock, on_desk, on_stock } = sides;
    let (handle, verdicts) = scope.feedback::<Batch>(1);
    let ([requests, decisions], [order_decisions, order_lines, ignored]) =
        desk_operator(scope, desk, clock.clone(), scored, lifecycle, verdicts, on_desk);
    let (verdicts, [reservation_events, stock_movements]) = stock_operator(scope, stock, clock, movements, requests, decisions, on_stock);
    verdicts.connect_loop(handle);
    Reserved { order_decisions, order_lines, reservation_events, ignored, stock_movements }
}

type Output = OutputBuilder<u64, NoopBuilder<Batch>>;

fn output<'scope>(builder: &mut OperatorBuilder<'scope, u64>, schema: &arrow::datatypes::SchemaRef) -> (Output, Batches<'scope>) {
    register_schema(schema);
    let (output, stream) = builder.new_output::<Batch>();
    (OutputBuilder::from(output), stream)
}

fn send(output: &mut Output, capability: &Capability<u64>, rows: Option<RecordBatch>) {
    if let Some(rows) = rows {
        output.activate().session_with_builder(capability).give_container(&mut Batch::from(rows));
    }
}

/// Batches by time, with the capability to answer them at that time.
type Answerable = BTreeMap<u64, (Capability<u64>, Vec<RecordBatch>)>;

/// Adds an input whose batches are answered on output `port` at the time that they came.
fn answerable_input<'scope, P>(
    builder: &mut OperatorBuilder<'scope, u64>,
    stream: Batches<'scope>,
    pact: P,
    port: usize,
) -> impl FnMut(&mut Answerable) + use<P>
where
    P: ParallelizationContract<u64, Batch>,
    P::Puller: 'static,
{
    let mut input = builder.new_input(stream, pact);
    move |waiting| {
        input.for_each(|cap, data| {
            if let Some(rows) = std::mem::take(data).into_rows() {
                waiting.entry(*cap.time()).or_insert_with(|| (cap.retain(port), Vec::new())).1.push(rows);
            }
        })
    }
}

/// Removes what waits in rounds of `epoch`.
fn take_epoch(waiting: &mut Answerable, epoch: Epoch) -> Vec<(Capability<u64>, Vec<RecordBatch>)> {
    let mut taken = Vec::new();
    while let Some(first) = waiting.first_entry().filter(|e| epoch_of(*e.key()) <= epoch) {
        taken.push(first.remove());
    }
    taken
}

fn desk_operator<'scope>(
    scope: Scope<'scope, u64>,
    mut desk: Desk,
    clock: Batches<'scope>,
    scored: Batches<'scope>,
    lifecycle: Batches<'scope>,
    verdicts: Batches<'scope>,
    mut observer: DeskObserver,
) -> ([Batches<'scope>; 2], [Batches<'scope>; 3]) {
    const REQUESTS: usize = 0;
    const DECISIONS: usize = 1;
    let decisions_schema = desk.decisions_schema();
    let mut builder = OperatorBuilder::new("desk".to_owned(), scope);
    let mut scored = stashing_input(&mut builder, scored, Pipeline);
    let mut lifecycle = stashing_input(&mut builder, lifecycle, by_text(lifecycle::ORDER_ID));
    let mut clock_input = builder.new_input(clock, Pipeline);
    let (mut requests_out, requests) = output(&mut builder, &request_schema());
    let (mut messages_out, messages) = output(&mut builder, &decision_schema());
    let (mut decisions_out, order_decisions) = output(&mut builder, &decisions_schema);
    let (mut lines_out, order_lines) = output(&mut builder, &streams::internal_schema(Stream::OrderLines, None));
    let (mut ignored_out, ignored) = output(&mut builder, &streams::internal_reservation_events());
    let mut verdicts = answerable_input(&mut builder, verdicts, by_worker(verdict::OWNER), DECISIONS);
    /// Inputs that must be past an epoch before it begins: all but the verdicts.
    const FRESH: std::ops::Range<usize> = 0..3;

    builder.build(move |capabilities| {
        drop(capabilities);
        let (mut orders, mut messages, mut clock, mut heard) = (Stash::new(), Stash::new(), Clock::new(), Answerable::new());
        let mut current: Option<(EpochInfo, Vec<Capability<u64>>)> = None;
        // The last round of the epoch in which there were verdicts.
        let mut round = 0;
        move |frontiers| {
            scored(&mut orders);
            lifecycle(&mut messages);
            read_clock(&mut clock_input, &mut clock, 5);
            verdicts(&mut heard);
            loop {
                if current.is_none() {
                    let Some(first) = clock.first_entry().filter(|e| frontiers[FRESH].iter().all(|f| is_past(f, *e.key()))) else { break };
                    let (time, (info, mut capabilities)) = first.remove_entry();
                    let orders = in_order(orders.remove(&time).unwrap_or_default());
                    let messages = in_order(messages.remove(&time).unwrap_or_default());
                    let requests = desk.begin(orders, messages);
                    send(&mut requests_out, &capabilities[REQUESTS], requests);
                    // The stock begins when no more round-0 requests can come; expiries go out in a later round.
                    capabilities[REQUESTS].downgrade(&(time + 1));
                    // Decisions answer verdicts, at their times.
                    capabilities.remove(DECISIONS);
                    current = Some((info, capabilities));
                }
                let Some((info, _)) = &current else { break };
                for (capability, batches) in take_epoch(&mut heard, info.epoch) {
                    round = round_of(*capability.time());
                    send(&mut messages_out, &capability, desk.hear(&batches));
                }
                if !desk.is_complete() {
                    break;
                }
                if let Some((info, capabilities)) = current.take() {
                    let Finished { expiries, decisions, lines, ignored } = desk.finish(&info);
                    send(&mut requests_out, &capabilities[0], expiries);
                    send(&mut decisions_out, &capabilities[1], decisions);
                    send(&mut lines_out, &capabilities[2], lines);
                    send(&mut ignored_out, &capabilities[3], ignored);
                    observer(&info, &mut desk, std::mem::take(&mut round) + 1);
                }
            }
        }
    });
    ([requests, messages], [order_decisions, order_lines, ignored])
}

fn stock_operator<'scope>(
    scope: Scope<'scope, u64>,
    mut stock: Stock,
    clock: Batches<'scope>,
    movements: Batches<'scope>,
    requests: Batches<'scope>,
    decisions: Batches<'scope>,
    mut observer: StockObserver,
) -> (Batches<'scope>, [Batches<'scope>; 2]) {
    const VERDICTS: usize = 0;
    let mut builder = OperatorBuilder::new("stock".to_owned(), scope);
    let mut movements = stashing_input(&mut builder, movements, by_text(movements::SKU));
    let mut requests = stashing_input(&mut builder, requests, by_text(request::SKU));
    let mut clock_input = builder.new_input(clock, Pipeline);
    let (mut verdicts_out, verdicts) = output(&mut builder, &verdict_schema());
    let (mut events_out, reservation_events) = output(&mut builder, &streams::internal_reservation_events());
    let (mut movements_out, stock_movements) = output(&mut builder, &streams::internal_schema(Stream::StockMovements, None));
    let mut decisions = answerable_input(&mut builder, decisions, by_worker(decision::WORKER), VERDICTS);
    /// Inputs that must be past an epoch's round 0 before it begins: all but the decisions.
    const FRESH: std::ops::Range<usize> = 0..3;

    builder.build(move |capabilities| {
        drop(capabilities);
        let (mut received, mut asked, mut clock, mut told) = (Stash::new(), Stash::new(), Clock::new(), Answerable::new());
        let mut current: Option<(EpochInfo, Vec<Capability<u64>>)> = None;
        move |frontiers| {
            movements(&mut received);
            requests(&mut asked);
            read_clock(&mut clock_input, &mut clock, 3);
            decisions(&mut told);
            loop {
                if current.is_none() {
                    let Some(first) = clock.first_entry().filter(|e| frontiers[FRESH].iter().all(|f| is_past(f, *e.key()))) else { break };
                    let (time, (info, mut capabilities)) = first.remove_entry();
                    let received = in_order(received.remove(&time).unwrap_or_default());
                    let asked = in_order(asked.remove(&time).unwrap_or_default());
                    let verdicts = stock.begin(received, asked);
                    // Given up at once: later verdicts answer decisions, at their times, and held on to it would keep the loop open.
                    let capability = capabilities.remove(VERDICTS);
                    send(&mut verdicts_out, &capability, verdicts);
                    current = Some((info, capabilities));
                }
                let Some((EpochInfo { epoch, .. }, _)) = current else { break };
                for (capability, batches) in take_epoch(&mut told, epoch) {
                    send(&mut verdicts_out, &capability, stock.decide(&batches));
                }
                let end = time_of(epoch.next());
                while let Some(first) = asked.first_entry().filter(|e| *e.key() < end) {
                    if let Some(expiries) = concat(first.remove()) {
                        stock.expire(expiries);
                    }
                }
                if !frontiers.iter().all(|f| is_past(f, end - 1)) {
                    break;
                }
                if let Some((info, capabilities)) = current.take() {
                    let Settled { events, movements } = stock.settle();
                    send(&mut events_out, &capabilities[0], events);
                    send(&mut movements_out, &capabilities[1], movements);
                    observer(&info, &mut stock);
                }
            }
        }
    });
    (verdicts, [reservation_events, stock_movements])
}
