//! The keys of one kind, by key group.

use compact_str::CompactString;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::forget::Reachable;
use super::members::Members;
use super::sums::{Sums, Totals};
use super::windows::{Locator, WindowSet};
use crate::by_group::HashedRow;
use crate::growth::{Paged, tend};
use crate::keys::{KEY_GROUPS, KeyGroup, hash};
use crate::prefetch::prefetch;

/// Keys that an epoch sweeps over, besides two for each of its rows.
const SWEPT_MIN: usize = 1024;

/// What is known of one key.
#[derive(Debug)]
pub(super) struct Key {
    id: CompactString,
    /// The last base pane of all its orders.
    newest: i64,
    sums: Sums,
    members: Members,
}

/// One order as a key sees it; where it lies in time is said beside it.
pub(super) struct Sighting<'a> {
    pub member: Option<&'a str>,
    pub amount: i64,
}

/// The keys of all groups. In memory they lie group by group in lists, to which a table leads from the keys' hashes: tables
/// stay small, and a sweep goes through the lists without minding the tables.
#[derive(Debug)]
pub(super) struct Keyed {
    groups: Box<[Group]>,
    keys: usize,
    /// What the keys hold outside of the lists; about.
    heap_bytes: usize,
    sweep: Option<Sweep>,
    /// Up to where the sweep before went.
    swept: i64,
    /// The group whose table is tended next.
    tended: usize,
}

#[derive(Debug, Default)]
struct Group {
    table: HashTable<Slot>,
    keys: Paged<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    key: u32,
}

/// The next key that a sweep will look at.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    group: usize,
    key: usize,
}

impl Key {
    /// Adds an order, and says what each window sees and how many distinct members the longest has, itself included.
    pub fn take(&mut self, order: &Sighting<'_>, at: &Locator, reachable: &Reachable, windows: &WindowSet, totals: &mut [Totals]) -> i64 {
        self.newest = self.newest.max(at.pane());
        self.sums.add(at, Totals { orders: 1, amount: order.amount }, reachable, windows);
        self.sums.read(at, totals);
        if let Some(member) = order.member {
            self.members.insert(member, at.longest_pane(), reachable);
        }
        self.members.distinct(at.longest_pane())
    }

    /// Adds what was written down: what some orders were together, in all windows or in one, and a member that occurred.
    pub fn take_up(
        &mut self,
        window: Option<usize>,
        orders: Totals,
        member: Option<&str>,
        at: &Locator,
        reachable: &Reachable,
        windows: &WindowSet,
    ) {
        self.newest = self.newest.max(at.pane());
        if orders.orders > 0 {
            self.sums.take_up(window, at, orders, reachable, windows);
        }
        if let Some(member) = member {
            self.members.insert(member, at.longest_pane(), reachable);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.sums.heap_bytes() + self.members.heap_bytes()
    }
}

impl Keyed {
    pub fn new() -> Self {
        let groups = (0..KEY_GROUPS).map(|_| Group::default()).collect();
        Keyed { groups, keys: 0, heap_bytes: 0, sweep: None, swept: i64::MIN, tended: 0 }
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.keys
    }

    /// About how many bytes they take.
    pub fn bytes(&self) -> usize {
        let group = |group: &Group| group.table.allocation_size() + group.keys.bytes();
        self.heap_bytes + self.groups.iter().map(group).sum::<usize>()
    }

    /// The positions of these rows' keys in the group, in `positions`; keys that are new are made.
    pub fn look_up<'a>(&mut self, group: KeyGroup, rows: &[HashedRow], id: impl Fn(usize) -> &'a str, positions: &mut Vec<u32>) {
        let Group { table, keys } = &mut self.groups[group.0 as usize];
        let known = keys.len();
        for row in rows {
            if let Some(slot) = table.find(row.hash, |slot| slot.hash == row.hash) {
                prefetch(&raw const keys[slot.key as usize]);
            }
        }
        positions.clear();
        let mut before: Option<(u64, &str, u32)> = None;
        for &HashedRow { hash, row } in rows {
            let id = id(row as usize);
            // Rows of one key often come together: those of a burst, and all that were written down of a key.
            if let Some((last, last_id, position)) = before
                && (last, last_id) == (hash, id)
            {
                positions.push(position);
                continue;
            }
            let same = |slot: &Slot| slot.hash == hash && keys[slot.key as usize].id == id;
            let position = match table.entry(hash, same, |slot| slot.hash) {
                Entry::Occupied(slot) => {
                    keys[slot.get().key as usize].sums.prefetch();
                    slot.get().key
                }
                Entry::Vacant(vacant) => {
                    let key = keys.len() as u32;
                    keys.push(Key { id: id.into(), newest: i64::MIN, sums: Sums::default(), members: Members::default() });
                    vacant.insert(Slot { hash, key });
                    key
                }
            };
            positions.push(position);
            before = Some((hash, id, position));
        }
        self.keys += keys.len() - known;
    }

    /// Keys of a group.
    pub fn group_len(&self, group: KeyGroup) -> usize {
        self.groups[group.0 as usize].keys.len()
    }

    /// Shows what a group's keys are made of: the key; the window (`None`: all of them), its pane (the base pane for all), and what was in it; and for
    /// each member its panes of the longest window.
    pub fn each<'a>(
        &'a self,
        group: KeyGroup,
        mut totals: impl FnMut(&'a str, Option<usize>, i64, Totals),
        mut member: impl FnMut(&'a str, &str, i64),
    ) {
        let Group { keys, .. } = &self.groups[group.0 as usize];
        for at in 0..keys.len() {
            let key = &keys[at];
            key.sums.each(|window, pane, sum| totals(&key.id, window, pane, sum));
            key.members.each(|id, pane| member(&key.id, id, pane));
        }
    }

    /// Changes a key that was looked up.
    pub fn change<T>(&mut self, group: KeyGroup, position: u32, change: impl FnOnce(&mut Key) -> T) -> T {
        let key = &mut self.groups[group.0 as usize].keys[position as usize];
        let before = key.heap_bytes();
        let result = change(key);
        self.heap_bytes = self.heap_bytes + key.heap_bytes() - before;
        result
    }

    /// Does a bounded piece of a sweep over all keys, which begins anew when the watermark has come to another pane of the longest window. `rows` is the
    /// epoch's size, to which the piece is proportional, so that what is forgotten keeps up with what is added.
    pub fn sweep(&mut self, reachable: &Reachable, rows: usize) {
        tend(&mut self.groups[self.tended].table, |slot| slot.hash);
        self.tended = (self.tended + 1) % KEY_GROUPS;
        if self.sweep.is_none() && reachable.now > self.swept {
            self.swept = reachable.now;
            self.sweep = Some(Sweep { group: 0, key: 0 });
        }
        let mut left = SWEPT_MIN + 2 * rows;
        while let Some(Sweep { group, key }) = self.sweep {
            let Some(there) = self.groups.get_mut(group) else {
                self.sweep = None;
                return;
            };
            if key == there.keys.len() {
                self.sweep = Some(Sweep { group: group + 1, key: 0 });
                continue;
            }
            if left == 0 {
                return;
            }
            if there.keys[key].newest < reachable.base {
                self.heap_bytes -= there.keys[key].heap_bytes();
                self.keys -= 1;
                // Another key takes its place, and is looked at next.
                there.remove(key);
                left -= 1;
            } else {
                let before = there.keys[key].heap_bytes();
                let members = there.keys[key].forget(reachable);
                self.heap_bytes = self.heap_bytes + there.keys[key].heap_bytes() - before;
                self.sweep = Some(Sweep { group, key: key + 1 });
                // A key with many members is done at once, and counts for as many.
                left = left.saturating_sub(1 + members);
            }
        }
    }
}

impl Key {
    fn forget(&mut self, reachable: &Reachable) -> usize {
        self.sums.forget(reachable);
        self.members.forget(reachable)
    }
}

impl Group {
    /// Removes a key; the last one takes its place.
    fn remove(&mut self, key: usize) {
        let slot_of = |keys: &Paged<Key>, key: usize| (hash(keys[key].id.as_bytes()), move |slot: &Slot| slot.key as usize == key);
        let (hash, here) = slot_of(&self.keys, key);
        self.table.find_entry(hash, here).expect("each key has a slot").remove();
        let last = self.keys.len() - 1;
        if last != key {
            let (hash, there) = slot_of(&self.keys, last);
            self.table.find_mut(hash, there).expect("each key has a slot").key = key as u32;
        }
        self.keys.swap_remove(key);
    }
}
