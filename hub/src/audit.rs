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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::BoxFuture};
    use moorline_proxy::audit::AuditFull;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Event>>);
    impl AuditSink for Kept {
        fn admit(&self) -> BoxFuture<'_, Result<(), AuditFull>> {
            std::future::ready(Ok(())).boxed()
        }
        fn push(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn a_change_is_on_record_once_whether_its_client_waits_or_hangs_up() {
        let kept = Arc::new(Kept::default());
        let sink: Arc<dyn AuditSink> = kept.clone();
        let change = |verb| {
            let remote = ([192, 0, 2, 1], 1).into();
            Pending::new(&sink, event(verb, "/x", "anna", remote, 0, "groups", ""))
        };
        change("update").end(200, |event| event.user.uid = "u-1".to_owned());
        drop(change("delete"));
        let kept = kept.0.lock().unwrap();
        let said = |event: &Event| {
            let code = event.response_status.map(|status| status.code);
            (event.verb.clone(), event.user.uid.clone(), code, event.annotations.get("moorline.dev/ended").cloned())
        };
        let said: Vec<_> = kept.iter().map(said).collect();
        let ended = Some("cancelled".to_owned());
        let (waited, hung_up) = ("update".to_owned(), "delete".to_owned());
        assert_eq!(said, [(waited, "u-1".to_owned(), Some(200), None), (hung_up, String::new(), Some(499), ended)]);
    }
}
