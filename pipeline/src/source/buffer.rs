//! The buffer between the thread that reads a split and the worker that owns it.
//!
//! The reading thread pushes chunks through a [`Feed`] and waits while the buffer is full. The worker looks at what there is,
//! decides with [`SplitReader::cut`] where a range ends and takes it out with [`SplitReader::take`]. Both sides hold a lock for
//! moments only: messages are handed over by chunk, and their bytes are not copied.
//!
//! We maintain the invariants that chunks hold rising offsets in `[taken, end)`, and that `rows` and `bytes` count what they hold.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::chunk::{Chunk, Messages};
use super::{SourceError, SourceLimits, Wake};

/// What a split has buffered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// All messages before this offset are buffered (or taken already).
    pub end: i64,
    /// Nothing will come after `end`.
    pub ended: bool,
    /// Messages not taken yet.
    pub rows: u64,
    /// Their bytes; of an oversized message those of its start.
    pub bytes: u64,
    /// Messages at the broker that are not buffered yet. None for a file, and before the broker told.
    pub lag: Option<i64>,
    /// When the oldest message that was not taken arrived.
    pub oldest_arrival: Option<Instant>,
}

/// The engine's handle of a split that is being read. Dropping it ends the reading.
pub struct SplitReader {
    shared: Arc<Shared>,
}

impl SplitReader {
    /// What is buffered now.
    pub fn available(&self) -> Available {
        let state = self.shared.lock();
        Available {
            end: state.end,
            ended: state.ended,
            rows: state.rows,
            bytes: state.bytes,
            lag: state.lag(),
            oldest_arrival: state.chunks.front().map(|chunk| chunk.arrived()),
        }
    }

    /// Where a range from `start` ends that holds as many of the buffered messages as `rows_max` and `bytes_max` allow, and one
    /// at least; `start` if none is buffered from there on. A range ends where `bytes_max` is reached. `start` is not before what was
    /// taken: messages that are gone do not count.
    ///
    /// Once it is [settled](Self::settled), the result is a function of the split's messages and the arguments alone.
    pub fn cut(&self, start: i64, rows_max: u64, bytes_max: u64) -> i64 {
        let (rows_max, bytes_max) = self.shared.limits.within(rows_max, bytes_max);
        let state = self.shared.lock();
        let (mut rows_left, mut bytes_left) = (rows_max.max(1), bytes_max);
        let mut end = start;
        for chunk in state.chunks_from(start) {
            let from = chunk.index_at(start);
            let mut to = chunk.fitting(from, rows_left, bytes_left);
            if end == start {
                to = to.max(from + 1);
            }
            if to > from {
                end = chunk.offset(to - 1) + 1;
            }
            rows_left -= (to - from) as u64;
            bytes_left = bytes_left.saturating_sub(chunk.bytes_of(from..to));
            if to < chunk.rows() || rows_left == 0 || bytes_left == 0 {
                break;
            }
        }
        end
    }

    /// Whether [`cut`](Self::cut) with the same arguments would return the same however much more arrived. It becomes true for
    /// every bounded split, as soon as what is before `start` has been taken: limits larger than the buffer count as the buffer's.
    pub fn settled(&self, start: i64, rows_max: u64, bytes_max: u64) -> bool {
        let (rows_max, bytes_max) = self.shared.limits.within(rows_max, bytes_max);
        let state = self.shared.lock();
        if state.ended {
            return true;
        }
        let (mut rows, mut bytes) = (0, 0);
        for chunk in state.chunks_from(start) {
            let from = chunk.index_at(start);
            rows += (chunk.rows() - from) as u64;
            bytes += chunk.bytes_of(from..chunk.rows());
            // At least one message: a range that must not be empty is not settled by limits of 0.
            if rows >= rows_max.max(1) || bytes >= bytes_max.max(1) {
                return true;
            }
        }
        false
    }

    /// Bytes of all messages that were ever buffered.
    pub fn pushed_bytes(&self) -> u64 {
        self.shared.lock().pushed
    }

    /// The offset after the message with which the bytes of all messages since the split was opened reach `total`; `None` while they
    /// do not, and once that message was taken. For a given opening offset it is a function of the split's messages alone.
    pub fn offset_reaching(&self, total: u64) -> Option<i64> {
        let state = self.shared.lock();
        let mut before = state.pushed - state.chunks.iter().map(|chunk| chunk.bytes_of(0..chunk.rows())).sum::<u64>();
        for chunk in &state.chunks {
            let bytes = chunk.bytes_of(0..chunk.rows());
            if before < total && total <= before + bytes {
                let index = chunk.index_reaching(total - before);
                return (chunk.offset(index) >= state.taken).then(|| chunk.offset(index) + 1);
            }
            before += bytes;
        }
        None
    }

    /// Whether all messages before `end` are buffered (or taken already).
    ///
    /// # Errors
    /// If they never will be: the split failed before, or it is shorter.
    pub fn has(&self, end: i64) -> Result<bool, SourceError> {
        let mut state = self.shared.lock();
        if state.covers(end, &self.shared.split) {
            return Ok(true);
        }
        let missing = state.error.clone().map_or(Ok(false), Err);
        let wake = self.shared.announce_room(state);
        wake.inspect(|wake| wake());
        missing
    }

    /// The messages of `[start, end)`, taken out of the buffer; `None` while they are not all buffered. If they never will be,
    /// [`error`](Self::error) says so.
    ///
    /// # Panics
    /// If `start` is not where the last range ended (at first: the offset at which the split was opened), or `end` is before it:
    /// messages would be lost or repeated.
    pub fn take(&mut self, start: i64, end: i64) -> Option<Messages> {
        let mut state = self.shared.lock();
        assert!(
            start == state.taken && start <= end,
            "ranges of {} follow each other: {start}..{end} after {}",
            self.shared.split,
            state.taken
        );
        if !state.covers(end, &self.shared.split) {
            let wake = self.shared.announce_room(state);
            wake.inspect(|wake| wake());
            return None;
        }
        let mut messages = Messages::default();
        while let Some(chunk) = state.chunks.front().cloned() {
            let (from, to) = (state.skip, chunk.index_at(end));
            if to <= from {
                break;
            }
            state.rows -= (to - from) as u64;
            state.bytes -= chunk.bytes_of(from..to);
            if to == chunk.rows() {
                state.chunks.pop_front();
                state.skip = 0;
            } else {
                state.skip = to;
            }
            messages.push(chunk, from..to);
        }
        state.taken = end;
        let wake = self.shared.announce_room(state);
        wake.inspect(|wake| wake());
        Some(messages)
    }

    /// Why the split cannot be read on. What is buffered can still be taken.
    pub fn error(&self) -> Option<SourceError> {
        self.shared.lock().error.clone()
    }
}

impl Drop for SplitReader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        let wake = self.shared.announce_room(state);
        wake.inspect(|wake| wake());
    }
}

/// The reading thread's end of the buffer. Dropped without [`end`](Self::end) or [`fail`](Self::fail), it fails the split.
pub(super) struct Feed {
    shared: Arc<Shared>,
    wake: Wake,
}

/// A buffer for `split`, read from offset `start`. `wake` is called (with no lock held) whenever there is news for the reader.
pub(super) fn buffer(split: &str, start: i64, limits: SourceLimits, wake: Wake) -> (Feed, SplitReader) {
    let state = State {
        chunks: VecDeque::new(),
        skip: 0,
        taken: start,
        end: start,
        rows: 0,
        bytes: 0,
        pushed: 0,
        ended: false,
        error: None,
        abandoned: false,
        needed: start,
        high: None,
        caught_up: false,
        room_wake: None,
    };
    let shared = Arc::new(Shared { split: split.to_owned(), limits, state: Mutex::new(state), room: Condvar::new() });
    (Feed { shared: shared.clone(), wake }, SplitReader { shared })
}

impl Feed {
    /// Makes a chunk available. It follows what was pushed before, and there is [room](Self::has_room).
    pub fn push(&self, chunk: Chunk) {
        let mut state = self.shared.lock();
        debug_assert!(chunk.rows() > 0 && chunk.offset(0) >= state.end, "chunks follow each other");
        state.end = chunk.end();
        state.rows += chunk.rows() as u64;
        let bytes = chunk.bytes_of(0..chunk.rows());
        state.bytes += bytes;
        state.pushed += bytes;
        state.caught_up = false;
        // A quiet topic comes message by message; together they are looked through faster when the engine is behind. A chunk that
        // was taken in part is left alone: its first message's arrival no longer counts.
        let limits = self.shared.limits;
        let whole = state.skip == 0 || state.chunks.len() > 1;
        let rest = match state.chunks.back_mut().filter(|_| whole).and_then(Arc::get_mut) {
            Some(last) => last.absorb(chunk, limits.chunk_bytes, limits.chunk_rows).err(),
            None => Some(chunk),
        };
        state.chunks.extend(rest.map(Arc::new));
        drop(state);
        (self.wake)();
    }

    /// Whether more may be pushed.
    pub fn has_room(&self) -> bool {
        self.shared.lock().has_room(&self.shared.limits)
    }

    /// Waits until more may be pushed; false when nobody wants it any more.
    pub fn wait_for_room(&self) -> bool {
        let state = self.shared.lock();
        let state = self
            .shared
            .room
            .wait_while(state, |state| !state.abandoned && !state.has_room(&self.shared.limits))
            .unwrap_or_else(PoisonError::into_inner);
        !state.abandoned
    }

    /// `wake` is called (with no lock held) whenever messages were taken, or the reader was dropped.
    pub fn on_room(&self, wake: Wake) {
        self.shared.lock().room_wake = Some(wake);
    }

    /// Whether all that was pushed was taken.
    pub fn is_drained(&self) -> bool {
        self.shared.lock().rows == 0
    }

    /// Whether the reader was dropped.
    pub fn is_abandoned(&self) -> bool {
        self.shared.lock().abandoned
    }

    /// What the broker says about the split: the offset after its last message, and (at its end) that everything that can be
    /// read was pushed.
    pub fn set_progress(&self, high: i64, caught_up: bool) {
        let mut state = self.shared.lock();
        state.high = Some(high);
        state.caught_up |= caught_up;
    }

    /// The end of the furthest range that the reader asked for and did not get.
    pub fn needed(&self) -> Option<i64> {
        let state = self.shared.lock();
        (state.needed > state.end).then_some(state.needed)
    }

    /// Nothing will follow.
    pub fn end(&self) {
        self.shared.lock().ended = true;
        (self.wake)();
    }

    /// Nothing can follow. The first error stays.
    pub fn fail(&self, error: SourceError) {
        self.shared.lock().error.get_or_insert(error);
        (self.wake)();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.ended || state.abandoned || state.error.is_some() {
            return;
        }
        state.error = Some(SourceError::Stopped { split: self.shared.split.clone() });
        drop(state);
        (self.wake)();
    }
}

struct Shared {
    split: String,
    limits: SourceLimits,
    state: Mutex<State>,
    room: Condvar,
}

struct State {
    chunks: VecDeque<Arc<Chunk>>,
    /// Messages of the front chunk that were taken.
    skip: usize,
    /// Everything before was taken.
    taken: i64,
    /// Everything before was pushed.
    end: i64,
    rows: u64,
    bytes: u64,
    /// Bytes of all messages that were ever pushed.
    pushed: u64,
    ended: bool,
    error: Option<SourceError>,
    abandoned: bool,
    needed: i64,
    high: Option<i64>,
    caught_up: bool,
    room_wake: Option<Wake>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves the state half changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce_room(&self, state: MutexGuard<'_, State>) -> Option<Wake> {
        let wake = state.room_wake.clone();
        drop(state);
        self.room.notify_all();
        wake
    }
}

impl State {
    fn has_room(&self, limits: &SourceLimits) -> bool {
        // A range that somebody waits for must come, however large: the limits were others when it was cut.
        self.end < self.needed || (self.bytes < limits.buffer_bytes_max as u64 && self.rows < limits.buffer_rows_max)
    }

    /// Whether everything before `end` was pushed. If not it is remembered as needed, and an error when nothing will follow.
    fn covers(&mut self, end: i64, split: &str) -> bool {
        if self.end >= end {
            return true;
        }
        self.needed = self.needed.max(end);
        if self.ended && self.error.is_none() {
            self.error = Some(SourceError::Shorter { split: split.to_owned(), end: self.end, needed: end });
        }
        false
    }

    /// Chunks with messages at `start` or beyond.
    fn chunks_from(&self, start: i64) -> impl Iterator<Item = &Arc<Chunk>> {
        let first = self.chunks.partition_point(|chunk| chunk.end() <= start);
        self.chunks.range(first..)
    }

    fn lag(&self) -> Option<i64> {
        let high = self.high?;
        // The last offsets may be markers of transactions, which no reader gets to see.
        Some(if self.caught_up { 0 } else { (high - self.end).max(0) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::source::Message;
    use crate::source::chunk::ChunkBuilder;

    fn setup(limits: SourceLimits, start: i64) -> (Feed, SplitReader, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let (feed, reader) = buffer("orders/0", start, limits, Arc::new(move || _ = counted.fetch_add(1, Ordering::SeqCst)));
        (feed, reader, wakes)
    }

    fn push(feed: &Feed, messages: &[(i64, &str)]) {
        let mut builder = ChunkBuilder::new(feed.shared.limits);
        messages.iter().for_each(|&(offset, text)| builder.push(offset, text.as_bytes()));
        feed.push(builder.build().expect("there are messages"));
    }

    fn texts(messages: &Messages) -> Vec<(i64, String)> {
        let text = |message| match message {
            Message::Whole(bytes) | Message::Oversized { start: bytes, .. } => String::from_utf8_lossy(bytes).into_owned(),
        };
        messages.iter().map(|(offset, message)| (offset, text(message))).collect()
    }

    /// Chunks of one message each, so that every range crosses borders.
    fn single() -> SourceLimits {
        SourceLimits { chunk_rows: 1, ..SourceLimits::default() }
    }

    #[test]
    fn cut_takes_whole_messages_within_both_limits() {
        for limits in [single(), SourceLimits::default()] {
            let (feed, reader, _) = setup(limits, 10);
            assert_eq!(reader.cut(10, 5, 5), 10, "nothing is buffered");
            for (offset, text) in [(10, "aa"), (11, ""), (12, "bbb"), (15, ""), (16, "c")] {
                push(&feed, &[(offset, text)]);
            }
            let check = |start, rows, bytes, end| assert_eq!(reader.cut(start, rows, bytes), end, "{start} {rows} {bytes}");
            check(10, 100, 100, 17);
            check(10, 2, 100, 12);
            check(10, 100, 4, 12);
            check(10, 100, 5, 13);
            check(10, 4, 6, 16);
            check(10, 100, 1, 11);
            check(10, 0, 0, 11);
            check(12, 1, 1, 13);
            check(13, 1, 100, 16);
            check(17, 1, 1, 17);
        }
    }

    #[test]
    fn settled_says_when_more_would_change_nothing() {
        let (feed, reader, _) = setup(SourceLimits { buffer_bytes_max: 6, ..single() }, 0);
        assert!(!reader.settled(0, 0, 0), "a range has one message at least");
        push(&feed, &[(0, "aa")]);
        assert!(reader.settled(0, 1, 100) && reader.settled(0, 100, 2) && !reader.settled(0, 2, 3) && !reader.settled(1, 1, 1));
        push(&feed, &[(1, "bbbb")]);
        assert!(reader.settled(0, 100, 100), "more does not fit into the buffer");
        assert!(!reader.settled(1, 100, 100), "but it does when the first is taken");
        feed.end();
        assert!(reader.settled(1, 100, 100) && reader.settled(2, 1, 1));
    }

    #[test]
    fn marks_by_bytes_stay_where_they_are() {
        for limits in [single(), SourceLimits::default()] {
            let (feed, mut reader, _) = setup(limits, 5);
            for (offset, text) in [(5, "aa"), (6, ""), (7, "bbb"), (9, "c")] {
                push(&feed, &[(offset, text)]);
            }
            let check = |reader: &SplitReader, expected: [Option<i64>; 7]| {
                assert_eq!([1, 2, 3, 4, 5, 6, 7].map(|total| reader.offset_reaching(total)), expected);
            };
            check(&reader, [Some(6), Some(6), Some(8), Some(8), Some(8), Some(10), None]);
            reader.take(5, 7).expect("is there");
            check(&reader, [None, None, Some(8), Some(8), Some(8), Some(10), None]);
            push(&feed, &[(12, "d")]);
            check(&reader, [None, None, Some(8), Some(8), Some(8), Some(10), Some(13)]);
            reader.take(7, 10).expect("is there");
            check(&reader, [None, None, None, None, None, None, Some(13)]);
        }
    }

    #[test]
    fn takes_ranges_in_order_and_counts_what_is_left() {
        for limits in [single(), SourceLimits { chunk_rows: 3, ..SourceLimits::default() }, SourceLimits::default()] {
            let (feed, mut reader, wakes) = setup(limits, 0);
            for (offset, text) in [(0, "a"), (1, "bb"), (5, "ccc"), (6, "d")] {
                push(&feed, &[(offset, text)]);
            }
            assert_eq!(wakes.load(Ordering::SeqCst), 4);
            assert!(reader.take(0, 8).is_none(), "not all there");
            assert_eq!(feed.needed(), Some(8));
            let first = reader.take(0, 2).expect("is there");
            assert_eq!((first.rows(), first.bytes()), (2, 3));
            assert_eq!(texts(&first), [(0, "a".into()), (1, "bb".into())]);
            assert_eq!(texts(&reader.take(2, 2).expect("empty")), []);
            // A range may end in a gap, and start in one.
            assert_eq!(texts(&reader.take(2, 4).expect("a gap")), []);
            assert_eq!(texts(&reader.take(4, 6).expect("is there")), [(5, "ccc".into())]);
            let left = reader.available();
            assert_eq!((left.end, left.rows, left.bytes, left.ended, left.oldest_arrival.is_some()), (7, 1, 1, false, true));
            push(&feed, &[(7, "e")]);
            assert_eq!(texts(&reader.take(6, 8).expect("is there")), [(6, "d".into()), (7, "e".into())]);
            let left = reader.available();
            assert_eq!((left.rows, left.bytes, left.oldest_arrival), (0, 0, None));
            assert_eq!(feed.needed(), None);
        }
    }

    #[test]
    #[should_panic(expected = "ranges of orders/0 follow each other: 1..2 after 0")]
    fn a_skipped_message_is_a_bug() {
        let (feed, mut reader, _) = setup(single(), 0);
        push(&feed, &[(0, "a"), (1, "b")]);
        reader.take(1, 2);
    }

    #[test]
    fn a_range_beyond_the_end_is_an_error() {
        let (feed, mut reader, _) = setup(single(), 0);
        push(&feed, &[(0, "a")]);
        assert!(matches!(reader.has(1), Ok(true)));
        assert!(matches!(reader.has(2), Ok(false)), "it may still come");
        assert!(reader.take(0, 2).is_none() && reader.error().is_none());
        feed.end();
        let error = reader.has(2).expect_err("it will not come").to_string();
        assert!(reader.take(0, 2).is_none() && reader.error().is_some());
        assert!(error.contains("orders/0 ends at offset 1") && error.contains("up to 2"), "{error}");
    }

    #[test]
    fn a_full_buffer_waits_until_messages_are_taken() {
        let limits = SourceLimits { buffer_bytes_max: 10, chunk_rows: 2, ..SourceLimits::default() };
        let (feed, mut reader, _) = setup(limits, 0);
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            for offset in 0..1_000 {
                assert!(feed.wait_for_room());
                push(&feed, &[(offset, "xxxx")]);
                most = most.max(feed.shared.lock().bytes);
            }
            feed.end();
            most
        });
        let mut next = 0;
        while next < 1_000 {
            let end = reader.cut(next, 3, 1_000);
            let messages = reader.take(next, end).expect("what was cut is there");
            assert_eq!(messages.iter().map(|(offset, _)| offset).collect::<Vec<_>>(), (next..end).collect::<Vec<_>>());
            next = end;
            std::thread::yield_now();
        }
        assert!(thread.join().expect("does not panic") <= 12, "over the limit by one message at most");
    }

    #[test]
    fn empty_messages_fill_a_buffer_too() {
        let (feed, _reader, _) = setup(SourceLimits { buffer_rows_max: 2, ..SourceLimits::default() }, 0);
        push(&feed, &[(0, "")]);
        assert!(feed.has_room());
        push(&feed, &[(1, "")]);
        assert!(!feed.has_room());
    }

    #[test]
    fn a_dropped_reader_ends_the_waiting() {
        let (feed, reader, _) = setup(SourceLimits { buffer_bytes_max: 1, ..SourceLimits::default() }, 0);
        push(&feed, &[(0, "a")]);
        let thread = std::thread::spawn(move || feed.wait_for_room());
        drop(reader);
        assert!(!thread.join().expect("does not panic"));
    }

    #[test]
    fn a_feed_that_vanishes_is_an_error() {
        let (feed, reader, wakes) = setup(single(), 0);
        drop(feed);
        assert!(matches!(reader.error(), Some(SourceError::Stopped { .. })));
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn lag_is_what_is_left_at_the_broker() {
        let (feed, reader, _) = setup(single(), 0);
        assert_eq!(reader.available().lag, None);
        push(&feed, &[(0, "a"), (1, "b")]);
        feed.set_progress(10, false);
        assert_eq!(reader.available().lag, Some(8));
        feed.set_progress(10, true);
        assert_eq!(reader.available().lag, Some(0));
        push(&feed, &[(11, "c")]);
        feed.set_progress(14, false);
        assert_eq!(reader.available().lag, Some(2));
    }
}
