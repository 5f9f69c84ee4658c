//! When a job that failed is started again: the rules of `--supervise`, without processes and clocks.
//!
//! # Design
//!
//! After a failure there is a wait, which doubles with each further one up to a bound, and is a random part of that: processes of one job fail
//! together, and should not all knock at a broker that is down at the same moments. A job that ran for some time was healthy: after it the
//! wait is the shortest again. Failures that come too often end it all: then somebody has to look.
//!
//! The wait is kept well below the time for which processes of a job [wait for each other](crate::meeting) at their start. So however far apart
//! they begin, some time all are there, and the job goes on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::SuperviseConfig;

/// What is to be done after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job is started again after this wait.
    Restart {
        /// So long.
        after: Duration,
    },
    /// It has failed too often.
    GiveUp {
        /// So often within `supervise.window`.
        failures: usize,
    },
}

/// The failures of a job so far, and what follows from them.
#[derive(Clone, Debug)]
pub struct Supervision {
    settings: SuperviseConfig,
    /// The next wait, before chance.
    backoff: Duration,
    /// When it failed, within the window.
    failures: VecDeque<Instant>,
    restarts: u64,
}

impl Supervision {
    /// Of a job that has not failed yet.
    pub fn new(settings: SuperviseConfig) -> Self {
        Supervision { backoff: settings.backoff_min.as_duration(), settings, failures: VecDeque::new(), restarts: 0 }
    }

    /// How often it was told to start the job again.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The job failed `now`, after it `ran` for so long. `chance`, from 0 to 1, chooses a wait between half of the present one and all of it.
    pub fn failed(&mut self, now: Instant, ran: Duration, chance: f64) -> Verdict {
        if ran >= self.settings.healthy_after.as_duration() {
            self.backoff = self.settings.backoff_min.as_duration();
        }
        let window = self.settings.window.as_duration();
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|&failure| now.duration_since(failure) > window) {
            self.failures.pop_front();
        }
        let failures = self.failures.len();
        if self.settings.failures_max > 0 && failures as u64 >= self.settings.failures_max {
            return Verdict::GiveUp { failures };
        }
        let after = self.backoff.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        self.backoff = (2 * self.backoff).min(self.settings.backoff_max.as_duration());
        self.restarts += 1;
        Verdict::Restart { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Interval;

    fn settings() -> SuperviseConfig {
        SuperviseConfig {
            backoff_min: Interval::millis(100),
            backoff_max: Interval::millis(1_000),
            healthy_after: Interval::seconds(60),
            failures_max: 4,
            window: Interval::seconds(100),
        }
    }

    /// One line for each failure: when it came and how long the job ran, in seconds, and the verdict.
    fn check(failures: &[(u64, u64)], chance: f64, expected: &[&str]) {
        let start = Instant::now();
        let mut supervision = Supervision::new(settings());
        let verdicts: Vec<String> = failures
            .iter()
            .map(|&(at, ran)| match supervision.failed(start + Duration::from_secs(at), Duration::from_secs(ran), chance) {
                Verdict::Restart { after } => format!("after {after:?}"),
                Verdict::GiveUp { failures } => format!("{failures} failures"),
            })
            .collect();
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn waits_double_up_to_the_bound_and_failures_are_counted_in_a_window() {
        check(&[(0, 0), (40, 0), (80, 0)], 1.0, &["after 100ms", "after 200ms", "after 400ms"]);
        check(&[(0, 0), (40, 0), (80, 0), (90, 0)], 1.0, &["after 100ms", "after 200ms", "after 400ms", "4 failures"]);
        let seldom = [(0, 0), (50, 0), (101, 0), (151, 0), (202, 0), (252, 0)];
        check(&seldom, 1.0, &["after 100ms", "after 200ms", "after 400ms", "after 800ms", "after 1s", "after 1s"]);
    }

    #[test]
    fn chance_takes_up_to_half_of_a_wait() {
        check(&[(0, 0), (50, 0)], 0.0, &["after 50ms", "after 100ms"]);
        check(&[(0, 0), (50, 0)], 0.5, &["after 75ms", "after 150ms"]);
    }

    #[test]
    fn a_job_that_was_healthy_begins_with_the_shortest_wait() {
        check(&[(0, 0), (10, 10), (90, 60), (95, 1)], 1.0, &["after 100ms", "after 200ms", "after 100ms", "4 failures"]);
    }

    #[test]
    fn without_a_limit_it_never_gives_up() {
        let mut supervision = Supervision::new(SuperviseConfig { failures_max: 0, ..settings() });
        let now = Instant::now();
        assert!((0..1_000).all(|_| matches!(supervision.failed(now, Duration::ZERO, 1.0), Verdict::Restart { .. })));
        assert_eq!(supervision.restarts(), 1_000);
    }
}
