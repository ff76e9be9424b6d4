//! `moorline kube credential`: what kubectl runs to get a token (client-go credential plugin).

use crate::{failure::advise, relay, session, target::HubArgs, text};
use jiff::Timestamp;
use moorline_proto::id::ClusterId;
use serde_json::json;

/// `moorline kube`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a token as an ExecCredential; kubectl calls this by itself
    Credential(CredentialArgs),
    /// Take kubectl to clusters on the way that works; kubectl starts it by itself
    #[command(after_help = "\
It serves the contexts of `moorline kubeconfig --auto` at a port of this machine's loopback, for this user
alone, and ends when nobody needs it. Run it yourself where processes do not outlive what started them.")]
    Relay(relay::RelayArgs),
}

/// `moorline kube credential`
#[derive(Debug, clap::Args)]
pub struct CredentialArgs {
    /// For this cluster's own endpoint, and for nothing else
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterId>,
    /// For the relay of `kubeconfig --auto`, which is started where it does not run
    #[arg(long, conflicts_with = "cluster")]
    auto: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline kube …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    let args = match command {
        Command::Credential(args) => args,
        Command::Relay(args) => return relay::run(args).await,
    };
    let hub = args.hub.known()?;
    let login = || format!("log in again: moorline login {}", hub.url);
    let (token, expires) = match (&args.cluster, &hub.token) {
        (_, None) => return Err(advise(format!("logged out of {}", hub.url), login())),
        // Asked for again before a relay that nobody uses ends.
        (None, Some(_)) if args.auto => (relay::ready().await?, Timestamp::now().checked_add(relay::AGAIN).ok()),
        (Some(cluster), _) => {
            let token = session::for_cluster(&hub, cluster.as_str()).await?;
            (token.token, Some(token.expires))
        }
        (None, _) => {
            let hub = session::fresh(&hub).await?;
            // Looked at each time: whoever works through the hub now may need the other way in a moment, for an hour.
            session::along(&hub).await;
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
