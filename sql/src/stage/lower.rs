//! From a logical plan to operators.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::expr::{AggregateFunction, Sort, WindowFunctionDefinition};
use datafusion::logical_expr::logical_plan::Window as WindowPlan;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{
    Aggregate, Expr, Filter, Join, JoinType, LogicalPlan, Operator as Symbol, Projection, ScalarUDFImpl, Unnest,
};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use orderflow_operators::epoch::Micros;

use super::error::StageError;
use super::plan::WindowedAggregate;
use super::windows::{Window, window_type};
use crate::graph::{Graph, Kind, Node, NodeId, join_label, ttl_label, window_label};
use crate::operators::{Aggregates, AsyncCall, Call, JoinKind, JoinSpec, SortKey, Step};
use crate::rows::{META, can_be_ordered, with_meta};
use crate::udf::{AsyncFunction, UdfAggregate};

/// What is known of the rows that a node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    /// All rows of a window come in one epoch, with the window's end as their time.
    window: Option<Window>,
    /// Rows can be taken back.
    updating: bool,
    /// It is a table that does not change.
    is_lookup: bool,
}

const APPEND: Flow = Flow { window: None, updating: false, is_lookup: false };

#[derive(Clone, Copy)]
struct Lowered {
    node: NodeId,
    flow: Flow,
}

/// Builds the graph of a stage.
pub(crate) struct Lowering<'a> {
    pub graph: Graph,
    /// Tables that rows are looked up in.
    pub lookups: &'a dyn Fn(&str) -> bool,
    /// Tables of changes: rows can be taken back.
    pub changes: &'a dyn Fn(&str) -> bool,
    /// How long state of updating operators is kept.
    pub ttl: Micros,
    /// What several queries have in common is computed once.
    done: HashMap<LogicalPlan, Lowered>,
}

type Lower<T> = Result<T, StageError>;

impl<'a> Lowering<'a> {
    pub fn new(lookups: &'a dyn Fn(&str) -> bool, changes: &'a dyn Fn(&str) -> bool, ttl: Micros) -> Self {
        Lowering { graph: Graph::default(), lookups, changes, ttl, done: HashMap::new() }
    }

    /// Adds the operators of a query; returns the last and whether its rows can be taken back.
    pub fn query(&mut self, plan: &LogicalPlan) -> Lower<(NodeId, bool)> {
        let lowered = self.plan(plan)?;
        if lowered.flow.is_lookup {
            return Err(StageError::new("the query reads a lookup table alone").help("join a stream with it"));
        }
        Ok((lowered.node, lowered.flow.updating))
    }

    fn plan(&mut self, plan: &LogicalPlan) -> Lower<Lowered> {
        if let Some(lowered) = self.done.get(plan) {
            return Ok(*lowered);
        }
        let lowered = self.plan_anew(plan)?;
        self.done.insert(plan.clone(), lowered);
        Ok(lowered)
    }

    fn plan_anew(&mut self, plan: &LogicalPlan) -> Lower<Lowered> {
        match plan {
            LogicalPlan::SubqueryAlias(alias) => self.plan(&alias.input),
            LogicalPlan::TableScan(scan) => {
                let table = scan.table_name.table().to_owned();
                let is_lookup = (self.lookups)(&table);
                let updating = !is_lookup && (self.changes)(&table);
                let schema = with_meta(scan.source.schema().fields());
                let label = if is_lookup { format!("table {table}") } else { format!("source {table}") };
                let kind = if is_lookup { Kind::LookupTable { table } } else { Kind::Source { table } };
                // A table is read once, however often it is named.
                let existing = self.graph.nodes.iter().position(|node| node.label == label);
                let node = existing
                    .unwrap_or_else(|| self.graph.add(Node { kind, inputs: vec![], exchange: vec![], schema: schema.clone(), label }));
                let source = Lowered { node, flow: Flow { is_lookup, updating, ..APPEND } };
                match &scan.projection {
                    None => Ok(source),
                    Some(columns) => {
                        let fields: Vec<FieldRef> = columns.iter().map(|c| schema.fields()[META + c].clone()).collect();
                        let expressions = columns.iter().map(|c| column_expression(&schema, META + c)).collect();
                        let step = Step::Project { expressions, schema: with_meta(&fields) };
                        Ok(self.step(source, step, "columns".to_owned()))
                    }
                }
            }
            LogicalPlan::Projection(projection) => {
                let input = self.plan(&projection.input)?;
                let names = projection.schema.fields().iter().map(|f| f.name().clone());
                let expressions = projection.expr.iter().cloned().zip(names).collect();
                self.project(input, &projection.input, expressions)
            }
            LogicalPlan::Filter(filter) => self.filter(filter),
            LogicalPlan::Extension(extension) => match extension.node.as_any().downcast_ref::<WindowedAggregate>() {
                Some(aggregate) => self.windowed_aggregate(aggregate),
                None => Err(StageError::new("the query cannot be planned")),
            },
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Window(window) => self.window(window, None),
            LogicalPlan::Union(union) => {
                let inputs = union.inputs.iter().map(|input| self.plan(input)).collect::<Lower<Vec<_>>>()?;
                self.union(inputs)
            }
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::Sort(_) => Err(StageError::new("ORDER BY is not supported: a stream has no end to sort at")
                .help("for the first rows of each window: ROW_NUMBER() OVER (PARTITION BY window ORDER BY …) and a condition on it")),
            LogicalPlan::Limit(_) => Err(StageError::new("LIMIT is not supported: a stream has no end")
                .help("for the first rows of each window: ROW_NUMBER() OVER (PARTITION BY window ORDER BY …) and a condition on it")),
            LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => {
                Err(StageError::new("a query without FROM is not supported: a stage's rows come from its sources").help("add FROM"))
            }
            LogicalPlan::Subquery(_) => Err(scalar_subquery()),
            other => Err(StageError::new(format!("{} is not supported in a stage", name_of(other)))),
        }
    }

    // --- a row at a time ---------------------------------------------------------------------

    fn step(&mut self, input: Lowered, step: Step, label: String) -> Lowered {
        let schema = match &step {
            Step::Filter(_) => self.graph.schema(input.node).clone(),
            Step::Project { schema, .. } | Step::Unnest { schema, .. } => schema.clone(),
        };
        let node = Node { kind: Kind::Rows(vec![step]), inputs: vec![input.node], exchange: vec![None], schema, label };
        Lowered { node: self.graph.add(node), flow: input.flow }
    }

    /// The columns of a node under the names that a plan gives them.
    fn names(&self, node: NodeId, plan: &LogicalPlan) -> Lower<DFSchema> {
        let schema = self.graph.schema(node);
        let logical = plan.schema();
        let meta = schema.fields()[..META].iter().map(|f| (None, f.clone()));
        let own = schema.fields()[META..].iter().zip(logical.iter());
        let own = own.map(|(physical, (qualifier, named))| {
            let field = Field::new(named.name(), physical.data_type().clone(), true);
            (qualifier.cloned(), Arc::new(field))
        });
        DFSchema::new_with_metadata(meta.chain(own).collect(), HashMap::new()).map_err(|e| StageError::new(e.strip_backtrace()))
    }

    fn project(&mut self, input: Lowered, plan: &LogicalPlan, expressions: Vec<(Expr, String)>) -> Lower<Lowered> {
        let names = self.names(input.node, plan)?;
        let (names_given, expressions): (Vec<String>, Vec<Expr>) = expressions.into_iter().map(|(e, name)| (name, e)).unzip();
        let (input, names, expressions) = self.async_calls(input, names, expressions)?;
        let expressions = expressions.into_iter().zip(names_given);
        let mut label: Vec<String> = Vec::new();
        let (mut physical, mut fields) = (Vec::new(), Vec::new());
        for (expression, name) in expressions {
            let compiled = compile(&expression, &names)?;
            let data_type = compiled.data_type(names.as_arrow()).map_err(|e| StageError::new(e.strip_backtrace()))?;
            fields.push(Arc::new(Field::new(&name, data_type, true)));
            physical.push(compiled);
            label.push(expression.to_string());
        }
        let step = Step::Project { expressions: physical, schema: with_meta(&fields) };
        Ok(self.step(input, step, format!("project {}", label.join(", "))))
    }

    fn filter(&mut self, filter: &Filter) -> Lower<Lowered> {
        // How many rows of each partition count is said by a condition above the numbers; between the two there may be other names.
        let (mut below, mut condition) = (filter.input.as_ref(), filter.predicate.clone());
        let mut between = Vec::new();
        loop {
            between.push(below);
            below = match below {
                LogicalPlan::SubqueryAlias(alias) => &alias.input,
                LogicalPlan::Projection(projection) => match renamed(&condition, projection) {
                    Some(same) => {
                        condition = same;
                        &projection.input
                    }
                    None => break,
                },
                _ => break,
            };
        }
        let limit = match below {
            LogicalPlan::Window(window) => row_limit(&condition, window).map(|limit| (window, limit)),
            _ => None,
        };
        let input = match limit {
            Some((window, limit)) => {
                let lowered = self.window(window, Some(limit))?;
                self.done.insert(below.clone(), lowered);
                let input = self.plan(&filter.input)?;
                // Of others who ask the same without a condition, all rows count.
                between.into_iter().for_each(|plan| _ = self.done.remove(plan));
                input
            }
            None => self.plan(&filter.input)?,
        };
        let names = self.names(input.node, &filter.input)?;
        let before = self.graph.schema(input.node).clone();
        let (called, names, mut conditions) = self.async_calls(input, names, vec![filter.predicate.clone()])?;
        let condition = compile(&conditions.remove(0), &names)?;
        let filtered = self.step(called, Step::Filter(condition), format!("filter {}", filter.predicate));
        if called.node == input.node {
            return Ok(filtered);
        }
        // Without what the calls gave.
        let expressions = (META..before.fields().len()).map(|c| column_expression(&before, c)).collect();
        Ok(self.step(filtered, Step::Project { expressions, schema: before }, "columns".to_owned()))
    }

    /// Has the asynchronous functions of some expressions called: the rows with what came of the calls as further columns, their names, and the
    /// expressions with those columns in the place of the calls. Calls within calls go first.
    fn async_calls(
        &mut self,
        mut input: Lowered,
        mut names: DFSchema,
        mut expressions: Vec<Expr>,
    ) -> Lower<(Lowered, DFSchema, Vec<Expr>)> {
        loop {
            let mut ready: Vec<Expr> = Vec::new();
            for expression in &expressions {
                let visited = expression.apply(|e| {
                    if async_function(e).is_some()
                        && arguments_of(e).iter().all(|argument| first_async(argument).is_none())
                        && !ready.contains(e)
                    {
                        ready.push(e.clone());
                    }
                    Ok(TreeNodeRecursion::Continue)
                });
                debug_assert!(visited.is_ok(), "the visitor does not fail");
            }
            if ready.is_empty() {
                return Ok((input, names, expressions));
            }
            let name = async_function(&ready[0]).map(|f| f.name().to_owned()).unwrap_or_default();
            if input.flow.updating {
                return Err(StageError::new(format!("async function {name}() over rows that can be taken back is not supported"))
                    .help("call it on the rows before they are aggregated or joined, or GROUP BY a window"));
            }
            if input.flow.is_lookup {
                return Err(StageError::new(format!("async function {name}() over a lookup table is not supported"))
                    .help("call it behind the join"));
            }
            (input, names) = self.calls_node(input, &names, &ready)?;
            let offset = names.fields().len() - ready.len();
            let place_of = |e: &Expr| ready.iter().position(|call| call == e);
            for expression in &mut expressions {
                let replaced = expression.clone().transform_down(|e| match place_of(&e) {
                    Some(place) => {
                        let column = Expr::Column(Column::new_unqualified(names.field(offset + place).name()));
                        Ok(Transformed::new(column, true, TreeNodeRecursion::Jump))
                    }
                    None => Ok(Transformed::no(e)),
                });
                *expression = replaced.map_err(|e| StageError::new(e.strip_backtrace()))?.data;
            }
        }
    }

    /// Adds a node that makes these calls. Their columns stand last.
    fn calls_node(&mut self, input: Lowered, names: &DFSchema, calls: &[Expr]) -> Lower<(Lowered, DFSchema)> {
        let before = self.graph.schema(input.node).clone();
        let kept = before.fields().len();
        let mut expressions: Vec<_> = (META..kept).map(|c| column_expression(&before, c)).collect();
        let mut fields: Vec<FieldRef> = before.fields()[META..].to_vec();
        let mut outputs: Vec<FieldRef> = fields.clone();
        let mut named: Vec<_> = names.iter().map(|(qualifier, field)| (qualifier.cloned(), field.clone())).collect();
        let mut made = Vec::new();
        for call in calls {
            let Some(function) = async_function(call) else { continue };
            let mut arguments = Vec::new();
            for (argument, nullable) in arguments_of(call).iter().zip(function.nullable()) {
                let compiled = compile(argument, names)?;
                let data_type = compiled.data_type(names.as_arrow()).map_err(|e| StageError::new(e.strip_backtrace()))?;
                arguments.push((META + expressions.len(), nullable));
                fields.push(Arc::new(Field::new(format!("argument {}", expressions.len()), data_type, true)));
                expressions.push(compiled);
            }
            let result = function.return_type(&[]).map_err(|e| StageError::new(e.strip_backtrace()))?;
            // A stage's own columns have no such names.
            let result = Arc::new(Field::new(format!("call {}: {call}", named.len()), result, true));
            outputs.push(result.clone());
            named.push((None, result));
            let (library, options) = (function.library, function.options);
            made.push(AsyncCall { name: function.name().to_owned(), library, options, arguments });
        }
        let prepared = self.step(input, Step::Project { expressions, schema: with_meta(&fields) }, "arguments".to_owned());
        let shown: Vec<String> = calls
            .iter()
            .zip(&made)
            .map(|(call, AsyncCall { options, .. })| {
                format!("{call}, {} at a time, each at most {:?}", options.in_flight_max, options.timeout)
            })
            .collect();
        let node = Node {
            kind: Kind::AsyncCalls { calls: made, kept },
            inputs: vec![prepared.node],
            exchange: vec![None],
            schema: with_meta(&outputs),
            label: format!("call {}", shown.join("; ")),
        };
        let names = DFSchema::new_with_metadata(named, HashMap::new()).map_err(|e| StageError::new(e.strip_backtrace()))?;
        Ok((Lowered { node: self.graph.add(node), flow: input.flow }, names))
    }

    fn unnest(&mut self, unnest: &Unnest) -> Lower<Lowered> {
        let input = self.plan(&unnest.input)?;
        if !unnest.struct_type_columns.is_empty() {
            return Err(StageError::new("UNNEST of a struct is not supported").help("name its fields: column.field"));
        }
        if let Some((_, list)) = unnest.list_type_columns.iter().find(|(_, list)| list.depth != 1) {
            return Err(StageError::new(format!("UNNEST of {} more than one level deep is not supported", list.output_column.name))
                .help("UNNEST once in a subquery, and once more outside"));
        }
        let physical = self.graph.schema(input.node).clone();
        let (mut outputs, mut fields) = (Vec::new(), Vec::new());
        for (output, &column) in unnest.schema.fields().iter().zip(&unnest.dependency_indices) {
            let field = physical.field(META + column);
            let spread = unnest.list_type_columns.iter().any(|(index, list)| *index == column && list.output_column.name == *output.name());
            let data_type = match (spread, field.data_type()) {
                (true, DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)) => item.data_type().clone(),
                (_, other) => other.clone(),
            };
            outputs.push((META + column, spread));
            fields.push(Arc::new(Field::new(output.name(), data_type, true)));
        }
        let keeps_empty = unnest.options.null_handling != datafusion::common::NullHandling::Drop;
        let step = Step::Unnest { outputs, keeps_empty, schema: with_meta(&fields) };
        Ok(self.step(input, step, "unnest".to_owned()))
    }

    fn union(&mut self, inputs: Vec<Lowered>) -> Lower<Lowered> {
        let first = inputs[0];
        if let Some(other) = inputs.iter().find(|i| i.flow.window != first.flow.window) {
            let show = |window: Option<Window>| window.map_or("no window".to_owned(), |w| w.to_string());
            return Err(StageError::new(format!(
                "UNION ALL of rows of {} with rows of {} is not supported",
                show(first.flow.window),
                show(other.flow.window)
            ))
            .help("insert each query on its own: several INSERT INTO one table are fine"));
        }
        let target = self.graph.schema(first.node).clone();
        let mut nodes = Vec::new();
        for input in &inputs {
            let schema = self.graph.schema(input.node).clone();
            if schema == target {
                nodes.push(input.node);
                continue;
            }
            // Types are the planner's work; names are the first query's.
            let expressions = (META..schema.fields().len())
                .map(|c| {
                    let column = column_expression(&schema, c);
                    let to = target.field(c).data_type();
                    datafusion::physical_expr::expressions::cast(column, &schema, to.clone())
                        .map_err(|e| StageError::new(e.strip_backtrace()))
                })
                .collect::<Lower<Vec<_>>>()?;
            nodes.push(self.step(*input, Step::Project { expressions, schema: target.clone() }, "columns".to_owned()).node);
        }
        let updating = inputs.iter().any(|i| i.flow.updating);
        let exchange = vec![None; nodes.len()];
        let node = Node { kind: Kind::Union, inputs: nodes, exchange, schema: target, label: "union all".to_owned() };
        Ok(Lowered { node: self.graph.add(node), flow: Flow { updating, ..first.flow } })
    }

    // --- aggregates --------------------------------------------------------------------------

    /// Keys and what the aggregates' arguments name as columns of their own, then the aggregates over them.
    fn aggregate_input(&mut self, input: Lowered, plan: &LogicalPlan, keys: &[Expr], calls: &[Expr]) -> Lower<(Lowered, Aggregates)> {
        let mut columns: Vec<(Expr, String)> = keys.iter().enumerate().map(|(i, e)| (e.clone(), format!("key {i}: {e}"))).collect();
        let mut rewritten = Vec::new();
        for call in calls {
            rewritten.push(pull_arguments(call, &mut columns)?);
        }
        let prepared = self.project(input, plan, columns)?;
        let schema = self.graph.schema(prepared.node).clone();
        for field in &schema.fields()[META..META + keys.len()] {
            check_key(field)?;
        }
        let names = df_schema(&schema)?;
        let (props, context) = (ExecutionProps::new(), PhysicalPlanningContext::default());
        let mut lowered = Vec::new();
        for (call, original) in rewritten.iter().zip(calls) {
            let built = LoweredAggregateBuilder::new(call, &names, &schema, &props, &context).with_name(original.schema_name().to_string());
            let built = built.build().map_err(|e| StageError::new(e.strip_backtrace()))?;
            let name = built.aggregate.fun().name();
            if !built.order_bys.is_empty() && built.aggregate.order_sensitivity().hard_requires() {
                return Err(StageError::new(format!("{name}(… ORDER BY …) is not supported"))
                    .help("leave ORDER BY out: values come in the order of the rows; or number the rows of the window with ROW_NUMBER()"));
            }
            let is_own = built.aggregate.fun().inner().downcast_ref::<UdfAggregate>().is_some();
            if built.aggregate.is_distinct() && (is_own || matches!(name, "array_agg" | "string_agg")) {
                return Err(StageError::new(format!("{name}(DISTINCT …) is not supported: its values would come in no order"))
                    .help("take the distinct values in a subquery first: SELECT window, x … GROUP BY window, x"));
            }
            lowered.push(Call { function: built.aggregate, filter: built.filter });
        }
        let aggregates = Aggregates::new(lowered).map_err(|e| StageError::new(e.strip_backtrace()))?;
        Ok((prepared, aggregates))
    }

    /// Columns of an aggregate's output: keys, perhaps with a window among them, then the aggregates; under the plan's names.
    fn aggregate_schema(
        &self,
        prepared: Lowered,
        keys: usize,
        window: Option<usize>,
        aggregates: &Aggregates,
        plan: &DFSchema,
    ) -> SchemaRef {
        let input = self.graph.schema(prepared.node);
        let mut types: Vec<DataType> = input.fields()[META..META + keys].iter().map(|f| f.data_type().clone()).collect();
        if let Some(index) = window {
            types.insert(index, window_type());
        }
        types.extend(aggregates.output_types());
        let fields: Vec<FieldRef> =
            plan.fields().iter().zip(types).map(|(field, data_type)| Arc::new(Field::new(field.name(), data_type, true))).collect();
        with_meta(&fields)
    }

    fn windowed_aggregate(&mut self, aggregate: &WindowedAggregate) -> Lower<Lowered> {
        let WindowedAggregate { input: plan, window, window_index, group_expr, aggr_expr, schema } = aggregate;
        let input = self.plan(plan)?;
        if input.flow.updating {
            return Err(StageError::new(format!("{window} over rows that can be taken back is not supported"))
                .help("GROUP BY the window first, and aggregate or join what comes out"));
        }
        if input.flow.is_lookup {
            return Err(StageError::new("a lookup table has no event time").help("join a stream with it"));
        }
        if let Some(inner) = input.flow.window.filter(|inner| inner != window) {
            return Err(StageError::new(format!("{window} over rows of {inner} is not supported"))
                .help("give both the same window, or GROUP BY the inner query's window column"));
        }
        if input.flow.window.is_some() && matches!(window, Window::Session { .. }) {
            return Err(
                StageError::new("a session over rows of a session is not supported").help("GROUP BY the inner query's window column")
            );
        }
        let (prepared, aggregates) = self.aggregate_input(input, plan, group_expr, aggr_expr)?;
        let keys = group_expr.len();
        let schema = self.aggregate_schema(prepared, keys, Some(*window_index), &aggregates, schema);
        let label = format!("{}{}", window_label(*window), describe(group_expr, aggr_expr));
        let node = Node {
            kind: Kind::Window { window: *window, keys, window_index: *window_index, aggregates },
            inputs: vec![prepared.node],
            exchange: vec![Some((META..META + keys).collect())],
            schema,
            label,
        };
        Ok(Lowered { node: self.graph.add(node), flow: Flow { window: Some(*window), ..APPEND } })
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Lower<Lowered> {
        let input = self.plan(&aggregate.input)?;
        if aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_))) {
            return Err(
                StageError::new("GROUPING SETS, ROLLUP and CUBE are not supported").help("insert each grouping as a query of its own")
            );
        }
        let (prepared, aggregates) = self.aggregate_input(input, &aggregate.input, &aggregate.group_expr, &aggregate.aggr_expr)?;
        let keys = aggregate.group_expr.len();
        let schema = self.aggregate_schema(prepared, keys, None, &aggregates, &aggregate.schema);
        let what = describe(&aggregate.group_expr, &aggregate.aggr_expr);
        let (kind, flow, label) = match input.flow.window {
            Some(_) if !input.flow.updating => {
                (Kind::Instant { keys, aggregates }, input.flow, format!("aggregate within each window{what}"))
            }
            _ => {
                let (retracts, ttl) = (input.flow.updating, self.ttl);
                let label = format!("updating aggregate, {}{what}", ttl_label(ttl));
                (Kind::UpdatingAggregate { keys, aggregates, retracts, ttl }, Flow { updating: true, ..APPEND }, label)
            }
        };
        let exchange = vec![Some((META..META + keys).collect())];
        let node = Node { kind, inputs: vec![prepared.node], exchange, schema, label };
        Ok(Lowered { node: self.graph.add(node), flow })
    }

    // --- joins -------------------------------------------------------------------------------

    fn join(&mut self, join: &Join) -> Lower<Lowered> {
        let (left, right) = (self.plan(&join.left)?, self.plan(&join.right)?);
        let kind = match join.join_type {
            JoinType::Inner => JoinKind::Inner,
            JoinType::Left => JoinKind::Left,
            JoinType::Right => JoinKind::Right,
            JoinType::Full => JoinKind::Full,
            JoinType::LeftSemi => JoinKind::LeftSemi,
            JoinType::LeftAnti if !join.null_aware => JoinKind::LeftAnti,
            JoinType::LeftAnti => {
                return Err(StageError::new("NOT IN with a query is not supported").help("write NOT EXISTS (SELECT … WHERE a = b)"));
            }
            other => return Err(StageError::new(format!("{other} JOIN is not supported")).help("turn the sides around")),
        };
        if left.flow.is_lookup {
            return Err(StageError::new("a lookup table may only stand on the right side of a join").help("turn the sides around"));
        }
        let side = |lowering: &mut Self, lowered: Lowered, plan: &LogicalPlan, keys: Vec<Expr>| -> Lower<Lowered> {
            let schema = lowering.graph.schema(lowered.node).clone();
            let own = plan.schema().columns().into_iter().zip(schema.fields().iter().skip(META));
            let own = own.map(|(column, field)| (Expr::Column(column), field.name().clone()));
            let keys = keys.into_iter().enumerate().map(|(i, e)| (e.clone(), format!("key {i}: {e}")));
            lowering.project(lowered, plan, own.chain(keys).collect())
        };
        let (left_keys, right_keys): (Vec<Expr>, Vec<Expr>) = join.on.iter().cloned().unzip();
        let keys = join.on.len();
        let (left_plan, right_plan) = (join.left.as_ref(), join.right.as_ref());
        let columns = [left, right].map(|side| Schema::new(self.graph.schema(side.node).fields()[META..].to_vec()));
        let left_side = side(self, left, left_plan, left_keys)?;
        let right_side = side(self, right, right_plan, right_keys)?;
        let [left_columns, right_columns] = columns.map(Arc::new);
        for (lowered, columns) in [(left_side, &left_columns), (right_side, &right_columns)] {
            let schema = self.graph.schema(lowered.node).clone();
            for field in &schema.fields()[META + columns.fields().len()..] {
                check_key(field)?;
            }
        }
        let joined = with_meta(left_columns.fields().iter().chain(right_columns.fields()));
        let filter = match &join.filter {
            None => None,
            Some(filter) => {
                let meta = joined.fields()[..META].iter().map(|f| (None, f.clone()));
                let own = left_plan.schema().iter().chain(right_plan.schema().iter()).zip(joined.fields().iter().skip(META));
                let own = own.map(|((q, named), f)| (q.cloned(), Arc::new(Field::new(named.name(), f.data_type().clone(), true))));
                let names = DFSchema::new_with_metadata(meta.chain(own).collect(), HashMap::new());
                Some(compile(filter, &names.map_err(|e| StageError::new(e.strip_backtrace()))?)?)
            }
        };
        let schema = if kind.is_left_only() { with_meta(left_columns.fields()) } else { joined.clone() };
        let key_columns = |columns: &Schema| (META + columns.fields().len()..META + columns.fields().len() + keys).collect::<Vec<_>>();
        let exchange = [&left_columns, &right_columns].map(|columns| Some(key_columns(columns))).to_vec();
        let spec = JoinSpec { kind, keys, left: left_columns, right: right_columns, filter, joined, schema: schema.clone() };
        let on: Vec<_> = join.on.iter().map(|(l, r)| format!("{l} = {r}")).chain(join.filter.iter().map(|f| f.to_string())).collect();
        let on = if on.is_empty() { String::new() } else { format!(" on {}", on.join(" and ")) };
        let no_equality = || {
            StageError::new("the join has no equality between its two sides")
                .help("add ON a = b; a join of everything with everything has no key")
        };
        if right.flow.is_lookup {
            if !matches!(kind, JoinKind::Inner | JoinKind::Left) {
                return Err(StageError::new("a lookup table is joined with JOIN or LEFT JOIN").help("write LEFT JOIN"));
            }
            if keys == 0 {
                return Err(no_equality());
            }
            let node = Node {
                kind: Kind::Lookup { spec, table: right_side.node },
                inputs: vec![left_side.node],
                exchange: vec![None],
                schema,
                label: format!("lookup {}{on}", join_label(kind)),
            };
            return Ok(Lowered { node: self.graph.add(node), flow: left.flow });
        }
        let inputs = vec![left_side.node, right_side.node];
        match (left.flow.window, right.flow.window) {
            (Some(a), Some(b)) if a == b && !left.flow.updating && !right.flow.updating => {
                let label = format!("{} within each window{on}", join_label(kind));
                let node = Node { kind: Kind::WindowedJoin(spec), inputs, exchange, schema, label };
                Ok(Lowered { node: self.graph.add(node), flow: left.flow })
            }
            (Some(a), Some(b)) if a != b => {
                Err(StageError::new(format!("a join of {a} with {b} is not supported")).help("give both sides the same window"))
            }
            (Some(window), None) | (None, Some(window)) => {
                Err(StageError::new(format!("a join of rows of {window} with rows of no window is not supported"))
                    .help("GROUP BY the same window on both sides, or on neither"))
            }
            _ => {
                if kind.is_left_only() {
                    return Err(StageError::new("IN and EXISTS with a query of no window are not supported")
                        .help("write a JOIN with the distinct rows of that query"));
                }
                if keys == 0 {
                    return Err(no_equality());
                }
                for field in spec.joined.fields() {
                    check_key(field)?;
                }
                let label = format!("updating {}, {}{on}", join_label(kind), ttl_label(self.ttl));
                let node = Node { kind: Kind::UpdatingJoin { spec, ttl: self.ttl }, inputs, exchange, schema, label };
                Ok(Lowered { node: self.graph.add(node), flow: Flow { updating: true, ..APPEND } })
            }
        }
    }

    // --- numbers of rows ---------------------------------------------------------------------

    fn window(&mut self, window: &WindowPlan, limit: Option<u64>) -> Lower<Lowered> {
        let input = self.plan(&window.input)?;
        let [expression] = window.window_expr.as_slice() else {
            return Err(
                StageError::new("more than one window function in a query is not supported").help("put each into a subquery of its own")
            );
        };
        let Expr::WindowFunction(function) = expression.clone().unalias() else {
            return Err(StageError::new(format!("{expression} is not supported")));
        };
        let name = match &function.fun {
            WindowFunctionDefinition::AggregateUDF(f) => f.name(),
            WindowFunctionDefinition::WindowUDF(f) => f.name(),
        };
        if name != "row_number" {
            return Err(StageError::new(format!("{name}() OVER (…) is not supported")).help(
                "ROW_NUMBER() OVER (PARTITION BY window, … ORDER BY …) is; for a total of each window, join the rows with GROUP BY window",
            ));
        }
        let params = &function.params;
        let schema = self.graph.schema(input.node).clone();
        let columns = schema.fields().len() - META;
        let own = window.input.schema().columns().into_iter().zip(schema.fields().iter().skip(META));
        let mut expressions: Vec<(Expr, String)> = own.map(|(column, field)| (Expr::Column(column), field.name().clone())).collect();
        for (i, e) in params.partition_by.iter().chain(params.order_by.iter().map(|s| &s.expr)).enumerate() {
            expressions.push((e.clone(), format!("key {i}: {e}")));
        }
        let prepared = self.project(input, &window.input, expressions)?;
        let prepared_schema = self.graph.schema(prepared.node).clone();
        for field in &prepared_schema.fields()[META + columns..] {
            check_key(field)?;
        }
        let first = META + columns;
        let partition: Vec<usize> = (first..first + params.partition_by.len()).collect();
        let order = params.order_by.iter().enumerate().map(|(i, Sort { asc, nulls_first, .. })| SortKey {
            column: first + params.partition_by.len() + i,
            options: SortOptions { descending: !asc, nulls_first: *nulls_first },
        });
        let order: Vec<SortKey> = order.collect();
        let number = Arc::new(Field::new(window.schema.field(columns).name(), DataType::UInt64, true));
        let schema = with_meta(schema.fields()[META..].iter().chain([&number]));
        let exchange = vec![Some(partition.clone())];
        let what = format!("{expression}");
        if input.flow.window.is_some() && !input.flow.updating {
            if !partition.iter().any(|c| *prepared_schema.field(*c).data_type() == window_type()) {
                return Err(StageError::new("ROW_NUMBER() over rows of windows must have the window in its PARTITION BY")
                    .help("write PARTITION BY window, …"));
            }
            let kind = Kind::RowNumber { columns, partition, order };
            let node = Node { kind, inputs: vec![prepared.node], exchange, schema, label: what };
            return Ok(Lowered { node: self.graph.add(node), flow: input.flow });
        }
        let Some(limit) = limit else {
            return Err(StageError::new("ROW_NUMBER() over rows of no window needs a condition on the number")
                .help("add WHERE row_number <= n outside, or PARTITION BY a window"));
        };
        for field in prepared_schema.fields() {
            check_key(field)?;
        }
        let kind = Kind::TopRows { columns, partition, order, limit, retracts: input.flow.updating, ttl: self.ttl };
        let label = format!("first {limit} rows, updating, {}: {what}", ttl_label(self.ttl));
        let node = Node { kind, inputs: vec![prepared.node], exchange, schema, label };
        Ok(Lowered { node: self.graph.add(node), flow: Flow { updating: true, ..APPEND } })
    }
}

/// A condition over the rows of a projection as one over the rows below it, if that only gives columns other names.
fn renamed(condition: &Expr, projection: &Projection) -> Option<Expr> {
    let mut below: HashMap<&str, Expr> = HashMap::new();
    for (field, expression) in projection.schema.fields().iter().zip(&projection.expr) {
        let column = expression.clone().unalias();
        if !matches!(column, Expr::Column(_)) {
            return None;
        }
        below.insert(field.name(), column);
    }
    let same = condition.clone().transform(|e| {
        Ok(match &e {
            Expr::Column(column) => match below.get(column.name.as_str()) {
                Some(other) => Transformed::yes(other.clone()),
                None => Transformed::no(e),
            },
            _ => Transformed::no(e),
        })
    });
    same.ok().map(|same| same.data)
}

/// The largest row number that a condition lets through.
fn row_limit(condition: &Expr, window: &WindowPlan) -> Option<u64> {
    let name = window.schema.fields().last()?.name().clone();
    let is_number = |e: &Expr| match e {
        Expr::Column(column) => column.name == name,
        Expr::Cast(cast) => matches!(cast.expr.as_ref(), Expr::Column(column) if column.name == name),
        _ => false,
    };
    let literal = |e: &Expr| match e {
        Expr::Literal(value, _) => match value.cast_to(&DataType::UInt64) {
            Ok(ScalarValue::UInt64(number)) => number,
            _ => None,
        },
        _ => None,
    };
    let parts = datafusion::logical_expr::utils::split_conjunction(condition);
    let limits = parts.into_iter().filter_map(|part| match part {
        Expr::BinaryExpr(binary) => {
            let (symbol, value) = if is_number(&binary.left) {
                (binary.op, literal(&binary.right)?)
            } else if is_number(&binary.right) {
                (binary.op.swap()?, literal(&binary.left)?)
            } else {
                return None;
            };
            match symbol {
                Symbol::Eq | Symbol::LtEq => Some(value),
                Symbol::Lt => Some(value.saturating_sub(1)),
                _ => None,
            }
        }
        _ => None,
    });
    limits.min()
}

/// An aggregate whose arguments are columns, which are added to `columns` where they are not there yet.
fn pull_arguments(call: &Expr, columns: &mut Vec<(Expr, String)>) -> Lower<Expr> {
    let mut pull = |e: &Expr| -> Expr {
        if matches!(e, Expr::Literal(..)) {
            return e.clone();
        }
        let name = match columns.iter().find(|(known, name)| known == e && name.starts_with("argument")) {
            Some((_, name)) => name.clone(),
            None => {
                let name = format!("argument {}: {e}", columns.len());
                columns.push((e.clone(), name.clone()));
                name
            }
        };
        Expr::Column(Column::new_unqualified(name))
    };
    let rewritten = call.clone().transform_down(|e| match e {
        Expr::AggregateFunction(AggregateFunction { func, mut params }) => {
            params.args = params.args.iter().map(&mut pull).collect();
            params.filter = params.filter.map(|f| Box::new(pull(&f)));
            for sort in &mut params.order_by {
                sort.expr = pull(&sort.expr);
            }
            let function = Expr::AggregateFunction(AggregateFunction { func, params });
            Ok(Transformed::new(function, true, TreeNodeRecursion::Jump))
        }
        other => Ok(Transformed::no(other)),
    });
    Ok(rewritten.map_err(|e| StageError::new(e.strip_backtrace()))?.data)
}

pub(crate) fn compile(expression: &Expr, names: &DFSchema) -> Lower<Arc<dyn PhysicalExpr>> {
    if expression.exists(|e| Ok(matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)))).unwrap_or(false) {
        return Err(scalar_subquery());
    }
    if let Some(function) = first_async(expression) {
        return Err(StageError::new(format!("async function {function}() cannot stand here"))
            .help("call it in the SELECT, WHERE or GROUP BY of a query, and use what comes out"));
    }
    create_physical_expr(expression, names, &ExecutionProps::new(), &PhysicalPlanningContext::default())
        .map_err(|e| StageError::new(e.strip_backtrace()))
}

/// The function, if an expression calls an asynchronous one.
fn async_function(expression: &Expr) -> Option<&AsyncFunction> {
    match expression {
        Expr::ScalarFunction(call) => call.func.inner().downcast_ref::<AsyncFunction>(),
        _ => None,
    }
}

fn arguments_of(expression: &Expr) -> &[Expr] {
    match expression {
        Expr::ScalarFunction(call) => &call.args,
        _ => &[],
    }
}

/// The name of an asynchronous function that is called somewhere in an expression.
fn first_async(expression: &Expr) -> Option<String> {
    let mut found = None;
    let visited = expression.apply(|e| {
        found = async_function(e).map(|function| function.name().to_owned());
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    found
}

fn scalar_subquery() -> StageError {
    StageError::new("a query in the place of a value is not supported").help("join with that query instead")
}

fn column_expression(schema: &SchemaRef, column: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(datafusion::physical_expr::expressions::Column::new(schema.field(column).name(), column))
}

fn df_schema(schema: &SchemaRef) -> Lower<DFSchema> {
    DFSchema::try_from(schema.clone()).map_err(|e| StageError::new(e.strip_backtrace()))
}

/// Keys are kept, compared and ordered.
fn check_key(field: &Field) -> Lower<()> {
    if can_be_ordered(field.data_type()) {
        return Ok(());
    }
    Err(StageError::new(format!("{} has type {}, which cannot be compared", field.name(), field.data_type()))
        .help("take its parts, or cast it to TEXT"))
}

fn describe(keys: &[Expr], calls: &[Expr]) -> String {
    let list = |all: &[Expr]| all.iter().map(|e| e.to_string()).collect::<Vec<_>>().join(", ");
    let keys = if keys.is_empty() { String::new() } else { format!(", {}", list(keys)) };
    if calls.is_empty() { keys } else { format!("{keys}: {}", list(calls)) }
}

fn name_of(plan: &LogicalPlan) -> String {
    plan.display().to_string().split([':', ' ']).next().unwrap_or_default().to_owned()
}
