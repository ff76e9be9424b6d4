//! Serves the streams of one session: each in a task of its own, so that none can harm another.

use crate::{
    endpoint::Room,
    inside::Inside,
    limits,
    metrics::Metrics,
    node::{plans::Plans, vouch::Voucher},
    policy::PolicyFile,
    shell::NodeShells,
};
use moorline_link::{IncomingStream, Session, Stream};
use moorline_proto::{
    code::{RefuseCode, ResetCode},
    header::{Refusal, StreamHeader, Target},
};
use moorline_proxy::edge::{Reviewer, Upstream, serve_kube};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::Instrument;

/// What the streams of all sessions share.
pub struct Service<U, R> {
    pub(crate) upstream: Arc<U>,
    pub(crate) reviewer: Arc<R>,
    pub(crate) policy: Arc<PolicyFile>,
    places: Arc<Semaphore>,
    metrics: Metrics,
    more: More,
}

/// What an agent may serve beside Kubernetes. Streams to what is not there are refused.
#[derive(Default)]
pub struct More {
    /// It is a node agent's.
    pub node: bool,
    /// Keeps what the cluster's own endpoint needs.
    pub room: Option<Room>,
    /// Services, pods and hosts.
    pub inside: Option<Arc<Inside>>,
    /// Shells on this node.
    pub shells: Option<NodeShells>,
    /// Plans for this node.
    pub plans: Option<Arc<Plans>>,
    /// Vouches for the cluster's nodes: a cluster agent's.
    pub voucher: Option<Voucher>,
}

impl<U: Upstream, R: Reviewer> Service<U, R> {
    /// Serves Kubernetes from `upstream` as far as `policy` and `reviewer` allow, and what else there is in `more`.
    pub fn new(upstream: Arc<U>, reviewer: Arc<R>, policy: Arc<PolicyFile>, metrics: Metrics, more: More) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(limits::MAX_STREAMS));
        Arc::new(Self { upstream, reviewer, policy, places, metrics, more })
    }

    /// Serves until the session is over. Its end cancels everything that its streams had under way.
    ///
    /// # Cancel safety
    /// Dropping the future ends every stream.
    pub async fn session(self: Arc<Self>, session: Session) {
        let (mut tasks, mut refusals) = (JoinSet::new(), JoinSet::new());
        loop {
            tokio::select! {
                Some(done) = tasks.join_next() => self.ended(done),
                Some(_) = refusals.join_next() => {}
                incoming = session.accept() => {
                    let Some(incoming) = incoming else { return };
                    self.begin(incoming, &mut tasks, &mut refusals);
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, incoming: IncomingStream, tasks: &mut JoinSet<()>, refusals: &mut JoinSet<()>) {
        match &incoming.header.target {
            Target::Kube | Target::Inside(_) | Target::Shell if self.more.node && self.stands_apart() => {
                let why = "the cluster's owner has this node agent act for nobody: spec.standIn of its edge policy";
                return self.refuse(incoming, RefuseCode::Policy, why, refusals);
            }
            Target::Inside(_) if self.more.inside.is_none() => {
                return self.refuse(incoming, RefuseCode::Policy, "this agent reaches the API server alone", refusals);
            }
            Target::Endpoint if self.more.room.is_none() => {
                return self.refuse(incoming, RefuseCode::Policy, "this agent keeps nothing for an endpoint", refusals);
            }
            Target::Node if self.more.plans.is_none() && self.more.voucher.is_none() => {
                return self.refuse(incoming, RefuseCode::UnknownTarget, "this agent does no plans", refusals);
            }
            Target::Shell if self.more.shells.is_none() => {
                return self.refuse(incoming, RefuseCode::UnknownTarget, "this agent gives no shells", refusals);
            }
            _ => {}
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return self.refuse(incoming, RefuseCode::Busy, "the agent serves as many streams as it may", refusals);
        };
        let span = tracing::debug_span!("stream", trace = trace_id(&incoming.header), class = ?incoming.header.class);
        let service = self.clone();
        self.metrics.streams.inc();
        let counted = Counted(self.metrics.clone());
        let task = async move {
            let _held = (place, counted);
            service.stream(incoming).await;
        };
        tasks.spawn(task.instrument(span));
    }

    /// All but calls to the API server are boxed: a task is as large as its largest branch, and is moved several times.
    async fn stream(&self, incoming: IncomingStream) {
        match (&incoming.header.target, &self.more.inside) {
            (Target::Echo, _) => return Box::pin(echo(incoming.accept())).await,
            (Target::Inside(target), Some(inside)) => {
                let target = target.clone();
                return Box::pin(inside.serve(incoming, target)).await;
            }
            _ => {}
        }
        if incoming.header.target == Target::Endpoint {
            if let Some(room) = &self.more.room {
                Box::pin(room.serve(incoming)).await;
            }
            return;
        }
        if let (Target::Node, Some(plans)) = (&incoming.header.target, &self.more.plans) {
            return Box::pin(plans.serve(incoming)).await;
        }
        if let (Target::Node, Some(voucher)) = (&incoming.header.target, &self.more.voucher) {
            return Box::pin(voucher.serve(incoming)).await;
        }
        if let (Target::Shell, Some(shells)) = (&incoming.header.target, &self.more.shells) {
            return Box::pin(shells.stream(self, incoming)).await;
        }
        let policy = self.policy.current();
        if let Err(e) = serve_kube(incoming, &policy, &*self.upstream, &*self.reviewer).await {
            tracing::debug!(cause = %crate::upstream::chain(&e), "stream ended early");
        }
    }

    fn stands_apart(&self) -> bool {
        self.policy.current().stands_in().is_err()
    }

    fn refuse(&self, incoming: IncomingStream, code: RefuseCode, message: &str, refusals: &mut JoinSet<()>) {
        self.metrics.refusals.with_label_values(&[code.name()]).inc();
        if refusals.len() < limits::MAX_REFUSALS {
            let refusal = Refusal { code, message: message.to_owned(), retry_elsewhere: code == RefuseCode::Busy };
            refusals.spawn(async move { incoming.refuse(refusal).await });
        }
    }

    /// A bug in one stream's task ends that stream; its panic dropped, and so reset, what it held.
    fn ended(&self, done: Result<(), tokio::task::JoinError>) {
        if done.is_err_and(|e| e.is_panic()) {
            self.metrics.panics.inc();
            tracing::error!("a stream's task failed by a bug; the stream was reset, the session goes on");
        }
    }
}

/// One stream less, however it ended.
struct Counted(Metrics);
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

async fn echo(mut stream: Stream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => {
                let sent = async {
                    stream.write_all(buffer.get(..n).unwrap_or_default()).await?;
                    stream.flush().await
                };
                if sent.await.is_err() {
                    return stream.reset(ResetCode::Broken);
                }
            }
            Err(_) => return stream.reset(ResetCode::Broken),
        }
    }
    let _ = stream.shutdown().await; // the peer no longer listens: nothing is lost
}

/// The trace id within a W3C `traceparent`, or nothing.
fn trace_id(header: &StreamHeader) -> &str {
    let id = header.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1)).unwrap_or_default();
    if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) { id } else { "" }
}
