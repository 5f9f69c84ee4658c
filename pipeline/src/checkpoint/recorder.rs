//! Beside a keyed operator of a worker: passes on what its state becomes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use orderflow_operators::epoch::{Epoch, EpochInfo};
use orderflow_operators::keys::{KEY_GROUPS, KeyGroup, owned_groups};
use orderflow_operators::snapshot::KeyedState;
use tokio::sync::mpsc;

/// When groups are written whole.
#[derive(Clone, Copy, Debug)]
pub struct RecorderSettings {
    /// Most bytes of rows that may wait to be written, for each operator of a worker.
    pub waiting_bytes_max: usize,
    /// A group's base is renewed after so many checkpoints, however little has changed.
    pub base_checkpoints_max: u64,
}

/// What a writer is sent.
#[derive(Debug)]
pub(super) enum Written {
    /// What epochs up to this one changed; it is of that one.
    Changes { epoch: Epoch, rows: RecordBatch },
    /// A group at the end of an epoch; none if it has nothing.
    Base { epoch: Epoch, group: KeyGroup, rows: Option<RecordBatch> },
    /// Some changes behind this epoch are missing: what was written is of no use any more but for groups whose base is newer.
    Lost { epoch: Epoch },
    /// A checkpoint is of the state at the end of this epoch.
    Checkpoint { epoch: Epoch },
}

impl Written {
    /// Bytes of rows in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Written::Changes { rows, .. } | Written::Base { rows: Some(rows), .. } => rows.get_array_memory_size(),
            _ => 0,
        }
    }
}

/// The way from a recorder to its writer.
pub(super) struct Channel {
    pub written: mpsc::UnboundedSender<Written>,
    /// Of all that was sent and not yet written. The recorder keeps it bounded.
    pub waiting_bytes: Arc<AtomicUsize>,
    /// Something could not be written: the recorder begins anew.
    pub broken: Arc<AtomicBool>,
    /// For an operator whose changes are another's: bases of before this epoch are of no use, since some of those changes are missing.
    pub renewal: Option<Arc<AtomicU64>>,
}

/// Below this many changed rows a group is not written again.
const BASE_ROWS_MIN: u64 = 1024;
/// How many times its entries must have changed before a group is written again: more costs a recovery that much, less costs the job.
const BASE_CHANGES: u64 = 4;
/// Rows of bases that an epoch may always write.
const BUDGET_ROWS: i64 = 4096;

/// Records the state of one operator of one worker.
pub struct Recorder {
    settings: RecorderSettings,
    channel: Channel,
    groups: Vec<Group>,
    /// The group that is looked at next.
    next: usize,
    /// Rows that have changed, over all groups.
    changed: u64,
    checkpoints: u64,
    /// Rows of bases that may be written; below 0 if a large group took more.
    budget: i64,
    lost: bool,
    /// Groups were last written anew for what was missing up to this epoch.
    renewed: Epoch,
}

/// A key group that this worker has.
struct Group {
    group: KeyGroup,
    /// How many rows had changed, and how many checkpoints there were, when it was last written.
    changed: u64,
    checkpoints: u64,
    /// It must be written before a checkpoint can be taken up.
    due: bool,
}

impl Recorder {
    /// Of `worker`'s part of an operator, of `peers`. What there is already is in an earlier checkpoint, or nothing.
    pub(super) fn new(settings: RecorderSettings, channel: Channel, worker: usize, peers: usize) -> Recorder {
        let groups = owned_groups(worker, peers).map(|group| Group { group, changed: 0, checkpoints: 0, due: false }).collect();
        Recorder { settings, channel, groups, next: 0, changed: 0, checkpoints: 0, budget: 0, lost: false, renewed: Epoch(0) }
    }

    /// An epoch is over.
    pub fn epoch(&mut self, info: &EpochInfo, state: &mut dyn KeyedState) {
        let epoch = info.epoch;
        if self.channel.broken.swap(false, Ordering::Relaxed) {
            self.lost = true;
            let _ = self.channel.written.send(Written::Lost { epoch });
        }
        if let Some(renewal) = &self.channel.renewal {
            let missing = Epoch(renewal.load(Ordering::Acquire));
            if missing > self.renewed && epoch >= missing {
                self.renewed = missing;
                self.groups.iter_mut().for_each(|group| group.due = true);
            }
        }
        let mut rows = state.take_changed_rows() as usize;
        self.changed += rows as u64;
        if info.checkpoint || !state.changes_add_up() {
            for changes in state.take_changes() {
                rows += changes.num_rows();
                self.changed += changes.num_rows() as u64;
                self.send(Written::Changes { epoch, rows: changes });
            }
        }
        if self.lost && self.channel.waiting_bytes.load(Ordering::Relaxed) < self.settings.waiting_bytes_max / 2 {
            // From here on nothing is missing; what came before is in bases to come.
            self.lost = false;
            self.groups.iter_mut().for_each(|group| group.due = true);
        }
        self.budget = (self.budget + BUDGET_ROWS + 2 * rows as i64).min(BUDGET_ROWS + 2 * rows as i64);
        if !self.lost {
            self.write_bases(epoch, state);
        }
        if info.checkpoint {
            self.checkpoints += 1;
            self.send(Written::Checkpoint { epoch });
        }
    }

    fn write_bases(&mut self, epoch: Epoch, state: &dyn KeyedState) {
        for _ in 0..self.groups.len() {
            if self.budget <= 0 {
                return;
            }
            let at = self.next;
            self.next = (at + 1) % self.groups.len();
            let Group { group, changed, checkpoints, due } = self.groups[at];
            // Keys are spread evenly over the groups, and so are changes.
            let changes = (self.changed - changed) / self.groups.len() as u64;
            let is_old = self.checkpoints - checkpoints >= self.settings.base_checkpoints_max;
            // Of several of one checkpoint the last would count alone.
            let has_changed = self.checkpoints > checkpoints && changes >= BASE_ROWS_MIN.max(BASE_CHANGES * state.group_len(group) as u64);
            if !(due || is_old || has_changed) {
                continue;
            }
            let rows = state.group(group);
            self.budget -= 1 + rows.as_ref().map_or(0, |rows| rows.num_rows() as i64);
            self.groups[at] = Group { group, changed: self.changed, checkpoints: self.checkpoints, due: false };
            self.send(Written::Base { epoch, group, rows });
            if self.lost {
                return;
            }
        }
    }

    fn send(&mut self, written: Written) {
        let (epoch, bytes) = match &written {
            Written::Changes { epoch, .. } | Written::Base { epoch, .. } => (*epoch, written.bytes()),
            Written::Lost { epoch } | Written::Checkpoint { epoch } => (*epoch, 0),
        };
        let waiting = self.channel.waiting_bytes.load(Ordering::Relaxed);
        if bytes > 0 && (self.lost || waiting + bytes > self.settings.waiting_bytes_max) {
            if !std::mem::replace(&mut self.lost, true) {
                let _ = self.channel.written.send(Written::Lost { epoch });
            } else if matches!(written, Written::Changes { .. }) {
                // Later bases only may be taken up.
                let _ = self.channel.written.send(Written::Lost { epoch });
            }
            return;
        }
        self.channel.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // The writer ends when the job does.
        let _ = self.channel.written.send(written);
    }
}

/// All groups, in order.
pub(super) fn all_groups() -> impl Iterator<Item = KeyGroup> + Clone {
    (0..KEY_GROUPS as u16).map(KeyGroup)
}
