//! The gate: who asks, whether they ask too often, and whether they may. Nothing is waited for here, and nothing is opened:
//! this is all that authentication and authorisation add to a call that goes through (`what_the_gate_adds`).

mod permits;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;

pub(crate) use permits::Permits;

use super::answers::{closing, later};
use crate::{
    directory::{Authenticated, Directory},
    known::Known,
    metrics::Metrics,
    quota::{Over, Quotas},
    records::Records,
};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use moorline_authz::access::{Grants, Permit};
use moorline_proxy::{
    Body,
    judge::{Refusal, bearer, judge},
    path::{self, ClusterPath},
    status::status_response,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// The one answer to everybody who is not known, whatever is wrong.
pub(super) const UNAUTHORIZED: &str = "Unauthorized";

/// What everybody who shows a token passes.
pub(crate) struct Gate {
    pub directory: Arc<Directory>,
    pub records: Records,
    /// How much everybody may ask for.
    pub quotas: Quotas,
    pub metrics: Metrics,
    /// What was decided before.
    pub permits: Permits,
    /// How long what is known of rights counts while the store does not tell of changes.
    pub rights_without_store: Duration,
}

impl Gate {
    /// Who asks, if they may ask now.
    pub fn enter<B>(&self, request: &Request<B>, remote: SocketAddr) -> Result<Authenticated, Response<Body>> {
        let who = self.authenticate(request)?;
        self.over_quota(&who, remote).map_or(Ok(who), Err)
    }

    /// Who asks.
    pub fn authenticate<B>(&self, request: &Request<B>) -> Result<Authenticated, Response<Body>> {
        if let Some(response) = self.unheard() {
            return Err(response);
        }
        let who = bearer(request.headers()).and_then(|token| self.directory.authenticate(token));
        if who.is_some() {
            note_known(request);
        }
        who.ok_or_else(|| {
            self.count_refusal("unauthenticated");
            status_response(StatusCode::UNAUTHORIZED, UNAUTHORIZED)
        })
    }

    /// The refusal of everybody, once rights may have been taken away elsewhere for too long.
    pub fn unheard(&self) -> Option<Response<Body>> {
        (self.rights_without_store < self.records.unheard()).then(|| {
            self.count_refusal("store_silent");
            let why = "the hub's store does not answer, so that nobody knows whether rights were taken away meanwhile";
            later(StatusCode::SERVICE_UNAVAILABLE, why, Duration::from_secs(4))
        })
    }

    /// The answer to who asks for more than they may.
    pub fn over_quota(&self, who: &Authenticated, remote: SocketAddr) -> Option<Response<Body>> {
        self.refuse_over(self.quotas.take(&who.identity.user, remote.ip()))
    }

    /// The same for one cluster and all who ask for it.
    pub fn over_quota_to(&self, cluster: &str) -> Option<Response<Body>> {
        self.refuse_over(self.quotas.take_cluster(cluster))
    }

    /// Both, for an agent that reaches a service of another cluster for its pods.
    pub fn over_quota_of(&self, agent: &str, cluster: &str, remote: SocketAddr) -> Option<Response<Body>> {
        self.refuse_over(self.quotas.take(agent, remote.ip()).and_then(|()| self.quotas.take_cluster(cluster)))
    }

    fn refuse_over(&self, taken: Result<(), Over>) -> Option<Response<Body>> {
        let over = taken.err()?;
        self.count_refusal(over.label);
        Some(later(StatusCode::TOO_MANY_REQUESTS, &over.to_string(), over.wait))
    }

    /// Whether a call goes to its cluster.
    pub fn judge<B>(
        &self,
        request: &Request<B>,
        path: &ClusterPath<'_>,
        who: &Authenticated,
        grants: &Arc<Grants>,
    ) -> Result<Permit, Refusal> {
        let mut reaches_all = false;
        let permit = judge(request, path.rest, who.verbs.as_deref(), |act_as| {
            let exists = || self.records.cluster_exists(path.cluster);
            let given = self.permits.authorize(who, grants, path.cluster, act_as, exists)?;
            reaches_all = given.reaches_all;
            Ok(given.permit)
        })?;
        // Only who may know which clusters exist is told that one does not.
        if reaches_all && !self.records.cluster_exists(path.cluster) {
            let message = format!("clusters.moorline.dev {:?} not found", path.cluster);
            return Err(Refusal { reason: "unknown_cluster", code: StatusCode::NOT_FOUND, message });
        }
        Ok(permit)
    }

    pub fn count_refusal(&self, reason: &str) {
        self.metrics.refusals.with_label_values(&[reason]).inc();
    }
}

/// Somebody on this connection has proved who they are.
pub(super) fn note_known<B>(request: &Request<B>) {
    if let Some(known) = request.extensions().get::<Known>() {
        known.note();
    }
}

/// The host that a request names, if it names one, once, and the one of the TLS handshake.
pub(super) fn check_host<B>(request: &Request<B>, sni: Option<&str>) -> Result<(), Response<Body>> {
    let bad = |message: &str| Err(closing(StatusCode::BAD_REQUEST, message));
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let host = match host.map(HeaderValue::to_str) {
        Some(Err(_)) => return bad("the Host header cannot be read"),
        Some(Ok(host)) => Some(host),
        None => None,
    };
    let named = request.uri().authority().map(|authority| authority.as_str());
    if more.is_some() {
        return bad("two Host headers");
    }
    let old = request.version() <= Version::HTTP_11;
    if old && named.is_some() {
        return bad("the request target must be a path");
    }
    if let (Some(a), Some(b)) = (named, host)
        && path::canonical_host(a) != path::canonical_host(b)
    {
        return bad(":authority and Host differ");
    }
    match named.or(host) {
        None => bad("no Host"),
        Some(authority) if !path::host_matches_sni(authority, sni) => {
            Err(closing(StatusCode::MISDIRECTED_REQUEST, "this connection was made for another host"))
        }
        Some(_) => Ok(()),
    }
}
