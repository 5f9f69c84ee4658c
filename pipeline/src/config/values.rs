//! The kinds of values that settings have: intervals, sizes, secrets, passed-through properties.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use orderflow_operators::epoch::Micros;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

const MS: i64 = 1_000;
const SECOND: i64 = 1_000 * MS;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// A length of time of whole microseconds, not negative: `"250 ms"`, `"5 s"`, `"15 min"`, `"24 h"`, `"1 h 30 min"`.
/// A number without a unit is milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(Micros);

impl Interval {
    /// An interval of `n` microseconds; negative ones are 0.
    pub const fn micros(n: Micros) -> Self {
        Interval(if n < 0 { 0 } else { n })
    }
    /// An interval of `n` milliseconds.
    pub const fn millis(n: u32) -> Self {
        Interval(n as i64 * MS)
    }
    /// An interval of `n` seconds.
    pub const fn seconds(n: u32) -> Self {
        Interval(n as i64 * SECOND)
    }
    /// An interval of `n` minutes.
    pub const fn minutes(n: u32) -> Self {
        Interval(n as i64 * MINUTE)
    }
    /// An interval of `n` hours.
    pub const fn hours(n: u32) -> Self {
        Interval(n as i64 * HOUR)
    }
    /// Its length in microseconds, the unit of event times.
    pub const fn as_micros(self) -> Micros {
        self.0
    }
    /// The same as the standard library's type, for timers of the I/O side.
    pub const fn as_duration(self) -> Duration {
        Duration::from_micros(self.0.unsigned_abs())
    }
    /// As it stands in a column's name: `5m`, `1h`, `24h`. Never in days, as windows are named by hours.
    pub fn label(self) -> String {
        let (count, unit) = self.parts();
        format!("{count}{}", if unit == "min" { "m" } else { unit })
    }

    /// The largest unit of which it is a whole number.
    fn parts(self) -> (i64, &'static str) {
        for (size, unit) in [(HOUR, "h"), (MINUTE, "min"), (SECOND, "s"), (MS, "ms")] {
            if self.0 > 0 && self.0 % size == 0 {
                return (self.0 / size, unit);
            }
        }
        if self.0 == 0 { (0, "s") } else { (self.0, "us") }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = self.parts();
        write!(f, "{count} {unit}")
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not an interval; write a number and a unit of us, ms, s, min, h or d, such as \"250 ms\" or \"15 min\"")
        };
        let trimmed = text.trim();
        let duration = match trimmed.parse::<u64>() {
            Ok(ms) => Duration::from_millis(ms),
            Err(_) => humantime::parse_duration(trimmed).map_err(|_| wrong())?,
        };
        if duration.subsec_nanos() % 1_000 != 0 {
            return Err(format!("`{text}` has a fraction of a microsecond, the finest unit of time here"));
        }
        i64::try_from(duration.as_micros()).map(Interval).map_err(|_| format!("`{text}` is longer than 290 000 years"))
    }
}

/// A number of bytes: `"64 MiB"` (powers of 1024), `"64 MB"` (powers of 1000), or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// `n` bytes.
    pub const fn bytes(n: u64) -> Self {
        ByteSize(n)
    }
    /// `n` × 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        ByteSize(n << 10)
    }
    /// `n` × 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        ByteSize(n << 20)
    }
    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// The number of bytes, for sizes of buffers; the largest `usize` where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = BYTE_UNITS.into_iter().find(|&(_, size)| self.0 >= size && self.0.is_multiple_of(size)).unwrap_or(("B", 1));
        write!(f, "{} {unit}", self.0 / size)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let unit = trimmed[digits..].trim();
        let size = if unit.is_empty() {
            Some(1)
        } else {
            BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|&(_, size)| size)
        };
        let count = trimmed[..digits].parse::<u64>().ok();
        match (count, size) {
            (Some(count), Some(size)) => count.checked_mul(size).map(ByteSize).ok_or_else(|| format!("`{text}` does not fit 64 bits")),
            _ => Err(format!("`{text}` is not a size; write a whole number and a unit of B, KiB, MiB or GiB, such as \"64 MiB\"")),
        }
    }
}

/// A password or key: in no log, and shown as stars.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// What stands for a secret wherever settings are shown.
const STARS: &str = "********";

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }
    /// The text itself, to be handed to the server it is for.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { STARS })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { STARS })
    }
}

/// Settings of somebody else's library, passed through as text under their own names.
///
/// Names have dots, which in TOML nest tables: `security.protocol = "ssl"` and `"security.protocol" = "ssl"` are the
/// same here. Numbers and booleans become their text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(pub BTreeMap<String, String>);

impl Properties {
    /// Name and value of each, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn is_secret(name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        ["password", "secret", "ssl.key.pem", "token", "account_key", "access_key", "credential"].iter().any(|word| name.contains(word))
    }

    fn insert(&mut self, name: String, value: toml::Value) -> Result<(), String> {
        let text = match value {
            toml::Value::Table(inner) => return inner.into_iter().try_for_each(|(key, value)| self.insert(format!("{name}.{key}"), value)),
            toml::Value::String(text) => text,
            toml::Value::Array(_) => return Err(format!("`{name}` is a list; write it as one text, the way its library takes it")),
            scalar => scalar.to_string(),
        };
        self.0.insert(name, text);
        Ok(())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, if Self::is_secret(name) { STARS } else { value }))).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, value)| (name, if Self::is_secret(name) { STARS } else { value })))
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut properties = Properties::default();
        for (name, value) in toml::Table::deserialize(deserializer)? {
            properties.insert(name, value).map_err(de::Error::custom)?;
        }
        Ok(properties)
    }
}

/// Reads a value that is a text with a unit, or a bare whole number.
struct TextOrNumber<T>(&'static str, std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

macro_rules! text_with_unit {
    ($type:ty, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrNumber($expected, std::marker::PhantomData))
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

text_with_unit!(Interval, "an interval such as \"5 s\", or whole milliseconds");
text_with_unit!(ByteSize, "a size such as \"64 MiB\", or whole bytes");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let check = |text: &str, shown: &str| {
            assert_eq!(text.parse::<Interval>().map(|i| i.to_string()), Ok(shown.to_owned()), "{text}");
            assert_eq!(shown.parse::<Interval>(), text.parse::<Interval>(), "what is shown reads back as the same");
        };
        check("5 s", "5 s");
        check("5s", "5 s");
        check("250 ms", "250 ms");
        check("250", "250 ms");
        check("15 min", "15 min");
        check("15 m", "15 min");
        check("1 h 30 min", "90 min");
        check("24 h", "24 h");
        check("1 day", "24 h");
        check("0", "0 s");
        check("7 us", "7 us");
        for wrong in ["", "s", "5 parsecs", "-5 s", "1 ns", "99999999999 years"] {
            assert!(wrong.parse::<Interval>().is_err(), "{wrong}");
        }
        let labels = ["5 m", "1 h", "24 h", "30 s", "90 min"].map(|text| text.parse::<Interval>().map(Interval::label));
        assert_eq!(labels, ["5m", "1h", "24h", "30s", "90m"].map(|label| Ok(label.to_owned())));
    }

    #[test]
    fn sizes() {
        let check = |text: &str, bytes: u64, shown: &str| {
            let size = text.parse::<ByteSize>();
            assert_eq!(size, Ok(ByteSize(bytes)), "{text}");
            assert_eq!(size.map(|s| s.to_string()), Ok(shown.to_owned()));
        };
        check("64 MiB", 64 << 20, "64 MiB");
        check("64mib", 64 << 20, "64 MiB");
        check("1000", 1000, "1 kB");
        check("1 GB", 1_000_000_000, "1 GB");
        check("1 B", 1, "1 B");
        check("0", 0, "0 B");
        for wrong in ["", "MiB", "1.5 MiB", "-1", "1 MiX", "99999999999 TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let properties: Properties =
            toml::from_str("sasl.username = 'jo'\nsasl.password = 'hush'\n'queued.min.messages' = 5\ntls = true").expect("valid");
        assert_eq!(properties.0["sasl.password"], "hush");
        assert_eq!(
            format!("{properties:?}"),
            r#"{"queued.min.messages": "5", "sasl.password": "********", "sasl.username": "jo", "tls": "true"}"#
        );
        assert_eq!(format!("{:?} {:?}", Secret::new("hush"), Secret::default()), r#"******** """#);
    }
}
