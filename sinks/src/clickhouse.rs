//! ClickHouse: one table for each stream, written over HTTP as Arrow, and views for reports.
//!
//! # Exactly once
//!
//! A commit is the rows of epochs `from..=through`, and these depend on the epochs only. Its steps:
//!
//! 1. A row `begun` in `orderflow_commits` fixes `through`, and how rows are cut into inserts. Behind it the job looks whether another one has taken
//!    over, and ends if so.
//! 2. Inserts of at most [`ClickHouseSettings::insert_rows_max`] rows, each with a token of its own made of job, stream, epochs
//!    and number. The server drops an insert whose token it knows, in the table and in the target of every view.
//! 3. A row `committed`.
//!
//! Each step can be repeated. A job that dies in between finds the commit begun but not committed; [`Sink::recover`] tells the
//! job to end a commit at just that epoch, the same rows come again under the same tokens, and those that are there are
//! dropped. Until then some of its rows may be visible.
//!
//! We maintain the invariant that **a token stands for one set of rows for ever**: of the same token with other rows the server drops
//! the rows, silently. So `through` and the cut are read back from the record, never from the settings of today.
//!
//! Behind a load balancer the server may answer [`Sink::recover`] from a replica that lags; give the address of one replica, or of
//! ClickHouse Cloud, whose replicas share their data.

mod body;
mod commits;
mod connection;
mod cut;
mod error;
pub mod reports;
mod schema;

use std::collections::VecDeque;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;
use orderflow_operators::streams::OutputStream;

use self::commits::{Begun, CommitLog};
use self::connection::Connection;
use self::cut::{Cut, cut_into_inserts};
use self::schema::Server;
use crate::{EpochRows, Recovered, Sink, SinkError};

/// More rows than this could come to more than one block of the server.
const INSERT_ROWS_LIMIT: u64 = 500_000;

/// A server, a database there, and how to write to it.
#[derive(Clone)]
pub struct ClickHouseSettings {
    /// The HTTP interface: `http://host:8123` or `https://host:8443`.
    pub url: String,
    /// The job's own database; made if absent.
    pub database: String,
    /// User. It needs all rights on the database, and the right to make it if it is absent.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The job's name in the record of commits. Two jobs on one database need two names.
    pub job: String,
    /// Longest time for a statement other than an insert of rows.
    pub request_timeout: Duration,
    /// Longest time for an insert of rows, views included.
    pub insert_timeout: Duration,
    /// Most rows of an insert; 500 000 at most. An insert is in the server's memory as a whole.
    pub insert_rows_max: u64,
    /// Most bytes of an insert, uncompressed; one row is never split.
    pub insert_bytes_max: u64,
    /// How rows travel.
    pub compression: InsertCompression,
}

/// How rows travel to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InsertCompression {
    /// As they are: least CPU, for a server on the same network.
    #[default]
    None,
    /// LZ4: about a third of the bytes, for a server that is far.
    Lz4,
}

impl Default for ClickHouseSettings {
    fn default() -> Self {
        ClickHouseSettings {
            url: "http://127.0.0.1:8123".to_owned(),
            database: "orderflow".to_owned(),
            user: "default".to_owned(),
            password: String::new(),
            job: "orderflow".to_owned(),
            request_timeout: Duration::from_secs(30),
            insert_timeout: Duration::from_secs(120),
            insert_rows_max: INSERT_ROWS_LIMIT,
            insert_bytes_max: 256 << 20,
            compression: InsertCompression::None,
        }
    }
}

/// Writes one stream into its table.
pub struct ClickHouseSink {
    connection: Connection,
    commits: CommitLog,
    stream: OutputStream,
    schema: SchemaRef,
    cut: Cut,
    /// Rows not yet committed, by epoch.
    waiting: VecDeque<EpochRows>,
    state: Option<State>,
}

/// What is known after [`Sink::recover`].
#[derive(Clone, Copy)]
struct State {
    server: Server,
    committed: Epoch,
    /// The commit under way, by this life or an earlier one.
    open: Option<Open>,
}

#[derive(Clone, Copy)]
struct Open {
    commit: Begun,
    /// Whether the server is known to have its row.
    recorded: bool,
    /// Inserts that the server has confirmed to this life.
    inserts_done: usize,
}

impl ClickHouseSink {
    /// A sink for `stream`, whose rows have the columns of `schema` ([`OutputStream::schema`]). Nothing is sent yet.
    ///
    /// # Errors
    /// If the address or a limit makes no sense.
    pub fn new(stream: impl Into<OutputStream>, schema: SchemaRef, settings: ClickHouseSettings) -> Result<ClickHouseSink, SinkError> {
        let stream = stream.into();
        let connection = Connection::new(&settings);
        let wrong = |message: String| Err(connection.refused("use the settings", message));
        match url::Url::parse(&settings.url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => return wrong("sinks.clickhouse.url must be like http://host:8123 or https://host:8443".to_owned()),
        }
        if settings.database.is_empty() || settings.job.is_empty() {
            return wrong("sinks.clickhouse.database and job.id must have a name".to_owned());
        }
        if !(1..=INSERT_ROWS_LIMIT).contains(&settings.insert_rows_max) || settings.insert_bytes_max == 0 {
            return wrong(format!("an insert has 1 to {INSERT_ROWS_LIMIT} rows, and more than 0 bytes"));
        }
        let commits = CommitLog::new(connection.clone(), &settings.job, stream.name());
        let cut = Cut { rows_max: settings.insert_rows_max, bytes_max: settings.insert_bytes_max };
        Ok(ClickHouseSink { connection, commits, stream, schema, cut, waiting: VecDeque::new(), state: None })
    }

    async fn commit_through(&mut self, through: Epoch) -> Result<(), SinkError> {
        let what = format!("commit {}", self.stream);
        let Some(state) = &mut self.state else { return Err(self.connection.refused(&what, "it was not asked what it has")) };
        if through <= state.committed {
            return Ok(());
        }
        let from = state.committed.next();
        let open = state.open.get_or_insert(Open { commit: Begun { from, through, cut: self.cut }, recorded: false, inserts_done: 0 });
        let commit = open.commit;
        if commit.through != through {
            let message = format!("a commit through epoch {} was begun, it cannot end at {through}", commit.through);
            return Err(self.connection.refused(&what, message));
        }
        let batches: Vec<RecordBatch> = self.waiting.iter().filter(|r| r.epoch <= through).map(|r| r.rows.clone()).collect();
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        if !open.recorded {
            self.commits.begin(commit, rows).await?;
            open.recorded = true;
        }
        if !self.commits.is_greatest().await? {
            return Err(self.connection.refused(
                &what,
                "another job with the id of this one has begun to write to the database; stop one of them, or give it another job.id or database",
            ));
        }
        for (number, insert) in cut_into_inserts(&batches, commit.cut).into_iter().enumerate().skip(open.inserts_done) {
            let token = self.commits.token(commit, number);
            self.connection.point(&what, Point::ClickHouseInsert)?;
            self.connection.insert(self.stream.name(), &token, insert, state.server.has_deduplicate_insert).await?;
            self.connection.point(&what, Point::ClickHouseInserted)?;
            open.inserts_done = number + 1;
        }
        self.commits.commit(commit, rows).await?;
        state.committed = through;
        state.open = None;
        self.waiting.retain(|r| r.epoch > through);
        Ok(())
    }
}

#[async_trait]
impl Sink for ClickHouseSink {
    fn name(&self) -> &str {
        "clickhouse"
    }

    async fn recover(&mut self) -> Result<Recovered, SinkError> {
        self.state = None;
        self.waiting.clear();
        let server = schema::prepare(&self.connection, &self.stream, &self.schema).await?;
        let history = self.commits.recover().await?;
        let open = history.begun.map(|commit| Open { commit, recorded: true, inserts_done: 0 });
        self.state = Some(State { server, committed: history.committed, open });
        Ok(Recovered { committed: history.committed, group_through: history.begun.map(|commit| commit.through) })
    }

    async fn write(&mut self, rows: EpochRows) -> Result<(), SinkError> {
        if rows.rows.schema_ref().fields() != self.schema.fields() {
            let message = format!("rows of epoch {} have the columns {}", rows.epoch, rows.rows.schema_ref());
            return Err(self.connection.refused(&format!("write {}", self.stream), message));
        }
        self.waiting.push_back(rows);
        Ok(())
    }

    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError> {
        self.commit_through(through).await
    }
}
