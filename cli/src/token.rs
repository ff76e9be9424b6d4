//! `moorline token`: what lets an agent join.

use crate::{
    agent::JoinBundle,
    client::{ApiError, Client, field},
    files,
    get::{self, ListArgs},
    output::{DataArgs, data},
    resource::Resource,
    target::{HubArgs, HubUrl},
    text,
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Method, StatusCode};
use moorline_proto::id::ClusterId;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// `moorline token`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token and print the command that joins a cluster with it
    #[command(after_help = "\
Examples:
  moorline token create --cluster edge1
  moorline token create --cluster edge1 --ttl 24h --uses 3
  moorline token create --cluster edge1 --bundle edge1.join    one file to carry to the cluster

The token carries the pin of the hub's authority, so the agent needs nothing else to trust the hub.
It is shown once; the hub keeps only its hash.")]
    Create(CreateArgs),
    /// Print what node agents need to join by their service accounts: nothing of it is a secret
    #[command(after_help = "\
Examples:
  moorline token nodes --cluster edge1
  helm upgrade … --set nodes.enabled=true --set cluster=edge1 --set hubPin=PIN

The cluster's agent asks its API server whose pod a node agent is, and on which node: no token is shared by nodes.")]
    Nodes(NodesArgs),
    /// List the tokens that are still good for something
    List(ListCommand),
    /// Make tokens worthless. Agents that have joined stay
    Revoke(RevokeArgs),
}

/// `moorline token create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The cluster to join; it is created at the hub if it is new
    #[arg(short, long, value_name = "NAME")]
    cluster: ClusterId,
    /// How long the token can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = text::duration)]
    ttl: Duration,
    /// How many agents can join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,
    /// The hub's address as the agent reaches it [default: the hub's public URL]
    #[arg(long, value_name = "URL")]
    agent_hub: Option<HubUrl>,
    /// Write hub and token into this file, for `moorline agent --join-bundle FILE`, and print neither
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline token nodes`
#[derive(Debug, clap::Args)]
pub struct NodesArgs {
    /// Their cluster, whose own agents have joined
    #[arg(short, long, value_name = "NAME")]
    cluster: ClusterId,
    #[command(flatten)]
    hub: HubArgs,
}

/// A list of one kind.
#[derive(Debug, clap::Args)]
pub struct ListCommand {
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    hub: HubArgs,
}

impl ListCommand {
    /// Prints it.
    pub async fn run(&self, resource: Resource) -> anyhow::Result<()> {
        get::list(&self.hub.client()?, resource, &self.list).await
    }
}

/// Names of what is to go.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// Names, as the list shows them
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
}

impl RevokeArgs {
    /// Deletes each; the first failure ends it.
    pub async fn run(&self, resource: Resource, done: &str) -> anyhow::Result<()> {
        let client = self.hub.client()?;
        for name in &self.names {
            // The secret itself is often what is at hand: its middle part is the name, and is no secret.
            let name = object_name(name);
            client.call(Method::DELETE, &resource.path(name), None).await?;
            text::say(&format!("{} {name} {done}.", resource.singular()));
        }
        Ok(())
    }
}

/// `mlj_<id>.<secret>…` and `mlt_<id>.<secret>` have the object's name as their id.
fn object_name(text: &str) -> &str {
    let id = text.strip_prefix("mlj_").or_else(|| text.strip_prefix("mlt_"));
    id.and_then(|rest| rest.split('.').next()).unwrap_or(text)
}

/// `moorline token …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::Nodes(args) => nodes(&args).await,
        Command::List(list) => list.run(Resource::JoinToken).await,
        Command::Revoke(args) => args.run(Resource::JoinToken, "revoked").await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let cluster = args.cluster.as_str();
    ensure_cluster(&client, cluster).await?;
    let spec = json!({ "cluster": cluster, "expires": text::expires(args.ttl)?, "maxUses": args.uses });
    let made = client.create(Resource::JoinToken, &Resource::JoinToken.object(None, spec)).await?;
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&made, form)?)?);
    }
    let token = field(&made, "/status/token")?;
    let offered = made.pointer("/status/joinCommand").and_then(Value::as_str);
    let command = match (&args.agent_hub, offered) {
        (None, Some(command)) => text::clean(command),
        (None, None) => join_command(client.url(), token),
        (Some(url), _) => join_command(url, token),
    };
    match &args.bundle {
        None => text::print(&format!("{command}\n"))?,
        Some(path) => {
            let hub = command.split_whitespace().skip_while(|word| *word != "--hub").nth(1).map(str::to_owned);
            let bundle = JoinBundle { hub, token: Some(text::clean(token)) };
            files::write_private(path, serde_json::to_string_pretty(&bundle)?.as_bytes())?;
            text::say(&format!("Written to {}. At the cluster: moorline agent --join-bundle FILE", path.display()));
        }
    }
    let uses = if args.uses == 1 { "once".to_owned() } else { format!("{} times", args.uses) };
    let until = text::short(i64::try_from(args.ttl.as_secs())?);
    text::say(&format!("Good for {until}, {uses}. Run it where the cluster's API server can be reached."));
    Ok(())
}

async fn nodes(args: &NodesArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let reply = client.fetch("/auth/ca", "application/x-pem-file, */*").await?;
    let authority = CertificateDer::from_pem_slice(&reply.body).context("the hub's authority cannot be read")?;
    let pin = URL_SAFE_NO_PAD.encode(moorline_link::tls::spki_sha256(&authority)?);
    text::print(&format!("MOORLINE_CLUSTER: {}\nMOORLINE_HUB_PIN: {pin}\n", args.cluster))?;
    text::say("For the ConfigMap moorline-node of deploy/daemonset; in the chart: cluster and hubPin.");
    Ok(())
}

/// A pin as [`nodes`] prints it.
pub fn pin_of(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn join_command(hub: &HubUrl, token: &str) -> String {
    format!("moorline agent --hub {hub} --token {}", text::clean(token))
}

async fn ensure_cluster(client: &Client, name: &str) -> anyhow::Result<()> {
    match client.get(&Resource::Cluster.path(name)).await {
        Ok(_) => return Ok(()),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    match client.create(Resource::Cluster, &Resource::Cluster.object(Some(name), json!({}))).await {
        Ok(_) => text::say(&format!("cluster {name} created.")),
        // Somebody else was faster.
        Err(ApiError::Refused { code: StatusCode::CONFLICT, .. }) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_printed() {
        assert_eq!(pin_of(&URL_SAFE_NO_PAD.encode([7; 32])), Some([7; 32]));
        assert_eq!((pin_of(""), pin_of("AAAA"), pin_of("§")), (None, None, None));
    }

    #[test]
    fn a_token_is_revoked_by_its_name_or_by_itself() {
        assert_eq!(object_name("abcdefghijkl"), "abcdefghijkl");
        assert_eq!(object_name("mlj_abcdefghijkl.c2VjcmV0.cGlu"), "abcdefghijkl");
        assert_eq!(object_name("mlt_abcdefghijkl.c2VjcmV0"), "abcdefghijkl");
    }
}
