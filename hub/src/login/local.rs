//! Users whose password this hub keeps, as one provider among others.

use super::{LOCAL, PASSWORD};
use crate::{config::Limits, kinds::UserSpec, records::Records};
use futures_util::{FutureExt, future::BoxFuture};
use moorline_authz::password;
use moorline_logins::{LoginError, LoginProvider, Principal, Proof, Secret, Way};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// Hashing: some at a time, some waiting, nobody for long. Each takes memory and a core, and yields to everything else.
pub(crate) struct Hashing {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Limits,
}

struct Waiting<'a>(&'a AtomicUsize);
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hashing {
    pub fn new(limits: Limits) -> Self {
        Self { slots: Arc::new(Semaphore::new(limits.password_checks)), waiting: AtomicUsize::new(0), limits }
    }

    /// Nobody else is let in to wait.
    pub fn is_full(&self) -> bool {
        self.limits.password_queue <= self.waiting.load(Ordering::Relaxed)
    }

    /// `None`: too many wait, or it took too long to begin.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.password_queue {
            return None;
        }
        let slot = timeout(self.limits.password_wait, Arc::clone(&self.slots).acquire_owned()).await;
        let Ok(Ok(slot)) = slot else { return None };
        let (done, result) = oneshot::channel();
        // A thread of its own: its priority cannot be raised again. It keeps the slot even if nobody waits any more.
        let thread = std::thread::Builder::new().name("password".to_owned()).spawn(move || {
            yield_to_others();
            let _ = done.send(work());
            drop(slot);
        });
        thread.ok()?;
        result.await.ok()
    }
}

/// Lowers the priority of the calling thread: a flood of wrong passwords takes what the tunnels leave.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE); // where it is refused, as it was
}
/// See `setpriority(2)`: from there on a hash gets about a tenth of what others get.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Longest name of an object (RFC 1123), and so of a user, in bytes.
pub(super) const NAME: usize = 253;

pub(crate) struct Local {
    pub records: Records,
    pub hashing: Arc<Hashing>,
}

impl Local {
    async fn check(&self, name: &str, secret: &Secret) -> Result<Proof, LoginError> {
        if *PASSWORD.end() < secret.reveal().len() || name.is_empty() || NAME < name.len() {
            return Err(LoginError::Wrong { why: "an empty or overlong user name or password".to_owned() });
        }
        let away = |e: crate::records::RecordError| LoginError::Unavailable { why: format!("the store: {e}") };
        let sound = moorline_apiserver::dns_subdomain(name).is_ok();
        let user = if sound { self.records.get::<UserSpec>(name).map_err(away)? } else { None };
        let hash = user.as_ref().and_then(|user| self.records.password(&user.metadata.name));
        let known = hash.is_some();
        let secret = secret.clone();
        // For somebody who is not known it takes as long. The first decoy is a hash, too: none is made on the runtime.
        let verify = move || password::verify(secret.reveal(), hash.as_deref().unwrap_or_else(|| password::decoy()));
        let right = self.hashing.run(verify).await.ok_or(LoginError::Busy)?;
        let user = user.filter(|_| known && right);
        let user = user.ok_or_else(|| LoginError::Wrong { why: "no such user, no password, or another".to_owned() })?;
        Ok(Proof {
            subject: user.metadata.uid,
            username: user.metadata.name,
            display_name: user.spec.display_name,
            groups: Vec::new(),
            renewal: None,
        })
    }

    fn look_for(&self, text: &str, most: usize) -> Result<Vec<Principal>, LoginError> {
        let away = |e: crate::records::RecordError| LoginError::Unavailable { why: format!("the store: {e}") };
        let text = text.to_lowercase();
        let fits = |name: &str, shown: Option<&str>| {
            name.to_lowercase().contains(&text) || shown.is_some_and(|shown| shown.to_lowercase().contains(&text))
        };
        let users = self.records.list::<UserSpec>().map_err(away)?.into_iter().filter_map(|user| {
            let shown = user.spec.display_name;
            fits(&user.metadata.name, shown.as_deref()).then_some(Principal {
                kind: "user",
                name: user.metadata.name,
                display_name: shown,
                subject: None,
            })
        });
        let groups = self.records.list::<crate::kinds::GroupSpec>().map_err(away)?.into_iter().filter_map(|group| {
            let shown = group.spec.display_name;
            fits(&group.metadata.name, shown.as_deref()).then_some(Principal {
                kind: "group",
                name: group.metadata.name,
                display_name: shown,
                subject: None,
            })
        });
        Ok(users.take(most).chain(groups.take(most)).collect())
    }
}

impl LoginProvider for Local {
    fn name(&self) -> &str {
        LOCAL
    }
    fn kind(&self) -> &'static str {
        LOCAL
    }
    fn ways(&self) -> &'static [Way] {
        &[Way::Password]
    }
    fn password<'a>(&'a self, user: &'a str, password: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
        self.check(user, password).boxed()
    }
    fn search<'a>(&'a self, text: &'a str, most: usize) -> BoxFuture<'a, Result<Vec<Principal>, LoginError>> {
        std::future::ready(self.look_for(text, most)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn s56_who_hangs_up_gets_no_further_hash_for_free() {
        let limits = Limits { password_checks: 1, password_queue: 1, ..Limits::default() };
        let hashing = Arc::new(Hashing::new(limits));
        let (begun, has_begun) = oneshot::channel();
        let (end, ends) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let hashing = Arc::clone(&hashing);
            async move {
                let work = move || {
                    let _ = begun.send(());
                    let _ = ends.recv();
                };
                hashing.run(work).await
            }
        });
        has_begun.await.unwrap();
        assert!(hashing.is_full() && hashing.run(|| 8).await.is_none());
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(hashing.slots.available_permits(), 0, "the hash is still at work");
        assert!(!hashing.is_full(), "and nobody waits for it");
        end.send(()).unwrap();
        assert_eq!(hashing.run(|| 7).await, Some(7));
    }
}
