//! State as rows: what an operator knows, written down and taken up again.
//!
//! # Design
//!
//! A keyed operator's state lies in key groups. Written down it is, for each group, a *base*, which is all that the group had at the end of some epoch, and
//! the *changes* of the epochs behind that. Changes come out of the operator epoch by epoch, as the rows that it works on anyway; a base is made
//! of one group at a time, at the end of some epoch. So nothing ever stops to be written down, what does not change is
//! not written again, and state can be taken up by any number of workers: rows find their group by their key.
//!
//! Taking up: [`KeyedState::begin_restore`], then all bases, then all changes by rising epoch, each change only if it is of a later epoch than its
//! group's base. The result answers every later epoch as the state that was written down would have; what was forgotten meanwhile,
//! or will be, cannot be seen in the results.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::epoch::Micros;
use crate::keys::KeyGroup;

/// The column of the key in every state's rows: text.
pub const KEY: usize = 0;

/// The keyed state of an operator on one worker.
pub trait KeyedState {
    /// The columns of its rows, of bases and changes alike; [`KEY`] first.
    fn schema(&self) -> SchemaRef;

    /// About how many rows a group's base has.
    fn group_len(&self, group: KeyGroup) -> usize;

    /// All that a group has, between two epochs; `None` if that is nothing.
    fn group(&self, group: KeyGroup) -> Option<RecordBatch>;

    /// Remembers from now on what changes, for [`take_changes`](KeyedState::take_changes).
    fn keep_changes(&mut self);

    /// What has changed since it was last asked, between two epochs, in the order in which it is to be taken up.
    fn take_changes(&mut self) -> Vec<RecordBatch>;

    /// How many rows have changed since it was last asked, where the changes can be had from another operator's; else 0.
    fn take_changed_rows(&mut self) -> u64 {
        0
    }

    /// Whether the changes of many epochs are few rows, so that they are better asked for when they are needed than epoch by epoch.
    fn changes_add_up(&self) -> bool {
        false
    }

    /// Rows are going to be taken up; `watermark` is that after the last epoch that is in them.
    fn begin_restore(&mut self, watermark: Micros);

    /// Takes up rows of groups that this worker has.
    fn restore(&mut self, rows: &RecordBatch);
}

/// State written down as a checkpoint would, for tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Written {
    bases: std::collections::BTreeMap<u16, (u64, RecordBatch)>,
    changes: Vec<(u64, RecordBatch)>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Written {
    /// Writes down what an epoch changed, and the bases of some groups.
    pub fn epoch(&mut self, epoch: u64, state: &mut dyn KeyedState) {
        self.changes(epoch, state);
        self.bases(epoch, |_| &*state);
    }

    /// Writes down what an epoch changed.
    pub fn changes(&mut self, epoch: u64, state: &mut dyn KeyedState) {
        self.changes.extend(state.take_changes().into_iter().map(|rows| (epoch, rows)));
    }

    /// Writes down the bases of some groups.
    pub fn bases<'a>(&mut self, epoch: u64, of: impl Fn(KeyGroup) -> &'a dyn KeyedState) {
        for group in (0..crate::keys::KEY_GROUPS as u16).filter(|group| (u64::from(*group) + epoch).is_multiple_of(5)) {
            let state = of(KeyGroup(group));
            let rows = state.group(KeyGroup(group)).unwrap_or_else(|| RecordBatch::new_empty(state.schema()));
            self.bases.insert(group, (epoch, rows));
        }
    }

    /// Takes up the groups for which `mine` holds.
    pub fn restore(&self, state: &mut dyn KeyedState, watermark: Micros, mine: impl Fn(KeyGroup) -> bool) {
        let take = |rows: &RecordBatch, which: &dyn Fn(KeyGroup) -> bool| {
            let keys = crate::columns::text(rows, KEY).clone();
            let which = keys.iter().map(|key| Some(which(crate::keys::key_group(crate::keys::hash(key.unwrap().as_bytes())))));
            arrow::compute::filter_record_batch(rows, &which.collect()).unwrap()
        };
        state.begin_restore(watermark);
        for (_, rows) in self.bases.values() {
            state.restore(&take(rows, &mine));
        }
        for (epoch, rows) in &self.changes {
            let behind = |group: KeyGroup| self.bases.get(&group.0).is_none_or(|(base, _)| epoch > base);
            state.restore(&take(rows, &|group| mine(group) && behind(group)));
        }
    }
}
