//! Keeps one session to the hub: the machine of `proto::uplink` says when, this driver holds the sockets.
//!
//! A session that is to end (the hub drains, or shows that it holds an older certificate of ours) goes on serving its
//! streams while its successor is dialled: make before break. So does one that moves to another carrier, when the
//! machine of `proto::ladder` finds a better one or the one in use is in doubt.

use crate::{
    dialler::{Attempt, AttemptError, Dialler, now_ms, rung_of},
    facts::Telling,
    limits,
    metrics::Metrics,
    renew,
    serve::Service,
    upstream::chain,
};
use moorline_link::{CloseReason, DialError, Session};
use moorline_proto::{
    code::CloseCode,
    control::Welcome,
    ladder::{self, Ladder, Rungs},
    uplink::{Die, Effect, Event, Policy, Uplink},
};
use moorline_proxy::edge::{Reviewer, Upstream};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

/// Longest wait for the hub to hear that the session ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A session that serves, and the task that serves it.
struct Live {
    session: Session,
    task: AbortOnDropHandle<()>,
}

/// What a session tells the driver.
enum News {
    /// It lives.
    Heard,
    /// It has not answered for [`limits::DOUBT`].
    Doubt,
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
    /// The second dial, beside a session.
    Second(Attempt),
    Look,
    News(u64, News),
    Retired,
}

/// The driver.
pub struct Driver<U, R> {
    dialler: Arc<Dialler>,
    service: Arc<Service<U, R>>,
    metrics: Metrics,
    policy: Policy,
    ladder: Ladder,
    ladder_policy: ladder::Policy,
    second: Option<AbortOnDropHandle<Attempt>>,
    begin: Instant,
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
            ladder: Ladder::new(),
            ladder_policy: ladder::Policy::default(),
            second: None,
            begin: Instant::now(),
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
        let begin = self.begin;
        let mut link = Uplink::new(begin.elapsed());
        let mut dialling: Option<AbortOnDropHandle<Attempt>> = None;
        loop {
            let turn = tokio::select! {
                biased;
                () = stop.cancelled() => Turn::Stop,
                Some(done) = ended(&mut dialling) => Turn::Dialled(done),
                Some(done) = ended(&mut self.second) => Turn::Second(done),
                Some((generation, news)) = self.told.recv() => Turn::News(generation, news),
                Some(_) = self.retiring.join_next() => Turn::Retired,
                () = sleep_until(begin + link.wake_at()) => Turn::Step(Event::Tick),
                () = look(begin, &self.ladder) => Turn::Look,
            };
            let event = match turn {
                Turn::Stop => break,
                Turn::Step(event) => Some(event),
                Turn::Dialled(result) => {
                    dialling = None;
                    Some(self.dialled(result))
                }
                Turn::Second(result) => self.second_dialled(result),
                Turn::Look => {
                    self.climb(ladder::Event::Tick);
                    None
                }
                Turn::News(generation, news) if generation == self.generation => self.heard(news),
                Turn::News(..) | Turn::Retired => None,
            };
            if let Some(event) = event {
                let effect;
                (link, effect) = link.step(event, begin.elapsed(), &self.policy, Die(rand::random()));
                match effect {
                    Some(Effect::Dial) => {
                        dialling = Some(self.dial(self.dialler.allowed()));
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
                        self.climb(ladder::Event::Fell);
                    }
                    None => {}
                }
            }
            self.metrics.session_up.set(i64::from(self.live.is_some() || !self.retiring.is_empty()));
        }
        drop((dialling, self.second.take()));
        self.finish().await;
    }

    fn dial(&self, rungs: Rungs) -> AbortOnDropHandle<Attempt> {
        let dialler = self.dialler.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { dialler.attempt(rungs).await }))
    }

    /// Steps the ladder and does what it says.
    fn climb(&mut self, event: ladder::Event) {
        let (now, allowed) = (self.begin.elapsed(), self.dialler.allowed());
        let effect;
        (self.ladder, effect) =
            std::mem::take(&mut self.ladder).step(event, now, &self.ladder_policy, allowed, Die(rand::random()));
        match effect {
            // A session more than may be retired would have to be cut.
            Some(ladder::Effect::Dial(_)) if limits::RETIRING <= self.retiring.len() => {
                self.climb(ladder::Event::Failed);
            }
            Some(ladder::Effect::Dial(rungs)) => self.second = Some(self.dial(rungs)),
            Some(ladder::Effect::Abandon) => self.second = None,
            None => {}
        }
    }

    /// A second session, if it came to one, takes the place of the first, whose streams go on.
    fn second_dialled(&mut self, result: Attempt) -> Option<Event> {
        match result {
            Ok((session, welcome)) => {
                let old = self.live.take()?; // the ladder abandons its dial with the session
                let (from, to) = (old.session.carrier(), session.carrier());
                tracing::info!(%from, %to, "moving to another carrier; open streams stay where they are");
                self.metrics.moves.with_label_values(&[&from.to_string(), &to.to_string()]).inc();
                self.retiring.spawn(retire(old, limits::MOVED_GRACE));
                self.begin(session, &welcome);
                Some(Event::Heard)
            }
            Err(error) => {
                tracing::debug!(cause = %chain(&error), "no session on another carrier");
                self.climb(ladder::Event::Failed);
                None
            }
        }
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
                self.metrics.parked.set(0);
                self.begin(session, &welcome);
                Event::Welcomed
            }
            Err(e) => {
                if let AttemptError::Dial(DialError::Refused(goodbye)) = &e
                    && goodbye.code == CloseCode::Parked
                {
                    self.metrics.parked.set(1);
                    let again = Duration::from_millis(goodbye.retry_after_ms.into());
                    tracing::debug!(hub = %self.dialler.hub, seconds = again.as_secs(), "the hub needs no session of this node now; asking again");
                    return Event::Failed { retry_after: Some(again) };
                }
                self.metrics.parked.set(0);
                let (mut retry_after, mut advice) = (None, None);
                if let AttemptError::Dial(e) = &e {
                    retry_after = e.retry_after();
                    if let DialError::Refused(goodbye) = e {
                        (retry_after, advice) = slow(goodbye.code, retry_after);
                    }
                    if matches!(e, DialError::Tls { .. }) {
                        advice = Some(
                            "if it speaks of expired or not yet valid: check the clocks of this host and of the hub. If of an \
                             authority that the hub had replaced meanwhile (moorline hub ca status): delete the state folder and \
                             start this agent with a new token: moorline token create --cluster <cluster>",
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
        self.dialler.clock.note(welcome.now_ms);
        self.generation += 1;
        let task = serve(
            session.clone(),
            self.service.clone(),
            self.dialler.clone(),
            self.metrics.clone(),
            (self.generation, self.tell.clone()),
        );
        let task = AbortOnDropHandle::new(tokio::spawn(task.instrument(span)));
        let carrier = session.carrier();
        self.metrics.carries(carrier);
        self.live = Some(Live { session, task });
        self.climb(ladder::Event::Stands(rung_of(carrier)));
    }

    fn heard(&mut self, news: News) -> Option<Event> {
        match news {
            News::Heard => Some(Event::Heard),
            News::Doubt => {
                self.climb(ladder::Event::Doubt);
                None
            }
            News::MoveOn(grace) => {
                let live = self.live.take()?;
                if self.retiring.len() < limits::RETIRING {
                    self.retiring.spawn(retire(live, grace));
                }
                self.climb(ladder::Event::Fell);
                Some(Event::Lost { retry_after: None })
            }
            News::Over(reason) => {
                self.live = None;
                self.climb(ladder::Event::Fell);
                self.metrics.closes.with_label_values(&[reason.code.name()]).inc();
                if reason.code == CloseCode::Parked {
                    self.metrics.parked.set(1);
                    tracing::info!("the hub needs no session of this node any more");
                    return Some(Event::Lost { retry_after: Some(limits::PARKED) });
                }
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

/// The ladder's next moment; never, if it has none.
async fn look(begin: Instant, ladder: &Ladder) {
    match ladder.wake_at() {
        Some(at) => sleep_until(begin + at).await,
        None => std::future::pending().await,
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
    // What changed since the hello is told.
    let mut facts = Telling::new(dialler.facts.clone(), dialler.why.subscribe());
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
        let (mut arrived, mut at) = (0, Instant::now());
        loop {
            sleep(limits::PROBE).await;
            let now = session.received();
            if now != std::mem::replace(&mut arrived, now) {
                at = Instant::now();
            }
            // A path that is slow, for it is full, still brings something.
            if limits::DOUBT < session.unanswered() && limits::DOUBT < at.elapsed() {
                tell(News::Doubt).await;
            } else {
                metrics.rtt.set(i64::try_from(session.rtt().as_millis()).unwrap_or(i64::MAX));
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

#[cfg(test)]
mod tests {
    use super::*;

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
