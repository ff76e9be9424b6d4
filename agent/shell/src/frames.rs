//! What passes between a terminal and its client: Kubernetes' own protocol for `exec`, `v5.channel.k8s.io`
//! (KEP-4006). Each WebSocket message is a channel's number, one byte, and the channel's bytes.

use crate::limits;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The WebSocket subprotocol.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// The code of a close: another client has come back to the shell in this one's place.
pub const REPLACED: u16 = 4409;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The size of a terminal, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self { width: 80, height: 24 }
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Typed.
    Typed(Bytes),
    /// The window's size is this now.
    Resize(Size),
    /// No more is typed.
    End,
}

/// How far a client and its shell are, both counted in bytes since the shell began. A client sends its own in a WebSocket
/// ping after what it has typed: the pong comes back once the shell has taken all of that. One that comes back hears the
/// shell's in a pong before anything else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Bytes typed.
    pub typed: u64,
    /// Bytes shown.
    pub shown: u64,
}

impl Place {
    /// As a ping carries it.
    pub fn write(self) -> Bytes {
        [self.typed.to_be_bytes(), self.shown.to_be_bytes()].concat().into()
    }

    /// Reads what a pong carries; `None`: something else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (typed, shown) = bytes.split_first_chunk::<8>()?;
        let shown = <[u8; 8]>::try_from(shown).ok()?;
        Some(Self { typed: u64::from_be_bytes(*typed), shown: u64::from_be_bytes(shown) })
    }
}

/// A message that is none of the protocol's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message of {PROTOCOL}: {0}")]
pub struct BadMessage(&'static str);

/// Reads a client's message.
///
/// # Errors
/// See [`BadMessage`].
pub fn read(message: &Bytes) -> Result<Input, BadMessage> {
    let rest = message.slice(message.len().min(1)..);
    match message.first() {
        None => Err(BadMessage("it is empty")),
        Some(&STDIN) => Ok(Input::Typed(rest)),
        Some(&RESIZE) => {
            let size: Size = serde_json::from_slice(&rest).map_err(|_| BadMessage("a size that cannot be read"))?;
            let fits = |cells: u16| (1..=limits::CELLS).contains(&cells);
            if fits(size.width) && fits(size.height) {
                Ok(Input::Resize(size))
            } else {
                Err(BadMessage("a size that no terminal has"))
            }
        }
        Some(&CLOSE) if rest.as_ref() == [STDIN] => Ok(Input::End),
        Some(_) => Err(BadMessage("a channel that clients do not write")),
    }
}

/// A message with what the terminal shows.
pub fn output(bytes: &[u8]) -> Bytes {
    [&[STDOUT], bytes].concat().into()
}

/// The last message: how the shell ended, as `exec` tells it.
pub fn ended(code: i32, why: &str) -> Bytes {
    let status = if code == 0 {
        serde_json::json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success" })
    } else {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": why,
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        })
    };
    [&[ERROR], status.to_string().as_bytes()].concat().into()
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To be shown.
    Shown(Bytes),
    /// The shell has ended.
    Ended {
        /// Its exit code.
        code: i32,
        /// For people; empty where all went well.
        why: String,
    },
}

/// A client's half of [`read`]: what a client sends.
pub fn write(input: &Input) -> Bytes {
    match input {
        Input::Typed(bytes) => [&[STDIN], bytes.as_ref()].concat().into(),
        Input::Resize(size) => {
            [&[RESIZE], format!("{{\"Width\":{},\"Height\":{}}}", size.width, size.height).as_bytes()].concat().into()
        }
        Input::End => Bytes::from_static(&[CLOSE, STDIN]),
    }
}

/// Reads what a client hears.
///
/// # Errors
/// See [`BadMessage`].
pub fn hear(message: &Bytes) -> Result<Output, BadMessage> {
    let rest = message.slice(message.len().min(1)..);
    match message.first() {
        Some(&STDOUT) => Ok(Output::Shown(rest)),
        Some(&ERROR) => {
            let status: serde_json::Value =
                serde_json::from_slice(&rest).map_err(|_| BadMessage("an end that cannot be read"))?;
            if status["status"] == "Success" {
                return Ok(Output::Ended { code: 0, why: String::new() });
            }
            let code = status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok());
            let why = status["message"].as_str().unwrap_or_default().to_owned();
            Ok(Output::Ended { code: code.unwrap_or(1), why })
        }
        _ => Err(BadMessage("a channel that a terminal does not write")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let inputs = [
            Input::Typed(Bytes::from_static(b"ls\r")),
            Input::Typed(Bytes::new()),
            Input::Resize(Size { width: 132, height: 50 }),
            Input::End,
        ];
        for input in inputs {
            assert_eq!(read(&write(&input)), Ok(input));
        }
        assert_eq!(hear(&output(b"\x1b[1m")), Ok(Output::Shown(Bytes::from_static(b"\x1b[1m"))));
        assert_eq!(hear(&ended(0, "")), Ok(Output::Ended { code: 0, why: String::new() }));
        assert_eq!(hear(&ended(127, "no such file")), Ok(Output::Ended { code: 127, why: "no such file".to_owned() }));
    }

    #[test]
    fn z06_what_is_no_message_is_refused() {
        for bad in [
            &b""[..],
            b"\x01x",
            b"\x04",
            b"\x04{}",
            b"\x04{\"Width\":0,\"Height\":1}",
            b"\x04{\"Width\":9999,\"Height\":1}",
            b"\xff\x01",
            b"\xff",
        ] {
            assert!(read(&Bytes::from_static(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let place = Place { typed: 1 << 40, shown: 7 };
        assert_eq!(Place::read(&place.write()), Some(place));
        for other in [&b""[..], b"12345678", &[0; 15], &[0; 17]] {
            assert_eq!(Place::read(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn z06_no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (read(&bytes.clone().into()), hear(&bytes.into()));
        }
    }
}
