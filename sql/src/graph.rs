//! What a stage is made of: operators, and who hands rows to whom.

mod svg;

use std::fmt::Write as _;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use orderflow_operators::epoch::Micros;

use crate::operators::{
    Aggregates, AsyncCall, AsyncCalls, InstantAggregate, JoinKind, JoinSpec, Lookup, Operator, Rejects, RowNumber, RowSteps,
    SessionAggregate, SortKey, Step, TopRows, UpdatingAggregate, UpdatingJoin, WindowAggregate, WindowedJoin,
};
use crate::stage::windows::{Length, Window};

/// The number of a node in its graph.
pub type NodeId = usize;

/// What a node does.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Rows of a table.
    Source { table: String },
    /// A table that does not change.
    LookupTable { table: String },
    /// Steps for a row at a time.
    Rows(Vec<Step>),
    /// Calls of asynchronous functions: so many columns stay, and a column for each call comes behind them.
    AsyncCalls { calls: Vec<AsyncCall>, kept: usize },
    /// All rows of all inputs.
    Union,
    /// Aggregates of windows of event time.
    Window { window: Window, keys: usize, window_index: usize, aggregates: Aggregates },
    /// Aggregates of rows of windows.
    Instant { keys: usize, aggregates: Aggregates },
    /// A join of windows.
    WindowedJoin(JoinSpec),
    /// A join with a table that does not change: the node of the table.
    Lookup { spec: JoinSpec, table: NodeId },
    /// Numbers of rows in a window.
    RowNumber { columns: usize, partition: Vec<usize>, order: Vec<SortKey> },
    /// Aggregates of all rows so far.
    UpdatingAggregate { keys: usize, aggregates: Aggregates, retracts: bool, ttl: Micros },
    /// A join of all rows so far.
    UpdatingJoin { spec: JoinSpec, ttl: Micros },
    /// The first rows of each partition, of all so far.
    TopRows { columns: usize, partition: Vec<usize>, order: Vec<SortKey>, limit: u64, retracts: bool, ttl: Micros },
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<NodeId>,
    /// By which columns an input's rows find their worker; `None`: they stay where they are.
    pub(crate) exchange: Vec<Option<Vec<usize>>>,
    pub(crate) schema: SchemaRef,
    /// The kind, and what it works on, in words.
    pub(crate) label: String,
}

/// Where rows of a stage go.
#[derive(Clone, Debug)]
pub struct SinkEdge {
    /// The table; empty for a query whose rows are for whoever runs the stage.
    pub table: String,
    /// Whose rows.
    pub node: NodeId,
    /// Whether rows can be taken back.
    pub updating: bool,
}

/// The operators of a stage. A node's inputs stand before it.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    /// What comes out.
    pub sinks: Vec<SinkEdge>,
}

impl Graph {
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What a node's rows look like: the [`META`](crate::rows::META) columns, then its own.
    pub fn schema(&self, node: NodeId) -> &SchemaRef {
        &self.nodes[node].schema
    }

    /// The tables that rows come from.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| match &node.kind {
            Kind::Source { table } => Some(table.as_str()),
            _ => None,
        })
    }

    /// The tables that rows are looked up in.
    pub fn lookup_tables(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| match &node.kind {
            Kind::LookupTable { table } => Some(table.as_str()),
            _ => None,
        })
    }

    /// Puts steps that follow on each other into one node.
    pub(crate) fn fuse(&mut self) {
        let mut consumers = vec![0_usize; self.nodes.len()];
        for node in &self.nodes {
            node.inputs.iter().for_each(|input| consumers[*input] += 1);
            if let Kind::Lookup { table, .. } = &node.kind {
                consumers[*table] += 1;
            }
        }
        self.sinks.iter().for_each(|sink| consumers[sink.node] += 1);
        for id in 0..self.nodes.len() {
            let [input] = self.nodes[id].inputs[..] else { continue };
            let (Kind::Rows(_), Kind::Rows(before)) = (&self.nodes[id].kind, &self.nodes[input].kind) else { continue };
            if consumers[input] != 1 {
                continue;
            }
            let (before, inputs, label) = (before.clone(), self.nodes[input].inputs.clone(), self.nodes[input].label.clone());
            let node = &mut self.nodes[id];
            if let Kind::Rows(steps) = &mut node.kind {
                steps.splice(0..0, before);
            }
            node.inputs = inputs;
            node.label = format!("{label}\n{}", node.label);
            consumers[input] = 0;
        }
        self.drop_unused();
    }

    fn drop_unused(&mut self) {
        let mut used = vec![false; self.nodes.len()];
        let mut ahead: Vec<NodeId> = self.sinks.iter().map(|sink| sink.node).collect();
        while let Some(id) = ahead.pop() {
            if !std::mem::replace(&mut used[id], true) {
                ahead.extend(&self.nodes[id].inputs);
                if let Kind::Lookup { table, .. } = &self.nodes[id].kind {
                    ahead.push(*table);
                }
            }
        }
        let mut place = vec![0; self.nodes.len()];
        let mut kept = Vec::new();
        for (id, mut node) in std::mem::take(&mut self.nodes).into_iter().enumerate() {
            if used[id] {
                node.inputs.iter_mut().for_each(|input| *input = place[*input]);
                if let Kind::Lookup { table, .. } = &mut node.kind {
                    *table = place[*table];
                }
                place[id] = kept.len();
                kept.push(node);
            }
        }
        self.nodes = kept;
        self.sinks.iter_mut().for_each(|sink| sink.node = place[sink.node]);
    }

    /// The operator of a node, for one worker; `None` for sources, tables and unions, which do nothing by themselves.
    ///
    /// `tables` has what the lookup tables hold.
    pub(crate) fn operator(&self, id: NodeId, tables: &dyn Fn(&str) -> Option<RecordBatch>) -> Result<Option<Box<dyn Operator>>> {
        let node = &self.nodes[id];
        let input = |i: usize| self.nodes[node.inputs[i]].schema.clone();
        let schema = node.schema.clone();
        Ok(Some(match node.kind.clone() {
            Kind::Source { .. } | Kind::LookupTable { .. } | Kind::Union => return Ok(None),
            Kind::Rows(steps) => Box::new(RowSteps::new(steps)),
            Kind::AsyncCalls { calls, kept } => Box::new(AsyncCalls::new(calls, kept, schema)),
            Kind::Window { window: Window::Session { gap }, keys, window_index, aggregates } => {
                Box::new(SessionAggregate::new(gap, &input(0), keys, window_index, aggregates, schema))
            }
            Kind::Window { window: Window::Tumble { width }, keys, window_index, aggregates } => {
                Box::new(WindowAggregate::new([width, width], &input(0), keys, window_index, aggregates, schema))
            }
            Kind::Window { window: Window::Hop { slide, width }, keys, window_index, aggregates } => {
                Box::new(WindowAggregate::new([slide, width], &input(0), keys, window_index, aggregates, schema))
            }
            Kind::Instant { keys, aggregates } => Box::new(InstantAggregate::new(&input(0), keys, aggregates, schema)),
            Kind::WindowedJoin(spec) => Box::new(WindowedJoin::new(spec, [input(0), input(1)])),
            Kind::Lookup { spec, table } => Box::new(Lookup::new(spec, self.table(table, tables)?)?),
            Kind::RowNumber { columns, partition, order } => Box::new(RowNumber { columns, partition, order, schema }),
            Kind::UpdatingAggregate { keys, aggregates, retracts, ttl } => {
                Box::new(UpdatingAggregate::new(&input(0), keys, aggregates, retracts, ttl, schema))
            }
            Kind::UpdatingJoin { spec, ttl } => Box::new(UpdatingJoin::new(spec, [input(0), input(1)], ttl)),
            Kind::TopRows { columns, partition, order, limit, retracts, ttl } => {
                Box::new(TopRows::new(&input(0), columns, partition, order, limit, retracts, ttl, schema)?)
            }
        }))
    }

    /// What a node over a lookup table holds.
    fn table(&self, id: NodeId, tables: &dyn Fn(&str) -> Option<RecordBatch>) -> Result<RecordBatch> {
        let node = &self.nodes[id];
        match &node.kind {
            Kind::LookupTable { table } => Ok(tables(table).unwrap_or_else(|| RecordBatch::new_empty(node.schema.clone()))),
            Kind::Rows(steps) => {
                let rows = self.table(node.inputs[0], tables)?;
                Ok(RowSteps::new(steps.clone()).apply(rows, &mut Rejects::default()))
            }
            _ => Err(datafusion::error::DataFusionError::Internal("planning puts only steps over a lookup table".to_owned())),
        }
    }

    /// The graph as text, a line for each node, inputs indented below.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for sink in &self.sinks {
            let to = if sink.table.is_empty() { "query" } else { sink.table.as_str() };
            let _ = writeln!(text, "sink {to}{}", if sink.updating { " (updating)" } else { "" });
            self.write_node(&mut text, sink.node, 1);
        }
        text
    }

    fn write_node(&self, text: &mut String, id: NodeId, depth: usize) {
        let node = &self.nodes[id];
        for (i, line) in node.label.lines().rev().enumerate() {
            let _ = writeln!(text, "{}{}{line}", "  ".repeat(depth), if i == 0 { "" } else { "· " });
        }
        let inputs = node.inputs.iter().copied().chain(match node.kind {
            Kind::Lookup { table, .. } => Some(table),
            _ => None,
        });
        for (i, input) in inputs.enumerate() {
            let mut depth = depth + 1;
            if let Some(Some(columns)) = node.exchange.get(i) {
                let names: Vec<_> = columns.iter().map(|c| self.nodes[input].schema.field(*c).name().as_str()).collect();
                let by = if names.is_empty() { "exchange to one worker".to_owned() } else { format!("exchange by {}", names.join(", ")) };
                let _ = writeln!(text, "{}{by}", "  ".repeat(depth));
                depth += 1;
            }
            self.write_node(text, input, depth);
        }
    }

    /// The graph as a picture: an SVG document.
    pub fn to_svg(&self) -> String {
        svg::to_svg(self)
    }

    /// The graph for Graphviz.
    pub fn to_dot(&self) -> String {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\l") + "\\l";
        let mut dot = "digraph stage {\n  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];\n".to_owned();
        for (id, node) in self.nodes.iter().enumerate() {
            let _ = writeln!(dot, "  n{id} [label=\"{}\"];", quote(&node.label));
            for (i, input) in node.inputs.iter().enumerate() {
                let style = if matches!(node.exchange.get(i), Some(Some(_))) { " [style=bold, label=\"exchange\"]" } else { "" };
                let _ = writeln!(dot, "  n{input} -> n{id}{style};");
            }
            if let Kind::Lookup { table, .. } = node.kind {
                let _ = writeln!(dot, "  n{table} -> n{id} [style=dashed];");
            }
        }
        for (i, sink) in self.sinks.iter().enumerate() {
            let to = if sink.table.is_empty() { "query" } else { &sink.table };
            let _ = writeln!(dot, "  s{i} [shape=cylinder, label=\"{}\"];\n  n{} -> s{i};", quote(to), sink.node);
        }
        dot + "}\n"
    }
}

pub(crate) fn window_label(window: Window) -> String {
    format!("aggregate by {window}")
}

pub(crate) fn ttl_label(ttl: Micros) -> String {
    format!("state kept {}", Length(ttl))
}

pub(crate) fn join_label(kind: JoinKind) -> &'static str {
    match kind {
        JoinKind::Inner => "join",
        JoinKind::Left => "left join",
        JoinKind::Right => "right join",
        JoinKind::Full => "full join",
        JoinKind::LeftSemi => "semi join",
        JoinKind::LeftAnti => "anti join",
    }
}
