//! What can go wrong with an epoch log.

use crate::source::SourceError;

/// What can go wrong with an epoch log. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum EpochLogError {
    /// Reading or writing a file failed.
    #[error("epoch log {path}: {source}; the job can be started again once that is mended, nothing is lost")]
    Io {
        /// The file.
        path: String,
        /// What happened.
        source: std::io::Error,
    },
    /// Somebody else writes to it.
    #[error("epoch log {path} is in use: another orderflow runs with this folder; stop it, or use another folder")]
    InUse {
        /// The lock file.
        path: String,
    },
    /// Somebody else opened it later, and is its writer now.
    #[error(
        "another orderflow with job.id \"{job}\" took over its epoch log {log}, and this one stops: run one at a time; if both are \
         wanted, give each a job.id and an epoch log of its own"
    )]
    TakenOver {
        /// The log.
        log: String,
        /// The job's name.
        job: String,
    },
    /// A record in its midst is not what was written, or is not there.
    #[error("epoch log {place} is damaged: {what}; restore it from a copy, or begin anew with another epoch log and job.id")]
    Damaged {
        /// The file and line, or what another home has in their place.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// It belongs to another job, input or meaning.
    #[error("epoch log {log} cannot be continued: {what}")]
    Different {
        /// The log.
        log: String,
        /// What differs, and what to do.
        what: String,
    },
    /// It ends before the epoch behind which it was to be read.
    #[error(
        "epoch log {log} ends with epoch {last}, but there was an epoch {after}: it is the log of another job, or a part of it was lost; \
         put back the right one, or begin anew with another epoch log and job.id"
    )]
    TooShort {
        /// The log.
        log: String,
        /// Its last epoch.
        last: u64,
        /// The epoch that was to be there.
        after: u64,
    },
    /// It begins behind the epoch behind which it was to be read.
    #[error(
        "epoch log {log} begins with epoch {first}, and what comes behind epoch {after} is needed: older epochs were dropped (epoch_log.keep); \
         only from a checkpoint of epoch {} or later can be gone on", .first - 1
    )]
    Dropped {
        /// The log.
        log: String,
        /// Its first epoch.
        first: u64,
        /// The epoch whose successor was to be there.
        after: u64,
    },
    /// There is none.
    #[error("there is no epoch log in {log}: give the folder that was --out of a replay, or the settings (--config) of a run")]
    Missing {
        /// The home.
        log: String,
    },
    /// Settings that do not go together with what is there.
    #[error("epoch log {log} cannot be used: {what}")]
    Refused {
        /// The log.
        log: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Brokers or their topic.
    #[error("epoch log {log}: {source}")]
    Brokers {
        /// The log.
        log: String,
        /// What happened, and what to do.
        source: SourceError,
    },
    /// Brokers or the store do not answer as they should; nothing was written.
    #[error("epoch log {log} cannot be reached: {reason}; the job can be started again once that is mended, nothing is lost")]
    Unavailable {
        /// The log.
        log: String,
        /// What happened.
        reason: String,
    },
    /// Records were sent, and there was no answer.
    #[error(
        "epoch log {log}: it is not known whether the last epochs were written ({reason}); start the job again: nothing is lost, it goes \
         on from what the log holds"
    )]
    Unknown {
        /// The log.
        log: String,
        /// What happened.
        reason: String,
    },
    /// A bug of its own.
    #[error("the epoch log's writer failed; this is a bug, please report it")]
    Panicked,
}
