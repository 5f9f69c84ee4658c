//! Lines of a byte stream, of any length, into chunks.
//!
//! A line ends with `\n`, which is no part of it (a `\r` before it is); a last line without `\n` counts, an empty line too.

use std::io::{self, BufRead};

use super::chunk::ChunkBuilder;

/// Reads a stream line by line. A line that is too long is passed over piece by piece, never held whole.
pub(super) struct Lines<R> {
    input: R,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Lines { input }
    }

    /// Passes over `count` lines; returns how many there were.
    pub fn skip(&mut self, count: i64) -> io::Result<i64> {
        let mut skipped = 0;
        let mut open = false;
        while skipped < count {
            let part = fill(&mut self.input)?;
            if part.is_empty() {
                return Ok(skipped + i64::from(open));
            }
            let mut used = part.len();
            for end in memchr::memchr_iter(b'\n', part) {
                skipped += 1;
                if skipped == count {
                    used = end + 1;
                    break;
                }
            }
            open = part[used - 1] != b'\n';
            self.input.consume(used);
        }
        Ok(skipped)
    }

    /// Adds the next lines to `chunk`, the first as message `offset`, until it is full. Returns the offset after the last one, and
    /// whether that was the last of the stream.
    ///
    /// On an error, `chunk` has the lines before it.
    pub fn read(&mut self, chunk: &mut ChunkBuilder, offset: i64) -> Result<(i64, bool), (i64, io::Error)> {
        let mut next = offset;
        let mut open = false;
        loop {
            let part = match fill(&mut self.input) {
                Ok(part) => part,
                Err(error) => {
                    chunk.discard_open();
                    return Err((next, error));
                }
            };
            if part.is_empty() {
                if open {
                    chunk.finish(next);
                    next += 1;
                }
                return Ok((next, true));
            }
            let mut start = 0;
            for end in memchr::memchr_iter(b'\n', part) {
                chunk.append(&part[start..end]);
                chunk.finish(next);
                next += 1;
                start = end + 1;
                if chunk.is_full() {
                    self.input.consume(start);
                    return Ok((next, false));
                }
            }
            chunk.append(&part[start..]);
            open = start < part.len();
            let used = part.len();
            self.input.consume(used);
        }
    }
}

/// What is in the stream's own buffer, read if it was empty; empty at the end.
fn fill<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The second call returns what the first one read; a borrow cannot leave the loop.
    input.fill_buf()
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::source::{Message, SourceLimits};

    /// Offset, bytes that were kept, and whole length of each message of a chunk.
    type Read = Vec<(i64, Vec<u8>, u64)>;

    /// All messages from line `offset` on, read through a buffer of `buffer` bytes, by chunk.
    fn read(input: &[u8], offset: i64, buffer: usize, limits: SourceLimits) -> io::Result<Vec<Read>> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, input));
        let mut next = lines.skip(offset)?;
        let mut chunks = Vec::new();
        loop {
            let mut builder = ChunkBuilder::new(limits);
            let (end, last) = lines.read(&mut builder, next).map_err(|(_, error)| error)?;
            next = end;
            if let Some(chunk) = builder.build() {
                let one = |index| match chunk.message(index) {
                    Message::Whole(bytes) => (chunk.offset(index), bytes.to_vec(), bytes.len() as u64),
                    Message::Oversized { start, bytes } => (chunk.offset(index), start.to_vec(), bytes),
                };
                chunks.push((0..chunk.rows()).map(one).collect());
            }
            if last {
                return Ok(chunks);
            }
        }
    }

    /// Offsets and messages; chunks are separated by `|`.
    fn check(input: &str, expected: Expect) {
        let limits = SourceLimits { message_bytes_max: 6, chunk_bytes: 8, chunk_rows: 3, ..SourceLimits::default() };
        let mut seen = None;
        for buffer in [1, 2, 3, 7, 100] {
            let chunks = read(input.as_bytes(), 0, buffer, limits).expect("reads");
            let one = |(offset, bytes, length): &(i64, Vec<u8>, u64)| {
                let cut = if *length > bytes.len() as u64 { format!(" of {length}") } else { String::new() };
                format!("{offset}:{:?}{cut}", String::from_utf8_lossy(bytes))
            };
            let chunks: Vec<String> = chunks.iter().map(|chunk| chunk.iter().map(one).collect::<Vec<_>>().join(" ")).collect();
            let text = chunks.join(" | ");
            assert_eq!(*seen.get_or_insert(text.clone()), text, "the same for a read buffer of {buffer} bytes");
        }
        expected.assert_eq(&seen.unwrap_or_default());
    }

    #[test]
    fn lines_become_messages() {
        check("", expect![[""]]);
        check("\n", expect![[r#"0:"""#]]);
        check("a", expect![[r#"0:"a""#]]);
        check("a\n", expect![[r#"0:"a""#]]);
        check("a\nb", expect![[r#"0:"a" 1:"b""#]]);
        check("a\n\n", expect![[r#"0:"a" 1:"""#]]);
        check("\n\na", expect![[r#"0:"" 1:"" 2:"a""#]]);
        check("a\r\nb\r\n", expect![[r#"0:"a\r" 1:"b\r""#]]);
        check("1\n2\n3\n4\n5", expect![[r#"0:"1" 1:"2" 2:"3" | 3:"4" 4:"5""#]]);
        check("1234\n5678\n9", expect![[r#"0:"1234" 1:"5678" | 2:"9""#]]);
        check("123456\n7", expect![[r#"0:"123456" 1:"7""#]]);
        check("1234567\n8", expect![[r#"0:"123456" of 7 1:"8""#]]);
        check("1234567890123456789\n\nx", expect![[r#"0:"123456" of 19 1:"" 2:"x""#]]);
        check("a\n1234567890", expect![[r#"0:"a" 1:"123456" of 10"#]]);
    }

    #[test]
    fn skips_lines() {
        let check = |input: &str, count, skipped| {
            for buffer in [1, 2, 3, 100] {
                let mut lines = Lines::new(BufReader::with_capacity(buffer, input.as_bytes()));
                assert_eq!(lines.skip(count).expect("reads"), skipped, "{input:?} {count}");
            }
        };
        check("", 0, 0);
        check("", 1, 0);
        check("a", 1, 1);
        check("a", 2, 1);
        check("a\n", 2, 1);
        check("a\n\n", 2, 2);
        check("a\n\n", 3, 2);
        check("a\nb\nc", 3, 3);
        check("a\nb\nc", 9, 3);
    }

    proptest! {
        /// However the stream is buffered and cut into chunks, and wherever reading starts, the messages are the lines.
        #[test]
        fn lines_are_put_together_again(
            lines in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\r'), b'a'..=b'c'], 0..12), 0..40),
            last_newline in any::<bool>(),
            buffer in 1_usize..30,
            message_bytes_max in 1_usize..14,
            chunk_bytes in 1_usize..40,
            chunk_rows in 1_usize..6,
            offset in 0_usize..45,
        ) {
            let limits = SourceLimits { message_bytes_max, chunk_bytes, chunk_rows, ..SourceLimits::default() };
            let mut input = lines.join(&b'\n');
            let mut expected = lines.clone();
            if last_newline && !lines.is_empty() {
                input.push(b'\n');
            } else if lines.last().is_some_and(Vec::is_empty) {
                // An empty line at the end is a line only by its newline.
                expected.pop();
            }
            let chunks = read(&input, offset as i64, buffer, limits).expect("memory can be read");
            for chunk in &chunks {
                prop_assert!(chunk.len() <= chunk_rows);
                let before_last: usize = chunk[..chunk.len() - 1].iter().map(|(_, bytes, _)| bytes.len()).sum();
                prop_assert!(before_last < chunk_bytes);
            }
            let messages: Vec<_> = chunks.into_iter().flatten().collect();
            let wanted: Vec<_> = expected.iter().enumerate().skip(offset)
                .map(|(index, line)| (index as i64, line[..line.len().min(message_bytes_max)].to_vec(), line.len() as u64))
                .collect();
            prop_assert_eq!(messages, wanted);
        }
    }
}
