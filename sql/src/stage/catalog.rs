//! Tables that a stage reads and writes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, IntervalUnit, Schema, SchemaRef, TimeUnit};
use datafusion::sql::sqlparser::ast::{self, ArrayElemTypeDef, ExactNumberInfo, TimezoneInfo};

use super::error::{Position, StageError};
use super::parse::{CreateTable, TableOption};

/// `TIMESTAMP`: microseconds, without a zone, UTC is meant.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// What a table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connector {
    /// A topic of Kafka or Redpanda.
    Kafka,
    /// One file.
    SingleFile,
    /// A file, or all files of a folder in the order of their names.
    Filesystem,
    /// A table of Delta Lake.
    Delta,
    /// A table of ClickHouse.
    Clickhouse,
    /// Nothing: rows are counted.
    Blackhole,
    /// Standard output.
    Stdout,
    /// One of the job's own streams; to write to, a new one, which goes where the job's streams go.
    Stream,
    /// What other statements of the stage insert.
    Memory,
}

impl Connector {
    const ALL: [Connector; 8] = [
        Connector::Kafka,
        Connector::SingleFile,
        Connector::Filesystem,
        Connector::Delta,
        Connector::Clickhouse,
        Connector::Blackhole,
        Connector::Stdout,
        Connector::Stream,
    ];

    /// As in `WITH (connector = …)`.
    pub fn name(self) -> &'static str {
        match self {
            Connector::Kafka => "kafka",
            Connector::SingleFile => "single_file",
            Connector::Filesystem => "filesystem",
            Connector::Delta => "delta",
            Connector::Clickhouse => "clickhouse",
            Connector::Blackhole => "blackhole",
            Connector::Stdout => "stdout",
            Connector::Stream => "stream",
            Connector::Memory => "memory",
        }
    }

    fn can_be(self, role: Role) -> bool {
        match role {
            Role::Source => matches!(self, Connector::Kafka | Connector::SingleFile | Connector::Filesystem | Connector::Stream),
            Role::Sink => true,
            Role::Lookup => matches!(self, Connector::SingleFile | Connector::Filesystem),
        }
    }

    /// Options of its own; a star stands for any end.
    fn options(self) -> &'static [&'static str] {
        match self {
            Connector::Kafka => &[
                "bootstrap_servers",
                "topic",
                "source.offset",
                "source.read_mode",
                "source.group_id",
                "source.group_id_prefix",
                "sink.commit_mode",
                "sink.key_field",
                "sink.timestamp_field",
                "schema_registry.*",
                "auth.*",
                "connection_properties",
                "client_configs",
            ],
            Connector::SingleFile => &["path", "lookup.*"],
            Connector::Filesystem => &[
                "path",
                "source.regex-pattern",
                "write_path",
                "rolling_policy.*",
                "file_naming.*",
                "partitioning.*",
                "storage.*",
                "parquet.*",
                "target_file_size",
                "rollover_seconds",
                "inactivity_rollover_seconds",
                "target_part_size",
                "lookup.*",
            ],
            Connector::Delta => &["path", "storage.*", "rolling_policy.*", "parquet.*", "target_file_size", "rollover_seconds"],
            Connector::Clickhouse => &["table"],
            Connector::Blackhole | Connector::Stdout | Connector::Memory => &[],
            Connector::Stream => &["stream"],
        }
    }
}

/// Options that every connector takes.
const COMMON_OPTIONS: [&str; 9] = [
    "connector",
    "format",
    "type",
    "event_time_field",
    "watermark_field",
    "bad_data",
    "json.unstructured",
    "json.timestamp_format",
    "idle_micros",
];

/// How a table's rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object for each row.
    Json,
    /// `before`, `after` and `op` for each change.
    DebeziumJson,
    /// Parquet files.
    Parquet,
}

/// What a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Rows come from it.
    Source,
    /// Rows go to it.
    Sink,
    /// Rows are looked up in it (`TEMPORARY`).
    Lookup,
}

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether it may be null.
    pub nullable: bool,
    /// What it is computed from.
    pub generated: Option<ast::Expr>,
    /// Whether it is in the primary key.
    pub primary_key: bool,
    pub(crate) position: Position,
}

/// A declared table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// What it is for; `None` if the declaration leaves that to its use.
    pub role: Option<Role>,
    /// What it stands for.
    pub connector: Connector,
    /// How its rows are written.
    pub format: Format,
    /// Its columns; `None`: those of the query that is inserted.
    pub columns: Option<Vec<Column>>,
    /// The column of event time.
    pub event_time: Option<String>,
    /// How far event time has come with a row.
    pub watermark: Option<ast::Expr>,
    /// Options by name.
    pub options: Vec<(String, String)>,
    pub(crate) position: Position,
}

impl Table {
    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The columns as Arrow has them; none where they are those of a query.
    pub fn schema(&self) -> SchemaRef {
        let columns = self.columns.iter().flatten();
        Arc::new(Schema::new(columns.map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable)).collect::<Vec<_>>()))
    }

    /// Whether its rows are taken as they are, each one text.
    pub fn is_unstructured(&self) -> bool {
        self.option("json.unstructured") == Some("true")
    }

    pub(crate) fn connector_can_read(&self) -> bool {
        self.connector.can_be(Role::Source)
    }

    /// Reads a declaration.
    pub(crate) fn from_statement(created: CreateTable, position: Position) -> Result<Table, StageError> {
        let CreateTable { name, temporary, columns, watermark, options } = created;
        let option = |name: &str| options.iter().find(|o| o.name == name);
        let connector = match option("connector") {
            None if options.is_empty() && columns.is_some() => Connector::Memory,
            None => return Err(StageError::new(format!("table `{name}` has no connector")).at(position).help("add connector = '…'")),
            Some(option) => one_of(option, &Connector::ALL.map(|c| (c.name(), c)))?,
        };
        check_options(connector, &options)?;
        let format = match option("format") {
            None => Format::Json,
            Some(option) => {
                one_of(option, &[("json", Format::Json), ("debezium_json", Format::DebeziumJson), ("parquet", Format::Parquet)])?
            }
        };
        let declared = match option("type") {
            None => None,
            Some(option) => Some(one_of(option, &[("source", Role::Source), ("sink", Role::Sink), ("lookup", Role::Lookup)])?),
        };
        let role = if temporary { Some(Role::Lookup) } else { declared };
        if let Some(role) = role
            && connector != Connector::Memory
            && !connector.can_be(role)
        {
            let what = match role {
                Role::Source => "read from",
                Role::Sink => "written to",
                Role::Lookup => "looked up in",
            };
            let can: Vec<_> = Connector::ALL.iter().filter(|c| c.can_be(role)).map(|c| format!("'{}'", c.name())).collect();
            return Err(StageError::new(format!("connector '{}' cannot be {what}", connector.name()))
                .at(option("connector").map_or(position, |o| o.position))
                .help(format!("these can: {}", can.join(", "))));
        }
        for option in &options {
            if option.name == "json.timestamp_format" {
                one_of(option, &[("rfc3339", ()), ("unix_millis", ())])?;
            }
            if option.name == "bad_data" {
                one_of(option, &[("drop", ()), ("fail", ())])?;
            }
            if option.name == "json.unstructured" {
                one_of(option, &[("true", ()), ("false", ())])?;
            }
        }
        let columns = match columns {
            None => None,
            Some(columns) => {
                let converted = columns.into_iter().map(|c| {
                    let data_type = data_type(&c.data_type).map_err(|e| e.at(c.position))?;
                    let nullable = !c.not_null && !c.primary_key;
                    let ast = c.generated;
                    Ok(Column { name: c.name, data_type, nullable, generated: ast, primary_key: c.primary_key, position: c.position })
                });
                Some(converted.collect::<Result<Vec<_>, StageError>>()?)
            }
        };
        let mut table = Table {
            name,
            role,
            connector,
            format,
            columns,
            event_time: None,
            watermark: None,
            options: options.iter().map(|o| (o.name.clone(), o.value.clone())).collect(),
            position,
        };
        if let Some(watermark) = watermark {
            table.time_column(&watermark.column, watermark.position)?;
            table.event_time = Some(watermark.column);
            table.watermark = watermark.expression;
        }
        if let Some(option) = option("event_time_field") {
            table.time_column(&option.value, option.position)?;
            table.event_time = Some(option.value.clone());
        }
        if let Some(option) = option("watermark_field") {
            table.time_column(&option.value, option.position)?;
            table.watermark = Some(ast::Expr::Identifier(ast::Ident::with_quote('"', &option.value)));
        }
        if table.watermark.is_some() && table.event_time.is_none() {
            return Err(StageError::new(format!("table `{}` has a watermark and no event time", table.name))
                .at(position)
                .help("add event_time_field = '…', or write WATERMARK FOR column AS …"));
        }
        Ok(table)
    }

    fn time_column(&self, name: &str, position: Position) -> Result<(), StageError> {
        let columns = self.columns.as_deref().unwrap_or_default();
        match columns.iter().find(|c| c.name == name) {
            Some(column) if matches!(column.data_type, DataType::Timestamp(..)) => Ok(()),
            Some(column) => Err(StageError::new(format!("column `{name}` has type {}, not TIMESTAMP", column.data_type))
                .at(position)
                .help("declare it as TIMESTAMP, or add a column GENERATED ALWAYS AS (CAST(… AS TIMESTAMP))")),
            None => {
                let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
                Err(StageError::new(format!("table `{}` has no column `{name}`", self.name)).at(position).help(nearest(name, &names)))
            }
        }
    }
}

/// "did you mean", or all that there is.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    let closest = known.iter().map(|k| (strsim::jaro_winkler(name, k), *k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((score, name)) if score > 0.8 => format!("did you mean `{name}`?"),
        _ => format!("there are: {}", known.join(", ")),
    }
}

fn one_of<T: Copy>(option: &TableOption, values: &[(&str, T)]) -> Result<T, StageError> {
    values.iter().find(|(name, _)| *name == option.value).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|(name, _)| format!("'{name}'")).collect();
        StageError::new(format!("{} = '{}' is not supported", option.name, option.value))
            .at(option.position)
            .help(format!("one of {}", names.join(", ")))
    })
}

fn check_options(connector: Connector, options: &[TableOption]) -> Result<(), StageError> {
    let own = connector.options();
    let known = |name: &str| {
        COMMON_OPTIONS.contains(&name) || own.iter().any(|o| o.strip_suffix('*').map_or(*o == name, |prefix| name.starts_with(prefix)))
    };
    match options.iter().find(|o| !known(&o.name)) {
        None => Ok(()),
        Some(option) => {
            let all: Vec<&str> = COMMON_OPTIONS.iter().chain(own).copied().collect();
            Err(StageError::new(format!("connector '{}' has no option `{}`", connector.name(), option.name))
                .at(option.position)
                .help(nearest(&option.name, &all)))
        }
    }
}

/// The Arrow type of a SQL type.
pub(crate) fn data_type(sql: &ast::DataType) -> Result<DataType, StageError> {
    use ast::DataType as Sql;
    let unsupported = || {
        StageError::new(format!("type {sql} is not supported"))
            .help("BOOLEAN, SMALLINT, INT, BIGINT (each UNSIGNED too), FLOAT, DOUBLE, DECIMAL(p, s), TEXT, BYTEA, TIMESTAMP, DATE, TIME, INTERVAL, JSON, STRUCT<…>, T[]")
    };
    Ok(match sql {
        Sql::Boolean | Sql::Bool => DataType::Boolean,
        Sql::TinyInt(_) => DataType::Int8,
        Sql::SmallInt(_) | Sql::Int2(_) => DataType::Int16,
        Sql::Int(_) | Sql::Integer(_) | Sql::Int4(_) => DataType::Int32,
        Sql::BigInt(_) | Sql::Int8(_) => DataType::Int64,
        Sql::TinyIntUnsigned(_) => DataType::UInt8,
        Sql::SmallIntUnsigned(_) | Sql::Int2Unsigned(_) => DataType::UInt16,
        Sql::IntUnsigned(_) | Sql::UnsignedInteger | Sql::IntegerUnsigned(_) | Sql::Int4Unsigned(_) => DataType::UInt32,
        Sql::BigIntUnsigned(_) | Sql::Int8Unsigned(_) => DataType::UInt64,
        Sql::Float(_) | Sql::Real | Sql::Float4 => DataType::Float32,
        Sql::Double(_) | Sql::DoublePrecision | Sql::Float8 => DataType::Float64,
        Sql::Char(_) | Sql::Varchar(_) | Sql::Text | Sql::String(_) | Sql::JSON => DataType::Utf8,
        Sql::Bytea => DataType::Binary,
        Sql::Timestamp(None | Some(0 | 3 | 6 | 9), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) | Sql::Datetime(_) => timestamp(),
        Sql::Date => DataType::Date32,
        Sql::Time(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => DataType::Time64(TimeUnit::Nanosecond),
        Sql::Interval { .. } => DataType::Interval(IntervalUnit::MonthDayNano),
        Sql::Numeric(info) | Sql::Decimal(info) => {
            let (precision, scale) = match *info {
                ExactNumberInfo::None => (38, 10),
                ExactNumberInfo::Precision(p) => (p, 0),
                ExactNumberInfo::PrecisionAndScale(p, s) => (p, s),
            };
            if !(1..=38).contains(&precision) || scale < 0 || scale as u64 > precision {
                return Err(
                    StageError::new(format!("{sql} has no such precision and scale")).help("DECIMAL(p, s) with 1 ≤ p ≤ 38 and 0 ≤ s ≤ p")
                );
            }
            DataType::Decimal128(precision as u8, scale as i8)
        }
        Sql::Array(ArrayElemTypeDef::AngleBracket(item) | ArrayElemTypeDef::SquareBracket(item, _)) => {
            DataType::List(Arc::new(Field::new("item", data_type(item)?, true)))
        }
        Sql::Struct(fields, _) => {
            let fields = fields.iter().map(|f| {
                let name = f.field_name.as_ref().ok_or_else(|| StageError::new("a field of a STRUCT has no name"))?;
                Ok(Field::new(super::parse::normal(name), data_type(&f.field_type)?, true))
            });
            DataType::Struct(fields.collect::<Result<Fields, StageError>>()?)
        }
        _ => return Err(unsupported()),
    })
}
