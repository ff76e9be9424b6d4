//! `moorline clusters`.

use crate::{get, get::ListArgs, resource::Resource, target::HubArgs};

/// `moorline clusters`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline clusters
  moorline clusters -o wide -w
  moorline clusters edge1 -o json
  moorline clusters -l env=prod -o name")]
pub struct Args {
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline clusters`
pub async fn run(args: Args) -> anyhow::Result<()> {
    get::list(&args.hub.client()?, Resource::Cluster, &args.list).await
}
