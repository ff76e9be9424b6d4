//! The bundle in use, and what hangs on it.

use crate::{
    limits,
    metrics::Metrics,
    now,
    shelf::{Shelf, ShelfError},
};
use moorline_authz::{
    access::Permit,
    access_token::TokenError,
    bundle::{Known, Refused, Standing},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;

/// Answers by the newest bundle. Clones share.
#[derive(Debug, Clone)]
pub struct Live {
    standing: watch::Sender<Option<Arc<Standing>>>,
    shelf: Shelf,
    /// Users whom the cluster's owner lets in also with a bundle whose time is over.
    glass: Arc<[String]>,
    metrics: Metrics,
    /// When it was last told that a clock is wrong.
    told: Arc<Mutex<Option<Instant>>>,
}

impl Live {
    /// Reads what is on the shelf. No bundle yet is no error: nobody gets in then.
    ///
    /// # Errors
    /// What is there cannot be used: an endpoint does not start on half a truth.
    pub fn open(shelf: Shelf, glass: Vec<String>, metrics: Metrics) -> Result<Self, ShelfError> {
        let live =
            Self { standing: watch::Sender::new(None), shelf, glass: glass.into(), metrics, told: Arc::default() };
        if let Some(bundle) = live.shelf.read(None)? {
            live.use_it(Standing::new(bundle));
        }
        Ok(live)
    }

    fn use_it(&self, standing: Standing) {
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        self.metrics.serial.set(signed(standing.serial()));
        self.metrics.issued.set(signed(standing.issued()));
        self.metrics.expires.set(signed(standing.expires()));
        self.metrics.bundles.with_label_values(&["ok"]).inc();
        tracing::info!(serial = standing.serial(), "a bundle is in use");
        self.standing.send_replace(Some(Arc::new(standing)));
        self.measure();
    }

    /// Shows how old the bundle in use is, and how long it lasts.
    fn measure(&self) {
        let Some(standing) = self.standing() else { return };
        let since = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let now = since(now());
        self.metrics.age.set(now.saturating_sub(since(standing.issued())));
        self.metrics.left.set(since(standing.expires()).saturating_sub(now));
    }

    /// The bundle in use.
    pub fn standing(&self) -> Option<Arc<Standing>> {
        self.standing.borrow().clone()
    }

    /// Whether somebody can get in: there is a bundle, and its time is not over.
    pub fn is_current(&self) -> bool {
        self.standing().is_some_and(|standing| now() < standing.expires())
    }

    /// Follows the shelf for ever. What is refused there is told and counted, and the last good bundle stays in use.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn follow(&self) {
        let mut seen: Option<(SystemTime, u64)> = None;
        loop {
            tokio::time::sleep(limits::LOOK).await;
            self.measure();
            let stamp = std::fs::metadata(self.shelf.file()).and_then(|found| Ok((found.modified()?, found.len())));
            let Ok(stamp) = stamp else { continue };
            if seen == Some(stamp) {
                continue;
            }
            seen = Some(stamp);
            let have = self.standing().map(|standing| standing.serial());
            let shelf = self.shelf.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || shelf.read(have)).await else { continue };
            match read {
                Ok(Some(bundle)) if Some(bundle.serial) != have => self.use_it(Standing::new(bundle)),
                Ok(_) => {}
                Err(error) => {
                    self.metrics.bundles.with_label_values(&[error.label()]).inc();
                    tracing::error!("a bundle is refused, the one before stays in use: {error}");
                }
            }
        }
    }

    /// Who presents this token, by the bundle in use.
    ///
    /// # Errors
    /// Why nobody gets in with it. It has been counted.
    pub fn who(&self, token: &str) -> Result<(Known, Arc<Standing>), Refused> {
        let standing = self.standing().ok_or(Refused::Stale);
        let known = standing.and_then(|standing| Ok((standing.who(token, now(), &self.glass)?, standing)));
        let label = known.as_ref().map_or_else(Refused::label, |_| "ok");
        self.metrics.callers.with_label_values(&[label]).inc();
        known.inspect_err(|refused| {
            if matches!(refused, Refused::Token(TokenError::NotYet { .. })) && self.tells_again() {
                tracing::warn!(
                    "this host's clock and the hub's differ, set both by NTP: a token of the hub's is {refused}"
                );
            }
            tracing::debug!("a caller was refused: {refused}");
        })
    }

    /// Whether a line about clocks is due: there is one token per request, and one line says it all.
    fn tells_again(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|at| limits::TELL <= at.elapsed());
        if due {
            *told = Some(Instant::now());
        }
        due
    }

    /// Resolves when what was opened with `permit` has to end: the right to it is gone, or its time is over.
    pub fn ended(&self, known: Known, permit: Permit) -> impl Future<Output = ()> + Send + 'static {
        let (mut news, glass) = (self.standing.subscribe(), Arc::clone(&self.glass));
        async move {
            loop {
                let standing = news.borrow_and_update().clone();
                let Some(standing) = standing else { return };
                let kept = standing.still(&known, now(), &glass).is_ok()
                    && standing.permit(&known, permit.act_as().cloned()).is_ok_and(|again| {
                        permit.principal().groups.iter().all(|group| again.principal().groups.contains(group))
                    });
                if !kept {
                    return;
                }
                let over = if glass.contains(&known.identity.user) { u64::MAX } else { standing.expires() };
                let left = Duration::from_secs(known.ends.min(over).saturating_sub(now()).clamp(1, 24 * 3600));
                tokio::select! {
                    news = news.changed() => if news.is_err() { return },
                    () = tokio::time::sleep(left) => {}
                }
            }
        }
    }
}
