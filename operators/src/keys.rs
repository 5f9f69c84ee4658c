//! Stable hashing, key groups and their assignment to workers.
//!
//! The hash must be the same in every process and every release: state on disk is filed under
//! the key group that it yields. So no `RandomState` and no `ahash`, but XXH3.

use xxhash_rust::xxh3::xxh3_64;

/// The unit in which state moves between workers; fixed for a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroup(pub u16);

/// How many key groups there are.
pub const KEY_GROUPS: usize = 128;

/// The stable hash of a key's bytes.
#[inline]
pub fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The group of a hash. Taken from the middle of the hash: `hashbrown` uses the low bits for the
/// bucket and the top seven for its tag, so taking the group from either end would make those
/// bits constant inside a group's own table.
#[inline]
pub fn key_group(hash: u64) -> KeyGroup {
    KeyGroup(((hash >> 40) as usize % KEY_GROUPS) as u16)
}

/// The worker that owns `group`.
#[inline]
pub fn group_owner(group: KeyGroup, peers: usize) -> usize {
    group.0 as usize % peers
}

/// The groups that `worker` owns.
pub fn owned_groups(worker: usize, peers: usize) -> impl Iterator<Item = KeyGroup> {
    (0..KEY_GROUPS as u16).map(KeyGroup).filter(move |&g| group_owner(g, peers) == worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_one_owner() {
        for peers in 1..=KEY_GROUPS + 3 {
            let mut owned: Vec<_> = (0..peers).flat_map(|w| owned_groups(w, peers)).collect();
            owned.sort();
            assert_eq!(owned, (0..KEY_GROUPS as u16).map(KeyGroup).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // State on disk depends on it: these values must never change.
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(key_group(hash(b"SKU-17")), key_group(hash("SKU-17".as_bytes())));
    }
}
