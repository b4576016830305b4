//! The kinds of values that settings have, and what is said where one is of no such kind.

use std::fmt::Display;
use std::ops::RangeInclusive;
#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

#[cfg(any(feature = "json", feature = "metrics"))]
use crate::http::builtin::{PAGES, is_page};

/// A value, or what would be allowed, as half a sentence.
pub(super) type Parsed<T> = Result<T, String>;

/// A year. It bounds nothing but mistakes: clocks can add it to any time of theirs.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A tebibyte: nobody means that a session holds more, or moves more in a second. Where there are fewer
/// addresses, half of them.
const LARGEST: u64 = if usize::BITS < 64 { u32::MAX as u64 / 2 } else { 1 << 40 };

/// Stores a value where it belongs.
pub(super) fn put<T>(place: &mut T, value: Parsed<T>) -> Parsed<()> {
    *place = value?;
    Ok(())
}

/// A whole number.
pub(super) fn number<T>(text: &str, allowed: RangeInclusive<T>) -> Parsed<T>
where
    T: FromStr + PartialOrd + Display + Copy,
{
    let found = digits(text).and_then(|digits| digits.parse().ok());
    found.filter(|number| allowed.contains(number)).ok_or_else(|| {
        format!("allowed is a whole number from {} to {}", allowed.start(), allowed.end())
    })
}

/// At least 1, and as many as memory could ever hold.
pub(super) fn count(text: &str) -> Parsed<usize> {
    number(text, 1..=u32::MAX as usize)
}

/// A number of bytes: plain, or in KiB (`k`), MiB (`m`) or GiB (`g`).
pub(super) fn size(text: &str, least: u64) -> Parsed<usize> {
    let (number, unit) = split_unit(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        _ => None,
    };
    let bytes = shift.and_then(|shift| {
        let number: u64 = digits(number)?.parse().ok()?;
        let bytes = number.checked_mul(1 << shift)?;
        usize::try_from(bytes).ok().filter(|_| (least..=LARGEST).contains(&bytes))
    });
    bytes.ok_or_else(|| {
        format!(
            "allowed is a number of bytes from {least} to {LARGEST}, such as 65536, or 64k, 16m, 1g (KiB, \
             MiB, GiB)"
        )
    })
}

/// A number of bytes for a rate.
pub(super) fn bytes_per_second(text: &str) -> Parsed<u64> {
    // Wide enough on every machine.
    size(text, 1).map(|bytes| bytes as u64)
}

/// A time above nothing: plain seconds, or with a unit.
pub(super) fn time(text: &str) -> Parsed<Duration> {
    span(text).filter(|time| !time.is_zero()).ok_or_else(|| TIME.to_owned())
}

/// The same, or nothing at all.
pub(super) fn time_or_none(text: &str) -> Parsed<Duration> {
    span(text).ok_or_else(|| format!("{TIME}, or 0"))
}

/// A time, or `off` (or 0).
pub(super) fn time_or_off(text: &str) -> Parsed<Option<Duration>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    match span(text) {
        Some(time) => Ok(Some(time).filter(|time| !time.is_zero())),
        None => Err(format!("{TIME}, or off")),
    }
}

const TIME: &str = "allowed is a time of at most a year in seconds, such as 30, or with a unit: 500ms, 30s, 5m, 1h";

fn span(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let number: u64 = digits(number)?.parse().ok()?;
    let millis = match unit {
        "ms" => number,
        "" | "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60 * 1000)?,
        "h" => number.checked_mul(60 * 60 * 1000)?,
        _ => return None,
    };
    Some(Duration::from_millis(millis)).filter(|time| *time <= LONGEST)
}

/// What stands for no number, or a value.
pub(super) fn unless<T>(
    word: &str,
    text: &str,
    otherwise: impl FnOnce(&str) -> Parsed<T>,
) -> Parsed<Option<T>> {
    if text.eq_ignore_ascii_case(word) {
        return Ok(None);
    }
    match otherwise(text) {
        Ok(value) => Ok(Some(value)),
        Err(allowed) => Err(format!("{allowed}, or {word}")),
    }
}

/// Yes or no.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["1", "true", "yes", "on"]) {
        Ok(true)
    } else if is_one_of(["0", "false", "no", "off"]) {
        Ok(false)
    } else {
        Err("allowed is 1, true, yes or on, and 0, false, no or off".to_owned())
    }
}

/// One of these words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("allowed is {}", alternatives(&words))
    })
}

/// Values between commas, or `none`.
pub(super) fn list<T>(text: &str, item: impl FnMut(&str) -> Parsed<T>) -> Parsed<Vec<T>> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    text.split(',').map(str::trim).map(item).collect()
}

/// A path of URLs at which the server itself has something.
#[cfg(any(feature = "json", feature = "metrics"))]
pub(super) fn page(text: &str) -> Parsed<String> {
    if is_page(text) { Ok(text.to_owned()) } else { Err(PAGES.to_owned()) }
}

/// A file, as a program started here would find it.
#[cfg(feature = "tls")]
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if is_pem(text) {
        return Err("allowed is the path of a file, and not what is in it".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// Whether somebody has put a certificate, or even a key, where its path belongs.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// `a`, `a or b`, `a, b or c`.
fn alternatives(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

/// Without a sign, which the standard library's parsers take.
fn digits(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (text, millis) in [
            ("1", 1000),
            ("30", 30_000),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("8760h", 31_536_000_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(time_or_off(text), Ok(Some(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "s", "-1", "+1", "1.5", "1 s", "1d", "1S", "8761h", "18446744073709551615"]
        {
            assert!(time(text).is_err() && time_or_off(text).is_err(), "{text}");
        }
        for text in ["0", "0s", "0ms"] {
            assert!(time(text).is_err(), "{text}");
            assert_eq!(time_or_off(text), Ok(None), "{text}");
            assert_eq!(time_or_none(text), Ok(Duration::ZERO), "{text}");
        }
        assert_eq!(time_or_off("off"), Ok(None));
        assert!(time("off").is_err() && time_or_none("off").is_err());
    }

    #[test]
    fn sizes_are_bytes_or_binary_multiples() {
        for (text, bytes) in
            [("0", 0), ("65536", 65_536), ("64k", 65_536), ("64K", 65_536), ("16m", 1 << 24)]
        {
            assert_eq!(size(text, 0), Ok(bytes), "{text}");
        }
        for text in
            ["", "k", "-1", "+1", "1kb", "1 k", "1t", "18446744073709551615g", "1.5m", "1025g"]
        {
            assert!(size(text, 0).is_err(), "{text}");
        }
        assert!(size("1023", 1024).is_err() && size("1k", 1024).is_ok());
        let said = "allowed is a number of bytes from 1 to 1099511627776, such as ";
        assert!(usize::BITS < 64 || size("0", 1).unwrap_err().starts_with(said));
    }

    #[test]
    fn numbers_are_whole_and_within_their_bounds() {
        assert_eq!(number("65535", 0..=u16::MAX), Ok(65_535));
        for text in ["", "65536", "-1", "+1", "1e3", "0x10", "1_000", " 1", "99999999999999999999"]
        {
            let allowed = number(text, 0..=u16::MAX).unwrap_err();
            assert_eq!(allowed, "allowed is a whole number from 0 to 65535", "{text}");
        }
        assert_eq!(unless("auto", "Auto", count), Ok(None));
        assert!(unless("auto", "0", count).unwrap_err().ends_with(", or auto"));
    }

    #[test]
    fn words_are_those_that_the_message_names() {
        for yes in ["1", "true", "yes", "ON"] {
            assert_eq!(switch(yes), Ok(true));
        }
        for no in ["0", "False", "no", "off"] {
            assert_eq!(switch(no), Ok(false));
        }
        for neither in ["", "2", "y", "enabled"] {
            assert!(switch(neither).is_err());
        }
        let words = [("a", 1), ("b", 2), ("c", 3)];
        assert_eq!(word("B", &words), Ok(2));
        assert_eq!(word("d", &words).unwrap_err(), "allowed is a, b or c");
    }

    #[cfg(any(feature = "json", feature = "metrics"))]
    #[test]
    fn a_page_has_a_path() {
        for text in ["/ws", "/api/v1.0/ws", "/openapi.json", "/-._~"] {
            assert_eq!(page(text).as_deref(), Ok(text));
        }
        for text in ["", "/", "ws", "/ws/", "//ws", "/a//b", "/a b", "/a?b", "/%61", "http://a/b"] {
            assert!(page(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_has_commas_between_its_items() {
        let items = |text| list(text, |item| number(item, 1..=9_u8));
        assert_eq!(items("1, 2,3"), Ok(vec![1, 2, 3]));
        assert_eq!(items("None"), Ok(Vec::new()));
        for text in ["", "1,", "1,,2", ",1", "1;2"] {
            assert!(items(text).is_err(), "{text}");
        }
    }
}
