//! Event times.

use chrono::DateTime;

use crate::epoch::Micros;

/// An RFC 3339 time with an offset, as microseconds since 1970 UTC; further digits of a second are cut off. `None` if it is none.
///
/// `2026-01-05T10:00:00.123Z` and its like are read by hand, everything else by chrono.
pub fn parse_rfc3339_micros(text: &str) -> Option<Micros> {
    usual(text.as_bytes()).or_else(|| by_chrono(text))
}

#[cold]
fn by_chrono(text: &str) -> Option<Micros> {
    // It also takes the minus sign U+2212, which is not in RFC 3339.
    let time = text.is_ascii().then(|| DateTime::parse_from_rfc3339(text).ok()).flatten()?;
    Some(time.timestamp_micros())
}

/// Integer milliseconds since 1970, as microseconds.
pub(super) fn from_millis(millis: i64) -> Option<Micros> {
    millis.checked_mul(1000)
}

/// `YYYY-MM-DDTHH:MM:SS[.f{1,6}](Z|±HH:MM)`
fn usual(text: &[u8]) -> Option<Micros> {
    let (start, rest) = text.split_first_chunk::<19>()?;
    if start[4] != b'-' || start[7] != b'-' || start[10] != b'T' || start[13] != b':' || start[16] != b':' {
        return None;
    }
    let (year, month, day) = (two(start, 0)? * 100 + two(start, 2)?, two(start, 5)?, two(start, 8)?);
    let (hour, minute, second) = (two(start, 11)?, two(start, 14)?, two(start, 17)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, zone) = match rest {
        [b'.', rest @ ..] => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=6).contains(&digits) {
                return None;
            }
            let value = rest[..digits].iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
            (value * [100_000, 10_000, 1_000, 100, 10, 1][digits - 1], &rest[digits..])
        }
        zone => (0, zone),
    };
    let ahead_minutes = match zone {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (two(zone, 1)?, two(zone, 4)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - ahead_minutes;
    Some((minutes * 60 + second) * 1_000_000 + fraction)
}

/// The number of the two digits at `at`.
#[inline]
fn two(text: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then(|| i64::from(tens) * 10 + i64::from(ones))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: Option<i64>) {
        assert_eq!(parse_rfc3339_micros(text), expected, "{text}");
    }

    #[test]
    fn forms() {
        check("1970-01-01T00:00:00Z", Some(0));
        check("2026-01-05T10:00:00.123Z", Some(1_767_607_200_123_000));
        check("2026-01-05T10:00:00.1234567Z", Some(1_767_607_200_123_456));
        check("2026-01-05T12:30:00+02:30", Some(1_767_607_200_000_000));
        check("2024-02-29T00:00:00Z", Some(1_709_164_800_000_000));
        check("2023-02-29T00:00:00Z", None);
        check("2016-12-31T23:59:60Z", Some(1_483_228_800_000_000));
        check("2026-01-05T12:30:00.5+02:30", Some(1_767_607_200_500_000));
        check("2026-01-05T10:00:00-00:00", Some(1_767_607_200_000_000));
        check("2026-01-05T10:00:00+24:00", None);
        check("2026-01-05T10:00:00\u{2212}01:00", None);
        check("1969-12-31T23:59:59.9999999Z", Some(-1));
        check("2016-12-31T23:59:60.5Z", Some(1_483_228_800_500_000));
        check("1969-12-31T23:59:59.999999Z", Some(-1));
        check("2026-01-05T10:00:00", None);
        check("2026-01-05T24:00:00Z", None);
        check("2026-01-05", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn by_hand_as_by_chrono(
            (year, month, day) in (0i64..10_000, 0i64..14, 0i64..33),
            (hour, minute, second) in (0i64..26, 0i64..62, 0i64..60),
            fraction in "(\\.[0-9]{0,7})?",
            zone in "Z|[+-](0[0-9]|1[0-9]|2[0-5]):[0-6][0-9]|[+-][0-9]{2}|z|",
        ) {
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}");
            let expected = by_chrono(&text);
            prop_assert_eq!(parse_rfc3339_micros(&text), expected, "{}", text);
            // Most are read by hand.
            if expected.is_some() && fraction.len() <= 7 && zone != "z" {
                prop_assert_eq!(usual(text.as_bytes()), expected, "{}", text);
            }
        }
    }
}
