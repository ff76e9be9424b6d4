//! `moorline delete`.

use crate::{
    failure::{advise, usage},
    resource::Resource,
    target::HubArgs,
    text,
};
use http::Method;

/// `moorline delete`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  moorline delete cluster edge1 --yes")]
pub struct Args {
    /// The kind of object
    #[arg(value_enum)]
    resource: Resource,
    /// Its name; can be several
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline delete`
pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    let what = format!("{} {}", args.resource.singular(), args.names.join(", "));
    if !args.yes {
        if !text::can_ask() {
            return Err(usage(format!("nobody to ask about deleting {what}"), "say so beforehand: --yes"));
        }
        let answer = text::ask(&format!("Delete {what}? What hangs on it goes too (yes/no): "))?;
        if answer.as_deref() != Some("yes") {
            return Err(advise("nothing was deleted", "answer yes, or use --yes"));
        }
    }
    for name in &args.names {
        client.call(Method::DELETE, &args.resource.path(name), None).await?;
        text::say(&format!("{} {name} deleted.", args.resource.singular()));
    }
    Ok(())
}
