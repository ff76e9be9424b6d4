//! What the hub asks of this node: to take a plan, how far it is, the file that a step left, and to forget it.

use super::{Known, Plans, now};
use crate::limits;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use moorline_authz::{
    hex::hex,
    plan::{self, Phase, Progress},
};
use moorline_link::IncomingStream;
use moorline_proxy::{Body, body, wire};
use sha2::{Digest, Sha256};
use std::io::Write;
use tokio_util::sync::CancellationToken;

impl Plans {
    /// Serves one stream of the hub's.
    pub(crate) async fn serve(&self, incoming: IncomingStream) {
        let served = wire::serve(incoming.accept(), async |request| self.answer(request).await).await;
        if let Err(error) = served {
            tracing::debug!("a stream for plans ended early: {error}");
        }
    }

    pub(super) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let mut parts = path.trim_start_matches('/').split('/');
        let parts = (parts.next(), parts.next(), parts.next(), parts.next());
        match (request.method(), parts) {
            (&Method::PUT, (Some("plan"), None, ..)) => {
                match Limited::new(request.into_body(), plan::MAX_LEN).collect().await {
                    Ok(whole) => self.take(&whole.to_bytes()),
                    Err(_) => words(StatusCode::BAD_REQUEST, "too large, or cut short"),
                }
            }
            (&Method::GET, (Some("plan"), Some(uid), None, None)) => match self.progress(uid) {
                Some(progress) => told(&progress),
                None => words(StatusCode::NOT_FOUND, "this node has no such plan"),
            },
            (&Method::DELETE, (Some("plan"), Some(uid), None, None)) => {
                self.forget(uid);
                words(StatusCode::OK, "")
            }
            (&Method::GET, (Some("plan"), Some(uid), Some(step), None)) => self.file(uid, step).await,
            (&Method::PUT, (Some("file"), Some(sha256), None, None)) => {
                let sha256 = sha256.to_owned();
                self.receive(&sha256, request.into_body()).await
            }
            _ => words(StatusCode::NOT_FOUND, "this agent has no such thing for plans"),
        }
    }

    /// Takes a plan, unless it has it already: then it says how far that one is.
    fn take(&self, bytes: &[u8]) -> Response<Body> {
        let verify = |message: &[u8], signature: &[u8]| self.anchors.verify(message, signature);
        let plan = match plan::open(bytes, verify, (&self.cluster, &self.agent), now()) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::error!("a plan of the hub is refused: {error}");
                return words(StatusCode::CONFLICT, &error.to_string());
            }
        };
        let id = |b: u8| b.is_ascii_hexdigit() || b == b'-';
        if plan.uid.is_empty() || plan.uid.len() > 64 || !plan.uid.bytes().all(id) {
            return words(StatusCode::BAD_REQUEST, "the plan's uid is none");
        }
        let checksum = plan.checksum();
        let mut all = self.lock();
        if let Some(known) = all.get(&plan.uid) {
            // Once is once, whatever the hub has forgotten; but what the owner refused may be asked for again.
            if known.progress.checksum == checksum && known.progress.phase != Phase::Refused {
                return told(&known.progress);
            }
            if plan.issued < known.plan.issued {
                return words(StatusCode::CONFLICT, "a newer one of this plan was taken before");
            }
            if known.progress.phase == Phase::Running {
                return words(StatusCode::TOO_MANY_REQUESTS, "the older one of this plan is still under way");
            }
        } else if limits::PLANS <= all.len() {
            let over = all.iter().filter(|(_, known)| known.progress.phase.is_over());
            let Some(oldest) = over.min_by_key(|(_, known)| known.progress.ended).map(|(uid, _)| uid.clone()) else {
                return words(StatusCode::TOO_MANY_REQUESTS, "this node has as many plans as it may");
            };
            all.remove(&oldest);
            self.store.forget(&oldest);
        }
        if let Err(denial) = self.policy.current().plan(&plan) {
            tracing::warn!(plan = plan.name, "a plan of the hub is refused: {denial}");
            return words(StatusCode::FORBIDDEN, &denial.to_string());
        }
        let progress = Progress { checksum, ..Progress::default() };
        if let Err(error) = self.store.take(&plan, &progress) {
            tracing::error!(plan = plan.name, "a plan could not be kept: {error}");
            return words(StatusCode::INSUFFICIENT_STORAGE, "it could not be kept on disk");
        }
        tracing::info!(plan = plan.name, steps = plan.steps.len(), "a plan was taken");
        let answer = told(&progress);
        all.insert(plan.uid.clone(), Known { plan, progress, stop: CancellationToken::new() });
        drop(all);
        self.wake.notify_one();
        answer
    }

    fn forget(&self, uid: &str) {
        let mut all = self.lock();
        if let Some(known) = all.remove(uid) {
            known.stop.cancel();
            self.store.forget(uid);
        }
    }

    /// The file that a step has left.
    async fn file(&self, uid: &str, step: &str) -> Response<Body> {
        let has = self.progress(uid).is_some_and(|p| p.steps.iter().any(|s| s.name == step && s.file));
        if !has {
            return words(StatusCode::NOT_FOUND, "this step has left no file");
        }
        match tokio::fs::read(self.store.file(uid, step)).await {
            Ok(bytes) if bytes.len() <= limits::PLAN_FILE => Response::new(body::full(bytes)),
            Ok(_) => words(StatusCode::PAYLOAD_TOO_LARGE, "it is too large"),
            Err(error) => words(StatusCode::NOT_FOUND, &error.to_string()),
        }
    }

    /// A file that a step waits for; nothing else is kept.
    async fn receive(&self, sha256: &str, mut body: Body) -> Response<Body> {
        let wanted = self.lock().values().any(|known| known.progress.needs.iter().any(|need| need == sha256));
        if !wanted {
            return words(StatusCode::CONFLICT, "no step waits for this file");
        }
        let part = self.store.fetched(&format!("{sha256}.part"));
        let kept = async {
            let mut file = std::fs::File::create(&part)?;
            let (mut hash, mut len) = (Sha256::new(), 0usize);
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(std::io::Error::other)?.into_data() else { continue };
                len += data.len();
                if limits::PLAN_FILE < len {
                    return Err(std::io::Error::other("it is too large"));
                }
                hash.update(&data);
                file.write_all(&data)?;
            }
            let found = hex(&hash.finalize());
            if found != sha256 {
                return Err(std::io::Error::other("it has another checksum"));
            }
            file.sync_all()?;
            std::fs::rename(&part, self.store.fetched(sha256))
        };
        match kept.await {
            Ok(()) => words(StatusCode::OK, ""),
            Err(error) => words(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
        }
    }
}

fn told(progress: &Progress) -> Response<Body> {
    Response::new(body::full(serde_json::to_vec(progress).unwrap_or_default()))
}

fn words(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(body::full(text.to_owned()));
    *response.status_mut() = code;
    response
}
