//! Passwords in, logins out.

use crate::{
    config::{Config, Limits},
    issue::{IssueError, Issued, Issuer, Proven},
    kinds::{TokenSpec, UserSpec},
    metrics::Metrics,
    rate::RateLimit,
    records::{RecordError, Records},
    status::time,
};
use moorline_apiserver::Object;
use moorline_authz::password;
use serde::Deserialize;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{sync::Semaphore, time::timeout};

/// Lengths of a password, in bytes.
pub const PASSWORD: std::ops::RangeInclusive<usize> = 8..=1024;

/// The provider of those who log in with a password that this hub keeps.
pub(crate) const LOCAL: &str = "local";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoginRequest {
    username: String,
    password: String,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// One text, whichever of the two is wrong, and for users that are disabled.
    #[error("wrong user name or password")]
    Wrong,
    #[error("too many attempts; try again later")]
    Often(Duration),
    #[error("too many logins at this moment; try again")]
    Busy,
    #[error("{0}")]
    Bad(&'static str),
    #[error("the store: {0}")]
    Store(#[from] RecordError),
}

/// Checks passwords, some at a time.
pub(crate) struct Logins {
    records: Records,
    metrics: Metrics,
    limits: Limits,
    issuer: Arc<Issuer>,
    slots: Semaphore,
    waiting: AtomicUsize,
    rate: RateLimit<(String, IpAddr)>,
    addresses: RateLimit<IpAddr>,
}

impl Logins {
    pub fn new(records: Records, metrics: Metrics, issuer: Arc<Issuer>, config: &Config) -> Self {
        let limits = config.limits.clone();
        Self {
            records,
            metrics,
            issuer,
            slots: Semaphore::new(limits.password_checks),
            waiting: AtomicUsize::new(0),
            rate: RateLimit::new(limits.login_burst, Duration::from_secs(10), limits.remembered),
            addresses: RateLimit::new(limits.address_burst, Duration::from_secs(1), limits.remembered),
            limits,
        }
    }

    /// One login, counted.
    pub async fn login(&self, body: &[u8], remote: IpAddr) -> Result<Issued, LoginError> {
        let result = self.decide(body, remote).await;
        let label = match &result {
            Ok(_) => "ok",
            Err(LoginError::Wrong) => "wrong",
            Err(LoginError::Often(_)) => "too_often",
            Err(LoginError::Busy) => "busy",
            Err(LoginError::Bad(_)) => "bad_request",
            Err(LoginError::Store(_)) => "store",
        };
        self.metrics.logins.with_label_values(&[label]).inc();
        result
    }

    async fn decide(&self, body: &[u8], remote: IpAddr) -> Result<Issued, LoginError> {
        let request: LoginRequest = serde_json::from_slice(body)
            .map_err(|_| LoginError::Bad("the body must be {\"username\", \"password\"}"))?;
        if request.password.len() > *PASSWORD.end() || request.username.len() > 253 || request.username.is_empty() {
            return Err(LoginError::Wrong);
        }
        // Guesses at many users from one address would keep everybody else from logging in.
        self.addresses.take(&remote, Instant::now()).map_err(LoginError::Often)?;
        let key = (request.username.clone(), remote);
        self.rate.take(&key, Instant::now()).map_err(LoginError::Often)?;
        let name_ok = moorline_apiserver::dns_subdomain(&request.username).is_ok();
        let user = if name_ok { self.records.get::<UserSpec>(&request.username)? } else { None };
        let hash = match &user {
            Some(user) => self.records.password(&user.metadata.name),
            None => None,
        };
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| password::decoy().to_owned());
        let right = self.check(request.password, hash).await?;
        let user = user.filter(|user| known && right && !user.spec.disabled).ok_or(LoginError::Wrong)?;
        self.rate.give_back(&key);
        self.addresses.give_back(&remote);
        let life = request.ttl_seconds.map(Duration::from_secs);
        let issued = self.issuer.issue(Proven { user: &user, provider: LOCAL, life }).await;
        issued.map_err(|error| match error {
            IssueError::TooLong => LoginError::Bad("ttlSeconds is over what this hub permits"),
            IssueError::Store(error) => LoginError::Store(error),
            IssueError::Over | IssueError::Reused => LoginError::Wrong,
        })
    }

    /// A new API key.
    pub async fn key(
        &self,
        user: &Object<UserSpec>,
        description: &str,
        life: Duration,
    ) -> Result<(String, String), RecordError> {
        let expires = time(SystemTime::now() + life);
        let spec = TokenSpec {
            user: user.metadata.name.clone(),
            description: Some(description.to_owned()),
            expires: expires.clone(),
            ..TokenSpec::default()
        };
        let made = self.records.create(&Object::new("", spec)).await?;
        let token = made.status.and_then(|status| status.token);
        Ok((token.ok_or_else(|| RecordError::Failed("no token was made".to_owned()))?, expires))
    }

    /// Sets a password and ends what was logged in with the one before, for whoever knew it may be in; but not `except`.
    /// Tokens that were made as such stay. Returns the ids of those that are gone.
    pub async fn change_password(&self, user: &str, new: String, except: &str) -> Result<Vec<String>, LoginError> {
        self.set_password(user, new).await?;
        let mut ended = Vec::new();
        for token in self.records.list::<TokenSpec>()? {
            let (spec, id) = (token.spec, token.metadata.name);
            if spec.user != user || spec.provider.as_deref() != Some(LOCAL) || id == except {
                continue;
            }
            match self.records.delete_token(&id).await {
                Ok(()) | Err(RecordError::NotFound) => ended.push(id),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ended)
    }

    /// Sets a password.
    pub async fn set_password(&self, user: &str, new: String) -> Result<(), LoginError> {
        if !PASSWORD.contains(&new.len()) {
            return Err(LoginError::Bad("a password has 8 to 1024 bytes"));
        }
        let hash =
            self.blocking(move || password::hash(&new)).await?.map_err(|_| LoginError::Bad("not a usable password"))?;
        Ok(self.records.set_password(user, &hash).await?)
    }

    async fn check(&self, password: String, hash: String) -> Result<bool, LoginError> {
        self.blocking(move || password::verify(&password, &hash)).await
    }

    /// Hashing takes memory and a core: some at a time, some waiting, nobody for long.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, LoginError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.password_queue {
            return Err(LoginError::Busy);
        }
        let slot = timeout(self.limits.password_wait, self.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else { return Err(LoginError::Busy) };
        tokio::task::spawn_blocking(work).await.map_err(|_| LoginError::Busy)
    }
}
