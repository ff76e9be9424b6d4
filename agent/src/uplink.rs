//! Keeps one session to the hub: the machine of `proto::uplink` says when, this driver holds the sockets.
//!
//! A session that is to end (the hub drains, or shows that it holds an older certificate of ours) goes on serving its
//! streams while its successor is dialled: make before break.

use crate::{
    Preference, facts::Facts, identity::Holder, limits, metrics::Metrics, renew, serve::Service, upstream::chain,
};
use moorline_link::{BadProxy, Carrier, CloseReason, DialError, HttpProxy, HubAddress, Limits, Session, dial_through};
use moorline_proto::{
    code::CloseCode,
    control::{Hello, VERSION, Welcome},
    uplink::{Die, Effect, Event, Policy, Uplink},
};
use moorline_proxy::edge::{Reviewer, Upstream};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

/// Longest wait for the hub to hear that the session ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a dial needs.
pub struct Dialler {
    /// Whom.
    pub hub: HubAddress,
    /// Over what.
    pub carrier: Preference,
    /// As whom.
    pub holder: Arc<Holder>,
    /// With which facts.
    pub facts: watch::Receiver<Facts>,
    /// Within which bounds.
    pub limits: Limits,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("own certificate or trust bundle cannot be used")]
    Tls(#[from] moorline_link::tls::TlsError),
    #[error("the environment names a proxy")]
    Proxy(#[from] BadProxy),
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Dialler {
    async fn attempt(&self) -> Attempt {
        let tls = self.holder.tls()?;
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            instance: self.holder.instance,
            software: concat!("moorline-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities: Vec::new(),
            facts: self.facts.borrow().clone(),
            now_ms: now_ms(),
        };
        let proxy = HttpProxy::from_env(&self.hub)?;
        let proxy = proxy.as_ref();
        let by = |carrier| dial_through(&self.hub, carrier, proxy, tls.clone(), hello.clone(), &self.limits);
        Ok(match self.carrier {
            Preference::Quic => by(Carrier::Quic).await?,
            Preference::Tls => by(Carrier::Tls).await?,
            Preference::WebSocket => by(Carrier::WebSocket).await?,
            Preference::Auto => race(by(Carrier::Quic), by(Carrier::Tls)).await?,
        })
    }
}

/// QUIC with a head start, then both; the first to be welcomed wins and the other is dropped. Where neither is, TLS says
/// why: its errors are the more telling ones.
async fn race<T>(
    quic: impl Future<Output = Result<T, DialError>>,
    tls: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    tokio::pin!(quic, tls);
    let early = tokio::select! {
        early = &mut quic => Some(early),
        () = sleep(limits::QUIC_HEAD_START) => None,
    };
    match early {
        // The hub itself has spoken: on the other carrier it would say the same.
        Some(Ok(won)) => return Ok(won),
        Some(Err(e @ DialError::Refused(_))) => return Err(e),
        Some(Err(e)) => {
            tracing::debug!(cause = %chain(&e), "no session over QUIC; TLS is tried");
            return tls.await;
        }
        None => {}
    }
    tokio::select! {
        quic = &mut quic => match quic {
            Err(e) if !matches!(e, DialError::Refused(_)) => tls.await,
            spoken => spoken,
        },
        tls = &mut tls => match tls {
            Err(e) if !matches!(e, DialError::Refused(_)) => quic.await.map_err(|_| e),
            spoken => spoken,
        },
    }
}

type Attempt = Result<(Session, Welcome), AttemptError>;

/// A session that serves, and the task that serves it.
struct Live {
    session: Session,
    task: AbortOnDropHandle<()>,
}

/// What a session tells the driver.
enum News {
    /// It lives.
    Heard,
    /// Another should take its place; how long its streams may still take.
    MoveOn(Duration),
    /// It is over.
    Over(CloseReason),
}

/// News, and the number of the session that they are from.
type Told = (u64, News);

/// What happened to the driver.
enum Turn {
    Stop,
    Step(Event),
    Dialled(Attempt),
    News(u64, News),
    Retired,
}

/// The driver.
pub struct Driver<U, R> {
    dialler: Arc<Dialler>,
    service: Arc<Service<U, R>>,
    metrics: Metrics,
    policy: Policy,
    live: Option<Live>,
    /// Number of the newest session; news of older ones are not about the link.
    generation: u64,
    retiring: JoinSet<()>,
    tell: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
}

impl<U: Upstream, R: Reviewer> Driver<U, R> {
    /// Makes a driver; nothing is dialled yet.
    pub fn new(dialler: Dialler, service: Arc<Service<U, R>>, metrics: Metrics) -> Self {
        let (tell, told) = mpsc::channel(16);
        Self {
            dialler: Arc::new(dialler),
            service,
            metrics,
            policy: Policy::default(),
            live: None,
            generation: 0,
            retiring: JoinSet::new(),
            tell,
            told,
        }
    }

    /// Keeps a session up until `stop`; then says goodbye and lets open streams end for at most [`limits::GRACE`].
    ///
    /// # Cancel safety
    /// Dropping the future ends every session at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let begin = Instant::now();
        let mut link = Uplink::new(Duration::ZERO);
        let mut dialling: Option<AbortOnDropHandle<Attempt>> = None;
        loop {
            let turn = tokio::select! {
                biased;
                () = stop.cancelled() => Turn::Stop,
                Some(done) = ended(&mut dialling) => Turn::Dialled(done),
                Some((generation, news)) = self.told.recv() => Turn::News(generation, news),
                Some(_) = self.retiring.join_next() => Turn::Retired,
                () = sleep_until(begin + link.wake_at()) => Turn::Step(Event::Tick),
            };
            let event = match turn {
                Turn::Stop => break,
                Turn::Step(event) => Some(event),
                Turn::Dialled(result) => {
                    dialling = None;
                    Some(self.dialled(result))
                }
                Turn::News(generation, news) if generation == self.generation => self.heard(news),
                Turn::News(..) | Turn::Retired => None,
            };
            if let Some(event) = event {
                let effect;
                (link, effect) = link.step(event, begin.elapsed(), &self.policy, Die(rand::random()));
                match effect {
                    Some(Effect::Dial) => {
                        let dialler = self.dialler.clone();
                        dialling = Some(AbortOnDropHandle::new(tokio::spawn(async move { dialler.attempt().await })));
                    }
                    Some(Effect::Abandon) => {
                        self.metrics.dials.with_label_values(&["abandoned"]).inc();
                        dialling = None;
                    }
                    Some(Effect::Hangup) => {
                        tracing::warn!("nothing was heard from the hub for too long; dialling anew");
                        if let Some(live) = self.live.take() {
                            live.session.close(CloseCode::Silent, "nothing heard");
                        }
                    }
                    None => {}
                }
            }
            self.metrics.session_up.set(i64::from(self.live.is_some() || !self.retiring.is_empty()));
        }
        drop(dialling);
        self.finish().await;
    }

    fn dialled(&mut self, result: Attempt) -> Event {
        let label = match &result {
            Ok(_) => "welcomed",
            Err(AttemptError::Tls(_)) => "own_identity",
            Err(AttemptError::Proxy(_)) => "proxy",
            Err(AttemptError::Dial(e)) => match e {
                DialError::Dns { .. } => "dns",
                DialError::Connect { .. } => "connect",
                DialError::Proxy { .. } => "proxy",
                DialError::Tls { .. } => "tls",
                DialError::Timeout { .. } => "timeout",
                DialError::Refused(goodbye) => goodbye.code.name(),
                DialError::Protocol { .. } => "protocol",
                DialError::Lost { .. } => "lost",
            },
        };
        self.metrics.dials.with_label_values(&[label]).inc();
        match result {
            Ok((session, welcome)) => {
                self.begin(session, &welcome);
                Event::Welcomed
            }
            Err(e) => {
                let (mut retry_after, mut advice) = (None, None);
                if let AttemptError::Dial(e) = &e {
                    retry_after = e.retry_after();
                    if let DialError::Refused(goodbye) = e {
                        (retry_after, advice) = slow(goodbye.code, retry_after);
                    }
                    if matches!(e, DialError::Tls { .. }) {
                        advice = Some(
                            "if it speaks of expired or not yet valid: check the clocks of this host and of the hub",
                        );
                    }
                }
                tracing::warn!(hub = %self.dialler.hub, cause = %chain(&e), advice, "no session to the hub; trying again");
                Event::Failed { retry_after }
            }
        }
    }

    fn begin(&mut self, session: Session, welcome: &Welcome) {
        let membership = self.dialler.holder.membership();
        let span = tracing::info_span!("session", cluster = %membership.cluster, session = %session.id());
        span.in_scope(|| {
            tracing::info!(hub = %session.remote(), carrier = %session.carrier(), software = %welcome.software, "connected");
            let skew = Duration::from_millis(welcome.now_ms.abs_diff(now_ms()));
            if limits::CLOCK_SKEW < skew {
                let advice = "set both by NTP: certificates are only valid for a while";
                tracing::warn!(seconds = skew.as_secs(), advice, "this host's clock and the hub's differ");
            }
        });
        self.generation += 1;
        let task = serve(
            session.clone(),
            self.service.clone(),
            self.dialler.clone(),
            self.metrics.clone(),
            (self.generation, self.tell.clone()),
        );
        let task = AbortOnDropHandle::new(tokio::spawn(task.instrument(span)));
        self.live = Some(Live { session, task });
    }

    fn heard(&mut self, news: News) -> Option<Event> {
        match news {
            News::Heard => Some(Event::Heard),
            News::MoveOn(grace) => {
                let live = self.live.take()?;
                if self.retiring.len() < limits::RETIRING {
                    self.retiring.spawn(retire(live, grace));
                }
                Some(Event::Lost { retry_after: None })
            }
            News::Over(reason) => {
                self.live = None;
                self.metrics.closes.with_label_values(&[reason.code.name()]).inc();
                let (retry_after, advice) = slow(reason.code, None);
                tracing::warn!(code = %reason.code, message = %reason.message, by_hub = reason.by_peer, advice, "session ended");
                Some(Event::Lost { retry_after })
            }
        }
    }

    async fn finish(mut self) {
        if let Some(live) = self.live.take() {
            self.retiring.spawn(leave(live));
        }
        let all = async { while self.retiring.join_next().await.is_some() {} };
        // The news of ending sessions must not fill the queue and so hold them up.
        self.told.close();
        let _ = timeout(limits::GRACE + 2 * LAST_WORD, all).await; // what is left is cut
        self.metrics.session_up.set(0);
    }
}

/// The dial under way has ended; `None` if there is none.
async fn ended<T>(dialling: &mut Option<AbortOnDropHandle<T>>) -> Option<T> {
    let done = dialling.as_mut()?.await;
    *dialling = None;
    done.ok() // a bug in the dial: the machine gives it up in time
}

/// A longer pause and a word of advice for what time alone seldom heals.
fn slow(code: CloseCode, told: Option<Duration>) -> (Option<Duration>, Option<&'static str>) {
    let advice = match code {
        CloseCode::NotAllowed | CloseCode::CredentialGone => {
            "this agent is no longer known to the hub; to join anew, delete its state folder and start it with a new token: \
             moorline token create --cluster <cluster>"
        }
        CloseCode::DuplicateIdentity | CloseCode::Replaced => {
            "another process holds this agent's identity; give each agent a state folder of its own"
        }
        CloseCode::Version => "agent and hub are too far apart in version; upgrade the older one",
        _ => return (told, None),
    };
    (Some(told.unwrap_or_default().max(limits::REFUSED_PAUSE)), Some(advice))
}

/// Serves a session until it is over, and tells the driver about it.
async fn serve<U: Upstream, R: Reviewer>(
    session: Session,
    service: Arc<Service<U, R>>,
    dialler: Arc<Dialler>,
    metrics: Metrics,
    (generation, news): (u64, mpsc::Sender<Told>),
) {
    let mut facts = dialler.facts.clone();
    facts.mark_changed(); // what changed since the hello is told
    let until = dialler.holder.membership().validity().ok().map(|(_, end)| end);
    let tell = |what| {
        let news = news.clone();
        async move { drop(news.send((generation, what)).await) } // the driver is gone: nobody to tell
    };
    let control = async {
        if renew::control(&session, &dialler.holder, &mut facts, &metrics).await {
            // Streams may stay as long as the certificate that this session was opened with.
            let left = until.and_then(|end| end.duration_since(SystemTime::now()).ok());
            tell(News::MoveOn(left.unwrap_or(limits::GRACE))).await;
        }
    };
    let drained = async {
        let grace = session.peer_draining().await;
        tracing::info!(grace_ms = grace.as_millis(), "the hub drains this session; dialling another");
        tell(News::MoveOn(grace)).await;
    };
    let probe = async {
        loop {
            sleep(limits::PROBE).await;
            if let Ok(rtt) = session.ping().await {
                metrics.rtt.set(i64::try_from(rtt.as_millis()).unwrap_or(i64::MAX));
                tell(News::Heard).await;
            }
        }
    };
    let others = async { tokio::join!(control, drained, probe) };
    tokio::select! {
        () = service.session(session.clone()) => {}
        _ = others => {}
    }
    let reason = session.closed().await;
    tell(News::Over(reason)).await;
}

/// Lets a session whose place another takes serve its streams to their end. Whoever drains it closes it then: the hub,
/// once it is going away or has this agent's newer session. Not this side: until then there is no other way in.
async fn retire(live: Live, grace: Duration) {
    let Live { session, task } = live;
    if timeout(grace + LAST_WORD, task).await.is_err() {
        session.close(CloseCode::Normal, "a newer session serves");
    }
}

/// Asks for no more streams, lets the open ones end, closes.
async fn leave(live: Live) {
    let Live { session, task } = live;
    session.drain(limits::GRACE);
    if timeout(limits::GRACE + LAST_WORD, task).await.is_err() {
        session.close(CloseCode::Shutdown, "the agent is shutting down");
        let _ = timeout(LAST_WORD, session.closed()).await; // told or not, it ends here
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_proto::control::Goodbye;

    fn refused() -> DialError {
        DialError::Refused(Goodbye { code: CloseCode::Busy, message: "full".into(), retry_after_ms: 7_000 })
    }
    fn lost() -> DialError {
        DialError::Timeout { address: "hub:1".into(), phase: "handshake" }
    }
    async fn after(ms: u64, result: Result<&'static str, DialError>) -> Result<&'static str, DialError> {
        sleep(Duration::from_millis(ms)).await;
        result
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_carrier_to_be_welcomed_wins() {
        let begin = Instant::now();
        assert_eq!(race(after(50, Ok("quic")), after(0, Ok("tls"))).await.unwrap(), "quic");
        assert_eq!(begin.elapsed(), Duration::from_millis(50));
        let begin = Instant::now();
        assert_eq!(race(after(9_000, Ok("quic")), after(50, Ok("tls"))).await.unwrap(), "tls");
        assert_eq!(begin.elapsed(), limits::QUIC_HEAD_START + Duration::from_millis(50));
        let begin = Instant::now();
        assert_eq!(race(after(10, Err(lost())), after(50, Ok("tls"))).await.unwrap(), "tls");
        assert_eq!(begin.elapsed(), Duration::from_millis(60), "TLS is tried at once when QUIC fails");
        assert_eq!(race(after(900, Ok("quic")), after(1, Err(lost()))).await.unwrap(), "quic");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_hub_said_is_not_asked_again_on_the_other_carrier() {
        assert!(matches!(race(after(10, Err(refused())), after(0, Ok("tls"))).await, Err(DialError::Refused(_))));
        assert!(matches!(race(after(900, Ok("quic")), after(10, Err(refused()))).await, Err(DialError::Refused(_))));
    }

    #[test]
    fn p16_a_refused_identity_is_no_tight_loop() {
        for code in [CloseCode::NotAllowed, CloseCode::CredentialGone, CloseCode::DuplicateIdentity] {
            let (pause, advice) = slow(code, None);
            assert!(pause >= Some(limits::REFUSED_PAUSE) && advice.is_some(), "{code}");
            assert_eq!(slow(code, Some(Duration::from_secs(30))).0, Some(Duration::from_secs(30)));
        }
        assert_eq!(slow(CloseCode::Busy, None), (None, None));
    }
}
