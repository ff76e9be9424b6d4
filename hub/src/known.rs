//! Whether anybody on a connection has proved who they are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Goes with each request of a connection, as an extension.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<AtomicBool>);

impl Known {
    /// Somebody did.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Resolves after `life` if nobody has; never, if somebody has by then.
    pub async fn stranger_for(&self, life: Duration) {
        tokio::time::sleep(life).await;
        if self.0.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn only_strangers_are_seen_off() {
        let life = Duration::from_secs(30);
        let (stranger, known) = (Known::default(), Known::default());
        known.clone().note();
        let mut stays = Box::pin(known.stranger_for(life));
        let before = tokio::time::Instant::now();
        tokio::select! {
            () = stranger.stranger_for(life) => {}
            () = &mut stays => unreachable!("somebody is known here"),
        }
        assert_eq!(before.elapsed(), life);
        tokio::time::advance(life).await;
        assert!(stays.now_or_never().is_none());
    }
}
