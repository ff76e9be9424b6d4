//! `moorline grant`: who may use which cluster.

use crate::{
    failure::usage,
    resource::Resource,
    target::HubArgs,
    text,
    token::{ListCommand, RevokeArgs},
};
use serde_json::json;

/// `moorline grant`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let users or groups use clusters
    #[command(after_help = "\
Examples:
  moorline grant create --user anna --cluster edge1
  moorline grant create ops --group ops --cluster '*' --as-group shop-admins

What they may do inside a cluster is that cluster's RBAC's to say: they arrive there by their own
name and groups, and with the groups named by --as-group.")]
    Create(CreateArgs),
    /// List grants
    List(ListCommand),
    /// Take grants back, at once
    Delete(RevokeArgs),
}

/// `moorline grant create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Name of the grant [default: made from who and where]
    name: Option<String>,
    /// A user who gets in; can be repeated
    #[arg(short, long = "user", value_name = "USER", required_unless_present = "groups")]
    users: Vec<String>,
    /// A group of users who get in; can be repeated
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// A cluster, or '*' for every one; can be repeated
    #[arg(short, long = "cluster", value_name = "CLUSTER", required = true)]
    clusters: Vec<String>,
    /// A further group that they have inside the cluster; can be repeated
    #[arg(long = "as-group", value_name = "GROUP")]
    as_groups: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline grant …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(list) => list.run(Resource::ClusterGrant).await,
        Command::Delete(args) => args.run(Resource::ClusterGrant, "deleted").await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&args)?,
    };
    let client = args.hub.client()?;
    let spec = json!({
        "users": args.users, "groups": args.groups, "clusters": args.clusters, "asGroups": args.as_groups,
    });
    client.create(Resource::ClusterGrant, &Resource::ClusterGrant.object(Some(&name), spec)).await?;
    text::say(&format!("clustergrant {name} created."));
    Ok(())
}

/// `anna-edge1`, as long as that is one subject, one cluster and a valid name.
fn default_name(args: &CreateArgs) -> anyhow::Result<String> {
    let subjects: Vec<_> = args.users.iter().chain(&args.groups).collect();
    let name = match (&subjects[..], &args.clusters[..]) {
        ([subject], [cluster]) => format!("{subject}-{}", if cluster == "*" { "all" } else { cluster }),
        _ => String::new(),
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.chars().all(fits) && name.starts_with(edge) && name.ends_with(edge) && name.len() <= 253 {
        return Ok(name);
    }
    Err(usage("that grant needs a name", "put one in front: moorline grant create NAME …"))
}
