//! An exact set of ids that forgets by time bucket. See the parent's "Design".

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::by_group::HashedRow;
use crate::epoch::Micros;
use crate::growth::tend;
use crate::keys::{KEY_GROUPS, KeyGroup, hash};

/// Most ids in a segment: what is allocated, copied when it grows, and freed at once stays small.
const SEGMENT_ENTRIES_MAX: usize = 4096;
/// Most bytes of ids in a segment that has more than one.
const SEGMENT_BYTES_MAX: usize = 256 << 10;
/// Dropped ids that an epoch takes out of the tables, besides two for each of its rows: about half a millisecond.
const REMOVALS_MIN: usize = 4096;

/// The index of a time bucket: `floor(event_time / width)`.
type BucketIndex = i64;

/// Ids with what their first occurrence said (`C`), each in the bucket of its event time.
#[derive(Debug)]
pub(super) struct Remembered<C> {
    width: Micros,
    horizon: Micros,
    groups: Box<[Group<C>]>,
    /// The oldest bucket that any group has.
    oldest: Option<BucketIndex>,
    /// Segments of dropped buckets, whose ids are still to be taken out of the tables.
    dropped: VecDeque<(KeyGroup, u32)>,
    /// How many ids of the first of them are out.
    removed: usize,
    live: usize,
    segment_bytes: usize,
    /// The group to be tended next.
    tended: usize,
    /// While ids are remembered again: the first bucket that is not dropped.
    restored_from: BucketIndex,
}

/// The ids of one key group.
#[derive(Debug)]
struct Group<C> {
    table: HashTable<Slot>,
    /// By number. We maintain the invariant that a number is in `free` only when no slot has it.
    segments: Vec<Segment<C>>,
    free: Vec<u32>,
    /// The segments of each live bucket; the last is appended to.
    buckets: BTreeMap<BucketIndex, Vec<u32>>,
    /// The bucket that was appended to last, and the segment there.
    open: Option<(BucketIndex, u32)>,
}

impl<C> Default for Group<C> {
    fn default() -> Self {
        Group { table: HashTable::new(), segments: Vec::new(), free: Vec::new(), buckets: BTreeMap::new(), open: None }
    }
}

/// Where an id is. The hash is kept, so that a growing table need not read the ids.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    segment: u32,
    entry: u32,
}

/// Ids of one bucket in the order in which they came; only ever appended to.
#[derive(Debug)]
struct Segment<C> {
    /// Whether its bucket has been dropped: then its ids count as absent.
    dropped: bool,
    /// The ids, one behind the other.
    text: String,
    /// Where each ends.
    ends: Vec<u32>,
    contents: Vec<C>,
}

impl<C> Default for Segment<C> {
    fn default() -> Self {
        Segment { dropped: false, text: String::new(), ends: Vec::new(), contents: Vec::new() }
    }
}

impl<C> Segment<C> {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn id(&self, entry: usize) -> &str {
        let start = if entry == 0 { 0 } else { self.ends[entry - 1] };
        &self.text[start as usize..self.ends[entry] as usize]
    }

    fn has_room(&self, id: &str) -> bool {
        self.len() == 0 || (self.len() < SEGMENT_ENTRIES_MAX && self.text.len() + id.len() <= SEGMENT_BYTES_MAX)
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.len() * (size_of::<u32>() + size_of::<C>())
    }
}

impl<C: Copy> Remembered<C> {
    pub fn new(width: Micros, horizon: Micros) -> Self {
        Remembered {
            width,
            horizon,
            groups: (0..KEY_GROUPS).map(|_| Group::default()).collect(),
            oldest: None,
            dropped: VecDeque::new(),
            removed: 0,
            live: 0,
            segment_bytes: 0,
            tended: 0,
            restored_from: BucketIndex::MIN,
        }
    }

    /// Live ids.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Bytes of the tables and of the ids, those included that are dropped but not yet freed.
    pub fn bytes(&self) -> usize {
        self.segment_bytes + self.groups.iter().map(|group| group.table.allocation_size()).sum::<usize>()
    }

    /// Reads what looking up these rows of one group will read, so that the cache misses of one row do not wait for those of another.
    /// Returns how many of the hashes are there.
    pub fn look_ahead(&self, group: KeyGroup, rows: &[HashedRow]) -> usize {
        let table = &self.groups[group.0 as usize].table;
        rows.iter().filter(|row| table.find(row.hash, |slot| slot.hash == row.hash).is_some()).count()
    }

    /// What the first occurrence of `id` said if there was one; else remembers this one.
    pub fn see(&mut self, group: KeyGroup, hash: u64, id: &str, event_time: Micros, content: C) -> Option<C> {
        let Group { table, segments, free, buckets, open } = &mut self.groups[group.0 as usize];
        let same = |slot: &Slot| slot.hash == hash && segments[slot.segment as usize].id(slot.entry as usize) == id;
        let entry = table.entry(hash, same, |slot| slot.hash);
        if let Entry::Occupied(found) = &entry {
            let Slot { segment, entry, .. } = *found.get();
            let segment = &segments[segment as usize];
            if !segment.dropped {
                return Some(segment.contents[entry as usize]);
            }
        }

        let bucket = event_time.div_euclid(self.width);
        let number = match *open {
            Some((last, number)) if last == bucket && segments[number as usize].has_room(id) => number,
            _ => {
                self.oldest = Some(self.oldest.map_or(bucket, |oldest| oldest.min(bucket)));
                let numbers = buckets.entry(bucket).or_default();
                let number = match numbers.last() {
                    Some(&number) if segments[number as usize].has_room(id) => number,
                    _ => {
                        let number = free.pop().unwrap_or_else(|| {
                            segments.push(Segment::default());
                            segments.len() as u32 - 1
                        });
                        numbers.push(number);
                        number
                    }
                };
                *open = Some((bucket, number));
                number
            }
        };
        let segment = &mut segments[number as usize];
        let slot = Slot { hash, segment: number, entry: segment.len() as u32 };
        segment.text.push_str(id);
        segment.ends.push(segment.text.len() as u32);
        segment.contents.push(content);
        match entry {
            // A dropped id that came back: its old place in the dropped segment is no longer found.
            Entry::Occupied(mut found) => *found.get_mut() = slot,
            Entry::Vacant(vacant) => {
                vacant.insert(slot);
            }
        }
        self.live += 1;
        self.segment_bytes += id.len() + size_of::<u32>() + size_of::<C>();
        None
    }

    /// Drops the buckets that the watermark has left behind, and does a bounded piece of the work that this brings. `rows` is the
    /// epoch's size, to which the piece is proportional, so that what is removed keeps up with what is added.
    pub fn end_epoch(&mut self, watermark: Micros, rows: usize) {
        let first_live = first_live_bucket(watermark, self.width, self.horizon);
        if self.oldest.is_some_and(|oldest| oldest < first_live) {
            self.drop_before(first_live);
        }
        self.remove_dropped(REMOVALS_MIN + 2 * rows);
        self.tend();
    }

    fn drop_before(&mut self, first_live: BucketIndex) {
        self.oldest = None;
        for (number, group) in self.groups.iter_mut().enumerate() {
            while let Some(bucket) = group.buckets.first_entry().filter(|bucket| *bucket.key() < first_live) {
                for segment in bucket.remove() {
                    group.segments[segment as usize].dropped = true;
                    self.live -= group.segments[segment as usize].len();
                    self.dropped.push_back((KeyGroup(number as u16), segment));
                }
                group.open = None;
            }
            let oldest = group.buckets.first_key_value().map(|(bucket, _)| *bucket);
            self.oldest = [self.oldest, oldest].into_iter().flatten().min();
        }
    }

    /// Takes up to `most` dropped ids out of the tables, and frees the segments that are done.
    fn remove_dropped(&mut self, mut most: usize) {
        while let Some(&(group, number)) = self.dropped.front() {
            let Group { table, segments, free, .. } = &mut self.groups[group.0 as usize];
            let segment = &segments[number as usize];
            let until = segment.len().min(self.removed + most);
            for entry in self.removed..until {
                let here = |slot: &Slot| slot.segment == number && slot.entry as usize == entry;
                // Not found: the id has come back since, and its slot leads to a younger segment.
                if let Ok(slot) = table.find_entry(hash(segment.id(entry).as_bytes()), here) {
                    slot.remove();
                }
            }
            most -= until - self.removed;
            self.removed = until;
            if until < segment.len() {
                return;
            }
            self.segment_bytes -= segment.bytes();
            segments[number as usize] = Segment::default();
            free.push(number);
            self.dropped.pop_front();
            self.removed = 0;
        }
    }

    /// Live ids of a group.
    pub fn group_len(&self, group: KeyGroup) -> usize {
        let group = &self.groups[group.0 as usize];
        group.buckets.values().flatten().map(|&number| group.segments[number as usize].len()).sum()
    }

    /// Each live id of a group, with the beginning of its bucket and what its first occurrence said.
    pub fn each(&self, group: KeyGroup, mut visit: impl FnMut(&str, Micros, C)) {
        let Group { buckets, segments, .. } = &self.groups[group.0 as usize];
        for (&bucket, numbers) in buckets {
            // The first instant that there is, where the bucket begins before it.
            let begin = bucket.checked_mul(self.width).unwrap_or(Micros::MIN);
            for &number in numbers {
                let segment = &segments[number as usize];
                for entry in 0..segment.len() {
                    visit(segment.id(entry), begin, segment.contents[entry]);
                }
            }
        }
    }

    /// Ids will be remembered again, of a time when the watermark was this.
    pub fn begin_restore(&mut self, watermark: Micros) {
        self.restored_from = first_live_bucket(watermark, self.width, self.horizon);
    }

    /// Remembers an id again, unless its bucket was dropped since: the id may have come back then, and is in another one.
    pub fn restore(&mut self, group: KeyGroup, hash: u64, id: &str, event_time: Micros, content: C) {
        if event_time.div_euclid(self.width) >= self.restored_from {
            self.see(group, hash, id, event_time, content);
        }
    }

    /// Sees to the room in one group's table.
    fn tend(&mut self) {
        tend(&mut self.groups[self.tended].table, |slot| slot.hash);
        self.tended = (self.tended + 1) % KEY_GROUPS;
    }
}

/// The first bucket that stays: bucket `b` is dropped when `watermark ≥ (b+1)·width + horizon`, which is `b < floor((watermark − horizon) / width)`.
fn first_live_bucket(watermark: Micros, width: Micros, horizon: Micros) -> BucketIndex {
    let first = (i128::from(watermark) - i128::from(horizon)).div_euclid(i128::from(width));
    // Nothing is older than the least number, so that no bucket is dropped that should not be.
    first.max(i128::from(i64::MIN)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::key_group;

    fn see(set: &mut Remembered<u32>, id: &str, event_time: Micros, content: u32) -> Option<u32> {
        let hash = hash(id.as_bytes());
        set.see(key_group(hash), hash, id, event_time, content)
    }

    fn slots(set: &Remembered<u32>) -> usize {
        set.groups.iter().map(|group| group.table.len()).sum()
    }

    #[test]
    fn buckets_end_where_the_specification_says() {
        // Bucket 2 is [20, 30), and goes at 30 + 100.
        assert_eq!(first_live_bucket(129, 10, 100), 2);
        assert_eq!(first_live_bucket(130, 10, 100), 3);
        assert_eq!(first_live_bucket(-1, 10, 0), -1);
        assert_eq!(first_live_bucket(i64::MIN, 1, i64::MAX), i64::MIN);
        assert_eq!(first_live_bucket(i64::MAX, 1, 0), i64::MAX);
    }

    #[test]
    fn a_dropped_bucket_is_gone_at_once_and_removed_over_epochs() {
        let mut set = Remembered::new(10, 100);
        let ids: Vec<_> = (0..3 * REMOVALS_MIN).map(|n| format!("o-{n}")).collect();
        for id in &ids {
            assert_eq!(see(&mut set, id, 25, 1), None);
        }
        assert_eq!(see(&mut set, "o-5", 90, 2), Some(1));
        set.end_epoch(129, 0);
        assert_eq!((set.len(), slots(&set)), (ids.len(), ids.len()));

        set.end_epoch(130, 0);
        assert_eq!((set.len(), slots(&set)), (0, ids.len() - REMOVALS_MIN));
        // One whose slot is gone, and one whose slot still leads to the dropped segment.
        for id in [&ids[0], &ids[ids.len() - 1]] {
            assert_eq!(see(&mut set, id, 200, 3), None);
            assert_eq!(see(&mut set, id, 200, 4), Some(3));
        }
        for _ in 0..2 {
            set.end_epoch(130, 0);
        }
        assert_eq!((set.len(), slots(&set)), (2, 2));
        assert_eq!(see(&mut set, &ids[0], 200, 4), Some(3));
        assert!(set.dropped.is_empty() && set.segment_bytes < 100, "{} bytes", set.segment_bytes);
    }

    #[test]
    fn segments_are_used_again() {
        let mut set = Remembered::new(1, 0);
        for round in 0..100 {
            for n in 0..500 {
                assert_eq!(see(&mut set, &format!("{n}"), round, 0), None);
            }
            set.end_epoch(round + 1, 500);
            assert_eq!((set.len(), slots(&set)), (0, 0));
        }
        assert!(set.groups.iter().all(|group| group.segments.len() <= 1));
    }

    #[test]
    fn long_ids_have_segments_of_their_own() {
        let mut set = Remembered::new(1, 0);
        let long: Vec<_> = (0..3).map(|n| n.to_string().repeat(SEGMENT_BYTES_MAX + 1)).collect();
        for id in &long {
            assert_eq!(see(&mut set, id, 0, 7), None);
            assert_eq!(see(&mut set, id, 0, 8), Some(7));
        }
        set.end_epoch(1, 0);
        assert_eq!((set.len(), set.segment_bytes), (0, 0));
    }
}
