//! How messages are kept between a source and the engine: many in one piece of memory.
//!
//! ```text
//!            message 0      1  2 (empty)   3 (oversized: its start)
//!  bytes    ┌──────────────┬──┬───────────────────┐
//!           └──────────────┴──┴───────────────────┘
//!  ends                    ↑  ↑↑                  ↑
//!  offsets   7              8  9                  10      dense: only the first is stored
//!  oversized                                      (3, its whole length)
//! ```
//!
//! A message costs no allocation, and a range of messages is handed out as slices of shared chunks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// One message, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// All of its bytes.
    Whole(&'a [u8]),
    /// It is longer than `source.message_bytes_max`.
    Oversized {
        /// Its first `source.message_bytes_max` bytes.
        start: &'a [u8],
        /// Its whole length.
        bytes: u64,
    },
}

/// The messages of a range of offsets, in order. Cheap to move: it shares the memory that they were read into.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    parts: Vec<(Arc<Chunk>, Range<usize>)>,
}

impl Messages {
    /// Offset and message of each, offsets rising.
    pub fn iter(&self) -> impl Iterator<Item = (i64, Message<'_>)> {
        self.parts.iter().flat_map(|(chunk, range)| range.clone().map(|index| (chunk.offset(index), chunk.message(index))))
    }

    /// The number of messages.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|(_, range)| range.len() as u64).sum()
    }

    /// Their bytes; of an oversized message those of its start.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(chunk, range)| chunk.bytes_of(range.clone())).sum()
    }

    pub(super) fn push(&mut self, chunk: Arc<Chunk>, range: Range<usize>) {
        if !range.is_empty() {
            self.parts.push((chunk, range));
        }
    }
}

/// Messages in one piece of memory, offsets rising.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Where each message ends in `bytes`; it starts where the one before ends. 32 bits do, as a chunk is at most
    /// [`SourceLimits::chunk_bytes`](super::SourceLimits) and one message over.
    ends: Vec<u32>,
    offsets: Offsets,
    /// Index and whole length of the messages of which only the start is here; indices rising.
    oversized: Vec<(usize, u64)>,
    arrived: Instant,
}

#[derive(Debug)]
enum Offsets {
    /// Without gaps from here on: files, and topics but for compaction and transaction markers.
    DenseFrom(i64),
    Listed(Vec<i64>),
}

impl Chunk {
    /// The number of messages.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// When its first message arrived.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The offset of message `index`.
    pub fn offset(&self, index: usize) -> i64 {
        match &self.offsets {
            Offsets::DenseFrom(first) => first + index as i64,
            Offsets::Listed(offsets) => offsets[index],
        }
    }

    /// The offset after its last message. The chunk has messages.
    pub fn end(&self) -> i64 {
        self.offset(self.rows() - 1) + 1
    }

    /// The index of the first message at `offset` or beyond; the number of messages when all are before it.
    pub fn index_at(&self, offset: i64) -> usize {
        match &self.offsets {
            Offsets::DenseFrom(first) => usize::try_from(offset - first).unwrap_or(0).min(self.rows()),
            Offsets::Listed(offsets) => offsets.partition_point(|&o| o < offset),
        }
    }

    /// The bytes of the messages of a range of indices.
    pub fn bytes_of(&self, range: Range<usize>) -> u64 {
        (self.start(range.end) - self.start(range.start)) as u64
    }

    /// The index after the last message of the longest run from `from` that has at most `rows_max` messages and `bytes_max`
    /// bytes, and ends where `bytes_max` is reached.
    pub fn fitting(&self, from: usize, rows_max: u64, bytes_max: u64) -> usize {
        let rows = &self.ends[from..];
        let rows = &rows[..rows.len().min(usize::try_from(rows_max).unwrap_or(usize::MAX))];
        let limit = self.start(from) as u64 + bytes_max;
        let within = rows.partition_point(|&end| u64::from(end) < limit);
        let reaches = rows.get(within).is_some_and(|&end| u64::from(end) == limit);
        from + within + usize::from(reaches)
    }

    /// The index of the message with which the chunk's bytes reach `total`, which is at least 1 and at most all of them.
    pub fn index_reaching(&self, total: u64) -> usize {
        self.ends.partition_point(|&end| u64::from(end) < total)
    }

    /// The message at `index`.
    pub fn message(&self, index: usize) -> Message<'_> {
        let bytes = &self.bytes[self.start(index)..self.ends[index] as usize];
        match self.oversized.binary_search_by_key(&index, |&(at, _)| at) {
            Ok(found) => Message::Oversized { start: bytes, bytes: self.oversized[found].1 },
            Err(_) => Message::Whole(bytes),
        }
    }

    /// Takes in the messages of `next`, which follow its own, if both together are no more than a chunk.
    pub fn absorb(&mut self, next: Chunk, chunk_bytes: usize, chunk_rows: usize) -> Result<(), Chunk> {
        if self.bytes.len() + next.bytes.len() > chunk_bytes || self.rows() + next.rows() > chunk_rows {
            return Err(next);
        }
        let (rows, bytes) = (self.rows(), self.bytes.len() as u32);
        match (&mut self.offsets, &next.offsets) {
            (Offsets::DenseFrom(first), Offsets::DenseFrom(then)) if *first + rows as i64 == *then => {}
            _ => {
                list(&mut self.offsets, rows);
                if let Offsets::Listed(offsets) = &mut self.offsets {
                    offsets.extend((0..next.rows()).map(|index| next.offset(index)));
                }
            }
        }
        self.bytes.extend_from_slice(&next.bytes);
        self.ends.extend(next.ends.iter().map(|end| bytes + end));
        self.oversized.extend(next.oversized.iter().map(|&(index, length)| (rows + index, length)));
        Ok(())
    }

    fn start(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize }
    }
}

/// Writes the offsets of the first `rows` messages out.
fn list(offsets: &mut Offsets, rows: usize) {
    if let Offsets::DenseFrom(first) = *offsets {
        *offsets = Offsets::Listed((first..).take(rows).collect());
    }
}

/// Collects messages until there are enough for a chunk.
pub(super) struct ChunkBuilder {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    offsets: Offsets,
    oversized: Vec<(usize, u64)>,
    arrived: Option<Instant>,
    /// The length of the message being appended, with what was left out of it.
    open_bytes: u64,
    limits: super::SourceLimits,
    /// Size of the last chunk, for which to expect the next.
    last: (usize, usize),
}

impl ChunkBuilder {
    pub fn new(limits: super::SourceLimits) -> Self {
        ChunkBuilder {
            bytes: Vec::new(),
            ends: Vec::new(),
            offsets: Offsets::DenseFrom(0),
            oversized: Vec::new(),
            arrived: None,
            open_bytes: 0,
            limits,
            last: (0, 0),
        }
    }

    /// Adds a part of a message; what is over the longest message is only counted.
    pub fn append(&mut self, part: &[u8]) {
        let kept = self.limits.message_bytes_max.saturating_sub(usize::try_from(self.open_bytes).unwrap_or(usize::MAX));
        if self.bytes.capacity() == 0 {
            self.reserve();
        }
        self.bytes.extend_from_slice(&part[..part.len().min(kept)]);
        self.open_bytes += part.len() as u64;
    }

    /// Ends the message that was appended in parts. `offset` is beyond those of the messages before it.
    pub fn finish(&mut self, offset: i64) {
        let rows = self.ends.len();
        if rows == 0 {
            self.offsets = Offsets::DenseFrom(offset);
            self.arrived = Some(Instant::now());
        }
        if matches!(self.offsets, Offsets::DenseFrom(first) if first + rows as i64 != offset) {
            list(&mut self.offsets, rows);
        }
        if let Offsets::Listed(offsets) = &mut self.offsets {
            offsets.push(offset);
        }
        if self.open_bytes > self.limits.message_bytes_max as u64 {
            self.oversized.push((rows, self.open_bytes));
        }
        self.ends.push(u32::try_from(self.bytes.len()).expect("limits keep a chunk and one message below 4 GiB"));
        self.open_bytes = 0;
    }

    /// Adds a whole message.
    pub fn push(&mut self, offset: i64, message: &[u8]) {
        self.append(message);
        self.finish(offset);
    }

    /// Forgets the parts of a message that did not end.
    pub fn discard_open(&mut self) {
        self.bytes.truncate(self.ends.last().map_or(0, |&end| end as usize));
        self.open_bytes = 0;
    }

    /// Whether it has enough for a chunk.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.limits.chunk_bytes || self.ends.len() >= self.limits.chunk_rows
    }

    /// What was collected, if anything; it starts over. No message is open.
    pub fn build(&mut self) -> Option<Chunk> {
        let arrived = self.arrived.take()?;
        self.last = (self.bytes.len(), self.ends.len());
        Some(Chunk {
            bytes: std::mem::take(&mut self.bytes),
            ends: std::mem::take(&mut self.ends),
            offsets: std::mem::replace(&mut self.offsets, Offsets::DenseFrom(0)),
            oversized: std::mem::take(&mut self.oversized),
            arrived,
        })
    }

    /// Memory for about as much as the last chunk held: a quiet topic's chunks are small, a file's all alike.
    fn reserve(&mut self) {
        let (bytes, rows) = self.last;
        self.bytes.reserve((bytes + bytes / 8).min(2 * self.limits.chunk_bytes));
        self.ends.reserve((rows + rows / 8).min(self.limits.chunk_rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceLimits;

    fn chunk(limits: SourceLimits, messages: &[(i64, &str)]) -> Chunk {
        let mut builder = ChunkBuilder::new(limits);
        messages.iter().for_each(|&(offset, text)| builder.push(offset, text.as_bytes()));
        builder.build().expect("there are messages")
    }

    fn shown(chunk: &Chunk) -> String {
        let one = |index| match chunk.message(index) {
            Message::Whole(bytes) => format!("{}={}", chunk.offset(index), String::from_utf8_lossy(bytes)),
            Message::Oversized { start, bytes } => format!("{}={}…{bytes}", chunk.offset(index), String::from_utf8_lossy(start)),
        };
        (0..chunk.rows()).map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keeps_messages_offsets_and_what_was_too_long() {
        let limits = SourceLimits { message_bytes_max: 4, ..SourceLimits::default() };
        let chunk = chunk(limits, &[(7, "a"), (8, ""), (9, "abcd"), (10, "abcde"), (15, "x"), (16, "")]);
        assert_eq!(shown(&chunk), "7=a 8= 9=abcd 10=abcd…5 15=x 16=");
        assert_eq!([6, 7, 10, 11, 15, 16, 17].map(|offset| chunk.index_at(offset)), [0, 0, 3, 4, 4, 5, 6]);
        assert_eq!(chunk.end(), 17);
        assert_eq!(chunk.bytes_of(2..4), 8);
    }

    #[test]
    fn forgets_a_message_that_did_not_end() {
        let mut builder = ChunkBuilder::new(SourceLimits::default());
        builder.append(b"lost");
        builder.discard_open();
        assert!(builder.build().is_none());
        builder.push(0, b"kept");
        builder.append(b"lost");
        builder.discard_open();
        assert_eq!(shown(&builder.build().expect("one message")), "0=kept");
    }

    #[test]
    fn fitting_stops_at_rows_and_bytes() {
        let chunk = chunk(SourceLimits::default(), &[(0, "aaa"), (1, ""), (2, "bb"), (3, ""), (4, "c")]);
        let check = |from, rows, bytes, expected| assert_eq!(chunk.fitting(from, rows, bytes), expected, "{from} {rows} {bytes}");
        check(0, 100, 100, 5);
        check(0, 2, 100, 2);
        check(1, 2, 100, 3);
        check(0, 100, 4, 2);
        // The byte limit is reached with the third message: the empty one behind it is left for the next range.
        check(0, 100, 5, 3);
        check(0, 100, 2, 0);
        check(5, 100, 100, 5);
    }

    #[test]
    fn small_chunks_grow_together() {
        let limits = SourceLimits { message_bytes_max: 2, ..SourceLimits::default() };
        let mut dense = chunk(limits, &[(0, "a"), (1, "b")]);
        dense.absorb(chunk(limits, &[(2, "ccc"), (3, "")]), 100, 100).expect("fits");
        assert_eq!(shown(&dense), "0=a 1=b 2=cc…3 3=");
        assert!(matches!(dense.offsets, Offsets::DenseFrom(0)));
        dense.absorb(chunk(limits, &[(9, "d"), (11, "e")]), 100, 100).expect("fits");
        assert_eq!(shown(&dense), "0=a 1=b 2=cc…3 3= 9=d 11=e");
        dense.absorb(chunk(limits, &[(12, "f")]), 100, 100).expect("fits");
        assert_eq!(shown(&dense), "0=a 1=b 2=cc…3 3= 9=d 11=e 12=f");
        assert!(dense.absorb(chunk(limits, &[(13, "g")]), 7, 100).is_err(), "too many bytes");
        assert!(dense.absorb(chunk(limits, &[(13, "g")]), 100, 7).is_err(), "too many messages");
    }
}
