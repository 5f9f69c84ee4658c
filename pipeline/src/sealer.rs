//! The sealer: decides how the input is cut into epochs.
//!
//! # Design
//!
//! The sealer runs on worker 0. It knows of each split how far its owner has read ahead, and where the last epoch ended. It plays back
//! the epochs that the log has already; after the last of them it cuts new ones:
//!
//! - **Live**: as soon as a row is there and `linger` has passed since the last seal, an epoch takes what there is, up to
//!   `rows_max` rows. While earlier epochs keep the dataflow busy none is sealed, so epochs grow under load and shrink when idle.
//! - **Replay**: an epoch takes `rows_max` rows, from each split so many that all splits come to their ends together, but from
//!   [opening](SplitStart::opening) splits alone as long as these have any. It waits
//!   until they have been read: the cut is a function of the files and the settings, not of how fast anything runs.
//!
//! - **Recorded**: none. What the log has is played, and that is all.
//!
//! An epoch's bytes are bounded too. Owners report *marks*: offsets at every so many bytes of a split; an epoch passes at most
//! [`MARKS_MAX`] of them in a split.
//!
//! It does no I/O and reads no clock: it is told the time and what is available.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use orderflow_operators::epoch::Epoch;

use crate::epoch_log::{AddedSplit, EpochRecord};

/// Marks that an epoch passes at most in a split.
pub const MARKS_MAX: usize = 4;

/// How epochs are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What there is, at most so often.
    Live {
        /// Least time between two seals.
        linger: Duration,
    },
    /// So many rows, proportionally from all splits, whatever the time.
    Replay,
    /// Not at all: there are only the epochs of the log.
    Recorded,
}

/// What an owner says of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Read ahead up to here, exclusive.
    End(i64),
    /// There is nothing behind the last end.
    Ended,
    /// There was nothing behind the last end for a moment.
    CaughtUp,
    /// An epoch should rather not go far beyond this offset: many bytes lie before it.
    Mark(i64),
}

/// What the sealer knows of a split before anything is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitStart {
    /// Where it starts in a job without an epoch log.
    pub offset: i64,
    /// How much of the whole input it is, by any measure.
    pub weight: u64,
    /// In a replay its rows come before those of all others: what there was in stock at the beginning.
    pub opening: bool,
}

#[derive(Clone, Debug)]
struct SplitState {
    opening: bool,
    /// Where the next epoch starts.
    position: i64,
    /// Where the split started; for proportions.
    start: i64,
    /// How much of the whole input it is; not 0.
    weight: u64,
    end: i64,
    ended: bool,
    /// Where it is to end, if it does not end by itself.
    until: Option<i64>,
    /// All that there was at the start has been read.
    caught_up: bool,
    marks: VecDeque<i64>,
}

impl SplitState {
    /// Where an epoch's range may end at most, by the marks.
    fn mark_limit(&self) -> Option<i64> {
        self.marks.get(MARKS_MAX - 1).copied()
    }
    fn rows(&self) -> u64 {
        let limit = self.mark_limit().unwrap_or(i64::MAX).min(self.until.unwrap_or(i64::MAX));
        (limit.min(self.end) - self.position).max(0) as u64
    }
    /// Whether it is known what an epoch that wants `rows` can have.
    fn is_settled(&self, rows: u64) -> bool {
        self.ended || self.mark_limit().is_some() || self.rows() >= rows
    }
    fn is_exhausted(&self) -> bool {
        let all_read = self.position >= self.end;
        // Nothing may have the last offsets before `until`: then being caught up says that they will not come.
        self.ended && all_read || self.until.is_some_and(|until| self.position >= until || self.caught_up && all_read)
    }
}

/// Cuts the input into epochs.
#[derive(Debug)]
pub struct Sealer {
    cut: Cut,
    rows_max: u64,
    tape: VecDeque<EpochRecord>,
    splits: Vec<SplitState>,
    /// Those that the log does not name yet: the next new epoch does.
    added: BTreeMap<u32, AddedSplit>,
    /// Stages that are others than the log says: the next new epoch says so.
    stages: BTreeMap<String, Option<String>>,
    /// Whether it ends before its inputs do.
    drains: bool,
    last: Epoch,
    sealed_at: i64,
    /// Milliseconds of the caller's monotonic clock.
    last_seal_ms: Option<u64>,
}

/// What the sealer says when asked for an epoch.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// An epoch that the log has already.
    Replayed(EpochRecord),
    /// A new one, to be logged.
    Sealed(EpochRecord),
    /// None before so much time has passed.
    After(Duration),
    /// None before more is read.
    Waiting,
    /// None any more: all splits have ended, or come to where they were to end.
    Finished,
}

impl Sealer {
    /// `tape`: the log's epochs.
    pub fn new(cut: Cut, rows_max: u64, tape: Vec<EpochRecord>, splits: &[SplitStart]) -> Self {
        let mut states: Vec<SplitState> = splits
            .iter()
            .map(|&SplitStart { offset, weight, opening }| SplitState {
                opening,
                position: offset,
                start: offset,
                weight: weight.max(1),
                end: offset,
                ended: false,
                until: None,
                caught_up: false,
                marks: VecDeque::new(),
            })
            .collect();
        for record in &tape {
            for (&split, &(_, end)) in &record.ranges {
                states[split as usize].position = end;
            }
        }
        let last = tape.last();
        Sealer {
            cut,
            rows_max,
            last: last.map_or(Epoch(0), |r| r.epoch),
            sealed_at: last.map_or(i64::MIN, |r| r.sealed_at),
            tape: tape.into(),
            splits: states,
            added: BTreeMap::new(),
            stages: BTreeMap::new(),
            drains: false,
            last_seal_ms: None,
        }
    }

    /// There is one more split, which the log does not know yet; its number. The next new epoch names it in the log: before, no epoch has rows of it.
    pub fn add(&mut self, split: AddedSplit) -> u32 {
        let number = self.splits.len() as u32;
        let start = split.start;
        self.splits.push(SplitState {
            opening: false,
            position: start,
            start,
            weight: 1,
            end: start,
            ended: false,
            // What comes while a job drains its inputs is left to the next life.
            until: self.drains.then_some(start),
            caught_up: false,
            marks: VecDeque::new(),
        });
        self.added.insert(number, split);
        number
    }

    /// From the next new epoch on there are other stages, as [`EpochRecord::stages`] has them.
    pub fn with_stages(mut self, changes: BTreeMap<String, Option<String>>) -> Self {
        self.stages = changes;
        self
    }

    /// The last epoch of the tape, and of what was sealed since.
    pub fn last(&self) -> Epoch {
        self.last
    }

    /// Goes on behind an epoch whose outcome is known: `tape` has the epochs behind it.
    pub fn resume(mut self, epoch: Epoch, sealed_at: i64, offsets: &[i64]) -> Self {
        if self.last < epoch {
            self.last = epoch;
        }
        self.sealed_at = self.sealed_at.max(sealed_at);
        for (number, (split, &offset)) in self.splits.iter_mut().zip(offsets).enumerate() {
            let is_in_tape = self.tape.iter().any(|record| record.ranges.contains_key(&(number as u32)));
            if !is_in_tape {
                split.position = offset;
            }
        }
        self
    }

    /// Takes no new rows behind these offsets, by split, and is finished there. What the tape has is played all the same.
    pub fn until(mut self, offsets: &[i64]) -> Self {
        for (split, &offset) in self.splits.iter_mut().zip(offsets) {
            split.until = Some(offset);
        }
        self.drains = true;
        self
    }

    /// Where the next new epoch begins in each split.
    pub fn positions(&self) -> Vec<i64> {
        self.splits.iter().map(|split| split.position).collect()
    }

    /// An epoch of what there is now, be it nothing, so that a checkpoint can be of the state at its end. Not while there is a tape.
    pub fn last_one(&mut self, now_ms: i64, monotonic_ms: u64) -> EpochRecord {
        let linger = std::mem::replace(&mut self.cut, Cut::Live { linger: Duration::ZERO });
        let next = self.next(now_ms, monotonic_ms);
        self.cut = linger;
        match next {
            Next::Sealed(record) | Next::Replayed(record) => record,
            Next::After(_) | Next::Waiting | Next::Finished => {
                self.last = self.last.next();
                self.sealed_at = self.sealed_at.max(now_ms);
                self.record(BTreeMap::new())
            }
        }
    }

    /// The first epoch that [`next`](Sealer::next) will give.
    pub fn first(&self) -> Epoch {
        self.tape.front().map_or(self.last.next(), |record| record.epoch)
    }

    /// The next epoch of the tape.
    pub fn next_played(&mut self) -> Option<EpochRecord> {
        self.tape.pop_front()
    }

    /// Whether all epochs of the tape are out.
    pub fn is_live(&self) -> bool {
        self.tape.is_empty()
    }

    /// Where each split is first read: at the start of the first range of the tape, or where new epochs start.
    pub fn first_offsets(&self) -> Vec<i64> {
        let mut first: Vec<i64> = self.splits.iter().map(|s| s.position).collect();
        for record in self.tape.iter().rev() {
            for (&split, &(start, _)) in &record.ranges {
                first[split as usize] = start;
            }
        }
        first
    }

    /// Takes an owner's report.
    pub fn hear(&mut self, split: u32, report: Report) {
        let split = &mut self.splits[split as usize];
        match report {
            Report::End(end) => split.end = split.end.max(end),
            Report::Ended => split.ended = true,
            Report::CaughtUp => split.caught_up = true,
            Report::Mark(at) if at > split.position => split.marks.push_back(at),
            Report::Mark(_) => {}
        }
    }

    /// The next epoch, if there can be one. `now_ms`: the wall clock, milliseconds since 1970, for the sealing time. `monotonic_ms`: for `linger`.
    pub fn next(&mut self, now_ms: i64, monotonic_ms: u64) -> Next {
        if let Some(record) = self.next_played() {
            return Next::Replayed(record);
        }
        let wanted = match self.cut {
            Cut::Live { linger } => {
                if self.splits.iter().all(|s| s.rows() == 0) {
                    return if self.splits.iter().all(|s| s.is_exhausted()) { Next::Finished } else { Next::Waiting };
                }
                if let Some(last) = self.last_seal_ms {
                    let passed = Duration::from_millis(monotonic_ms.saturating_sub(last));
                    if passed < linger {
                        return Next::After(linger - passed);
                    }
                }
                self.share_of_available()
            }
            Cut::Replay => {
                if self.splits.iter().all(|s| s.is_exhausted()) {
                    return Next::Finished;
                }
                match self.share_of_input() {
                    Some(wanted) => wanted,
                    None => return Next::Waiting,
                }
            }
            Cut::Recorded => return Next::Finished,
        };
        self.last_seal_ms = Some(monotonic_ms);
        self.last = self.last.next();
        // A clock that was set back does not take time back.
        self.sealed_at = self.sealed_at.max(now_ms);
        let mut ranges = BTreeMap::new();
        // A single message can be of many marks. So that an epoch of many splits has not one such message of each, the marks of
        // all are bounded, too; another split comes first each time.
        let splits = self.splits.len();
        let mut marks_left = 2 * MARKS_MAX * splits;
        for number in (0..splits).map(|n| (n + self.last.0 as usize) % splits) {
            let (split, rows) = (&mut self.splits[number], wanted[number]);
            let start = split.position;
            let end = start + rows.min(split.rows()) as i64;
            let marks = split.marks.partition_point(|&mark| mark <= end);
            if marks > marks_left && !ranges.is_empty() {
                continue;
            }
            marks_left = marks_left.saturating_sub(marks);
            if end > start {
                ranges.insert(number as u32, (start, end));
                split.position = end;
                while split.marks.front().is_some_and(|&mark| mark <= end) {
                    split.marks.pop_front();
                }
            }
        }
        Next::Sealed(self.record(ranges))
    }

    /// The last epoch as it is logged.
    fn record(&mut self, ranges: BTreeMap<u32, (i64, i64)>) -> EpochRecord {
        let (splits, stages) = (std::mem::take(&mut self.added), std::mem::take(&mut self.stages));
        EpochRecord { epoch: self.last, sealed_at: self.sealed_at, ranges, splits, stages }
    }

    /// Rows by split: all that there are, or a proportional part of them.
    fn share_of_available(&self) -> Vec<u64> {
        let available: Vec<u64> = self.splits.iter().map(SplitState::rows).collect();
        let total: u64 = available.iter().sum();
        if total <= self.rows_max {
            return available;
        }
        proportion(self.rows_max, &available, &available)
    }

    /// Rows by split of the next `rows_max` rows of the whole input, if enough has been read to say.
    fn share_of_input(&self) -> Option<Vec<u64>> {
        let opening = self.splits.iter().any(|s| s.opening && !s.is_exhausted());
        let takes_part = |s: &SplitState| s.opening == opening;
        let has_rest = |s: &SplitState| takes_part(s) && !s.is_exhausted();
        // Against the proportion of what was taken before, so that small epochs do not starve a small split.
        let taken: Vec<u64> = self.splits.iter().map(|s| (s.position - s.start) as u64).collect();
        let parts = || self.splits.iter().zip(&taken).filter(|(s, _)| takes_part(s));
        let total: u64 = parts().map(|(_, taken)| taken).sum::<u64>() + self.rows_max;
        let weights: u128 = parts().map(|(s, _)| s.weight as u128).sum();
        let behind: Vec<u64> = self
            .splits
            .iter()
            .zip(&taken)
            .map(|(s, &taken)| {
                if !has_rest(s) {
                    return 0;
                }
                let ideal = (total as u128 * s.weight as u128).div_ceil(weights) as u64;
                ideal.saturating_sub(taken)
            })
            .collect();
        let wanted = if behind.iter().sum::<u64>() >= self.rows_max {
            proportion(self.rows_max, &behind, &behind)
        } else {
            // Some splits ended before their share: the others take it.
            let rest = self.rows_max - behind.iter().sum::<u64>();
            let weights: Vec<u64> = self.splits.iter().map(|s| if has_rest(s) { s.weight } else { 0 }).collect();
            let rooms: Vec<u64> = self.splits.iter().map(|s| if has_rest(s) { u64::MAX } else { 0 }).collect();
            let more = proportion(rest, &weights, &rooms);
            behind.iter().zip(more).map(|(b, m)| b + m).collect()
        };
        // Whether a split has ended changes the others' shares, so that too must be known of each.
        let is_known = |(s, &rows): (&SplitState, &u64)| !takes_part(s) || s.is_settled(rows.max(1));
        self.splits.iter().zip(&wanted).all(is_known).then_some(wanted)
    }
}

/// Divides `total` by `weights`, at most `rooms` each; what rounding leaves goes to the heaviest, then to the first.
fn proportion(total: u64, weights: &[u64], rooms: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&w| w as u128).sum::<u128>().max(1);
    let mut parts: Vec<u64> = weights.iter().zip(rooms).map(|(&w, &room)| ((total as u128 * w as u128 / sum) as u64).min(room)).collect();
    let mut rest = total.saturating_sub(parts.iter().sum());
    let mut order: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(weights[i]));
    for i in order.into_iter().cycle().take(2 * weights.len()) {
        if rest == 0 {
            break;
        }
        if parts[i] < rooms[i] {
            parts[i] += 1;
            rest -= 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(sealer: &mut Sealer, ends: &[i64]) {
        for (split, &end) in ends.iter().enumerate() {
            sealer.hear(split as u32, Report::End(end));
            sealer.hear(split as u32, Report::Ended);
        }
    }

    fn starts(splits: &[(i64, u64)]) -> Vec<SplitStart> {
        splits.iter().map(|&(offset, weight)| SplitStart { offset, weight, opening: false }).collect()
    }

    fn ranges(next: Next) -> Vec<(u32, (i64, i64))> {
        match next {
            Next::Sealed(record) => record.ranges.into_iter().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replay_takes_proportionally_and_waits() {
        let mut sealer = Sealer::new(Cut::Replay, 10, vec![], &starts(&[(0, 100), (0, 400)]));
        assert_eq!(sealer.next(5, 0), Next::Waiting);
        sealer.hear(0, Report::End(100));
        sealer.hear(1, Report::End(7));
        assert_eq!(sealer.next(5, 0), Next::Waiting);
        sealer.hear(1, Report::End(400));
        assert_eq!(ranges(sealer.next(5, 0)), [(0, (0, 2)), (1, (0, 8))]);
        // The clock goes back, the sealing time does not.
        let Next::Sealed(record) = sealer.next(3, 0) else { panic!() };
        assert_eq!((record.epoch, record.sealed_at), (Epoch(2), 5));
    }

    #[test]
    fn live_takes_what_there_is() {
        let mut sealer = Sealer::new(Cut::Live { linger: Duration::from_millis(5) }, 10, vec![], &starts(&[(0, 1), (7, 1)]));
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        sealer.hear(1, Report::End(10));
        assert_eq!(ranges(sealer.next(0, 0)), [(1, (7, 10))]);
        sealer.hear(0, Report::End(50));
        sealer.hear(1, Report::End(20));
        assert_eq!(sealer.next(0, 2), Next::After(Duration::from_millis(3)));
        assert_eq!(ranges(sealer.next(0, 5)), [(0, (0, 9)), (1, (10, 11))]);
    }

    /// A clock that is set while the job runs, and between two of its lives.
    #[test]
    fn sealing_times_follow_the_clock_forward_only() {
        const HOUR: i64 = 3_600_000;
        let live = Cut::Live { linger: Duration::ZERO };
        let mut log: Vec<EpochRecord> = Vec::new();
        let seal = |sealer: &mut Sealer, clock: &[i64], log: &mut Vec<EpochRecord>| {
            for &now_ms in clock {
                sealer.hear(0, Report::End(log.len() as i64 + 1));
                let Next::Sealed(record) = sealer.next(now_ms, 0) else { panic!("there is a row") };
                log.push(record);
            }
        };
        seal(&mut Sealer::new(live, 10, vec![], &starts(&[(0, 1)])), &[HOUR, 6 * HOUR, 2 * HOUR, 6 * HOUR + 1], &mut log);
        // The next life's clock is days behind. It knows of the first one by the log, or by a checkpoint alone.
        let mut by_log = Sealer::new(live, 10, log.clone(), &starts(&[(0, 1)]));
        while !by_log.is_live() {
            assert!(matches!(by_log.next(-48 * HOUR, 0), Next::Replayed(_)));
        }
        let mut by_checkpoint = Sealer::new(live, 10, vec![], &starts(&[(0, 1)])).resume(Epoch(4), 6 * HOUR + 1, &[4]);
        for sealer in [&mut by_log, &mut by_checkpoint] {
            let mut log = log.clone();
            seal(sealer, &[-48 * HOUR, 6 * HOUR, 7 * HOUR], &mut log);
            let times: Vec<i64> = log.iter().map(|record| record.sealed_at - 6 * HOUR).collect();
            assert_eq!(times, [-5 * HOUR, 0, 0, 1, 1, 1, HOUR]);
            assert!(log.iter().map(|record| record.epoch.0).eq(1..=7));
        }
    }

    #[test]
    fn recorded_epochs_alone_are_played() {
        let record =
            EpochRecord { epoch: Epoch(8), sealed_at: 9, ranges: [(1, (3, 5))].into(), splits: BTreeMap::new(), stages: BTreeMap::new() };
        let mut sealer = Sealer::new(Cut::Recorded, 4, vec![record.clone()], &starts(&[(0, 1), (0, 1)]));
        read_all(&mut sealer, &[3, 7]);
        assert_eq!((sealer.first(), sealer.next(0, 0)), (Epoch(8), Next::Replayed(record)));
        assert_eq!(sealer.next(0, 0), Next::Finished);
    }

    #[test]
    fn draining_ends_at_its_offsets() {
        let cut = Cut::Live { linger: Duration::ZERO };
        let mut sealer = Sealer::new(cut, 100, vec![], &starts(&[(0, 1), (7, 1), (3, 1)])).until(&[10, 12, 3]);
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        sealer.hear(0, Report::End(50));
        assert_eq!(ranges(sealer.next(0, 0)), [(0, (0, 10))]);
        sealer.hear(0, Report::End(60));
        sealer.hear(1, Report::End(9));
        assert_eq!(ranges(sealer.next(0, 0)), [(1, (7, 9))]);
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        // One that comes meanwhile is named, but not waited for.
        sealer.add(AddedSplit { name: "orders/3".into(), start: 4 });
        sealer.hear(3, Report::End(9));
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        // No message has the offsets 9 to 11.
        sealer.hear(1, Report::CaughtUp);
        assert_eq!(sealer.next(0, 0), Next::Finished);
    }

    #[test]
    fn marks_bound_an_epochs_bytes() {
        let mut sealer = Sealer::new(Cut::Replay, 100, vec![], &starts(&[(0, 1)]));
        for mark in [3, 5, 6, 8, 20] {
            sealer.hear(0, Report::Mark(mark));
        }
        sealer.hear(0, Report::End(30));
        assert_eq!(ranges(sealer.next(0, 0)), [(0, (0, 8))]);
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        sealer.hear(0, Report::Ended);
        assert_eq!(ranges(sealer.next(0, 0)), [(0, (8, 30))]);
        assert_eq!(sealer.next(0, 0), Next::Finished);
    }

    #[test]
    fn the_tape_comes_first() {
        let record =
            EpochRecord { epoch: Epoch(1), sealed_at: 9, ranges: [(1, (3, 5))].into(), splits: BTreeMap::new(), stages: BTreeMap::new() };
        let mut sealer = Sealer::new(Cut::Replay, 4, vec![record.clone()], &starts(&[(0, 1), (0, 1)]));
        assert_eq!(sealer.first_offsets(), [0, 3]);
        assert_eq!(sealer.next(0, 0), Next::Replayed(record));
        read_all(&mut sealer, &[0, 7]);
        assert_eq!(ranges(sealer.next(0, 0)), [(1, (5, 7))]);
        assert_eq!(sealer.next(0, 0), Next::Finished);
    }

    #[test]
    fn a_split_that_is_added_is_named_before_it_has_rows() {
        let tape =
            EpochRecord { epoch: Epoch(1), sealed_at: 9, ranges: [(0, (0, 5))].into(), splits: BTreeMap::new(), stages: BTreeMap::new() };
        let mut sealer = Sealer::new(Cut::Live { linger: Duration::ZERO }, 10, vec![tape.clone()], &starts(&[(0, 1)]));
        let added = AddedSplit { name: "orders/1".into(), start: 3 };
        assert_eq!(sealer.add(added.clone()), 1);
        assert_eq!(sealer.next(0, 0), Next::Replayed(tape), "the tape is as it is");
        assert_eq!(sealer.first_offsets(), [5, 3]);
        assert_eq!(sealer.next(0, 0), Next::Waiting);
        sealer.hear(0, Report::End(6));
        let Next::Sealed(record) = sealer.next(0, 0) else { panic!() };
        assert_eq!((record.ranges, record.splits), ([(0, (5, 6))].into(), [(1, added)].into()));
        sealer.hear(1, Report::End(4));
        let Next::Sealed(record) = sealer.next(0, 0) else { panic!() };
        assert_eq!((record.ranges, record.splits), ([(1, (3, 4))].into(), BTreeMap::new()));
        assert_eq!(sealer.add(AddedSplit { name: "orders/2".into(), start: 0 }), 2);
        assert_eq!(sealer.last_one(0, 0).splits.len(), 1, "the last epoch names what it finds");
    }

    proptest! {
        /// Every offset is in one epoch, epochs have at most `rows_max` rows, those of opening splits come first, and a restart at any epoch cuts alike.
        #[test]
        fn replay_covers_the_input(
            sizes in prop::collection::vec((0i64..300, 1u64..1000, any::<bool>()), 1..6),
            rows_max in 1u64..120,
            restart in 0usize..50,
        ) {
            let start = |&(_, weight, opening): &(i64, u64, bool)| SplitStart { offset: 0, weight, opening };
            let splits: Vec<SplitStart> = sizes.iter().map(start).collect();
            let ends: Vec<i64> = sizes.iter().map(|&(end, ..)| end).collect();
            let run = |tape: Vec<EpochRecord>| {
                let mut sealer = Sealer::new(Cut::Replay, rows_max, tape, &splits);
                read_all(&mut sealer, &ends);
                let mut log = Vec::new();
                loop {
                    match sealer.next(0, 0) {
                        Next::Sealed(record) | Next::Replayed(record) => log.push(record),
                        Next::Finished => break log,
                        other => panic!("{other:?}"),
                    }
                }
            };
            let log = run(vec![]);
            let mut at = vec![0; sizes.len()];
            for record in &log {
                prop_assert!(record.offsets() > 0 && record.offsets() <= rows_max);
                let opened = sizes.iter().zip(&at).all(|(&(end, _, opening), &at)| !opening || at == end);
                for (&split, &(start, end)) in &record.ranges {
                    prop_assert_eq!(at[split as usize], start);
                    prop_assert_eq!(sizes[split as usize].2, !opened);
                    at[split as usize] = end;
                }
            }
            prop_assert_eq!(&at, &ends);
            let head = log[..restart.min(log.len())].to_vec();
            prop_assert_eq!(run(head), log);
        }
    }
}
