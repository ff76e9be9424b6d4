//! The `moorline` command. Everything is in the library, so that it can be tested.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    moorline_cli::main()
}
