//! Shells on this node: who may have one, and how their calls reach the API server.

use crate::{Config, UpstreamConfig, policy::PolicyFile, serve::Service};
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use moorline_authz::{edge::EdgePolicy, identity::Identity, impersonation};
use moorline_link::IncomingStream;
use moorline_proto::{code::RefuseCode, header::Refusal, id::ClusterId};
use moorline_proxy::{
    Body,
    edge::{self, Reviewer, Upstream},
    headers::clean_request,
    status::status_response,
    wire::{self, WantsUpgrade},
};
use moorline_shell::{Kube, Patience, Shells, Visitor};
use std::{path::PathBuf, sync::Arc};

/// The calls of one shell, as its user.
struct Calls<U, R> {
    user: Identity,
    upstream: Arc<U>,
    reviewer: Arc<R>,
    policy: Arc<PolicyFile>,
}

impl<U: Upstream, R: Reviewer> Kube for Calls<U, R> {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        async move {
            let said = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let act_as = match impersonation::parse(said) {
                Ok(act_as) => act_as,
                Err(error) => return status_response(StatusCode::FORBIDDEN, &error.to_string()),
            };
            match clean_request(request.headers_mut()) {
                Ok(true) => drop(request.extensions_mut().insert(WantsUpgrade)),
                Ok(false) => {}
                Err(error) => return status_response(StatusCode::BAD_REQUEST, &error.to_string()),
            }
            let policy = self.policy.current();
            edge::answer(request, &self.user, act_as.as_ref(), &policy, &*self.upstream, &*self.reviewer).await
        }
        .boxed()
    }
}

/// The shells of this node.
pub struct NodeShells {
    shells: Shells,
    cluster: String,
}

impl NodeShells {
    /// Shells as the configuration has them, that name `cluster` in their prompts. `None` where nodes give none.
    pub fn new(config: &Config, cluster: &ClusterId) -> Option<Self> {
        let shells = Shells::new(config.shell_root.clone(), Patience::default()).hiding(hidden(config));
        let shells = match config.node.shells {
            Some(most) => shells.at_most(most.get()),
            None => shells,
        };
        Some(Self { shells, cluster: cluster.to_string() })
    }

    /// Serves one stream whose target is a shell.
    pub(crate) async fn stream<U: Upstream, R: Reviewer>(&self, service: &Service<U, R>, mut incoming: IncomingStream) {
        let policy = service.policy.current();
        let user = match admit(&mut incoming, &policy) {
            Ok(user) => user,
            Err((code, message)) => {
                return incoming.refuse(Refusal { code, message, retry_elsewhere: false }).await;
            }
        };
        let calls = Calls {
            user: user.clone(),
            upstream: service.upstream.clone(),
            reviewer: service.reviewer.clone(),
            policy: service.policy.clone(),
        };
        let visitor = Visitor { user: user.user, uid: user.uid, cluster: self.cluster.clone(), kube: Arc::new(calls) };
        let served = wire::serve(incoming.accept(), async |request| self.shells.serve(request, visitor).await).await;
        if let Err(e) = served {
            tracing::debug!(cause = %crate::upstream::chain(&e), "a shell's stream ended early");
        }
    }
}

/// What of a Windows node holds keys: of its kubelet and of the pods on it, where its usual installers put them.
const KEYS: [&str; 3] = [r"C:\var\lib\kubelet", r"C:\etc\kubernetes", r"C:\k"];

/// What no shell may be able to read: what makes the agent what it is, and its node.
fn hidden(config: &Config) -> Vec<PathBuf> {
    let upstream = match &config.upstream {
        UpstreamConfig::InCluster { dir } => Some(dir.clone()),
        UpstreamConfig::Kubeconfig { path, .. } => Some(path.clone()),
        UpstreamConfig::Given(_) | UpstreamConfig::At { .. } => None,
    };
    let own = [Some(config.state_dir.clone()), config.endpoint.as_ref().map(|endpoint| endpoint.dir.clone()), upstream];
    let pki = config.node.pki_dirs.iter().cloned();
    own.into_iter().flatten().chain(pki).chain(KEYS.map(PathBuf::from)).collect()
}

/// Whose shell it is to be. A shell is one person's: who acts as somebody else says so to kubectl, within it.
fn admit(incoming: &mut IncomingStream, policy: &EdgePolicy) -> Result<Identity, (RefuseCode, String)> {
    let principal = incoming.header.principal.take().filter(|principal| !principal.user.is_empty());
    let principal = principal.ok_or((RefuseCode::NoIdentity, "a shell without an identity".to_owned()))?;
    let (principal, act_as) = edge::identities(principal);
    if act_as.is_some() {
        return Err((RefuseCode::Policy, "a shell is opened as oneself: use kubectl --as within it".to_owned()));
    }
    policy.shell(&principal).map_err(|denial| (RefuseCode::Policy, denial.to_string()))?;
    Ok(principal)
}
