//! What is fed with bytes that nobody chose: a target takes any bytes and panics where a promise is broken.
//!
//! `corpus/<target>/` holds inputs that reach every part found so far, and every input that once broke something. The
//! tests replay them, and bend them a little; `run.sh` looks for new ones with coverage (libFuzzer).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken promise is a panic")]

mod calls;
mod frames;
mod http;
mod plugins;
mod secrets;
mod store;
mod websocket;
mod wire;

/// A target: it takes any bytes.
pub type Target = fn(&[u8]);

/// Every target, with the name of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 8] = [
    ("wire", wire::run),
    ("frames", frames::run),
    ("calls", calls::run),
    ("websocket", websocket::run),
    ("http", http::run),
    ("secrets", secrets::run),
    ("store", store::run),
    ("plugins", plugins::run),
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// The first byte, and what follows it.
fn split(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}
