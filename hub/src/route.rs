//! Which session takes a stream: a pure choice over a snapshot, and the dialler made from it.

use crate::{directory::Authenticated, metrics::Metrics, records::Records, sessions::Registry};
use futures_util::{FutureExt, future::BoxFuture};
use moorline_authz::access::{Facts, Grants, Permit, authorize_again};
use moorline_link::{OpenError, Stream, StreamError};
use moorline_proto::{
    code::ResetCode,
    header::{Class, StreamHeader},
};
use moorline_proxy::{
    kube::{Dial, DialError},
    upgrade::Io,
};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

mod carried;
mod nodes;

use carried::Carried;
pub(crate) use nodes::ShellDial;

/// What the choice is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// A node agent: only where no cluster agent is left.
    pub node: bool,
    /// Takes no new streams.
    pub draining: bool,
    /// Has not answered its last probe: its network or its host may be gone.
    pub doubt: bool,
    /// Streams open on it.
    pub open: usize,
    /// Its round trip.
    pub rtt: Duration,
}

/// Which of `all` to use, or `None`. `dice` are two random numbers: of two sessions drawn by chance the better one
/// is taken, which spreads load without everybody rushing to the one that looked best a moment ago.
pub(crate) fn pick(all: &[Candidate], tried: &[usize], dice: [usize; 2]) -> Option<usize> {
    // Better to wait for one that may be slow than to have nobody.
    let classes = [(false, false), (true, false), (false, true), (true, true)];
    let mut pool = classes.into_iter().find_map(|(node, doubt)| {
        let fits = |c: &Candidate| c.node == node && c.doubt == doubt && !c.draining;
        let pool: Vec<usize> =
            (0..all.len()).filter(|at| all.get(*at).is_some_and(fits) && !tried.contains(at)).collect();
        (!pool.is_empty()).then_some(pool)
    })?;
    let first = *pool.get(dice[0] % pool.len().max(1))?;
    pool.retain(|&at| at != first);
    let Some(&second) = pool.get(dice[1] % pool.len().max(1)) else { return Some(first) };
    let cost = |at: usize| all.get(at).map(|c| (c.open, c.rtt));
    Some(if cost(second) < cost(first) { second } else { first })
}

/// Opens streams for one call, and cuts them when the caller's token, user or grant is gone.
pub(crate) struct CallDial {
    pub registry: Arc<Registry>,
    pub records: Records,
    pub who: Authenticated,
    /// What the permit was given by. A change of it has the permit judged anew.
    pub grants: watch::Receiver<Arc<Grants>>,
    pub metrics: Metrics,
    /// The hub is shutting down.
    pub finish: CancellationToken,
    /// Over how long watches end then.
    pub spread: Duration,
}

impl CallDial {
    /// Resolves when the stream has to end: the right is gone, or it is a watch and the hub shuts down.
    fn end_of(&self, permit: &Permit, class: Class) -> impl Future<Output = ()> + Send + 'static {
        let (ended, finish, spread) = (self.who.lease.ended(), self.finish.clone(), self.spread);
        let withdrawn = withdrawn(self.grants.clone(), self.who.clone(), permit.clone());
        let metrics = self.metrics.clone();
        async move {
            let shutdown = async {
                if class != Class::Watch {
                    std::future::pending::<()>().await;
                }
                finish.cancelled().await;
                tokio::time::sleep(spread.mul_f64(rand::random())).await;
            };
            tokio::select! {
                () = ended => {}
                () = shutdown => {}
                () = withdrawn => metrics.streams_revoked.inc(),
            }
        }
    }
}

/// Resolves when a change of grants leaves `who` without what `permit` says.
async fn withdrawn(mut grants: watch::Receiver<Arc<Grants>>, who: Authenticated, permit: Permit) {
    while grants.changed().await.is_ok() {
        let now = Arc::clone(&grants.borrow_and_update());
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants: &now };
        // More than before harms nothing: the stream goes on as it was opened.
        let kept = authorize_again(&facts, &permit)
            .is_ok_and(|again| permit.principal().groups.iter().all(|group| again.principal().groups.contains(group)));
        if !kept {
            return;
        }
    }
    std::future::pending().await
}

/// Opens streams on the sessions of clusters.
pub(crate) struct Opener<'a> {
    pub registry: &'a Arc<Registry>,
    pub records: &'a Records,
    pub metrics: &'a Metrics,
}

impl Opener<'_> {
    /// A stream on one session of the permit's cluster.
    pub async fn open(
        &self,
        permit: &Permit,
        header: &StreamHeader,
        attempt: u32,
    ) -> Result<(Stream, Carried), DialError> {
        let cluster = permit.cluster();
        let sessions = self.registry.carriers(cluster);
        let all: Vec<Candidate> = sessions.iter().map(|s| s.candidate()).collect();
        let mut tried = Vec::new();
        let mut busy = false;
        // A second attempt of the caller prefers what the first did not use, where there is a choice.
        let skip = usize::try_from(attempt).unwrap_or(usize::MAX);
        while let Some(at) = pick(&all, &tried, [rand::random::<u32>() as usize + skip, rand::random::<u32>() as usize])
        {
            tried.push(at);
            let Some(session) = sessions.get(at) else { continue };
            match session.session.open(header).await {
                Ok(stream) => {
                    if session.node {
                        self.metrics.fallback_streams.inc();
                    }
                    return Ok((stream, Carried::by(Arc::clone(self.registry), Arc::clone(session))));
                }
                Err(OpenError::TooMany) => busy = true,
                Err(OpenError::Closed(_) | OpenError::Draining) => {}
                Err(e @ OpenError::Header) => {
                    tracing::warn!(cluster, "no stream: {e}");
                    return Err(DialError::Lost);
                }
            }
        }
        let cluster = cluster.to_owned();
        if busy {
            return Err(DialError::Busy { cluster });
        }
        let since = self.records.lost_since(&cluster);
        Err(DialError::NotConnected { cluster, since })
    }
}

impl Dial for CallDial {
    type Stream = LeasedStream;
    fn dial<'a>(
        &'a self,
        permit: &'a Permit,
        header: &'a StreamHeader,
        attempt: u32,
    ) -> BoxFuture<'a, Result<LeasedStream, DialError>> {
        async move {
            let sessions = Opener { registry: &self.registry, records: &self.records, metrics: &self.metrics };
            let (stream, by) = sessions.open(permit, header, attempt).await?;
            Ok(LeasedStream::new(stream, self.end_of(permit, header.class)).carried(by))
        }
        .boxed()
    }
}

/// A stream that lasts no longer than the right to it.
pub(crate) struct LeasedStream {
    stream: Stream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
    by: Option<Carried>,
}

impl LeasedStream {
    pub(crate) fn new(stream: Stream, end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { stream, end: Box::pin(end), over: false, by: None }
    }

    /// The same, which knows whether somebody else could carry it.
    pub(crate) fn carried(self, by: Carried) -> Self {
        Self { by: Some(by), ..self }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.over && self.end.as_mut().poll(cx).is_ready() {
            self.over = true;
            self.stream.reset(ResetCode::Revoked);
        }
        if self.over { Err(io::Error::other(StreamError::Reset(ResetCode::Revoked))) } else { Ok(()) }
    }
}

impl Io for LeasedStream {
    fn reset(&mut self, code: ResetCode) {
        self.stream.reset(code);
    }
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Err(error) = self.check(cx) {
            return Poll::Ready(error);
        }
        self.stream.poll_cut(cx).map(io::Error::from)
    }
    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        self.stream.poll_accepted(cx).map_err(io::Error::from)
    }
    fn poll_elsewhere(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.by.as_mut().map_or(Poll::Pending, |by| by.poll_elsewhere(cx))
    }
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.by.as_mut().map_or(Poll::Ready(true), |by| by.poll_alive(cx))
    }
}
impl AsyncRead for LeasedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}
impl AsyncWrite for LeasedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: bool, draining: bool, open: usize) -> Candidate {
        Candidate { node, draining, doubt: false, open, rtt: Duration::from_millis(1) }
    }
    fn doubtful(node: bool) -> Candidate {
        Candidate { doubt: true, ..candidate(node, false, 0) }
    }

    #[test]
    fn a_silent_cluster_agent_is_passed_over_while_a_node_agent_answers() {
        let all = [doubtful(false), candidate(true, false, 5), doubtful(true)];
        assert_eq!(pick(&all, &[], [1, 2]), Some(1));
        assert_eq!(pick(&all, &[1], [1, 2]), Some(0), "nobody answers: then the cluster agent, it may be slow");
        assert_eq!(pick(&all, &[1, 0], [1, 2]), Some(2));
        let back = [candidate(false, false, 9), candidate(true, false, 0)];
        assert_eq!(pick(&back, &[], [1, 2]), Some(0), "back at once when it answers again");
    }

    #[test]
    fn cluster_agents_first_and_never_one_that_drains() {
        let all = [candidate(true, false, 0), candidate(false, true, 0), candidate(false, false, 9)];
        for dice in 0..9 {
            assert_eq!(pick(&all, &[], [dice, dice + 1]), Some(2));
            assert_eq!(pick(&all, &[2], [dice, dice + 1]), Some(0), "node agents where no other is left");
            assert_eq!(pick(&all, &[2, 0], [dice, 0]), None);
        }
        assert_eq!(pick(&[], &[], [0, 0]), None);
    }

    #[test]
    fn of_two_drawn_the_less_loaded_is_taken() {
        let all = [candidate(false, false, 5), candidate(false, false, 1)];
        assert!((0..4).all(|d| pick(&all, &[], [d, d * 3]) == Some(1)));
    }
}
