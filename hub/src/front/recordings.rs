//! `GET /auth/recordings` and `GET /auth/recordings/NAME`: what was recorded of sessions in terminals.

use super::{
    Front,
    answers::{json, later},
    auditing::no_search,
};
use crate::{audit, directory::Authenticated};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use moorline_authz::access::{Facts, read_audit};
use moorline_proxy::{
    Body, BodyError,
    audit::search::{Answer, End, Query, search},
    status::status_response,
    tape::Store,
};
use serde_json::{Value, json as value};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Seek},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::io::AsyncReadExt;
use url::form_urlencoded;

/// Recordings of one answer, at most, and where nothing is said.
const MOST: usize = 1000;
const USUAL: usize = 100;
/// Longest search for what the audit log says of one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Records that speak of one, at most: its session's, and one for each time that it was sealed. Replays are not looked at.
/// The oldest count: a cluster that is broken into can say more of its old recordings, and unsay nothing.
const SPOKEN: usize = 100;
/// Bytes of a recording that are held at a time.
const PIECE: usize = 64 << 10;

/// Where they are.
pub(super) const PREFIX: &str = "/auth/recordings";
/// What the audit log says of a recording's bytes: `sealed`, `open`, `unknown` or `altered`.
const SEAL: &str = "moorline-seal";
/// A hash that was not known when its session's record was made.
const UNKNOWN: &str = "unknown";

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
        let (response, cluster) = match self.reads_audit(who) {
            Err(refusal) => (refusal, String::new()),
            Ok(()) if name.is_empty() => (self.list_recordings(request).await, String::new()),
            Ok(()) => self.one_recording(name.to_owned()).await,
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
        let store = Arc::clone(&self.recordings);
        let listed = self.searches.run(move || {
            let is =
                |name: &str, found: &str| asked.get(name).is_none_or(|wanted| wanted.is_empty() || wanted == found);
            store.list(limit, |kept| {
                let about = &kept.about;
                is("cluster", &about.cluster) && (is("user", &about.user) || is("user", &about.as_user))
            })
        });
        match listed.await {
            Ok(Ok(items)) => json(StatusCode::OK, &value!({ "items": items })),
            Err(why) => no_search(why),
            Ok(Err(_)) => {
                later(StatusCode::SERVICE_UNAVAILABLE, "the recordings cannot be read", Duration::from_secs(1))
            }
        }
    }

    /// The file, with what the audit log says of it; and whose cluster it is of.
    async fn one_recording(&self, name: String) -> (Response<Body>, String) {
        let (store, log) = (Arc::clone(&self.recordings), self.audit_path.clone());
        match self.searches.run(move || find(&store, &log, &name)).await {
            Ok(Ok(Some(found))) => {
                let Found { file, bytes, sha, seal, cluster } = found;
                let mut response = Response::new(pieces(file, bytes, sha));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-asciicast"));
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                headers.insert(SEAL, HeaderValue::from_static(seal));
                (response, cluster)
            }
            Ok(Ok(None)) => (status_response(StatusCode::NOT_FOUND, "there is no such recording"), String::new()),
            Ok(Err(error)) => {
                tracing::error!("a recording cannot be read: {error}");
                let message = "the recording cannot be read";
                (later(StatusCode::SERVICE_UNAVAILABLE, message, Duration::from_secs(1)), String::new())
            }
            Err(why) => (no_search(why), String::new()),
        }
    }
}

/// One that was found.
struct Found {
    /// At its beginning.
    file: fs::File,
    /// So long it was when its hash was taken.
    bytes: u64,
    sha: String,
    /// What [`SEAL`] says.
    seal: &'static str,
    cluster: String,
}

/// Looks it up, and then the log; reads files.
fn find(store: &Store, log: &Path, name: &str) -> io::Result<Option<Found>> {
    if store.find(name)?.is_none() {
        return Ok(None);
    }
    let begun = Instant::now();
    let query = Query {
        recording: Some(name.to_owned()),
        but_verb: Some("replay".to_owned()),
        limit: SPOKEN,
        ..Query::default()
    };
    // The log before the file: what it names by then is over by then, so that other bytes are not those.
    let mut said = search(log, &query, PATIENCE)?;
    if said.records.len() == SPOKEN {
        // More than anybody needs: what came first counts.
        said = search(log, &Query { from: End::Oldest, ..query.clone() }, PATIENCE)?;
    }
    let Some((kept, mut file)) = store.find(name)? else { return Ok(None) };
    let (sha, bytes) = sha_of(&mut file)?;
    if !kept.open && hash_of(&said).is_none() && !said.partial {
        // It may have ended between the two.
        said = search(log, &query, PATIENCE.saturating_sub(begun.elapsed()))?;
    }
    let seal = seal(&said, &sha, kept.open);
    let named = said.records.iter().find_map(|record| text(record, "/annotations/moorline.dev~1cluster"));
    let cluster = named.map_or(kept.about.cluster, str::to_owned);
    Ok(Some(Found { file, bytes, sha, seal, cluster }))
}

fn text<'a>(record: &'a Value, pointer: &str) -> Option<&'a str> {
    record.pointer(pointer)?.as_str()
}

/// The hash that the log names. A session's record may say that it was not known by then; one that came later knows.
fn hash_of(said: &Answer) -> Option<&str> {
    let all = said.records.iter().filter_map(|record| text(record, "/annotations/moorline.dev~1recording-sha256"));
    all.reduce(|known, next| if known == UNKNOWN { next } else { known })
}

/// What the log says of bytes with this hash, in a file whose session goes on (`open`) or not.
fn seal(said: &Answer, sha: &str, open: bool) -> &'static str {
    match hash_of(said) {
        Some(UNKNOWN) => "unknown",
        Some(sealed) if sealed == sha => "sealed",
        Some(_) => "altered",
        None if open => "open",
        None => "unknown",
    }
}

/// Hash and length of what is in it by now; at its beginning again after that.
fn sha_of(file: &mut fs::File) -> io::Result<(String, u64)> {
    let (mut sha, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => {
                sha.update(piece.get(..n).unwrap_or_default());
                bytes += n as u64;
            }
        }
    }
    file.rewind()?;
    Ok((hex(sha), bytes))
}

fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first `bytes` of a file, piece by piece. They are hashed again as they go: if they are not those of which the log
/// was asked, the answer is cut short.
fn pieces(file: fs::File, bytes: u64, sha: String) -> Body {
    let begin = (tokio::fs::File::from_std(file), bytes, Sha256::new(), sha);
    let all = stream::try_unfold(begin, |(mut file, left, mut hashed, sha)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        let read = file.read(&mut piece).await.map_err(BodyError::Io)?;
        piece.truncate(read);
        hashed.update(&piece);
        let left = left - read as u64;
        if read == 0 || (left == 0 && hex(hashed.clone()) != sha) {
            return Err(BodyError::Io(io::Error::other("the recording changed while it was shown")));
        }
        Ok(Some((Frame::data(Bytes::from(piece)), (file, left, hashed, sha))))
    });
    StreamBody::new(all).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_log_says_is_said_of_the_bytes() {
        let said = |hashes: &[Option<&str>], partial| {
            let record = |hash: &Option<&str>| match hash {
                Some(hash) => value!({ "annotations": { "moorline.dev/recording-sha256": hash } }),
                None => value!({ "annotations": { "moorline.dev/recording": "1" } }),
            };
            Answer { records: hashes.iter().map(record).collect(), partial }
        };
        for (hashes, open, expected) in [
            (&[Some("a")][..], false, "sealed"),
            (&[Some("b")], false, "altered"),
            (&[Some("b")], true, "altered"), // what the log knows is over, whatever the file is called
            (&[Some(UNKNOWN)], false, "unknown"),
            (&[Some(UNKNOWN), Some("a")], false, "sealed"),
            (&[Some(UNKNOWN), Some("b")], false, "altered"),
            (&[Some("b"), Some("a")], false, "altered"),
            (&[], true, "open"),
            (&[None], true, "open"),
            (&[None], false, "unknown"),
            (&[], false, "unknown"),
        ] {
            for partial in [false, true] {
                assert_eq!(seal(&said(hashes, partial), "a", open), expected, "{hashes:?} {open}");
            }
        }
    }

    #[tokio::test]
    async fn what_changes_while_it_is_shown_is_not_shown_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for (change, sound) in [("", true), ("another", true), ("same", false), ("gone", false)] {
            let text = "some text ".repeat(20_000);
            fs::write(&path, &text).unwrap();
            let mut file = fs::File::open(&path).unwrap();
            let (sha, bytes) = sha_of(&mut file).unwrap();
            match change {
                "another" => fs::write(dir.path().join("y"), "y").unwrap(),
                "same" => fs::write(&path, text.replace("some", "none")).unwrap(),
                "gone" => fs::write(&path, "").unwrap(),
                _ => {}
            }
            let shown = pieces(file, bytes, sha).collect().await.map(|all| all.to_bytes());
            assert_eq!(shown.is_ok(), sound, "{change}");
            assert!(shown.is_err() || shown.is_ok_and(|shown| shown == text.as_bytes()), "{change}");
        }
    }
}
