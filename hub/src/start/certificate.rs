//! The certificate that the hub shows: made at its start, and anew in time.

use crate::{config::Config, given::Given, listener::TlsPair, pki::Authority};
use arc_swap::ArcSwap;
use moorline_link::{QuicListener, tls};
use moorline_proto::id::{Role, SpiffeId};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// How soon a certificate is tried again that could not be made.
const RETRY: Duration = Duration::from_secs(60);

/// One for the names of `config`, and what it is made of for each listener.
pub(super) fn issue(authority: &Authority, config: &Config, given: Option<Arc<Given>>) -> Result<TlsPair, String> {
    let id = SpiffeId { trust_domain: config.trust_domain.clone(), role: Role::Hub(config.hub_name.clone()) };
    let mut names = config.names.clone();
    if let Some(host) = config.public_host()
        && !names.contains(&host)
    {
        names.push(host);
    }
    names.extend(config.services_domain.iter().map(|domain| format!("*.{domain}")));
    let (identity, expires) =
        authority.issue_hub(&id, &names, config.hub_certificate_life).map_err(|e| e.to_string())?;
    debug_assert!(identity.chain.first().is_some_and(|leaf| tls::peer_id(leaf).is_ok()));
    TlsPair::new(&identity, authority, expires, given)
}

/// Makes the hub's certificate anew at two thirds of its life, and when the authority changes.
pub(super) async fn renew(
    authority: Arc<Authority>,
    (config, given): (Config, Option<Arc<Given>>),
    pair: Arc<ArcSwap<TlsPair>>,
    quic: Arc<QuicListener>,
    stop: CancellationToken,
) {
    let mut changes = authority.changes();
    loop {
        let life = authority.hub_life(config.hub_certificate_life);
        let left = pair.load().expires.duration_since(SystemTime::now()).unwrap_or_default();
        // Not in a tight loop where none can be made.
        let retry = RETRY.min(life / 10);
        let wait = if authority.is_heard() { left.saturating_sub(life / 3).max(retry) } else { retry };
        let due = async {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Its sender is the authority that is held here.
                _ = changes.changed() => {}
            }
        };
        if stop.run_until_cancelled(due).await.is_none() {
            return;
        }
        changes.mark_unchanged();
        let change = authority.change();
        match issue(&authority, &config, given.clone()) {
            Ok(new) => {
                let quic = quic.set_server_config(Arc::clone(&new.tunnel));
                pair.store(Arc::new(new));
                match quic {
                    Ok(()) => authority.listens(change),
                    Err(error) => tracing::error!("QUIC keeps the old certificate: {error}"),
                }
                tracing::info!("the hub's certificate was renewed");
            }
            Err(error) => tracing::error!("the hub's certificate was not renewed: {error}"),
        }
    }
}
