//! The record of what a job has begun and committed: table `orderflow_commits`.

use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;

use super::connection::Connection;
use super::cut::Cut;
use crate::SinkError;

/// A commit that was begun: its rows may be in the table, some or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// Its first epoch.
    pub from: Epoch,
    /// Its last epoch.
    pub through: Epoch,
    /// How its rows are cut into inserts.
    pub cut: Cut,
}

/// What an earlier life left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History {
    /// Through here all is committed.
    pub committed: Epoch,
    /// What was begun after that and must be ended alike.
    pub begun: Option<Begun>,
}

/// One stream's part of the table, in one **life**: from one [`CommitLog::recover`] to the next.
///
/// # Why lives
///
/// A statement that a dying job sent may reach the server after the next life has looked. For a `begun` row this means that two of them can
/// stand there for the same first epoch: one whose rows were never sent, since its answer never came, and the later life's, whose rows may
/// be in the table. The greater life is the right one: a life writes its own number before anything else and waits for the answer, so
/// that every later life has a greater one.
#[derive(Clone)]
pub(super) struct CommitLog {
    connection: Connection,
    job: String,
    stream: String,
    life: u64,
}

impl CommitLog {
    pub(super) fn new(connection: Connection, job: &str, stream: &str) -> CommitLog {
        CommitLog { connection, job: job.to_owned(), stream: stream.to_owned(), life: 0 }
    }

    /// Reads what earlier lives left and begins a life.
    pub(super) async fn recover(&mut self) -> Result<History, SinkError> {
        let sql = "SELECT max(life), maxIf(through_epoch, state = 'committed') FROM orderflow_commits
            WHERE job = {job:String} AND stream = {stream:String}";
        let [life, committed] = self.numbers(sql, 0).await?.unwrap_or_default();
        let sql = "SELECT from_epoch, through_epoch, rows_max, bytes_max FROM orderflow_commits
            WHERE job = {job:String} AND stream = {stream:String} AND state = 'begun' AND from_epoch = {from:UInt64}
            ORDER BY life DESC, through_epoch DESC LIMIT 1";
        let begun = self.numbers(sql, committed + 1).await?.map(|[from, through, rows_max, bytes_max]| Begun {
            from: Epoch(from),
            through: Epoch(through),
            cut: Cut { rows_max, bytes_max },
        });
        self.life = life + 1;
        let nothing = Begun { from: Epoch(0), through: Epoch(committed), cut: Cut { rows_max: 0, bytes_max: 0 } };
        self.append("recovered", nothing, 0, [Point::ClickHouseLife, Point::ClickHouseLifeDone]).await?;
        Ok(History { committed: Epoch(committed), begun })
    }

    /// Records that `commit` is begun.
    pub(super) async fn begin(&self, commit: Begun, rows: u64) -> Result<(), SinkError> {
        self.append("begun", commit, rows, [Point::ClickHouseBegin, Point::ClickHouseBegun]).await
    }

    /// Records that all rows of `commit` are in the table.
    pub(super) async fn commit(&self, commit: Begun, rows: u64) -> Result<(), SinkError> {
        self.append("committed", commit, rows, [Point::ClickHouseCommit, Point::ClickHouseCommitted]).await
    }

    /// The token of a commit's insert number `part`. The same rows have the same token in every life, other rows another.
    pub(super) fn token(&self, commit: Begun, part: usize) -> String {
        format!("{}/{}/{}-{}/{part}", self.job, self.stream, commit.from, commit.through)
    }

    /// Appending a row twice is the same as once.
    async fn append(&self, state: &str, commit: Begun, rows: u64, [before, after]: [Point; 2]) -> Result<(), SinkError> {
        let sql = "INSERT INTO orderflow_commits (job, stream, life, state, from_epoch, through_epoch, rows_max, bytes_max, rows)
            SELECT {job:String}, {stream:String}, {life:UInt64}, {state:String}, {from:UInt64}, {through:UInt64},
                {rows_max:UInt64}, {bytes_max:UInt64}, {rows:UInt64}";
        let query = self
            .connection
            .query(sql)
            .param("job", &self.job)
            .param("stream", &self.stream)
            .param("life", self.life)
            .param("state", state)
            .param("from", commit.from.0)
            .param("through", commit.through.0)
            .param("rows_max", commit.cut.rows_max)
            .param("bytes_max", commit.cut.bytes_max)
            .param("rows", rows);
        let what = format!("record {} of {}", state, self.stream);
        self.connection.point(&what, before)?;
        self.connection.execute(&what, query).await?;
        self.connection.point(&what, after)
    }

    /// The first row of a query of numbers.
    async fn numbers<const N: usize>(&self, sql: &str, from: u64) -> Result<Option<[u64; N]>, SinkError> {
        let what = "read what was committed";
        let query = self.connection.query(sql).param("job", &self.job).param("stream", &self.stream).param("from", from);
        let (_, rows) = self.connection.table(what, query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let numbers: Option<Vec<u64>> = row.iter().map(|text| text.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.map(Some).ok_or_else(|| self.connection.refused(what, format!("orderflow_commits holds {row:?}")))
    }
}
