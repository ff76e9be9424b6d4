//! The agent alone, as images and small machines want it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    moorline_cli::agent_main()
}
