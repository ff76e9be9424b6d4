//! The two ways to one cluster, and which of them to take.

use super::seat::{self, Direct};
use crate::{
    client::Client,
    resource::Resource,
    session,
    settings::{KnownHub, Secret, Settings},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use moorline_agent::{UpstreamConfig, metrics::Metrics, upstream::ApiServer};
use moorline_proxy::{
    Body, body,
    edge::{Upstream, UpstreamError},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Longest that a way is tried.
const TRY: Duration = Duration::from_secs(4);
/// When one way works, the other has as long again to show that it is as near, and this much more.
const MORE: Duration = Duration::from_millis(30);
/// A way that is in use is compared with the other once in this time, while there are requests.
const COMPARE: Duration = Duration::from_secs(30);
/// After a comparison, trouble of a way that is the cluster's own is not looked at again for this long.
const SETTLED: Duration = Duration::from_secs(2);
/// The way in use stays unless the other is quicker by a quarter and by this much.
const WORTH: Duration = Duration::from_millis(5);
/// How long a token is used before it is looked at again.
const TOKEN: Duration = Duration::from_secs(5);
/// How often the hub is asked where the direct way leads.
const LEARN: Duration = Duration::from_secs(600);
/// Longest wait for that.
const ANSWER: Duration = Duration::from_secs(5);

/// How a request gets to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Through the hub.
    Hub,
    /// To the cluster's own endpoint.
    Direct,
}

impl Way {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Direct => "direct",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Hub => Self::Direct,
            Self::Direct => Self::Hub,
        }
    }
}

/// What trying a way showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It works, and this is how far it is.
    Took(Duration),
    /// Why it does not.
    Failed(String),
}

impl Tried {
    fn took(&self) -> Option<Duration> {
        if let Self::Took(took) = self { Some(*took) } else { None }
    }

    fn words(&self) -> String {
        match self {
            Self::Took(took) => format!("works, {:.1} ms", took.as_secs_f64() * 1e3),
            Self::Failed(why) => why.clone(),
        }
    }
}

/// The way to take: one that works, the one in use unless the other is clearly nearer. `None`: there is none.
pub fn decide(now: Option<Way>, hub: &Tried, direct: &Tried) -> Option<Way> {
    match (hub.took(), direct.took(), now) {
        (None, None, _) => None,
        (Some(_), None, _) => Some(Way::Hub),
        (None, Some(_), _) => Some(Way::Direct),
        (Some(hub), Some(direct), Some(Way::Hub)) if hub * 3 / 4 <= direct + WORTH => Some(Way::Hub),
        (Some(hub), Some(direct), Some(Way::Direct)) if direct * 3 / 4 <= hub + WORTH => Some(Way::Direct),
        (Some(hub), Some(direct), _) => Some(if hub <= direct { Way::Hub } else { Way::Direct }),
    }
}

/// Whether a way that answers so leads to the cluster. The hub's word that somebody may not is an answer, and is not gone
/// around; an endpoint that knows nobody any more is of no use.
fn leads(way: Way, code: StatusCode) -> bool {
    match way {
        Way::Hub => !code.is_server_error(),
        Way::Direct => !code.is_server_error() && code != StatusCode::UNAUTHORIZED,
    }
}

struct State {
    way: Option<Way>,
    /// What a request could not be sent on, and when: not taken again at once while the other way works.
    shut: Option<(Way, Instant)>,
    compared: Option<Instant>,
    tried: [Tried; 2],
    learned: Option<Instant>,
    tokens: [Option<(Secret, Instant)>; 2],
}

/// One cluster of one hub.
pub struct Route {
    hub: String,
    cluster: String,
    through: Arc<ApiServer>,
    direct: Mutex<Option<(Direct, Arc<ApiServer>)>>,
    metrics: Metrics,
    state: Mutex<State>,
    comparing: tokio::sync::Mutex<()>,
}

/// A request that got no answer.
pub enum NoAnswer {
    /// Nothing of it was sent.
    Unsent(String),
    /// It may have arrived.
    Broken(String),
}

async fn upstream(server: &str, authority: &str, metrics: &Metrics) -> Result<Arc<ApiServer>, String> {
    let config = UpstreamConfig::At { server: server.to_owned(), authority: authority.to_owned() };
    ApiServer::new(config, metrics.clone()).await.map(Arc::new).map_err(|e| e.to_string())
}

impl Route {
    /// The ways to `cluster` of the hub `known`.
    ///
    /// # Errors
    /// The hub's address or authority is none.
    pub async fn new(known: &KnownHub, cluster: &str, metrics: &Metrics) -> Result<Arc<Self>, String> {
        let server = format!("{}/k8s/clusters/{cluster}", known.url);
        let unknown = || Tried::Failed("not tried yet".to_owned());
        let route = Arc::new(Self {
            hub: known.url.clone(),
            cluster: cluster.to_owned(),
            through: upstream(&server, &known.ca, metrics).await?,
            direct: Mutex::default(),
            metrics: metrics.clone(),
            state: Mutex::new(State {
                way: None,
                shut: None,
                compared: None,
                tried: [unknown(), unknown()],
                learned: None,
                tokens: [None, None],
            }),
            comparing: tokio::sync::Mutex::default(),
        });
        route.lead(seat::recall(&known.url, cluster).ok().flatten()).await;
        Ok(route)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ways(&self) -> MutexGuard<'_, Option<(Direct, Arc<ApiServer>)>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up where the direct way leads.
    async fn lead(&self, direct: Option<Direct>) {
        if self.ways().as_ref().map(|(direct, _)| direct) == direct.as_ref() {
            return;
        }
        let made = match direct {
            None => None,
            Some(direct) => {
                upstream(&direct.server, &direct.authority, &self.metrics).await.ok().map(|up| (direct, up))
            }
        };
        *self.ways() = made;
    }

    fn known(&self) -> Result<KnownHub, String> {
        let settings = Settings::load().map_err(|e| e.to_string())?;
        let known = settings.hub(&self.hub).filter(|known| known.token.is_some()).cloned();
        known.ok_or_else(|| format!("logged out; log in again: moorline login {}", self.hub))
    }

    /// The token that is for this way alone.
    async fn token(&self, way: Way) -> Result<Secret, String> {
        if let Some((token, at)) = &self.state().tokens[way as usize]
            && at.elapsed() < TOKEN
        {
            return Ok(token.clone());
        }
        let known = self.known()?;
        let token = match way {
            Way::Hub => session::fresh(&known).await.map_err(|e| e.to_string())?.token.unwrap_or_default(),
            Way::Direct => session::for_cluster(&known, &self.cluster).await.map_err(|e| e.to_string())?.token,
        };
        self.state().tokens[way as usize] = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    /// Sends a request on a way, as its user.
    ///
    /// # Errors
    /// See [`NoAnswer`].
    pub async fn send(&self, way: Way, mut request: Request<Body>) -> Result<Response<Body>, NoAnswer> {
        let token = self.token(way).await.map_err(NoAnswer::Unsent)?;
        let value = HeaderValue::try_from(format!("Bearer {}", token.reveal()));
        let mut value = value.map_err(|_| NoAnswer::Unsent("the stored token is damaged".to_owned()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
        let upstream = match way {
            Way::Hub => Some(Arc::clone(&self.through)),
            Way::Direct => self.ways().as_ref().map(|(_, upstream)| Arc::clone(upstream)),
        };
        let upstream = upstream.ok_or_else(|| NoAnswer::Unsent("the cluster has no endpoint of its own".to_owned()))?;
        let answer = upstream.send(request).await.map_err(|e| match e {
            UpstreamError::Unreachable(_) | UpstreamError::Timeout => NoAnswer::Unsent(e.to_string()),
            UpstreamError::Broken(_) | UpstreamError::Body(_) => NoAnswer::Broken(e.to_string()),
        })?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.state().tokens[way as usize] = None;
        }
        Ok(answer)
    }

    async fn attempt(&self, way: Way) -> Tried {
        let begun = Instant::now();
        let ask = Request::builder().method(Method::GET).uri("/version").body(body::empty());
        let Ok(ask) = ask else { return Tried::Failed("no request".to_owned()) };
        match tokio::time::timeout(TRY, self.send(way, ask)).await {
            Ok(Ok(answer)) if leads(way, answer.status()) => Tried::Took(begun.elapsed()),
            Ok(Ok(answer)) => Tried::Failed(format!("answers {}", answer.status())),
            Ok(Err(NoAnswer::Unsent(why) | NoAnswer::Broken(why))) => Tried::Failed(why),
            Err(_) => Tried::Failed("does not answer".to_owned()),
        }
    }

    /// Tries both ways at once. The first that works gives the other as long again.
    async fn try_both(&self) -> [Tried; 2] {
        let (hub, direct) = (self.attempt(Way::Hub), self.attempt(Way::Direct));
        tokio::pin!(hub, direct);
        let (begun, mut limit) = (Instant::now(), TRY + MORE);
        let mut found: [Option<Tried>; 2] = [None, None];
        while found.iter().any(Option::is_none) {
            let end = tokio::time::Instant::from_std(begun + limit);
            tokio::select! {
                tried = &mut hub, if found[0].is_none() => found[0] = Some(tried),
                tried = &mut direct, if found[1].is_none() => found[1] = Some(tried),
                () = tokio::time::sleep_until(end) => break,
            }
            if found.iter().flatten().any(|tried| tried.took().is_some()) {
                limit = limit.min(begun.elapsed() * 2 + MORE);
            }
        }
        found.map(|tried| tried.unwrap_or_else(|| Tried::Failed("is slower by far, or does not answer".to_owned())))
    }

    /// Compares the ways and takes one.
    async fn compare(&self) -> Option<Way> {
        let tried = self.try_both().await;
        let mut state = self.state();
        // A connection from before may still answer where no new one is taken.
        let shut = state.shut.filter(|(_, at)| at.elapsed() < SETTLED).map(|(way, _)| way.other());
        let open = shut.filter(|other| tried[*other as usize].took().is_some());
        state.way = open.or_else(|| decide(state.way, &tried[0], &tried[1]));
        state.tried = tried;
        state.compared = Some(Instant::now());
        state.way
    }

    /// The way to take now. One that is in use is used on while it is compared.
    ///
    /// # Errors
    /// Neither works; why, in words.
    pub async fn choose(self: &Arc<Self>) -> Result<Way, String> {
        let (way, due) = {
            let state = self.state();
            (state.way, state.compared.is_none_or(|at| COMPARE <= at.elapsed()))
        };
        match way {
            Some(way) => {
                if due && let Ok(one) = self.comparing.try_lock() {
                    drop(one);
                    let this = Arc::clone(self);
                    tokio::spawn(async move {
                        let Ok(_one) = this.comparing.try_lock() else { return };
                        this.compare().await;
                        this.learn().await;
                    });
                }
                Ok(way)
            }
            None => {
                let _one = self.comparing.lock().await;
                if let Some(way) = self.state().way {
                    return Ok(way);
                }
                let found = self.compare().await;
                let state = self.state();
                found.ok_or_else(|| format!("hub: {}; direct: {}", state.tried[0].words(), state.tried[1].words()))
            }
        }
    }

    /// Something went wrong on this way: the next choice compares anew, unless that was done a moment ago.
    /// Returns whether it will.
    pub fn doubt(&self, way: Way) -> bool {
        let mut state = self.state();
        let settled = state.compared.is_some_and(|at| at.elapsed() < SETTLED);
        if state.way == Some(way) && !settled {
            state.way = None;
        }
        state.way != Some(way)
    }

    /// Something of this way did not even connect: it is not taken again before it was tried.
    pub fn drop_way(&self, way: Way) {
        let mut state = self.state();
        state.shut = Some((way, Instant::now()));
        if state.way == Some(way) {
            state.way = None;
        }
    }

    /// Asks the hub, once in a while, where the direct way leads: endpoints move, and get new certificates.
    async fn learn(&self) {
        let due = self.state().learned.is_none_or(|at| LEARN <= at.elapsed());
        let works = matches!(self.state().tried[0], Tried::Took(_));
        if !due || !works {
            return;
        }
        self.state().learned = Some(Instant::now());
        let Ok(client) = self.known().and_then(|known| Client::new(&known, ANSWER).map_err(|e| e.to_string())) else {
            return;
        };
        // What the hub does not tell is no reason to forget what it told before.
        let Ok(object) = client.get(&Resource::Cluster.path(&self.cluster)).await else { return };
        let direct = direct_of(&object);
        if seat::recall(&self.hub, &self.cluster).ok().flatten() != direct {
            let _ = seat::remember(&self.hub, &self.cluster, direct.as_ref());
        }
        self.lead(direct).await;
    }

    /// For people.
    pub fn show(&self) -> Value {
        let state = self.state();
        serde_json::json!({
            "hub": self.hub,
            "cluster": self.cluster,
            "way": state.way,
            "tried": { "hub": state.tried[0].words(), "direct": state.tried[1].words() },
        })
    }
}

/// Where a `Cluster` object says that the direct way leads.
pub fn direct_of(object: &Value) -> Option<Direct> {
    let word = |key: &str| object.pointer(&format!("/status/direct/{key}")).and_then(Value::as_str);
    let server = word("server").filter(|server| server.parse::<crate::target::HubUrl>().is_ok())?;
    Some(Direct { server: server.to_owned(), authority: word("certificateAuthority").unwrap_or_default().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Tried {
        Tried::Took(Duration::from_millis(n))
    }

    #[test]
    fn the_way_that_works_is_taken_and_of_two_the_nearer() {
        let no = || Tried::Failed("refused".to_owned());
        for now in [None, Some(Way::Hub), Some(Way::Direct)] {
            assert_eq!(decide(now, &no(), &no()), None);
            assert_eq!(decide(now, &ms(900), &no()), Some(Way::Hub));
            assert_eq!(decide(now, &no(), &ms(900)), Some(Way::Direct));
        }
        assert_eq!(decide(None, &ms(20), &ms(10)), Some(Way::Direct));
        assert_eq!(decide(None, &ms(10), &ms(20)), Some(Way::Hub));
    }

    #[test]
    fn ways_that_are_as_near_do_not_take_turns() {
        assert_eq!(decide(Some(Way::Hub), &ms(100), &ms(90)), Some(Way::Hub));
        assert_eq!(decide(Some(Way::Direct), &ms(90), &ms(100)), Some(Way::Direct));
        assert_eq!(decide(Some(Way::Hub), &ms(6), &ms(1)), Some(Way::Hub), "a few milliseconds are nothing");
        assert_eq!(decide(Some(Way::Hub), &ms(100), &ms(20)), Some(Way::Direct));
        assert_eq!(decide(Some(Way::Direct), &ms(20), &ms(100)), Some(Way::Hub));
    }

    #[test]
    fn the_hubs_refusal_is_an_answer_and_an_endpoint_that_knows_nobody_is_none() {
        for code in [401, 403, 404, 200] {
            assert!(leads(Way::Hub, StatusCode::from_u16(code).unwrap()), "{code}");
        }
        assert!(!leads(Way::Direct, StatusCode::UNAUTHORIZED) && leads(Way::Direct, StatusCode::FORBIDDEN));
        for way in [Way::Hub, Way::Direct] {
            assert!(!leads(way, StatusCode::SERVICE_UNAVAILABLE) && !leads(way, StatusCode::BAD_GATEWAY));
        }
    }
}
