//! `moorline delete`.

use crate::{
    client::Client,
    failure::{advise, usage},
    resource::Resource,
    target::HubArgs,
    text,
};
use http::Method;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often it is looked whether an object is gone.
const LOOK: Duration = Duration::from_millis(100);
/// How long that is waited for: longer than any removal of a cluster waits at the hub, by default.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Waits until an object is gone that was marked as going. The answer: what is said to be left behind.
async fn wait(client: &Client, path: &str, marked: &Value) -> anyhow::Result<Option<String>> {
    let (until, mut left) = (Instant::now() + PATIENCE, None);
    loop {
        let now = match client.get(path).await {
            Ok(now) if now["metadata"]["uid"] == marked["metadata"]["uid"] => now,
            Ok(_) => return Ok(left),
            Err(error) if error.is_not_found() => return Ok(left),
            Err(error) => return Err(error.into()),
        };
        let conditions = now.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let mut conditions = conditions.into_iter();
        let said = conditions.rfind(|c| c["type"] == "CleanedUp" && c["status"] == "False");
        let words = said.and_then(|c| c["message"].as_str()).map(str::to_owned);
        left = words.clone().filter(|_| said.is_some_and(|c| c["reason"] == "LeftBehind"));
        if until < Instant::now() {
            let why = words.unwrap_or_else(|| "finalizers hold it".to_owned());
            return Err(advise(format!("it is still going: {why}"), "look at its conditions and finalizers"));
        }
        sleep(LOOK).await;
    }
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
        let answer = client.call(Method::DELETE, &args.resource.path(name), None).await?;
        let left = if answer["metadata"]["deletionTimestamp"].is_string() {
            wait(&client, &args.resource.path(name), &answer).await?
        } else {
            None
        };
        text::say(&format!("{} {name} deleted.", args.resource.singular()));
        if let Some(left) = left {
            text::say(&format!("Left behind there: {left}"));
        }
    }
    Ok(())
}
