//! Shells on nodes: `/k8s/clusters/<cluster>/shell`.

use super::{Front, Refusal, closing};
use crate::{directory::Authenticated, route::ShellDial};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_authz::access::within_verbs;
use moorline_proto::id::AgentName;
use moorline_proxy::{Body, body, headers::BEARER_PROTOCOL, kube::Caller, path::ClusterPath};
use std::{net::SocketAddr, sync::Arc};

/// The query of a request for a shell; `None`: it asks for something else.
pub(super) fn asked<'a>(path: &ClusterPath<'a>) -> Option<&'a str> {
    let rest = path.rest.strip_prefix("/shell")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('?') }
}

/// Takes the token of a WebSocket to a shell from where browsers can put it, among the protocols that they offer, to where
/// it is looked for. So kube-apiserver has it: `base64url.bearer.authorization.k8s.io.TOKEN`, with the token in base64url
/// without padding, and another protocol beside it, for that one cannot be agreed upon. Who says more than one thing has said
/// nothing. What is passed on has neither.
pub(super) fn take_token(headers: &mut HeaderMap) {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers: Vec<&str> =
        offers.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    let tokens: Vec<&str> = offers.iter().filter_map(|offer| offer.strip_prefix(BEARER_PROTOCOL)).collect();
    if tokens.is_empty() {
        return;
    }
    let opens = headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let value = match tokens[..] {
        [token] if opens && 1 < offers.len() && !headers.contains_key(header::AUTHORIZATION) => authorization(token),
        _ => None,
    };
    match value {
        Some(value) => drop(headers.insert(header::AUTHORIZATION, value)),
        None => drop(headers.remove(header::AUTHORIZATION)),
    }
}

fn authorization(token: &str) -> Option<HeaderValue> {
    let token = URL_SAFE_NO_PAD.decode(token).ok()?;
    let mut value = HeaderValue::try_from([b"Bearer ".as_slice(), token.as_slice()].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Front {
    /// A call that asks for a shell. The same right as for the API server, for that is what a shell is good for.
    pub(super) async fn shell(
        &self,
        request: Request<Incoming>,
        path: ClusterPath<'_>,
        query: &str,
        who: Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let node = query.split('&').find_map(|pair| pair.strip_prefix("node="));
        let Ok(node) = node.map(str::parse::<AgentName>).transpose() else {
            self.count_refusal("path");
            return closing(StatusCode::BAD_REQUEST, "node must be the name of a node agent");
        };
        let session = query.split('&').find_map(|pair| pair.strip_prefix("session=")).map(str::to_owned);
        let grants = self.directory.watch_grants();
        let known = Arc::clone(&grants.borrow());
        // What is typed in a shell no verb of a token bounds.
        let verbs = within_verbs(who.verbs.as_deref(), "shell").map_err(|denial| Refusal {
            reason: "token_verb",
            code: StatusCode::FORBIDDEN,
            message: denial.to_string(),
        });
        let permit = match verbs.and_then(|()| self.gate.judge(&request, &path, &who, &known)) {
            Ok(permit) => permit,
            Err(refusal) => return self.refuse(refusal, &request, &path, &who, remote).await,
        };
        if let Some(response) = self.gate.over_quota_to(path.cluster) {
            return response;
        }
        let proxy = self.proxy_over(ShellDial { call: self.dial(&who, grants), node, session });
        let caller = Caller { identity: who.identity, remote };
        proxy.handle(request.map(body::from), path, &caller, permit).await
    }
}
