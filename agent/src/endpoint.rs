//! The agent's part in the cluster's own endpoint: it keeps what the hub sends for it, and sends what it recorded.

mod keep;
mod recordings;

pub use keep::Keeper;

use crate::{EndpointConfig, membership::Membership, metrics::Metrics};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use moorline_authz::bundle::Bundle;
use moorline_endpoint::{
    limits,
    queue::Queue,
    shelf::{Shelf, ShelfError},
    trust::Anchors,
    usage::{self, InUse},
};
use moorline_link::IncomingStream;
use moorline_proxy::{Body, body, wire};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};
use tokio::sync::watch;

/// Whose bundles endpoints take, PEM.
const HUB_CA: &str = "hub-ca.pem";

/// The folder that an agent shares with the endpoints beside it.
///
/// `bundle` is the newest bundle; `hub-ca.pem` and `cluster` say whose it must be; `endpoint.json` is written by an
/// endpoint and says where it is reached.
#[derive(Debug, Clone)]
pub struct Room {
    dir: PathBuf,
    shelf: Shelf,
    /// Whose bundles the shelf takes.
    anchors: Anchors,
    /// Whom the agent believes. The anchors are more while the bundle on the shelf is of an authority that is gone.
    wanted: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    metrics: Metrics,
    /// Told of each bundle that was kept.
    kept: Arc<watch::Sender<()>>,
    /// Serial and end of the bundle whose file was changed last then.
    seen: Arc<Mutex<Option<(SystemTime, u64, u64)>>>,
    /// How it stands with the copy in a Secret; `None`: there is none to be.
    copy: Arc<Mutex<Option<String>>>,
}

/// How it stands with the cluster's own endpoint, for the hub.
#[derive(Debug, Serialize)]
struct Stand {
    /// Serial of the bundle that is kept.
    serial: Option<u64>,
    /// When its time is over, in seconds since 1970.
    expires: Option<u64>,
    /// The endpoints that use it.
    endpoints: Vec<InUse>,
    /// Recordings that wait for the hub; it is told of so many at most.
    #[serde(skip_serializing_if = "none")]
    recordings: usize,
    /// The copy in a Secret: `ok`, or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

fn none(n: &usize) -> bool {
    *n == 0
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
    pub fn open(config: &EndpointConfig, membership: &Membership, metrics: Metrics) -> Result<Self, RoomError> {
        let dir = config.dir.as_path();
        let failed = |why: String| RoomError { path: dir.to_owned(), why };
        let anchors = Anchors::new(membership.bundle.clone()).map_err(|e| failed(e.to_string()))?;
        let shelf = Shelf::open(dir, membership.cluster.as_str(), anchors.clone(), config.seal_key.as_deref());
        let shelf = shelf.map_err(|e| failed(crate::upstream::chain(&e)))?;
        // What was believed here last, should the bundle be signed by one of them and by none of the new ones.
        let before = Anchors::follow(&dir.join(HUB_CA)).map(|anchors| anchors.all()).unwrap_or_default();
        believe(&shelf, &anchors, &before, &membership.bundle).map_err(|e| failed(e.to_string()))?;
        std::fs::write(dir.join("cluster"), membership.cluster.as_str()).map_err(|e| failed(e.to_string()))?;
        let wanted = Arc::new(Mutex::new(membership.bundle.clone()));
        let copy = config.secret.as_ref().map(|_| "not kept yet".to_owned());
        let (dir, copy) = (dir.to_owned(), Arc::new(Mutex::new(copy)));
        Ok(Self { dir, shelf, anchors, wanted, metrics, kept: Arc::default(), seen: Arc::default(), copy })
    }

    /// The agent believes these authorities from now on. Blocks.
    pub fn trust(&self, bundle: &[CertificateDer<'static>]) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = bundle.to_vec();
        self.settle();
    }

    fn settle(&self) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.anchors.all();
        if before != *wanted
            && let Err(error) = believe(&self.shelf, &self.anchors, &before, &wanted)
        {
            tracing::error!("the endpoint does not know of the hub's authority: {error}");
        }
    }

    fn copied(&self, how: impl Into<String>) {
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = Some(how.into());
    }

    /// Serves one stream of the hub's.
    pub async fn serve(&self, incoming: IncomingStream) {
        let served = wire::serve(incoming.accept(), async |request| self.answer(request).await).await;
        if let Err(error) = served {
            tracing::debug!("a stream for the endpoint ended early: {error}");
        }
    }

    /// Answers one request of the hub's.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::PUT | &Method::PATCH, "/bundle") => {
                let delta = request.method() == Method::PATCH;
                match Limited::new(request.into_body(), limits::BUNDLE).collect().await {
                    Ok(whole) => self.put(whole.to_bytes().to_vec(), delta).await,
                    Err(e) if e.is::<LengthLimitError>() => {
                        self.count("too_large");
                        words(StatusCode::PAYLOAD_TOO_LARGE, "too large")
                    }
                    Err(_) => words(StatusCode::BAD_REQUEST, "cut short"),
                }
            }
            (&Method::GET, "/state") => self.stand().await,
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
            (method, path) if path.starts_with("/recordings") => {
                let (dir, uri) = (self.dir.clone(), request.uri());
                recordings::answer(dir, method, path, uri.query()).await
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

    /// Serial and end of the bundle that is kept. It is read when it has changed, for it may be large.
    fn held(&self) -> Option<(u64, u64)> {
        let changed = std::fs::metadata(self.shelf.file()).and_then(|found| found.modified()).ok()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, serial, expires)) = *seen
            && when == changed
        {
            return Some((serial, expires));
        }
        let bundle = self.shelf.read(None).ok().flatten()?;
        *seen = Some((changed, bundle.serial, bundle.expires));
        Some((bundle.serial, bundle.expires))
    }

    fn count(&self, result: &str) {
        self.metrics.bundles.with_label_values(&[result]).inc();
    }

    /// Keeps a bundle, or what a delta makes of the one that is here: both are checked the same.
    async fn put(&self, bytes: Vec<u8>, delta: bool) -> Response<Body> {
        let shelf = self.shelf.clone();
        let this = self.clone();
        let put = move || {
            let put = if delta { shelf.put_delta(&bytes) } else { shelf.put(&bytes) };
            put.inspect(|_| this.settle())
        };
        let put = tokio::task::spawn_blocking(put).await;
        match put {
            Ok(Ok(bundle)) => self.took(&bundle, delta),
            Ok(Err(error @ (ShelfError::Delta(_) | ShelfError::NotOpened(_)))) if delta => {
                self.count(error.label());
                words(StatusCode::CONFLICT, &error.to_string())
            }
            Ok(Err(ShelfError::Refused(why))) => {
                self.count(why.label());
                tracing::error!("a bundle of the hub is refused: {why}");
                words(StatusCode::CONFLICT, &why.to_string())
            }
            Ok(Err(error)) => {
                self.count(error.label());
                tracing::error!("a bundle could not be kept: {}", crate::upstream::chain(&error));
                words(StatusCode::INSUFFICIENT_STORAGE, "it could not be kept")
            }
            Err(_) => words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
        }
    }

    fn took(&self, bundle: &Bundle, delta: bool) -> Response<Body> {
        self.count(if delta { "delta" } else { "whole" });
        tracing::info!(serial = bundle.serial, users = bundle.users.len(), delta, "a bundle was kept");
        self.kept.send_replace(());
        // What an endpoint wrote, as it is: the hub takes what it understands.
        let told = std::fs::read(self.dir.join("endpoint.json")).unwrap_or_else(|_| b"{}".to_vec());
        Response::new(body::full(told))
    }

    /// How it stands.
    async fn stand(&self) -> Response<Body> {
        let this = self.clone();
        let looked =
            tokio::task::spawn_blocking(move || (this.held(), usage::all(&this.dir), recordings::waiting(&this.dir)));
        let Ok((held, endpoints, recordings)) = looked.await else {
            return words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug");
        };
        let stand = Stand {
            serial: held.map(|(serial, _)| serial),
            expires: held.map(|(_, expires)| expires),
            endpoints,
            recordings,
            secret: self.copy.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        match serde_json::to_vec(&stand) {
            Ok(json) => Response::new(body::full(json)),
            Err(_) => words(StatusCode::INTERNAL_SERVER_ERROR, "failed by a bug"),
        }
    }
}

/// Makes `wanted` the authorities of the shelf and of the endpoints beside it; and, while the bundle that lies there is of
/// none of them, those of `before` as well: an endpoint that is started anew would have no bundle else.
fn believe(
    shelf: &Shelf,
    anchors: &Anchors,
    before: &[CertificateDer<'static>],
    wanted: &[CertificateDer<'static>],
) -> io::Result<()> {
    let mut all = wanted.to_vec();
    let alone = shelf.believing(Anchors::new(all.clone()).map_err(io::Error::other)?);
    if matches!(alone.read(None), Err(ShelfError::Refused(_))) {
        all.extend(before.iter().filter(|old| !wanted.contains(old)).cloned());
    }
    anchors.replace(all.clone()).map_err(io::Error::other)?;
    let text: String = all.iter().map(|der| pem(der)).collect();
    shelf.keep(HUB_CA, text.as_bytes())
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
