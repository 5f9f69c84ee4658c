//! The rows of an epoch, group by group.
//!
//! A keyed operator's state lies in one table for each key group. Walking an epoch's rows group by group, instead of in the order in which they
//! came, keeps one small table in the caches at a time; and as a key lies in one group only and rows of a group stay in canonical
//! order, each key still sees its rows in canonical order.

use std::ops::Range;

use crate::keys::{KEY_GROUPS, KeyGroup, key_group};

/// A row with the hash of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HashedRow {
    /// The stable hash of the key.
    pub hash: u64,
    /// The row's index in the epoch's batch.
    pub row: u32,
}

/// A stable counting sort of rows by key group, whose buffers are kept from epoch to epoch.
#[derive(Debug)]
pub(crate) struct ByGroup {
    unsorted: Vec<HashedRow>,
    sorted: Vec<HashedRow>,
    /// Where each group's rows end in `sorted`.
    ends: [u32; KEY_GROUPS],
}

impl Default for ByGroup {
    fn default() -> Self {
        ByGroup { unsorted: Vec::new(), sorted: Vec::new(), ends: [0; KEY_GROUPS] }
    }
}

impl ByGroup {
    /// Takes an epoch's rows, in canonical order, in place of those before.
    pub fn fill(&mut self, rows: impl Iterator<Item = HashedRow>) {
        self.unsorted.clear();
        self.unsorted.extend(rows);
        self.ends = [0; KEY_GROUPS];
        for row in &self.unsorted {
            self.ends[key_group(row.hash).0 as usize] += 1;
        }
        let mut start = 0;
        for end in &mut self.ends {
            start += std::mem::replace(end, start);
        }
        // Now each is where its group starts, and moves to where it ends.
        self.sorted.resize(self.unsorted.len(), HashedRow::default());
        for row in &self.unsorted {
            let at = &mut self.ends[key_group(row.hash).0 as usize];
            self.sorted[*at as usize] = *row;
            *at += 1;
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The groups that have rows, with their rows.
    pub fn groups(&self) -> impl Iterator<Item = (KeyGroup, &[HashedRow])> {
        let range =
            |group: usize| Range { start: if group == 0 { 0 } else { self.ends[group - 1] as usize }, end: self.ends[group] as usize };
        (0..KEY_GROUPS).map(move |group| (KeyGroup(group as u16), &self.sorted[range(group)])).filter(|(_, rows)| !rows.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::hash;

    #[test]
    fn rows_keep_their_order_within_a_group() {
        let mut by_group = ByGroup::default();
        for count in [0_u32, 1, 1000, 7] {
            let rows: Vec<_> = (0..count).map(|row| HashedRow { hash: hash(&(row % 300).to_le_bytes()), row }).collect();
            by_group.fill(rows.iter().copied());
            let walked: Vec<_> = by_group.groups().flat_map(|(group, rows)| rows.iter().map(move |row| (group, *row))).collect();
            let mut expected: Vec<_> = rows.iter().map(|row| (key_group(row.hash), *row)).collect();
            expected.sort_by_key(|(group, _)| *group);
            assert_eq!(walked, expected);
        }
    }
}
