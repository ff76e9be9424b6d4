//! `moorline user`: the hub's local users.

use crate::{
    client::Client,
    failure::usage,
    output::{DataArgs, Printer, Table, data},
    resource::{Resource, segment},
    target::HubArgs,
    text,
    token::{ListCommand, RevokeArgs},
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};

/// `moorline user`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a user
    #[command(after_help = "\
Examples:
  moorline user create anna --group ops
  moorline user create ci --generate-password
  moorline user create bob --password-stdin < password.txt

A new user may use no cluster yet; next: moorline grant create --user NAME --cluster CLUSTER")]
    Create(CreateArgs),
    /// List users
    List(ListCommand),
    /// Delete users, with their tokens
    Delete(RevokeArgs),
    /// Lock a user out, without deleting
    Disable(NameArgs),
    /// Let a disabled user in again
    Enable(NameArgs),
    /// Show who is locked out for wrong passwords
    Locked(LockedArgs),
    /// Let somebody in again who was locked out for wrong passwords
    #[command(after_help = "\
Examples:
  moorline user unlock anna
  moorline user unlock --address 192.0.2.7")]
    Unlock(UnlockArgs),
    /// Set a user's password
    SetPassword(SetPasswordArgs),
    /// Link a user to who they are at a login provider
    #[command(after_help = "\
Examples:
  moorline principals search anna -o wide                  shows each subject
  moorline user link anna --provider corp --subject 6f9619ff-8b86-d011-b42d-00c04fc964ff
  moorline user link anna --provider corp --unlink")]
    Link(LinkArgs),
    /// Show or change a user's groups
    #[command(after_help = "\
Examples:
  moorline user groups anna
  moorline user groups anna --add ops --remove dev")]
    Groups(GroupsArgs),
}

/// Where a password comes from.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct PasswordArgs {
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Make a random password and print it
    #[arg(long)]
    generate_password: bool,
}

/// `moorline user create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// User name
    name: String,
    /// Name to show
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// A group of the user; can be repeated
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    password: PasswordArgs,
    /// No password: the user works with API keys alone
    #[arg(long, conflicts_with_all = ["password_stdin", "generate_password"])]
    no_password: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// One user.
#[derive(Debug, clap::Args)]
pub struct NameArgs {
    /// User name
    name: String,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user locked`
#[derive(Debug, clap::Args)]
pub struct LockedArgs {
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user unlock`
#[derive(Debug, clap::Args)]
pub struct UnlockArgs {
    /// User name, as it was typed
    #[arg(required_unless_present = "address")]
    name: Option<String>,
    /// An address from which nobody is let in any more
    #[arg(long, value_name = "ADDRESS", conflicts_with = "name")]
    address: Option<std::net::IpAddr>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user set-password`
#[derive(Debug, clap::Args)]
pub struct SetPasswordArgs {
    /// User name
    name: String,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user link`
#[derive(Debug, clap::Args)]
pub struct LinkArgs {
    /// User name
    name: String,
    /// The login provider
    #[arg(short, long, value_name = "NAME")]
    provider: String,
    /// The provider's own unchanging id of them, as principals search or a refused login shows it
    #[arg(long, value_name = "ID", required_unless_present = "unlink")]
    subject: Option<String>,
    /// Take the link away: they come in through this provider no more
    #[arg(long, conflicts_with = "subject")]
    unlink: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user groups`
#[derive(Debug, clap::Args)]
pub struct GroupsArgs {
    /// User name
    name: String,
    /// Put the user into this group; can be repeated
    #[arg(long, value_name = "GROUP")]
    add: Vec<String>,
    /// Take the user out of this group; can be repeated
    #[arg(long, value_name = "GROUP")]
    remove: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline user …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(list) => list.run(Resource::User).await,
        Command::Delete(args) => args.run(Resource::User, "deleted").await,
        Command::Disable(args) => disable(args, true).await,
        Command::Enable(args) => disable(args, false).await,
        Command::Locked(args) => locked(args).await,
        Command::Unlock(args) => unlock(args).await,
        Command::SetPassword(args) => {
            let client = args.hub.client()?;
            let (password, show) = password(&args.password, &args.name)?;
            set_password(&client, &args.name, &password, show).await
        }
        Command::Link(args) => link(args).await,
        Command::Groups(args) => groups(args).await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    // Asked for first: a user without the password that was wanted is worse than none.
    let password = if args.no_password { None } else { Some(password(&args.password, &args.name)?) };
    let mut spec = json!({ "groups": args.groups });
    if let Some(display) = args.display_name {
        spec["displayName"] = display.into();
    }
    client.create(Resource::User, &Resource::User.object(Some(&args.name), spec)).await?;
    text::say(&format!("user {} created.", args.name));
    if let Some((password, show)) = password {
        let set = set_password(&client, &args.name, &password, show).await;
        set.with_context(|| format!("{} has no password yet", args.name))?;
    }
    text::say(&format!("next: moorline grant create --user {} --cluster CLUSTER", args.name));
    Ok(())
}

/// The password, and whether to print it.
fn password(args: &PasswordArgs, user: &str) -> anyhow::Result<(String, bool)> {
    if args.generate_password {
        let mut bytes = [0; 18];
        let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gave no random bytes"))?;
        return Ok((URL_SAFE_NO_PAD.encode(bytes), true));
    }
    if args.password_stdin {
        return Ok((text::secret_from_stdin()?, false));
    }
    if !text::can_ask() {
        return Err(usage("no terminal to ask for a password", "use --password-stdin or --generate-password"));
    }
    let ask = |question: String| rpassword::prompt_password(question).context("cannot read the password");
    let first = ask(format!("New password of {user}: "))?;
    if first.is_empty() || first != ask("Again: ".into())? {
        return Err(usage("the two are empty or differ", "run it again"));
    }
    Ok((first, false))
}

async fn set_password(client: &Client, user: &str, password: &str, show: bool) -> anyhow::Result<()> {
    let path = format!("{}/password", Resource::User.path(user));
    client.call(Method::PUT, &path, Some(&json!({ "password": password }))).await?;
    if show {
        text::print(&format!("{password}\n"))?;
    }
    text::say(&format!("password of {user} set."));
    Ok(())
}

async fn disable(args: NameArgs, disabled: bool) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    client.merge(Resource::User, &args.name, &json!({ "spec": { "disabled": disabled } })).await?;
    text::say(&format!("user {} {}.", args.name, if disabled { "disabled" } else { "enabled" }));
    Ok(())
}

async fn locked(args: LockedArgs) -> anyhow::Result<()> {
    let answer = args.hub.client()?.get("/auth/lockouts").await?;
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&Value::from(items), form)?)?);
    }
    let word = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let row =
        |item: &Value| vec![word(item, "kind"), word(item, "name"), item["failures"].to_string(), word(item, "until")];
    let table = Table::of(&["Of", "Name", "Failures", "Until"], items.iter().map(row).collect());
    Ok(text::print(&Printer::new(false).render(table))?)
}

async fn unlock(args: UnlockArgs) -> anyhow::Result<()> {
    let (kind, name) = match (args.name, args.address) {
        (Some(name), _) => ("user", name),
        (None, Some(address)) => ("address", address.to_string()),
        (None, None) => return Err(usage("nobody is named", "moorline user unlock NAME, or --address ADDRESS")),
    };
    let answer =
        args.hub.client()?.call(Method::DELETE, &format!("/auth/lockouts/{kind}/{}", segment(&name)), None).await?;
    let was = if answer["wasCounted"] == true { "is let in again" } else { "was not locked out" };
    text::say(&format!("{kind} {} {was}.", text::clean(&name)));
    Ok(())
}

async fn link(args: LinkArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let user = client.get(&Resource::User.path(&args.name)).await?;
    let now = user.pointer("/spec/identities").and_then(Value::as_array).cloned().unwrap_or_default();
    let others = now.into_iter().filter(|identity| identity["provider"] != args.provider.as_str());
    let new = args.subject.map(|subject| json!({ "provider": args.provider, "subject": subject }));
    let identities: Vec<Value> = others.chain(new).collect();
    let version = user.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "identities": identities } });
    client.merge(Resource::User, &args.name, &patch).await?;
    let done = if args.unlink { "no longer linked" } else { "linked" };
    text::say(&format!("user {} {done} to {}.", args.name, args.provider));
    Ok(())
}

async fn groups(args: GroupsArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let user = client.get(&Resource::User.path(&args.name)).await?;
    let now = user.pointer("/spec/groups").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut groups: Vec<String> = now.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if !args.add.is_empty() || !args.remove.is_empty() {
        groups.retain(|group| !args.remove.contains(group));
        for group in &args.add {
            if !groups.contains(group) {
                groups.push(group.clone());
            }
        }
        // The revision makes a change by somebody else in between a conflict instead of a loss.
        let version = user.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "groups": groups } });
        client.merge(Resource::User, &args.name, &patch).await?;
        text::say(&format!("groups of {} changed.", args.name));
    }
    let lines: String = groups.iter().map(|group| text::clean(group) + "\n").collect();
    Ok(text::print(&lines)?)
}
