//! `moorline group`: groups of users and of login providers' groups.

use crate::{
    client::field,
    resource::Resource,
    target::HubArgs,
    text,
    token::{ListCommand, RevokeArgs},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `moorline group`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a group
    #[command(after_help = "\
Examples:
  moorline group create ops --user anna --group corp:unix-admins --group gh:acme/platform
  moorline group create moorline:admins --group corp:fleet-admins      administrators of the hub
  moorline grant create ops-all --group ops --cluster '*'

A provider's group is PROVIDER:NAME, as moorline principals search shows it.")]
    Create(CreateArgs),
    /// List groups
    List(ListCommand),
    /// Delete groups
    Delete(RevokeArgs),
    /// Put in or take out members
    Change(ChangeArgs),
}

/// `moorline group create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Group name
    name: String,
    /// Name to show
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// A user in it; can be repeated
    #[arg(short, long = "user", value_name = "USER")]
    users: Vec<String>,
    /// A provider's group, or one of this hub, whose members are in it; can be repeated
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline group change`
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    /// Group name
    name: String,
    /// Put a user in; can be repeated
    #[arg(long, value_name = "USER")]
    add_user: Vec<String>,
    /// Take a user out; can be repeated
    #[arg(long, value_name = "USER")]
    remove_user: Vec<String>,
    /// Put a group in; can be repeated
    #[arg(long, value_name = "GROUP")]
    add_group: Vec<String>,
    /// Take a group out; can be repeated
    #[arg(long, value_name = "GROUP")]
    remove_group: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline group`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let mut spec = json!({ "users": args.users, "groups": args.groups });
            if let Some(display) = args.display_name {
                spec["displayName"] = display.into();
            }
            let object = Resource::Group.object(Some(&args.name), spec);
            let made = args.hub.client()?.create(Resource::Group, &object).await?;
            text::say(&format!("group {} created", text::clean(field(&made, "/metadata/name")?)));
            Ok(())
        }
        Command::List(args) => args.run(Resource::Group).await,
        Command::Delete(args) => args.run(Resource::Group, "deleted").await,
        Command::Change(args) => change(args).await,
    }
}

async fn change(args: ChangeArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let group = client.get(&Resource::Group.path(&args.name)).await?;
    let changed = |pointer: &str, add: &[String], remove: &[String]| {
        let before = group.pointer(pointer).and_then(Value::as_array);
        let mut all: BTreeSet<&str> = before.into_iter().flatten().filter_map(Value::as_str).collect();
        all.extend(add.iter().map(String::as_str));
        all.retain(|name| !remove.iter().any(|gone| gone == name));
        json!(all)
    };
    let users = changed("/spec/users", &args.add_user, &args.remove_user);
    let groups = changed("/spec/groups", &args.add_group, &args.remove_group);
    // With the version that was read: a change of somebody else meanwhile is not undone.
    let version = group.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "users": users, "groups": groups } });
    client.merge(Resource::Group, &args.name, &patch).await?;
    text::say(&format!("group {} changed", args.name));
    Ok(())
}
