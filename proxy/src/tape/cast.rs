//! Asciicast, version 2: a line of JSON that says what was recorded, then one line for each event
//! (docs.asciinema.org/manual/asciicast/v2). Players of terminals' recordings read it.

use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// What a recording is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct About {
    /// The call's id in the audit log.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// Who.
    pub user: String,
    /// As whom; empty: as oneself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub as_user: String,
    /// Where.
    pub cluster: String,
    /// Path and query of the call.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// RFC 3339: since when.
    pub started: String,
    /// Whether what is typed is kept too.
    pub input: bool,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub version: u8,
    pub width: u16,
    pub height: u16,
    pub timestamp: i64,
    pub title: String,
    /// Ours: players pass over what they do not know.
    pub moorline: About,
}

impl Head {
    pub(super) fn new(about: &About) -> Self {
        let query = about.request_uri.split_once('?').map_or("", |(_, query)| query);
        let cells = |name: &str, usual: u16| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).filter(|cells| *cells != 0).unwrap_or(usual)
        };
        let timestamp = about.started.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second).unwrap_or_default();
        let path = about.request_uri.split('?').next().unwrap_or_default();
        Self {
            version: 2,
            width: cells("columns", 80),
            height: cells("rows", 24),
            timestamp,
            title: format!("{} in {}: {path}", about.user, about.cluster),
            moorline: about.clone(),
        }
    }
}

/// Bytes to text: a letter that comes in two parts is put together, and what is no text is shown as `U+FFFD`.
#[derive(Debug, Default)]
pub(super) struct Text {
    part: Vec<u8>,
}

impl Text {
    pub(super) fn read(&mut self, bytes: &[u8]) -> String {
        let held = std::mem::take(&mut self.part);
        let joined;
        let mut rest = if held.is_empty() {
            bytes
        } else {
            joined = [&held, bytes].concat();
            &joined
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(all) => {
                    text.push_str(all);
                    return text;
                }
                Err(error) => error,
            };
            let (sound, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(sound).unwrap_or_default());
            let Some(wrong) = error.error_len() else {
                self.part = after.to_vec(); // three bytes at most
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = after.get(wrong..).unwrap_or_default();
        }
    }
}

/// One event's line. `seconds` since the recording began; `code` as asciicast has it: `o`, `i`, `r`, `m`.
pub(super) fn event(out: &mut Vec<u8>, seconds: f64, code: char, text: &str) {
    let mut begin = String::with_capacity(24);
    let _ = write!(begin, "[{seconds:.6}, \"{code}\", ");
    out.extend(begin.as_bytes());
    let _ = serde_json::to_writer(&mut *out, text); // into memory, of a string: it does not fail
    out.extend(b"]\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_says_whose_and_how_large() {
        let about = About {
            user: "ann".into(),
            cluster: "a".into(),
            request_uri: "/shell?columns=132&rows=50".into(),
            started: "2026-11-21T10:00:00.000000Z".into(),
            ..About::default()
        };
        let head = Head::new(&about);
        assert_eq!((head.width, head.height, head.timestamp), (132, 50, 1_795_255_200));
        assert_eq!(head.title, "ann in a: /shell");
    }

    #[test]
    fn what_is_no_text_is_shown_as_such() {
        let mut text = Text::default();
        assert_eq!(text.read(b"a\xff\xe2\x82"), "a\u{fffd}");
        assert_eq!(text.read(b"\xacb"), "\u{20ac}b");
        let mut line = Vec::new();
        event(&mut line, 1.5, 'o', "\u{1b}[1m\"\n");
        assert_eq!(line, b"[1.500000, \"o\", \"\\u001b[1m\\\"\\n\"]\n");
    }

    proptest! {
        /// However text is cut on its way, it is the same text.
        #[test]
        fn text_survives_any_cut(all in "\\PC{0,80}", cut in 1usize..9) {
            let mut text = Text::default();
            let got: String = all.as_bytes().chunks(cut).map(|part| text.read(part)).collect();
            prop_assert_eq!(got, all);
        }
    }
}
