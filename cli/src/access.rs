//! `moorline access`: more rights on a cluster for a while.

use crate::{
    client::{Client, field},
    failure::advise,
    resource::{Resource, segment},
    target::HubArgs,
    text,
    token::ListCommand,
};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// How often a request is looked at while somebody waits for it.
const LOOK: Duration = Duration::from_secs(2);

/// `moorline access`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Ask for more rights on a cluster
    #[command(after_help = "\
Examples:
  moorline access request edge1 --group ops --for 1h --reason 'disk full on node 3'
  moorline access request edge1 --for 30m --reason 'look at the logs' --wait

Somebody else decides: an administrator, or a member of the hub's group moorline:approvers. The time begins with the
approval; at its end the rights go, open streams included.")]
    Request(Request),
    /// List requests: your own, or all for those who decide
    List(ListCommand),
    /// Grant a request of somebody else
    Approve(Decide),
    /// Refuse a request of somebody else
    Deny(Decide),
}

/// `moorline access request`
#[derive(Debug, clap::Args)]
pub struct Request {
    /// The cluster
    cluster: String,
    /// A group to have there; can be repeated [default: none, only to reach it]
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// For how long, such as 1h; at most 24h
    #[arg(long = "for", value_name = "TIME", value_parser = text::duration)]
    duration: Duration,
    /// What for
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Wait until somebody has decided
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline access approve` and `deny`
#[derive(Debug, clap::Args)]
pub struct Decide {
    /// The request's name
    name: String,
    /// What to tell who asked
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline access`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Request(args) => request(args).await,
        Command::List(args) => args.run(Resource::AccessRequest).await,
        Command::Approve(args) => decide(args, "approve").await,
        Command::Deny(args) => decide(args, "deny").await,
    }
}

async fn request(args: Request) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let me = client.get("/auth/whoami").await?;
    let spec = json!({
        "user": field(&me, "/user")?, "cluster": args.cluster, "groups": args.groups,
        "durationSeconds": args.duration.as_secs(), "reason": args.reason,
    });
    let made = client.create(Resource::AccessRequest, &Resource::AccessRequest.object(None, spec)).await?;
    let name = field(&made, "/metadata/name")?.to_owned();
    text::print(&format!("{name}\n"))?;
    text::say(&format!("Somebody else decides: moorline access approve {name}"));
    if args.wait { wait(&client, &name).await } else { Ok(()) }
}

async fn wait(client: &Client, name: &str) -> anyhow::Result<()> {
    loop {
        let request = client.get(&Resource::AccessRequest.path(name)).await?;
        let get = |at: &str| request.pointer(at).and_then(Value::as_str).map(text::clean).unwrap_or_default();
        match get("/status/phase").as_str() {
            "" | "Pending" => sleep(LOOK).await,
            "Approved" => {
                text::say(&format!("Granted by {} until {}.", get("/status/decidedBy"), get("/status/expires")));
                return Ok(());
            }
            _ => {
                let why = format!("refused by {}: {}", get("/status/decidedBy"), get("/status/message"));
                return Err(advise(why, "ask them, or ask for less"));
            }
        }
    }
}

async fn decide(args: Decide, what: &str) -> anyhow::Result<()> {
    let path = format!("/auth/access-requests/{}/{what}", segment(&args.name));
    let mut body = json!({});
    if let Some(message) = args.message {
        body["message"] = message.into();
    }
    let decided = args.hub.client()?.call(Method::POST, &path, Some(&body)).await?;
    let get = |at: &str| decided.pointer(at).and_then(Value::as_str).map(text::clean).unwrap_or_default();
    let until = get("/status/expires");
    let until = if until.is_empty() { String::new() } else { format!(" until {until}") };
    text::say(&format!("{} for {} on {}{until}.", get("/status/phase"), get("/spec/user"), get("/spec/cluster")));
    Ok(())
}
