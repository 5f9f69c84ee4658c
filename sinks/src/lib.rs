//! Where the job's streams land.
//!
//! A [`Sink`] takes one stream's epochs into one table, each exactly once. It answers from its own store what it has
//! [committed](Sink::recover), so that no sink waits for another and none takes part in a checkpoint.
//!
//! Queueing, grouping of epochs, waiting for the epoch log and retrying are not written here: the job drives its sinks.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use orderflow_operators::epoch::Epoch;

pub mod batches;
pub mod clickhouse;
pub mod delta;
mod json;
pub mod jsonl;
pub mod kafka;
pub mod store;

/// One stream's rows of one epoch, in canonical order, with the columns that readers see. There is at least one.
#[derive(Clone, Debug)]
pub struct EpochRows {
    /// The epoch.
    pub epoch: Epoch,
    /// Its rows.
    pub rows: RecordBatch,
}

/// What a sink had done before it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Everything through this epoch is in the table; 0: nothing.
    pub committed: Epoch,
    /// A group of epochs was begun behind `committed`, and may be in the table in part: the next commit must be through exactly
    /// this epoch.
    pub group_through: Option<Epoch>,
}

/// Why a sink did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Trying again may help: a network, a store or a server is down or full.
    #[error("{what}: {reason}")]
    Unavailable {
        /// What it was about.
        what: String,
        /// What happened.
        reason: String,
    },
    /// Trying again does not help: another schema, bad credentials, a wrong address.
    #[error("{what}: {reason}")]
    Refused {
        /// What it was about.
        what: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
}

impl SinkError {
    /// Trying again may help.
    pub fn unavailable(what: impl Into<String>, reason: impl ToString) -> Self {
        SinkError::Unavailable { what: what.into(), reason: reason.to_string() }
    }
    /// Trying again does not help.
    pub fn refused(what: impl Into<String>, reason: impl ToString) -> Self {
        SinkError::Refused { what: what.into(), reason: reason.to_string() }
    }
}

/// Takes one stream into one table.
///
/// The order of calls is: [`recover`](Sink::recover); then [`write`](Sink::write) for each epoch that has rows, epochs rising
/// and behind what is committed; [`commit`](Sink::commit) now and then.
///
/// # Cancellation
/// A call that is dropped half-way leaves the sink as a crash would: only `recover` may follow.
#[async_trait]
pub trait Sink: Send {
    /// The kind of sink: `delta`, `clickhouse` …
    fn name(&self) -> &str;

    /// Whether what is committed stays known, so that [`recover`](Sink::recover) tells of it in a later life. What is only printed does not.
    fn keeps_record(&self) -> bool {
        true
    }

    /// Makes the table if there is none, checks it, and says what it holds. May be called again.
    async fn recover(&mut self) -> Result<Recovered, SinkError>;

    /// Takes an epoch's rows. They may stay in memory, or be written where no reader sees them. After an error they were not
    /// taken.
    async fn write(&mut self, rows: EpochRows) -> Result<(), SinkError>;

    /// Makes all that was written durable and visible, exactly once, and records `through`. After an error it may be called
    /// again, with the same `through`. Without rows it still records the epoch.
    async fn commit(&mut self, through: Epoch) -> Result<(), SinkError>;

    /// Called now and then while there is nothing to commit: keeps what the store would forget. An error is as one of
    /// [`commit`](Sink::commit).
    async fn keep_alive(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Housekeeping that is due (compaction, removal of old files). Called between commits; an error changes nothing of the
    /// rows.
    async fn maintain(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}
