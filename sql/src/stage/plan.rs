//! From statements to logical plans: DataFusion's planner and chosen rules of its optimizer over a stage's tables.
//!
//! Hidden columns there are none: event time, place and retraction travel beside a row (see [`crate::rows`]), so that `SELECT *` and the optimizer see
//! what the user wrote. A `GROUP BY` with a window is wrapped into [`WindowedAggregate`], which no rule of the optimizer reaches into.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, TableReference};
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::context::SessionState;
use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion::logical_expr::{
    AggregateUDF, EmptyRelation, Expr, Extension, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource,
    UserDefinedLogicalNodeCore, Volatility, WindowUDF,
};
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_filter::EliminateFilter;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::prelude::SessionConfig;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{self, Query};

use super::catalog::{self, nearest};
use super::error::{Position, StageError};
use super::functions;
use super::windows::{self, Window};
use crate::udf::{AsyncFunction, Function, Udfs};

/// A table as the planner sees it.
pub(crate) struct TableSchema {
    schema: SchemaRef,
    view: Option<LogicalPlan>,
}

impl TableSource for TableSchema {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
    fn get_logical_plan(&self) -> Option<std::borrow::Cow<'_, LogicalPlan>> {
        self.view.as_ref().map(std::borrow::Cow::Borrowed)
    }
}

/// Functions, types and the tables so far.
pub(crate) struct Planner {
    state: SessionState,
    options: ConfigOptions,
    tables: BTreeMap<String, Arc<TableSchema>>,
    /// Names that can be written to, and not read.
    sinks: HashSet<String>,
    types: Arc<dyn TypePlanner>,
}

impl Planner {
    /// With DataFusion's functions, those of [`super::functions`], and one's own.
    pub fn new(udfs: &Udfs) -> Result<Planner, StageError> {
        let mut state =
            SessionStateBuilder::new().with_config(SessionConfig::new().with_target_partitions(1)).with_default_features().build();
        let register = |state: &mut SessionState| -> PlanResult<()> {
            for function in windows::functions().into_iter().chain(functions::functions()) {
                state.register_udf(function)?;
            }
            state.register_expr_planner(functions::operators())
        };
        register(&mut state).map_err(|e| StageError::new(e.strip_backtrace()))?;
        for (name, function) in udfs.functions() {
            if state.scalar_functions().contains_key(name) || state.aggregate_functions().contains_key(name) {
                return Err(
                    StageError::new(format!("there is a function {name}() already")).help("take another name for that of one's own")
                );
            }
            let registered = match function {
                Function::Scalar(function) => state.register_udf(function.clone()).map(|_| ()),
                Function::Aggregate(function) => state.register_udaf(function.clone()).map(|_| ()),
            };
            registered.map_err(|e| StageError::new(e.strip_backtrace()))?;
        }
        let options = state.config_options().as_ref().clone();
        Ok(Planner { state, options, tables: BTreeMap::new(), sinks: HashSet::new(), types: Arc::new(Types) })
    }

    /// Adds a table of rows.
    pub fn add_table(&mut self, name: &str, schema: SchemaRef) {
        self.tables.insert(name.to_owned(), Arc::new(TableSchema { schema, view: None }));
    }

    /// Adds what stands for a query.
    pub fn add_view(&mut self, name: &str, plan: LogicalPlan) {
        let schema = Arc::new(plan.schema().as_arrow().clone());
        self.tables.insert(name.to_owned(), Arc::new(TableSchema { schema, view: Some(plan) }));
    }

    /// Says that a name can be written to, and not read.
    pub fn add_sink(&mut self, name: &str) {
        self.sinks.insert(name.to_owned());
    }

    /// Whether a name is taken by something to read.
    pub fn has_table(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }

    /// Plans a query, as it stands.
    pub fn query(&self, query: Query, position: Position) -> Result<LogicalPlan, StageError> {
        let planner = SqlToRel::new_with_options(self, self.parser_options());
        let plan = planner
            .sql_statement_to_plan(ast::Statement::Query(Box::new(query)))
            .map_err(|error| self.explain_error(error).at(position))?;
        check_deterministic(&plan).map_err(|e| e.at(position))?;
        Ok(plan)
    }

    /// Plans one expression over the columns of a table.
    pub fn expression(&self, expression: ast::Expr, schema: &DFSchema, position: Position) -> Result<Expr, StageError> {
        let planner = SqlToRel::new_with_options(self, self.parser_options());
        let expression =
            planner.sql_to_expr(expression, schema, &mut PlannerContext::new()).map_err(|error| self.explain_error(error).at(position))?;
        // The rules work on plans: the expression goes through them in one.
        let source = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(schema.clone()) });
        let source = LogicalPlanBuilder::from(source);
        let plan = source.project([expression.alias("value")]).and_then(|plan| plan.build());
        let plan = plan.and_then(|plan| self.state.analyzer().execute_and_check(plan, &self.options, |_, _| {}));
        let plan = plan.map_err(|error| self.explain_error(error).at(position))?;
        check_deterministic(&plan).map_err(|e| e.at(position))?;
        match plan {
            LogicalPlan::Projection(projection) => Ok(projection.expr[0].clone().unalias()),
            _ => Err(StageError::new("the expression cannot be planned").at(position)),
        }
    }

    fn parser_options(&self) -> ParserOptions {
        ParserOptions::default().with_collect_spans(true).with_map_string_types_to_utf8view(false)
    }

    /// Types, windows, and the rules of the optimizer that keep what a stream needs.
    pub fn finish(&self, plan: LogicalPlan, position: Position) -> Result<LogicalPlan, StageError> {
        let wrong = |error: DataFusionError| self.explain_error(error).at(position);
        let plan = self.state.analyzer().execute_and_check(plan, &self.options, |_, _| {}).map_err(wrong)?;
        let mut window_error = None;
        let plan = plan.transform_up_with_subqueries(|plan| wrap_window(plan, &mut window_error)).map_err(wrong)?.data;
        if let Some(message) = window_error {
            return Err(StageError::new(message).at(position));
        }
        check_markers(&plan).map_err(|e| e.at(position))?;
        let rules: Vec<Arc<dyn datafusion::optimizer::OptimizerRule + Send + Sync>> = vec![
            Arc::new(SimplifyExpressions::new()),
            Arc::new(ReplaceDistinctWithAggregate::new()),
            Arc::new(DecorrelatePredicateSubquery::new()),
            Arc::new(ExtractEquijoinPredicate::new()),
            Arc::new(EliminateFilter::new()),
            Arc::new(EliminateCrossJoin::new()),
            Arc::new(EliminateOuterJoin::new()),
            Arc::new(PushDownFilter::new()),
            Arc::new(OptimizeProjections::new()),
        ];
        let context = OptimizerContext::new_with_config_options(Arc::new(self.options.clone()))
            .without_query_execution_start_time()
            .with_skip_failing_rules(false);
        Optimizer::with_rules(rules).optimize(plan, &context, |_, _| {}).map_err(wrong)
    }

    /// A planner's error in words of the stage, with the place that it names.
    fn explain_error(&self, error: DataFusionError) -> StageError {
        let position = error.diagnostic().and_then(|d| d.span).map(|span| Position { line: span.start.line, column: span.start.column });
        let text = error.strip_backtrace();
        let mut message = text.as_str();
        // Each layer of the planner puts its own name before the message.
        for prefix in [
            "Error during planning: ",
            "Schema error: ",
            "SQL error: ",
            "This feature is not implemented: ",
            "type_coercion\ncaused by\n",
            "Execution error: ",
        ] {
            message = message.strip_prefix(prefix).unwrap_or(message);
        }
        let (message, help) = self.reword(message);
        let mut explained = StageError::new(message);
        if let Some(help) = help {
            explained = explained.help(help);
        }
        position.map_or(explained.clone(), |position| explained.at(position))
    }

    fn reword(&self, message: &str) -> (String, Option<String>) {
        if let Some(name) = message.strip_prefix("no table `").and_then(|rest| rest.strip_suffix('`')) {
            let names: Vec<&str> = self.tables.keys().map(String::as_str).collect();
            if self.sinks.contains(name) {
                let help = "read what is inserted into it: name the query with CREATE VIEW and insert from that".to_owned();
                return (format!("table `{name}` is written to, not read"), Some(help));
            }
            return (format!("there is no table `{name}`"), Some(nearest(name, &names)));
        }
        if let Some(rest) = message.strip_prefix("No field named ") {
            let (name, valid) = rest.split_once(".\n").unwrap_or((rest.trim_end_matches('.'), ""));
            let help = valid.strip_prefix("Valid fields are ").map(|names| format!("there are: {}", names.trim_end_matches('.')));
            return (format!("there is no column {name}"), help);
        }
        if let Some(rest) = message.strip_prefix("Invalid function '") {
            let (name, similar) = rest.split_once('\'').unwrap_or((rest, ""));
            let similar = similar.split('\'').nth(1).map(|similar| format!("is it {similar}()? ")).unwrap_or_default();
            return (
                format!("there is no function {name}()"),
                Some(format!("{similar}one of your own goes into the folder udfs, as a Rust file with #[udf]")),
            );
        }
        if message.contains("DISTINCT ON") {
            return (message.to_owned(), Some("number the rows with ROW_NUMBER() and keep the first".to_owned()));
        }
        (message.to_owned(), None)
    }
}

/// A stage's types in `CAST`, too.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> PlanResult<Option<FieldRef>> {
        // What is not known here DataFusion may know.
        let known = catalog::data_type(sql_type).ok();
        Ok(known.map(|data_type| Arc::new(arrow::datatypes::Field::new("", data_type, true))))
    }
}

impl ContextProvider for Planner {
    fn get_table_source(&self, name: TableReference) -> PlanResult<Arc<dyn TableSource>> {
        let TableReference::Bare { table } = &name else {
            return Err(DataFusionError::Plan(format!("`{name}` has more than one part; names of tables have no schema before them")));
        };
        match self.tables.get(table.as_ref()) {
            Some(table) => Ok(table.clone()),
            None => Err(DataFusionError::Plan(format!("no table `{table}`"))),
        }
    }
    fn get_table_function_source(&self, name: &str, _arguments: Vec<Expr>) -> PlanResult<Arc<dyn TableSource>> {
        let help = if windows::is_window(name) {
            "; GROUP BY the window instead: SELECT tumble(INTERVAL '1 minute') AS window, count(*) … GROUP BY window"
        } else {
            ""
        };
        Err(DataFusionError::Plan(format!("{name}() in FROM is not supported{help}")))
    }
    fn create_cte_work_table(&self, name: &str, _schema: SchemaRef) -> PlanResult<Arc<dyn TableSource>> {
        Err(DataFusionError::Plan(format!("WITH RECURSIVE `{name}` is not supported: a stream has no fixed point")))
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(self.types.clone())
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(name).cloned()
    }
    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }
    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }
    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }
    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }
    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }
    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// A schema for the planner of expressions.
pub(crate) fn df_schema(schema: &Schema) -> Result<DFSchema, StageError> {
    DFSchema::try_from(schema.clone()).map_err(|e| StageError::new(e.strip_backtrace()))
}

/// Refuses functions that give another value each time.
fn check_deterministic(plan: &LogicalPlan) -> Result<(), StageError> {
    let mut found = None;
    let visited = plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expression| {
            expression.apply(|e| {
                if let Expr::ScalarFunction(f) = e
                    && f.func.signature().volatility != Volatility::Immutable
                    && !windows::is_window(f.func.name())
                    && f.func.inner().downcast_ref::<AsyncFunction>().is_none()
                {
                    found = Some(f.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    match found {
        None => Ok(()),
        Some(function) => {
            Err(StageError::new(format!("{function}() gives another value each time, and a replay must come out as the first run did"))
                .help("use the row's own event time"))
        }
    }
}

/// Refuses windows that are still somewhere else than in a GROUP BY.
fn check_markers(plan: &LogicalPlan) -> Result<(), StageError> {
    let mut found = None;
    let visited = plan.apply_with_subqueries(|plan| {
        if matches!(plan, LogicalPlan::Extension(_)) {
            return Ok(TreeNodeRecursion::Continue);
        }
        plan.apply_expressions(|expression| {
            expression.apply(|e| {
                if let Expr::ScalarFunction(f) = e
                    && windows::is_window(f.func.name())
                {
                    found = Some(f.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    match found {
        None => Ok(()),
        Some(function) => Err(StageError::new(format!("{function}() may only stand in the SELECT and GROUP BY of one query"))
            .help(format!("SELECT {function}(…) AS window, count(*) … GROUP BY window"))),
    }
}

fn wrap_window(plan: LogicalPlan, error: &mut Option<String>) -> PlanResult<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
    let windows = aggregate.group_expr.iter().enumerate().filter_map(|(i, e)| windows::window_of(e).map(|w| (i, w)));
    let windows: Vec<_> = windows.collect();
    let (index, window) = match windows.as_slice() {
        [] => return Ok(Transformed::no(plan)),
        [(index, Ok(window))] => (*index, *window),
        [(_, Err(message))] => {
            error.get_or_insert_with(|| message.clone());
            return Ok(Transformed::no(plan));
        }
        _ => {
            error.get_or_insert_with(|| "there is more than one window in a GROUP BY".to_owned());
            return Ok(Transformed::no(plan));
        }
    };
    let group_expr = aggregate.group_expr.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, e)| e.clone()).collect();
    let node = WindowedAggregate {
        input: aggregate.input.as_ref().clone(),
        window,
        window_index: index,
        group_expr,
        aggr_expr: aggregate.aggr_expr.clone(),
        schema: aggregate.schema.clone(),
    };
    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(node) })))
}

/// An aggregate over windows of event time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowedAggregate {
    pub input: LogicalPlan,
    pub window: Window,
    /// Which column of the output the window is.
    pub window_index: usize,
    /// Without the window.
    pub group_expr: Vec<Expr>,
    pub aggr_expr: Vec<Expr>,
    pub schema: DFSchemaRef,
}

impl PartialOrd for WindowedAggregate {
    fn partial_cmp(&self, _other: &Self) -> Option<Ordering> {
        None
    }
}

impl UserDefinedLogicalNodeCore for WindowedAggregate {
    fn name(&self) -> &str {
        "WindowedAggregate"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        self.group_expr.iter().chain(&self.aggr_expr).cloned().collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowedAggregate: {}", self.window)
    }
    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> PlanResult<Self> {
        let aggr_expr = exprs.split_off(self.group_expr.len());
        let input = inputs.pop().ok_or_else(|| DataFusionError::Internal("an aggregate has an input".to_owned()))?;
        Ok(WindowedAggregate { input, group_expr: exprs, aggr_expr, ..self.clone() })
    }
    fn necessary_children_exprs(&self, _output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut indices = Vec::new();
        for expression in self.group_expr.iter().chain(&self.aggr_expr) {
            for column in expression.column_refs() {
                indices.push(self.input.schema().maybe_index_of_column(column)?);
            }
        }
        indices.sort_unstable();
        indices.dedup();
        Some(vec![indices])
    }
}
