//! Memory asked for ahead of its use.
//!
//! A keyed operator's state is much larger than the caches, and its look-ups are random: row after row would wait for memory. So operators take some
//! rows at a time, ask for what all of them will touch, and only then take the first of them: the waits overlap.

/// Rows whose state is asked for at a time.
pub(crate) const AHEAD: usize = 32;

/// Bytes that come from memory at once.
const CACHE_LINE: usize = 64;

/// Asks for the cache lines of a value. Does nothing where the processor has no stable intrinsic for it.
#[inline(always)]
pub(crate) fn prefetch<T>(value: *const T) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of::<T>()).step_by(CACHE_LINE).chain([size_of::<T>().saturating_sub(1)]) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect on memory, and none on the program at an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(value.cast::<i8>().wrapping_add(at)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, CACHE_LINE);
}
