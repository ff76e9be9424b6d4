//! Who there is, and who may what: answers to questions about rights, never rights themselves.

use super::{Front, answers::json};
use crate::directory::Authenticated;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::{
    access::{Facts, explain},
    identity::Identity,
};
use moorline_proxy::{Body, status::status_response};
use serde::Deserialize;
use serde_json::json as value;
use std::{collections::HashMap, sync::Arc};
use url::form_urlencoded;

/// Principals of each kind from each provider, at most.
const MOST: usize = 200;
/// Longest text that is searched for, in bytes.
const TEXT: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Question {
    cluster: String,
    verb: String,
    /// About whom; absent: who asks.
    #[serde(default)]
    user: Option<String>,
}

impl Front {
    /// `GET /auth/principals?q=TEXT&limit=N`, for administrators: users and groups of the hub and of its providers.
    pub(super) async fn principals(&self, request: &Request<Incoming>, who: &Authenticated) -> Response<Body> {
        if !who.administers() {
            self.count_refusal("not_admin");
            return status_response(StatusCode::FORBIDDEN, "only administrators look for principals");
        }
        let query: HashMap<String, String> =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        let text = query.get("q").map(String::as_str).unwrap_or_default();
        let most = query.get("limit").and_then(|n| n.parse().ok()).unwrap_or(20).clamp(1, MOST);
        if text.is_empty() || TEXT < text.len() {
            return status_response(StatusCode::BAD_REQUEST, "q=TEXT is wanted, of 1 to 100 bytes");
        }
        let asked = self.logins.providers().iter().map(|provider| async move {
            match self.logins.search(&**provider, text, most).await {
                Ok(found) => (provider.name(), Some(found)),
                Err(error) => {
                    tracing::warn!(provider = provider.name(), "a search failed: {}", error.why());
                    (provider.name(), None)
                }
            }
        });
        let (mut items, mut unavailable) = (Vec::new(), Vec::new());
        for (provider, found) in futures_util::future::join_all(asked).await {
            match found {
                None => unavailable.push(provider.to_owned()),
                Some(found) => items.extend(found.into_iter().map(|principal| {
                    let mut item = value!(principal);
                    item["provider"] = provider.into();
                    item
                })),
            }
        }
        json(StatusCode::OK, &value!({ "items": items, "unavailable": unavailable }))
    }

    /// `POST /auth/can-i`: whether the hub lets somebody through to a cluster, and which rule says so. About somebody
    /// else only administrators are told.
    pub(super) async fn can_i(&self, request: Request<Incoming>, who: &Authenticated) -> Response<Body> {
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(Question { cluster, verb, user }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"cluster\", \"verb\"}");
        };
        let another = user.filter(|user| *user != who.identity.user);
        let (identity, clusters, verbs) = match another {
            None => (Arc::clone(&who.identity), who.clusters.clone(), who.verbs.clone()),
            Some(_) if !who.administers() => {
                self.count_refusal("not_admin");
                return status_response(StatusCode::FORBIDDEN, "only administrators ask about others");
            }
            Some(name) => match self.directory.groups_of(&name) {
                Some(groups) => (Arc::new(Identity::new(name, groups)), None, None),
                None => {
                    let words = format!("users.moorline.dev {name:?} not found, or disabled");
                    return status_response(StatusCode::NOT_FOUND, &words);
                }
            },
        };
        let grants = self.directory.grants();
        let facts = Facts { identity: &identity, token_clusters: clusters.as_deref(), grants: &grants };
        let told = explain(&facts, verbs.as_deref(), &cluster, &verb);
        let connected = !self.registry.carriers(&cluster).is_empty();
        let known = facts.reaches_all().then(|| self.records.cluster_exists(&cluster));
        json(
            StatusCode::OK,
            &value!({
                "allowed": told.allowed && known != Some(false), "reason": if known == Some(false) { "there is no such cluster".to_owned() } else { told.reason },
                "rules": told.rules, "user": identity.user, "groups": told.groups, "record": told.record,
                "connected": told.allowed && connected,
            }),
        )
    }
}
