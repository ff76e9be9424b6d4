//! A fleet that is never at rest: nodes report, pods come and go, sessions are lost, clusters leave and others come.

use crate::fleet::{Fleet, cost};
use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use moorline_apiserver::{Api, Object};
use moorline_hub::kinds::ClusterSpec;
use moorline_plugin::{Body, ClusterFacts, Clusters};
use serde_json::json;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{broadcast, watch},
    time::{MissedTickBehavior, interval},
};

/// How much changes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Churn {
    /// Seconds in which the fleet changes all the time, after it has come to rest. 0: it is left at rest.
    #[arg(long, default_value_t = 0)]
    churn: u64,
    /// Reports of nodes in a second, in the whole fleet. A kubelet writes one in five minutes, or when something changes.
    #[arg(long, default_value_t = 200)]
    reports: usize,
    /// Sessions that are lost in a second; each is back five seconds later.
    #[arg(long, default_value_t = 2)]
    lost: usize,
    /// Seconds between two clusters that leave for good, each with another that comes.
    #[arg(long, default_value_t = 5)]
    leave_every: u64,
}

/// How long a lost session is away.
const AWAY: Duration = Duration::from_secs(5);
/// Of the time, what is taken to come to a steady state: growth is measured after it.
const SETTLE: f64 = 0.25;
/// Longest wait until all is known again.
const LATE: Duration = Duration::from_secs(300);
/// Reports that a watch may be behind. Few: what they take is the tool's, and counted as if it were the hub's.
const BEHIND: usize = 64;
/// By how many pods a cluster varies.
const PODS: u64 = 20;

/// What changes in clusters, for their watches.
#[derive(Debug, Default)]
pub struct Changes {
    /// By cluster: the number of a node that reports.
    watched: Mutex<BTreeMap<String, broadcast::Sender<usize>>>,
    reports: AtomicU64,
    /// Pods have come and gone so often.
    pods: AtomicU64,
}

impl Changes {
    /// How many pods a cluster has beside those that it always has.
    pub fn pods(&self, cluster: usize) -> usize {
        let now = self.pods.load(Ordering::Relaxed).wrapping_mul(cluster as u64 + 7);
        usize::try_from(now % PODS).unwrap_or_default()
    }

    /// A watch of a cluster's nodes. Of one that is gone there is nothing to see: who begins anew because it went has not
    /// heard of that yet.
    pub fn watch(&self, cluster: &str, nodes: usize) -> Body {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(events) = watched.get(cluster).map(broadcast::Sender::subscribe) else {
            return StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>())
                .map_err(Into::into)
                .boxed_unsync();
        };
        let name = cluster.to_owned();
        let lines = stream::unfold((events, name), move |(mut events, name)| async move {
            loop {
                match events.recv().await {
                    Ok(at) => {
                        let object = crate::fleet::node(&name, at % nodes.max(1));
                        let line = format!("{}\n", json!({ "type": "MODIFIED", "object": object }));
                        return Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), (events, name)));
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        StreamBody::new(lines.boxed()).map_err(Into::into).boxed_unsync()
    }

    /// Some nodes report, one cluster after the other.
    fn report(&self, count: usize) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.reports.fetch_add(count as u64, Ordering::Relaxed);
        let all: Vec<_> = watched.values().collect();
        for number in (0..count).map(|i| usize::try_from(from).unwrap_or_default() + i) {
            if let Some(one) = all.get(number % all.len().max(1)) {
                // Nobody listens to a cluster whose session is lost.
                let _ = one.send(number / all.len());
            }
        }
    }

    /// There is such a cluster from now on.
    pub fn come(&self, cluster: &str) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.insert(cluster.to_owned(), broadcast::channel(BEHIND).0);
    }

    fn forget(&self, cluster: &str) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}

/// Makes a cluster's object, and says what plugins know of it.
pub async fn cluster(api: &Api<ClusterSpec>, number: usize) -> Result<Arc<ClusterFacts>> {
    let name = format!("cluster-{number:04}");
    let made = api.create(&Object::new(&name, ClusterSpec::default())).await;
    let made = made.map_err(|e| anyhow::anyhow!("{}", e.message))?;
    Ok(Arc::new(ClusterFacts {
        name,
        uid: made.metadata.uid.clone(),
        labels: BTreeMap::new(),
        connected: true,
        session: "now".to_owned(),
        leaving: false,
    }))
}

/// MiB a minute that a straight line through these grows by, one a second.
fn growth(resident: &[f64]) -> f64 {
    let n = resident.len() as f64;
    let (x, y) = ((n - 1.0) / 2.0, resident.iter().sum::<f64>() / n);
    let (mut above, mut below) = (0.0, 0.0);
    for (at, value) in resident.iter().enumerate() {
        above += (at as f64 - x) * (value - y);
        below += (at as f64 - x).powi(2);
    }
    if below == 0.0 { 0.0 } else { above / below * 60.0 }
}

/// What happens to clusters, by their turns.
struct Turns<'a> {
    tell: &'a watch::Sender<Arc<Clusters>>,
    /// Lost sessions, and when they are back.
    away: VecDeque<(Instant, String)>,
    /// Removed, and not gone yet.
    leaving: Vec<String>,
    next: usize,
    sessions: usize,
    gone: usize,
}

impl Turns<'_> {
    fn change(&self, name: &str, change: impl FnOnce(&mut ClusterFacts)) {
        self.tell.send_modify(|all| {
            if let Some(facts) = Arc::make_mut(all).get_mut(name) {
                change(Arc::make_mut(facts));
            }
        });
    }

    fn lose(&mut self, count: usize) {
        let all = Arc::clone(&self.tell.borrow());
        let whole: Vec<&String> = all.values().filter(|f| f.connected && !f.leaving).map(|f| &f.name).collect();
        for name in (0..count).filter_map(|i| whole.get((self.sessions + i) * 7 % whole.len().max(1))) {
            self.change(name, |facts| facts.connected = false);
            self.away.push_back((Instant::now() + AWAY, (*name).clone()));
        }
        self.sessions += count;
    }

    fn return_due(&mut self) {
        while self.away.front().is_some_and(|(until, _)| *until <= Instant::now()) {
            let Some((_, name)) = self.away.pop_front() else { return };
            let session = format!("{:?}", Instant::now());
            self.change(&name, |facts| (facts.connected, facts.session) = (true, session));
        }
    }

    /// The oldest that is whole leaves, and a new one comes.
    async fn replace(&mut self, fleet: &Fleet) -> Result<()> {
        let api = fleet.server.api::<ClusterSpec>();
        let all = Arc::clone(&self.tell.borrow());
        // Not the largest, which is the first.
        if let Some(oldest) = all.values().skip(1).find(|facts| facts.connected && !facts.leaving) {
            api.delete(&oldest.name).await.map_err(|e| anyhow::anyhow!("{}", e.message))?;
            self.change(&oldest.name, |facts| facts.leaving = true);
            self.leaving.push(oldest.name.clone());
        }
        let new = cluster(&api, self.next).await?;
        self.next += 1;
        fleet.changes.come(&new.name);
        self.tell.send_modify(|all| drop(Arc::make_mut(all).insert(new.name.clone(), new)));
        Ok(())
    }

    /// What plugins have let go is gone.
    fn bury(&mut self, fleet: &Fleet) {
        let api = fleet.server.api::<ClusterSpec>();
        let gone = |name: &String| matches!(api.get(name), Ok(None));
        let (dead, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(gone);
        self.leaving = left;
        for name in dead {
            self.tell.send_modify(|all| drop(Arc::make_mut(all).remove(&name)));
            fleet.changes.forget(&name);
            self.gone += 1;
        }
    }
}

/// Lets the fleet change for a while, and prints what that costs. `known`: of how many clusters the health is known.
pub async fn run(
    args: Churn,
    fleet: &Fleet,
    tell: &watch::Sender<Arc<Clusters>>,
    known: impl Fn() -> usize,
) -> Result<()> {
    if args.churn == 0 {
        return Ok(());
    }
    let clusters = tell.borrow().len();
    let most = clusters * BEHIND;
    ensure!(args.reports <= most, "--reports: {clusters} clusters can tell of {most} nodes in a second, no more");
    let mut turns = Turns { tell, away: VecDeque::new(), leaving: Vec::new(), next: clusters, sessions: 0, gone: 0 };
    let (mut resident, (first, _, began)) = (Vec::new(), cost()?);
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for second in 0..args.churn {
        tick.tick().await;
        fleet.changes.report(args.reports);
        fleet.changes.pods.fetch_add(1, Ordering::Relaxed);
        turns.return_due();
        turns.lose(args.lost);
        if args.leave_every > 0 && second % args.leave_every == 0 {
            turns.replace(fleet).await?;
        }
        turns.bury(fleet);
        resident.push(cost()?.0);
    }
    let (last, peak, ended) = cost()?;
    println!(
        "{} s of changes: {} reports of nodes, {} sessions lost, {} clusters gone and {} come",
        args.churn,
        fleet.changes.reports.load(Ordering::Relaxed),
        turns.sessions,
        turns.gone,
        turns.next - clusters
    );
    let settled = (resident.len() as f64 * SETTLE) as usize;
    println!(
        "meanwhile: {:.1} % of a processor, resident {first:.0} to {last:.0} MiB ({peak:.0} at most), growing by {:.2} MiB a minute",
        (ended - began) / args.churn as f64 * 100.0,
        growth(&resident[settled..])
    );
    // Nothing of the gone is left, and everything of the others is known again.
    let begun = Instant::now();
    loop {
        turns.return_due();
        turns.bury(fleet);
        let (here, told) = (tell.borrow().len(), known());
        if turns.away.is_empty() && turns.leaving.is_empty() && here == told {
            break;
        }
        let leaving = &turns.leaving;
        ensure!(begun.elapsed() < LATE, "{told} of {here} clusters are known 5 minutes later; leaving: {leaving:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (resident, ..) = cost()?;
    println!(
        "all known again, and nothing left of the gone, after {:.1?}: resident {resident:.0} MiB",
        begun.elapsed()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_a_line() {
        let line: Vec<f64> = (0..120).map(|second| 100.0 + f64::from(second) / 60.0).collect();
        assert!((growth(&line) - 1.0).abs() < 1e-9);
        assert_eq!((growth(&[5.0; 60]), growth(&[5.0])), (0.0, 0.0));
    }
}
