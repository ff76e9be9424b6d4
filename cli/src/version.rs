//! `moorline version`.

use crate::{
    output::{DataArgs, data},
    target::HubArgs,
    text,
};
use serde_json::{Value, json};

/// This program's version.
pub const OWN: &str = env!("CARGO_PKG_VERSION");
/// Minor versions that client and hub may lie apart.
const SKEW: u64 = 2;

/// `moorline version`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this program's version: ask no hub
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline version`. Without a hub it tells its own version and why the other is missing, and succeeds.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut answer = json!({ "clientVersion": { "gitVersion": format!("v{OWN}") } });
    if !args.client {
        match hub_version(&args.hub).await {
            Ok(Some(hub)) => answer["hubVersion"] = hub,
            Ok(None) => {}
            Err(error) => text::say(&format!("no version of the hub: {}", text::clean(&format!("{error:#}")))),
        }
    }
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&answer, form)?)?);
    }
    let hub = answer.get("hubVersion").and_then(of_hub);
    let mut lines = format!("Client: v{OWN}\n");
    if let Some(hub) = &hub {
        lines.push_str(&format!("Hub:    {hub}\n"));
    }
    text::print(&lines)?;
    if let Some(warning) = hub.as_deref().and_then(|hub| skew(OWN, hub)) {
        text::say(&warning);
    }
    Ok(())
}

async fn hub_version(args: &HubArgs) -> anyhow::Result<Option<Value>> {
    // Not logged in: nothing to ask, and no failure.
    let Ok(hub) = args.known() else { return Ok(None) };
    let client = crate::client::Client::new(&hub, args.request_timeout)?;
    Ok(Some(client.get("/version").await?))
}

/// The hub's own version. In `gitVersion` it stands behind the Kubernetes version whose API conventions the hub keeps:
/// `v1.32.0+moorline.0.1.0`.
pub fn of_hub(answer: &Value) -> Option<String> {
    let text = answer.get("gitVersion")?.as_str()?;
    Some(text::clean(&text.split_once("+moorline.").map_or_else(|| text.to_owned(), |(_, own)| format!("v{own}"))))
}

/// A warning when client and hub are too far apart.
pub fn skew(client: &str, hub: &str) -> Option<String> {
    let parts = |version: &str| -> Option<(u64, u64)> {
        let mut numbers = version.trim_start_matches('v').split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    let ((a, b), (c, d)) = (parts(client)?, parts(hub)?);
    let far = a != c || SKEW < b.abs_diff(d);
    far.then(|| format!("warning: client {client} and hub {hub} are more than {SKEW} minor versions apart"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_own_version_stands_behind_the_plus() {
        assert_eq!(of_hub(&json!({ "gitVersion": "v1.32.0+moorline.0.1.0" })).as_deref(), Some("v0.1.0"));
        assert_eq!(of_hub(&json!({ "gitVersion": "v0.1.0" })).as_deref(), Some("v0.1.0"));
        assert_eq!(of_hub(&json!({})), None);
    }

    #[test]
    fn skew_is_told_beyond_two_minors() {
        assert_eq!(skew("0.1.0", "v0.3.9"), None);
        assert!(skew("0.1.0", "v0.4.0").is_some());
        assert!(skew("1.1.0", "v2.1.0").is_some());
        assert_eq!(skew("0.1.0", "unknown"), None);
    }
}
