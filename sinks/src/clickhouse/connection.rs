//! Statements and inserts over HTTP, each with a limit on its time.

use std::time::Duration;

use arrow::array::RecordBatch;
use clickhouse::query::Query;
use clickhouse::{Client, Compression};
use orderflow_faults::{Point, check};

use super::body::Body;
use super::error::classify;
use super::{ClickHouseSettings, InsertCompression};
use crate::SinkError;
use crate::batches::coalesced;

/// Settings of every statement. They are sent always, since their defaults differ between releases (26.2 changed three) and users'
/// profiles.
const SETTINGS: [(&str, &str); 2] = [
    // An insert that is only queued is not done.
    ("async_insert", "0"),
    // Errors that come late are the response's status, not its last line.
    ("wait_end_of_query", "1"),
];

/// Settings of inserts of rows.
const INSERT_SETTINGS: [(&str, &str); 9] = [
    ("insert_deduplicate", "1"),
    // A view counts a replayed insert once only if its own target looks for the token too.
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    // One block for each insert: it is visible as a whole, and a token stands for the same rows however the
    // batches were cut. Squashing goes by rows alone, up to more than an insert ever has.
    ("max_insert_block_size", "1048449"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "0"),
    ("max_insert_threads", "1"),
    // Partitions follow sealing times and epochs; a replay with a clock in large steps may touch many.
    ("max_partitions_per_insert_block", "0"),
    // A null where the table has none is a fault, not a zero.
    ("input_format_null_as_default", "0"),
    // A view that fails must fail the insert: it is tried again as a whole.
    ("materialized_views_ignore_errors", "0"),
];

/// A server, and the job's database there. Clones share connections.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    url: String,
    database: String,
    request_timeout: Duration,
    insert_timeout: Duration,
}

impl Connection {
    pub(super) fn new(settings: &ClickHouseSettings) -> Connection {
        let compression = match settings.compression {
            InsertCompression::None => Compression::None,
            InsertCompression::Lz4 => Compression::Lz4,
        };
        let mut client = Client::default()
            .with_url(&settings.url)
            .with_user(&settings.user)
            .with_password(&settings.password)
            .with_compression(compression)
            .with_product_info("orderflow", env!("CARGO_PKG_VERSION"));
        for (name, value) in SETTINGS {
            client = client.with_setting(name, value);
        }
        Connection {
            client,
            url: settings.url.clone(),
            database: settings.database.clone(),
            request_timeout: settings.request_timeout,
            insert_timeout: settings.insert_timeout,
        }
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// A statement in the job's database. A question mark in `sql` must be doubled.
    pub(super) fn query(&self, sql: &str) -> Query {
        self.client.clone().with_database(&self.database).query(sql)
    }

    /// A statement in no database: before the job's own exists.
    pub(super) fn query_server(&self, sql: &str) -> Query {
        self.client.query(sql)
    }

    /// Runs a statement without a result.
    pub(super) async fn execute(&self, what: &str, query: Query) -> Result<(), SinkError> {
        self.within(self.request_timeout, what, query.execute()).await
    }

    /// A result's column names and rows, as text.
    pub(super) async fn table(&self, what: &str, query: Query) -> Result<(Vec<String>, Vec<Vec<String>>), SinkError> {
        let answer = async { query.fetch_bytes("JSONCompactStringsEachRowWithNames")?.collect().await };
        let bytes = self.within(self.request_timeout, what, answer).await?;
        let mut rows = serde_json::Deserializer::from_slice(&bytes).into_iter::<Vec<String>>();
        let names = rows.next().unwrap_or_else(|| Ok(Vec::new()));
        let parsed = names.and_then(|names| Ok((names, rows.collect::<Result<_, _>>()?)));
        parsed.map_err(|error| self.refused(what, format!("its answer is not a table: {error}")))
    }

    /// Inserts all rows of `batches` in one INSERT under `token`.
    pub(super) async fn insert(&self, table: &str, token: &str, batches: Vec<RecordBatch>, enable: bool) -> Result<(), SinkError> {
        let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok(()) };
        let what = format!("insert into {table}");
        let batches = coalesced(batches).map_err(|error| self.refused(&what, error.to_string()))?;
        let mut client = self.client.clone().with_database(&self.database).with_setting("insert_deduplication_token", token);
        for (name, value) in INSERT_SETTINGS {
            client = client.with_setting(name, value);
        }
        if enable {
            client = client.with_setting("deduplicate_insert", "enable");
        }
        let request = async {
            let mut body = Body::new(&client, table, &schema)?;
            for batch in &batches {
                body.write(batch).await?;
            }
            body.end().await
        };
        self.within(self.insert_timeout, &what, request).await
    }

    /// Passes a point where a test may make a step fail.
    pub(super) fn point(&self, what: &str, point: Point) -> Result<(), SinkError> {
        check(point).map_err(|error| SinkError::unavailable(self.about(what), error))
    }

    /// An error of our own finding.
    pub(super) fn refused(&self, what: &str, message: impl Into<String>) -> SinkError {
        SinkError::refused(self.about(what), message.into())
    }

    fn about(&self, what: &str) -> String {
        format!("ClickHouse at {}: {what}", self.url)
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        what: &str,
        request: impl Future<Output = Result<T, clickhouse::error::Error>>,
    ) -> Result<T, SinkError> {
        match tokio::time::timeout(timeout, request).await {
            Ok(result) => result.map_err(|error| classify(self.about(what), &error)),
            Err(_) => {
                let message = format!("no answer within {} s", timeout.as_secs_f64());
                Err(SinkError::unavailable(self.about(what), message))
            }
        }
    }
}
