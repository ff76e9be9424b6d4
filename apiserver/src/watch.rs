//! A watch as a body: one line of JSON for each event.

use crate::{
    ApiError, KindSpec, Watcher,
    body::{Body, BoxError},
    ops::seen,
    server::{Authorizer, Form, render},
};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prometheus::IntGauge;
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Which objects a caller asked for and may see.
pub(crate) type Selects = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

pub(crate) struct Watch {
    pub(crate) kind: KindSpec,
    pub(crate) watcher: Watcher,
    pub(crate) selects: Selects,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) form: Form,
    pub(crate) bookmarks: Option<Duration>,
    /// What is sent before the first change, in order: type and object.
    pub(crate) first: VecDeque<(&'static str, Value)>,
    pub(crate) until: Instant,
    pub(crate) stop: CancellationToken,
    /// Its place among the open watches, given back at its end.
    pub(crate) _place: OwnedSemaphorePermit,
    pub(crate) gauge: IntGauge,
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
    pub(crate) fn into_body(self) -> Body {
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
    fn line(&self, what: &str, object: &Value) -> Bytes {
        let shown = if what == "ERROR" { object.clone() } else { render(&self.watch.kind, object, self.watch.form) };
        let mut line = json!({ "type": what, "object": shown }).to_string();
        line.push('\n');
        line.into()
    }

    fn bookmark(&self) -> Bytes {
        let kind = &self.watch.kind;
        let object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": { "resourceVersion": self.watch.watcher.seen().to_string(), "creationTimestamp": null },
        });
        let mut line = json!({ "type": "BOOKMARK", "object": object }).to_string();
        line.push('\n');
        line.into()
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some((what, object)) = self.watch.first.pop_front() {
            return Some(self.line(what, &object));
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
                        let selects = |object: &Value| {
                            (self.watch.selects)(object) && self.watch.authorizer.visible(self.watch.kind.plural, object)
                        };
                        if let Some((what, object)) = seen(&event, selects) {
                            return Some(self.line(what, &object));
                        }
                    }
                    Ok(None) => return None,
                    Err(_) => {
                        self.ended = true;
                        let status = ApiError::expired("too old resource version; list again").to_status();
                        return Some(self.line("ERROR", &status));
                    }
                },
                () = sleep_until(bookmark_at), if self.next_bookmark.is_some() => {
                    self.next_bookmark = self.watch.bookmarks.map(|every| Instant::now() + every);
                    return Some(self.bookmark());
                }
            }
        }
    }
}
