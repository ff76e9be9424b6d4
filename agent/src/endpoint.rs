//! The agent's part in the cluster's own endpoint: it keeps what the hub sends for it, and sends what it recorded.

use crate::state::Membership;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use moorline_endpoint::{
    limits,
    queue::Queue,
    shelf::{Shelf, ShelfError},
    trust::Anchors,
};
use moorline_link::IncomingStream;
use moorline_proxy::{Body, body, wire};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The folder that an agent shares with the endpoints beside it.
///
/// `bundle` is the newest bundle; `hub-ca.pem` and `cluster` say whose it must be; `endpoint.json` is written by an
/// endpoint and says where it is reached.
#[derive(Debug, Clone)]
pub struct Room {
    dir: PathBuf,
    shelf: Shelf,
}

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the endpoint's folder {path} cannot be used: {why}")]
pub struct RoomError {
    path: PathBuf,
    why: String,
}

impl Room {
    /// Opens the folder, and says in it whose bundles are believed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(dir: &Path, membership: &Membership) -> Result<Self, RoomError> {
        let failed = |why: String| RoomError { path: dir.to_owned(), why };
        let anchors = Anchors::new(membership.bundle.clone()).map_err(|e| failed(e.to_string()))?;
        let shelf = Shelf::open(dir, membership.cluster.as_str(), anchors).map_err(|e| failed(e.to_string()))?;
        let pem: String = membership.bundle.iter().map(|der| pem(der)).collect();
        let keep = |name: &str, text: &str| std::fs::write(dir.join(name), text).map_err(|e| failed(e.to_string()));
        keep("hub-ca.pem", &pem)?;
        keep("cluster", membership.cluster.as_str())?;
        Ok(Self { dir: dir.to_owned(), shelf })
    }

    /// Serves one stream of the hub's.
    pub async fn serve(&self, incoming: IncomingStream) {
        let served = wire::serve(incoming.accept(), async |request| self.answer(request).await).await;
        if let Err(error) = served {
            tracing::debug!("a stream for the endpoint ended early: {error}");
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::PUT, "/bundle") => match Limited::new(request.into_body(), limits::BUNDLE).collect().await {
                Ok(whole) => self.put(whole.to_bytes().to_vec()).await,
                Err(e) if e.is::<LengthLimitError>() => words(StatusCode::PAYLOAD_TOO_LARGE, "too large"),
                Err(_) => words(StatusCode::BAD_REQUEST, "cut short"),
            },
            (&Method::GET, "/audit/id") => self.queued(|queue| Ok(queue.id().as_bytes().to_vec())).await,
            (&Method::GET, "/audit") => {
                let after = number(request.uri().query(), "after=");
                self.queued(move |queue| {
                    let batch = queue.after(after)?;
                    Ok([format!("{}\n", batch.last).as_bytes(), &batch.lines].concat())
                })
                .await
            }
            (&Method::DELETE, "/audit") => {
                let upto = number(request.uri().query(), "upto=");
                self.queued(move |queue| queue.forget(upto).map(|()| Vec::new())).await
            }
            _ => words(StatusCode::NOT_FOUND, "this agent has no such thing for the endpoint"),
        }
    }

    /// Asks what an endpoint has recorded; 404: none has, here.
    async fn queued(&self, ask: impl FnOnce(&Queue) -> io::Result<Vec<u8>> + Send + 'static) -> Response<Body> {
        let dir = self.dir.join("audit");
        let asked = tokio::task::spawn_blocking(move || {
            if !dir.is_dir() {
                return Ok(None);
            }
            ask(&Queue::open(&dir)?).map(Some)
        });
        match asked.await {
            Ok(Ok(Some(answer))) => Response::new(body::full(answer)),
            Ok(Ok(None)) => words(StatusCode::NOT_FOUND, "no endpoint has recorded anything here"),
            Ok(Err(error)) => {
                tracing::error!("the endpoint's audit records cannot be read: {error}");
                words(StatusCode::INTERNAL_SERVER_ERROR, "they cannot be read")
            }
            Err(_) => words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
        }
    }

    async fn put(&self, bytes: Vec<u8>) -> Response<Body> {
        let shelf = self.shelf.clone();
        match tokio::task::spawn_blocking(move || shelf.put(&bytes)).await {
            Ok(Ok(bundle)) => {
                tracing::info!(serial = bundle.serial, users = bundle.users.len(), "a bundle was kept");
                // What an endpoint wrote, as it is: the hub takes what it understands.
                let told = std::fs::read(self.dir.join("endpoint.json")).unwrap_or_else(|_| b"{}".to_vec());
                Response::new(body::full(told))
            }
            Ok(Err(ShelfError::Refused(why))) => {
                tracing::error!("a bundle of the hub is refused: {why}");
                words(StatusCode::CONFLICT, &why.to_string())
            }
            Ok(Err(error)) => {
                tracing::error!("a bundle could not be kept: {error}");
                words(StatusCode::INSUFFICIENT_STORAGE, "it could not be kept")
            }
            Err(_) => words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
        }
    }
}

fn number(query: Option<&str>, name: &str) -> u64 {
    query.and_then(|query| query.strip_prefix(name)?.parse().ok()).unwrap_or_default()
}

fn words(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(body::full(text.to_owned()));
    *response.status_mut() = code;
    response
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
