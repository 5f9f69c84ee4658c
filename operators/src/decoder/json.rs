//! A reader of JSON text, one value after the other, without a tree.
//!
//! RFC 8259 to the letter: also what is only read over must be valid, and texts hold no lone surrogates. Most bytes of a
//! message are inside of short strings, so those are searched for their end eight bytes at a time; all else goes byte by byte.

use super::names::{Before, Guesses, Name};

/// How deep lists and objects may nest; the outermost is level 1.
pub(super) const DEPTH_MAX: usize = 128;

/// The longest text that a [`Span`] can point into.
pub(super) const TEXT_BYTES_MAX: usize = Span::UNESCAPED as usize - 1;

/// What is not JSON.
///
/// Small, as every function of the reader returns it. The place is where the [`Reader`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyntaxError {
    #[error("expected a value")]
    Value,
    #[error("ends too early")]
    End,
    #[error("more behind the message's end")]
    More,
    #[error("nested more than {DEPTH_MAX} levels deep")]
    Depth,
    #[error("expected a field's name")]
    Name,
    #[error("expected `:`")]
    Colon,
    #[error("expected `,` or `}}`")]
    InObject,
    #[error("expected `,` or `]`")]
    InList,
    #[error("expected a digit")]
    Digit,
    #[error("number with a leading zero")]
    LeadingZero,
    #[error("control character in a string")]
    Control,
    #[error("string without an end")]
    OpenString,
    #[error("unknown escape")]
    Escape,
    #[error("expected four hexadecimal digits")]
    HexDigits,
    #[error("lone surrogate")]
    Surrogate,
}

/// The place of a text: in the message, or, if it was written with escapes, in the room of unescaped texts.
///
/// One word, as it is stored and loaded often: the start in the lower half, of which the highest bit says which room, the end in the upper.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(u64);

impl Span {
    const UNESCAPED: u32 = 1 << 31;

    #[inline]
    fn new(start: u32, end: usize) -> Span {
        Span(u64::from(start) | (end as u64) << 32)
    }
    #[inline]
    fn message(start: usize, end: usize) -> Span {
        Span::new(start as u32, end)
    }
    fn unescaped(start: usize, end: usize) -> Span {
        Span::new(start as u32 | Span::UNESCAPED, end)
    }
}

/// What spans point into.
#[derive(Clone, Copy)]
pub(super) struct Texts<'a> {
    pub message: &'a str,
    pub unescaped: &'a str,
}

impl<'a> Texts<'a> {
    /// The text of a string.
    #[inline]
    pub(super) fn get(self, span: Span) -> &'a str {
        let (start, end) = (span.0 as u32, (span.0 >> 32) as usize);
        let room = if start & Span::UNESCAPED == 0 { self.message } else { self.unescaped };
        &room[(start & !Span::UNESCAPED) as usize..end]
    }
}

/// A value as far as fields ask about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// The field is not there.
    Absent,
    Null,
    Text(Span),
    /// A number without fraction and exponent that fits 64 bits signed.
    Integer(i64),
    /// Any other number, `true` or `false`.
    Other,
    List,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Absent,
    Null,
    Text,
    Integer,
    Other,
    List,
    Object,
}

/// A value, and where it stands in the message.
///
/// The reader writes into it in place, and word by word: an enum that is handed up through results is copied in other pieces
/// than those in which it was written, and then each copy waits for the writes (more than a tenth of the decoder's time).
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    kind: Kind,
    start: u32,
    end: u32,
    /// A text's span, an integer's bits.
    payload: u64,
}

impl Field {
    pub(super) const ABSENT: Field = Field { kind: Kind::Absent, start: 0, end: 0, payload: 0 };

    #[inline]
    pub(super) fn value(&self) -> Value {
        match self.kind {
            Kind::Absent => Value::Absent,
            Kind::Null => Value::Null,
            Kind::Text => Value::Text(Span(self.payload)),
            Kind::Integer => Value::Integer(self.payload as i64),
            Kind::Other => Value::Other,
            Kind::List => Value::List,
            Kind::Object => Value::Object,
        }
    }

    /// Where it stands in the message.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Reads a text from its start to its end.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    unescaped: &'a mut String,
    guesses: &'a mut Guesses,
}

type Result<T> = std::result::Result<T, SyntaxError>;

impl<'a> Reader<'a> {
    /// `text` has at most [`TEXT_BYTES_MAX`] bytes. Texts with escapes are put into `unescaped`.
    pub(super) fn new(text: &'a str, unescaped: &'a mut String, guesses: &'a mut Guesses) -> Self {
        unescaped.clear();
        Reader { text, at: 0, unescaped, guesses }
    }

    /// The byte that is read next.
    #[inline]
    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn texts(&self) -> Texts<'_> {
        Texts { message: self.text, unescaped: self.unescaped }
    }

    /// The next byte.
    #[inline]
    pub(super) fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not white space, which is not stepped over.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                byte => return byte,
            }
        }
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { Err(SyntaxError::More) }
    }

    /// Steps over `byte` if it is next.
    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.byte() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Reads an object, whose `{` is next. `field` is called with each name (`None` if no field has it), and reads the value.
    #[inline]
    pub(super) fn object(&mut self, start: Before, mut field: impl FnMut(&mut Self, Option<Name>) -> Result<()>) -> Result<()> {
        self.at += 1;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut before = start;
        loop {
            let name = match self.guesses.next(before, &self.text.as_bytes()[self.at..]) {
                Some((name, bytes)) => {
                    self.at += bytes;
                    Some(name)
                }
                None => self.name(before)?,
            };
            field(self, name)?;
            before = name.map_or(Before::OTHER, Before::from);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(SyntaxError::InObject),
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Reads a field's name and the colon behind it.
    fn name(&mut self, before: Before) -> Result<Option<Name>> {
        if self.peek() != Some(b'"') {
            return Err(SyntaxError::Name);
        }
        let unescaped = self.unescaped.len();
        let name = self.string()?;
        let name = Name::of(self.texts().get(name));
        self.unescaped.truncate(unescaped);
        if self.peek() != Some(b':') {
            return Err(SyntaxError::Colon);
        }
        self.at += 1;
        if let Some(name) = name {
            self.guesses.learn(before, name);
        }
        Ok(name)
    }

    /// Reads a list, whose `[` is next. `item` is called for each item, and reads it.
    #[inline]
    pub(super) fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.at += 1;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(SyntaxError::InList),
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Reads any value into `field`; a list or an object, which would be of level `depth`, is read over.
    #[inline]
    pub(super) fn value(&mut self, depth: usize, field: &mut Field) -> Result<()> {
        let first = self.peek();
        field.start = self.at as u32;
        match first {
            Some(b'"') => {
                field.payload = self.string()?.0;
                field.kind = Kind::Text;
            }
            Some(b'-' | b'0'..=b'9') => match self.number()? {
                Some(integer) => {
                    field.payload = integer as u64;
                    field.kind = Kind::Integer;
                }
                None => field.kind = Kind::Other,
            },
            _ => field.kind = self.other_value(depth)?,
        }
        field.end = self.at as u32;
        Ok(())
    }

    fn other_value(&mut self, depth: usize) -> Result<Kind> {
        match self.byte() {
            Some(b'n') => self.word("null", Kind::Null),
            Some(b't') => self.word("true", Kind::Other),
            Some(b'f') => self.word("false", Kind::Other),
            Some(b'[' | b'{') if depth > DEPTH_MAX => Err(SyntaxError::Depth),
            Some(b'[') => {
                self.list(|reader| reader.skip(depth + 1))?;
                Ok(Kind::List)
            }
            Some(b'{') => {
                self.object(Before::OTHER, |reader, _| reader.skip(depth + 1))?;
                Ok(Kind::Object)
            }
            Some(_) => Err(SyntaxError::Value),
            None => Err(SyntaxError::End),
        }
    }

    /// Reads the object or list that is next, with `read`, into `field`.
    #[inline]
    pub(super) fn within(&mut self, field: &mut Field, read: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        field.kind = if self.byte() == Some(b'{') { Kind::Object } else { Kind::List };
        field.start = self.at as u32;
        read(self)?;
        field.end = self.at as u32;
        Ok(())
    }

    /// Reads over a value; a list or an object would be of level `depth`.
    pub(super) fn skip(&mut self, depth: usize) -> Result<()> {
        let unescaped = self.unescaped.len();
        self.value(depth, &mut { Field::ABSENT })?;
        self.unescaped.truncate(unescaped);
        Ok(())
    }

    fn word(&mut self, word: &str, kind: Kind) -> Result<Kind> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(SyntaxError::Value);
        }
        self.at += word.len();
        Ok(kind)
    }

    /// Reads a number: `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`; `None` if it is no integer of 64 bits.
    #[inline]
    fn number(&mut self) -> Result<Option<i64>> {
        // So many digits fit 64 bits whatever they are.
        const DIGITS_SAFE: usize = 18;
        let start = self.at;
        let negative = self.take(b'-');
        let first = self.at;
        let mut magnitude = 0i64;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            magnitude = magnitude.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            self.at += 1;
        }
        let digits = self.at - first;
        if digits == 0 {
            return Err(SyntaxError::Digit);
        }
        if digits > 1 && self.text.as_bytes()[first] == b'0' {
            self.at = first;
            return Err(SyntaxError::LeadingZero);
        }
        if matches!(self.byte(), Some(b'.' | b'e' | b'E')) {
            return self.fraction_and_exponent().map(|()| None);
        }
        if digits > DIGITS_SAFE {
            return Ok(self.text[start..self.at].parse().ok());
        }
        Ok(Some(if negative { -magnitude } else { magnitude }))
    }

    #[cold]
    fn fraction_and_exponent(&mut self) -> Result<()> {
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<()> {
        let start = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(SyntaxError::Digit) } else { Ok(()) }
    }

    /// Reads a string, whose `"` is next.
    #[inline(always)]
    fn string(&mut self) -> Result<Span> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        let end = self.at;
        if self.take(b'"') {
            return Ok(Span::message(start, end));
        }
        self.string_with_escapes(start)
    }

    /// Goes on with a string that started at `start`, at its first byte that is not plain.
    #[cold]
    fn string_with_escapes(&mut self, start: usize) -> Result<Span> {
        let out = self.unescaped.len();
        let mut plain = start;
        loop {
            self.unescaped.push_str(&self.text[plain..self.at]);
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Span::unescaped(out, self.unescaped.len()));
                }
                Some(b'\\') => {
                    self.at += 1;
                    let char = self.escape()?;
                    self.unescaped.push(char);
                }
                Some(_) => return Err(SyntaxError::Control),
                None => return Err(SyntaxError::OpenString),
            }
            plain = self.at;
            self.skip_plain();
        }
    }

    /// Steps to the next quote, backslash or control character, none of which is a part of a longer UTF-8 sequence.
    #[inline(always)]
    fn skip_plain(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&word) = bytes[self.at..].first_chunk::<8>() {
            let special = special_bytes(u64::from_le_bytes(word));
            if special != 0 {
                self.at += special.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        while matches!(self.byte(), Some(byte) if byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.at += 1;
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Result<char> {
        let escaped = match self.byte() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            Some(_) => return Err(SyntaxError::Escape),
            None => return Err(SyntaxError::OpenString),
        };
        self.at += 1;
        Ok(escaped)
    }

    /// What stands behind `\u`: four digits, or a pair of surrogates.
    fn unicode_escape(&mut self) -> Result<char> {
        let mut code = self.four_hex_digits()?;
        if (0xd800..0xdc00).contains(&code) {
            if !(self.take(b'\\') && self.take(b'u')) {
                return Err(SyntaxError::Surrogate);
            }
            let low = self.four_hex_digits()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(SyntaxError::Surrogate);
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        char::from_u32(code).ok_or(SyntaxError::Surrogate)
    }

    fn four_hex_digits(&mut self) -> Result<u32> {
        let mut code = 0;
        for _ in 0..4 {
            match self.byte().and_then(|byte| char::from(byte).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return Err(SyntaxError::HexDigits),
            }
            self.at += 1;
        }
        Ok(code)
    }
}

/// The highest bit of each byte that is a quote, a backslash or a control character, if those of the bytes below it are not:
/// the lowest bit that is set tells the first such byte, bits above it may be wrong.
///
/// Source: Sean Eron Anderson, "Bit Twiddling Hacks", *Determine if a word has a byte less than n*.
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let less = |word: u64, n: u8| word.wrapping_sub(ONES * u64::from(n)) & !word;
    let equal = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    (less(word, b' ') | equal(b'"') | equal(b'\\')) & HIGHS
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn read(text: &str) -> std::result::Result<String, String> {
        let mut unescaped = String::new();
        let mut guesses = Guesses::default();
        let mut reader = Reader::new(text, &mut unescaped, &mut guesses);
        let mut field = Field::ABSENT;
        match reader.value(1, &mut field).and_then(|()| reader.end()) {
            Ok(()) => match field.value() {
                Value::Text(span) => Ok(format!("text {:?}", reader.texts().get(span))),
                other => Ok(format!("{other:?}")),
            },
            Err(error) => Err(format!("{error} at byte {}", reader.at())),
        }
    }

    fn check(text: &str, expected: Expect) {
        expected.assert_eq(&read(text).unwrap_or_else(|error| error));
    }

    #[test]
    fn numbers() {
        check("-0", expect!["Integer(0)"]);
        check("9223372036854775807", expect!["Integer(9223372036854775807)"]);
        check("-9223372036854775808", expect!["Integer(-9223372036854775808)"]);
        check("9223372036854775808", expect!["Other"]);
        check("1.0", expect!["Other"]);
        check("1e3", expect!["Other"]);
        check("-1E+999", expect!["Other"]);
        check("01", expect!["number with a leading zero at byte 0"]);
        check("-", expect!["expected a digit at byte 1"]);
        check("1.", expect!["expected a digit at byte 2"]);
        check("1e+", expect!["expected a digit at byte 3"]);
        check("+1", expect!["expected a value at byte 0"]);
        check("nul", expect!["expected a value at byte 0"]);
        check("NaN", expect!["expected a value at byte 0"]);
    }

    #[test]
    fn texts() {
        check(r#""\u0041\ud83d\ude00\/\n plain""#, expect![[r#"text "A😀/\n plain""#]]);
        check(r#""ünïcödé, longer than a word""#, expect![[r#"text "ünïcödé, longer than a word""#]]);
        check(r#""\ud83d""#, expect!["lone surrogate at byte 7"]);
        check(r#""\ud83d\u0041""#, expect!["lone surrogate at byte 13"]);
        check(r#""\ude00""#, expect!["lone surrogate at byte 7"]);
        check(r#""\u00g0""#, expect!["expected four hexadecimal digits at byte 5"]);
        check(r#""\x""#, expect!["unknown escape at byte 2"]);
        check("\"\u{1f}\"", expect!["control character in a string at byte 1"]);
        check("\"0123456789\n\"", expect!["control character in a string at byte 11"]);
        check("\"", expect!["string without an end at byte 1"]);
        check("\"\\", expect!["string without an end at byte 2"]);
    }

    #[test]
    fn what_is_read_over_must_be_valid() {
        check(r#" {"a":[1,{"b":"\n"}], "c" : {} } "#, expect!["Object"]);
        check("[ ]", expect!["List"]);
        check("[1,]", expect!["expected a value at byte 3"]);
        check("[1 2]", expect!["expected `,` or `]` at byte 3"]);
        check(r#"{"a":1,}"#, expect!["expected a field's name at byte 7"]);
        check(r#"{"a" 1}"#, expect!["expected `:` at byte 5"]);
        check(r#"{"a":"\ud800"}"#, expect!["lone surrogate at byte 12"]);
        check("[1] 2", expect!["more behind the message's end at byte 4"]);
        check("[", expect!["ends too early at byte 1"]);
        check("", expect!["ends too early at byte 0"]);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(read(&nested(DEPTH_MAX)), Ok("List".to_owned()));
        assert!(read(&nested(DEPTH_MAX + 1)).is_err());
        assert!(read(&"[{\"a\":".repeat(1_000_000)).is_err());
    }

    proptest! {
        #[test]
        fn first_special_byte(bytes in prop::array::uniform8(prop_oneof![any::<u8>(), Just(b'"'), Just(b'\\'), Just(0x1f), Just(b' '), Just(0x7f)])) {
            let expected = bytes.iter().position(|&byte| byte < b' ' || byte == b'"' || byte == b'\\').unwrap_or(8);
            prop_assert_eq!(special_bytes(u64::from_le_bytes(bytes)).trailing_zeros() as usize / 8, expected, "{:?}", bytes);
        }

        /// Accepts what serde_json accepts, but for numbers too large for a float, which it refuses.
        #[test]
        fn agrees_with_serde_json(text in r#"([\[\]{}:,"\\ \t]|"[ab\\nux04]{0,6}"|-?[0-9.e]{1,4}|true|null|\\ud83d|\\ude00){0,12}"#) {
            let expected = serde_json::from_str::<serde_json::Value>(&text);
            prop_assume!(!expected.as_ref().is_err_and(|e| e.to_string().contains("out of range")));
            prop_assert_eq!(read(&text).is_ok(), expected.is_ok(), "{}", text);
        }
    }
}
