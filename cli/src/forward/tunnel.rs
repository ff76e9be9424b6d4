//! Connections into the cluster: each an upgraded connection to the hub.

use crate::{
    client::{ApiError, Client},
    failure::advise,
    resource::segment,
    target::HubArgs,
    text,
};
use bytes::Bytes;
use http::StatusCode;
use moorline_proto::inside::Destination;
use moorline_proxy::{
    splice::Passed,
    upgrade::{Rewound, Whole},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How long a local connection waits for a hub or cluster that is not there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pauses between attempts, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// How long a client is used before the login is looked at again.
const CLIENT_LIFE: Duration = Duration::from_secs(20);
/// The same trouble is told again after this long.
const REPEAT: Duration = Duration::from_secs(10);

/// A connection through the hub.
pub type Tunnel = Rewound<Whole<TlsStream<TcpStream>>>;

/// What passes, and how it goes.
#[derive(Debug, Default)]
pub struct Stats {
    /// Open connections, and flows of datagrams.
    pub open: AtomicUsize,
    /// Bytes of connections that have ended, and of datagrams.
    pub ended: Passed,
    /// Of those that are open.
    live: Mutex<Vec<Arc<Passed>>>,
    /// The trouble of the moment, and when it was told.
    trouble: Mutex<Option<(String, Instant)>>,
}

impl Stats {
    fn live(&self) -> MutexGuard<'_, Vec<Arc<Passed>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection until its guard is dropped.
    pub fn begin(&self) -> Counted<'_> {
        let passed = Arc::new(Passed::default());
        self.live().push(passed.clone());
        self.open.fetch_add(1, Ordering::Relaxed);
        Counted { stats: self, passed }
    }

    /// Bytes from the cluster, bytes to it.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |passed: &Passed| (passed.there.load(Ordering::Relaxed), passed.back.load(Ordering::Relaxed));
        let live = self.live();
        let add = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        live.iter().fold(of(&self.ended), |sum, passed| add(sum, of(passed)))
    }

    /// What is wrong now.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().map(|(text, _)| text.clone())
    }

    /// All is well.
    pub fn well(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Something is not; said once in a while.
    pub fn tell(&self, words: String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let known = trouble.as_ref().is_some_and(|(text, at)| *text == words && at.elapsed() < REPEAT);
        if !known {
            super::line::above(&format!("error: {}", text::clean(&words)));
            *trouble = Some((words, Instant::now()));
        }
    }
}

/// A connection that is counted.
pub struct Counted<'a> {
    stats: &'a Stats,
    /// What passes on it.
    pub passed: Arc<Passed>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // Whoever looks meanwhile sees its bytes once, there or here.
        let mut live = self.stats.live();
        live.retain(|other| !Arc::ptr_eq(other, &self.passed));
        let sum = |all: &AtomicU64, one: &AtomicU64| all.fetch_add(one.load(Ordering::Relaxed), Ordering::Relaxed);
        sum(&self.stats.ended.there, &self.passed.there);
        sum(&self.stats.ended.back, &self.passed.back);
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ways into one cluster.
pub struct Tunnels {
    hub: HubArgs,
    client: Mutex<Option<(Instant, Client)>>,
    cluster: String,
    /// What passes.
    pub stats: Stats,
}

impl Tunnels {
    /// Into this cluster, by this hub.
    pub fn new(hub: HubArgs, cluster: &str) -> Self {
        Self { hub, client: Mutex::default(), cluster: cluster.to_owned(), stats: Stats::default() }
    }

    /// The client, made anew once in a while: a login that was renewed, by this program or another, is found in its file.
    fn client(&self) -> Result<Client, ApiError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match &*client {
            Some((at, client)) if at.elapsed() < CLIENT_LIFE => Ok(client.clone()),
            _ => {
                let new = self.hub.client().map_err(|source| ApiError::Local { source })?;
                *client = Some((Instant::now(), new.clone()));
                Ok(new)
            }
        }
    }

    fn path(&self, to: &Destination, datagrams: bool) -> String {
        // A bracketed address would not be a path; the last colon is the port's in any case.
        let to = to.to_string().replace(['[', ']'], "");
        let query = if datagrams { "?payload=datagrams" } else { "" };
        format!("/k8s/clusters/{}/connect/{to}{query}", segment(&self.cluster))
    }

    /// Whether the hub lets this user there. Nothing is connected.
    ///
    /// # Errors
    /// It does not, or it cannot be asked.
    pub async fn check(&self, to: &Destination) -> anyhow::Result<()> {
        match self.client()?.get(&self.path(to, false)).await {
            // The hub asks for the upgrade that a connection begins with: all before it was well.
            Err(ApiError::Refused { code: StatusCode::UPGRADE_REQUIRED, .. }) | Ok(_) => Ok(()),
            Err(ApiError::Refused { code: StatusCode::FORBIDDEN, message, .. }) => {
                Err(advise(message, "ask an administrator of the hub for a grant; who you are: moorline whoami"))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// A connection. Waits a while for a hub or a cluster that is not there.
    ///
    /// # Errors
    /// The last failure.
    pub async fn open(&self, to: &Destination) -> Result<Tunnel, ApiError> {
        let (begin, mut pause) = (Instant::now(), PAUSE.0);
        loop {
            match self.once(to, false).await {
                Err(e) if may_pass(&e) && begin.elapsed() < PATIENCE => {
                    self.stats.tell(format!("{e}; trying again"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Ok(tunnel) => {
                    self.stats.well();
                    return Ok(tunnel);
                }
                Err(e) => {
                    self.stats.tell(e.to_string());
                    return Err(e);
                }
            }
        }
    }

    /// One attempt.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn once(&self, to: &Destination, datagrams: bool) -> Result<Tunnel, ApiError> {
        let (stream, first): (_, Bytes) =
            self.client()?.upgrade(&self.path(to, datagrams), moorline_proxy::kube::PROTOCOL).await?;
        Ok(Rewound::new(first, Whole(stream)))
    }
}

/// Whether the same may work in a moment: the hub or the cluster is not there, and it is nobody's decision.
pub fn may_pass(e: &ApiError) -> bool {
    match e {
        ApiError::Dns { .. } | ApiError::Connect { .. } | ApiError::Timeout { .. } | ApiError::Broken { .. } => true,
        ApiError::Refused { code, reason, .. } => *code == StatusCode::SERVICE_UNAVAILABLE && reason != "NoEndpoints",
        ApiError::Tls { .. } | ApiError::TooLarge { .. } | ApiError::NotAHub { .. } | ApiError::Local { .. } => false,
    }
}
