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
    /// So many bytes of changes may wait to be written, for each operator of a worker, so many of groups, and what exceeds them first: a group has any
    /// size.
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
    pub fn is_base(&self) -> bool {
        matches!(self, Written::Base { .. })
    }

    /// Bytes of rows in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Written::Changes { rows, .. } | Written::Base { rows: Some(rows), .. } => rows.get_array_memory_size(),
            _ => 0,
        }
    }
}

/// Bytes that wait to be written. Groups can be written later, and so are counted by themselves: changes must not be dropped for them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    changes: AtomicUsize,
    pub(super) bases: AtomicUsize,
}

impl Waiting {
    fn of(&self, is_base: bool) -> &AtomicUsize {
        if is_base { &self.bases } else { &self.changes }
    }

    /// It is on its way.
    pub fn sent(&self, written: &Written) {
        self.of(written.is_base()).fetch_add(written.bytes(), Ordering::Relaxed);
    }

    /// It is no longer in memory; told by what was sent, which may be gone.
    pub fn done(&self, is_base: bool, bytes: usize) {
        self.of(is_base).fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }

    pub fn bases(&self) -> usize {
        self.bases.load(Ordering::Relaxed)
    }
}

/// The way from a recorder to its writer.
pub(super) struct Channel {
    pub written: mpsc::UnboundedSender<Written>,
    /// What was sent and not yet written. The recorder keeps it bounded.
    pub waiting: Arc<Waiting>,
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
        if self.lost && self.channel.waiting.changes() < self.settings.waiting_bytes_max / 2 {
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
            if self.budget <= 0 || self.channel.waiting.bases() >= self.settings.waiting_bytes_max {
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
        }
    }

    fn send(&mut self, written: Written) {
        let are_too_many = self.lost || self.channel.waiting.changes() >= self.settings.waiting_bytes_max;
        if let Written::Changes { epoch, .. } = written
            && written.bytes() > 0
            && are_too_many
        {
            self.lost = true;
            // Later bases only may be taken up.
            let _ = self.channel.written.send(Written::Lost { epoch });
            return;
        }
        self.channel.waiting.sent(&written);
        // The writer ends when the job does.
        let _ = self.channel.written.send(written);
    }
}

/// All groups, in order.
pub(super) fn all_groups() -> impl Iterator<Item = KeyGroup> + Clone {
    (0..KEY_GROUPS as u16).map(KeyGroup)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::SchemaRef;
    use orderflow_operators::epoch::Micros;

    use super::*;

    const ROWS: usize = 1_000;

    /// Groups of some rows that change in each epoch.
    struct Changing;

    fn rows() -> RecordBatch {
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["a key of some bytes"; ROWS]));
        RecordBatch::try_from_iter([("key", keys)]).unwrap()
    }

    impl KeyedState for Changing {
        fn schema(&self) -> SchemaRef {
            rows().schema()
        }
        fn group_len(&self, _group: KeyGroup) -> usize {
            ROWS
        }
        fn group(&self, _group: KeyGroup) -> Option<RecordBatch> {
            Some(rows())
        }
        fn keep_changes(&mut self) {}
        fn take_changes(&mut self) -> Vec<RecordBatch> {
            Vec::new()
        }
        fn begin_restore(&mut self, _watermark: Micros) {}
        fn restore(&mut self, _rows: &RecordBatch) {}
    }

    #[test]
    fn a_group_that_is_larger_than_what_may_wait_is_written() {
        let waiting_bytes_max = rows().get_array_memory_size() / 4;
        let (written, mut queue) = mpsc::unbounded_channel();
        let channel = Channel { written, waiting: Arc::default(), broken: Arc::default(), renewal: None };
        let waiting = channel.waiting.clone();
        let mut recorder = Recorder::new(RecorderSettings { waiting_bytes_max, base_checkpoints_max: 1 }, channel, 0, 64);
        let mut bases = 0;
        for epoch in 1..=8 {
            let info = EpochInfo { epoch: Epoch(epoch), sealed_at: 0, watermark_before: 0, watermark: 0, checkpoint: true };
            recorder.epoch(&info, &mut Changing);
            while let Ok(written) = queue.try_recv() {
                assert!(!matches!(written, Written::Lost { .. }), "epoch {epoch}: {written:?}");
                bases += usize::from(written.is_base());
                waiting.done(written.is_base(), written.bytes());
            }
        }
        assert!(bases >= 7, "{bases} bases in 8 checkpoints");
    }
}
