//! The hub's own objects, for callers who are known. What they change goes on record as an API server writes it down.

use super::{
    Front,
    answers::{closing, json, login_refused, store_failed},
    link,
};
use crate::{
    audit::{self, Pending},
    directory::Authenticated,
    events,
    reader::Prompt,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use moorline_authz::{
    access::{Facts, HubRequest, hub_api},
    verb::request_info,
};
use moorline_proxy::{
    Body,
    audit::{AuditUser, ObjectRef},
    body,
    status::status_response,
};
use serde::Deserialize;
use std::{net::SocketAddr, sync::Arc};

impl Front {
    /// A request of the hub's own API.
    pub(super) async fn objects(
        &self,
        request: Request<Incoming>,
        path: &str,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let target = request.uri().path_and_query().map_or(path, |target| target.as_str()).to_owned();
        Prompt::note(&request, &target);
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.object(request, path, who).await;
        }
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let info = request_info(request.method().as_str(), path, request.uri().query());
        let object = ObjectRef::of(&info);
        let unnamed = info.verb == "create" && object.as_ref().is_some_and(|object| object.name.is_empty());
        let mut event = audit::event(&info.verb, &target, &who.identity.user, remote, 0, "", "");
        (event.user, event.object_ref) = (AuditUser::of(&who.identity), object);
        let record = Pending::new(&self.audit, event);
        let (mut response, mut name) = (self.object(request, path, who).await, None);
        if unnamed {
            let (made, same) = name_in(response).await;
            (response, name) = (same, Some(made));
        }
        record.end(response.status().as_u16(), |event| {
            if let (Some(object), Some(name)) = (&mut event.object_ref, name) {
                object.name = name;
            }
        });
        response
    }

    async fn object(&self, request: Request<Incoming>, path: &str, who: &Authenticated) -> Response<Body> {
        if let Some(user) = password_of(path) {
            return self.password(request, user, who).await;
        }
        if let Some(asked) = link::Asked::of(path) {
            return self.about_link(request, asked, who).await;
        }
        if events::is_core_events(path) {
            return self.core_events(&request, who).await;
        }
        let (parts, incoming) = request.into_parts();
        match self.collect(incoming, self.limits.body).await {
            Ok(bytes) => self.api.handle(Request::from_parts(parts, bytes), who, &self.directory).await,
            Err(response) => response,
        }
    }

    async fn password(&self, request: Request<Incoming>, user: &str, who: &Authenticated) -> Response<Body> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct NewPassword {
            password: String,
        }
        if request.method() != Method::PUT {
            return closing(StatusCode::METHOD_NOT_ALLOWED, "only PUT");
        }
        let grants = self.directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        let asked = HubRequest { verb: "update", resource: "users", subresource: "password", name: user, owner: None };
        if let Err(denial) = hub_api(&facts, &asked) {
            return status_response(StatusCode::FORBIDDEN, &denial.to_string());
        }
        match self.records.get::<crate::kinds::UserSpec>(user) {
            Ok(Some(_)) => {}
            Ok(None) => {
                return status_response(StatusCode::NOT_FOUND, &format!("users.moorline.dev {user:?} not found"));
            }
            Err(error) => return store_failed(&error),
        }
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(NewPassword { password }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"password\": \"…\"}");
        };
        let (logins, directory) = (Arc::clone(&self.logins), Arc::clone(&self.directory));
        let (whose, except) = (user.to_owned(), who.token.clone());
        // To its end, whether the client waits for it or not: with the new password set, the logins by the old one must go.
        let changed = self.tasks.spawn(async move {
            let ended = logins.change_password(&whose, password, &except).await?;
            ended.iter().for_each(|id| directory.revoke(id));
            Ok(ended.len())
        });
        match changed.await {
            Ok(Ok(ended)) => {
                tracing::info!(user, by = who.identity.user, ended, "password set");
                json(StatusCode::OK, &serde_json::json!({}))
            }
            Ok(Err(error)) => login_refused(&error),
            Err(_) => status_response(StatusCode::INTERNAL_SERVER_ERROR, "setting the password has failed by a bug"),
        }
    }
}

/// The name of the object that an answer shows, or that a refusal is about; empty where it tells none. Names that the hub
/// makes, as those of tokens, stand nowhere else.
async fn name_in(response: Response<Body>) -> (String, Response<Body>) {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        metadata: Named,
        details: Named,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named {
        name: String,
    }
    if response.body().size_hint().exact().is_none() {
        return (String::new(), response);
    }
    let (parts, all) = response.into_parts();
    let Ok(all) = all.collect().await else {
        return (String::new(), closing(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be read"));
    };
    let bytes = all.to_bytes();
    let Said { metadata, details } = serde_json::from_slice(&bytes).unwrap_or_default();
    let name = if metadata.name.is_empty() { details.name } else { metadata.name };
    (name, Response::from_parts(parts, body::full(bytes)))
}

/// `/apis/moorline.dev/v1alpha1/users/<name>/password`
fn password_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/apis/moorline.dev/v1alpha1/users/")?.strip_suffix("/password")?;
    moorline_apiserver::dns_subdomain(name).ok().map(|_| name)
}
