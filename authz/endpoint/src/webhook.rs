//! Webhook mode: answers an API server's TokenReviews (`authentication.k8s.io`), so that users reach it directly.
//!
//! The API server judges what they ask by its own RBAC, as it does for whom the proxy impersonates; a token that is bound
//! to verbs is refused here, for nobody could keep it to them, and so is who must be recorded: nobody could do that either.

use crate::{limits, live::Live};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use moorline_authz::edge::EdgePolicy;
use moorline_proxy::{Body, body, status::status_response};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::timeout;

/// Gives the policy that is in force.
pub type PolicyNow = Arc<dyn Fn() -> Arc<EdgePolicy> + Send + Sync>;

/// What an API server asks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'a str,
    kind: &'static str,
    status: Status,
}

#[derive(Default, Serialize)]
struct Status {
    authenticated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

/// `authentication.k8s.io/v1 UserInfo`.
#[derive(Serialize)]
struct User {
    username: String,
    uid: String,
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

/// Answers TokenReviews.
pub struct Webhook {
    /// Who is who.
    pub live: Live,
    /// Whom the cluster's owner does not let in.
    pub policy: PolicyNow,
}

impl Webhook {
    /// One request. Nothing is remembered between two.
    pub async fn serve<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body_util::BodyExt + http_body::Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.method() != Method::POST {
            return status_response(StatusCode::METHOD_NOT_ALLOWED, "only POST, of a TokenReview");
        }
        let read = timeout(limits::REVIEW_WAIT, Limited::new(request.into_body(), limits::REVIEW).collect()).await;
        let bytes = match read {
            Ok(Ok(whole)) => whole.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return status_response(StatusCode::PAYLOAD_TOO_LARGE, "no TokenReview is as large as this");
            }
            Ok(Err(_)) => return status_response(StatusCode::BAD_REQUEST, "the body was cut short"),
            Err(_) => return status_response(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
        };
        match self.answer(&bytes) {
            Some(answer) => {
                let mut response = Response::new(body::full(answer));
                let json = http::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            None => status_response(StatusCode::BAD_REQUEST, "not a TokenReview of authentication.k8s.io"),
        }
    }

    /// The answer to one review, as JSON; `None`: it is none.
    pub fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let review: Review = serde_json::from_slice(bytes).ok()?;
        let versions = ["authentication.k8s.io/v1", "authentication.k8s.io/v1beta1"];
        let version = versions.into_iter().find(|version| *version == review.api_version)?;
        if review.kind != "TokenReview" {
            return None;
        }
        let status = match self.user(&review.spec.token) {
            Some(user) => Status { authenticated: true, user: Some(user), ..Status::default() },
            // One text, whatever is wrong: this goes to the log of the API server.
            None => Status { error: "not a token that is good here".to_owned(), ..Status::default() },
        };
        serde_json::to_vec(&Answer { api_version: version, kind: "TokenReview", status }).ok()
    }

    fn user(&self, token: &str) -> Option<User> {
        let (known, standing) = self.live.who(token).ok()?;
        let permit = standing.permit(&known, None).ok()?;
        let who = permit.principal();
        if known.verbs.is_some() {
            tracing::info!(user = who.user, "a token that is bound to verbs is of no use at a webhook");
            return None;
        }
        if !permit.record().is_never() {
            tracing::info!(user = who.user, "whose sessions in terminals are recorded gets in by what records them");
            return None;
        }
        if let Err(denial) = (self.policy)().admit(who) {
            tracing::info!(user = who.user, "{denial}");
            return None;
        }
        let who = (**who).clone();
        Some(User { username: who.user, uid: who.uid, groups: who.groups, extra: who.extra })
    }
}
