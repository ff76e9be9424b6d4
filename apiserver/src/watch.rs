//! A watch as a body: one line of JSON for each event.

use crate::{
    ApiError, ApiServer, Authorizer, Cause, KindSpec, StoreEvent, Watcher,
    body::{Body, BoxError},
    list::from_the_future,
    negotiate::{Form, render},
    ops::seen,
    request::{Call, revision},
    stored::Stored,
    versions::View,
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prometheus::IntGauge;
use serde_json::{Value, json};
use std::{collections::VecDeque, fmt::Display, sync::Arc, time::Duration};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Which objects a caller asked for and may see.
pub(crate) type Selects = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

struct Watch {
    kind: KindSpec,
    /// Where it is not the version that is stored.
    view: Option<Arc<View>>,
    watcher: Watcher,
    /// Whether it selects every object.
    all: bool,
    selects: Selects,
    authorizer: Arc<dyn Authorizer>,
    form: Form,
    bookmarks: Option<Duration>,
    /// What is sent before the first change.
    first: VecDeque<Stored>,
    /// Whether the end of those is marked by a bookmark.
    mark_first: bool,
    until: Instant,
    stop: CancellationToken,
    /// Its place among the open watches, given back at its end.
    _place: OwnedSemaphorePermit,
    gauge: IntGauge,
}

/// Where a watch starts.
struct Start {
    from: u64,
    first: VecDeque<Stored>,
    mark_first: bool,
}

fn invalid(cause: Cause) -> ApiError {
    ApiError::invalid("meta.k8s.io", "ListOptions", "", &[cause])
}

impl ApiServer {
    pub(crate) fn watch(&self, call: &Call<'_>, authorizer: Arc<dyn Authorizer>) -> Result<Response<Body>, ApiError> {
        self.permit(&*authorizer, call, "watch")?;
        let selects = call.selects()?;
        let limits = &self.ops().limits;
        let life = call.number("timeoutSeconds")?.map_or(limits.watch_time, Duration::from_secs).min(limits.watch_time);
        let bookmarks = call.query.is_true("allowWatchBookmarks");
        let Start { from, mut first, mark_first } = self.start(call, bookmarks)?;
        if !(call.selects_all() && authorizer.sees_all(call.kind.plural)) {
            first.retain(|stored| {
                let object = stored.value();
                authorizer.visible(call.kind.plural, &object) && selects(&call.see(object))
            });
            // A watch lives long: it keeps no room for what it does not show.
            first.shrink_to_fit();
        }
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many open watches");
            error.retry_after = Some(5);
            error
        })?;
        let mut response = Response::new(match self.store().watch(&call.kind.prefix(), from) {
            Ok(watcher) => Watch {
                kind: call.kind.clone(),
                view: call.view.cloned(),
                watcher,
                all: call.selects_all(),
                selects,
                authorizer,
                form: call.form,
                bookmarks: bookmarks.then_some(limits.bookmark_every),
                first,
                mark_first,
                until: Instant::now() + life,
                stop: self.stop.clone(),
                _place: place,
                gauge: self.metrics.watches.clone(),
            }
            .into_body(),
            // Within the stream, as kube-apiserver has it.
            Err(_) => {
                let error =
                    ApiError::expired(format!("too old resource version: {from} ({})", self.store().revision()));
                crate::body::full(line("ERROR", error.to_status()))
            }
        });
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    /// From when, and with what first; the rules of
    /// <https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-watch> and `#streaming-lists`.
    fn start(&self, call: &Call<'_>, bookmarks: bool) -> Result<Start, ApiError> {
        const MATCH: &str = "resourceVersionMatch";
        let initial = call.query.has("sendInitialEvents").then(|| call.query.is_true("sendInitialEvents"));
        let how = call.query.get(MATCH);
        match (initial, how) {
            (Some(_), None) => {
                let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(invalid(Cause::forbidden(MATCH, message)));
            }
            (Some(_), Some("NotOlderThan")) => {}
            (Some(_), Some(other)) => {
                let message = format!("{other:?}: supported values: \"NotOlderThan\"");
                return Err(invalid(Cause::new("FieldValueNotSupported", MATCH, message)));
            }
            (None, Some(_)) => {
                let message = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(invalid(Cause::forbidden(MATCH, message)));
            }
            (None, None) => {}
        }
        let wanted = revision(call.query.get("resourceVersion"))?.filter(|at| *at != 0);
        let newest = self.store().revision();
        match (wanted, initial) {
            (Some(at), Some(true)) if newest < at => Err(from_the_future(at, newest)),
            (Some(from), None | Some(false)) => Ok(Start { from, first: VecDeque::new(), mark_first: false }),
            (None, Some(false)) => Ok(Start { from: newest, first: VecDeque::new(), mark_first: false }),
            (None, None) | (_, Some(true)) => {
                let (from, all) = self.candidates(call);
                let first = all.into_iter().map(|(_, kept)| kept.stored).collect();
                Ok(Start { from, first, mark_first: initial == Some(true) && bookmarks })
            }
        }
    }
}

fn line(what: &str, object: impl Display) -> Bytes {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n").into()
}

struct Running {
    watch: Watch,
    next_bookmark: Option<Instant>,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch.gauge.dec();
    }
}

impl Watch {
    fn into_body(self) -> Body {
        self.gauge.inc();
        let next_bookmark = self.bookmarks.map(|every| Instant::now() + every);
        let running = Running { watch: self, next_bookmark, ended: false };
        let lines = stream::unfold(running, |mut running| async move {
            let line = running.next().await?;
            Some((Ok::<_, BoxError>(Frame::data(line)), running))
        });
        StreamBody::new(lines).boxed_unsync()
    }
}

impl Running {
    fn shown(&self, what: &str, object: &Value) -> Bytes {
        match self.watch.form {
            Form::Whole => line(what, object),
            form => line(what, render(&self.watch.kind, object, form)),
        }
    }

    /// One change, as this watch sees it. The text of an object is made once for all watches.
    fn change(&self, event: &StoreEvent) -> Option<Bytes> {
        let watch = &self.watch;
        let all = watch.all && watch.authorizer.sees_all(watch.kind.plural);
        let text = watch.form == Form::Whole && watch.view.is_none();
        if all && text && event.after.is_some() {
            return Some(line(if event.creates() { "ADDED" } else { "MODIFIED" }, event.text()));
        }
        let selects = |object: &Value| {
            let selected =
                watch.view.as_ref().map_or_else(|| (watch.selects)(object), |view| (watch.selects)(&view.see(object)));
            selected && watch.authorizer.visible(watch.kind.plural, object)
        };
        let (what, object) = seen(event, selects)?;
        match &watch.view {
            None if text && what != "DELETED" => Some(line(what, event.text())),
            None => Some(self.shown(what, &object)),
            Some(view) => Some(self.shown(what, &view.see(&object))),
        }
    }

    fn bookmark(&self, ends_first: bool) -> Bytes {
        let kind = &self.watch.kind;
        let mut object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": { "resourceVersion": self.watch.watcher.seen().to_string(), "creationTimestamp": null },
        });
        if ends_first {
            object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        self.shown("BOOKMARK", &object)
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(stored) = self.watch.first.pop_front() {
            return Some(match (self.watch.form, &self.watch.view) {
                (Form::Whole, None) => line("ADDED", stored.text()),
                (_, None) => self.shown("ADDED", &stored.value()),
                (_, Some(view)) => self.shown("ADDED", &view.see(&stored.value())),
            });
        }
        // Nor for what it has shown.
        self.watch.first = VecDeque::new();
        if std::mem::take(&mut self.watch.mark_first) {
            return Some(self.bookmark(true));
        }
        loop {
            let bookmark_at = self.next_bookmark.unwrap_or(self.watch.until);
            tokio::select! {
                biased;
                () = self.watch.stop.cancelled() => return None,
                // Before the events: a watch that is never silent has an end too.
                () = sleep_until(self.watch.until) => return None,
                event = self.watch.watcher.next() => match event {
                    Ok(Some(event)) => {
                        if let Some(line) = self.change(&event) {
                            return Some(line);
                        }
                    }
                    Ok(None) => return None,
                    Err(_) => {
                        self.ended = true;
                        let status = ApiError::expired("too old resource version; list again").to_status();
                        return Some(line("ERROR", status));
                    }
                },
                () = sleep_until(bookmark_at), if self.next_bookmark.is_some() => {
                    self.next_bookmark = self.watch.bookmarks.map(|every| Instant::now() + every);
                    return Some(self.bookmark(false));
                }
            }
        }
    }
}
