//! Whether a call goes to its cluster: asked at the hub and at a cluster's own endpoint, of the same code.

use http::{HeaderMap, Request, StatusCode, header};
use moorline_authz::{
    access::{Denial, Permit, within_verbs},
    identity::ActAs,
    impersonation::{self, BadImpersonation},
    verb::request_info,
};

/// Why a call goes to no cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For metrics and the audit log: one of a fixed set.
    pub reason: &'static str,
    /// The answer's status.
    pub code: StatusCode,
    /// For the caller.
    pub message: String,
}

/// Takes a request apart and decides. `rest` is what goes to the cluster, query included; `verbs` are those that the
/// caller's token is bound to; `authorize` says whether they reach the cluster, as whom they ask to act. Nothing is waited
/// for here.
///
/// # Errors
/// The refusal.
pub fn judge<B>(
    request: &Request<B>,
    rest: &str,
    verbs: Option<&[String]>,
    authorize: impl FnOnce(Option<ActAs>) -> Result<Permit, Denial>,
) -> Result<Permit, Refusal> {
    let act_as = impersonation::parse(pairs(request.headers())).map_err(|error| {
        let code = match error {
            BadImpersonation::Malformed(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        Refusal { reason: "impersonation", code, message: error.to_string() }
    })?;
    let forbidden = |reason, message| Refusal { reason, code: StatusCode::FORBIDDEN, message };
    if verbs.is_some() {
        let (at, query) = rest.split_once('?').map_or((rest, None), |(at, query)| (at, Some(query)));
        let verb = request_info(request.method().as_str(), at, query).verb;
        within_verbs(verbs, &verb).map_err(|denial| forbidden("token_verb", denial.to_string()))?;
    }
    authorize(act_as).map_err(|denial| forbidden("not_granted", denial.to_string()))
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// The token of an `Authorization: Bearer` header: exactly one such header, nothing else counts.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = std::str::from_utf8(one.as_bytes()).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}
