//! What keeps a login going, and what ends it: refreshes, tokens for clusters alone, logouts, public keys.

use super::{
    Front,
    answers::{closing, json, store_failed},
};
use crate::{
    audit::{self, Pending},
    directory::Authenticated,
    issue::{IssueError, Login},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_authz::{access::Facts, access_token::MAX_AUDIENCES};
use moorline_proxy::{Body, audit::AuditUser, body, status::status_response};
use serde::Deserialize;
use std::net::SocketAddr;

/// How long a JWKS may be kept: less than a key is published before it signs.
const KEYS_AGE: &str = "public, max-age=300";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refresh {
    refresh_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForClusters {
    clusters: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    lost: bool,
}

const WANTS_REFRESH: &str = "the body must be {\"refreshToken\": \"mlr_…\"}";

impl Front {
    /// `GET /auth/keys`: a JWKS.
    pub(super) fn public_keys(&self) -> Response<Body> {
        let mut response = json(StatusCode::OK, &self.issuer.signing().keys());
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(KEYS_AGE));
        response
    }

    /// `POST /auth/refresh`, and `POST /auth/logout` of somebody whose access token is over.
    pub(super) async fn by_refresh_token(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
        out: bool,
    ) -> Response<Body> {
        let body = match self.read_of_stranger(request, remote).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(Refresh { refresh_token }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, WANTS_REFRESH);
        };
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        if out {
            return match self.issuer.login_of(&refresh_token) {
                Ok(Login { id, user }) => {
                    let user = AuditUser { username: user, uid: String::new(), groups: Vec::new() };
                    self.end_login(&id, user, remote).await
                }
                // Counted, and on no record: anybody could fill the log with guesses.
                Err(error) => {
                    self.count_refresh(Some(&error));
                    issue_refused(&error)
                }
            };
        }
        let issued = self.issuer.refresh(&refresh_token, &self.directory).await;
        self.count_refresh(issued.as_ref().err());
        let known = matches!(issued, Ok(_) | Err(IssueError::Reused));
        let (user, response) = match issued {
            Ok(issued) => (issued.user.clone(), json(StatusCode::OK, &issued)),
            Err(error) => (String::new(), issue_refused(&error)),
        };
        if known {
            let code = response.status().as_u16();
            self.audit.push(audit::event("create", "/auth/refresh", &user, remote, code, "tokens", ""));
        }
        response
    }

    /// `POST /auth/logout` with a token: that is over, or the login that it is of.
    pub(super) async fn log_out(&self, who: &Authenticated, remote: SocketAddr) -> Response<Body> {
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        self.end_login(&who.token, AuditUser::of(&who.identity), remote).await
    }

    /// Ends a login that somebody may end. The audit log has room for it.
    async fn end_login(&self, id: &str, user: AuditUser, remote: SocketAddr) -> Response<Body> {
        let mut event = audit::event("delete", "/auth/logout", "", remote, 0, "tokens", "");
        event.user = user;
        if let Some(object) = &mut event.object_ref {
            object.name = id.to_owned();
        }
        let record = Pending::new(&self.audit, event);
        let ended = self.issuer.end(id, &self.directory).await;
        self.count_refresh(ended.as_ref().err());
        let response = match ended {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
            Err(error) => issue_refused(&error),
        };
        record.end(response.status().as_u16(), |_| {});
        response
    }

    fn count_refresh(&self, error: Option<&IssueError>) {
        let label = match error {
            None => "ok",
            Some(IssueError::Over | IssueError::TooLong) => "over",
            Some(IssueError::Reused) => "reused",
            Some(IssueError::Store(_)) => "store",
        };
        self.metrics.refreshes.with_label_values(&[label]).inc();
    }

    /// `POST /auth/token`: an access token for clusters alone.
    pub(super) async fn cluster_token(&self, request: Request<Incoming>, who: &Authenticated) -> Response<Body> {
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(ForClusters { clusters }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"clusters\": [\"NAME\"]}");
        };
        if clusters.is_empty() || MAX_AUDIENCES < clusters.len() {
            return status_response(StatusCode::BAD_REQUEST, "from 1 to 32 clusters");
        }
        let grants = self.directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        match clusters.iter().find(|cluster| !facts.reaches(cluster)) {
            Some(cluster) => {
                self.count_refusal("not_granted");
                let user = &who.identity.user;
                status_response(StatusCode::FORBIDDEN, &format!("user {user:?} has no access to cluster {cluster:?}"))
            }
            None => json(StatusCode::OK, &self.issuer.for_clusters(who, &clusters)),
        }
    }

    /// `GET /auth/bundles/<cluster>`, for administrators: to be carried there by hand.
    pub(super) async fn bundle_of(&self, path: &str, who: &Authenticated, remote: SocketAddr) -> Response<Body> {
        if !who.identity.is_admin() || who.clusters.is_some() || who.verbs.is_some() {
            self.count_refusal("not_admin");
            return status_response(StatusCode::FORBIDDEN, "only administrators take bundles away");
        }
        let cluster = path.strip_prefix("/auth/bundles/").unwrap_or_default();
        if !self.records.cluster_exists(cluster) {
            return status_response(StatusCode::NOT_FOUND, &format!("clusters.moorline.dev {cluster:?} not found"));
        }
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let user = &who.identity.user;
        let (response, code) = match self.bundles.make(cluster) {
            Ok(sealed) => (Response::new(body::full(sealed.bytes)), StatusCode::OK),
            Err(error) => {
                tracing::error!("no bundle was made: {error}");
                let code = StatusCode::INTERNAL_SERVER_ERROR;
                (status_response(code, "the bundle could not be signed"), code)
            }
        };
        self.audit.push(audit::event("get", path, user, remote, code.as_u16(), "bundles", cluster));
        response
    }

    /// `POST /auth/keys/rotate`, for administrators.
    pub(super) async fn rotate_keys(
        &self,
        request: Request<Incoming>,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        if !who.identity.is_admin() || who.clusters.is_some() || who.verbs.is_some() {
            self.count_refusal("not_admin");
            return status_response(StatusCode::FORBIDDEN, "only administrators rotate signing keys");
        }
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(Rotate { lost }) = serde_json::from_slice(&body) else {
            return closing(StatusCode::BAD_REQUEST, "the body must be {\"lost\": true or false}");
        };
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let event = audit::event("update", "/auth/keys/rotate", &who.identity.user, remote, 0, "signingkeys", "");
        let record = Pending::new(&self.audit, event);
        let response = match self.issuer.signing().rotate(lost).await {
            Ok(()) => self.public_keys(),
            Err(error) => store_failed(&error),
        };
        record.end(response.status().as_u16(), |_| {});
        response
    }
}

pub(super) fn issue_refused(error: &IssueError) -> Response<Body> {
    match error {
        IssueError::Over | IssueError::Reused => status_response(StatusCode::UNAUTHORIZED, &error.to_string()),
        IssueError::TooLong => status_response(StatusCode::BAD_REQUEST, &error.to_string()),
        IssueError::Store(error) => store_failed(error),
    }
}
