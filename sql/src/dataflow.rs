//! A stage's operators on timely's edges.

use std::cell::RefCell;
use std::rc::Rc;

use arrow::array::RecordBatch;
use datafusion::error::Result;
use orderflow_operators::batch::{Batch, register_schema};
use orderflow_operators::dataflow::{Batches, EpochOperator};
use orderflow_operators::epoch::EpochInfo;
use timely::container::NoopBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::exchange::by_columns;
use crate::graph::{Graph, Kind};
use crate::operators::{GroupedState, Output, Rejects, RowSteps, reject_schema};

/// What a stage's operators need of whoever runs them, on one worker.
pub trait Host {
    /// What a lookup table holds: its columns behind the [`META`](crate::rows::META) columns.
    fn table(&self, name: &str) -> Option<RecordBatch>;

    /// An operator starts; its state may be taken up.
    ///
    /// # Errors
    /// If the state cannot be taken up.
    fn start(&self, operator: &str, state: &mut dyn GroupedState) -> Result<()>;

    /// An epoch has gone through an operator that has state.
    ///
    /// # Errors
    /// If the state cannot be written down.
    fn after_epoch(&self, operator: &str, info: &EpochInfo, state: &mut dyn GroupedState) -> Result<()>;

    /// The stage cannot go on.
    fn fail(&self, message: String);
}

/// What comes out of a stage.
pub struct Outputs<'scope> {
    /// By sink, as in [`Graph::sinks`]: rows as [`crate::rows`] says.
    pub sinks: Vec<Batches<'scope>>,
    /// Rows that do not count: [`reject_schema`].
    pub rejects: Batches<'scope>,
}

/// Builds the operators of a stage on this worker. `source` gives the rows of a table: its columns behind the [`META`](crate::rows::META) columns.
///
/// # Errors
/// If an operator cannot be made: a lookup table does not fit, or its state cannot be taken up.
pub fn build<'scope>(
    scope: Scope<'scope, u64>,
    name: &str,
    graph: &Graph,
    clock: &Batches<'scope>,
    source: &mut dyn FnMut(&str) -> Batches<'scope>,
    host: &Rc<dyn Host>,
) -> Result<Outputs<'scope>> {
    let mut streams: Vec<Option<Batches<'scope>>> = Vec::new();
    let mut rejects = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        register_schema(&node.schema);
        let input = |i: usize| streams[node.inputs[i]].clone().expect("only lookup tables have no stream, and those are no inputs");
        let stream = match &node.kind {
            Kind::LookupTable { .. } => None,
            Kind::Source { table } => Some(source(table)),
            Kind::Union => Some(scope.concatenate((0..node.inputs.len()).map(input))),
            // A table's rows are there when the join starts.
            Kind::Rows(_) if streams[node.inputs[0]].is_none() => None,
            Kind::Rows(steps) => {
                let [rows, rejected] = row_steps(scope, &format!("{name} {id}"), input(0), RowSteps::new(steps.clone()));
                register_schema(&reject_schema());
                rejects.push(rejected);
                Some(rows)
            }
            _ => {
                let Some(mut operator) = graph.operator(id, &|table| host.table(table))? else { continue };
                let label = format!("{name} {id}");
                if let Some(state) = operator.state() {
                    host.start(&label, state)?;
                }
                let mut builder = EpochOperator::new(&label, scope, clock.clone());
                for (i, exchange) in node.exchange.iter().enumerate() {
                    builder = match exchange {
                        None => builder.unordered_input(input(i), Pipeline),
                        Some(columns) => builder.unordered_input(input(i), by_columns(columns.clone())),
                    };
                }
                let host = host.clone();
                let failed = RefCell::new(false);
                let [rows, rejected] = builder.build(
                    [&node.schema, &reject_schema()],
                    Box::new(move |info, inputs, outputs| {
                        if *failed.borrow() {
                            return;
                        }
                        let mut output = Output::default();
                        let done = operator.on_epoch(info, inputs, &mut output).and_then(|()| match operator.state() {
                            Some(state) => host.after_epoch(&label, info, state),
                            None => Ok(()),
                        });
                        if let Err(error) = done {
                            host.fail(format!("{label}: {}", error.strip_backtrace()));
                            *failed.borrow_mut() = true;
                        }
                        outputs[0].append(&mut output.rows);
                        outputs[1].append(&mut output.rejects.take());
                    }),
                );
                rejects.push(rejected);
                Some(rows)
            }
        };
        streams.push(stream);
    }
    let sinks = graph.sinks.iter().filter_map(|sink| streams[sink.node].clone()).collect();
    Ok(Outputs { sinks, rejects: scope.concatenate(rejects) })
}

/// Steps for a row at a time: they take each batch as it comes, and wait for no epoch. Rows that come out, and those that are rejected.
fn row_steps<'scope>(scope: Scope<'scope, u64>, name: &str, rows: Batches<'scope>, steps: RowSteps) -> [Batches<'scope>; 2] {
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let mut input = builder.new_input(rows, Pipeline);
    let (made, stream) = builder.new_output::<Batch>();
    let (rejected, rejects) = builder.new_output::<Batch>();
    let mut made = OutputBuilder::<u64, NoopBuilder<Batch>>::from(made);
    let mut rejected = OutputBuilder::<u64, NoopBuilder<Batch>>::from(rejected);
    builder.build(move |capabilities| {
        drop(capabilities);
        move |_frontiers| {
            let (mut made, mut rejected) = (made.activate(), rejected.activate());
            input.for_each(|cap, data| {
                let Some(rows) = std::mem::take(data).into_rows() else { return };
                let mut rejects = Rejects::default();
                let rows = steps.apply(rows, &mut rejects);
                if rows.num_rows() > 0 {
                    made.session_with_builder(&cap.retain(0)).give_container(&mut Batch::from(rows));
                }
                for rows in rejects.take() {
                    rejected.session_with_builder(&cap.retain(1)).give_container(&mut Batch::from(rows));
                }
            });
        }
    });
    [stream, rejects]
}
