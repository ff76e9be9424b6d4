//! What a session is told when the hub's authority changes.

use super::{Entry, Sessions};
use crate::{authority, join::Renewed};
use moorline_proto::{code::CloseCode, control::Control};
use std::sync::{Arc, PoisonError};
use tokio::time::{Instant, sleep_until};

impl Sessions {
    /// Offers a new certificate to an agent that is behind, and ends a session whose authority is believed no more. Never
    /// ends by itself.
    ///
    /// # Cancel safety
    /// An offer may be lost with it.
    pub(super) async fn follow_authority(&self, entry: &Arc<Entry>) {
        let ca = &self.joiner.authority;
        let mut changes = ca.changes();
        changes.mark_changed();
        let mut at = None;
        loop {
            let due = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Its sender lives as long as the hub.
                _ = changes.changed() => {
                    if ca.pin_of(&entry.origin).is_none() && !self.came_again(entry) {
                        entry.session.close(
                            CloseCode::CredentialGone,
                            "the authority of this agent's certificate was replaced and is believed no more: join again with a new token",
                        );
                    }
                    let behind = ca.is_behind(&entry.origin) && !entry.session.is_draining();
                    let pause = authority::offer_in(self.registry.size(), rand::random());
                    at = behind.then(|| Instant::now() + pause);
                }
                () = due => {
                    at = None;
                    if !entry.session.is_draining() {
                        self.offer(entry).await;
                        at = Some(Instant::now() + authority::again_in(rand::random()));
                    }
                }
            }
        }
    }

    /// Whether the same run of the agent has a session by a certificate that is believed: what is open on this one is its own.
    fn came_again(&self, entry: &Arc<Entry>) -> bool {
        let ca = &self.joiner.authority;
        let all = self.registry.of_agent(&entry.cluster, &entry.agent);
        all.iter().any(|other| other.instance == entry.instance && ca.pin_of(&other.origin).is_some())
    }

    async fn offer(&self, entry: &Arc<Entry>) {
        let holds = entry.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let offered = self.joiner.offer(&entry.agent, entry.session.peer(), &holds, &entry.origin.key).await;
        let result = match offered {
            Ok(Renewed { chain, bundle, .. }) => {
                // This session goes on until the certificate ends that it began with: whether the agent could keep the new
                // one shows when it comes with it.
                match entry.session.send(Control::Renewed { chain, bundle }).await {
                    Ok(()) => "offered",
                    Err(_) => "lost",
                }
            }
            Err(why) => {
                tracing::warn!(
                    cluster = entry.cluster,
                    agent = entry.agent,
                    "no certificate of the hub's new authority: {why}"
                );
                "refused"
            }
        };
        self.metrics.authority_offers.with_label_values(&[result]).inc();
    }
}
