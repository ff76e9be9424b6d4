//! Looks for inputs that reach new code, with libFuzzer: `MOORLINE_FUZZ` names the target. Built by `run.sh`.
#![no_main]
#![allow(unsafe_code, missing_docs, reason = "libFuzzer calls in from C++")]

use std::sync::LazyLock;

static TARGET: LazyLock<moorline_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("MOORLINE_FUZZ").unwrap_or_default();
    moorline_fuzz::target(&name).unwrap_or_else(|| panic!("MOORLINE_FUZZ={name:?} is no target"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
