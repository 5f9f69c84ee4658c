//! Latencies of rows, finer than Prometheus' buckets.

use std::fmt;
use std::time::Duration;

/// Buckets an octave: a quantile is at most 1/16 above what it was.
const SUB_BUCKETS: u64 = 16;
/// Microseconds up to which each has a bucket of its own.
const EXACT: u64 = 2 * SUB_BUCKETS;

/// Counts of rows by their latency, in buckets that grow with it (as HdrHistogram's do).
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

/// Quantiles of rows' latencies; each is an upper bound, at most 1/16 too high.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Of half of the rows.
    pub p50: Duration,
    /// Of 99 of 100.
    pub p99: Duration,
    /// Of 999 of 1000.
    pub p999: Duration,
    /// Of all.
    pub max: Duration,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms", ms(self.p50), ms(self.p99), ms(self.p999), ms(self.max))
    }
}

impl LatencyHistogram {
    /// Counts `rows` rows.
    pub fn record(&mut self, latency: Duration, rows: u64) {
        let bucket = bucket(latency.as_micros().min(u64::MAX as u128) as u64);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += rows;
        self.total += rows;
        self.max = self.max.max(latency);
    }

    /// What came behind `earlier`, an older copy of this. The longest is only known as other quantiles are: up to its bucket's end.
    pub fn since(&self, earlier: &LatencyHistogram) -> LatencyHistogram {
        let before = earlier.counts.iter().copied().chain(std::iter::repeat(0));
        let counts: Vec<u64> = self.counts.iter().zip(before).map(|(now, before)| now - before).collect();
        let last = counts.iter().rposition(|&count| count > 0);
        let max = last.map_or(Duration::ZERO, |bucket| Duration::from_micros(upper_bound(bucket)).min(self.max));
        LatencyHistogram { total: self.total - earlier.total, counts, max }
    }

    /// Counts what another one has, too.
    pub fn add(&mut self, other: &LatencyHistogram) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many rows were counted.
    pub fn rows(&self) -> u64 {
        self.total
    }

    /// The quantiles, if there was a row.
    pub fn quantiles(&self) -> Option<Latency> {
        let quantile = |per_mille: u64| {
            let rank = (self.total * per_mille).div_ceil(1000);
            let mut seen = 0;
            let bucket = self.counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            bucket.map_or(self.max, |bucket| Duration::from_micros(upper_bound(bucket)).min(self.max))
        };
        (self.total > 0).then(|| Latency { p50: quantile(500), p99: quantile(990), p999: quantile(999), max: self.max })
    }
}

fn bucket(micros: u64) -> usize {
    if micros < EXACT {
        return micros as usize;
    }
    // The highest five bits: the octave, and which sixteenth of it.
    let shift = micros.ilog2() as u64 - SUB_BUCKETS.ilog2() as u64;
    (shift * SUB_BUCKETS + (micros >> shift)) as usize
}

/// The largest number of microseconds in a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    ((bucket - shift * SUB_BUCKETS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for micros in (0..5000).chain((5..40).flat_map(|e| [1 << e, (1 << e) + (1 << (e - 2)) + 3])) {
            let bound = upper_bound(bucket(micros));
            assert!(bound >= micros && bound <= micros + micros / 16, "{micros} is in a bucket up to {bound}");
        }
        assert!((0..5000).all(|micros| (0..=1).contains(&(bucket(micros + 1) - bucket(micros)))));
    }

    #[test]
    fn quantiles_are_of_rows() {
        let mut latencies = LatencyHistogram::default();
        assert_eq!(latencies.quantiles(), None);
        latencies.record(Duration::from_millis(1), 989);
        latencies.record(Duration::from_millis(20), 10);
        latencies.record(Duration::from_millis(300), 1);
        let Latency { p50, p99, p999, max } = latencies.quantiles().expect("there were rows");
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        assert!(
            (1.0..1.07).contains(&ms(p50)) && (20.0..21.3).contains(&ms(p99)) && (20.0..21.3).contains(&ms(p999)),
            "{p50:?} {p99:?} {p999:?}"
        );
        assert_eq!(max, Duration::from_millis(300));

        let earlier = latencies.clone();
        assert_eq!(latencies.since(&earlier).quantiles(), None);
        latencies.record(Duration::from_millis(2), 5);
        let Latency { p50, max, .. } = latencies.since(&earlier).quantiles().expect("there were five more");
        assert!((2.0..2.13).contains(&ms(p50)) && max == p50, "{p50:?} {max:?}");
        let mut both = earlier.clone();
        both.add(&latencies.since(&earlier));
        assert_eq!((both.rows(), both.quantiles()), (latencies.rows(), latencies.quantiles()));
    }
}
