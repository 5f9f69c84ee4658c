//! The job's tables and views: made, brought up to date, and looked over before the first row.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use orderflow_faults::Point;
use orderflow_operators::streams::{EPOCH, OutputStream, StageStream, Stream};
use tokio::sync::Mutex;

use super::connection::Connection;
use crate::SinkError;

/// Numbered scripts, applied in order, each once. A released one is never edited.
const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, name: "tables", sql: include_str!("../../../deploy/clickhouse/0001_tables.sql") },
    Migration { version: 2, name: "reports", sql: include_str!("../../../deploy/clickhouse/0002_reports.sql") },
];

struct Migration {
    version: u32,
    name: &'static str,
    sql: &'static str,
}

/// Streams recover at the same time. Statements bear that; taking turns spares the server most of them.
static TURN: Mutex<()> = Mutex::const_new(());

/// What was found out about the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    /// Whether it has the setting `deduplicate_insert`, which overrides the older one in a user's profile.
    pub has_deduplicate_insert: bool,
}

/// Makes the database, its tables and views where they are missing, and checks that the stream's table takes rows of `schema`.
///
/// # Errors
/// Refused where the database is of a newer release, or the table's columns are not those of the stream.
pub(super) async fn prepare(connection: &Connection, stream: &OutputStream, schema: &Schema) -> Result<Server, SinkError> {
    let _turn = TURN.lock().await;
    connection.point("prepare the tables", Point::ClickHousePrepare)?;
    create_database(connection).await?;
    migrate(connection).await?;
    match stream {
        OutputStream::Own(Stream::OrderDecisions) => add_feature_columns(connection, stream, schema).await?,
        OutputStream::Own(_) => {}
        OutputStream::Stage(stage) => create_stage_table(connection, stage, schema).await?,
    }
    check_columns(connection, stream, schema).await?;
    connection.point("prepare the tables", Point::ClickHousePrepared)?;
    let sql = "SELECT count() FROM system.settings WHERE name = 'deduplicate_insert'";
    let (_, rows) = connection.table("read its settings", connection.query_server(sql)).await?;
    Ok(Server { has_deduplicate_insert: rows != [["0"]] })
}

/// A user without the right to make databases can be given one that exists.
async fn create_database(connection: &Connection) -> Result<(), SinkError> {
    let sql = "SELECT count() FROM system.databases WHERE name = {database:String}";
    let query = connection.query_server(sql).param("database", connection.database());
    let (_, rows) = connection.table("look for the database", query).await?;
    if rows == [["0"]] {
        let sql = format!("CREATE DATABASE IF NOT EXISTS {}", identifier(connection.database()));
        connection.execute("create the database", connection.query_server(&sql)).await?;
    }
    Ok(())
}

async fn migrate(connection: &Connection) -> Result<(), SinkError> {
    let versions = "CREATE TABLE IF NOT EXISTS schema_versions
        (version UInt32, name String, applied_at DateTime('UTC') DEFAULT now()) ENGINE = MergeTree ORDER BY version";
    connection.execute("create schema_versions", connection.query(versions)).await?;
    let what = "read schema_versions";
    let (_, rows) = connection.table(what, connection.query("SELECT max(version) FROM schema_versions")).await?;
    let found: u32 = rows.concat().concat().parse().map_err(|_| connection.refused(what, format!("it holds {rows:?}")))?;
    let known = MIGRATIONS[MIGRATIONS.len() - 1].version;
    if found > known {
        let message = format!(
            "database `{}` has version {found} of the tables, made by a newer release of orderflow; this one knows version {known}: \
             run that release, or set sinks.clickhouse.database to another database",
            connection.database()
        );
        return Err(connection.refused(what, message));
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found) {
        for statement in statements(migration.sql) {
            let what = format!("migrate to version {} ({})", migration.version, migration.name);
            connection.point(&what, Point::ClickHouseStatement)?;
            connection.execute(&what, connection.query(&statement)).await?;
        }
        connection.point("record the version of the tables", Point::ClickHouseMigrated)?;
        let sql = "INSERT INTO schema_versions (version, name) SELECT {version:UInt32}, {name:String}";
        let query = connection.query(sql).param("version", migration.version).param("name", migration.name);
        connection.execute("record the version of the tables", query).await?;
        tracing::info!(database = connection.database(), version = migration.version, name = migration.name, "ClickHouse tables migrated");
    }
    Ok(())
}

/// The statements of a script, without comments. (The client takes a lone question mark, even in a comment, for a parameter.)
fn statements(script: &str) -> Vec<String> {
    let code: Vec<&str> = script.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let code = code.join("\n");
    code.split(";\n").map(|statement| statement.trim().trim_end_matches(';').to_owned()).filter(|statement| !statement.is_empty()).collect()
}

/// A stage's stream has the columns that its query gives it: its table is made of them, and kept as long as they fit.
async fn create_stage_table(connection: &Connection, stream: &StageStream, schema: &Schema) -> Result<(), SinkError> {
    let what = format!("create table {}", stream.name);
    let sql = stage_table(stream, schema).map_err(|message| connection.refused(&what, message))?;
    connection.execute(&what, connection.query(&sql)).await
}

fn stage_table(stream: &StageStream, schema: &Schema) -> Result<String, String> {
    let column = |field: &Field| {
        let codec = if field.name() == EPOCH { "CODEC(Delta, ZSTD(1))" } else { "CODEC(ZSTD(1))" };
        Ok(format!("{} {} {codec}", identifier(field.name()), column_type(field)?))
    };
    let columns = schema.fields().iter().map(|field| column(field)).collect::<Result<Vec<_>, String>>()?;
    // What tells rows apart is asked for most; else their first time, as that of a window.
    let is_time = |field: &&Field| matches!(field.data_type(), DataType::Timestamp(..));
    let by: Vec<&str> = match &stream.key[..] {
        [] => schema.fields().iter().map(AsRef::as_ref).find(is_time).map(|field: &Field| field.name().as_str()).into_iter().collect(),
        key => key.iter().map(String::as_str).collect(),
    };
    let by: Vec<String> = by.into_iter().chain([EPOCH]).map(identifier).collect();
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = MergeTree PARTITION BY intDiv(epoch, 100000000) ORDER BY ({}) \
         SETTINGS allow_nullable_key = 1, non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000, \
         replicated_deduplication_window_seconds = 2592000",
        identifier(&stream.name),
        columns.join(", "),
        by.join(", ")
    ))
}

/// Windows are a setting and name the columns. Another list of them adds columns; rows of the earlier one keep theirs, and have
/// nulls in the new.
async fn add_feature_columns(connection: &Connection, stream: &OutputStream, schema: &Schema) -> Result<(), SinkError> {
    let existing = columns(connection, stream).await?;
    let mut actions = Vec::new();
    let mut previous: Option<&str> = None;
    for field in schema.fields() {
        if !existing.contains_key(field.name()) {
            let column_type = column_type(field).map_err(|message| connection.refused("add columns", message))?;
            let place = previous.map_or("FIRST".to_owned(), |name| format!("AFTER {}", identifier(name)));
            actions.push(format!("ADD COLUMN IF NOT EXISTS {} {column_type} CODEC(ZSTD(1)) {place}", identifier(field.name())));
        }
        previous = Some(field.name());
    }
    if actions.is_empty() {
        return Ok(());
    }
    let sql = format!("ALTER TABLE {} {}", identifier(stream.name()), actions.join(", "));
    connection.execute("add the columns of features", connection.query(&sql)).await
}

async fn check_columns(connection: &Connection, stream: &OutputStream, schema: &Schema) -> Result<(), SinkError> {
    let what = format!("check the columns of {stream}");
    let existing = columns(connection, stream).await?;
    let mut faults = Vec::new();
    for field in schema.fields() {
        let expected = column_type(field).map_err(|message| connection.refused(&what, message))?;
        match existing.get(field.name()) {
            None => faults.push(format!("{} is missing", field.name())),
            Some(found) if *found != expected => faults.push(format!("{} is {found}, not {expected}", field.name())),
            Some(_) => {}
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("table {stream} is not the job's: {}; rename it, or use another database", faults.join(", "));
    Err(connection.refused(&what, message))
}

/// Types of the table's columns by name, without `LowCardinality`, which changes nothing for an insert.
async fn columns(connection: &Connection, stream: &OutputStream) -> Result<HashMap<String, String>, SinkError> {
    let sql = "SELECT name, type FROM system.columns WHERE database = {database:String} AND table = {table:String}";
    let query = connection.query_server(sql).param("database", connection.database()).param("table", stream.name());
    let (_, rows) = connection.table(&format!("read the columns of {stream}"), query).await?;
    let column = |row: Vec<String>| {
        let [name, full_type] = <[String; 2]>::try_from(row).ok()?;
        let plain = full_type.strip_prefix("LowCardinality(").and_then(|rest| rest.strip_suffix(')'));
        Some((name, plain.map_or_else(|| full_type.clone(), str::to_owned)))
    };
    Ok(rows.into_iter().filter_map(column).collect())
}

/// ClickHouse's type of an Arrow column, or what is wrong with it.
fn column_type(field: &Field) -> Result<String, String> {
    let plain = match field.data_type() {
        DataType::Boolean => "Bool",
        DataType::Int32 => "Int32",
        DataType::Int64 => "Int64",
        DataType::Float32 => "Float32",
        DataType::Float64 => "Float64",
        // Of 1900 to 2299: `Body` keeps dates within.
        DataType::Date32 => "Date32",
        DataType::Utf8 | DataType::Binary => "String",
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => "DateTime64(6, 'UTC')",
        DataType::List(item) if *item.data_type() == DataType::Utf8 && !field.is_nullable() => return Ok("Array(String)".to_owned()),
        // An array is never null there: it has no elements instead.
        DataType::List(item) if *item.data_type() == DataType::Utf8 => return Ok("Array(Nullable(String))".to_owned()),
        other => return Err(format!("column {} of type {other} has no counterpart here", field.name())),
    };
    Ok(if field.is_nullable() { format!("Nullable({plain})") } else { plain.to_owned() })
}

/// A quoted name.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A quoted name in a statement that the client looks for parameters, which a lone question mark stands for.
pub(super) fn identifier(name: &str) -> String {
    quoted(name).replace('?', "??")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn scripts_are_numbered_and_split_into_statements_that_bear_repetition() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version as usize, at + 1);
            let statements = statements(migration.sql);
            assert_eq!(statements.len(), migration.sql.lines().filter(|line| line.ends_with(';')).count());
            for statement in statements {
                assert!(statement.contains(" IF NOT EXISTS ") || statement.contains(" IF EXISTS "), "{statement}");
                assert!(!statement.contains('?') && !statement.contains("--"), "{statement}");
            }
        }
    }

    #[test]
    fn every_table_that_rows_reach_deduplicates() {
        for migration in &MIGRATIONS {
            for statement in statements(migration.sql).iter().filter(|statement| statement.starts_with("CREATE TABLE")) {
                let own = statement.contains("orderflow_commits");
                assert_eq!(own, !statement.contains("non_replicated_deduplication_window = 10000"), "{statement}");
            }
        }
    }

    #[test]
    fn a_table_of_a_stage() {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let field = |name: &str, data_type: &DataType| Field::new(name, data_type.clone(), name != EPOCH);
        let schema = Schema::new(vec![field(EPOCH, &DataType::Int64), field("minute", &time), field("sku", &DataType::Utf8)]);
        let check = |key: &[&str], schema: &Schema, expected: Expect| {
            let key = key.iter().map(|&name| name.to_owned()).collect();
            let stream = StageStream { name: "per_minute".into(), schema: schema.clone().into(), key };
            expected.assert_eq(&stage_table(&stream, schema).unwrap_or_else(|message| message));
        };
        check(
            &[],
            &schema,
            expect![
                "CREATE TABLE IF NOT EXISTS `per_minute` (`epoch` Int64 CODEC(Delta, ZSTD(1)), `minute` Nullable(DateTime64(6, 'UTC')) CODEC(ZSTD(1)), `sku` Nullable(String) CODEC(ZSTD(1))) ENGINE = MergeTree PARTITION BY intDiv(epoch, 100000000) ORDER BY (`minute`, `epoch`) SETTINGS allow_nullable_key = 1, non_replicated_deduplication_window = 10000, replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 2592000"
            ],
        );
        let by_sku = StageStream { name: "s".into(), schema: schema.clone().into(), key: vec!["sku".into()] };
        assert!(stage_table(&by_sku, &schema).unwrap().contains("ORDER BY (`sku`, `epoch`)"));
        let unknown = Schema::new(vec![field("n", &DataType::UInt64)]);
        check(&[], &unknown, expect!["column n of type UInt64 has no counterpart here"]);
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(identifier("a`b?\\"), "`a\\`b??\\\\`");
        assert_eq!(quoted("a`b?\\"), "`a\\`b?\\\\`");
    }
}
