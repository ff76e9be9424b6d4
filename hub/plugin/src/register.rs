//! What a plugin adds to the hub.

use crate::{LoginProvider, PluginKind};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Response};
use std::{fmt, sync::Arc};

/// A request to `/plugins/<name>/…` of a caller that proved who they are.
pub struct RouteRequest {
    /// GET, POST, …
    pub method: Method,
    /// What follows `/plugins/<name>`, without query; starts with `/`.
    pub path: String,
    /// The query, undecoded.
    pub query: String,
    /// At most as large as the hub takes bodies.
    pub body: Bytes,
    /// Who asks.
    pub user: String,
    /// Whether the caller may see a cluster.
    pub may_see: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Whether the caller administers the hub.
    pub admin: bool,
}

/// What a route answers.
pub type RouteAnswer = Response<Bytes>;

pub(crate) type RouteFn = Arc<dyn Fn(RouteRequest) -> BoxFuture<'static, RouteAnswer> + Send + Sync>;

/// Collects what a plugin adds.
#[derive(Default)]
pub struct Registration {
    pub(crate) kinds: Vec<PluginKind>,
    pub(crate) reads: Vec<&'static str>,
    pub(crate) writes: Vec<&'static str>,
    pub(crate) route: Option<RouteFn>,
    pub(crate) per_cluster: bool,
    pub(crate) holds: Option<&'static str>,
    pub(crate) logins: Vec<Arc<dyn LoginProvider>>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.plural()).collect();
        f.debug_struct("Registration").field("kinds", &kinds).field("reads", &self.reads).finish_non_exhaustive()
    }
}

impl Registration {
    /// A kind of its own. The plugin may do anything with its objects.
    pub fn kind(&mut self, kind: PluginKind) -> &mut Self {
        self.kinds.push(kind);
        self
    }

    /// Plurals of kinds of others that it reads.
    pub fn reads(&mut self, plurals: &[&'static str]) -> &mut Self {
        self.reads.extend(plurals);
        self
    }

    /// Plurals of kinds of others that it reads and changes.
    pub fn writes(&mut self, plurals: &[&'static str]) -> &mut Self {
        self.writes.extend(plurals);
        self
    }

    /// Answers requests to `/plugins/<name>/…`.
    pub fn route<F>(&mut self, answer: F) -> &mut Self
    where
        F: Fn(RouteRequest) -> BoxFuture<'static, RouteAnswer> + Send + Sync + 'static,
    {
        self.route = Some(Arc::new(answer));
        self
    }

    /// A place where people prove who they are, beside the hub's own passwords. It is asked on the plugin's threads, for
    /// [`crate::limits::LOGIN`] at most; what it does not answer lets nobody in.
    pub fn login(&mut self, provider: Arc<dyn LoginProvider>) -> &mut Self {
        self.logins.push(provider);
        self
    }

    /// Every cluster carries this finalizer from its creation on, and none goes before this plugin has taken it off:
    /// `<name of the plugin>.plugins.moorline.dev/<what for>`. Where the plugin is switched off the hub takes it off. One that
    /// somebody else takes off is this plugin's to put on again.
    pub fn holds_clusters(&mut self, finalizer: &'static str) -> &mut Self {
        self.holds = Some(finalizer);
        self
    }

    /// [`crate::Plugin::run_cluster`] is to be run for each connected cluster.
    pub fn per_cluster(&mut self) -> &mut Self {
        self.per_cluster = true;
        self
    }
}
