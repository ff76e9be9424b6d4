//! Shells on nodes: `/k8s/clusters/<cluster>/shell`.

use super::{Front, Refusal, closing};
use crate::{directory::Authenticated, route::ShellDial};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::access::within_verbs;
use moorline_proto::id::AgentName;
use moorline_proxy::{Body, body, kube::Caller, path::ClusterPath};
use std::{net::SocketAddr, sync::Arc};

/// The query of a request for a shell; `None`: it asks for something else.
pub(super) fn asked<'a>(path: &ClusterPath<'a>) -> Option<&'a str> {
    let rest = path.rest.strip_prefix("/shell")?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('?') }
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
        let proxy = self.proxy_over(ShellDial { call: self.dial(&who, grants), node, session });
        let caller = Caller { identity: who.identity, remote };
        proxy.handle(request.map(body::from), path, &caller, permit).await
    }
}
