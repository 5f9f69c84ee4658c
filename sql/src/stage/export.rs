//! A stage as an Arroyo cluster takes it: the same statements, with topics in the place of the job's streams.
//!
//! | in the stage | in what is written |
//! | --- | --- |
//! | a stream of the job that is named without being declared | `CREATE TABLE` of connector `kafka` over the topic that the job publishes it to |
//! | a source of `connector = 'stream'` | a view of its columns over that table; the table itself if both have one name |
//! | a sink of `connector = 'stream'` | a sink of connector `kafka`, of `debezium_json` where rows can be taken back |
//! | everything else | as it is |

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};
use orderflow_operators::epoch::Micros;

use super::catalog::{Connector, Format, Role, Table};
use super::dialect::StageDialect;
use super::error::StageError;
use super::parse::{self, StatementKind};
use super::{NamedStream, Stage, without_zone};
use crate::graph::Kind;

/// Where the job's streams are as topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Brokers as Arroyo reaches them: `host:port`, separated by commas.
    pub brokers: String,
    /// A topic's name is this and the stream's name.
    pub prefix: String,
    /// How far the watermark stays behind event time.
    pub watermark_delay: Micros,
}

/// The text of a stage for Arroyo; `stage` is what `text` was planned to, with these `streams`.
///
/// # Errors
/// If the stage has something that Arroyo has not.
pub fn to_arroyo(text: &str, stage: &Stage, streams: &[NamedStream], topics: &Topics) -> Result<String, StageError> {
    check(stage)?;
    let mut out = String::new();
    let mut tables = stage.tables.iter();
    let is_declared = |name: &str| stage.table(name).is_some_and(|t| t.connector == Connector::Stream && t.role != Some(Role::Sink));
    for name in stage.named_streams().filter(|name| !is_declared(name)) {
        let _ = write!(out, "{};\n\n", source(name, name, &stream(streams, name)?, topics));
    }
    let statements = parse::parse(text)?;
    for (statement, range) in statements.iter().zip(statement_ranges(text)) {
        let table = match statement.kind {
            StatementKind::CreateTable(_) => tables.next().filter(|table| table.connector == Connector::Stream),
            _ => None,
        };
        let own = &text[range];
        let Some(table) = table else {
            out.push_str(own.trim_start_matches('\n'));
            out.push_str(";\n");
            continue;
        };
        // What is said of the table stands before it.
        let comments = own.lines().take_while(|line| line.trim().is_empty() || line.trim_start().starts_with("--"));
        out.extend(comments.filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")));
        let created = if table.role == Some(Role::Sink) {
            let updating = stage.graph.sinks.iter().any(|edge| edge.table == table.name && edge.updating);
            sink(table, updating, topics)
        } else {
            declared_source(table, streams, topics)?
        };
        let _ = writeln!(out, "{created};\n");
    }
    Ok(out)
}

/// Refuses what Arroyo has not.
fn check(stage: &Stage) -> Result<(), StageError> {
    for table in &stage.tables {
        let at = table.position;
        if table.connector == Connector::Clickhouse {
            return Err(StageError::new(format!("table `{}`: Arroyo has no connector 'clickhouse'", table.name))
                .at(at)
                .help("write to a topic (connector = 'kafka'), and let a Kafka engine table of ClickHouse read it"));
        }
        if table.role == Some(Role::Lookup) {
            return Err(StageError::new(format!("lookup table `{}`: Arroyo has none of files", table.name))
                .at(at)
                .help("declare it with one of Arroyo's lookup connectors there"));
        }
    }
    if stage.graph.nodes.iter().any(|node| matches!(node.kind, Kind::TopRows { .. })) {
        return Err(StageError::new("ROW_NUMBER() over rows of no window is not in Arroyo's dialect")
            .help("PARTITION BY a window, or keep the stage in this job"));
    }
    Ok(())
}

fn stream(streams: &[NamedStream], name: &str) -> Result<Vec<FieldRef>, StageError> {
    let found = streams.iter().find(|stream| stream.name == name);
    let in_message = |field: &FieldRef| match field.data_type() {
        // The job writes bytes as text into messages.
        DataType::Binary => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => field.clone(),
    };
    found
        .map(|stream| without_zone(&stream.schema).fields().iter().map(in_message).collect())
        .ok_or_else(|| StageError::new(format!("there is no stream `{name}`")))
}

/// A table over the topic of a stream.
fn source(table: &str, stream: &str, fields: &[FieldRef], topics: &Topics) -> String {
    let mut columns: Vec<String> = fields.iter().map(|field| column(field)).collect();
    if fields.iter().any(|field| field.name() == "event_time") {
        columns.push(format!("WATERMARK FOR event_time AS event_time - INTERVAL '{}'", interval(topics.watermark_delay)));
    }
    let options = [
        ("connector", "kafka"),
        ("bootstrap_servers", &topics.brokers),
        ("topic", &format!("{}{stream}", topics.prefix)),
        ("type", "source"),
        ("format", "json"),
        ("source.offset", "earliest"),
        ("source.read_mode", "read_committed"),
    ];
    format!("CREATE TABLE {} (\n  {}\n) WITH (\n{}\n)", quoted(table), columns.join(",\n  "), options_text(&options))
}

/// A declared source over a stream.
fn declared_source(table: &Table, streams: &[NamedStream], topics: &Topics) -> Result<String, StageError> {
    let name = table.option("stream").unwrap_or(&table.name);
    let declared = table.schema().fields().to_vec();
    if table.name == name {
        let columns = if declared.is_empty() { stream(streams, name)? } else { declared };
        return Ok(source(name, name, &columns, topics));
    }
    let raw = format!("{}_topic", table.name);
    let over_topic = source(&raw, name, &stream(streams, name)?, topics);
    let columns: Vec<String> =
        declared.iter().map(|field| format!("CAST({0} AS {1}) AS {0}", quoted(field.name()), sql_type(field.data_type()))).collect();
    let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
    Ok(format!("{over_topic};\n\nCREATE VIEW {} AS SELECT {columns} FROM {}", quoted(&table.name), quoted(&raw)))
}

fn sink(table: &Table, updating: bool, topics: &Topics) -> String {
    let format = if updating || table.format == Format::DebeziumJson { "debezium_json" } else { "json" };
    let columns = table.columns.as_deref().map(|columns| {
        let shown = columns.iter().map(|c| {
            let field = Field::new(&c.name, c.data_type.clone(), c.nullable || c.primary_key);
            format!("{}{}", column(&field), if c.primary_key { " PRIMARY KEY" } else { "" })
        });
        format!(" (\n  {}\n)", shown.collect::<Vec<_>>().join(",\n  "))
    });
    let options = [
        ("connector", "kafka"),
        ("bootstrap_servers", &topics.brokers),
        ("topic", &format!("{}{}", topics.prefix, table.name)),
        ("type", "sink"),
        ("format", format),
        ("sink.commit_mode", "exactly_once"),
    ];
    format!("CREATE TABLE {}{} WITH (\n{}\n)", quoted(&table.name), columns.unwrap_or_default(), options_text(&options))
}

fn options_text(options: &[(&str, &str)]) -> String {
    let name = |name: &str| if name.contains('.') { format!("'{name}'") } else { name.to_owned() };
    let shown = options.iter().map(|(n, value)| format!("  {} = '{}'", name(n), value.replace('\'', "''")));
    shown.collect::<Vec<_>>().join(",\n")
}

fn column(field: &Field) -> String {
    let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
    format!("{} {}{not_null}", quoted(field.name()), sql_type(field.data_type()))
}

/// A name that is read as it is.
fn quoted(name: &str) -> String {
    let is_plain =
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_plain && ALL_KEYWORDS.binary_search(&name.to_uppercase().as_str()).is_err() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The SQL type that is read as an Arrow type: what `catalog::data_type` turns around.
fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt8 => "TINYINT UNSIGNED".to_owned(),
        DataType::UInt16 => "SMALLINT UNSIGNED".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Binary => "BYTEA".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => "TIMESTAMP".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Time64(_) => "TIME".to_owned(),
        DataType::Interval(_) => "INTERVAL".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) => format!("{}[]", sql_type(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|f| format!("{} {}", quoted(f.name()), sql_type(f.data_type()))).collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        _ => "TEXT".to_owned(),
    }
}

fn interval(length: Micros) -> String {
    [(1_000_000, "seconds"), (1_000, "milliseconds")]
        .into_iter()
        .find(|(unit, _)| length % unit == 0)
        .map_or_else(|| format!("{length} microseconds"), |(unit, name)| format!("{} {name}", length / unit))
}

/// Where each statement stands in a text, with the comments before it and without its semicolon.
fn statement_ranges(text: &str) -> Vec<Range<usize>> {
    let tokens = Tokenizer::new(&StageDialect, text).tokenize_with_location().unwrap_or_default();
    // Places count characters of a line.
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let offset = |at: Location| {
        let line = lines[(at.line as usize).saturating_sub(1).min(lines.len() - 1)];
        line + text[line..].chars().take((at.column as usize).saturating_sub(1)).map(char::len_utf8).sum::<usize>()
    };
    let (mut ranges, mut start, mut is_empty) = (Vec::new(), 0, true);
    for token in &tokens {
        match token.token {
            Token::SemiColon => {
                let end = offset(token.span.start);
                if !is_empty {
                    ranges.push(start..end);
                }
                (start, is_empty) = (end + 1, true);
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => is_empty = false,
        }
    }
    if !is_empty {
        ranges.push(start..text.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::stage::catalog::timestamp;

    fn streams() -> Vec<NamedStream> {
        let columns = vec![
            Field::new("split", DataType::Int32, false),
            Field::new("offset", DataType::Int64, false),
            Field::new("sku", DataType::Utf8, true),
            Field::new("event_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
            Field::new("detail", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), false),
        ];
        vec![NamedStream { updating: false, name: "lines".to_owned(), schema: Arc::new(Schema::new(columns)) }]
    }

    fn export(text: &str) -> Result<String, StageError> {
        let topics = Topics { brokers: "kafka:9092".to_owned(), prefix: "orderflow.".to_owned(), watermark_delay: 5_000_000 };
        let stage = Stage::plan(text, &streams()).unwrap_or_else(|error| panic!("{text}\n{error}"));
        to_arroyo(text, &stage, &streams(), &topics)
    }

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        expected.assert_eq(&export(text).unwrap_or_else(|error| panic!("{text}\n{error}")));
    }

    #[test]
    fn streams_become_topics() {
        check(
            "-- How much of each.\nCREATE TABLE sold (sku TEXT, \"order\" BIGINT)\n  WITH (connector = 'stream', type = 'sink');\n\n-- Each minute; of all.\nINSERT INTO sold\nSELECT sku, count(*) FROM lines GROUP BY tumble(INTERVAL '1 minute'), sku;\n",
            expect![[r#"
                CREATE TABLE "lines" (
                  split INT NOT NULL,
                  "offset" BIGINT NOT NULL,
                  sku TEXT,
                  event_time TIMESTAMP NOT NULL,
                  "detail" TEXT[] NOT NULL,
                  WATERMARK FOR event_time AS event_time - INTERVAL '5 seconds'
                ) WITH (
                  connector = 'kafka',
                  bootstrap_servers = 'kafka:9092',
                  topic = 'orderflow.lines',
                  type = 'source',
                  format = 'json',
                  'source.offset' = 'earliest',
                  'source.read_mode' = 'read_committed'
                );

                -- How much of each.
                CREATE TABLE sold (
                  sku TEXT,
                  "order" BIGINT
                ) WITH (
                  connector = 'kafka',
                  bootstrap_servers = 'kafka:9092',
                  topic = 'orderflow.sold',
                  type = 'sink',
                  format = 'json',
                  'sink.commit_mode' = 'exactly_once'
                );

                -- Each minute; of all.
                INSERT INTO sold
                SELECT sku, count(*) FROM lines GROUP BY tumble(INTERVAL '1 minute'), sku;
            "#]],
        );
    }

    #[test]
    fn changes_go_as_debezium() {
        check(
            "CREATE TABLE sold (sku TEXT PRIMARY KEY, n BIGINT) WITH (connector = 'stream', type = 'sink');
             CREATE TABLE d (sku TEXT, split BIGINT) WITH (connector = 'stream', stream = 'lines', type = 'source');
             INSERT INTO sold SELECT sku, sum(split) FROM d GROUP BY sku",
            expect![[r#"
                CREATE TABLE "lines" (
                  split INT NOT NULL,
                  "offset" BIGINT NOT NULL,
                  sku TEXT,
                  event_time TIMESTAMP NOT NULL,
                  "detail" TEXT[] NOT NULL,
                  WATERMARK FOR event_time AS event_time - INTERVAL '5 seconds'
                ) WITH (
                  connector = 'kafka',
                  bootstrap_servers = 'kafka:9092',
                  topic = 'orderflow.lines',
                  type = 'source',
                  format = 'json',
                  'source.offset' = 'earliest',
                  'source.read_mode' = 'read_committed'
                );

                CREATE TABLE sold (
                  sku TEXT PRIMARY KEY,
                  n BIGINT
                ) WITH (
                  connector = 'kafka',
                  bootstrap_servers = 'kafka:9092',
                  topic = 'orderflow.sold',
                  type = 'sink',
                  format = 'debezium_json',
                  'sink.commit_mode' = 'exactly_once'
                );

                CREATE TABLE d_topic (
                  split INT NOT NULL,
                  "offset" BIGINT NOT NULL,
                  sku TEXT,
                  event_time TIMESTAMP NOT NULL,
                  "detail" TEXT[] NOT NULL,
                  WATERMARK FOR event_time AS event_time - INTERVAL '5 seconds'
                ) WITH (
                  connector = 'kafka',
                  bootstrap_servers = 'kafka:9092',
                  topic = 'orderflow.lines',
                  type = 'source',
                  format = 'json',
                  'source.offset' = 'earliest',
                  'source.read_mode' = 'read_committed'
                );

                CREATE VIEW d AS SELECT CAST(sku AS TEXT) AS sku, CAST(split AS BIGINT) AS split FROM d_topic;

                             INSERT INTO sold SELECT sku, sum(split) FROM d GROUP BY sku;
            "#]],
        );
    }

    /// What is written can be planned again, to the same operators over topics.
    #[test]
    fn what_is_written_is_a_stage() {
        let text = "CREATE TABLE lines (sku TEXT, event_time TIMESTAMP) WITH (connector = 'stream');
            CREATE TABLE sold WITH (connector = 'stream', type = 'sink');
            SET updating_ttl = '1 hour';
            CREATE VIEW v AS SELECT sku || ';' AS sku FROM lines;
            INSERT INTO sold SELECT sku, count(*) AS n FROM v GROUP BY sku;";
        let written = export(text).unwrap();
        let stage = Stage::plan(&written, &[]).unwrap_or_else(|error| panic!("{written}\n{error}"));
        assert_eq!(stage.graph.sources().collect::<Vec<_>>(), ["lines"], "{written}");
        assert_eq!(stage.table("lines").map(|t| t.connector), Some(Connector::Kafka));
        assert_eq!(stage.table("lines").map(|t| t.schema().field(1).data_type().clone()), Some(timestamp()));
        assert_eq!(stage.graph.sinks.len(), 1);
    }

    #[test]
    fn what_arroyo_lacks_is_refused() {
        let message = |text: &str| export(text).expect_err("it is refused").to_string();
        let top =
            "SELECT sku, place FROM (SELECT sku, ROW_NUMBER() OVER (PARTITION BY split ORDER BY sku) AS place FROM lines) WHERE place <= 3";
        assert!(message(top).contains("ROW_NUMBER() over rows of no window"), "{}", message(top));
        let clickhouse = "CREATE TABLE t (sku TEXT) WITH (connector = 'clickhouse', type = 'sink'); INSERT INTO t SELECT sku FROM lines";
        assert!(message(clickhouse).starts_with("line 1"), "{}", message(clickhouse));
    }
}
