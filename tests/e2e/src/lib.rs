//! The real parts of an end-to-end test: control planes, networks, the `moorline` binary, `kubectl`.
//!
//! Everything started here is ended by its guard's drop, by the pid that was started.

pub mod cluster;
pub mod moorline;
pub mod process;

use std::path::PathBuf;

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where downloads and builds that outlive a checkout are kept: `MOORLINE_CACHE`, as `tests/deps.sh` has it.
pub fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("MOORLINE_CACHE") {
        return dir.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    base.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache")).join("moorline")
}

/// The `moorline` binary under test: `MOORLINE_BIN`, or the one that cargo built beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MOORLINE_BIN") {
        return path.into();
    }
    // target/debug/deps/it-… → target/debug/moorline
    let test = std::env::current_exe().unwrap_or_default();
    test.ancestors().nth(2).map(|dir| dir.join("moorline")).unwrap_or_default()
}
