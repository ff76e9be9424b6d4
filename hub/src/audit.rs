//! Audit records of the hub's own paths; those of clusters are written by the proxy.

use moorline_proxy::audit::{AuditUser, Event, ObjectRef, ResponseStatus, Stage};
use std::{collections::BTreeMap, net::SocketAddr};

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
