//! Stages: SQL files in Arroyo's dialect, from text to a graph of operators.

pub mod catalog;
mod dialect;
pub mod error;
pub mod export;
mod functions;
mod lower;
mod parse;
mod plan;
pub mod windows;

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_expr::PhysicalExpr;
use orderflow_operators::epoch::Micros;

pub(crate) use dialect::StageDialect;
pub use error::{Position, StageError};

use crate::graph::{Graph, SinkEdge};
use crate::udf::Udfs;
use catalog::{Connector, Format, Role, Table, nearest};
use lower::Lowering;
use parse::{CreateTable, Statement, StatementKind};
use plan::{Planner, df_schema};

/// How long state of updating operators is kept, unless `SET updating_ttl` says otherwise: a day, as in Arroyo.
const TTL: Micros = 86_400_000_000;

/// So deep a stack a plan may need: expressions are trees, and a chain of operators is as deep as it is long.
const PLANNING_STACK_BYTES: usize = 256 << 20;

/// A stream that stages can name without declaring it.
#[derive(Clone, Debug)]
pub struct NamedStream {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// Whether its rows can be taken back.
    pub updating: bool,
}

/// A planned stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Declared tables, by name.
    pub tables: Vec<Table>,
    /// The operators.
    pub graph: Graph,
    /// Tables that rows come from, with what is computed as they are read.
    pub inputs: Vec<Input>,
}

/// A declared table that rows come from.
#[derive(Clone, Debug)]
pub struct Input {
    /// The table.
    pub table: Table,
    /// The columns that are read.
    pub read: SchemaRef,
    /// All columns, in the order of the table: read ones by their place in `read`, generated ones by an expression over `read`.
    pub(crate) columns: Vec<InputColumn>,
    /// Event time, over the table's columns; none: an epoch's sealing time.
    pub(crate) event_time: Option<usize>,
    /// How far event time has come, over the table's columns.
    pub(crate) watermark: Option<Arc<dyn PhysicalExpr>>,
}

#[derive(Clone, Debug)]
pub(crate) enum InputColumn {
    Read(usize),
    Computed(Arc<dyn PhysicalExpr>),
}

impl Stage {
    /// Plans the text of a stage that may read `streams` besides the tables that it declares.
    ///
    /// # Errors
    /// If it is not a stage: with the place in the text, and what to write instead.
    pub fn plan(text: &str, streams: &[NamedStream]) -> Result<Stage, StageError> {
        Stage::plan_with(text, streams, &Udfs::default())
    }

    /// The same, for a stage that may call functions of one's own.
    ///
    /// # Errors
    /// As [`plan`](Stage::plan).
    pub fn plan_with(text: &str, streams: &[NamedStream], udfs: &Udfs) -> Result<Stage, StageError> {
        let planned = std::thread::scope(|scope| {
            let plan = || std::panic::catch_unwind(AssertUnwindSafe(|| plan(text, streams, udfs)));
            let thread = std::thread::Builder::new().name("plan".to_owned()).stack_size(PLANNING_STACK_BYTES).spawn_scoped(scope, plan);
            thread.map_err(|e| StageError::new(format!("no thread to plan with: {e}"))).map(|thread| thread.join())
        })?;
        match planned {
            Ok(Ok(planned)) => planned.map_err(|error| error.in_text(text)),
            _ => Err(StageError::new("the planner does not know what to make of this stage")
                .help("this is a bug, please report it with the stage")),
        }
    }

    /// A declared table.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The streams of the job that it reads.
    pub fn named_streams(&self) -> impl Iterator<Item = &str> {
        self.graph.sources().filter(|name| !self.inputs.iter().any(|input| input.table.name == *name))
    }
}

/// A query and where its rows go.
struct Query {
    table: String,
    plan: LogicalPlan,
    position: Position,
}

struct Builder {
    planner: Planner,
    streams: Vec<NamedStream>,
    tables: Vec<Table>,
    queries: Vec<Query>,
    /// Names that some INSERT writes to.
    written: HashSet<String>,
    ttl: Micros,
}

fn plan(text: &str, streams: &[NamedStream], udfs: &Udfs) -> Result<Stage, StageError> {
    let statements = parse::parse(text)?;
    let written = statements.iter().filter_map(|s| match &s.kind {
        StatementKind::Insert { table, .. } => Some(table.clone()),
        _ => None,
    });
    let mut builder = Builder {
        planner: Planner::new(udfs)?,
        streams: streams.to_vec(),
        tables: Vec::new(),
        queries: Vec::new(),
        written: written.collect(),
        ttl: TTL,
    };
    for stream in streams {
        builder.planner.add_table(&stream.name, without_zone(&stream.schema));
    }
    for Statement { position, kind } in statements {
        builder.statement(position, kind).map_err(|e| e.at(position))?;
    }
    builder.finish()
}

/// A stream's columns with times as stages have them: microseconds, UTC is meant.
pub fn without_zone(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        arrow::datatypes::DataType::Timestamp(..) => Arc::new(field.as_ref().clone().with_data_type(catalog::timestamp())),
        _ => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Builder {
    fn statement(&mut self, position: Position, kind: StatementKind) -> Result<(), StageError> {
        match kind {
            StatementKind::CreateTable(created) => self.create_table(*created, position),
            StatementKind::CreateView { name, columns, query } => {
                self.check_new(&name, position)?;
                let mut plan = self.planner.query(*query, position)?;
                if !columns.is_empty() {
                    plan = self.rename(plan, &columns, &format!("view `{name}`"))?;
                }
                self.planner.add_view(&name, plan);
                Ok(())
            }
            StatementKind::Query(query) => {
                let plan = self.planner.query(*query, position)?;
                self.queries.push(Query { table: String::new(), plan, position });
                Ok(())
            }
            StatementKind::Insert { table, table_position, columns, query } => {
                let plan = self.planner.query(*query, position)?;
                self.insert(&table, &columns, plan, position).map_err(|e| e.at(table_position))
            }
            StatementKind::Set { name, value } => self.set(&name, &value),
        }
    }

    fn check_new(&self, name: &str, position: Position) -> Result<(), StageError> {
        let is_stream = self.streams.iter().any(|s| s.name == name);
        if self.tables.iter().any(|t| t.name == name) || (self.planner.has_table(name) && !is_stream) {
            return Err(StageError::new(format!("a second table or view `{name}`")).at(position).help("take another name"));
        }
        Ok(())
    }

    fn rename(&self, plan: LogicalPlan, names: &[String], what: &str) -> Result<LogicalPlan, StageError> {
        let columns = plan.schema().columns();
        if columns.len() != names.len() {
            return Err(StageError::new(format!("{what} names {} columns, its query has {}", names.len(), columns.len())));
        }
        let renamed = columns.into_iter().zip(names).map(|(column, name)| Expr::Column(column).alias(name));
        LogicalPlanBuilder::from(plan).project(renamed).and_then(|b| b.build()).map_err(|e| StageError::new(e.strip_backtrace()))
    }

    fn create_table(&mut self, created: CreateTable, position: Position) -> Result<(), StageError> {
        let mut table = Table::from_statement(created, position)?;
        self.check_new(&table.name, position)?;
        let is_written = table.role == Some(Role::Sink) || table.role.is_none() && self.written.contains(&table.name);
        if table.connector == Connector::Stream && !is_written {
            self.stream_table(&table)?;
            self.tables.push(table);
            return Ok(());
        }
        let role = table.role.unwrap_or(if self.written.contains(&table.name) { Role::Sink } else { Role::Source });
        table.role = Some(role);
        match (table.connector, role) {
            (Connector::Memory, _) if !self.written.contains(&table.name) => {
                return Err(StageError::new(format!("nothing is inserted into table `{}`, and it has no connector", table.name))
                    .at(position)
                    .help("add WITH (connector = …), or INSERT INTO it before it is read"));
            }
            // Readable from its INSERT on.
            (Connector::Memory, _) => {}
            (_, Role::Sink) => self.planner.add_sink(&table.name),
            (_, Role::Source | Role::Lookup) => {
                let Some(columns) = table.columns.as_deref().filter(|c| !c.is_empty()) else {
                    return Err(StageError::new(format!("table `{}` is read from and has no columns", table.name))
                        .at(position)
                        .help("declare its columns"));
                };
                if role == Role::Lookup && !columns.iter().any(|c| c.primary_key) {
                    return Err(StageError::new(format!("lookup table `{}` has no primary key", table.name))
                        .at(position)
                        .help("add PRIMARY KEY to the column that rows are looked up by"));
                }
                if !table.connector_can_read() {
                    return Err(StageError::new(format!("connector '{}' cannot be read from", table.connector.name())).at(position));
                }
                if table.format == Format::DebeziumJson && !columns.iter().any(|c| c.primary_key) {
                    return Err(StageError::new(format!("table `{}` is of changes and has no primary key", table.name))
                        .at(position)
                        .help("add PRIMARY KEY to the columns that tell its rows apart"));
                }
                if table.is_unstructured() && (columns.len() != 1 || table.format != Format::Json) {
                    return Err(StageError::new("json.unstructured takes one column").at(position).help("declare value JSON alone"));
                }
                self.planner.add_table(&table.name, table.schema());
            }
        }
        self.tables.push(table);
        Ok(())
    }

    /// A table that stands for one of the job's streams: some of its columns under its own name.
    fn stream_table(&mut self, table: &Table) -> Result<(), StageError> {
        let name = table.option("stream").unwrap_or(&table.name);
        let Some(stream) = self.streams.iter().find(|s| s.name == name) else {
            let names: Vec<&str> = self.streams.iter().map(|s| s.name.as_str()).collect();
            let error = StageError::new(format!("there is no stream `{name}`"));
            return Err(error.help(if names.is_empty() {
                "no job is here whose streams could be read".to_owned()
            } else {
                nearest(name, &names)
            }));
        };
        let schema = without_zone(&stream.schema);
        let source = Arc::new(datafusion::logical_expr::logical_plan::builder::LogicalTableSource::new(schema.clone()));
        let scan = LogicalPlanBuilder::scan(stream.name.clone(), source, None);
        let mut columns = Vec::new();
        for column in table.columns.iter().flatten() {
            let Ok(field) = schema.field_with_name(&column.name) else {
                let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                let error = StageError::new(format!("stream `{name}` has no column `{}`", column.name));
                return Err(error.at(column.position).help(nearest(&column.name, &names)));
            };
            let expression = Expr::Column(datafusion::common::Column::new(Some(stream.name.clone()), field.name()));
            columns.push((expression, column.data_type.clone(), column.name.clone()));
        }
        let plan = scan.and_then(|scan| {
            if columns.is_empty() {
                return scan.build();
            }
            let projected = columns.into_iter().map(|(e, t, name)| Ok(e.cast_to(&t, scan.schema())?.alias(name)));
            let projected = projected.collect::<datafusion::error::Result<Vec<_>>>()?;
            scan.project(projected)?.build()
        });
        self.planner.add_view(&table.name, plan.map_err(|e| StageError::new(e.strip_backtrace()))?);
        Ok(())
    }

    fn insert(&mut self, name: &str, columns: &[String], plan: LogicalPlan, position: Position) -> Result<(), StageError> {
        let Some(table) = self.tables.iter().find(|t| t.name == name) else {
            let names: Vec<&str> = self.tables.iter().map(|t| t.name.as_str()).collect();
            if self.planner.has_table(name) {
                return Err(StageError::new(format!("`{name}` is read from, not written to"))
                    .help("declare a table for the rows with CREATE TABLE"));
            }
            return Err(StageError::new(format!("there is no table `{name}` to insert into")).help(if names.is_empty() {
                "declare it with CREATE TABLE".to_owned()
            } else {
                nearest(name, &names)
            }));
        };
        if table.role != Some(Role::Sink) && table.connector != Connector::Memory {
            return Err(
                StageError::new(format!("table `{name}` is read from, not written to")).help("write type = 'sink' in its declaration")
            );
        }
        let plan = match &table.columns {
            None => plan,
            Some(declared) => fit(plan, declared, columns, name)?,
        };
        if table.connector == Connector::Memory {
            if self.planner.has_table(name) {
                return Err(StageError::new(format!("a second INSERT INTO `{name}`, which is in memory")).help("UNION ALL the two queries"));
            }
            self.planner.add_view(name, plan);
        } else {
            self.queries.push(Query { table: name.to_owned(), plan, position });
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), StageError> {
        if name != "updating_ttl" {
            return Err(StageError::new(format!("there is no setting `{name}`")).help("there is: updating_ttl"));
        }
        let wrong = || StageError::new(format!("'{value}' is no length of time")).help("write SET updating_ttl = '1 hour'");
        let parsed = datafusion::common::ScalarValue::from(value)
            .cast_to(&arrow::datatypes::DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano))
            .map_err(|_| wrong())?;
        match parsed {
            datafusion::common::ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 && i.days >= 0 && i.nanoseconds >= 0 => {
                self.ttl = i64::from(i.days).saturating_mul(86_400_000_000).saturating_add(i.nanoseconds / 1_000);
            }
            _ => return Err(wrong()),
        }
        if self.ttl <= 0 {
            return Err(wrong());
        }
        Ok(())
    }

    fn finish(self) -> Result<Stage, StageError> {
        let Builder { planner, streams, tables, queries, ttl, .. } = self;
        if queries.is_empty() {
            return Err(StageError::new("nothing comes out of the stage").help("add INSERT INTO a sink SELECT …"));
        }
        let of = |name: &str| tables.iter().find(|t| t.name == name);
        let is_lookup = |name: &str| of(name).is_some_and(|t| t.role == Some(Role::Lookup));
        let is_updating = |name: &str| match of(name) {
            Some(table) if table.connector != Connector::Stream => table.format == Format::DebeziumJson,
            _ => streams.iter().any(|stream| stream.name == name && stream.updating),
        };
        let mut lowering = Lowering::new(&is_lookup, &is_updating, ttl);
        for Query { table, plan, position } in queries {
            let plan = planner.finish(plan, position)?;
            let (node, updating) = lowering.query(&plan).map_err(|e| e.at(position))?;
            if let Some(sink) = of(&table)
                && updating
                && sink.format != Format::DebeziumJson
                && matches!(sink.connector, Connector::Kafka | Connector::SingleFile | Connector::Filesystem)
            {
                return Err(StageError::new(format!("rows that can be taken back cannot be written to `{table}`"))
                    .at(position)
                    .help("declare it with format = 'debezium_json', or GROUP BY a window"));
            }
            lowering.graph.sinks.push(SinkEdge { table, node, updating });
        }
        let mut graph = lowering.graph;
        graph.fuse();
        let inputs = tables.iter().filter(|t| {
            t.connector != Connector::Stream && (graph.sources().any(|s| s == t.name) || graph.lookup_tables().any(|s| s == t.name))
        });
        let inputs = inputs.map(|table| input(&planner, table)).collect::<Result<Vec<_>, _>>()?;
        Ok(Stage { tables, graph, inputs })
    }
}

/// The query's columns as those of the table, in order or by the names that the INSERT gives.
fn fit(plan: LogicalPlan, declared: &[catalog::Column], names: &[String], table: &str) -> Result<LogicalPlan, StageError> {
    let columns = plan.schema().columns();
    let expected = if names.is_empty() { declared.len() } else { names.len() };
    if columns.len() != expected {
        let of = if names.is_empty() { format!("table `{table}` has") } else { "the INSERT names".to_owned() };
        return Err(StageError::new(format!("{of} {expected} columns, its query {}", columns.len()))
            .help(format!("the table's columns are: {}", declared.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", "))));
    }
    if let Some(unknown) = names.iter().find(|n| !declared.iter().any(|c| c.name == **n)) {
        let known: Vec<&str> = declared.iter().map(|c| c.name.as_str()).collect();
        return Err(StageError::new(format!("table `{table}` has no column `{unknown}`")).help(nearest(unknown, &known)));
    }
    let fitted = declared.iter().enumerate().map(|(i, column)| {
        let at = if names.is_empty() { Some(i) } else { names.iter().position(|n| *n == column.name) };
        let expression = match at {
            Some(at) => Expr::Column(columns[at].clone()),
            None => datafusion::prelude::lit(datafusion::common::ScalarValue::Null),
        };
        let cast = expression.cast_to(&column.data_type, plan.schema()).map_err(|_| {
            let found = at.and_then(|at| plan.schema().fields().get(at)).map(|f| f.data_type().to_string()).unwrap_or_default();
            StageError::new(format!("column `{}` of table `{table}` has type {}, the query gives {found}", column.name, column.data_type))
                .help("CAST it")
        })?;
        Ok(cast.alias(&column.name))
    });
    let fitted = fitted.collect::<Result<Vec<_>, StageError>>()?;
    LogicalPlanBuilder::from(plan).project(fitted).and_then(|b| b.build()).map_err(|e| StageError::new(e.strip_backtrace()))
}

/// What is done to a table's rows as they are read.
fn input(planner: &Planner, table: &Table) -> Result<Input, StageError> {
    let declared = table.columns.as_deref().unwrap_or_default();
    let plain = declared.iter().filter(|c| c.generated.is_none());
    let read = Arc::new(Schema::new(plain.map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable)).collect::<Vec<_>>()));
    let names = df_schema(&read)?;
    let mut columns = Vec::new();
    for column in declared {
        columns.push(match &column.generated {
            None => InputColumn::Read(read.index_of(&column.name).map_err(|e| StageError::new(e.to_string()))?),
            Some(expression) => {
                let expression = planner.expression(expression.clone(), &names, column.position)?;
                let cast =
                    expression.cast_to(&column.data_type, &names).map_err(|e| StageError::new(e.strip_backtrace()).at(column.position))?;
                InputColumn::Computed(lower::compile(&cast, &names).map_err(|e| e.at(column.position))?)
            }
        });
    }
    let all = df_schema(&table.schema())?;
    let watermark = match &table.watermark {
        None => None,
        Some(expression) => {
            let expression = planner.expression(expression.clone(), &all, table.position)?;
            let cast =
                expression.cast_to(&catalog::timestamp(), &all).map_err(|e| StageError::new(e.strip_backtrace()).at(table.position))?;
            Some(lower::compile(&cast, &all).map_err(|e| e.at(table.position))?)
        }
    };
    let event_time = table.event_time.as_ref().and_then(|name| declared.iter().position(|c| c.name == *name));
    Ok(Input { table: table.clone(), read, columns, event_time, watermark })
}
