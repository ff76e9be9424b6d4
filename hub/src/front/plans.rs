//! Files of plans: those that steps fetch come in, those that steps leave go out.
//!
//! `PUT /plans/files/<sha256>`; `GET /plans/<plan>/<agent>/<step>`. For administrators, and recorded.

use super::{Front, closing};
use crate::{
    ask,
    audit::{self, Pending},
    directory::Authenticated,
    plans::{FILE, FileError, NodePlanSpec},
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use moorline_authz::{
    access::{Facts, HubRequest, hub_api, within_verbs},
    plan::sha256,
};
use moorline_proto::header::Target;
use moorline_proxy::{Body, body, status::status_response};
use std::{net::SocketAddr, sync::Arc};

/// Where they are.
pub(super) const PREFIX: &str = "/plans/";

impl Front {
    pub(super) async fn plan_file(
        &self,
        request: Request<Incoming>,
        path: &str,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        let method = request.method().clone();
        let verb = if method == Method::PUT { "create" } else { "get" };
        let grants = self.directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        let asked = HubRequest { verb, resource: "nodeplans", subresource: "files", ..HubRequest::default() };
        let allowed = within_verbs(who.verbs.as_deref(), verb).and_then(|()| hub_api(&facts, &asked).map(drop));
        if let Err(denial) = allowed {
            self.count_refusal("hub_api");
            return status_response(StatusCode::FORBIDDEN, &denial.to_string());
        }
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let record = Pending::new(&self.audit, audit::event(verb, path, &who.identity.user, remote, 0, "", ""));
        let parts: Vec<&str> = path.strip_prefix(PREFIX).unwrap_or_default().split('/').collect();
        let response = match (&method, parts.as_slice()) {
            (&Method::PUT, ["files", sum]) => self.take_file(request, sum).await,
            (&Method::GET, [plan, agent, step]) => self.file_of_step(plan, agent, step).await,
            _ => closing(StatusCode::NOT_FOUND, "PUT /plans/files/<sha256> or GET /plans/<plan>/<agent>/<step>"),
        };
        record.end(response.status().as_u16(), |_| {});
        response
    }

    async fn take_file(&self, request: Request<Incoming>, sum: &str) -> Response<Body> {
        let bytes = match self.collect(request.into_body(), FILE).await {
            Ok(bytes) => bytes,
            Err(response) => return response,
        };
        let (files, sum) = (Arc::clone(&self.plan_files), sum.to_owned());
        match tokio::task::spawn_blocking(move || files.put(&sum, &bytes)).await {
            Ok(Ok(())) => Response::new(body::empty()),
            Ok(Err(error @ FileError::Checksum(_))) => closing(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
            Ok(Err(error)) => closing(StatusCode::INSUFFICIENT_STORAGE, &error.to_string()),
            Err(_) => closing(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
        }
    }

    async fn file_of_step(&self, plan: &str, agent: &str, step: &str) -> Response<Body> {
        let Ok(Some(object)) = self.records.get::<NodePlanSpec>(plan) else {
            return closing(StatusCode::NOT_FOUND, "there is no such plan");
        };
        let full = format!("{}.{agent}", object.spec.cluster);
        let session = self.registry.of_agent(&object.spec.cluster, &full).into_iter().find(|entry| entry.node);
        let Some(session) = session else {
            self.registry.call(&full);
            let message = "this node has no session now; it was asked for one, which takes up to a minute";
            return status_response(StatusCode::SERVICE_UNAVAILABLE, message);
        };
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !step.bytes().all(label) {
            return closing(StatusCode::BAD_REQUEST, "no name of a step");
        }
        let path = format!("/plan/{}/{step}", object.metadata.uid);
        match ask::ask(&session, Target::Node, (Method::GET, &path), Vec::new(), FILE).await {
            Ok((StatusCode::OK, bytes)) => {
                let mut response = Response::new(body::empty());
                if let Ok(sum) = http::HeaderValue::try_from(sha256(&bytes)) {
                    response.headers_mut().insert("x-moorline-sha256", sum);
                }
                response.map(|_| body::full(bytes))
            }
            Ok((code, words)) => status_response(code, &String::from_utf8_lossy(&words)),
            Err(why) => status_response(StatusCode::BAD_GATEWAY, &why),
        }
    }
}
