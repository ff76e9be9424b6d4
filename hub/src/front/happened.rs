//! Events of core/v1, for `kubectl describe`: a view of the hub's own.

use super::{Front, closing, json};
use crate::{directory::Authenticated, events};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use moorline_proxy::Body;

/// Where the hub's own are.
const OWN: &str = "/apis/moorline.dev/v1alpha1/events";

impl Front {
    /// The caller lists the hub's events, by the caller's own right, and gets them as Kubernetes writes them.
    pub(super) async fn core_events(&self, request: &Request<Incoming>, who: &Authenticated) -> Response<Body> {
        let query = request.uri().query();
        if request.method() != Method::GET || events::is_watch(query) {
            return closing(StatusCode::METHOD_NOT_ALLOWED, "only lists; watch events.moorline.dev instead");
        }
        let own = Request::get(OWN).header(header::ACCEPT, "application/json").body(Bytes::new());
        let Ok(own) = own else {
            return closing(StatusCode::INTERNAL_SERVER_ERROR, "no request could be made");
        };
        let answer = self.api.handle(own, who, &self.directory).await;
        if answer.status() != StatusCode::OK {
            return answer;
        }
        let Ok(list) = answer.into_body().collect().await else {
            return closing(StatusCode::INTERNAL_SERVER_ERROR, "the events could not be read");
        };
        match serde_json::from_slice(&list.to_bytes()) {
            Ok(list) => json(StatusCode::OK, &events::core_events(&list, query)),
            Err(_) => closing(StatusCode::INTERNAL_SERVER_ERROR, "the events could not be read"),
        }
    }
}
