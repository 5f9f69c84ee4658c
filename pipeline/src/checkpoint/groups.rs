//! Beside an operator of a SQL stage: its state by key group, as a whole.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros, NEVER};
use orderflow_operators::keys::{KeyGroup, hash, owned_groups};
use orderflow_operators::snapshot::KeyedState;
use orderflow_sql::GroupedState;

use super::loader::Loader;
use super::recorder::{Channel, RecorderSettings, Written};

/// Records the state of one operator of a stage on one worker.
pub struct GroupRecorder {
    settings: RecorderSettings,
    channel: Channel,
    groups: Vec<Group>,
    checkpoints: u64,
}

/// A key group that this worker has.
struct Group {
    group: KeyGroup,
    /// What was last written of it, or that nothing was; none: not known, or of no use any more.
    written: Option<Content>,
}

/// Tells states of a group apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Nothing,
    Rows { hash: u64, rows: usize },
}

impl Content {
    fn of(rows: Option<&RecordBatch>) -> Content {
        let Some(rows) = rows.filter(|rows| rows.num_rows() > 0) else { return Content::Nothing };
        let mut bytes = StreamWriter::try_new(Vec::new(), rows.schema_ref()).expect("memory takes the schema");
        bytes.write(rows).expect("memory takes the rows");
        Content::Rows { hash: hash(bytes.get_ref()), rows: rows.num_rows() }
    }
}

impl GroupRecorder {
    /// Of `worker`'s part of an operator, of `peers`. With `is_resumed` an earlier life wrote groups of which nothing is known here.
    pub(super) fn new(settings: RecorderSettings, channel: Channel, worker: usize, peers: usize, is_resumed: bool) -> GroupRecorder {
        let written = (!is_resumed).then_some(Content::Nothing);
        let groups = owned_groups(worker, peers).map(|group| Group { group, written }).collect();
        GroupRecorder { settings, channel, groups, checkpoints: 0 }
    }

    /// An epoch is over; `dump` gives the state at its end.
    ///
    /// # Errors
    /// Those of `dump`.
    pub fn epoch<E>(&mut self, info: &EpochInfo, dump: impl FnOnce() -> Result<Vec<(KeyGroup, RecordBatch)>, E>) -> Result<(), E> {
        let epoch = info.epoch;
        if self.channel.broken.swap(false, Ordering::Relaxed) {
            self.lose(epoch);
        }
        if !info.checkpoint {
            return Ok(());
        }
        // What one checkpoint writes is all in memory for a while, as the state is; a second one waits until the first is on its way.
        if self.channel.waiting.bases() < self.settings.waiting_bytes_max {
            self.write(epoch, dump()?.into_iter().collect());
        } else {
            self.lose(epoch);
        }
        self.checkpoints += 1;
        // The writer ends when the job does.
        let _ = self.channel.written.send(Written::Checkpoint { epoch });
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, mut state: BTreeMap<KeyGroup, RecordBatch>) {
        for at in 0..self.groups.len() {
            let Group { group, written } = self.groups[at];
            let rows = state.remove(&group).filter(|rows| rows.num_rows() > 0);
            let content = Content::of(rows.as_ref());
            // Each in its turn, so that files of long ago are needed no more, and no checkpoint writes them all.
            let turn = (self.checkpoints + u64::from(group.0)).is_multiple_of(self.settings.base_checkpoints_max);
            let is_old = turn && content != Content::Nothing;
            if written == Some(content) && !is_old {
                continue;
            }
            let base = Written::Base { epoch, group, rows };
            self.channel.waiting.sent(&base);
            let _ = self.channel.written.send(base);
            self.groups[at] = Group { group, written: Some(content) };
        }
    }

    /// What was written is of no use until each group has been written anew.
    fn lose(&mut self, epoch: Epoch) {
        self.groups.iter_mut().for_each(|group| group.written = None);
        let _ = self.channel.written.send(Written::Lost { epoch });
    }
}

/// Takes up `worker`'s part of an operator of a stage, of `peers`. To be called off the runtime's threads.
///
/// # Errors
/// If a file cannot be read any more, or the state in it is none of this operator's.
pub(crate) fn restore_groups(
    loader: &Loader,
    operator: &str,
    worker: usize,
    peers: usize,
    state: &mut dyn GroupedState,
) -> Result<(), String> {
    let mut restored = Restored { state, watermark: NEVER, failed: None };
    loader.restore(operator, worker, peers, &mut restored).map_err(|error| error.to_string())?;
    restored.failed.map_or(Ok(()), |error| Err(format!("state of {operator} cannot be taken up: {error}")))
}

/// A stage's state where keyed state is asked for; it is only taken up by it.
struct Restored<'a> {
    state: &'a mut dyn GroupedState,
    watermark: Micros,
    failed: Option<String>,
}

impl KeyedState for Restored<'_> {
    fn schema(&self) -> SchemaRef {
        Schema::empty().into()
    }
    fn group_len(&self, _group: KeyGroup) -> usize {
        0
    }
    fn group(&self, _group: KeyGroup) -> Option<RecordBatch> {
        None
    }
    fn keep_changes(&mut self) {}
    fn take_changes(&mut self) -> Vec<RecordBatch> {
        Vec::new()
    }
    fn begin_restore(&mut self, watermark: Micros) {
        self.watermark = watermark;
    }
    fn restore(&mut self, rows: &RecordBatch) {
        if let Err(error) = self.state.restore(self.watermark, rows) {
            self.failed.get_or_insert(error.strip_backtrace());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use arrow::array::{ArrayRef, Int64Array};
    use orderflow_operators::keys::KEY_GROUPS;
    use tokio::sync::mpsc;

    use super::*;
    use crate::checkpoint::recorder::Waiting;

    const SETTINGS: RecorderSettings = RecorderSettings { waiting_bytes_max: 1 << 20, base_checkpoints_max: 3 };

    struct Setup {
        recorder: GroupRecorder,
        written: mpsc::UnboundedReceiver<Written>,
        broken: Arc<AtomicBool>,
        waiting: Arc<Waiting>,
        epoch: u64,
    }

    impl Setup {
        fn new(is_resumed: bool) -> Setup {
            let (sender, written) = mpsc::unbounded_channel();
            let (broken, waiting) = (Arc::new(AtomicBool::new(false)), Arc::<Waiting>::default());
            let channel = Channel { written: sender, waiting: waiting.clone(), broken: broken.clone(), renewal: None };
            Setup { recorder: GroupRecorder::new(SETTINGS, channel, 0, 1, is_resumed), written, broken, waiting, epoch: 0 }
        }

        /// What a checkpoint of this state writes: the groups, and whether something was lost.
        fn checkpoint(&mut self, state: &[(u16, i64)]) -> (BTreeMap<u16, bool>, bool) {
            self.epoch += 1;
            let info = EpochInfo { epoch: Epoch(self.epoch), sealed_at: 0, watermark_before: NEVER, watermark: NEVER, checkpoint: true };
            let rows = |value: i64| RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![value])) as ArrayRef)]);
            let dump =
                || Ok::<_, Infallible>(state.iter().map(|&(group, value)| (KeyGroup(group), rows(value).expect("a batch"))).collect());
            let Ok(()) = self.recorder.epoch(&info, dump);
            let (mut groups, mut lost) = (BTreeMap::new(), false);
            while let Ok(written) = self.written.try_recv() {
                self.waiting.done(written.is_base(), written.bytes());
                match written {
                    Written::Base { group, rows, .. } => drop(groups.insert(group.0, rows.is_some())),
                    Written::Lost { .. } => lost = true,
                    _ => {}
                }
            }
            (groups, lost)
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let mut setup = Setup::new(false);
        assert_eq!(setup.checkpoint(&[]), (BTreeMap::new(), false), "nothing is there, and was there");
        assert_eq!(setup.checkpoint(&[(3, 1), (7, 1)]).0, [(3, true), (7, true)].into());
        assert_eq!(setup.checkpoint(&[(3, 1), (7, 2)]).0, [(7, true)].into());
        assert_eq!(setup.checkpoint(&[(7, 2)]).0, [(3, false)].into(), "what has become empty is written as such");
        assert_eq!(setup.checkpoint(&[(7, 2)]).0, BTreeMap::new());
        assert_eq!(setup.checkpoint(&[(7, 2)]).0, [(7, true)].into(), "it is its turn");
    }

    #[test]
    fn what_an_earlier_life_wrote_is_not_known() {
        let mut setup = Setup::new(true);
        let (groups, _) = setup.checkpoint(&[(3, 1)]);
        assert_eq!(groups.len(), KEY_GROUPS);
        assert_eq!(groups.into_iter().filter(|(_, has_rows)| *has_rows).collect::<Vec<_>>(), [(3, true)]);
        assert_eq!(setup.checkpoint(&[(3, 1)]).0, BTreeMap::new());
    }

    #[test]
    fn all_is_written_again_behind_a_loss() {
        let mut setup = Setup::new(false);
        setup.checkpoint(&[(3, 1)]);
        setup.broken.store(true, Ordering::Relaxed);
        let (groups, lost) = setup.checkpoint(&[(3, 1)]);
        assert!(lost && groups.len() == KEY_GROUPS);
        // The store is slow: nothing more is written until what waits is on its way.
        setup.waiting.bases.store(2 << 20, Ordering::Relaxed);
        assert_eq!(setup.checkpoint(&[(3, 2)]), (BTreeMap::new(), true));
        setup.waiting.bases.store(0, Ordering::Relaxed);
        assert_eq!(setup.checkpoint(&[(3, 2)]).0.len(), KEY_GROUPS);
    }
}
