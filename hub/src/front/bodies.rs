//! Bodies of requests on the hub's own paths: whole, and bounded in size and time.

use super::{
    Front,
    answers::{closing, later},
};
use crate::crowd::Full;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use moorline_proxy::Body;
use std::{net::SocketAddr, time::Duration};
use tokio::time::timeout;

impl Front {
    pub(super) async fn read(&self, request: Request<Incoming>) -> Result<Bytes, Response<Body>> {
        self.collect(request.into_body(), self.limits.body).await
    }

    /// The same for somebody who has not proved who they are: smaller, and so many at a time, in all and of one address.
    pub(super) async fn read_of_stranger(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Result<Bytes, Response<Body>> {
        let _place = self.strangers.enter(remote.ip()).map_err(|full| {
            self.count_refusal(full.label());
            let (code, message) = match full {
                Full::OfOne => (StatusCode::TOO_MANY_REQUESTS, "too many logins and joins from this address"),
                Full::OfAll => (StatusCode::SERVICE_UNAVAILABLE, "too many logins and joins"),
            };
            later(code, message, Duration::from_secs(1))
        })?;
        self.collect(request.into_body(), self.limits.body_of_strangers).await
    }

    /// A whole body, bounded in size and time.
    pub(super) async fn collect(&self, body: Incoming, most: usize) -> Result<Bytes, Response<Body>> {
        let large = || Err(closing(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than this hub takes"));
        // For what it says of itself, before any of it is waited for.
        if most < usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) {
            return large();
        }
        match timeout(self.limits.body_wait, Limited::new(body, most).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => large(),
            Ok(Err(_)) => Err(closing(StatusCode::BAD_REQUEST, "the body was cut short")),
            Err(_) => Err(closing(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        }
    }
}
