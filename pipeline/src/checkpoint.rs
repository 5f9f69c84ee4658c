//! Checkpoints: the state after an epoch, written beside the epoch loop, so that a restart plays only the epochs behind it.
//!
//! # Design
//!
//! A checkpoint is never needed for a result to be right or to be visible: the epoch log alone determines everything. It bounds how long a recovery takes.
//!
//! Operators write their state down as they go (see [`orderflow_operators::snapshot`]): the changes of each epoch, and now and then the base of a key group. A
//! [`Recorder`] stands beside each keyed operator of each worker and passes that on to a writer ([`Writers`]), a task off the workers' threads,
//! which puts it into files of an object store. An epoch whose seal says so ends the files: the state at its end is in them and in those before.
//!
//! ```text
//!  data/00000000000000000101-deduplicate-0-changes-….arrow    what the epochs 101 to 200 changed, on worker 0
//!  data/00000000000000000101-deduplicate-0-bases-….arrow      whole key groups, each as it was at the end of one of these epochs
//!  parts/00000000000000000200-1.json                          what process 1 has written up to epoch 200
//!  manifests/00000000000000000200.json                        the checkpoint of epoch 200: the commit point
//!  savepoints/before-upgrade.json                             one that a user named and keeps
//! ```
//!
//! The manifest names the files that make up the state: for each key group its newest base, and all changes behind the oldest of these. It is created only if
//! it is absent, when all processes have written their part, when the epoch log is durable through its epoch, and when every sink has
//! committed through it: so a job that goes on from it skips nothing that a sink still lacks.
//!
//! What orders change in the windows of the fraud features is not written for each kind of key: it is read from what `deduplicate` writes of the
//! same orders. Bases are each operator's own.
//!
//! A group is written whole again when it has changed some times over, or when its last base is many checkpoints old: what does not change is
//! not written again, and a recovery reads at most a few times the state's size. All this is spread over epochs: no epoch writes more than some
//! multiple of its own rows.
//!
//! State of SQL stages has no changes of its own: at a checkpoint's epoch a [`GroupRecorder`] writes those of its groups whole that are not what was last
//! written of them. That is simple, and costs each checkpoint as much as the groups that changed hold.
//!
//! If the store is down, or slower than the changes come, the recorder drops what it has above a limit and begins anew with bases: a checkpoint fails, the job
//! goes on. Where it was changes of orders that were dropped, on one worker, the windows' groups are written anew on all of them, since they rest on
//! these changes: the coordinator tells the sealer, and that all workers. We maintain the invariant that **a manifest is put only if every group of every
//! operator has a base that is not before the last change that is missing**.
//!
//! **Taking up.** Files are checked against the checksums of the manifest before the first is used; if one is damaged or gone, the checkpoint before
//! is taken, with a warning. Rows find their worker by their key, so any number of workers and processes can take them up.

mod coordinator;
mod groups;
mod loader;
mod manifest;
mod recorder;
mod store;
mod writer;

pub(crate) use coordinator::{Begun, SinkSeen, Trigger};
pub use coordinator::{Coordinator, CoordinatorSettings};
pub use groups::GroupRecorder;
pub(crate) use groups::restore_groups;
pub use loader::{Loader, Resumed};
pub(crate) use manifest::ORDERS;
pub use manifest::{Base, DataFile, FileKind, Manifest, ManifestError, Part, SinkThen};
pub use recorder::{Recorder, RecorderSettings};
pub use store::{CheckpointStore, Listed};
pub use writer::Writers;

/// What can go wrong with checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store is down, full or refuses.
    #[error("checkpoint store {url}: {what}: {source}")]
    Store {
        /// The store.
        url: String,
        /// What was done.
        what: String,
        /// What happened.
        source: object_store::Error,
    },
    /// An object is not what was written.
    #[error("checkpoint store {url}: {object} is damaged: {what}")]
    Damaged {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// The checkpoint is of another release, job or meaning.
    #[error("checkpoint {epoch} in {url} cannot be used: {what}")]
    Different {
        /// The store.
        url: String,
        /// Its epoch.
        epoch: u64,
        /// What differs, and what to do.
        what: String,
    },
    /// There is none of that name or epoch.
    #[error("there is no checkpoint {wanted} in {url}: `orderflow checkpoint list` shows those that there are")]
    Missing {
        /// The store.
        url: String,
        /// What was asked for.
        wanted: String,
    },
    /// The address or an option of it makes no sense.
    #[error("checkpoint.url: {0}")]
    Address(String),
    /// A savepoint of that name is there.
    #[error("there is a savepoint {name} in {url}: choose another name, or drop that one")]
    Exists {
        /// The store.
        url: String,
        /// The name.
        name: String,
    },
}
