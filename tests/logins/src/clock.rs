//! Clocks that are wrong, by Debian's libfaketime.

use std::{path::PathBuf, process::Command};

/// A shift of a program's clock: how far it is off, in seconds.
pub type Shift = i64;

/// The library, wherever Debian puts that of this machine's kind.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut libraries = folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    libraries.find(|path| path.exists()).expect("libfaketime; tests/deps.sh installs it")
}

/// From its start on the program's clock is wrong by this much. Its steady clock is not: no host's ever is.
pub fn shift(command: &mut Command, by: Shift) {
    if by != 0 {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME", format!("{by:+}"))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.env("DONT_FAKE_MONOTONIC", "1");
    }
}
