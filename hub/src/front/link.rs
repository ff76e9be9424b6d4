//! `GET /apis/moorline.dev/v1alpha1/clusters/NAME/link`: the tunnel to a cluster as it is now, for whoever may know the
//! cluster. `POST …/clusters/NAME/bench`: what it can carry, for administrators.

use super::{
    Front,
    answers::{closing, json, later},
};
use crate::{
    bench::{self, Plan},
    directory::Authenticated,
    link::Link,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::access::{Facts, HubRequest, hub_api};
use moorline_proxy::{Body, status::status_response};
use serde_json::json as value;
use std::time::Duration;

/// Measurements at a time: a second one would measure the first.
pub(crate) const BENCHES: usize = 1;

/// What is asked about a cluster's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    Link(&'a str),
    Bench(&'a str),
}

impl<'a> Asked<'a> {
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let (name, what) = path.strip_prefix("/apis/moorline.dev/v1alpha1/clusters/")?.split_once('/')?;
        moorline_apiserver::dns_subdomain(name).ok()?;
        match what {
            "link" => Some(Self::Link(name)),
            "bench" => Some(Self::Bench(name)),
            _ => None,
        }
    }
}

impl Front {
    pub(super) async fn about_link(
        &self,
        request: Request<Incoming>,
        asked: Asked<'_>,
        who: &Authenticated,
    ) -> Response<Body> {
        let (name, verb, subresource, method) = match asked {
            Asked::Link(name) => (name, "get", "link", Method::GET),
            Asked::Bench(name) => (name, "create", "bench", Method::POST),
        };
        if request.method() != method {
            return closing(StatusCode::METHOD_NOT_ALLOWED, &format!("only {method}"));
        }
        let grants = self.directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        let question = HubRequest { verb, resource: "clusters", subresource, name, owner: None };
        if let Err(denial) = hub_api(&facts, &question) {
            self.count_refusal("not_admin");
            return status_response(StatusCode::FORBIDDEN, &denial.to_string());
        }
        if !self.records.cluster_exists(name) {
            return status_response(StatusCode::NOT_FOUND, &format!("clusters.moorline.dev {name:?} not found"));
        }
        match asked {
            Asked::Link(name) => {
                let mut links: Vec<Link> = self.registry.of_cluster(name).iter().map(|entry| Link::of(entry)).collect();
                links.sort_by(|a, b| (a.role, &a.connected_since).cmp(&(b.role, &b.connected_since)));
                json(StatusCode::OK, &value!({ "cluster": name, "sessions": links }))
            }
            Asked::Bench(name) => self.bench(request, name).await,
        }
    }

    async fn bench(&self, request: Request<Incoming>, name: &str) -> Response<Body> {
        let body = match self.read(request).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let plan = if body.is_empty() { Ok(Plan::default()) } else { serde_json::from_slice::<Plan>(&body) };
        let fault = match &plan {
            Ok(plan) => plan.fault(),
            Err(error) => Some(format!("the body must be {{\"seconds\", \"streams\"}}: {error}")),
        };
        let (Ok(plan), None) = (plan, &fault) else {
            return status_response(StatusCode::BAD_REQUEST, &fault.unwrap_or_default());
        };
        let sessions = self.registry.of_cluster(name);
        let usable = sessions.iter().filter(|entry| !entry.session.is_draining());
        let Some(entry) = usable.min_by_key(|entry| (entry.node, entry.candidate().doubt, entry.session.rtt())) else {
            return later(StatusCode::SERVICE_UNAVAILABLE, "no agent is connected", Duration::from_secs(5));
        };
        let Ok(_one) = self.benches.try_acquire() else {
            let words = "another measurement is under way, and two would measure each other";
            return later(StatusCode::TOO_MANY_REQUESTS, words, Duration::from_secs(5));
        };
        match bench::run(entry, plan).await {
            Ok(report) => json(StatusCode::OK, &report),
            Err(error) => status_response(StatusCode::BAD_GATEWAY, &error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clusters_own_paths_are_taken() {
        let at = |rest: &str| format!("/apis/moorline.dev/v1alpha1/clusters{rest}");
        assert_eq!(Asked::of(&at("/edge1/link")), Some(Asked::Link("edge1")));
        assert_eq!(Asked::of(&at("/edge1/bench")), Some(Asked::Bench("edge1")));
        for other in ["", "/edge1", "/edge1/status", "/edge1/link/x", "/Edge/link", "//link"] {
            assert_eq!(Asked::of(&at(other)), None, "{other}");
        }
    }
}
