//! Connections to places inside a cluster: an upgraded connection of the client's is joined to a stream.

use super::{ATTEMPTS, Call, Caller, Dial, DialError, Failure, KubeProxy, Trace, UPGRADE_WAIT, principal, refused};
use crate::{
    Body,
    splice::{Passed, SpliceError, splice},
    status::status_response,
    upgrade::Io,
    wire::WireError,
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use moorline_authz::{access::Permit, verb::RequestInfo};
use moorline_proto::{
    code::ResetCode,
    header::{Class, StreamHeader, Target},
    inside::{Destination, Inside, Payload},
};
use std::{future::poll_fn, sync::atomic::Ordering, task::Poll, time::Duration};
use tracing::Instrument;

/// What the connection becomes, as `Upgrade` names it.
pub const PROTOCOL: &str = "moorline-stream";
/// Longest wait for an agent's verdict: its own limit for a connection, lookup and all, and a round trip.
const VERDICT_WAIT: Duration = Duration::from_secs(25);
/// A connection without a byte either way for this long is cut; the agent's limit, which can say so, comes first.
const IDLE: Duration = Duration::from_secs(4 * 3600 + 60);

/// What comes of one attempt.
enum Begun<S> {
    /// The place is connected.
    Open(S, Box<Call>, tracing::Span),
    /// It is not, and nothing was sent there; the trace id.
    Failed(Failure, String),
    /// No attempt is made at all.
    Refused(Box<Response<Body>>),
}

impl<D: Dial> KubeProxy<D> {
    /// Joins the client's connection to a stream that leads where `permit` says. Answers 101 once the place is connected,
    /// and until then says why not.
    ///
    /// # Cancel safety
    /// Dropping the future before the answer gives the stream up.
    pub async fn connect(
        &self,
        request: Request<Body>,
        payload: Payload,
        caller: &Caller,
        permit: Permit,
    ) -> Response<Body> {
        self.connect_first(request, payload, caller, &[permit], |_, _| {}).await
    }

    /// The same for the first of several places that takes the connection, tried in turn: nothing was sent to those that
    /// did not. `tell` hears of each how it went, a failure as reason and message; each stands in the audit log.
    ///
    /// # Cancel safety
    /// Dropping the future before the answer gives the stream up.
    pub async fn connect_first(
        &self,
        request: Request<Body>,
        payload: Payload,
        caller: &Caller,
        permits: &[Permit],
        tell: impl Fn(usize, Result<(), (&str, &str)>),
    ) -> Response<Body> {
        let asks = request
            .headers()
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
        if request.method() != Method::GET || request.version() != Version::HTTP_11 || !asks {
            let mut response = status_response(
                StatusCode::UPGRADE_REQUIRED,
                "a connection is asked for by GET over HTTP/1.1 with Upgrade: moorline-stream; see: moorline forward",
            );
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
            return response;
        }
        let mut last = None;
        for (at, permit) in permits.iter().enumerate() {
            match self.begin(request.headers(), payload, caller, permit).await {
                Begun::Open(stream, call, span) => {
                    tell(at, Ok(()));
                    return self.join(request, stream, *call, span);
                }
                Begun::Failed(failure, trace) => {
                    let cluster = permit.cluster();
                    let response = failure.response(cluster, &trace, true);
                    tell(at, Err((failure.reason(), &failure.message(cluster))));
                    last = Some(response);
                }
                Begun::Refused(response) => return *response,
            }
        }
        last.unwrap_or_else(|| refused(StatusCode::INTERNAL_SERVER_ERROR, "there is no right to use"))
    }

    async fn begin(&self, headers: &HeaderMap, payload: Payload, caller: &Caller, permit: &Permit) -> Begun<D::Stream> {
        let Some((to, labels)) = permit.inside() else {
            let response = refused(StatusCode::INTERNAL_SERVER_ERROR, "this right is for the API server");
            return Begun::Refused(Box::new(response));
        };
        let target = Target::Inside(Inside { to: to.clone(), payload, labels: labels.to_vec() });
        let (info, shown) = (info_of(to), format!("/connect/{to}"));
        let agent = headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let trace = Trace::of(headers);
        let call = Call::new(self, permit, caller, &info, &trace, &shown, agent.unwrap_or_default());
        let call = match self.admitted(call).await {
            Ok(call) => call,
            Err(response) => return Begun::Refused(response),
        };
        let header = StreamHeader {
            target,
            class: Class::Interactive,
            deadline_ms: 0,
            traceparent: Some(trace.parent.clone()),
            principal: Some(principal(permit)),
        };
        let span = tracing::debug_span!(
            "connect", cluster = permit.cluster(), user = %permit.principal().user, to = %shown, trace = %trace.id
        );
        match self.open(permit, &header).instrument(span.clone()).await {
            Ok(stream) => Begun::Open(stream, Box::new(call), span),
            Err(e) => {
                call.finish(e.status(), e.ended());
                Begun::Failed(e, trace.id)
            }
        }
    }

    /// Answers 101 and joins what the connection becomes to the stream.
    fn join(
        &self,
        mut request: Request<Body>,
        mut stream: D::Stream,
        call: Call,
        span: tracing::Span,
    ) -> Response<Body> {
        call.started();
        let on_upgrade = hyper::upgrade::on(&mut request);
        let joined = async move {
            let client = match tokio::time::timeout(UPGRADE_WAIT, on_upgrade).await {
                Ok(Ok(client)) => client,
                _ => {
                    stream.reset(ResetCode::Cancelled);
                    return call.finish(StatusCode::SWITCHING_PROTOCOLS, "not_upgraded");
                }
            };
            let (mut client, passed) = (TokioIo::new(client), Passed::default());
            let ended = match splice(&mut stream, &mut client, IDLE, &passed).await {
                Ok(()) => "complete",
                Err(SpliceError::Idle) => {
                    stream.reset(ResetCode::Idle);
                    "idle"
                }
                Err(SpliceError::First(_)) => "lost",
                Err(SpliceError::Second(_)) => {
                    stream.reset(ResetCode::Broken);
                    "broken"
                }
            };
            let (to_client, to_place) = (&passed.there, &passed.back);
            let (read, written) = call.counters();
            read.store(to_place.load(Ordering::Relaxed), Ordering::Relaxed);
            written.store(to_client.load(Ordering::Relaxed), Ordering::Relaxed);
            call.finish(StatusCode::SWITCHING_PROTOCOLS, ended);
        };
        self.tasks.spawn(joined.instrument(span));
        let mut response = Response::new(crate::body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        response
    }

    /// A stream that its agent has accepted: the place is connected.
    async fn open(&self, permit: &Permit, header: &StreamHeader) -> Result<D::Stream, Failure> {
        for attempt in 1.. {
            let again = attempt < ATTEMPTS;
            let mut stream = match self.dial.dial(permit, header, attempt - 1).await {
                Ok(stream) => stream,
                Err(e) if again && e.is_retryable() => continue,
                Err(e) => return Err(Failure::Dial(e)),
            };
            // `None`: whoever was asked seems to be gone. Nothing was sent yet.
            let verdict = poll_fn(|cx| match stream.poll_accepted(cx) {
                Poll::Ready(verdict) => Poll::Ready(Some(verdict)),
                Poll::Pending if again => stream.poll_elsewhere(cx).map(|()| None),
                Poll::Pending => Poll::Pending,
            });
            match tokio::time::timeout(VERDICT_WAIT, verdict).await {
                Err(_) => {
                    stream.reset(ResetCode::Cancelled);
                    return Err(Failure::Dial(DialError::Timeout));
                }
                Ok(None) => stream.reset(ResetCode::Cancelled),
                Ok(Some(Ok(()))) => return Ok(stream),
                Ok(Some(Err(e))) => match WireError::from(e) {
                    WireError::Refused(refusal) if again && refusal.retry_elsewhere => {}
                    WireError::Refused(refusal) => return Err(Failure::Dial(DialError::Refused(refusal))),
                    e => return Err(Failure::Wire(e)),
                },
            }
        }
        unreachable!("the last attempt always returns")
    }
}

/// What a connection is, for the audit log.
fn info_of(to: &Destination) -> RequestInfo {
    let (resource, namespace, name) = match to {
        Destination::Service { namespace, name, .. } => ("services", namespace.clone(), name.clone()),
        Destination::Pod { namespace, name, .. } => ("pods", namespace.clone(), name.clone()),
        Destination::Host { host, port } => ("hosts", String::new(), format!("{host}:{port}")),
    };
    let (verb, resource, subresource) = ("connect".to_owned(), resource.to_owned(), "portforward".to_owned());
    RequestInfo { verb, resource, subresource, namespace, name, is_resource: true, ..RequestInfo::default() }
}
