//! Who somebody is, as others know it. A provider proves an identity and tells its groups; what these may do is decided
//! elsewhere. The hub knows providers by [`LoginProvider`] alone, and this crate knows nothing of the hub.
#![forbid(unsafe_code)]

pub mod config;
mod github;
mod http_client;
mod ldap;
pub mod limits;
mod oidc;
pub mod pkce;
mod trust;

use futures_util::future::{BoxFuture, FutureExt};
use std::{sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// Text that is never printed and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }
    /// The text, for those who mean it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a provider says about somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What never changes about them and is never given to somebody else: `objectGUID`, `entryUUID`, `sub`, a number.
    pub subject: String,
    /// What they are called there. May change, and may be somebody else's later: never compared.
    pub username: String,
    /// A name for people.
    pub display_name: Option<String>,
    /// Their groups, by the provider's names, each once and in order.
    pub groups: Vec<String>,
    /// What asks about them again later without them.
    pub renewal: Option<Secret>,
}

/// How people prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The hub is given a password.
    Password,
    /// A browser is sent to the provider and comes back.
    Browser,
    /// A code is typed at the provider, on any device (RFC 8628).
    Device,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// User name, password, code or state are not right; or the account is disabled, locked or expired. `why` is for the
    /// log alone: a stranger learns nothing from it.
    #[error("wrong user name or password")]
    Wrong {
        /// For the log.
        why: String,
    },
    /// The provider knows them, and they are not among those who may come in.
    #[error("{why}")]
    NotAllowed {
        /// For them.
        why: String,
    },
    /// The provider cannot be asked, or answers what cannot be understood. Nobody is let in by it meanwhile.
    #[error("the login provider does not answer; try again, or use another way to log in")]
    Unavailable {
        /// For the log.
        why: String,
    },
    /// As many logins as are bearable are under way.
    #[error("too many logins at this moment; try again")]
    Busy,
    /// This provider does not work that way.
    #[error("this login provider takes no such login")]
    Unsupported,
}

impl LoginError {
    pub(crate) fn wrong(why: impl ToString) -> Self {
        Self::Wrong { why: why.to_string() }
    }
    pub(crate) fn unavailable(why: impl ToString) -> Self {
        Self::Unavailable { why: why.to_string() }
    }
    /// What the log says beyond the text.
    pub fn why(&self) -> &str {
        match self {
            Self::Wrong { why } | Self::NotAllowed { why } | Self::Unavailable { why } => why,
            Self::Busy => "busy",
            Self::Unsupported => "unsupported",
        }
    }
    /// For metrics: one of a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Wrong { .. } => "wrong",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Unavailable { .. } => "unavailable",
            Self::Busy => "busy",
            Self::Unsupported => "unsupported",
        }
    }
}

/// What goes with a browser to the provider, and is wanted back.
#[derive(Debug, Clone)]
pub struct Round {
    /// Ties the answer to the browser that asked.
    pub state: String,
    /// Ties the identity token to this login (OpenID Connect Core §3.1.2.1).
    pub nonce: String,
    /// RFC 7636: only who knows it can use the code.
    pub verifier: Secret,
    /// Where the provider sends the browser.
    pub redirect_uri: String,
}

impl Round {
    /// A round with fresh secrets.
    pub fn new(redirect_uri: impl Into<String>) -> Self {
        Self {
            state: pkce::random(),
            nonce: pkce::random(),
            verifier: Secret::new(pkce::random()),
            redirect_uri: redirect_uri.into(),
        }
    }
}

/// The beginning of a login on another device (RFC 8628 §3.2).
#[derive(Debug, Clone)]
pub struct DeviceStart {
    /// What is polled with.
    pub device_code: Secret,
    /// What is typed.
    pub user_code: String,
    /// Where it is typed.
    pub verification_uri: String,
    /// The same with the code in it, for a QR code.
    pub verification_uri_complete: Option<String>,
    /// How long the code is good.
    pub expires_in: Duration,
    /// How often to poll at most.
    pub interval: Duration,
}

/// How a login on another device is getting on (RFC 8628 §3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevicePoll {
    /// Nothing yet.
    Pending,
    /// Nothing yet, and five seconds more between questions from now on.
    SlowDown,
    /// They are in.
    Done(Box<Proof>),
}

/// What a provider says later about somebody who was let in before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Still {
    /// They are there. Groups and renewal may be others.
    There(Box<Proof>),
    /// They are gone, disabled, locked or expired.
    Gone {
        /// For the log.
        why: String,
    },
}

/// A user or group that a provider knows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Principal {
    /// `user` or `group`.
    pub kind: &'static str,
    /// As the provider calls it.
    pub name: String,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// A user's unchanging id there, by which they can be linked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// One place where people can prove who they are. What a provider does not do is [`LoginError::Unsupported`].
pub trait LoginProvider: Send + Sync + 'static {
    /// Its name in the configuration: the prefix of its groups, a label of metrics, and what people choose it by.
    fn name(&self) -> &str;
    /// What it is: `ldap`, `activeDirectory`, `oidc`, `github`, `local`.
    fn kind(&self) -> &'static str;
    /// The ways it offers, best first.
    fn ways(&self) -> &'static [Way];

    /// A user name and a password.
    fn password<'a>(&'a self, _user: &'a str, _password: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// Where to send a browser.
    fn browser<'a>(&'a self, _round: &'a Round) -> BoxFuture<'a, Result<String, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// What came back with it. The caller has compared the state.
    fn returned<'a>(&'a self, _round: &'a Round, _code: &'a str) -> BoxFuture<'a, Result<Proof, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// Begins a login on another device.
    fn device(&self) -> BoxFuture<'_, Result<DeviceStart, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// Asks how it is getting on.
    fn poll<'a>(&'a self, _device_code: &'a Secret) -> BoxFuture<'a, Result<DevicePoll, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// Asks about somebody again, without them.
    fn still<'a>(
        &'a self,
        _subject: &'a str,
        _renewal: Option<&'a Secret>,
    ) -> BoxFuture<'a, Result<Still, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
    /// Users and groups with `text` in their name, at most `most` of each.
    fn search<'a>(&'a self, _text: &'a str, _most: usize) -> BoxFuture<'a, Result<Vec<Principal>, LoginError>> {
        std::future::ready(Err(LoginError::Unsupported)).boxed()
    }
}

/// The providers of a hub, by name.
pub type Providers = Vec<Arc<dyn LoginProvider>>;

/// Each once, sorted, none empty, none with a control character, at most [`limits::GROUPS`].
pub(crate) fn tidy(mut groups: Vec<String>) -> Vec<String> {
    groups
        .retain(|group| !group.is_empty() && group.len() <= limits::GROUP_NAME && !group.chars().any(char::is_control));
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(limits::GROUPS);
    groups
}
