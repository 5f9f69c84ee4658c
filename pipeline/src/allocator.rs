//! The allocator of the binary and of the benches.
//!
//! Batches come and go in large pieces on many threads, which the system's allocator is slow at and gives back late. mimalloc by default gives memory back
//! to the operating system after a tenth of a second, only to ask for it again for the next epochs; the kernel clears it each time.

/// Use it as `#[global_allocator]`.
pub use mimalloc::MiMalloc;

/// How long memory that was freed stays; milliseconds. Less is asked for again, and cleared, within the same few commits of the sinks.
const PURGE_DELAY_MS: std::ffi::c_long = 10_000;
/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Settings of the allocator that differ from its own, unless the environment has them (`MIMALLOC_PURGE_DELAY`). To be called at the process's start.
pub fn set_up() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number in a table of the allocator's; an option that a later release does not have is ignored by it.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS) };
    }
}
