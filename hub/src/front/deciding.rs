//! `POST /auth/access-requests/NAME/approve` and `…/deny`.

use super::{
    Front,
    answers::{closing, json, store_failed},
};
use crate::{
    access::{DecideError, decide},
    audit::{self, Pending},
    directory::Authenticated,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_proxy::{Body, status::status_response};
use serde::Deserialize;
use std::net::SocketAddr;

/// Longest message of a decision, in bytes.
const MESSAGE: usize = 1024;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    #[serde(default)]
    message: Option<String>,
}

impl Front {
    pub(super) async fn decide_access(
        &self,
        request: Request<Incoming>,
        path: &str,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let decision = if body.is_empty() { Ok(Decision::default()) } else { serde_json::from_slice(&body) };
        let Ok(Decision { message }) = decision else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"message\": \"…\"}");
        };
        if message.as_ref().is_some_and(|message| MESSAGE < message.len()) {
            return status_response(StatusCode::BAD_REQUEST, "a message has at most 1024 bytes");
        }
        let asked = path.strip_prefix("/auth/access-requests/").and_then(|rest| rest.split_once('/'));
        let (name, approve) = match asked {
            Some((name, "approve")) => (name, true),
            Some((name, "deny")) => (name, false),
            _ => return closing(StatusCode::NOT_FOUND, "approve or deny"),
        };
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let (verb, user) = (if approve { "approve" } else { "deny" }, &who.identity.user);
        let record = Pending::new(&self.audit, audit::event(verb, path, user, remote, 0, "accessrequests", ""));
        let (mut cluster, mut whose) = (String::new(), String::new());
        let response = match decide(&self.records, &self.directory, who, name, approve, message).await {
            Ok(decided) => {
                (cluster, whose) = (decided.spec.cluster.clone(), decided.spec.user.clone());
                json(StatusCode::OK, &decided)
            }
            Err(DecideError::Store(error)) => store_failed(&error),
            Err(error) => {
                let code = match error {
                    DecideError::Denied(_) => StatusCode::FORBIDDEN,
                    DecideError::Unknown(_) => StatusCode::NOT_FOUND,
                    _ => StatusCode::CONFLICT,
                };
                status_response(code, &error.to_string())
            }
        };
        record.end(response.status().as_u16(), |event| {
            let more = [("moorline.dev/cluster", cluster), ("moorline.dev/for", whose)];
            event.annotations.extend(more.into_iter().filter(|(_, value)| !value.is_empty()));
        });
        response
    }
}
