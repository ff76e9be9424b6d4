//! `moorline kube credential`: what kubectl runs to get a token (client-go credential plugin).

use crate::{failure::advise, target::HubArgs, text};
use jiff::Timestamp;
use serde_json::json;

/// `moorline kube`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the login as an ExecCredential; kubectl calls this by itself
    Credential(CredentialArgs),
}

/// `moorline kube credential`
#[derive(Debug, clap::Args)]
pub struct CredentialArgs {
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline kube …`
pub fn run(command: Command) -> anyhow::Result<()> {
    let Command::Credential(args) = command;
    let hub = args.hub.known()?;
    let login = || format!("log in again: moorline login {}", hub.url);
    let Some(token) = &hub.token else {
        return Err(advise(format!("logged out of {}", hub.url), login()));
    };
    let expires: Option<Timestamp> = hub.expires.as_deref().and_then(|at| at.parse().ok());
    if expires.is_some_and(|at| at <= Timestamp::now()) {
        return Err(advise(format!("the login to {} has expired", hub.url), login()));
    }
    // kubectl caches the token until then, within one run.
    let mut status = json!({ "token": token.reveal() });
    if let Some(at) = expires {
        status["expirationTimestamp"] = at.to_string().into();
    }
    let credential =
        json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status });
    Ok(text::print(&format!("{credential}\n"))?)
}
