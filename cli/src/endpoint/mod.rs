//! `moorline endpoint`: lets a cluster's users in while the hub is away.

mod serve;

use crate::{
    failure::{advise, usage},
    files,
    target::HubArgs,
    text,
};
use anyhow::Context;
use moorline_endpoint::{shelf::Shelf, trust::Anchors};
use moorline_proto::id::ClusterId;
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// `moorline endpoint`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  moorline agent … --endpoint-dir /var/lib/moorline-endpoint              the agent fetches what is needed
  moorline endpoint --mode proxy --dir /var/lib/moorline-endpoint --listen 0.0.0.0:6444 \\
      --name edge1.example --public-url https://edge1.example:6444 --kubeconfig /etc/kubernetes/admin.conf
  moorline endpoint --mode webhook --dir /var/lib/moorline-endpoint --listen 127.0.0.1:6445 --name 127.0.0.1

Without a tunnel, by hand, anew before the bundle's time is over:
  moorline endpoint bundle edge1 > edge1.bundle                           where the hub is
  moorline endpoint import edge1.bundle --dir /var/lib/moorline-endpoint --cluster edge1 --hub-ca ca.crt")]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

/// What is done by hand.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a cluster's bundle, to be carried there
    Bundle(BundleArgs),
    /// Take a bundle that was carried here
    Import(ImportArgs),
}

/// The folder of an endpoint, and whose bundles it takes.
#[derive(Debug, Clone, clap::Args)]
struct Folder {
    /// The endpoint's folder: the agent's --endpoint-dir, or one of its own
    #[arg(long, value_name = "DIR", env = "MOORLINE_ENDPOINT_DIR")]
    dir: Option<PathBuf>,
    /// The cluster's name at the hub [default: as the folder says]
    #[arg(long, value_name = "NAME", env = "MOORLINE_CLUSTER")]
    cluster: Option<ClusterId>,
    /// PEM file of the hub's authority [default: the folder's hub-ca.pem]
    #[arg(long, value_name = "FILE")]
    hub_ca: Option<PathBuf>,
    /// File of the key that bundles are sealed with; the agent's --endpoint-seal-key [default: seal.key in the folder]
    #[arg(long, value_name = "FILE", env = "MOORLINE_ENDPOINT_SEAL_KEY")]
    seal_key: Option<PathBuf>,
}

impl Folder {
    fn dir(&self) -> anyhow::Result<&Path> {
        let dir = self.dir.as_deref();
        dir.ok_or_else(|| usage("no folder named", "say which: --dir DIR, the same as the agent's --endpoint-dir"))
    }

    /// What was named, or what an agent wrote there.
    fn shelf(&self) -> anyhow::Result<Shelf> {
        let dir = self.dir()?;
        let missing = |what: &str, flag: &str| {
            advise(
                format!("{} does not say {what}", dir.display()),
                format!("start the agent with --endpoint-dir, or name it: {flag}"),
            )
        };
        let cluster = match &self.cluster {
            Some(cluster) => cluster.to_string(),
            None => {
                let kept = files::read_text(&dir.join("cluster"))?;
                kept.ok_or_else(|| missing("which cluster it is for", "--cluster NAME"))?.trim().to_owned()
            }
        };
        let path = self.hub_ca.clone().unwrap_or_else(|| dir.join("hub-ca.pem"));
        if !path.exists() {
            return Err(missing("whose bundles to take", "--hub-ca FILE"));
        }
        // The agent beside it writes others there when the hub has replaced its authority.
        let anchors = Anchors::follow(&path).with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(Shelf::open(dir, &cluster, anchors, self.seal_key.as_deref())?)
    }
}

/// `moorline endpoint bundle`
#[derive(Debug, clap::Args)]
struct BundleArgs {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    cluster: ClusterId,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline endpoint import`
#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// The bundle's file; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    folder: Folder,
}

/// `moorline endpoint …`
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        None => serve::run(args.serve),
        Some(Command::Import(args)) => import(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Bundle(args)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(bundle(args)).map(|()| ExitCode::SUCCESS)
        }
    }
}

async fn bundle(args: BundleArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let reply = client.fetch(&format!("/auth/bundles/{}", args.cluster), "*/*").await?;
    let mut out = std::io::stdout().lock();
    out.write_all(&reply.body)?;
    out.flush()?;
    text::say(&format!(
        "next: carry it there, and run: moorline endpoint import FILE --dir DIR --cluster {}",
        args.cluster
    ));
    Ok(())
}

fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let shelf = args.folder.shelf()?;
    let most = moorline_endpoint::limits::BUNDLE as u64 + 1;
    let mut bytes = Vec::new();
    if args.file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    } else {
        let file = std::fs::File::open(&args.file);
        let file = file.with_context(|| format!("cannot read {}", args.file.display()))?;
        file.take(most).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", args.file.display()))?;
    }
    let bundle = shelf.put(&bytes).map_err(|error| {
        advise(error.to_string(), "make a new one where the hub is: moorline endpoint bundle CLUSTER > FILE")
    })?;
    // What was named once need not be named again.
    let dir = args.folder.dir()?;
    std::fs::write(dir.join("cluster"), &bundle.cluster)?;
    if let Some(ca) = &args.folder.hub_ca {
        std::fs::copy(ca, dir.join("hub-ca.pem"))?;
    }
    let until = i64::try_from(bundle.expires).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let until = until.map(|at| at.to_string()).unwrap_or_default();
    let users = bundle.users.len();
    text::say(&format!("Bundle {} of {} taken: {users} users, good until {until}.", bundle.serial, bundle.cluster));
    Ok(())
}
