//! `GET /auth/recordings` and `GET /auth/recordings/NAME`: what was recorded of sessions in terminals.

use super::{
    Front,
    answers::{json, later},
};
use crate::{audit, directory::Authenticated};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_authz::access::{Facts, read_audit};
use moorline_proxy::{
    Body,
    audit::search::{Query, search},
    body,
    status::status_response,
};
use serde_json::{Value, json as value};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, net::SocketAddr, time::Duration};
use url::form_urlencoded;

/// Recordings of one answer, at most, and where nothing is said.
const MOST: usize = 1000;
const USUAL: usize = 100;
/// Longest search for what the audit log says of one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where they are.
pub(super) const PREFIX: &str = "/auth/recordings";
/// What the audit log says of a recording's bytes: `sealed`, `open`, `unknown` or `altered`.
const SEAL: &str = "moorline-seal";

impl Front {
    /// Whether somebody reads the audit log and recordings; else the answer.
    pub(super) fn reads_audit(&self, who: &Authenticated) -> Result<(), Response<Body>> {
        let grants = self.directory.grants();
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &grants };
        read_audit(&facts, who.verbs.as_deref()).map_err(|denial| {
            self.count_refusal("not_auditor");
            status_response(StatusCode::FORBIDDEN, &denial.to_string())
        })
    }

    /// A list, or one. Who replays what is on record too.
    pub(super) async fn recordings(
        &self,
        request: &Request<Incoming>,
        who: &Authenticated,
        remote: SocketAddr,
    ) -> Response<Body> {
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let path = request.uri().path();
        let name = path.strip_prefix(PREFIX).unwrap_or_default().trim_start_matches('/');
        let (response, cluster) = match (self.reads_audit(who), self.searches.try_acquire()) {
            (Err(refusal), _) => (refusal, String::new()),
            (_, Err(_)) => {
                let message = "too many searches at this moment";
                (later(StatusCode::TOO_MANY_REQUESTS, message, Duration::from_secs(1)), String::new())
            }
            (Ok(()), Ok(_slot)) if name.is_empty() => (self.list_recordings(request).await, String::new()),
            (Ok(()), Ok(_slot)) => self.one_recording(name.to_owned()).await,
        };
        let (verb, user, code) =
            (if name.is_empty() { "list" } else { "replay" }, &who.identity.user, response.status());
        let mut event = audit::event(verb, path, user, remote, code.as_u16(), "recordings", &cluster);
        if code == StatusCode::OK && !name.is_empty() {
            event.annotations.insert("moorline.dev/recording", name.to_owned());
        }
        self.audit.push(event);
        response
    }

    /// `?user&cluster&limit`, the newest first.
    async fn list_recordings(&self, request: &Request<Incoming>) -> Response<Body> {
        let asked: HashMap<String, String> =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        const KNOWN: [&str; 3] = ["user", "cluster", "limit"];
        if let Some(unknown) = asked.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            let message = format!("{unknown:?} is nothing to search by; there are {}", KNOWN.join(", "));
            return status_response(StatusCode::BAD_REQUEST, &message);
        }
        let limit = match asked.get("limit").map(|text| text.parse::<usize>()) {
            None => USUAL,
            Some(Ok(limit @ 1..=MOST)) => limit,
            Some(_) => return status_response(StatusCode::BAD_REQUEST, "limit must be from 1 to 1000"),
        };
        let store = std::sync::Arc::clone(&self.recordings);
        let listed = tokio::task::spawn_blocking(move || {
            let is =
                |name: &str, found: &str| asked.get(name).is_none_or(|wanted| wanted.is_empty() || wanted == found);
            store.list(limit, |kept| {
                let about = &kept.about;
                is("cluster", &about.cluster) && (is("user", &about.user) || is("user", &about.as_user))
            })
        });
        match listed.await {
            Ok(Ok(items)) => json(StatusCode::OK, &value!({ "items": items })),
            _ => later(StatusCode::SERVICE_UNAVAILABLE, "the recordings cannot be read", Duration::from_secs(1)),
        }
    }

    /// The file, with what the audit log says of it; and whose cluster it is of.
    async fn one_recording(&self, name: String) -> (Response<Body>, String) {
        let (store, log) = (std::sync::Arc::clone(&self.recordings), self.audit_path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let Some(file) = store.read(&name)? else { return Ok(None) };
            let sha: String = Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
            let query = Query { recording: Some(name), limit: MOST, ..Query::default() };
            let found = search(&log, &query, PATIENCE)?;
            let said = |pointer: &str| {
                let text = |record: &Value| Some(record.pointer(pointer)?.as_str()?.to_owned());
                found.records.iter().find_map(text)
            };
            let seal = match said("/annotations/moorline.dev~1recording-sha256") {
                Some(sealed) if sealed == sha => "sealed",
                Some(sealed) if sealed != "unknown" => "altered",
                Some(_) => "unknown",
                None if found.partial || found.records.is_empty() => "unknown",
                None => "open",
            };
            Ok::<_, std::io::Error>(Some((file, seal, said("/annotations/moorline.dev~1cluster").unwrap_or_default())))
        });
        match read.await {
            Ok(Ok(Some((file, seal, cluster)))) => {
                let mut response = Response::new(body::full(file));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-asciicast"));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                headers.insert(SEAL, HeaderValue::from_static(seal));
                (response, cluster)
            }
            Ok(Ok(None)) => (status_response(StatusCode::NOT_FOUND, "there is no such recording"), String::new()),
            _ => {
                let message = "the recording cannot be read";
                (later(StatusCode::SERVICE_UNAVAILABLE, message, Duration::from_secs(1)), String::new())
            }
        }
    }
}
