//! The `moorline` command: the hub, the agent, and everything that a person or a script asks of a hub.
//!
//! One module per command. What they share: `client` speaks to a hub, `settings` remembers the hubs that were
//! logged in to, `output` prints as kubectl does, `failure` gives each error an advice and an exit code.
#![forbid(unsafe_code)]

mod access;
mod agent;
mod apikey;
mod args;
mod audit;
mod bench;
mod can_i;
mod client;
mod clusters;
mod daemon;
mod delete;
mod doctor;
mod endpoint;
mod failure;
mod files;
mod forward;
mod get;
mod grant;
mod group;
mod hub;
mod hubca;
mod hubstate;
mod import;
mod kube;
mod kubeconfig;
mod logging;
mod login;
mod notify;
mod output;
mod plan;
mod plugins;
mod principals;
mod providers;
mod reference;
mod relay;
mod resource;
mod service;
mod session;
mod settings;
mod share;
mod shell;
mod status;
mod target;
mod text;
mod tls;
mod token;
mod user;
mod version;
mod yaml;

use std::process::ExitCode;

/// One tunnel moves many small buffers between threads; the system allocator keeps what it once took. How it is set
/// up is in `.cargo/config.toml`.
#[cfg(not(windows))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs the command line of this process. The exit code: 0 done, 1 failed, 2 called wrongly.
pub fn main() -> ExitCode {
    if let Some(code) = moorline_shell::inside() {
        return code;
    }
    let command = args::parse();
    end(args::run(command))
}

/// The same for a program that is the agent alone: two thirds of the size, and of the memory.
pub fn agent_main() -> ExitCode {
    if let Some(code) = moorline_shell::inside() {
        return code;
    }
    end(agent::alone())
}

fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| failure::report(&error))
}
