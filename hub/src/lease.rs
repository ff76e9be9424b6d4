//! How long a caller's right lasts: until the token is revoked or expires, or the user is gone.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an open stream hangs on.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// The token's.
    pub token: Arc<Life>,
    /// Fires when the user is deleted or disabled, or loses a group.
    pub user: CancellationToken,
}

/// The life of a token: one for all that is opened with it.
#[derive(Debug)]
pub(crate) struct Life {
    /// Fires when the token is deleted.
    pub gone: CancellationToken,
    /// When the token ends by itself, as its object says now.
    pub expires: watch::Sender<SystemTime>,
}

impl Life {
    /// Of a token that ends then, as far as is known now.
    pub fn until(expires: SystemTime) -> Arc<Self> {
        Arc::new(Self { gone: CancellationToken::new(), expires: watch::Sender::new(expires) })
    }
}

/// A longer sleep than this means nothing: nobody holds a stream for a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Lease {
    /// When the token ends by itself.
    pub fn expires(&self) -> SystemTime {
        *self.token.expires.borrow()
    }

    /// Resolves when the right is gone.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let lease = self.clone();
        let mut expires = lease.token.expires.subscribe();
        async move {
            loop {
                let until = *expires.borrow_and_update();
                let left = until.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST);
                tokio::select! {
                    () = lease.token.gone.cancelled() => return,
                    () = lease.user.cancelled() => return,
                    () = tokio::time::sleep(left) => return,
                    Ok(()) = expires.changed() => {}
                }
            }
        }
    }
}
