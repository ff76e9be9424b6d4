//! `moorline kube credential`: what kubectl runs to get a token (client-go credential plugin).

use crate::{failure::advise, session, target::HubArgs, text};
use jiff::Timestamp;
use moorline_proto::id::ClusterId;
use serde_json::json;

/// `moorline kube`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a token as an ExecCredential; kubectl calls this by itself
    Credential(CredentialArgs),
}

/// `moorline kube credential`
#[derive(Debug, clap::Args)]
pub struct CredentialArgs {
    /// For this cluster's own endpoint, and for nothing else
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterId>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline kube …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Credential(args) = command;
    let hub = args.hub.known()?;
    let login = || format!("log in again: moorline login {}", hub.url);
    let (token, expires) = match (&args.cluster, &hub.token) {
        (_, None) => return Err(advise(format!("logged out of {}", hub.url), login())),
        (Some(cluster), _) => {
            let token = session::for_cluster(&hub, cluster.as_str()).await?;
            (token.token, Some(token.expires))
        }
        (None, _) => {
            let due = session::is_due(&hub);
            let hub = session::fresh(&hub).await?;
            if due {
                session::along(&hub).await;
            }
            let expires = hub.expires.as_deref().and_then(|at| at.parse().ok());
            (hub.token.unwrap_or_default(), expires)
        }
    };
    if expires.is_some_and(|at: Timestamp| at <= Timestamp::now()) {
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
