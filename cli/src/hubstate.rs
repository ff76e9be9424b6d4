//! `moorline hub backup`, `restore` and `migrate`: a hub's whole state, on the machine where it is.

use crate::{daemon, failure::usage, text};
use moorline_hub::{StoreKey, StoreSettings, backup, seal_key};
use std::path::{Path, PathBuf};

/// What a store is sealed with
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SealArgs {
    /// File of the key that the store is sealed with: 32 bytes as base64 [default: it is not sealed]
    #[arg(long, value_name = "FILE", env = "MOORLINE_SEAL_KEY_FILE")]
    seal_key_file: Option<PathBuf>,
}

impl SealArgs {
    /// The key, from the file that is named here or else in `file`.
    pub fn key(&self, file: Option<&Path>) -> anyhow::Result<Option<StoreKey>> {
        self.seal_key_file.as_deref().or(file).map(read_key).transpose()
    }
}

fn read_key(file: &Path) -> anyhow::Result<StoreKey> {
    seal_key(file)
        .map_err(|e| usage(e.to_string(), "make one with: (umask 077; head -c 32 /dev/urandom | base64 > seal.key)"))
}

/// Where a hub keeps its objects
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StoreArgs {
    /// Where the objects are kept: redb, a file in the data folder; or etcd://HOST:PORT,…/ROOT, etcds:// with TLS [default: redb]
    #[arg(long, value_name = "PLACE", env = "MOORLINE_STORE")]
    store: Option<String>,
    /// File of the authority that etcd's certificates are of
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_CA")]
    store_ca: Option<PathBuf>,
    /// File of this hub's certificate for etcd
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_CERT", requires = "store_key")]
    store_cert: Option<PathBuf>,
    /// File of that certificate's key
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_KEY", requires = "store_cert")]
    store_key: Option<PathBuf>,
}

impl StoreArgs {
    /// The settings, what is said here before what `file` says.
    pub fn over(self, file: StoreSettings) -> StoreSettings {
        StoreSettings {
            store: self.store.or(file.store),
            store_ca: self.store_ca.or(file.store_ca),
            store_cert: self.store_cert.or(file.store_cert),
            store_key: self.store_key.or(file.store_key),
        }
    }
}

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
    /// Move a hub's objects from its file to an etcd, or back; a hub that runs goes on serving all that reads
    #[command(after_help = "\
Examples:
  moorline hub migrate --to etcd://127.0.0.1:2379
  moorline hub migrate --to etcds://e1.example,e2.example,e3.example/moorline --store-ca ca.pem --store-cert hub.pem --store-key hub.key
  moorline hub migrate --from etcd://127.0.0.1:2379 --to redb

The hub that runs on the data folder takes no writes from then on, so that nothing stays behind: start it again with
--store as given here. Revisions go on, and so do watches. The file that is not the store any more is kept as hub.redb.moved.
The --store-ca, --store-cert and --store-key are those of the etcd, on whichever side it is.")]
    Migrate(MigrateArgs),
    /// Seal a hub's objects with another key, or for the first time; the hub must not run
    #[command(after_help = "\
Examples:
  (umask 077; head -c 32 /dev/urandom | base64 > /etc/moorline/seal.key)
  moorline hub rotate-key --new-seal-key-file /etc/moorline/seal.key
  moorline hub rotate-key --seal-key-file old.key --new-seal-key-file new.key

Every value is encrypted anew, in a new file: nothing is left that the old key opens, but in backups that were made before.
Then start the hub with --seal-key-file. For objects in etcd: migrate to redb, rotate, migrate back to another root.")]
    RotateKey(RotateArgs),
    /// Replace the authority that agents and users know the hub by; nobody is cut off
    Ca(crate::hubca::Args),
}

/// `moorline hub rotate-key`
#[derive(Debug, clap::Args)]
pub struct RotateArgs {
    /// File of the new key; without it the store is left open, readable by who has its file
    #[arg(long, value_name = "FILE")]
    new_seal_key_file: Option<PathBuf>,
    #[command(flatten)]
    seal: SealArgs,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// `moorline hub migrate`
#[derive(Debug, clap::Args)]
pub struct MigrateArgs {
    /// Where the objects go: redb, or the address of an etcd
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// Where they are, for a hub that does not run [default: redb]
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// File of the authority that etcd's certificates are of
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_CA")]
    store_ca: Option<PathBuf>,
    /// File of this hub's certificate for etcd
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_CERT", requires = "store_key")]
    store_cert: Option<PathBuf>,
    /// File of that certificate's key
    #[arg(long, value_name = "FILE", env = "MOORLINE_STORE_KEY", requires = "store_cert")]
    store_key: Option<PathBuf>,
    #[command(flatten)]
    seal: SealArgs,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl MigrateArgs {
    /// A side of the move: the files of TLS are those of the side that is an etcd.
    fn side(&self, store: Option<&str>) -> StoreSettings {
        let tls = store.is_some_and(|store| store.starts_with("etcds:"));
        StoreSettings {
            store: store.map(str::to_owned),
            store_ca: self.store_ca.clone().filter(|_| tls),
            store_cert: self.store_cert.clone().filter(|_| tls),
            store_key: self.store_key.clone().filter(|_| tls),
        }
    }
}

/// `moorline hub backup`
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The folder to make
    to: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    seal: SealArgs,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// `moorline hub restore`
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The backup's folder
    from: PathBuf,
    #[command(flatten)]
    seal: SealArgs,
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

fn wrong(error: &moorline_hub::PlaceError) -> anyhow::Error {
    usage(error.to_string(), "a store is redb, etcd://HOST:PORT/ROOT, or etcds://… with --store-ca")
}

/// Runs it.
pub fn run(command: Command) -> anyhow::Result<()> {
    let folder = |dir: Option<PathBuf>| dir.map_or_else(|| daemon::state_dir("moorline-hub"), Ok);
    let words = match command {
        Command::Ca(args) => crate::hubca::run(&args, folder)?,
        Command::Backup(args) => {
            let from = args.store.over(StoreSettings::default()).place().map_err(|e| wrong(&e))?;
            let info = backup::backup(&folder(args.data_dir)?, (&from, args.seal.key(None)?), &args.to)?;
            format!("{} objects at revision {} are in {}\n", info.objects, info.revision, args.to.display())
        }
        Command::Restore(args) => {
            let folder = folder(args.data_dir)?;
            let info = backup::restore(&args.from, &folder, args.seal.key(None)?)?;
            format!("{} objects are in {}; start the hub on it\n", info.objects, folder.display())
        }
        Command::RotateKey(args) => {
            let new = args.new_seal_key_file.as_deref().map(read_key).transpose()?;
            let how = if new.is_some() { "sealed with the new key" } else { "not sealed any more" };
            let info = backup::rotate(&folder(args.data_dir)?, args.seal.key(None)?, new)?;
            format!("{} objects at revision {} are {how}\n", info.objects, info.revision)
        }
        Command::Migrate(args) => {
            let from = args.side(args.from.as_deref()).place().map_err(|e| wrong(&e))?;
            let to = args.side(Some(&args.to));
            to.place().map_err(|e| wrong(&e))?;
            let info = backup::migrate(&folder(args.data_dir)?, (&from, args.seal.key(None)?), to)?;
            let (objects, revision, to) = (info.objects, info.revision, args.to);
            format!("{objects} objects at revision {revision} are in {to}; start the hub with --store {to}\n")
        }
    };
    Ok(text::print(&words)?)
}
