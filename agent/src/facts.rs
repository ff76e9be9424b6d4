//! What the hub shows about a cluster and its agent.

use crate::{limits, upstream::ApiServer};
use http::Request;
use moorline_proxy::body;
use serde::Deserialize;
use tokio::sync::watch;

/// Facts, key to value.
pub type Facts = Vec<(String, String)>;

/// Looks now.
///
/// `told` is the trouble with the API server that the log already has; none is written twice in a row.
pub async fn look(upstream: &ApiServer, told: &mut Option<String>) -> Facts {
    let mut facts = vec![
        ("os".to_owned(), std::env::consts::OS.to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("agentVersion".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    match kubernetes(upstream).await {
        Ok(version) => {
            facts.push(("kubernetesVersion".to_owned(), version));
            *told = None;
        }
        Err(cause) if told.as_ref() != Some(&cause) => {
            tracing::warn!(%cause, "the cluster's API server does not answer as it should; trying again");
            *told = Some(cause);
        }
        Err(_) => {}
    }
    facts
}

/// The cluster's version; or, in words, why it is not known.
async fn kubernetes(upstream: &ApiServer) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        git_version: String,
    }
    let request = Request::get("/version").body(body::empty()).map_err(|e| e.to_string())?;
    let (status, answer) = upstream.own(request).await.map_err(|e| e.to_string())?;
    if !status.is_success() {
        return Err(format!("the API server answers {status} to /version; does it take the agent's credential?"));
    }
    let version: Version = serde_json::from_slice(&answer).map_err(|e| format!("/version: {e}"))?;
    Ok(version.git_version.chars().filter(|c| !c.is_control()).take(64).collect())
}

/// Looks again and again, and tells what changed. Never ends.
///
/// # Cancel safety
/// Safe.
pub async fn watch(upstream: &ApiServer, facts: &watch::Sender<Facts>, mut told: Option<String>) {
    loop {
        let now = look(upstream, &mut told).await;
        // An API server that is down has not lost its version.
        let known = now.iter().any(|(key, _)| key == "kubernetesVersion");
        facts.send_if_modified(|old| {
            let changed = *old != now && (known || old.is_empty());
            if changed {
                old.clone_from(&now);
            }
            changed
        });
        tokio::time::sleep(if known { limits::FACTS } else { limits::UPSTREAM_IDLE }).await;
    }
}
