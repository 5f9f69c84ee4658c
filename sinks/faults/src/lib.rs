//! Named points in the job's code where a test can kill it, hold it up, or make a step fail.
//!
//! A [`Point`] stands before and after each durable step. Without the feature `enabled`, which is off but in tests, passing one is nothing at
//! all. With it, the environment variable `FAILPOINTS` says what happens where, as the crate
//! [`fail`](https://docs.rs/fail) has it:
//!
//! ```text
//! FAILPOINTS='delta.commit.before=3*off->1*return(kill);checkpoint.manifest.before=5*return(enospc)'
//! ```
//!
//! | action | what it does |
//! | --- | --- |
//! | `return(kill)` | SIGKILL, of the whole process, with a line on standard error before |
//! | `return(enospc)` | the step fails: the disk is full |
//! | `return(timeout)` | the step fails: no answer in time |
//! | `return(error)` | the step fails |
//! | `delay(ms)`, `sleep(ms)` | the thread is held up |
//! | `3*off->…` | … from the fourth passing on |

mod point;
#[cfg(feature = "enabled")]
pub mod store;

pub use point::Point;

/// The variable that says what happens at which points.
pub const VARIABLE: &str = "FAILPOINTS";

/// What the line begins with that a process writes before it is killed at a point.
pub const KILLED: &str = "killed at fault point ";

#[cfg(feature = "enabled")]
mod enabled {
    use std::io::{self, Write};

    use super::{KILLED, Point};

    /// Reads [`VARIABLE`](super::VARIABLE); to be called once, when the process begins.
    ///
    /// # Panics
    /// If it makes no sense.
    pub fn set_up() {
        // It holds for the process's life.
        std::mem::forget(fail::FailScenario::setup());
    }

    /// Passes a point behind which, or before which, nothing can fail.
    ///
    /// # Panics
    /// If it is told to fail.
    #[inline]
    pub fn pass(point: Point) {
        check(point).unwrap_or_else(|error| panic!("{error}: nothing can fail there"));
    }

    /// Passes a point; an error if the step there is to fail.
    ///
    /// # Errors
    /// As [`VARIABLE`](super::VARIABLE) says.
    ///
    /// # Panics
    /// If it says what nobody knows.
    pub fn check(point: Point) -> io::Result<()> {
        let Some(what) = action(point.name()) else { return Ok(()) };
        let name = point.name();
        match what.as_str() {
            "kill" => kill(name),
            "enospc" => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            "timeout" => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in time (fault point {name})"))),
            "error" => Err(io::Error::other(format!("it fails (fault point {name})"))),
            other => panic!("fault point {name} does not know `{other}`: kill, enospc, timeout or error"),
        }
    }

    /// The size at which the epoch log in a folder goes on in another segment, instead of the usual one: `epoch_log.local.segment.bytes=return(2000)`.
    pub fn segment_bytes_max() -> Option<u64> {
        number("epoch_log.local.segment.bytes")
    }

    /// After how many epochs the epoch log in a topic repeats its header, instead of the usual number: `epoch_log.topic.header.epochs=return(20)`.
    pub fn header_epochs() -> Option<u64> {
        number("epoch_log.topic.header.epochs")
    }

    /// How far the clock that gives epochs their sealing times is ahead of the machine's, asked once for each epoch:
    /// `seal_clock.ahead_ms=20*return(0)->return(-3600000)`.
    pub fn clock_ahead_ms() -> i64 {
        number("seal_clock.ahead_ms").unwrap_or(0)
    }

    fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
        action(name).and_then(|number| number.parse().ok())
    }

    fn action(name: &str) -> Option<String> {
        fail::fail_point!(name, |argument| Some(argument.unwrap_or_default()));
        None
    }

    fn kill(name: &str) -> ! {
        let _ = writeln!(io::stderr(), "{KILLED}{name}");
        loop {
            // SAFETY: a system call on numbers. It ends this process with all its threads.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            std::thread::yield_now();
        }
    }
}

#[cfg(not(feature = "enabled"))]
mod enabled {
    use std::io;

    use super::Point;

    /// Nothing: there are no fault points in this build.
    #[inline(always)]
    pub fn set_up() {}

    /// Nothing: there are no fault points in this build.
    #[inline(always)]
    pub fn pass(_point: Point) {}

    /// Never fails: there are no fault points in this build.
    ///
    /// # Errors
    /// None.
    #[inline(always)]
    pub fn check(_point: Point) -> io::Result<()> {
        Ok(())
    }

    /// None: there are no fault points in this build.
    #[inline(always)]
    pub fn clock_ahead_ms() -> i64 {
        0
    }

    /// None: there are no fault points in this build.
    #[inline(always)]
    pub fn header_epochs() -> Option<u64> {
        None
    }

    /// None: there are no fault points in this build.
    #[inline(always)]
    pub fn segment_bytes_max() -> Option<u64> {
        None
    }
}

pub use enabled::{check, clock_ahead_ms, header_epochs, pass, segment_bytes_max, set_up};
