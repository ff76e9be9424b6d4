//! One call from its start to its end: what is counted and recorded of it.

use super::{
    Caller, Dial, KubeProxy, ProxyMetrics,
    metrics::{code_label, verb_label},
};
use crate::{
    Body, BodyError,
    audit::{self, AuditSink, AuditUser, Event, ObjectRef, ResponseStatus, Stage},
    tape::About,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use moorline_authz::{access::Permit, identity::ActAs, verb::RequestInfo};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

/// W3C Trace Context of a call.
pub(super) struct Trace {
    /// 32 hexadecimal digits: what client, hub, agent and audit log have in common.
    pub(super) id: String,
    /// The header's value.
    pub(super) parent: String,
}

impl Trace {
    /// The client's own, where it is valid (W3C Trace Context §3.2.2); otherwise a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all("traceparent").iter();
        let only = values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok());
        if let Some(parent) = only.filter(|text| is_traceparent(text)) {
            return Self { id: parent[3..35].to_owned(), parent: parent.to_owned() };
        }
        let (id, span) = (rand::random_range(1..=u128::MAX), rand::random_range(1..=u64::MAX));
        let parent = format!("00-{id:032x}-{span:016x}-01");
        Self { id: parent[3..35].to_owned(), parent }
    }
}

fn is_traceparent(text: &str) -> bool {
    let fields: Vec<&str> = text.split('-').collect();
    let [version, id, parent, flags] = fields[..] else { return false };
    let hex =
        |field: &str, len| field.len() == len && field.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let some = |field: &str| field.bytes().any(|b| b != b'0');
    version == "00" && hex(id, 32) && some(id) && hex(parent, 16) && some(parent) && hex(flags, 2)
}

/// A call under way. Dropped before its end, it records that it was cancelled.
pub(super) struct Call {
    event: Option<Event>,
    audit: Arc<dyn AuditSink>,
    metrics: ProxyMetrics,
    began: Instant,
    bytes_in: Arc<AtomicU64>,
    bytes_out: Arc<AtomicU64>,
}

impl Call {
    pub(super) fn new<D: Dial>(
        proxy: &KubeProxy<D>,
        permit: &Permit,
        caller: &Caller,
        info: &RequestInfo,
        trace: &Trace,
        target: &str,
        user_agent: String,
    ) -> Self {
        let now = audit::now();
        let event = Event {
            audit_id: uuid::Uuid::new_v4().to_string(),
            stage: Stage::ResponseStarted,
            request_uri: audit::recorded(target),
            verb: info.verb.clone(),
            user: AuditUser::of(permit.principal()),
            impersonated_user: permit.act_as().map(|ActAs(who)| AuditUser::of(who)),
            source_ips: vec![caller.remote.ip().to_string()],
            user_agent,
            object_ref: ObjectRef::of(info),
            response_status: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: BTreeMap::from([
                ("moorline.dev/cluster", permit.cluster().to_owned()),
                ("moorline.dev/trace-id", trace.id.clone()),
            ]),
        };
        let metrics = proxy.metrics.clone();
        metrics.in_flight.inc();
        let (bytes_in, bytes_out) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        Self { event: Some(event), audit: proxy.audit.clone(), metrics, began: Instant::now(), bytes_in, bytes_out }
    }

    /// The same in the cluster's own audit log.
    pub(super) fn id(&self) -> &str {
        self.event.as_ref().map_or("", |event| &event.audit_id)
    }

    /// What a recording says of it.
    pub(super) fn about(&self) -> About {
        let Some(event) = &self.event else { return About::default() };
        About {
            audit_id: event.audit_id.clone(),
            user: event.user.username.clone(),
            as_user: event.impersonated_user.as_ref().map(|user| user.username.clone()).unwrap_or_default(),
            cluster: event.annotations.get("moorline.dev/cluster").cloned().unwrap_or_default(),
            request_uri: event.request_uri.clone(),
            started: event.request_received_timestamp.clone(),
            input: false,
        }
    }

    /// One more thing that its records say.
    pub(super) fn note(&mut self, name: &'static str, value: String) {
        if let Some(event) = &mut self.event {
            event.annotations.insert(name, value);
        }
    }

    /// Records the start of a call that may last.
    pub(super) fn started(&self) {
        if let Some(event) = &self.event {
            self.audit.push(event.clone());
        }
    }

    /// The call was never made: nothing is recorded.
    pub(super) fn forget(mut self) {
        self.event = None;
        self.metrics.in_flight.dec();
    }

    /// Bytes from the client, bytes to the client.
    pub(super) fn counters(&self) -> (Arc<AtomicU64>, Arc<AtomicU64>) {
        (self.bytes_in.clone(), self.bytes_out.clone())
    }

    pub(super) fn finish(mut self, status: StatusCode, ended: &'static str) {
        self.end(Some(status), ended);
    }

    fn end(&mut self, status: Option<StatusCode>, ended: &'static str) {
        let Some(mut event) = self.event.take() else { return };
        let (bytes_in, bytes_out) = (self.bytes_in.load(Ordering::Relaxed), self.bytes_out.load(Ordering::Relaxed));
        // 499, as nginx counts it: the client went before there was an answer.
        let code = status.map_or(499, |status| status.as_u16());
        self.metrics.in_flight.dec();
        self.metrics.requests.with_label_values(&[verb_label(&event.verb), code_label(code)]).inc();
        self.metrics.duration_of(&event.verb).observe(self.began.elapsed().as_secs_f64());
        self.metrics.bytes_in.inc_by(bytes_in);
        self.metrics.bytes_out.inc_by(bytes_out);
        event.stage = Stage::ResponseComplete;
        event.stage_timestamp = audit::now();
        event.response_status = Some(ResponseStatus { code });
        event.annotations.insert("moorline.dev/bytes-in", bytes_in.to_string());
        event.annotations.insert("moorline.dev/bytes-out", bytes_out.to_string());
        event.annotations.insert("moorline.dev/ended", ended.to_owned());
        self.audit.push(event);
    }

    /// The request's body, counted.
    pub(super) fn count_in(&self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(CountedBody { body, count: self.bytes_in.clone(), call: None })
    }

    /// The answer's body, counted. Its end is the call's end.
    pub(super) fn count_out(self, status: StatusCode, body: Body) -> Body {
        if body.is_end_stream() {
            self.finish(status, "complete");
            return body;
        }
        Body::new(CountedBody { body, count: self.bytes_out.clone(), call: Some((self, status)) })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(None, "cancelled");
    }
}

struct CountedBody {
    body: Body,
    count: Arc<AtomicU64>,
    call: Option<(Call, StatusCode)>,
}

impl CountedBody {
    fn end(&mut self, ended: &'static str) {
        if let Some((call, status)) = self.call.take() {
            call.finish(status, ended);
        }
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let n = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.count.fetch_add(n, Ordering::Relaxed);
            }
            Some(Err(_)) => self.end("lost"),
            None => {}
        }
        if self.body.is_end_stream() || frame.is_none() {
            self.end("complete");
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        self.end("cancelled");
    }
}
