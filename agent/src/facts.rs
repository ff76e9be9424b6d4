//! What the hub shows about a cluster and its agent.

use crate::{limits, upstream::ApiServer};
use http::Request;
use moorline_proxy::body;
use serde::Deserialize;
use tokio::sync::watch;

/// Facts, key to value.
pub type Facts = Vec<(String, String)>;

/// Looks now.
pub async fn look(upstream: &ApiServer) -> Facts {
    let mut facts = vec![
        ("os".to_owned(), std::env::consts::OS.to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("agentVersion".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    if let Some(version) = kubernetes(upstream).await {
        facts.push(("kubernetesVersion".to_owned(), version));
    }
    facts
}

async fn kubernetes(upstream: &ApiServer) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        git_version: String,
    }
    let (status, answer) = upstream.own(Request::get("/version").body(body::empty()).ok()?).await.ok()?;
    let version: Version = serde_json::from_slice(&answer).ok().filter(|_| status.is_success())?;
    Some(version.git_version.chars().filter(|c| !c.is_control()).take(64).collect())
}

/// Looks again and again, and tells what changed. Never ends.
///
/// # Cancel safety
/// Safe.
pub async fn watch(upstream: &ApiServer, facts: &watch::Sender<Facts>) {
    loop {
        let now = look(upstream).await;
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
