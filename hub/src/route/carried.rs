//! What carries a stream: whether it lives, and whether somebody else could take its place.

use crate::sessions::{Entry, Registry};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

/// The session under a stream.
pub(crate) struct Carried {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
    doubted: Option<BoxFuture<'static, ()>>,
    alive: Option<BoxFuture<'static, bool>>,
}

impl Carried {
    pub fn by(registry: Arc<Registry>, entry: Arc<Entry>) -> Self {
        Self { registry, entry, doubted: None, alive: None }
    }

    /// Ready once the session is in doubt while somebody else could take the stream.
    pub fn poll_elsewhere(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (registry, entry) = (&self.registry, &self.entry);
        let doubted = || doubted(Arc::clone(registry), Arc::clone(entry)).boxed();
        self.doubted.get_or_insert_with(doubted).poll_unpin(cx)
    }

    /// Whether the session lives: asked now, where somebody else could take the stream.
    pub fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.alive.is_none() && !self.registry.has_other(&self.entry) {
            return Poll::Ready(true);
        }
        let (registry, entry) = (&self.registry, &self.entry);
        let alive = || alive(Arc::clone(registry), Arc::clone(entry)).boxed();
        self.alive.get_or_insert_with(alive).poll_unpin(cx)
    }
}

async fn doubted(registry: Arc<Registry>, entry: Arc<Entry>) {
    let (mut doubt, mut company) = (entry.doubt.subscribe(), entry.company.subscribe());
    loop {
        let _ = doubt.wait_for(|doubt| *doubt).await; // the sender is the entry's own
        company.mark_unchanged(); // before the look: whoever comes after it is heard
        if registry.has_other(&entry) {
            return;
        }
        tokio::select! {
            _ = doubt.changed() => {}
            _ = company.changed() => {}
        }
    }
}

async fn alive(registry: Arc<Registry>, entry: Arc<Entry>) -> bool {
    let asked = Instant::now();
    let pulse = async {
        let mut newest = entry.pulse.lock().await;
        // Many wait for one answer: who came before the question was asked needs no other.
        if newest.is_none_or(|at| at < asked) {
            let sent = Instant::now();
            if entry.session.ping().await.is_err() {
                return false;
            }
            *newest = Some(sent);
        }
        !entry.session.is_peer_draining() || !registry.has_other(&entry)
    };
    tokio::select! {
        alive = pulse => alive,
        () = doubted(Arc::clone(&registry), Arc::clone(&entry)) => false,
    }
}
