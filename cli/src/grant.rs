//! `moorline grant`: who may use which cluster.

use crate::{
    audit::What,
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
    /// Let users or groups reach services, pods and hosts inside clusters
    #[command(after_help = "\
Examples:
  moorline grant service --user anna --cluster edge1 --namespace monitoring --service grafana
  moorline grant service ops-web --group ops --cluster '*' --namespace '*' --service '*' --label expose=yes
  moorline grant service db --user anna --cluster edge1 --host 10.0.0.5:5432

They are reached by path under the hub, and by: moorline forward. What a cluster's own edge policy refuses
stays refused. To see and take back: moorline get servicegrants, moorline delete servicegrants NAME.")]
    Service(ServiceArgs),
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
    /// What is recorded of their sessions in terminals, whatever the clusters say
    #[arg(long, value_enum, value_name = "WHAT")]
    record: Option<What>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline grant service`
#[derive(Debug, clap::Args)]
pub struct ServiceArgs {
    /// Name of the grant [default: made from who and what]
    name: Option<String>,
    /// A user; can be repeated
    #[arg(short, long = "user", value_name = "USER", required_unless_present = "groups")]
    users: Vec<String>,
    /// A group of users; can be repeated
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// A cluster, or '*' for every one; can be repeated
    #[arg(short, long = "cluster", value_name = "CLUSTER", required = true)]
    clusters: Vec<String>,
    /// A namespace of services and pods, or '*'; can be repeated
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,
    /// A service, or '*'; can be repeated
    #[arg(short, long = "service", value_name = "SERVICE", requires = "namespaces")]
    services: Vec<String>,
    /// A pod, or '*'; can be repeated
    #[arg(long = "pod", value_name = "POD", requires = "namespaces")]
    pods: Vec<String>,
    /// A host as the cluster sees it: 10.0.0.0/8, 10.0.0.5:5432, db.corp:5432, *.corp; can be repeated
    #[arg(long = "host", value_name = "HOST[:PORT]")]
    hosts: Vec<String>,
    /// A label that service or pod must carry; can be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    hub: HubArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

async fn service(args: ServiceArgs) -> anyhow::Result<()> {
    let things: Vec<_> = args.services.iter().chain(&args.pods).chain(&args.hosts).collect();
    let Some(first) = things.first() else {
        return Err(usage("that grant is for nothing", "name what it is for: --service, --pod or --host"));
    };
    let name = match (&args.name, args.users.iter().chain(&args.groups).next()) {
        (Some(name), _) => name.clone(),
        (None, Some(who)) => {
            let where_to = args.clusters.first().map(String::as_str).unwrap_or_default();
            let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
            let name: String = format!("{who}-{where_to}-{first}").replace('*', "all").chars().map(plain).collect();
            name.trim_matches(['-', '.']).to_owned()
        }
        (None, None) => return Err(usage("that grant is for nobody", "name who gets it: --user or --group")),
    };
    let labels: serde_json::Map<_, _> = args.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let spec = json!({
        "users": args.users, "groups": args.groups, "clusters": args.clusters, "namespaces": args.namespaces,
        "services": args.services, "pods": args.pods, "hosts": args.hosts, "labels": labels,
    });
    let client = args.hub.client()?;
    client.create(Resource::ServiceGrant, &Resource::ServiceGrant.object(Some(&name), spec)).await?;
    text::say(&format!("servicegrant {name} created."));
    Ok(())
}

/// `moorline grant …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::Service(args) => service(args).await,
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
    let mut spec = json!({
        "users": args.users, "groups": args.groups, "clusters": args.clusters, "asGroups": args.as_groups,
    });
    if let Some(what) = args.record.map(What::value).filter(|what| !what.is_null()) {
        spec["record"] = what;
    }
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
