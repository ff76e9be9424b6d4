//! Speed and memory of Moorline against references in the same run: direct, and nginx as a reverse proxy.
//!
//! `bench/run.sh` starts the real parts and calls this with a plan; rounds are interleaved and medians shown,
//! because on a shared machine only ratios within one run mean something.

mod api;
mod beside;
mod churn;
mod client;
mod fleet;
mod logins;
mod measure;
mod origin;
mod process;
mod relay;
mod store;
mod table;
mod tunnel;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Speed and memory, as ratios against references in the same run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves `GET /bulk/BYTES` and takes any upload: the other end of the bulk measurements.
    Origin {
        /// Where to listen.
        #[arg(long)]
        listen: std::net::SocketAddr,
        /// Certificate, PEM.
        #[arg(long)]
        cert: PathBuf,
        /// Key, PEM.
        #[arg(long)]
        key: PathBuf,
    },
    /// Fills a namespace with pods and waits until they are there.
    Fill {
        /// The plan, as `run` takes it; the first target is used.
        plan: PathBuf,
        /// How many pods.
        #[arg(long, default_value_t = 5000)]
        pods: usize,
    },
    /// Measures the hub's own API against kube-apiserver, by the targets of a plan.
    Api {
        /// The plan; each target's prefix is the path of its users.
        plan: PathBuf,
        /// Only makes this many objects at the target of this name.
        #[arg(long, requires = "target")]
        fill: Option<usize>,
        /// See `--fill`.
        #[arg(long)]
        target: Option<String>,
        /// Leaves every figure in this file, for `table`.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// One table of figures (lines of measurement, unit, target, value, with tabs between them), as Markdown: medians, and how
    /// many times better than one of the targets the others are.
    Table {
        /// The figures.
        figures: PathBuf,
        /// The target that the others are held against.
        #[arg(long)]
        against: String,
    },
    /// Measures small requests alone and beside a command that disturbs them.
    Beside(beside::Args),
    /// Measures what a flood of wrong logins does to everybody else.
    Logins(logins::Args),
    /// Measures the hub's plugins over a large fleet of clusters that are generators.
    Fleet(fleet::Args),
    /// Measures the store behind the hub's API by itself: its size, its writes, its watches.
    Store(store::Args),
    /// One end of a relay for TCP over the tunnel by itself, or over the barest that does the same.
    #[command(subcommand)]
    Relay(relay::End),
    /// Measures such relays.
    #[command(subcommand)]
    Tunnel(tunnel::What),
    /// Measures every target of a plan and prints one table.
    Run {
        /// A JSON file: targets, processes, rounds.
        plan: PathBuf,
        /// Only measurements whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = match &cli.command {
        Command::Relay(end) if end.is_bare() => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
    };
    let read = |path: PathBuf| -> Result<measure::Plan> {
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    };
    match cli.command {
        Command::Origin { listen, cert, key } => runtime.block_on(origin::serve(listen, &cert, &key)),
        Command::Fill { plan, pods } => runtime.block_on(measure::fill(&read(plan)?, pods)),
        Command::Api { plan, fill: Some(objects), target, .. } => {
            runtime.block_on(api::fill(&read(plan)?, target.as_deref().unwrap_or_default(), objects))
        }
        Command::Api { plan, keep, .. } => runtime.block_on(api::run(&read(plan)?, keep.as_deref())),
        Command::Table { figures, against } => {
            let text = std::fs::read_to_string(&figures).with_context(|| figures.display().to_string())?;
            print!("{}", table::Table::read(&text)?.ratios(&against));
            Ok(())
        }
        Command::Beside(args) => runtime.block_on(beside::run(args)),
        Command::Logins(args) => runtime.block_on(logins::run(args)),
        Command::Fleet(args) => runtime.block_on(fleet::run(args)),
        Command::Store(args) => runtime.block_on(store::run(args)),
        Command::Relay(end) => runtime.block_on(end.run()),
        Command::Tunnel(what) => runtime.block_on(what.run()),
        Command::Run { plan, only } => runtime.block_on(measure::run(&read(plan)?, only.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_one() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
