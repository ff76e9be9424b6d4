//! What the endpoint beside this agent has recorded of sessions in terminals, for the hub: named, given piece by piece, and
//! removed once the hub says by its hash that it has all of it.

use super::{number, words};
use http::{Method, Response, StatusCode};
use moorline_endpoint::{limits, recordings::outbox};
use moorline_proxy::{Body, body};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Recordings that wait; those that are named at once, at most.
pub(super) fn waiting(dir: &Path) -> usize {
    outbox(dir).list(limits::RECORDINGS_LISTED).map_or(0, |all| all.len())
}

/// One request of the hub's, to `path` below `/recordings`.
pub(super) async fn answer(dir: PathBuf, method: &Method, path: &str, query: Option<&str>) -> Response<Body> {
    let name = path.strip_prefix("/recordings").map_or("", |rest| rest.trim_start_matches('/')).to_owned();
    let (from, sha256) = (number(query, "from="), query.and_then(|query| query.strip_prefix("sha256=")));
    let ask: Box<dyn FnOnce() -> io::Result<Response<Body>> + Send> = match (method, sha256, name.is_empty()) {
        (&Method::GET, None, true) => Box::new(move || {
            let all = outbox(&dir).list(limits::RECORDINGS_LISTED)?;
            Ok(Response::new(body::full(all.iter().map(|name| format!("{name}\n")).collect::<String>())))
        }),
        (&Method::GET, None, false) => Box::new(move || {
            let piece = outbox(&dir).piece(&name, from, limits::RECORDING_PIECE)?;
            Ok(piece.map_or_else(missing, |piece| Response::new(body::full(piece))))
        }),
        (&Method::DELETE, Some(sha256), false) => {
            let sha256 = sha256.to_owned();
            Box::new(move || match outbox(&dir).forget(&name, &sha256)? {
                true => Ok(Response::new(body::empty())),
                false => Ok(words(StatusCode::CONFLICT, "another one is here under this name")),
            })
        }
        _ => return missing(),
    };
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::error!("the endpoint's recordings cannot be given to the hub: {error}");
            words(StatusCode::INTERNAL_SERVER_ERROR, "they cannot be read")
        }
        Err(_) => words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
    }
}

fn missing() -> Response<Body> {
    words(StatusCode::NOT_FOUND, "no such recording is over here")
}
