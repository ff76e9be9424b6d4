//! `moorline kubeconfig`: what kubectl needs to reach clusters through the hub.

mod document;
mod files;

use self::{
    document::{Document, Section},
    files::Files,
};
use crate::{
    client::Client,
    failure::{advise, usage},
    relay::{self, Direct, Seat},
    resource::Resource,
    session,
    settings::KnownHub,
    target::HubArgs,
    text,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use moorline_proto::id::ClusterId;
use serde_json::{Map, Value, json};
use std::{env, path::PathBuf};

/// The context for the hub's own API.
const HUB_CONTEXT: &str = "moorline";

/// `moorline kubeconfig`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline kubeconfig edge1 > edge1.kubeconfig
  moorline kubeconfig edge1 --merge --use
  moorline kubeconfig --merge
  moorline kubeconfig edge1 edge2 --output clusters.kubeconfig
  moorline kubeconfig edge1 --auto --merge          one context, whichever way works

Each cluster becomes a context of its name. Without names: every cluster that you may use, and the
context `moorline` for the hub's own API (kubectl --context moorline get clusters). A cluster with an
endpoint of its own has a second context, CLUSTER-direct, for when the hub is away. With --auto there is
one context, which leads to a relay on this machine: it takes the way that works, and of two the nearer.
--merge keeps to kubectl's rules: the files of $KUBECONFIG or ~/.kube/config, entries written where they
came from, what is unknown kept, current-context kept unless --use.")]
pub struct Args {
    /// Clusters [default: all that you may use]
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<ClusterId>,
    /// Put the contexts into your kubeconfig instead of printing a new one
    #[arg(short, long)]
    merge: bool,
    /// Write to this file; with --merge, merge into it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Let kubectl ask moorline for the token each time: what is done for a login
    #[arg(long, conflicts_with = "static_token")]
    exec: bool,
    /// Write the token itself: that of a login ends within the hour
    #[arg(long = "static")]
    static_token: bool,
    /// One context a cluster, whose way is chosen each time: through the hub or to the cluster's endpoint
    #[arg(long, conflicts_with = "static_token")]
    auto: bool,
    /// With --auto: the port of this machine's loopback [default: one that is free, chosen once]
    #[arg(long, value_name = "PORT", requires = "auto", value_parser = clap::value_parser!(u16).range(1..))]
    auto_port: Option<u16>,
    /// Make the first cluster the current context
    #[arg(long = "use")]
    use_context: bool,
    /// Put this in front of each context's name
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Also a context `moorline` for the hub's own API
    #[arg(long)]
    with_hub: bool,
    /// Take over contexts of the same name that lead elsewhere
    #[arg(long, requires = "merge")]
    force: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// One context to write.
struct Target {
    context: String,
    /// Name of its `clusters` entry.
    cluster: String,
    server: String,
    /// Other servers that a context of this name may lead to and be ours: what `--auto` changes, and changes back.
    also: Vec<String>,
    /// Base64 of its authority, PEM. Empty: a public one.
    ca: String,
    /// Name and content of its `users` entry.
    user: String,
    credential: Map<String, Value>,
}

/// A cluster, as the hub tells of it.
struct Found {
    name: String,
    /// Server and authority of the way that does not lead through the hub.
    direct: Option<Direct>,
}

/// Everything that goes into a kubeconfig.
struct Plan {
    targets: Vec<Target>,
}

/// `moorline kubeconfig`
pub async fn run(args: Args) -> anyhow::Result<()> {
    let hub = args.hub.known()?;
    let client = args.hub.client()?;
    if args.auto && hub.refresh.is_none() {
        return Err(usage("--auto works with a login, whose tokens it renews", "log in, or leave out --auto"));
    }
    let clusters = clusters(&client, &args.clusters).await?;
    let seat = if args.auto { Some(Seat::take(args.auto_port).await?) } else { Seat::load()? };
    let plan = plan(&args, &hub, &client, &clusters, seat.as_ref())?;
    for cluster in clusters.iter().filter(|_| args.auto) {
        relay::remember(&hub.url, &cluster.name, cluster.direct.as_ref())?;
    }
    if hub.refresh.is_some() && !args.static_token {
        for cluster in clusters.iter().filter(|cluster| cluster.direct.is_some()) {
            // So that there is one when the hub goes away the next moment.
            if let Err(error) = session::for_cluster(&hub, &cluster.name).await {
                text::say(&format!("warning: no token for the direct way to {}: {error:#}", cluster.name));
            }
        }
    }
    let Some(first) = plan.targets.first().map(|target| target.context.clone()) else {
        return Err(advise(
            "there is no cluster that you may use",
            "ask an administrator for a grant, or see: moorline clusters",
        ));
    };
    if args.merge {
        let paths = match &args.output {
            Some(path) => vec![path.clone()],
            None => files::paths()?,
        };
        let written = merge(paths, &plan, args.use_context.then_some(first.as_str()), args.force)?;
        let names: Vec<_> = plan.targets.iter().map(|target| target.context.as_str()).collect();
        for path in written {
            text::say(&format!("{} written.", path.display()));
        }
        text::say(&format!("next: kubectl --context {first} get pods   (contexts: {})", names.join(", ")));
        return Ok(());
    }
    let yaml = fresh(&plan, &first).write()?;
    match &args.output {
        Some(path) => {
            crate::files::write_private(path, yaml.as_bytes())?;
            text::say(&format!("{} written. next: kubectl --kubeconfig {0} get pods", path.display()));
        }
        None => text::print(&yaml)?,
    }
    if let (false, Some(expires)) = (args.exec || (hub.refresh.is_some() && !args.static_token), &hub.expires) {
        text::say(&format!("It holds your login, good until {}.", text::clean(expires)));
    }
    Ok(())
}

/// The named clusters, none of which may be known not to exist; or all that there are. What the hub does not tell is
/// no error: a grant may come later, and a key for one cluster may not look at the hub's objects.
async fn clusters(client: &Client, named: &[ClusterId]) -> anyhow::Result<Vec<Found>> {
    let found = |name: &ClusterId, object: &Value| Found { name: name.to_string(), direct: relay::direct_of(object) };
    if !named.is_empty() {
        let mut all = Vec::new();
        for cluster in named {
            let object = match client.get(&Resource::Cluster.path(cluster.as_str())).await {
                Err(e) if e.is_forbidden() => {
                    text::say(&format!("warning: the hub does not let you see {cluster}; it may refuse you there too"));
                    Value::Null
                }
                other => other?,
            };
            all.push(found(cluster, &object));
        }
        return Ok(all);
    }
    let list = client.get(&Resource::Cluster.collection()).await?;
    let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let name = |item: &Value| item.pointer("/metadata/name").and_then(Value::as_str)?.parse().ok();
    Ok(items.iter().filter_map(|item| Some(found(&name(item)?, item))).collect())
}

fn plan(args: &Args, hub: &KnownHub, client: &Client, clusters: &[Found], seat: Option<&Seat>) -> anyhow::Result<Plan> {
    let place = client.url().authority();
    let user = format!("{}@{place}", hub.user.as_deref().unwrap_or("apikey"));
    let token = hub.token.as_ref().map_or("", |token| token.reveal());
    // A login's token is renewed all the time; a key is what it is.
    let exec = args.exec || (hub.refresh.is_some() && !args.static_token);
    if exec && env::var_os("MOORLINE_API_KEY").is_some() {
        return Err(usage("--exec works with a login, not with MOORLINE_API_KEY", "log in, or leave out --exec"));
    }
    let through = if exec { json!({ "exec": plugin(&hub.url, &[]) }) } else { json!({ "token": token }) };
    let target = |name: &str, server: String| Target {
        context: format!("{}{name}", args.prefix),
        cluster: format!("{name}@{place}"),
        server,
        also: seat.map(|seat| seat.server(&hub.url, name)).into_iter().collect(),
        ca: STANDARD.encode(&hub.ca),
        user: user.clone(),
        credential: fields(through.clone()),
    };
    let mut targets = Vec::new();
    for Found { name, direct } in clusters {
        let through_hub = format!("{}/k8s/clusters/{name}", hub.url);
        if let Some(seat) = seat.filter(|_| args.auto) {
            let authority = STANDARD.encode(seat.authority()?);
            let credential = fields(json!({ "exec": plugin(&hub.url, &["--auto"]) }));
            let user = format!("{user}/auto");
            let also = vec![through_hub];
            targets.push(Target { also, ca: authority, user, credential, ..target(name, seat.server(&hub.url, name)) });
            continue;
        }
        targets.push(target(name, through_hub));
        // A token for that way alone has to be asked for each hour, or is an API key.
        let Some(direct) = direct.clone().filter(|_| exec || token.starts_with("mlt_")) else { continue };
        let exec = json!({ "exec": plugin(&hub.url, &["--cluster", name]) });
        targets.push(Target {
            context: format!("{}{name}-direct", args.prefix),
            cluster: format!("{name}-direct@{place}"),
            server: direct.server,
            also: Vec::new(),
            ca: STANDARD.encode(direct.authority),
            user: format!("{user}/{name}-direct"),
            credential: if hub.refresh.is_some() || args.exec { fields(exec) } else { fields(through.clone()) },
        });
    }
    if args.with_hub || args.clusters.is_empty() {
        targets.push(target(HUB_CONTEXT, hub.url.clone()));
    }
    Ok(Plan { targets })
}

/// The `exec` block of `client.authentication.k8s.io/v1`.
fn plugin(hub: &str, more: &[&str]) -> Value {
    let args = [&["kube", "credential", "--hub", hub], more].concat();
    json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command_name(),
        "args": args,
        "env": null,
        "installHint": "moorline is not on your PATH; install it, or write a kubeconfig without --exec",
        "interactiveMode": "Never",
        "provideClusterInfo": false,
    })
}

/// `moorline` if that finds this program, or else where this program is.
fn command_name() -> String {
    let Ok(me) = env::current_exe().and_then(std::fs::canonicalize) else { return "moorline".into() };
    let found = env::var_os("PATH")
        .and_then(|path| env::split_paths(&path).map(|dir| dir.join("moorline")).find(|candidate| candidate.is_file()));
    match found.and_then(|found| std::fs::canonicalize(found).ok()) {
        Some(found) if found == me => "moorline".into(),
        _ => me.to_string_lossy().into_owned(),
    }
}

fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn cluster_fields(target: &Target) -> Map<String, Value> {
    let mut content = json!({ "server": target.server });
    if !target.ca.is_empty() {
        content["certificate-authority-data"] = target.ca.as_str().into();
    }
    fields(content)
}

fn context_fields(target: &Target) -> Map<String, Value> {
    fields(json!({ "cluster": target.cluster, "user": target.user }))
}

fn fresh(plan: &Plan, current: &str) -> Document {
    let mut document = Document::empty();
    for target in &plan.targets {
        document.put(Section::Clusters, &target.cluster, &cluster_fields(target));
        document.put(Section::Contexts, &target.context, &context_fields(target));
        document.put(Section::Users, &target.user, &target.credential);
    }
    document.set_current_context(current);
    document
}

fn merge(paths: Vec<PathBuf>, plan: &Plan, current: Option<&str>, force: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Files::open(paths)?;
    for target in &plan.targets {
        if !force && leads_elsewhere(&files, target) {
            return Err(advise(
                format!("your kubeconfig has a context {} that leads elsewhere", target.context),
                "use --prefix to give ours another name, or --force to take that one over",
            ));
        }
    }
    for target in &plan.targets {
        let mut put = |section, name: &str, fields: &Map<String, Value>| {
            files.home_of(section, name).put(section, name, fields);
        };
        put(Section::Clusters, &target.cluster, &cluster_fields(target));
        put(Section::Contexts, &target.context, &context_fields(target));
        put(Section::Users, &target.user, &target.credential);
    }
    match current {
        Some(name) => files.use_context(name),
        // A kubeconfig without one is of little use, and nothing is taken from anybody.
        None if files.current_context().is_none() => {
            if let Some(target) = plan.targets.first() {
                files.use_context(&target.context);
            }
        }
        None => {}
    }
    files.save()
}

/// The name is taken by a context that does not lead to where ours would.
fn leads_elsewhere(files: &Files, target: &Target) -> bool {
    let Some(context) = files.entry(Section::Contexts, &target.context) else { return false };
    let cluster = context.get("cluster").and_then(Value::as_str).unwrap_or_default();
    let entry = files.entry(Section::Clusters, cluster);
    let server = entry.and_then(|entry| entry.get("server")).and_then(Value::as_str);
    !server.is_some_and(|server| server == target.server || target.also.iter().any(|also| also == server))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn plan_for(token: &str) -> Plan {
        let target = Target {
            context: "edge1".into(),
            cluster: "edge1@hub:8443".into(),
            server: "https://hub:8443/k8s/clusters/edge1".into(),
            also: vec!["https://127.0.0.1:20001/hubs/hub_8443/clusters/edge1".into()],
            ca: "Q0E=".into(),
            user: "anna@hub:8443".into(),
            credential: fields(json!({ "token": token })),
        };
        Plan { targets: vec![target] }
    }

    #[test]
    fn a_fresh_one_is_complete() {
        let doc = fresh(&plan_for("t"), "edge1");
        assert_eq!(doc.current_context(), Some("edge1"));
        assert_eq!(doc.entry(Section::Users, "anna@hub:8443"), Some(&json!({"token": "t"})));
        let cluster = json!({"server": "https://hub:8443/k8s/clusters/edge1", "certificate-authority-data": "Q0E="});
        assert_eq!(doc.entry(Section::Clusters, "edge1@hub:8443"), Some(&cluster));
        let line = doc.write().unwrap().lines().any(|line| line.trim() == "token: t");
        assert!(line, "scripts read that line");
    }

    #[test]
    fn merging_twice_renews_the_token_and_keeps_namespace_and_current_context() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "current-context: home\ncontexts: [{name: home, context: {cluster: h, user: u}}]\n").unwrap();
        merge(vec![path.clone()], &plan_for("old"), None, false).unwrap();
        let namespaced = fs::read_to_string(&path)
            .unwrap()
            .replace("cluster: edge1@hub:8443", "cluster: edge1@hub:8443\n    namespace: team");
        fs::write(&path, namespaced).unwrap();
        merge(vec![path.clone()], &plan_for("new"), None, false).unwrap();
        let doc = Document::read(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(doc.entry(Section::Users, "anna@hub:8443"), Some(&json!({"token": "new"})));
        assert_eq!(doc.entry(Section::Contexts, "edge1").unwrap()["namespace"], "team");
        assert_eq!(doc.current_context(), Some("home"));
        merge(vec![path.clone()], &plan_for("new"), Some("edge1"), false).unwrap();
        let doc = Document::read(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(doc.current_context(), Some("edge1"));
    }

    #[test]
    fn a_context_changes_between_one_way_and_the_nearer_of_two_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        merge(vec![path.clone()], &plan_for("t"), None, false).unwrap();
        let mut auto = plan_for("t");
        let target = &mut auto.targets[0];
        std::mem::swap(&mut target.server, &mut target.also[0]);
        merge(vec![path.clone()], &auto, None, false).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("127.0.0.1:20001/hubs/"));
        merge(vec![path.clone()], &plan_for("t"), None, false).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("127.0.0.1:20001/hubs/"));
    }

    #[test]
    fn somebody_elses_context_is_not_taken_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let theirs = "clusters: [{name: edge1, cluster: {server: https://10.0.0.1}}]\ncontexts: [{name: edge1, context: {cluster: edge1, user: u}}]\n";
        fs::write(&path, theirs).unwrap();
        assert!(merge(vec![path.clone()], &plan_for("t"), None, false).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        merge(vec![path.clone()], &plan_for("t"), None, true).unwrap();
        let doc = Document::read(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(doc.entry(Section::Contexts, "edge1").unwrap()["cluster"], "edge1@hub:8443");
        assert!(doc.entry(Section::Clusters, "edge1").is_some(), "their cluster stays");
    }
}
