//! The record of what a job has begun and committed: table `orderflow_commits`.

use orderflow_faults::Point;
use orderflow_operators::epoch::Epoch;
use uuid::Uuid;

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
///
/// The job before may also be alive: it hears of its successor only when it next appends to the epoch log. So a life writes its number *before* it reads
/// what others begun, and looks, once its own `begun` row is there and before it sends rows, whether there is a [greater life](CommitLog::is_greatest).
/// If the older one sees none, then its `begun` row was there before the newer life's number was, which therefore found it and ends that commit under the same tokens. If
/// it sees one, it sends nothing.
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

    /// Begins a life, and reads what earlier lives left.
    pub(super) async fn recover(&mut self) -> Result<History, SinkError> {
        let sql = "SELECT max(life), maxIf(through_epoch, state = 'committed') FROM orderflow_commits
            WHERE job = {job:String} AND stream = {stream:String}";
        let [before, known] = self.numbers(sql, 0).await?.unwrap_or_default();
        self.life = after(before);
        let nothing = Begun { from: Epoch(0), through: Epoch(known), cut: Cut { rows_max: 0, bytes_max: 0 } };
        self.append("recovered", nothing, 0, [Point::ClickHouseLife, Point::ClickHouseLifeDone]).await?;
        let [_, committed] = self.numbers(sql, 0).await?.unwrap_or_default();
        let sql = "SELECT from_epoch, through_epoch, rows_max, bytes_max FROM orderflow_commits
            WHERE job = {job:String} AND stream = {stream:String} AND state = 'begun' AND from_epoch = {from:UInt64}
            ORDER BY life DESC, through_epoch DESC LIMIT 1";
        let begun = self.numbers(sql, committed + 1).await?.map(|[from, through, rows_max, bytes_max]| Begun {
            from: Epoch(from),
            through: Epoch(through),
            cut: Cut { rows_max, bytes_max },
        });
        Ok(History { committed: Epoch(committed), begun })
    }

    /// Whether no other life has begun since this one.
    pub(super) async fn is_greatest(&self) -> Result<bool, SinkError> {
        let sql = "SELECT max(life) FROM orderflow_commits WHERE job = {job:String} AND stream = {stream:String}";
        let [greatest] = self.numbers(sql, 0).await?.unwrap_or_default();
        Ok(greatest <= self.life)
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

/// The bits of a life that are drawn, so that two that begin at the same moment are not the same.
const DRAWN_BITS: u32 = 16;

/// A life behind all that were seen.
fn after(greatest: u64) -> u64 {
    let drawn = Uuid::new_v4().as_u128() as u64 & ((1 << DRAWN_BITS) - 1);
    (((greatest >> DRAWN_BITS) + 1) << DRAWN_BITS) | drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_rise_and_differ() {
        let lives: Vec<u64> = (0..8).map(|_| after(7)).collect();
        assert!(lives.iter().all(|&life| life > 7 && after(life) > life));
        assert!(lives.iter().any(|&life| life != lives[0]), "{lives:?}");
    }
}
