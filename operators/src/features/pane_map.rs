//! Values by pane, in order.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use smallvec::SmallVec;

/// More panes than this, and a sorted list becomes a tree. In practice keys have thousands at most; but input may spread over any time.
const LIST_MAX: usize = 8192;

/// A map from pane to value, made for panes that mostly come in order: then adding and looking at the last few is a step at the end of a
/// list. Up to `N` are in place.
#[derive(Debug)]
pub(super) enum PaneMap<V, const N: usize> {
    List(SmallVec<[(i64, V); N]>),
    Tree(BTreeMap<i64, V>),
}

impl<V, const N: usize> Default for PaneMap<V, N> {
    fn default() -> Self {
        PaneMap::List(SmallVec::new())
    }
}

/// Where `pane` is in a sorted list, or would be.
#[inline]
fn search<V>(list: &[(i64, V)], pane: i64) -> Result<usize, usize> {
    match list.last() {
        None => Err(0),
        Some(last) if last.0 < pane => Err(list.len()),
        Some(last) if last.0 == pane => Ok(list.len() - 1),
        Some(_) => list.binary_search_by_key(&pane, |entry| entry.0),
    }
}

impl<V: Default, const N: usize> PaneMap<V, N> {
    /// The pane's value, which is made if there is none.
    #[inline]
    pub fn at(&mut self, pane: i64) -> &mut V {
        self.insert(pane).0
    }

    /// The pane's value and whether it was made.
    pub fn insert(&mut self, pane: i64) -> (&mut V, bool) {
        if let PaneMap::List(list) = self
            && list.len() >= LIST_MAX
        {
            *self = PaneMap::Tree(list.drain(..).collect());
        }
        match self {
            PaneMap::List(list) => match search(list, pane) {
                Ok(at) => (&mut list[at].1, false),
                Err(at) => {
                    list.insert(at, (pane, V::default()));
                    (&mut list[at].1, true)
                }
            },
            PaneMap::Tree(tree) => {
                let mut made = false;
                let value = tree.entry(pane).or_insert_with(|| {
                    made = true;
                    V::default()
                });
                (value, made)
            }
        }
    }
}

impl<V, const N: usize> PaneMap<V, N> {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        match self {
            PaneMap::List(list) => list.len(),
            PaneMap::Tree(tree) => tree.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        match self {
            PaneMap::List(list) => list.is_empty(),
            PaneMap::Tree(tree) => tree.is_empty(),
        }
    }

    /// The pane's value.
    pub fn get(&self, pane: i64) -> Option<&V> {
        match self {
            PaneMap::List(list) => search(list, pane).ok().map(|at| &list[at].1),
            PaneMap::Tree(tree) => tree.get(&pane),
        }
    }

    /// The last pane before `pane` and the first behind it.
    pub fn neighbours(&self, pane: i64) -> (Option<i64>, Option<i64>) {
        match self {
            PaneMap::List(list) => {
                let (before, behind) = search(list, pane).map_or_else(|at| (at, at), |at| (at, at + 1));
                (before.checked_sub(1).map(|at| list[at].0), list.get(behind).map(|entry| entry.0))
            }
            PaneMap::Tree(tree) => {
                let before = tree.range(..pane).next_back().map(|(pane, _)| *pane);
                let behind = pane.checked_add(1).and_then(|next| tree.range(next..).next()).map(|(pane, _)| *pane);
                (before, behind)
            }
        }
    }

    /// Shows the values in a range of panes.
    #[inline]
    pub fn each_in(&self, panes: RangeInclusive<i64>, mut show: impl FnMut(&V)) {
        match self {
            PaneMap::List(list) => {
                let end = match search(list, *panes.end()) {
                    Ok(at) => at + 1,
                    Err(at) => at,
                };
                list[..end].iter().rev().take_while(|entry| entry.0 >= *panes.start()).for_each(|entry| show(&entry.1));
            }
            PaneMap::Tree(tree) => tree.range(panes).for_each(|(_, value)| show(value)),
        }
    }

    /// Shows all panes, rising.
    pub fn each(&self, mut show: impl FnMut(i64, &V)) {
        match self {
            PaneMap::List(list) => list.iter().for_each(|(pane, value)| show(*pane, value)),
            PaneMap::Tree(tree) => tree.iter().for_each(|(pane, value)| show(*pane, value)),
        }
    }

    /// Drops the panes before `pane`.
    pub fn forget_before(&mut self, pane: i64) {
        match self {
            PaneMap::List(list) => {
                let gone = list.partition_point(|entry| entry.0 < pane);
                if gone > 0 {
                    list.drain(..gone);
                    if list.spilled() && list.len() < list.capacity() / 4 {
                        list.shrink_to_fit();
                    }
                }
            }
            PaneMap::Tree(tree) => {
                *tree = tree.split_off(&pane);
                if tree.len() < LIST_MAX / 4 {
                    *self = PaneMap::List(std::mem::take(tree).into_iter().collect());
                }
            }
        }
    }

    /// Drops the panes before `pane` if these are at least half of a list, so that moving the rest is paid for.
    #[inline]
    pub fn forget_half_before(&mut self, pane: i64) {
        if let PaneMap::List(list) = self
            && list.get(list.len() / 2).is_some_and(|middle| middle.0 < pane)
        {
            self.forget_before(pane);
        }
    }

    /// About how many bytes there are outside of the value itself.
    pub fn heap_bytes(&self) -> usize {
        match self {
            PaneMap::List(list) if list.spilled() => list.capacity() * size_of::<(i64, V)>(),
            PaneMap::List(_) => 0,
            // A tree's nodes are at least half full.
            PaneMap::Tree(tree) => tree.len() * size_of::<(i64, V)>() * 3 / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(map: &PaneMap<u32, 2>, naive: &BTreeMap<i64, u32>, pane: i64) {
        assert_eq!(map.len(), naive.len());
        assert_eq!(map.is_empty(), naive.is_empty());
        assert_eq!(map.get(pane), naive.get(&pane));
        let before = naive.range(..pane).next_back().map(|(pane, _)| *pane);
        let behind = naive.range(pane + 1..).next().map(|(pane, _)| *pane);
        assert_eq!(map.neighbours(pane), (before, behind));
        let mut sum = 0;
        map.each_in(pane - 19..=pane, |value| sum += value);
        assert_eq!(sum, naive.range(pane - 19..=pane).map(|(_, value)| value).sum::<u32>());
    }

    proptest! {
        #[test]
        fn as_a_tree_does(steps in prop::collection::vec((0..10_u8, -50..200_i64), 0..200), as_tree: bool) {
            let mut map = if as_tree { PaneMap::<u32, 2>::Tree(BTreeMap::new()) } else { PaneMap::default() };
            let mut naive = BTreeMap::new();
            for (what, pane) in steps {
                match what {
                    0 => {
                        map.forget_before(pane - 100);
                        naive.retain(|&key, _| key >= pane - 100);
                    }
                    1 => {
                        let (value, made) = map.insert(pane);
                        prop_assert_eq!((*value, made), (naive.get(&pane).copied().unwrap_or_default(), !naive.contains_key(&pane)));
                        naive.entry(pane).or_default();
                    }
                    _ => {
                        *map.at(pane) += 1;
                        *naive.entry(pane).or_default() += 1;
                    }
                }
                check(&map, &naive, pane);
            }
        }
    }

    #[test]
    fn becomes_a_tree_and_a_list_again() {
        let mut map = PaneMap::<u32, 2>::default();
        let panes = LIST_MAX as i64 + 100;
        for pane in (0..panes).rev() {
            *map.at(pane) = 1;
        }
        assert!(matches!(map, PaneMap::Tree(_)));
        assert_eq!(map.neighbours(panes - 1), (Some(panes - 2), None));
        map.forget_before(panes - 3);
        assert!(matches!(map, PaneMap::List(_)));
        assert_eq!((map.len(), map.neighbours(panes - 2)), (3, (Some(panes - 3), Some(panes - 1))));
        map.forget_half_before(panes - 2);
        assert_eq!(map.len(), 3);
        map.forget_half_before(panes - 1);
        assert_eq!(map.len(), 1);
    }
}
