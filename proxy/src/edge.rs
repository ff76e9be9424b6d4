//! The agent's half of a call: decides, says on whose behalf, sends it on.

use crate::{
    Body, BodyError,
    headers::strip_identity,
    status::status_response,
    upgrade::Io,
    wire::{self, WantsUpgrade, WireError},
};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use moorline_authz::{
    edge::{EdgePolicy, EdgeRequest},
    identity::{ActAs, Identity},
    impersonation::{Review, headers_for, required_reviews},
    verb::request_info,
};
use moorline_link::IncomingStream;
use moorline_proto::{
    code::RefuseCode,
    header::{Principal, Refusal},
};

mod review;

/// Why the API server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nothing was sent: it cannot be reached. 502.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It did not take the connection in time. 504.
    #[error("the API server did not answer in time")]
    Timeout,
    /// The connection broke after the request was sent. 502.
    #[error("the API server broke off: {0}")]
    Broken(String),
    /// The request's own body failed.
    #[error("the request was cut short")]
    Body(#[source] BodyError),
}

/// The way to the API server.
pub trait Upstream: Send + Sync + 'static {
    /// Sends a request whose target is a path and whose headers already carry `Impersonate-*`; adds host and credential.
    ///
    /// A request with the extension [`crate::wire::WantsUpgrade`] goes out over HTTP/1.1 with `Connection: Upgrade`; a 101 carries
    /// [`crate::upgrade::UpgradedIo`]. Redirects are answers. Dropping the future or the answer cancels upstream.
    fn send(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>>;
}

/// Asks the cluster whether somebody may act as somebody else (SubjectAccessReview).
pub trait Reviewer: Send + Sync + 'static {
    /// Whether `principal` may `impersonate` what `review` names.
    ///
    /// # Errors
    /// The cluster could not be asked: refused, with 502 or 504.
    fn allowed<'a>(&'a self, principal: &'a Identity, review: &'a Review)
    -> BoxFuture<'a, Result<bool, UpstreamError>>;
}

/// Serves one stream whose target is [`moorline_proto::header::Target::Kube`].
///
/// # Errors
/// The stream failed; it has been reset by then. Refusals and failures of the API server are answers, not errors.
///
/// # Cancel safety
/// Dropping the future resets the stream and cancels the request upstream.
pub async fn serve_kube<U: Upstream, R: Reviewer>(
    mut incoming: IncomingStream,
    policy: &EdgePolicy,
    upstream: &U,
    reviewer: &R,
) -> Result<(), WireError> {
    let Some(principal) = incoming.header.principal.take().filter(|principal| !principal.user.is_empty()) else {
        let message = "a request without an identity".to_owned();
        Box::pin(incoming.refuse(Refusal { code: RefuseCode::NoIdentity, message, retry_elsewhere: false })).await;
        return Ok(());
    };
    serve_principal(incoming.accept_quietly(), principal, policy, upstream, reviewer).await
}

/// The same for a stream that was accepted, on behalf of `principal`.
///
/// # Errors
/// As [`serve_kube`].
pub async fn serve_principal<S: Io, U: Upstream, R: Reviewer>(
    stream: S,
    principal: Principal,
    policy: &EdgePolicy,
    upstream: &U,
    reviewer: &R,
) -> Result<(), WireError> {
    let (principal, act_as) = identities(principal);
    wire::serve(stream, async |request| answer(request, &principal, act_as.as_ref(), policy, upstream, reviewer).await)
        .await
}

/// One call on behalf of `principal`. Its `Impersonate-*`, if it has any, are taken off: `act_as` is what they asked for.
pub async fn answer<U: Upstream, R: Reviewer>(
    request: Request<Body>,
    principal: &Identity,
    act_as: Option<&ActAs>,
    policy: &EdgePolicy,
    upstream: &U,
    reviewer: &R,
) -> Response<Body> {
    match admit(request, principal, act_as, policy, reviewer).await {
        Ok(request) => upstream.send(request).await.unwrap_or_else(|e| failed(&e)),
        Err(refusal) => *refusal,
    }
}

/// Decides, and says in the request's headers on whose behalf it goes out.
async fn admit<R: Reviewer>(
    mut request: Request<Body>,
    principal: &Identity,
    act_as: Option<&ActAs>,
    policy: &EdgePolicy,
    reviewer: &R,
) -> Result<Request<Body>, Box<Response<Body>>> {
    let forbidden = |message: &str| Box::new(status_response(StatusCode::FORBIDDEN, message));
    let path = request.uri().path();
    let info = request_info(request.method().as_str(), path, request.uri().query());
    let upgrade = request.extensions().get::<WantsUpgrade>().is_some();
    policy
        .decide(&EdgeRequest { principal, act_as, info: &info, path, upgrade })
        .map_err(|denial| forbidden(&denial.to_string()))?;
    for review in act_as.map(required_reviews).unwrap_or_default() {
        match reviewer.allowed(principal, &review).await {
            Ok(true) => {}
            Ok(false) => return Err(forbidden(&cannot_impersonate(principal, &review))),
            Err(e) => return Err(Box::new(failed(&e))),
        }
    }
    // The hub has removed these; the edge does not rely on it.
    strip_identity(request.headers_mut());
    let mut request = review::look(request, &info, policy).await?;
    let said = headers_for(act_as.map_or(principal, |ActAs(who)| who));
    let said = said.map_err(|e| forbidden(&e.to_string()))?;
    for (name, value) in said {
        let pair = (HeaderName::try_from(name), HeaderValue::try_from(value));
        let (Ok(name), Ok(value)) = pair else { return Err(forbidden("this identity cannot be said in a header")) };
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// As an API server says it.
fn cannot_impersonate(principal: &Identity, review: &Review) -> String {
    let Review { group, resource, subresource, namespace, name } = review;
    let resource = if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") };
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let user = &principal.user;
    format!(
        "{resource} {name:?} is forbidden: User {user:?} cannot impersonate resource {resource:?} in API group {group:?} {scope}"
    )
}

fn failed(e: &UpstreamError) -> Response<Body> {
    let code = match e {
        UpstreamError::Timeout => StatusCode::GATEWAY_TIMEOUT,
        UpstreamError::Unreachable(_) | UpstreamError::Broken(_) | UpstreamError::Body(_) => StatusCode::BAD_GATEWAY,
    };
    status_response(code, &e.to_string())
}

/// From the wire's terms to those of decisions.
pub fn identities(principal: Principal) -> (Identity, Option<ActAs>) {
    let Principal { user, uid, groups, extra, act_as } = principal;
    let act_as = act_as.map(|who| {
        ActAs(Identity { user: who.user, uid: who.uid, groups: who.groups, extra: who.extra.into_iter().collect() })
    });
    (Identity { user, uid, groups, extra: extra.into_iter().collect() }, act_as)
}
