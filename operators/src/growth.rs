//! Lists and tables that grow without a pause.
//!
//! A `Vec` or a hash table doubles when it is full, and those of all key groups, being of one size, double in the same few epochs: of a
//! state of some hundred megabytes that is a pause of some hundred milliseconds. So lists lie in [pages](Paged), which grow
//! without copying, and of the tables one is [tended](tend) in each epoch, ahead of need.

use std::ops::{Index, IndexMut};

use hashbrown::HashTable;

/// Tables of fewer buckets grow and shrink by themselves.
const TENDED_BUCKETS_MIN: usize = 1024;

/// Sees to the room in one group's table: gives it some ahead of need, and takes back what is not needed any more.
pub(crate) fn tend<T>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) {
    let (buckets, len) = (table.num_buckets(), table.len());
    if buckets < TENDED_BUCKETS_MIN {
        return;
    }
    let room = table.capacity() - len;
    if room < buckets / 8 {
        table.reserve(room + 1, hash);
    } else if len < buckets / 8 {
        table.shrink_to(2 * len, hash);
    }
}

/// Items of a page.
const PAGE: usize = 64;

/// A list whose items lie in pages of [`PAGE`].
#[derive(Clone, Debug)]
pub(crate) struct Paged<T> {
    /// All full but the last.
    pages: Vec<Vec<T>>,
}

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Paged { pages: Vec::new() }
    }
}

impl<T> Paged<T> {
    pub fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE * size_of::<T>()
    }

    pub fn push(&mut self, item: T) {
        match self.pages.last_mut() {
            Some(last) if last.len() < PAGE => last.push(item),
            _ => {
                let mut page = Vec::with_capacity(PAGE);
                page.push(item);
                self.pages.push(page);
            }
        }
    }

    /// Removes an item and puts the last one in its place.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn swap_remove(&mut self, at: usize) -> T {
        let last = self.pages.last_mut().and_then(Vec::pop).expect("an item that is removed is there");
        let is_last = at == self.len();
        if self.pages.last().is_some_and(Vec::is_empty) {
            self.pages.pop();
        }
        if is_last { last } else { std::mem::replace(&mut self[at], last) }
    }
}

impl<T> Index<usize> for Paged<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pages[at / PAGE][at % PAGE]
    }
}

impl<T> IndexMut<usize> for Paged<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pages[at / PAGE][at % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It does what a `Vec` does.
        #[test]
        fn is_a_list(steps in prop::collection::vec((0..3_u8, any::<u32>()), 0..600)) {
            let (mut paged, mut naive) = (Paged::default(), Vec::new());
            for (step, number) in steps {
                if step > 0 || naive.is_empty() {
                    paged.push(number);
                    naive.push(number);
                } else {
                    let at = number as usize % naive.len();
                    prop_assert_eq!(paged.swap_remove(at), naive.swap_remove(at));
                }
                prop_assert_eq!(paged.len(), naive.len());
            }
            prop_assert!(naive.iter().enumerate().all(|(at, item)| paged[at] == *item));
        }
    }
}
