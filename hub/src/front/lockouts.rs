//! `GET /auth/lockouts`, `DELETE /auth/lockouts/user/NAME` and `…/address/ADDRESS`, for administrators.

use super::{Front, answers::json};
use crate::{audit, directory::Authenticated};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::verb::percent_decode;
use moorline_proxy::{Body, status::status_response};
use serde_json::json as value;
use std::net::{IpAddr, SocketAddr};

/// Where they are.
pub(super) const PREFIX: &str = "/auth/lockouts";

/// Who is let in again.
enum Whom {
    User(String),
    Address(IpAddr),
}

impl Front {
    /// Who is locked out for wrong passwords, and who is let in again.
    pub(super) async fn lockouts(
        &self,
        request: &Request<Incoming>,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        if !who.administers() {
            self.count_refusal("not_admin");
            return status_response(StatusCode::FORBIDDEN, "only administrators see who is locked out");
        }
        let path = request.uri().path();
        let which = path.strip_prefix(PREFIX).unwrap_or_default().trim_start_matches('/');
        if which.is_empty() && request.method() == Method::GET {
            return json(StatusCode::OK, &value!({ "items": self.logins.lockouts.locked() }));
        }
        let decoded = |text| percent_decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
        let whom = match (request.method(), which.split_once('/')) {
            (&Method::DELETE, Some(("user", name))) => decoded(name).map(Whom::User),
            (&Method::DELETE, Some(("address", address))) => {
                decoded(address).and_then(|text| text.parse().ok()).map(Whom::Address)
            }
            _ => None,
        };
        let Some(whom) = whom else {
            let message = "GET /auth/lockouts, or DELETE /auth/lockouts/user/NAME or …/address/ADDRESS";
            return status_response(StatusCode::BAD_REQUEST, message);
        };
        // First: nobody is let in again of whom there is no record.
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let known = match whom {
            Whom::User(name) => self.logins.lockouts.unlock_user(&name),
            Whom::Address(address) => self.logins.lockouts.unlock_address(address),
        };
        self.audit.push(audit::event("unlock", path, &who.identity.user, remote, 200, "logins", ""));
        json(StatusCode::OK, &value!({ "wasCounted": known }))
    }
}
