//! Audit records of the hub's own paths; those of clusters are written by the proxy.

use moorline_proxy::audit::{AuditSink, AuditUser, Event, ObjectRef, ResponseStatus, Stage};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// The client hung up before there was an answer, as nginx counts it.
const HUNG_UP: u16 = 499;

/// The record of a change that is being made. One whose client hangs up is on record too: what it asked for may have been done.
pub(crate) struct Pending {
    sink: Arc<dyn AuditSink>,
    event: Option<Event>,
}

impl Pending {
    /// Of a call that `sink` has admitted. `event`: with whatever code.
    pub fn new(sink: &Arc<dyn AuditSink>, event: Event) -> Self {
        Self { sink: Arc::clone(sink), event: Some(event) }
    }

    /// The call is over, and `add` says what else there is to say.
    pub fn end(mut self, code: u16, add: impl FnOnce(&mut Event)) {
        if let Some(mut event) = self.event.take() {
            (event.response_status, event.stage_timestamp) =
                (Some(ResponseStatus { code }), moorline_proxy::audit::now());
            add(&mut event);
            self.sink.push(event);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(mut event) = self.event.take() {
            event.response_status = Some(ResponseStatus { code: HUNG_UP });
            event.stage_timestamp = moorline_proxy::audit::now();
            event.annotations.insert("moorline.dev/ended", "cancelled".to_owned());
            self.sink.push(event);
        }
    }
}

/// A record of something that is over.
pub(crate) fn event(
    verb: &str,
    uri: &str,
    user: &str,
    remote: SocketAddr,
    code: u16,
    resource: &str,
    cluster: &str,
) -> Event {
    let now = moorline_proxy::audit::now();
    let mut annotations = BTreeMap::new();
    if !cluster.is_empty() {
        annotations.insert("moorline.dev/cluster", cluster.to_owned());
    }
    Event {
        audit_id: uuid::Uuid::new_v4().to_string(),
        stage: Stage::ResponseComplete,
        request_uri: moorline_proxy::audit::recorded(uri),
        verb: verb.to_owned(),
        user: AuditUser { username: user.to_owned(), uid: String::new(), groups: Vec::new() },
        impersonated_user: None,
        source_ips: vec![remote.ip().to_string()],
        user_agent: String::new(),
        object_ref: (!resource.is_empty()).then(|| ObjectRef {
            resource: resource.to_owned(),
            namespace: String::new(),
            name: String::new(),
            api_group: crate::kinds::GROUP.to_owned(),
            api_version: crate::kinds::VERSION.to_owned(),
            subresource: String::new(),
        }),
        response_status: Some(ResponseStatus { code }),
        request_received_timestamp: now.clone(),
        stage_timestamp: now,
        annotations,
    }
}
