//! What the operating system knows of this process.

/// CPU time of this process so far, user and system, of all threads; seconds.
pub fn cpu_seconds() -> f64 {
    // SAFETY: `rusage` is plain integers, for which zeroes are valid, and `getrusage` only writes to the one it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Resident memory of this process; bytes. 0 where the system does not say.
pub(super) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    // SAFETY: `sysconf` takes a number and returns one.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page_size).unwrap_or(0)
}
