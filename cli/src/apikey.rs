//! `moorline apikey`: tokens for programs.

use crate::{
    client::field,
    output::{DataArgs, data},
    resource::Resource,
    target::HubArgs,
    text,
    token::{ListCommand, RevokeArgs},
};
use moorline_proto::id::ClusterId;
use serde_json::json;
use std::time::Duration;

/// `moorline apikey`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key and print it
    #[command(after_help = "\
Examples:
  moorline apikey create --ttl 90d --description 'CI of shop'
  moorline apikey create --user ci --cluster edge1 --cluster edge2 > key
  moorline apikey create --user dash --verb get --verb list --verb watch

The key is shown once; the hub keeps only its hash.")]
    Create(CreateArgs),
    /// List keys and logins
    List(ListCommand),
    /// Make keys worthless, at once
    Revoke(RevokeArgs),
}

/// `moorline apikey create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Whose key [default: yours]
    #[arg(short, long)]
    user: Option<String>,
    /// How long it lasts
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = text::duration)]
    ttl: Duration,
    /// Only for this cluster; can be repeated [default: all that the user may use]
    #[arg(short, long = "cluster", value_name = "NAME")]
    clusters: Vec<ClusterId>,
    /// Only for this verb (get, list, watch, create, …); can be repeated [default: all]
    #[arg(long = "verb", value_name = "VERB")]
    verbs: Vec<String>,
    /// What it is for
    #[arg(short, long)]
    description: Option<String>,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline apikey …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(list) => list.run(Resource::Token).await,
        Command::Revoke(args) => args.run(Resource::Token, "revoked").await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let user = match args.user {
        Some(user) => user,
        None => field(&client.get("/auth/whoami").await?, "/user")?.to_owned(),
    };
    let expires = text::expires(args.ttl)?;
    let mut spec = json!({ "user": user, "expires": expires });
    if let Some(description) = args.description {
        spec["description"] = description.into();
    }
    if !args.clusters.is_empty() {
        spec["clusters"] = args.clusters.iter().map(ClusterId::as_str).collect();
    }
    if !args.verbs.is_empty() {
        spec["verbs"] = args.verbs.into();
    }
    let made = client.create(Resource::Token, &Resource::Token.object(None, spec)).await?;
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&made, form)?)?);
    }
    text::print(&format!("{}\n", text::clean(field(&made, "/status/token")?)))?;
    text::say(&format!("API key of {user} until {expires}. Use it as MOORLINE_API_KEY or as a bearer token."));
    Ok(())
}
