//! `moorline principals`: users and groups, wherever they are known.

use crate::{
    output::{Form, FormArgs, Printer, Table},
    target::HubArgs,
    text,
};
use serde_json::Value;

/// `moorline principals`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Find users and groups by a part of their name, at the hub and at every login provider
    ///
    /// A provider that cannot be searched, as OpenID Connect and GitHub, shows those who came in through it and their groups.
    #[command(after_help = "\
Examples:
  moorline principals search unix
  moorline principals search ann -o json

A provider's group stands as PROVIDER:NAME in moorline group and moorline grant.")]
    Search(SearchArgs),
}

/// `moorline principals search`
#[derive(Debug, clap::Args)]
pub struct SearchArgs {
    /// A part of the name
    text: String,
    /// How many of each kind from each provider
    #[arg(long, default_value_t = 20)]
    limit: u16,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline principals`
pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Search(args) = command;
    let query = crate::resource::segment(&args.text);
    let answer = args.hub.client()?.get(&format!("/auth/principals?q={query}&limit={}", args.limit)).await?;
    for away in answer.pointer("/unavailable").and_then(Value::as_array).into_iter().flatten() {
        text::say(&format!("provider {} does not answer", text::clean(away.as_str().unwrap_or("?"))));
    }
    match args.form.form {
        Some(Form::Json) => Ok(text::print(&format!("{answer:#}\n"))?),
        Some(Form::Yaml) => Ok(text::print(&crate::yaml::write(&answer)?)?),
        form => {
            let items = answer.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
            let get = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
            let row = |item: &Value| {
                let (provider, kind, name) = (get(item, "provider"), get(item, "kind"), get(item, "name"));
                let known_as = if kind == "group" && provider != "local" { format!("{provider}:{name}") } else { name };
                vec![known_as, kind, provider, get(item, "displayName"), get(item, "subject")]
            };
            let columns: &[&str] = match form {
                Some(Form::Wide) => &["Name", "Kind", "Provider", "Display-Name", "Subject"],
                _ => &["Name", "Kind", "Provider", "Display-Name"],
            };
            let rows = items.iter().map(|item| row(item).into_iter().take(columns.len()).collect()).collect();
            Ok(text::print(&Printer::new(true).render(Table::of(columns, rows)))?)
        }
    }
}
