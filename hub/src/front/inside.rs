//! What leads inside clusters: services by path, and connections to services, pods and hosts.

use super::{Front, Refusal, closing, pairs};
use crate::directory::Authenticated;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_authz::{
    access::{Facts, Grants, Permit, authorize_inside, refuse_act_as, within_verbs},
    impersonation,
};
use moorline_proto::inside::{BadDestination, Destination, Payload};
use moorline_proxy::{
    Body, body,
    kube::{Caller, Service},
    path::{self, BadPath, ClusterPath, ServicePath},
    status::status_response,
};
use std::{net::SocketAddr, sync::Arc};

/// What is asked for inside a cluster.
pub(super) enum Asked<'a> {
    /// A service by path.
    Service(ServicePath<'a>),
    /// A connection: the destination and the query as they stand there.
    Connection(&'a str, Option<&'a str>),
    /// Neither.
    Bad(BadPath),
}

impl<'a> Asked<'a> {
    /// `None`: the API server.
    pub fn of(path: &ClusterPath<'a>) -> Option<Self> {
        match path::service(path.rest) {
            Err(bad) => Some(Self::Bad(bad)),
            Ok(Some(service)) => Some(Self::Service(service)),
            Ok(None) => path.rest.strip_prefix("/connect/").map(|rest| {
                let (to, query) = rest.split_once('?').map_or((rest, None), |(to, query)| (to, Some(query)));
                Self::Connection(to, query)
            }),
        }
    }

    fn destination(&self) -> Result<(Destination, Payload), String> {
        let told = |bad: BadDestination| bad.to_string();
        match self {
            Self::Bad(bad) => Err(bad.to_string()),
            Self::Service(path) => {
                let to = Destination::service(path.namespace, path.name, path.port).map_err(told)?;
                Ok((to, if path.https { Payload::Https } else { Payload::Http }))
            }
            Self::Connection(to, query) => {
                let to = to.parse().map_err(told)?;
                match query {
                    None | Some("payload=bytes") => Ok((to, Payload::Bytes)),
                    Some("payload=datagrams") => Ok((to, Payload::Datagrams)),
                    Some(_) => Err("the query may be payload=bytes or payload=datagrams".to_owned()),
                }
            }
        }
    }
}

/// A service that is called.
pub(super) struct Reached<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// The target as the service shall see it.
    pub rest: &'a str,
    /// The service.
    pub to: &'a Destination,
    /// How it is reached.
    pub service: Service,
}

impl Front {
    /// A call that leads inside a cluster.
    pub(super) async fn inside(
        &self,
        request: Request<Incoming>,
        path: ClusterPath<'_>,
        asked: Asked<'_>,
        who: Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let (to, payload) = match asked.destination() {
            Ok(to) => to,
            Err(why) => {
                self.count_refusal("path");
                return closing(StatusCode::BAD_REQUEST, &why);
            }
        };
        if let Asked::Service(found) = &asked {
            let Some(rest) = found.rest else { return with_slash(&path) };
            let service = Service::by_path(path.cluster, found, &host_of(&request));
            return self.reach(request, Reached { cluster: path.cluster, rest, to: &to, service }, who, remote).await;
        }
        let grants = self.directory.watch_grants();
        let known = Arc::clone(&grants.borrow());
        let verb = "connect";
        let permit = match self.judge_inside(&request, path.cluster, (&to, verb), &who, &known) {
            Ok(permit) => permit,
            Err(refusal) => return self.refuse(refusal, &request, &path, &who, remote).await,
        };
        if let Some(response) = self.gate.over_quota_to(path.cluster) {
            return response;
        }
        let proxy = self.proxy(&who, grants);
        let caller = Caller { identity: who.identity, remote };
        proxy.connect(request.map(body::from), payload, &caller, permit).await
    }

    /// A call to a service, by path or by its host's name.
    pub(super) async fn reach(
        &self,
        request: Request<Incoming>,
        reached: Reached<'_>,
        who: Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let Reached { cluster, rest, to, service } = reached;
        let grants = self.directory.watch_grants();
        let known = Arc::clone(&grants.borrow());
        let permit = match self.judge_inside(&request, cluster, (to, "proxy"), &who, &known) {
            Ok(permit) => permit,
            Err(refusal) => return self.refuse(refusal, &request, &ClusterPath { cluster, rest }, &who, remote).await,
        };
        if let Some(response) = self.gate.over_quota_to(cluster) {
            return response;
        }
        let proxy = self.proxy(&who, grants);
        let caller = Caller { identity: who.identity, remote };
        proxy.service(request.map(body::from), rest, &service, &caller, permit).await
    }

    fn judge_inside(
        &self,
        request: &Request<Incoming>,
        cluster: &str,
        (to, verb): (&Destination, &str),
        who: &Authenticated,
        grants: &Grants,
    ) -> Result<Permit, Refusal> {
        let forbidden = |reason, message| Refusal { reason, code: StatusCode::FORBIDDEN, message };
        let act_as = impersonation::parse(pairs(request.headers()));
        let act_as = act_as.map_err(|error| forbidden("impersonation", error.to_string()))?;
        refuse_act_as(act_as.as_ref()).map_err(|denial| forbidden("impersonation", denial.to_string()))?;
        within_verbs(who.verbs.as_deref(), verb).map_err(|denial| forbidden("token_verb", denial.to_string()))?;
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants };
        let permit = authorize_inside(&facts, cluster, to);
        let permit = permit.map_err(|denial| forbidden("service_not_granted", denial.to_string()))?;
        if facts.reaches_all() && !self.records.cluster_exists(cluster) {
            let message = format!("clusters.moorline.dev {cluster:?} not found");
            return Err(Refusal { reason: "unknown_cluster", code: StatusCode::NOT_FOUND, message });
        }
        Ok(permit)
    }
}

/// The host that the client named, as it did.
pub(super) fn host_of(request: &Request<Incoming>) -> String {
    let named = request.uri().authority().map(|authority| authority.as_str());
    let host = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    named.or_else(host).unwrap_or_default().to_owned()
}

/// To the same path with a slash, as Kubernetes does it: what is relative to a service's first page leads to the service.
fn with_slash(path: &ClusterPath<'_>) -> Response<Body> {
    let (at, query) = path.rest.split_once('?').map_or((path.rest, String::new()), |(at, q)| (at, format!("?{q}")));
    let mut response = status_response(StatusCode::PERMANENT_REDIRECT, "a service's own paths begin with a slash");
    match HeaderValue::try_from(format!("/k8s/clusters/{}{at}/{query}", path.cluster)) {
        Ok(location) => {
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        Err(_) => status_response(StatusCode::BAD_REQUEST, "the request target is malformed"),
    }
}
