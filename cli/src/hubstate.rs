//! `moorline hub backup` and `restore`: a hub's whole state, on the machine where it is.

use crate::{daemon, text};
use moorline_hub::backup;
use std::path::PathBuf;

/// What can be done with a hub's state
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write all of a hub's state into a new folder; a hub that runs goes on serving
    #[command(after_help = "\
Examples:
  moorline hub backup /backups/hub-2030-01-31
  moorline hub backup --data-dir ./hub ./backup

The folder holds the authority's key, tokens' hashes and all objects at one revision, and no audit log:
who has it has the hub. Run it as the user that runs the hub, or as root.")]
    Backup(BackupArgs),
    /// Make a hub's data folder out of a backup
    #[command(after_help = "\
Example:
  moorline hub restore /backups/hub-2030-01-31 --data-dir /var/lib/moorline-hub

Nothing is overwritten: the data folder must have no hub in it. Agents and users come back by themselves.")]
    Restore(RestoreArgs),
}

/// `moorline hub backup`
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The folder to make
    to: PathBuf,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// `moorline hub restore`
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The backup's folder
    from: PathBuf,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs it.
pub fn run(command: Command) -> anyhow::Result<()> {
    let folder = |dir: Option<PathBuf>| dir.map_or_else(|| daemon::state_dir("moorline-hub"), Ok);
    let words = match command {
        Command::Backup(args) => {
            let info = backup::backup(&folder(args.data_dir)?, &args.to)?;
            format!("{} objects at revision {} are in {}\n", info.objects, info.revision, args.to.display())
        }
        Command::Restore(args) => {
            let folder = folder(args.data_dir)?;
            let info = backup::restore(&args.from, &folder)?;
            format!("{} objects are in {}; start the hub on it\n", info.objects, folder.display())
        }
    };
    Ok(text::print(&words)?)
}
