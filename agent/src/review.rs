//! Asks the cluster whether somebody may act as somebody else.

use crate::upstream::ApiServer;
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use moorline_authz::{identity::Identity, impersonation::Review};
use moorline_proxy::{
    body,
    edge::{Reviewer, UpstreamError},
};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// SubjectAccessReviews, asked as the agent. Nothing is remembered: a right that was taken away is gone at once.
pub struct ClusterRules(Arc<ApiServer>);

impl ClusterRules {
    /// Asks this API server.
    pub fn new(upstream: Arc<ApiServer>) -> Self {
        Self(upstream)
    }
}

#[derive(Deserialize)]
struct Answer {
    status: Status,
}
#[derive(Deserialize)]
struct Status {
    allowed: bool,
    #[serde(default)]
    denied: bool,
}

impl Reviewer for ClusterRules {
    fn allowed<'a>(
        &'a self,
        principal: &'a Identity,
        review: &'a Review,
    ) -> BoxFuture<'a, Result<bool, UpstreamError>> {
        Box::pin(async move {
            let broken = |cause: String| UpstreamError::Broken(format!("SubjectAccessReview: {cause}"));
            let request = Request::builder()
                .method(Method::POST)
                .uri(PATH)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .body(body::full(question(principal, review).to_string()))
                .map_err(|e| broken(e.to_string()))?;
            let (status, answer) = self.0.own(request).await?;
            match status {
                StatusCode::CREATED | StatusCode::OK => {}
                StatusCode::FORBIDDEN => {
                    return Err(broken("the agent may not ask; it needs create on subjectaccessreviews".to_owned()));
                }
                other => return Err(broken(format!("answered {other}"))),
            }
            let answer: Answer = serde_json::from_slice(&answer).map_err(|e| broken(e.to_string()))?;
            Ok(answer.status.allowed && !answer.status.denied)
        })
    }
}

fn question(principal: &Identity, review: &Review) -> serde_json::Value {
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": principal.user,
            "uid": principal.uid,
            "groups": principal.groups,
            "extra": principal.extra,
            "resourceAttributes": {
                "verb": "impersonate",
                "group": review.group,
                "resource": review.resource,
                "subresource": review.subresource,
                "namespace": review.namespace,
                "name": review.name,
            },
        },
    })
}
