//! `moorline plan`: what is to be done on nodes.

mod shipped;

use crate::{
    client::{ApiError, Client},
    failure::{advise, usage},
    resource::{Resource, segment},
    target::HubArgs,
    text,
};
use anyhow::Context;
use serde_json::{Value, json};
use shipped::{CertificatesArgs, RestoreArgs, SaveArgs, SupportArgs};
use std::{io::Write, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep};

/// How often a plan is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(500);
/// Largest file that is sent to the hub, in bytes: as the hub takes them.
const FILE: u64 = 64 << 20;

/// `moorline plan`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Save a snapshot of etcd on a node
    #[command(after_help = "\
Examples:
  moorline plan etcd-save nightly --cluster edge1 --node control-1 --to /var/lib/moorline-plans/etcd.db
  moorline plan etcd-save now --cluster edge1 --node control-1 --to /backup/etcd.db --endpoint http://127.0.0.1:2379 --wait

The edge policy of the cluster has to allow it:
  spec: {plans: {allow: true, commands: [/usr/bin/etcdctl], paths: [/var/lib/moorline-plans]}}")]
    EtcdSave(SaveArgs),
    /// Put a snapshot in the place of a node's etcd; the only member, or each in turn from the same file
    #[command(after_help = "\
Examples:
  moorline plan etcd-restore back --cluster edge1 --node control-1 --from /var/lib/moorline-plans/etcd.db --wait
  moorline plan etcd-restore back --cluster edge1 --node db-1 --from /backup/etcd.db --data-dir /var/lib/etcd \\
      --stop '/usr/bin/systemctl stop kube-apiserver etcd' --start '/usr/bin/systemctl start etcd kube-apiserver'

Without --stop and --start etcd and API server are kubeadm's static pods: their manifests are taken away and put back.
What was in the data folder is kept beside it.")]
    EtcdRestore(RestoreArgs),
    /// Tell when certificates end, or make those anew that end soon
    #[command(after_help = "\
Examples:
  moorline plan certificates look --cluster edge1 --all-nodes --wait
  moorline plan certificates renew --cluster edge1 --node control-1 --rotate --restart --within-days 30")]
    Certificates(CertificatesArgs),
    /// Pack logs and the output of programs into an archive
    #[command(after_help = "\
Examples:
  moorline plan support-bundle help --cluster edge1 --node worker-3 --file /var/log/syslog \\
      --command '/usr/bin/journalctl -u kubelet -n 1000' --wait
  moorline plan fetch help worker-3 bundle -o worker-3.tar.gz")]
    SupportBundle(SupportArgs),
    /// Wait until a plan is over, and say what came of it
    Wait(WaitArgs),
    /// Fetch the file that a step has left on a node
    Fetch(FetchArgs),
    /// Give the hub a file that plans can fetch by its checksum, which is printed
    Upload(UploadArgs),
}

/// Which nodes, and how.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Name of the plan
    name: String,
    /// The cluster
    #[arg(short, long, value_name = "NAME")]
    cluster: String,
    /// A node, as its agent or the cluster calls it; can be repeated
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// Nodes with this label; can be repeated
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE")]
    selector: Vec<String>,
    /// All nodes of the cluster
    #[arg(long, conflicts_with_all = ["nodes", "selector"])]
    all_nodes: bool,
    /// Nodes at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_unavailable: u32,
    /// Empty each node of its pods first, for so long at most
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    drain: Option<Duration>,
    /// Print the plan as YAML, and do nothing
    #[arg(long)]
    print: bool,
    /// Wait until it is over
    #[arg(long)]
    wait: bool,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = text::duration)]
    timeout: Duration,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline plan wait`
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Name of the plan
    name: String,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = text::duration)]
    timeout: Duration,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline plan fetch`
#[derive(Debug, clap::Args)]
pub struct FetchArgs {
    /// Name of the plan
    name: String,
    /// The node's agent
    agent: String,
    /// Name of the step
    step: String,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline plan upload`
#[derive(Debug, clap::Args)]
pub struct UploadArgs {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline plan …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::EtcdSave(args) => make(&args.target, args.steps(), Vec::new()).await,
        Command::EtcdRestore(args) => make(&args.target, args.steps()?, Vec::new()).await,
        Command::Certificates(args) => make(&args.target, args.steps()?, Vec::new()).await,
        Command::SupportBundle(args) => make(&args.target, args.steps()?, Vec::new()).await,
        Command::Wait(args) => wait(&args.hub.client()?, &args.name, args.timeout).await,
        Command::Fetch(args) => fetch(args).await,
        Command::Upload(args) => upload(args).await,
    }
}

/// Makes the plan, or changes the one of that name: the same again is then done again.
async fn make(target: &Target, steps: Vec<Value>, probes: Vec<Value>) -> anyhow::Result<()> {
    let mut selector = serde_json::Map::new();
    for label in &target.selector {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| usage(format!("{label:?} is no label"), "write it as --selector KEY=VALUE"))?;
        selector.insert(key.to_owned(), value.into());
    }
    if target.all_nodes {
        selector.insert("moorline.dev/cluster".to_owned(), target.cluster.clone().into());
    }
    if selector.is_empty() && target.nodes.is_empty() {
        return Err(usage("no node is named", "name some: --node NAME, --selector KEY=VALUE or --all-nodes"));
    }
    let run = jiff::Timestamp::now().to_string();
    let strategy = json!({
        "maxUnavailable": target.max_unavailable, "drainSeconds": target.drain.unwrap_or_default().as_secs(),
    });
    let spec = json!({
        "cluster": target.cluster, "nodes": target.nodes, "nodeSelector": selector, "steps": steps, "probes": probes,
        "strategy": strategy, "run": run,
    });
    let object = Resource::NodePlan.object(Some(&target.name), spec.clone());
    if target.print {
        return Ok(text::print(&crate::yaml::write(&object)?)?);
    }
    let client = target.hub.client()?;
    let exists = |error: &ApiError| matches!(error, ApiError::Refused { reason, .. } if reason == "AlreadyExists");
    match client.create(Resource::NodePlan, &object).await {
        Err(error) if exists(&error) => {
            client.merge(Resource::NodePlan, &target.name, &json!({ "spec": spec })).await?;
        }
        other => drop(other?),
    }
    if target.wait {
        return wait(&client, &target.name, target.timeout).await;
    }
    text::say(&format!("the plan is made; how far it is: moorline plan wait {}", target.name));
    Ok(())
}

async fn wait(client: &Client, name: &str, limit: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    let mut told = String::new();
    loop {
        let plan = client.get(&Resource::NodePlan.path(name)).await?;
        let at = |pointer: &str| plan.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let seen = plan.pointer("/status/observedGeneration") == plan.pointer("/metadata/generation");
        let phase = if seen { at("/status/phase") } else { "Waiting" };
        let now = format!("{phase} {}", at("/status/message"));
        if now != told {
            text::say(&text::clean(now.trim()));
            told = now;
        }
        match phase {
            "Succeeded" => return Ok(text::print(&outputs(&plan))?),
            "Failed" | "Paused" => {
                text::print(&outputs(&plan))?;
                let advice = format!("all of it: moorline get nodeplans {name} -o yaml");
                return Err(advise(format!("the plan {name} is {}", phase.to_lowercase()), advice));
            }
            _ if until < Instant::now() => {
                return Err(advise(format!("the plan {name} is not over yet"), "wait longer: --timeout TIME"));
            }
            _ => sleep(LOOK).await,
        }
    }
}

/// What the steps printed, under the names of nodes and steps.
fn outputs(plan: &Value) -> String {
    let mut all = String::new();
    for node in plan.pointer("/status/nodes").and_then(Value::as_array).into_iter().flatten() {
        let agent = node["agent"].as_str().unwrap_or_default();
        for step in node.pointer("/progress/steps").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| step[key].as_str().unwrap_or_default();
            let mut line = format!("{agent} {} {}", text("name"), text("phase"));
            if !text("message").is_empty() {
                line.push_str(&format!(": {}", text("message")));
            }
            all.push_str(&format!("{}\n", text::clean(&line)));
            for line in text("output").lines() {
                all.push_str(&format!("    {}\n", text::clean(line)));
            }
        }
    }
    all
}

async fn fetch(args: FetchArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let path = format!("/plans/{}/{}/{}", segment(&args.name), segment(&args.agent), segment(&args.step));
    let file = client.fetch(&path, "*/*").await?.body;
    match &args.output {
        Some(path) => {
            std::fs::write(path, &file).with_context(|| format!("cannot write {}", path.display()))?;
            text::say(&format!("{}: {} bytes", path.display(), file.len()));
        }
        None => std::io::stdout().lock().write_all(&file).context("cannot write to standard output")?,
    }
    Ok(())
}

async fn upload(args: UploadArgs) -> anyhow::Result<()> {
    let about = || format!("cannot read {}", args.file.display());
    if FILE < std::fs::metadata(&args.file).with_context(about)?.len() {
        return Err(usage("the file is larger than 64 MiB", "split it, or bring it to the nodes in another way"));
    }
    let bytes = std::fs::read(&args.file).with_context(about)?;
    let sum = moorline_authz::plan::sha256(&bytes);
    args.hub.client()?.upload(&format!("/plans/files/{sum}"), bytes.into()).await?;
    Ok(text::print(&format!("{sum}\n"))?)
}
