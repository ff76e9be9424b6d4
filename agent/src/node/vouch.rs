//! A cluster agent vouches for node agents that join by their pod's service account: it asks the cluster's API server whose
//! a token is, and on which node that pod is. Nobody gets another node's name, and no secret is shared by nodes.

use crate::{limits, upstream::ApiServer};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use moorline_link::IncomingStream;
use moorline_proxy::{Body, body, edge::UpstreamError, wire};
use serde::Deserialize;
use serde_json::json;
use std::{fmt, str::FromStr, sync::Arc};

/// Whom the tokens are for: one that was made for the API server, or anything else, lets nobody join.
pub const AUDIENCE: &str = "moorline-join";

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Kubernetes' names of what a bound token says of its pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The service account of node agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAccount {
    namespace: String,
    name: String,
}

impl Default for NodeAccount {
    fn default() -> Self {
        Self { namespace: "moorline-nodes".to_owned(), name: "moorline-node".to_owned() }
    }
}

impl fmt::Display for NodeAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NodeAccount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        match text.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("a service account is NAMESPACE/NAME".to_owned()),
        }
    }
}

/// Vouches for nodes.
pub struct Voucher {
    upstream: Arc<ApiServer>,
    account: NodeAccount,
}

/// Why a token lets nobody join.
#[derive(Debug, PartialEq, Eq)]
struct No(StatusCode, String);

fn no(words: impl Into<String>) -> No {
    No(StatusCode::FORBIDDEN, words.into())
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}
#[derive(Deserialize)]
struct Pod {
    metadata: PodMeta,
    #[serde(default)]
    spec: PodSpec,
}
#[derive(Deserialize)]
struct PodMeta {
    uid: String,
}
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    service_account_name: String,
}

/// Which pod a review says that a token is bound to: name and uid.
fn pod_of(review: &ReviewStatus, account: &NodeAccount) -> Result<(String, String), No> {
    if !review.authenticated {
        return Err(No(StatusCode::UNAUTHORIZED, "the cluster does not know this service account's token".to_owned()));
    }
    // An API server that knows no audiences names none; then the token is for the API server itself.
    if !review.audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(no(format!("the token is not for the audience {AUDIENCE}")));
    }
    if review.user.username != format!("system:serviceaccount:{}:{}", account.namespace, account.name) {
        return Err(no(format!("the token is not of the service account {account}")));
    }
    let only = |key: &str| match review.user.extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    only(POD_NAME).zip(only(POD_UID)).ok_or_else(|| no("the token is bound to no pod"))
}

/// The node of that pod, if pod and token say the same.
fn node_of(review: &ReviewStatus, pod: Pod, uid: &str, account: &NodeAccount) -> Result<String, No> {
    if pod.metadata.uid != uid || pod.spec.service_account_name != account.name {
        return Err(no("the token's pod is gone"));
    }
    let claimed = review.user.extra.get(NODE_NAME).and_then(|names| names.first());
    if claimed.is_some_and(|claimed| *claimed != pod.spec.node_name) || pod.spec.node_name.is_empty() {
        return Err(no("the token's pod is on no node, or on another"));
    }
    Ok(pod.spec.node_name)
}

impl Voucher {
    /// Vouches for pods of this account, by what this API server says.
    pub fn new(upstream: Arc<ApiServer>, account: NodeAccount) -> Self {
        Self { upstream, account }
    }

    /// Serves one stream of the hub's.
    pub async fn serve(&self, incoming: IncomingStream) {
        if let Err(error) = wire::serve(incoming.accept(), async |request| self.answer(request).await).await {
            tracing::debug!("a question about a node ended early: {error}");
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if (request.method(), request.uri().path()) != (&Method::POST, "/vouch") {
            return words(StatusCode::NOT_FOUND, "this agent does no plans");
        }
        let Ok(token) = Limited::new(request.into_body(), limits::VOUCHED_TOKEN).collect().await else {
            return words(StatusCode::BAD_REQUEST, "the token is too long, or broke off");
        };
        let token = token.to_bytes();
        let Ok(token) = std::str::from_utf8(&token) else {
            return words(StatusCode::UNAUTHORIZED, "the token is no text");
        };
        match self.node(token).await {
            Ok(node) => {
                tracing::info!(node, "vouched for a node agent");
                words(StatusCode::OK, &json!({ "node": node }).to_string())
            }
            Err(No(code, why)) => {
                tracing::warn!(%why, "not vouched for a node agent");
                words(code, &why)
            }
        }
    }

    /// The node whose pod this token is bound to.
    async fn node(&self, token: &str) -> Result<String, No> {
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": [AUDIENCE] },
        });
        let post = Request::post(REVIEWS).header(header::CONTENT_TYPE, "application/json");
        let review: Review = self.ask(post, question.to_string(), "create on tokenreviews").await?;
        let (name, uid) = pod_of(&review.status, &self.account)?;
        let path = format!("/api/v1/namespaces/{}/pods/{name}", self.account.namespace);
        let needs = format!("get on pods in {}", self.account.namespace);
        let pod: Pod = self.ask(Request::get(path), String::new(), &needs).await?;
        node_of(&review.status, pod, &uid, &self.account)
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        request: http::request::Builder,
        content: String,
        needs: &str,
    ) -> Result<T, No> {
        let away = |why: String| No(StatusCode::BAD_GATEWAY, why);
        let request = request.header(header::ACCEPT, "application/json").body(body::full(content));
        let request = request.map_err(|e| away(e.to_string()))?;
        let (code, answer) = self.upstream.own(request).await.map_err(|e: UpstreamError| away(e.to_string()))?;
        match code {
            StatusCode::OK | StatusCode::CREATED => serde_json::from_slice(&answer).map_err(|e| away(e.to_string())),
            // Not the token's fault, and rights come: whoever asks is to ask again.
            StatusCode::FORBIDDEN => {
                Err(away(format!("the cluster's agent may not vouch for nodes: it needs {needs} (deploy/daemonset)")))
            }
            StatusCode::NOT_FOUND => Err(no("the token's pod is gone")),
            other => Err(away(format!("the API server answers {other}"))),
        }
    }
}

fn words(code: StatusCode, words: &str) -> Response<Body> {
    let mut response = Response::new(body::full(words.to_owned()));
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(change: impl FnOnce(&mut ReviewStatus)) -> ReviewStatus {
        let extra = [(POD_NAME, "p1"), (POD_UID, "u1")].map(|(k, v)| (k.to_owned(), vec![v.to_owned()]));
        let username = "system:serviceaccount:moorline-nodes:moorline-node".to_owned();
        let user = User { username, extra: extra.into() };
        let mut review = ReviewStatus { authenticated: true, audiences: vec![AUDIENCE.to_owned()], user };
        change(&mut review);
        review
    }

    #[test]
    fn a_token_counts_for_its_audience_its_account_and_its_pod_alone() {
        let account = NodeAccount::default();
        let of = |change: fn(&mut ReviewStatus)| pod_of(&review(change), &account);
        assert_eq!(of(|_| {}), Ok(("p1".to_owned(), "u1".to_owned())));
        assert_eq!(of(|r| r.authenticated = false).unwrap_err().0, StatusCode::UNAUTHORIZED);
        for wrong in [
            (|r| r.audiences.clear()) as fn(&mut ReviewStatus),
            |r| r.audiences = vec!["https://kubernetes.default.svc".to_owned()],
            |r| r.user.username = "system:serviceaccount:default:moorline-node".to_owned(),
            |r| r.user.username = "admin".to_owned(),
            |r| drop(r.user.extra.remove(POD_NAME)),
            |r| drop(r.user.extra.remove(POD_UID)),
            |r| r.user.extra.get_mut(POD_NAME).unwrap().push("p2".to_owned()),
        ] {
            assert_eq!(of(wrong).unwrap_err().0, StatusCode::FORBIDDEN);
        }
    }

    #[test]
    fn a_pods_node_counts_while_the_pod_is_the_tokens_own() {
        let account = NodeAccount::default();
        let pod = |uid: &str, node: &str, name: &str| Pod {
            metadata: PodMeta { uid: uid.to_owned() },
            spec: PodSpec { node_name: node.to_owned(), service_account_name: name.to_owned() },
        };
        let said = review(|_| {});
        assert_eq!(node_of(&said, pod("u1", "n1", "moorline-node"), "u1", &account), Ok("n1".to_owned()));
        assert!(node_of(&said, pod("u2", "n1", "moorline-node"), "u1", &account).is_err(), "a namesake made later");
        assert!(node_of(&said, pod("u1", "n1", "other"), "u1", &account).is_err());
        assert!(node_of(&said, pod("u1", "", "moorline-node"), "u1", &account).is_err(), "on no node yet");
        let claims = review(|r| drop(r.user.extra.insert(NODE_NAME.to_owned(), vec!["n2".to_owned()])));
        assert!(node_of(&claims, pod("u1", "n1", "moorline-node"), "u1", &account).is_err());
    }

    #[test]
    fn accounts_have_two_names() {
        assert_eq!("a/b".parse::<NodeAccount>().unwrap().to_string(), "a/b");
        for bad in ["", "a", "a/", "/b", "a/b/c", "a/b:c"] {
            assert!(bad.parse::<NodeAccount>().is_err(), "{bad}");
        }
    }
}
