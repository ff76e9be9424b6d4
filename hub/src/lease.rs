//! How long a caller's right lasts: until the token is revoked or expires, or the user is gone.

use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What an open stream hangs on.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// Fires when the token is deleted.
    pub token: CancellationToken,
    /// Fires when the user is deleted or disabled, or loses a group.
    pub user: CancellationToken,
    /// When the token ends by itself, as its object says now.
    pub expires: watch::Receiver<SystemTime>,
}

/// A longer sleep than this means nothing: nobody holds a stream for a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Lease {
    /// When the token ends by itself.
    pub fn expires(&self) -> SystemTime {
        *self.expires.borrow()
    }

    /// Resolves when the right is gone.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lease = self.clone();
        async move {
            loop {
                let until = *lease.expires.borrow_and_update();
                let left = until.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST);
                tokio::select! {
                    () = lease.token.cancelled() => return,
                    () = lease.user.cancelled() => return,
                    () = tokio::time::sleep(left) => return,
                    Ok(()) = lease.expires.changed() => {}
                }
            }
        }
    }
}
