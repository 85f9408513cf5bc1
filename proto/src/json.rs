//! JSON that every common reader can read.
//!
//! JSON may be well formed and still fail at its readers: Python raises `RecursionError` where `data` is nested deeply,
//! PHP's `json_decode` gives null, and whoever turns half a surrogate pair into UTF-8 fails. One client must not do that
//! to others, so what is sent on is checked at each door, in one pass over its bytes and without memory of its own.

use std::ops::Not;

use memchr::{memchr, memchr2, memmem};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::name::{SERVER_EVENT_PREFIX, is_reserved};

/// Levels of arrays and objects that serde_json reads. Python reads some thousand, PHP 512.
const READ_LEVELS: usize = 127;

/// Most levels in the `data` of a message. A request to the application puts three around it.
pub const DATA_LEVELS_MAX: usize = READ_LEVELS - 3;

/// The same of a whole message, with its own object.
pub const MESSAGE_LEVELS_MAX: usize = DATA_LEVELS_MAX + 1;

/// Digits that never make a number beyond a double, without an exponent: the largest double has 309.
const DIGITS_SAFE: usize = 308;

/// JSON that not every reader can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// More than so many levels.
    #[error("is nested too deeply, at most {0} levels")]
    TooDeep(usize),
    /// `\ud800` without its other half, which is no text in UTF-8.
    #[error("has a lone surrogate")]
    LoneSurrogate,
    /// `1e400`, which is infinite as a double.
    #[error("has a number beyond a double")]
    NumberTooLarge,
    /// `{"\u0000": 1}`, of which PHP makes no object.
    #[error("has a name that begins with U+0000")]
    NulName,
}

/// Whether common readers can read the `data` of a message, which has been seen to be JSON.
///
/// # Errors
///
/// What they cannot read.
pub fn check_data(json: &[u8]) -> Result<(), Unreadable> {
    check(json, DATA_LEVELS_MAX)
}

/// The same of a whole message.
///
/// # Errors
///
/// What they cannot read.
pub fn check_message(json: &[u8]) -> Result<(), Unreadable> {
    check(json, MESSAGE_LEVELS_MAX)
}

/// Jumps from one text, number or bracket to the next. Of what is no JSON it says anything, but it ends.
fn check(json: &[u8], levels_max: usize) -> Result<(), Unreadable> {
    let mut levels_left = levels_max;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        at = match byte {
            b'"' => end_of_text(json, at + 1)?,
            b'-' | b'0'..=b'9' => end_of_number(json, at)?,
            b'{' | b'[' => {
                levels_left = levels_left
                    .checked_sub(1)
                    .ok_or(Unreadable::TooDeep(levels_max))?;
                at + 1
            }
            b'}' | b']' => {
                levels_left += 1;
                at + 1
            }
            _ => at + 1,
        };
    }
    Ok(())
}

/// Where a text ends that begins here, behind its quotation mark.
fn end_of_text(json: &[u8], start: usize) -> Result<usize, Unreadable> {
    let mut at = start;
    let mut nul = false;
    while let Some(found) = memchr2(b'"', b'\\', json.get(at..).unwrap_or_default()) {
        at += found;
        if json[at] == b'"' {
            let is_name = || next_is_colon(&json[at + 1..]);
            return if nul && is_name() {
                Err(Unreadable::NulName)
            } else {
                Ok(at + 1)
            };
        }
        let Some(unit) = escaped_unit(json, at) else {
            at += 2;
            continue;
        };
        nul |= at == start && unit == 0;
        at += 6;
        match unit {
            0xd800..=0xdbff => {
                let low = escaped_unit(json, at);
                if !matches!(low, Some(0xdc00..=0xdfff)) {
                    return Err(Unreadable::LoneSurrogate);
                }
                at += 6;
            }
            0xdc00..=0xdfff => return Err(Unreadable::LoneSurrogate),
            _ => {}
        }
    }
    Ok(json.len())
}

fn next_is_colon(json: &[u8]) -> bool {
    let mut rest = json.iter();
    rest.find(|byte| byte.is_ascii_whitespace().not()) == Some(&b':')
}

/// The number of `\uXXXX`, where that stands.
fn escaped_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let digits = std::str::from_utf8(digits).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

/// Where a number ends that begins here.
fn end_of_number(json: &[u8], start: usize) -> Result<usize, Unreadable> {
    let mut exponent = false;
    let mut at = start;
    while let Some(byte) = json.get(at) {
        match byte {
            b'0'..=b'9' | b'-' | b'+' | b'.' => {}
            b'e' | b'E' => exponent = true,
            _ => break,
        }
        at += 1;
    }
    if (exponent || at - start > DIGITS_SAFE) && !is_finite(&json[start..at]) {
        return Err(Unreadable::NumberTooLarge);
    }
    Ok(at)
}

fn is_finite(number: &[u8]) -> bool {
    let number = std::str::from_utf8(number).ok();
    let number: Option<f64> = number.and_then(|number| number.parse().ok());
    number.is_some_and(f64::is_finite)
}

// === frames that speak for the server ===

/// Whether a text reads as an event of the server's own: a JSON object with an `event` of a reserved name. As a bare
/// frame it would look to clients as if the server had sent it.
pub fn speaks_for_server(text: &[u8]) -> bool {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    // Nearly all others are told by this. An escape may hide a letter of the name.
    let prefix = SERVER_EVENT_PREFIX.as_bytes();
    if memmem::find(text, prefix).is_none() && memchr(b'\\', text).is_none() {
        return false;
    }
    // Nobody reads nonsense as an event.
    serde_json::from_slice(text).is_ok_and(|Speaker(reserved)| reserved)
}

/// Whether any `event` of an object is reserved: of several, readers take the first or the last.
struct Speaker(bool);

impl<'de> Deserialize<'de> for Speaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Speaker;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Speaker, A::Error> {
                let mut reserved = false;
                // Raw: a name with half a surrogate pair is one that others read.
                while let Some(name) = map.next_key::<&RawValue>()? {
                    let name: Option<String> = serde_json::from_str(name.get()).ok();
                    if name.as_deref() != Some("event") {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let event = map.next_value::<&RawValue>()?.get();
                    reserved |= match serde_json::from_str::<String>(event) {
                        Ok(event) => is_reserved(&event),
                        // A text that cannot be read is none of the application's.
                        Err(_) => event.starts_with('"'),
                    };
                }
                Ok(Speaker(reserved))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_common_readers_cannot_read_is_found() {
        use Unreadable::{LoneSurrogate, NulName, NumberTooLarge, TooDeep};
        let too_deep = Err(TooDeep(124));
        let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
        let objects = |levels| r#"{"a":"#.repeat(levels) + "1" + &"}".repeat(levels);
        let digits = |count| "9".repeat(count);
        for (json, expected) in [
            ("null".to_owned(), Ok(())),
            (nested(124), Ok(())),
            (nested(125), too_deep),
            (objects(124), Ok(())),
            (objects(125), too_deep),
            (nested(20_000), too_deep),
            (format!("[{}]", ["[]"; 1_000].join(",")), Ok(())),
            (format!(r#""{}""#, nested(1_000)), Ok(())),
            (format!(r#""\"{}""#, nested(1_000)), Ok(())),
            (format!(r#"["\\",{}]"#, nested(124)), too_deep),
            (r#""\ud83d\ude00 \u00e9 \uD83D\uDE00""#.into(), Ok(())),
            (r#""\ud83d""#.into(), Err(LoneSurrogate)),
            (r#""\ud83d\u0041""#.into(), Err(LoneSurrogate)),
            (r#""\ud83d\ud83d\ude00""#.into(), Err(LoneSurrogate)),
            (r#""\ude00\ud83d""#.into(), Err(LoneSurrogate)),
            (r#"{"\udbff":1}"#.into(), Err(LoneSurrogate)),
            (r#""\\ud83d""#.into(), Ok(())),
            (r#""\\\ud83d""#.into(), Err(LoneSurrogate)),
            ("[1e308,-1E+308,1e-400,0e9999]".into(), Ok(())),
            ("1e309".into(), Err(NumberTooLarge)),
            (r#"{"a":-1E400}"#.into(), Err(NumberTooLarge)),
            (r#""1e400""#.into(), Ok(())),
            (digits(308), Ok(())),
            (digits(309), Err(NumberTooLarge)),
            (digits(5_000), Err(NumberTooLarge)),
            (format!("{}e-5000", digits(5_000)), Ok(())),
            (format!("0.{}", digits(5_000)), Ok(())),
            (r#"{"\u0000a":1}"#.into(), Err(NulName)),
            (r#"{"a":{"\u0000" : 1}}"#.into(), Err(NulName)),
            (r#"{"a\u0000":"\u0000","b":["\u0000"]}"#.into(), Ok(())),
        ] {
            assert!(serde_json::from_str::<&RawValue>(&json).is_ok(), "{json}");
            assert_eq!(check_data(json.as_bytes()), expected, "{json}");
        }
        assert_eq!(check_message(nested(125).as_bytes()), Ok(()));
        let deeper = check_message(nested(126).as_bytes());
        assert_eq!(deeper, Err(TooDeep(125)));
    }

    #[test]
    fn texts_that_speak_for_the_server_are_found() {
        for (text, expected) in [
            (r#"{"event":"unisono:closing"}"#, true),
            (r#" {"a":{},"event" : "unisono:x","data":[1]}"#, true),
            (r#"{"event":"\u0075nisono:gap"}"#, true),
            (r#"{"\u0065vent":"unisono:gap"}"#, true),
            (r#"{"event":"mine","event":"unisono:gap"}"#, true),
            (r#"{"event":"unisono:gap","event":"mine"}"#, true),
            (r#"{"\ud800":1,"event":"unisono:gap"}"#, true),
            (r#"{"event":"unisono:\ud800"}"#, true),
            (r#"{"event":"mine","data":"unisono:gap"}"#, false),
            (r#"{"data":{"event":"unisono:gap"}}"#, false),
            (r#"{"event":{"event":"unisono:gap"}}"#, false),
            (r#"{"event":"App\\Events\\Message"}"#, false),
            (r#"{"Event":"unisono:gap"}"#, false),
            (r#"[{"event":"unisono:gap"}]"#, false),
            (r#"{"event":"unisono:gap""#, false),
            ("unisono:gap", false),
            ("", false),
        ] {
            assert_eq!(speaks_for_server(text.as_bytes()), expected, "{text}");
        }
    }

    /// JSON of all kinds, with what readers stumble over.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            any::<i64>().prop_map(|number| number.to_string()),
            "-?[1-9][0-9]{0,3}(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
            text(),
        ];
        leaf.prop_recursive(150, 400, 4, |inner| {
            let field = (text(), inner.clone());
            let field = field.prop_map(|(name, value)| format!("{name} :{value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..4)
                    .prop_map(|items| format!("[{}]", items.join(" ,"))),
                prop::collection::vec(field, 0..4)
                    .prop_map(|fields| format!("{{{}}}", fields.join(","))),
            ]
        })
    }

    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z\\[\\]{}:é😀]{0,5}",
            r"\\[\\/bfnrt\u{22}]",
            r"\\u00[0-7][0-9a-f]",
            r"\\u[dD][89a-fA-F][0-9a-f]{2}",
            r"\\ud83d\\ude00",
        ];
        let pieces = prop::collection::vec(piece, 0..4);
        pieces.prop_map(|pieces| format!("\"{}\"", pieces.concat()))
    }

    proptest! {
        #[test]
        fn what_passes_is_what_serde_json_reads(json in json()) {
            let reads = serde_json::from_str::<Value>(&json).is_ok();
            match check(json.as_bytes(), READ_LEVELS) {
                // Stricter than serde_json, for the sake of PHP.
                Err(Unreadable::NulName) => {}
                checked => prop_assert_eq!(checked.is_ok(), reads, "{}: {:?}", json, checked),
            }
        }

        #[test]
        fn anything_is_checked_without_a_panic(
            bytes in any::<Vec<u8>>(),
            text in "[\\[{\"\\\\u0d8:\\]}1e]{0,40}",
        ) {
            let _ = check_data(&bytes);
            let _ = check_message(text.as_bytes());
            let _ = speaks_for_server(text.as_bytes());
        }
    }
}
