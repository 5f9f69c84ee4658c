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
    /// How many checkpoints there were then.
    checkpoints: u64,
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
        let groups = owned_groups(worker, peers).map(|group| Group { group, written, checkpoints: 0 }).collect();
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
        if self.channel.waiting_bytes.load(Ordering::Relaxed) < self.settings.waiting_bytes_max {
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
            let Group { group, written, checkpoints } = self.groups[at];
            let rows = state.remove(&group).filter(|rows| rows.num_rows() > 0);
            let content = Content::of(rows.as_ref());
            let is_old = content != Content::Nothing && self.checkpoints - checkpoints >= self.settings.base_checkpoints_max;
            if written == Some(content) && !is_old {
                continue;
            }
            let base = Written::Base { epoch, group, rows };
            self.channel.waiting_bytes.fetch_add(base.bytes(), Ordering::Relaxed);
            let _ = self.channel.written.send(base);
            self.groups[at] = Group { group, written: Some(content), checkpoints: self.checkpoints };
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
