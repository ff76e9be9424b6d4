//! One dial of the hub: the carriers race, and the first whose handshake succeeds is greeted on.

use crate::{Preference, facts::Facts, identity::Holder, limits, node::HubClock, rejoin::Rejoin, upstream::chain};
use futures_util::{StreamExt, stream::FuturesUnordered};
use moorline_link::{BadProxy, Carrier, Connection, DialError, HttpProxy, HubAddress, Limits, Session, connect};
use moorline_proto::{
    control::{Hello, VERSION, Welcome},
    ladder::{Rung, Rungs},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// What a dial needs.
pub struct Dialler {
    /// Whom.
    pub hub: HubAddress,
    /// Over what.
    pub carrier: Preference,
    /// As whom.
    pub holder: Arc<Holder>,
    /// What to do once that identity has expired. `None`: nothing can be done from here.
    pub rejoin: Option<Rejoin>,
    /// With which facts.
    pub facts: watch::Receiver<Facts>,
    /// Told what the hub says of the time.
    pub clock: Arc<HubClock>,
    /// Within which bounds.
    pub limits: Limits,
    /// What worked last.
    pub memory: Mutex<Option<Memory>>,
    /// Why the newest session is on no better carrier; empty if it is on the best.
    pub why: watch::Sender<String>,
    /// Dials in a row that ended in TLS.
    pub shut_out: AtomicU32,
}

/// What carried the last session, and where this host was then.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    rung: Rung,
    hub: SocketAddr,
    /// This host's address towards the hub: another one is another network.
    here: Option<IpAddr>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// Our own credentials.
    #[error("own certificate or trust bundle cannot be used")]
    Tls(#[from] moorline_link::tls::TlsError),
    /// Our own environment.
    #[error("the environment names a proxy")]
    Proxy(#[from] BadProxy),
    /// The hub, or the way to it.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// What comes of a dial.
pub type Attempt = Result<(Session, Welcome), AttemptError>;

impl Dialler {
    /// The rungs that the owner allows.
    pub fn allowed(&self) -> Rungs {
        match self.carrier {
            Preference::Auto => Rungs::ALL,
            Preference::Quic => Rungs::only(Rung::Quic),
            Preference::Tls => Rungs::only(Rung::Tls),
            Preference::WebSocket => Rungs::only(Rung::WebSocket),
        }
    }

    /// Dials on these rungs.
    ///
    /// # Errors
    /// See [`AttemptError`]: of several failures the most telling one.
    ///
    /// # Cancel safety
    /// Dropping the future closes every connection.
    pub async fn attempt(&self, rungs: Rungs) -> Attempt {
        if let Some(rejoin) = &self.rejoin {
            rejoin.heal(&self.holder, limits::SHUT_OUT <= self.shut_out.load(Ordering::Relaxed)).await;
        }
        let attempt = self.dial(rungs).await;
        if matches!(attempt, Err(AttemptError::Dial(DialError::Tls { .. }))) {
            self.shut_out.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shut_out.store(0, Ordering::Relaxed);
        }
        attempt
    }

    async fn dial(&self, rungs: Rungs) -> Attempt {
        let tls = self.holder.tls()?;
        let proxy = HttpProxy::from_env(&self.hub)?;
        let proxy = proxy.as_ref();
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            instance: self.holder.instance,
            software: concat!("moorline-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities: Vec::new(),
            facts: self.facts.borrow().clone(),
            now_ms: now_ms(),
        };
        let remembered = self.remembered();
        let mut left: Vec<Rung> = rungs.iter().collect();
        left.sort_by_key(|rung| Some(*rung) != remembered); // stable: the others keep their order
        let mut failures = Vec::new();
        while !left.is_empty() {
            let contenders = left.clone().into_iter();
            let contenders =
                contenders.map(|rung| (rung, connect(&self.hub, carrier_of(rung), proxy, tls.clone(), &self.limits)));
            let Ok((rung, connection)): Result<(Rung, Connection), ()> = race(contenders, &mut failures).await else {
                break;
            };
            match connection.greet(hello.clone(), &self.limits).await {
                Ok((session, welcome)) => {
                    self.remember(rung, session.remote());
                    self.tell(why(Some(rung), self.allowed(), &failures));
                    return Ok((session, welcome));
                }
                // The hub itself has spoken: on another carrier it would say the same.
                Err(error @ DialError::Refused(_)) => return Err(error.into()),
                Err(error) => failures.push((rung, error)),
            }
            left.retain(|other| *other != rung && failures.iter().all(|(failed, _)| failed != other));
        }
        // A look upwards that found nothing, if a session stands: now it is known why.
        self.tell(why(None, self.allowed(), &failures));
        Err(telling(failures).map_or_else(
            || DialError::Protocol { address: self.hub.to_string(), cause: "no carrier is allowed".into() }.into(),
            AttemptError::Dial,
        ))
    }

    fn tell(&self, why: String) {
        self.why.send_if_modified(|told| std::mem::replace(told, why.clone()) != why);
    }

    fn remembered(&self) -> Option<Rung> {
        let memory = (*self.memory.lock().unwrap_or_else(PoisonError::into_inner))?;
        (here(memory.hub) == memory.here).then_some(memory.rung)
    }

    fn remember(&self, rung: Rung, hub: SocketAddr) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(Memory { rung, hub, here: here(hub) });
    }
}

/// Runs the contenders, each with a head start of [`limits::HEAD_START`] before the next, which starts at once when one
/// fails. The first to succeed wins and the others are dropped; failures are kept.
async fn race<T, F>(
    contenders: impl Iterator<Item = (Rung, F)>,
    failures: &mut Vec<(Rung, DialError)>,
) -> Result<(Rung, T), ()>
where
    F: Future<Output = Result<T, DialError>>,
{
    let mut waiting = contenders.peekable();
    let mut running = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some((rung, outcome)) = running.next() => match outcome {
                Ok(won) => return Ok((rung, won)),
                Err(error) => {
                    tracing::debug!(carrier = %carrier_of(rung), cause = %chain(&error), "this carrier does not get through");
                    failures.push((rung, error));
                    next = Instant::now();
                }
            },
            () = sleep_until(next), if waiting.peek().is_some() => {
                if let Some((rung, contender)) = waiting.next() {
                    running.push(async move { (rung, contender.await) });
                    next = Instant::now() + limits::HEAD_START;
                }
            }
            else => return Err(()),
        }
    }
}

/// Why none of the carriers above `won` has a session; `None`: none has won.
fn why(won: Option<Rung>, allowed: Rungs, failures: &[(Rung, DialError)]) -> String {
    let of = |rung: Rung| {
        let failed = failures.iter().rev().find(|(failed, _)| *failed == rung).map(|(_, error)| chain(error));
        let cause = match failed {
            Some(cause) => cause,
            None if !allowed.contains(rung) => "not allowed here".to_owned(),
            None if won.is_none() => return None,
            None => "another was faster".to_owned(),
        };
        Some(format!("{}: {cause}", carrier_of(rung)))
    };
    let better = won.map_or(Rungs::ALL, |won| Rungs::ALL.above(won));
    let words: Vec<String> = better.iter().filter_map(of).collect();
    words.join("; ").chars().take(limits::WHY).collect()
}

/// The failure to show: TLS says the most about what is wrong, a lost datagram the least.
fn telling(failures: Vec<(Rung, DialError)>) -> Option<DialError> {
    let rank = |rung: &Rung| match rung {
        Rung::Tls => 0,
        Rung::WebSocket => 1,
        Rung::Quic => 2,
    };
    failures.into_iter().min_by_key(|(rung, _)| rank(rung)).map(|(_, error)| error)
}

/// The address that this host would use towards `hub`. Nothing is sent to find out.
fn here(hub: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match hub {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(hub).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn carrier_of(rung: Rung) -> Carrier {
    match rung {
        Rung::Quic => Carrier::Quic,
        Rung::Tls => Carrier::Tls,
        Rung::WebSocket => Carrier::WebSocket,
    }
}

/// Where a carrier stands on the ladder.
pub fn rung_of(carrier: Carrier) -> Rung {
    match carrier {
        Carrier::Quic => Rung::Quic,
        Carrier::Tls => Rung::Tls,
        Carrier::WebSocket => Rung::WebSocket,
    }
}

/// This host's clock, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::sleep;

    fn lost() -> DialError {
        DialError::Timeout { address: "hub:1".into(), phase: "handshake" }
    }

    /// Who wins after how many milliseconds, if each contender ends after so many and with success or not.
    async fn run(contenders: &[(Rung, u64, bool)]) -> (Option<Rung>, u64, usize) {
        let (begin, mut failures) = (Instant::now(), Vec::new());
        let contenders = contenders.iter().map(|&(rung, ms, wins)| {
            (rung, async move {
                sleep(Duration::from_millis(ms)).await;
                if wins { Ok(()) } else { Err(lost()) }
            })
        });
        let won = race(contenders, &mut failures).await.ok().map(|(rung, ())| rung);
        (won, begin.elapsed().as_millis() as u64, failures.len())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_carrier_to_get_through_wins() {
        use Rung::{Quic, Tls, WebSocket};
        let start = limits::HEAD_START.as_millis() as u64;
        assert_eq!(run(&[(Quic, 50, true), (Tls, 0, true), (WebSocket, 0, true)]).await, (Some(Quic), 50, 0));
        assert_eq!(run(&[(Quic, 9000, true), (Tls, 50, true), (WebSocket, 0, true)]).await, (Some(Tls), start + 50, 0));
        let behind_a_proxy = [(Quic, 9000, false), (Tls, 20, false), (WebSocket, 100, true)];
        assert_eq!(run(&behind_a_proxy).await, (Some(WebSocket), start + 120, 1), "a failure starts the next at once");
        let nothing = [(Quic, 1000, false), (Tls, 20, false), (WebSocket, 30, false)];
        assert_eq!(run(&nothing).await, (None, 1000, 3));
        assert_eq!(run(&[]).await, (None, 0, 0));
    }

    #[test]
    fn it_says_why_nothing_better_carries() {
        let failures = [(Rung::Quic, lost())];
        assert_eq!(why(Some(Rung::Quic), Rungs::ALL, &[]), "");
        assert_eq!(why(Some(Rung::Tls), Rungs::ALL, &failures), "quic: no answer from hub:1 in time (handshake)");
        assert_eq!(
            why(Some(Rung::WebSocket), Rungs::only(Rung::WebSocket), &[]),
            "quic: not allowed here; tls: not allowed here"
        );
        assert_eq!(why(Some(Rung::Tls), Rungs::ALL, &[]), "quic: another was faster");
        assert_eq!(why(None, Rungs::ALL, &failures), "quic: no answer from hub:1 in time (handshake)");
    }

    #[test]
    fn of_several_failures_the_most_telling_is_shown() {
        let tls = DialError::Tls { address: "hub:1".into(), cause: "expired".into() };
        let shown = telling(vec![(Rung::Quic, lost()), (Rung::Tls, tls), (Rung::WebSocket, lost())]).unwrap();
        assert!(matches!(shown, DialError::Tls { .. }));
        assert!(telling(Vec::new()).is_none());
    }

    #[test]
    fn the_network_is_known_by_this_hosts_address() {
        assert_eq!(here("127.0.0.1:1".parse().unwrap()), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
