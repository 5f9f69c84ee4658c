//! How many distinct members a key had in the longest window: a device's cards, a card's customers.
//!
//! # Mathematics
//!
//! All panes here are those of the longest window; an order in pane `p` asks for the number of members that occur in `(p − 20, p]` among the orders
//! already seen. Orders may be late, so that `p` may lie before panes already seen, and a member may be added before panes already asked for.
//!
//! Each member in that range has exactly one *last* occurrence `q ≤ p`; it is in the range iff `q > p − 20`. So with `next(q)` the
//! member's next occurrence after `q` (or ∞), the occurrence `q` stands for its member in the panes
//!
//! ```text
//! q ≤ p < min(q + 20, next(q))
//! ```
//!
//! and the distinct count in `p` is the number of occurrences, of any member, that stand in `p`. We maintain the invariant that
//! `standing[p]` is that number, for each `p`; a query then is one look-up.
//!
//! Let a member be added in pane `q`, where it does not occur yet, `prev` and `next` its occurrences around it. Before, `prev` stood up to
//! `min(prev + 20, next) − 1`; now it stands up to `min(prev + 20, q) − 1`, and `q` up to `min(q + 20, next) − 1`. The difference is
//! one more in each pane from `max(q, prev + 20)` to `min(q + 20, next) − 1`: at most 20 panes, none taken away.
//!
//! Forgetting: once no order comes in a pane before `P`, `standing[p]` for `p < P` is not asked for, and occurrences `q ≤ P − 20` stand in
//! such panes only. As `prev` such an occurrence bounds the added panes by `prev + 20 ≤ P ≤ q` from below: not at all.

use compact_str::CompactString;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::SmallVec;

use super::forget::Reachable;
use super::pane_map::PaneMap;
use super::windows::PANES;
use crate::keys::hash;

/// More pairs than this, and a key gets an index.
const FEW_MAX: usize = 8;

/// The members of one key.
#[derive(Debug)]
pub(super) enum Members {
    /// Each member with each pane in which it occurs. Pairs of one member lie next to each other, by rising pane.
    Few(SmallVec<[(CompactString, i64); 1]>),
    Many(Box<Index>),
}

impl Default for Members {
    fn default() -> Self {
        Members::Few(SmallVec::new())
    }
}

/// Many members, with the counts kept.
#[derive(Debug, Default)]
pub(super) struct Index {
    members: HashTable<Member>,
    /// How many occurrences stand in each pane; 0 where there is none.
    standing: PaneMap<i64, 0>,
}

#[derive(Debug)]
struct Member {
    id: CompactString,
    /// Where it occurs.
    panes: PaneMap<(), 2>,
}

impl Members {
    /// Adds an occurrence of `member` in `pane`.
    pub fn insert(&mut self, member: &str, pane: i64, reachable: &Reachable) {
        let few = match self {
            Members::Many(index) => return index.insert(member, pane),
            Members::Few(few) => few,
        };
        let start = few.iter().position(|pair| pair.0 == member).unwrap_or(few.len());
        let mut at = start;
        while at < few.len() && few[at].1 <= pane && (at == start || few[at].0 == few[start].0) {
            if few[at].1 == pane {
                return;
            }
            at += 1;
        }
        let full = few.len() == few.capacity();
        few.insert(at, (CompactString::from(member), pane));
        if full || few.len() > FEW_MAX {
            // Rather than have more memory, see what is no longer needed.
            few.retain(|pair| pair.1 >= reachable.members());
        }
        if few.len() > FEW_MAX {
            let mut index = Box::<Index>::default();
            for (member, pane) in few.iter() {
                index.insert(member, *pane);
            }
            *self = Members::Many(index);
        }
    }

    /// How many members occur in the window that ends with `pane`.
    pub fn distinct(&self, pane: i64) -> i64 {
        match self {
            Members::Many(index) => index.standing.get(pane).copied().unwrap_or(0),
            Members::Few(few) => {
                let covered = pane.saturating_sub(PANES - 1)..=pane;
                // A member's panes rise, so that those in the window are neighbours: the first of them counts.
                let mut before: Option<&CompactString> = None;
                let mut distinct = 0;
                for (member, at) in few {
                    if covered.contains(at) {
                        distinct += i64::from(before != Some(member));
                        before = Some(member);
                    }
                }
                distinct
            }
        }
    }

    /// Shows each member with each pane in which it occurs.
    pub fn each(&self, mut show: impl FnMut(&str, i64)) {
        match self {
            Members::Few(few) => few.iter().for_each(|(member, pane)| show(member, *pane)),
            Members::Many(index) => {
                for member in &index.members {
                    member.panes.each(|pane, ()| show(&member.id, pane));
                }
            }
        }
    }

    /// Drops what no window can see any more. Returns how many members were looked at.
    pub fn forget(&mut self, reachable: &Reachable) -> usize {
        match self {
            Members::Few(few) => {
                few.retain(|pair| pair.1 >= reachable.members());
                few.len()
            }
            Members::Many(index) => {
                let looked_at = index.members.len();
                index.standing.forget_before(reachable.now);
                index.members.retain(|member| {
                    member.panes.forget_before(reachable.members());
                    !member.panes.is_empty()
                });
                if index.members.len() < index.members.capacity() / 4 {
                    index.members.shrink_to_fit(|member| hash(member.id.as_bytes()));
                }
                looked_at
            }
        }
    }

    /// About how many bytes there are outside of the value itself; without those of long ids and of members with many panes.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Members::Few(few) if few.spilled() => few.capacity() * size_of::<(CompactString, i64)>(),
            Members::Few(_) => 0,
            Members::Many(index) => size_of::<Index>() + index.members.allocation_size() + index.standing.heap_bytes(),
        }
    }
}

impl Index {
    fn insert(&mut self, member: &str, pane: i64) {
        let hash_of = |member: &Member| hash(member.id.as_bytes());
        let panes = match self.members.entry(hash(member.as_bytes()), |known| known.id == member, hash_of) {
            Entry::Occupied(known) => &mut known.into_mut().panes,
            Entry::Vacant(vacant) => {
                &mut vacant.insert(Member { id: CompactString::from(member), panes: PaneMap::default() }).into_mut().panes
            }
        };
        if !panes.insert(pane).1 {
            return;
        }
        let (prev, next) = panes.neighbours(pane);
        let first = match prev.map(|prev| prev.checked_add(PANES)) {
            None => pane,
            Some(Some(free)) => free.max(pane),
            // The previous occurrence stands to the end of time.
            Some(None) => return,
        };
        let last = next.map_or(i64::MAX, |next| next - 1).min(pane.saturating_add(PANES - 1));
        for pane in first..=last {
            *self.standing.at(pane) += 1;
        }
    }
}
