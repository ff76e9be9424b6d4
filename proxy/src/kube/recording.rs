//! Calls that are sessions in terminals, where these have to be recorded.

use super::{Dial, KubeProxy, UPGRADE_WAIT, call::Call};
use crate::{Body, status::reason_of};
use crate::{
    audit::OnFailure,
    status::{Details, status_with},
    tape::{About, Decoder, NoTape, Seal, Sort, Store, Tape, Taped, sort},
    upgrade::{Counted, Io, copy_both},
};
use http::{HeaderMap, Method, Response, StatusCode, header::SEC_WEBSOCKET_EXTENSIONS};
use hyper_util::rt::TokioIo;
use moorline_authz::{
    access::{Permit, Recording},
    verb::RequestInfo,
};
use moorline_proto::code::ResetCode;
use std::{sync::Arc, time::Duration};

/// When a client whose session cannot be recorded may come again.
const LATER: Duration = Duration::from_secs(5);

/// What is said where sessions have to be recorded and nothing can be kept.
const NO_PLACE: &str = "and none can be kept on this way; use the cluster's context that leads through the hub";

/// A tape of a session that has not begun: dropped before, there is nothing of it.
pub(super) struct Ready(Option<Arc<Tape>>);

impl Ready {
    fn take(mut self) -> Option<Arc<Tape>> {
        self.0.take()
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(tape) = &self.0 {
            tape.discard();
        }
    }
}

/// A session that was refused, as it must be recorded and cannot be.
pub(super) struct Unrecorded {
    pub(super) label: &'static str,
    pub(super) response: Box<Response<Body>>,
}

impl<D: Dial> KubeProxy<D> {
    /// With a place for recordings. Without one a session that must be recorded is refused.
    #[must_use]
    pub fn recording(mut self, store: Arc<Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// A tape for a call that needs one.
    pub(super) async fn tape(
        &self,
        permit: &Permit,
        info: &RequestInfo,
        (method, path): (&Method, &str),
        headers: &mut HeaderMap,
        upgrade: bool,
        call: &mut Call,
    ) -> Result<Option<Ready>, Unrecorded> {
        if permit.record() == Recording::Never {
            return Ok(None);
        }
        let refused = |label, code, message: &str| {
            self.metrics.recordings.with_label_values(&["refused"]).inc();
            let details = Details {
                close: true,
                retry_after: (code == StatusCode::SERVICE_UNAVAILABLE).then_some(LATER),
                ..Details::default()
            };
            let message = format!("sessions in terminals are recorded here: {message}");
            Err(Unrecorded { label, response: Box::new(status_with(code, reason_of(code), &message, &details)) })
        };
        match sort(info, method, path, upgrade) {
            Sort::Free => return Ok(None),
            Sort::Terminal if !upgrade => return Ok(None), // the API server refuses it
            Sort::Terminal => {}
            Sort::Unknown => {
                let message = "this one could not be; use kubectl exec, attach, or moorline shell";
                return refused("unrecordable", StatusCode::FORBIDDEN, message);
            }
        }
        // What an extension does to frames nobody here undoes; no API server offers one.
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        let Some(store) = &self.store else {
            return refused("recording_failed", StatusCode::FORBIDDEN, NO_PLACE);
        };
        let about = About { input: permit.record() == Recording::WithInput, ..call.about() };
        match store.begin(&about).await {
            Ok(tape) => Ok(Some(Ready(Some(tape)))),
            Err(error) => {
                self.metrics.recordings.with_label_values(&["failed"]).inc();
                if store.policy() == OnFailure::Continue {
                    tracing::error!(cluster = permit.cluster(), "a session goes on unrecorded, by policy: {error}");
                    call.note("moorline.dev/unrecorded", error.label().to_owned());
                    return Ok(None);
                }
                refused(error.label(), StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
            }
        }
    }

    /// Joins a client to what its cluster switched to, and records what passes.
    pub(super) fn join_taped(
        &self,
        answer: &HeaderMap,
        mut cluster: Box<dyn Io>,
        on_upgrade: hyper::upgrade::OnUpgrade,
        ready: Ready,
        mut call: Call,
        span: tracing::Span,
    ) -> Result<(), Box<Call>> {
        let Some(decoder) = Decoder::of(answer) else {
            cluster.reset(ResetCode::Cancelled);
            self.metrics.recordings.with_label_values(&["refused"]).inc();
            return Err(Box::new(call));
        };
        let Some(tape) = ready.take() else { return Err(Box::new(call)) };
        // Now there is one that stays: of a session that was refused there is none.
        call.note("moorline.dev/recording", tape.name().to_owned());
        let metrics = self.metrics.clone();
        let joined = async move {
            let status = StatusCode::SWITCHING_PROTOCOLS;
            metrics.recordings_open.inc();
            let mut cluster = Taped::new(cluster, decoder, Arc::clone(&tape));
            let ended = match tokio::time::timeout(UPGRADE_WAIT, on_upgrade).await {
                Ok(Ok(client)) => {
                    let (read, written) = call.counters();
                    let mut client = Counted { io: TokioIo::new(client), read, written };
                    match (copy_both(&mut client, &mut cluster).await, tape.failed()) {
                        (Ok(()), _) => "complete",
                        (Err(_), None) => "broken",
                        (Err(_), Some(failed)) => failed.label(),
                    }
                }
                _ => "not_upgraded",
            };
            if ended != "complete" {
                cluster.reset(if ended == "not_upgraded" { ResetCode::Cancelled } else { ResetCode::Broken });
            }
            drop(cluster);
            metrics.recordings_open.dec();
            match tape.finish(ended).await {
                Some(Seal { sha256, bytes, lost }) => {
                    call.note("moorline.dev/recording-sha256", sha256);
                    call.note("moorline.dev/recording-bytes", bytes.to_string());
                    if lost != 0 {
                        call.note("moorline.dev/recording-lost", lost.to_string());
                        metrics.recordings_lost.inc_by(lost);
                    }
                    metrics.recordings.with_label_values(&["sealed"]).inc();
                }
                None => {
                    call.note("moorline.dev/recording-sha256", "unknown".to_owned());
                    metrics.recordings.with_label_values(&["failed"]).inc();
                }
            }
            if let Some(NoTape::Unreadable(why)) = tape.failed() {
                tracing::warn!(recording = tape.name(), "a session was ended: {why}");
            }
            call.finish(status, ended);
        };
        self.tasks.spawn(tracing::Instrument::instrument(joined, span));
        Ok(())
    }
}
