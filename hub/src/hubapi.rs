//! The hub's own API: the API server's HTTP, with this hub's callers.

use crate::{
    directory::{Authenticated, Directory},
    kinds::{AccessRequestSpec, TokenSpec},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use moorline_apiserver::{ApiServer, Attributes, Authorizer, Spec};
use moorline_authz::{
    access::{Facts, HubRequest, Scope, hub_api, within_verbs},
    hubrules::{Asked, HubRule, HubRules},
};
use moorline_proxy::{Body, BodyError, body};
use serde_json::Value;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::watch;

/// Serves objects to callers.
pub(crate) struct HubApi {
    server: Arc<ApiServer>,
    /// What plugins permit users.
    rules: watch::Receiver<Arc<Vec<HubRule>>>,
}

impl HubApi {
    pub fn new(server: Arc<ApiServer>, rules: watch::Receiver<Arc<Vec<HubRule>>>) -> Self {
        Self { server, rules }
    }

    /// Whether a path is one of the API's.
    pub fn serves(path: &str) -> bool {
        ApiServer::serves(path)
    }

    /// One request. A watch ends with the caller's right to it.
    pub async fn handle(
        &self,
        request: Request<Bytes>,
        who: &Authenticated,
        directory: &Arc<Directory>,
    ) -> Response<Body> {
        let caller = Arc::new(Caller { who: who.clone(), directory: Arc::clone(directory), rules: self.rules.clone() });
        let response = self.server.handle(request.map(Full::new), caller).await.map(body::from);
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        let end = Box::pin(who.lease.ended());
        response.map(|inner| body::from(Leased { inner, end }))
    }
}

/// A caller, judged anew for every object: a grant that goes takes effect within an open watch.
struct Caller {
    who: Authenticated,
    directory: Arc<Directory>,
    rules: watch::Receiver<Arc<Vec<HubRule>>>,
}

impl Caller {
    fn with_facts<T>(&self, judge: impl FnOnce(&Facts<'_>) -> T) -> T {
        let grants = self.directory.grants();
        judge(&Facts { identity: &self.who.identity, token_clusters: self.who.clusters.as_deref(), grants: &grants })
    }

    /// The rules that count for this caller. A token that is restricted to clusters is for nothing of the hub's own.
    fn rules(&self) -> Arc<Vec<HubRule>> {
        if self.who.clusters.is_some() { Arc::default() } else { Arc::clone(&self.rules.borrow()) }
    }
}

/// Whose token or request an object is.
fn owner<'a>(resource: &str, object: Option<&'a Value>) -> Option<&'a str> {
    let object = object.filter(|_| [TokenSpec::PLURAL, AccessRequestSpec::PLURAL].contains(&resource))?;
    object.pointer("/spec/user").and_then(Value::as_str)
}

/// The texts of an object.
fn field(object: Option<&Value>) -> impl Fn(&str) -> Option<String> {
    move |at| object?.pointer(at)?.as_str().map(str::to_owned)
}

impl Authorizer for Caller {
    fn flow(&self) -> &str {
        &self.who.identity.user
    }

    fn authorize(&self, asked: &Attributes<'_>) -> Result<(), String> {
        let request = HubRequest {
            verb: asked.verb,
            resource: asked.resource,
            subresource: asked.subresource,
            name: asked.name,
            owner: owner(asked.resource, asked.object),
        };
        within_verbs(self.who.verbs.as_deref(), asked.verb).map_err(|denial| denial.to_string())?;
        if asked.resource == TokenSpec::PLURAL && !matches!(asked.verb, "get" | "list" | "watch") {
            // A token that is bound to verbs could make one that is not.
            if self.who.verbs.is_some() {
                return Err("a token that is bound to verbs makes and ends no tokens".to_owned());
            }
            let made = (asked.verb == "create").then_some(asked.object).flatten();
            if made.is_some_and(|object| object.pointer("/spec/provider").is_some()) {
                return Err("logins are made by logging in, not by writing them".to_owned());
            }
        }
        let Err(denial) = self.with_facts(|facts| hub_api(facts, &request)) else { return Ok(()) };
        let rules = self.rules();
        let (verb, resource, subresource, name) = (asked.verb, asked.resource, asked.subresource, asked.name);
        let field = field(asked.object);
        let asked = Asked { verb, resource, subresource, name, field: &field };
        let permitted = HubRules(&rules).permit(&self.who.identity, &asked);
        if permitted { Ok(()) } else { Err(denial.to_string()) }
    }

    fn visible(&self, resource: &str, object: &Value) -> bool {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let asked = HubRequest { verb: "list", resource, ..HubRequest::default() };
        let rules = self.rules();
        let shows = || HubRules(&rules).shows(&self.who.identity, resource, name, &field(Some(object)));
        let own = self.with_facts(|facts| {
            hub_api(facts, &asked).is_ok_and(|scope: Scope| scope.shows(facts, name, owner(resource, Some(object))))
        });
        own || shows()
    }

    fn sees_all(&self, resource: &str) -> bool {
        let asked = HubRequest { verb: "list", resource, ..HubRequest::default() };
        self.with_facts(|facts| hub_api(facts, &asked).is_ok_and(|scope| matches!(scope, Scope::All)))
    }
}

/// A body that ends when the caller's right does.
struct Leased {
    inner: Body,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
