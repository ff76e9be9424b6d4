//! Login providers that plugins bring: asked on their plugin's own threads, with a bound, and ready for a panic.

use crate::limits;
use futures_util::future::BoxFuture;
use moorline_logins::{
    DevicePoll, DeviceStart, LoginError, LoginProvider, Principal, Proof, Round, Secret, Still, Way,
};
use std::{future::Future, sync::Arc};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// One provider, behind its plugin's threads.
pub(crate) struct Guarded {
    name: String,
    kind: &'static str,
    ways: &'static [Way],
    inner: Arc<dyn LoginProvider>,
    handle: Handle,
    slots: Arc<Semaphore>,
}

impl Guarded {
    /// What does not change is asked now, once.
    pub(crate) fn new(inner: Arc<dyn LoginProvider>, handle: Handle) -> Self {
        let slots = Arc::new(Semaphore::new(limits::LOGINS));
        Self { name: inner.name().to_owned(), kind: inner.kind(), ways: inner.ways(), inner, handle, slots }
    }

    /// Whatever goes wrong there, nobody is let in by it.
    fn ask<T, F>(
        &self,
        ask: impl FnOnce(Arc<dyn LoginProvider>) -> F + Send + 'static,
    ) -> BoxFuture<'static, Result<T, LoginError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LoginError>> + Send + 'static,
    {
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        let (inner, handle) = (Arc::clone(&self.inner), self.handle.clone());
        Box::pin(async move {
            let Ok(_slot) = slot else { return Err(LoginError::Busy) };
            let away = |why: &str| Err(LoginError::Unavailable { why: why.to_owned() });
            let task = AbortOnDropHandle::new(handle.spawn(async move { ask(inner).await }));
            match timeout(limits::LOGIN, task).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => away("the plugin failed"),
                Err(_) => away("the plugin does not answer"),
            }
        })
    }
}

impl LoginProvider for Guarded {
    fn name(&self) -> &str {
        &self.name
    }
    fn kind(&self) -> &'static str {
        self.kind
    }
    fn ways(&self) -> &'static [Way] {
        self.ways
    }
    fn password<'a>(&'a self, user: &'a str, password: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
        let (user, password) = (user.to_owned(), password.clone());
        self.ask(move |provider| async move { provider.password(&user, &password).await })
    }
    fn browser<'a>(&'a self, round: &'a Round) -> BoxFuture<'a, Result<String, LoginError>> {
        let round = round.clone();
        self.ask(move |provider| async move { provider.browser(&round).await })
    }
    fn returned<'a>(&'a self, round: &'a Round, code: &'a str) -> BoxFuture<'a, Result<Proof, LoginError>> {
        let (round, code) = (round.clone(), code.to_owned());
        self.ask(move |provider| async move { provider.returned(&round, &code).await })
    }
    fn device(&self) -> BoxFuture<'_, Result<DeviceStart, LoginError>> {
        self.ask(|provider| async move { provider.device().await })
    }
    fn poll<'a>(&'a self, device_code: &'a Secret) -> BoxFuture<'a, Result<DevicePoll, LoginError>> {
        let code = device_code.clone();
        self.ask(move |provider| async move { provider.poll(&code).await })
    }
    fn still<'a>(&'a self, subject: &'a str, renewal: Option<&'a Secret>) -> BoxFuture<'a, Result<Still, LoginError>> {
        let (subject, renewal) = (subject.to_owned(), renewal.cloned());
        self.ask(move |provider| async move { provider.still(&subject, renewal.as_ref()).await })
    }
    fn search<'a>(&'a self, text: &'a str, most: usize) -> BoxFuture<'a, Result<Vec<Principal>, LoginError>> {
        let text = text.to_owned();
        self.ask(move |provider| async move { provider.search(&text, most).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    struct Odd;
    impl LoginProvider for Odd {
        fn name(&self) -> &str {
            "odd"
        }
        fn kind(&self) -> &'static str {
            "odd"
        }
        fn ways(&self) -> &'static [Way] {
            &[Way::Password]
        }
        fn password<'a>(&'a self, user: &'a str, _: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
            async move {
                match user {
                    "panic" => panic!("as a defect would"),
                    "never" => std::future::pending().await,
                    _ => Err(LoginError::Wrong { why: std::thread::current().name().unwrap_or_default().to_owned() }),
                }
            }
            .boxed()
        }
    }

    #[test]
    fn f42_what_goes_wrong_in_a_provider_lets_nobody_in_and_stays_there() {
        let plugin = {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name("plugin-odd").enable_all().build().unwrap()
        };
        let here =
            |paused| tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().unwrap();
        // Where nothing but time passes, it passes at once.
        let (hub, patient) = (here(false), here(true));
        let provider = Guarded::new(Arc::new(Odd), plugin.handle().clone());
        assert_eq!((provider.name(), provider.kind(), provider.ways()), ("odd", "odd", &[Way::Password][..]));
        let secret = Secret::new("x");
        let elsewhere = hub.block_on(provider.password("ann", &secret));
        assert_eq!(elsewhere, Err(LoginError::Wrong { why: "plugin-odd".to_owned() }));
        for (on, user, why) in [(&hub, "panic", "the plugin failed"), (&patient, "never", "the plugin does not answer")]
        {
            let answer = on.block_on(provider.password(user, &secret));
            assert_eq!(answer, Err(LoginError::Unavailable { why: why.to_owned() }), "{user}");
        }
        let held: Vec<_> = (0..limits::LOGINS).map(|_| provider.password("never", &secret)).collect();
        assert_eq!(hub.block_on(provider.password("ann", &secret)), Err(LoginError::Busy));
        drop(held);
        assert_eq!(hub.block_on(provider.search("x", 1)), Err(LoginError::Unsupported));
        plugin.shutdown_background();
    }
}
