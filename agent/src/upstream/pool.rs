//! The shared HTTP/2 connections: the least loaded one is taken, a new one dialled when all are full.

use super::{
    dial::{self, Dialled, Room},
    endpoint::Endpoint,
};
use crate::limits;
use hyper::client::conn::{http1, http2};
use moorline_proxy::{Body, edge::UpstreamError};
use prometheus::IntGauge;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

/// A connection and how many requests are on it.
struct Shared {
    send: http2::SendRequest<Body>,
    room: Room,
    in_flight: AtomicUsize,
    /// When the last request ended.
    idle_since: Mutex<Instant>,
    /// Wakes one who waits for a place.
    freed: Arc<Notify>,
    open: IntGauge,
    _task: AbortOnDropHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Shared {
    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }
    fn load(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// A place on a connection, held until the answer has ended.
pub(super) struct Lease(Arc<Shared>);

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        self.0.freed.notify_one();
    }
}

impl Lease {
    /// To send with.
    pub fn sender(&self) -> http2::SendRequest<Body> {
        self.0.send.clone()
    }
}

/// What a request goes out on.
pub(super) enum Way {
    /// A place on a shared connection; whether it was open before.
    Shared(Lease, bool),
    /// A connection of its own: the API server has no HTTP/2.
    Single(http1::SendRequest<Body>, AbortOnDropHandle<()>),
}

/// The connections to one endpoint.
pub(super) struct Pool {
    pub endpoint: Endpoint,
    shared: Mutex<Vec<Arc<Shared>>>,
    /// One dial at a time: those who wait find what it brought.
    dialling: AsyncMutex<()>,
    freed: Arc<Notify>,
    open: IntGauge,
}

impl Pool {
    pub fn new(endpoint: Endpoint, open: IntGauge) -> Self {
        Self { endpoint, shared: Mutex::default(), dialling: AsyncMutex::default(), freed: Arc::default(), open }
    }

    /// The same connections for another token.
    pub fn with_endpoint(&self, endpoint: Endpoint) -> Self {
        let shared = self.lock().clone();
        Self {
            endpoint,
            shared: Mutex::new(shared),
            dialling: AsyncMutex::default(),
            freed: self.freed.clone(),
            open: self.open.clone(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Shared>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The least loaded connection with room; dead ones are dropped on the way.
    fn take(&self) -> Option<Lease> {
        let mut all = self.lock();
        all.retain(|c| !c.send.is_closed());
        let best = all.iter().filter(|c| c.load() < c.room()).min_by_key(|c| c.load())?;
        best.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Lease(best.clone()))
    }

    /// A way for one request.
    ///
    /// # Cancel safety
    /// Safe; a dial under way is given up.
    pub async fn way(&self, fresh: bool) -> Result<Way, UpstreamError> {
        let until = Instant::now() + limits::UPSTREAM_WAIT;
        loop {
            if !fresh && let Some(lease) = self.take() {
                return Ok(Way::Shared(lease, true));
            }
            let freed = self.freed.notified();
            let turn = timeout_at(until, self.dialling.lock()).await.map_err(|_| UpstreamError::Timeout)?;
            if !fresh && let Some(lease) = self.take() {
                return Ok(Way::Shared(lease, true));
            }
            if self.lock().len() < limits::UPSTREAM_CONNECTIONS {
                // Boxed: rare, and large for what waits in every request.
                return match Box::pin(dial::pooled(&self.endpoint)).await? {
                    Dialled::Single(send, task) => Ok(Way::Single(send, task)),
                    Dialled::Shared(send, task, room) => Ok(Way::Shared(self.adopt(send, task, room), false)),
                };
            }
            drop(turn);
            timeout_at(until, freed).await.map_err(|_| full())?;
            if fresh && let Some(lease) = self.take() {
                return Ok(Way::Shared(lease, true));
            }
        }
    }

    fn adopt(&self, send: http2::SendRequest<Body>, task: AbortOnDropHandle<()>, room: Room) -> Lease {
        self.open.inc();
        let shared = Arc::new(Shared {
            send,
            room,
            in_flight: AtomicUsize::new(1),
            idle_since: Mutex::new(Instant::now()),
            freed: self.freed.clone(),
            open: self.open.clone(),
            _task: task,
        });
        self.lock().push(shared.clone());
        Lease(shared)
    }

    /// Closes what has been idle for long, beyond one connection.
    pub fn sweep(&self) {
        let mut all = self.lock();
        let mut kept = false;
        all.retain(|c| {
            let idle = c.load() == 0
                && limits::UPSTREAM_IDLE <= c.idle_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            let keep = !c.send.is_closed() && (!idle || !kept);
            kept |= keep;
            keep
        });
        all.shrink_to_fit();
    }
}

fn full() -> UpstreamError {
    UpstreamError::Unreachable("every connection to it is full".to_owned())
}
