//! How long a caller's right lasts: until the token is revoked or expires, or the user is gone.

use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// What an open stream hangs on.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// Fires when the token is deleted.
    pub token: CancellationToken,
    /// Fires when the user is deleted or disabled, or loses a group.
    pub user: CancellationToken,
    /// When the token ends by itself.
    pub expires: SystemTime,
}

/// A longer sleep than this means nothing: nobody holds a stream for a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Lease {
    /// Resolves when the right is gone.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let lease = self.clone();
        let left = self.expires.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST);
        async move {
            tokio::select! {
                () = lease.token.cancelled() => {}
                () = lease.user.cancelled() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}
