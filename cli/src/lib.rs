//! The `moorline` command: the hub, the agent, and everything that a person or a script asks of a hub.
//!
//! One module per command. What they share: `client` speaks to a hub, `settings` remembers the hubs that were
//! logged in to, `output` prints as kubectl does, `failure` gives each error an advice and an exit code.
#![forbid(unsafe_code)]

mod agent;
mod apikey;
mod args;
mod client;
mod clusters;
mod daemon;
mod delete;
mod doctor;
mod failure;
mod files;
mod get;
mod grant;
mod hub;
mod kube;
mod kubeconfig;
mod logging;
mod login;
mod output;
mod resource;
mod settings;
mod status;
mod target;
mod text;
mod tls;
mod token;
mod user;
mod version;
mod yaml;

use std::process::ExitCode;

/// One tunnel moves many small buffers between threads; the system allocator keeps what it once took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs the command line of this process. The exit code: 0 done, 1 failed, 2 called wrongly.
pub fn main() -> ExitCode {
    let command = args::parse();
    match args::run(command) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
