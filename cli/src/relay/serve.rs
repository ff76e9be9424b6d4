//! The relay's port: kubectl's requests go on, each on the way of the moment.

use super::{
    seat::{self, Seat},
    ways::{NoAnswer, Route, Way},
};
use crate::{failure::advise, settings::Settings};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use moorline_agent::metrics::Metrics;
use moorline_endpoint::{metrics::Metrics as PortMetrics, server};
use moorline_proto::id::ClusterId;
use moorline_proxy::{
    Body, body,
    headers::{clean_request, clean_response},
    judge::bearer,
    status::status_response,
    upgrade::{UpgradedIo, copy_both},
    wire::WantsUpgrade,
};
use prometheus::{IntGauge, Registry};
use serde_json::json;
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Clusters whose ways are known at a time.
const ROUTES: usize = 1024;
/// Largest body that is kept until it is known to have arrived, in bytes: what people apply is far below.
const REPLAY: usize = 3 << 20;
/// Longest wait for a client that was told that its connection is upgraded.
const UPGRADE_WAIT: Duration = Duration::from_secs(10);
/// How often it is looked at whether anybody still uses the relay.
const LOOK: Duration = Duration::from_secs(1);
/// Tells which way a request took.
const WAY: HeaderName = HeaderName::from_static("moorline-way");

/// Serves until nobody was there for `idle`, or it is asked to end.
pub async fn serve(seat: Seat, idle: Duration) -> anyhow::Result<()> {
    let served = seat.certificate()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, seat.port)).await.map_err(|e| {
        advise(
            format!("port {} of this machine cannot be used: {e}", seat.port),
            "take another: moorline kubeconfig CLUSTER --auto --auto-port PORT --merge",
        )
    })?;
    let registry = Registry::new();
    let (port, metrics) = (PortMetrics::new(&registry)?, Metrics::new(&registry)?);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let relay = Arc::new(Relay {
        secret: seat.secret.reveal().to_owned(),
        routes: Mutex::default(),
        metrics,
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let open = port.connections.clone();
    let serving = server::serve(listener, served.config, relay, port, tasks, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Ok(()),
        () = until_idle(&open, idle) => stop.cancel(),
    }
    serving.await;
    Ok(())
}

async fn until_idle(open: &IntGauge, idle: Duration) {
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(LOOK.min(idle)).await;
        if open.get() > 0 {
            since = Instant::now();
        } else if idle <= since.elapsed() {
            return;
        }
    }
}

struct Relay {
    secret: String,
    routes: Mutex<HashMap<(String, String), Arc<Route>>>,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl server::Handler for Relay {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Response<Body> {
        if !bearer(request.headers()).is_some_and(|token| same(token.as_bytes(), self.secret.as_bytes())) {
            return status_response(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        if target == "/" {
            return self.own(request.method());
        }
        let Some((place, cluster, rest)) = split(&target) else {
            return status_response(
                StatusCode::NOT_FOUND,
                "this relay knows /hubs/HUB/clusters/CLUSTER/… and nothing else",
            );
        };
        match self.route(place, cluster).await {
            Ok(route) => self.pass(&route, request, rest).await,
            Err((code, words)) => status_response(code, &words),
        }
    }
}

impl Relay {
    /// What is asked of the relay itself.
    fn own(&self, method: &Method) -> Response<Body> {
        match *method {
            Method::GET => {
                let routes: Vec<_> = self.routes().values().map(|route| route.show()).collect();
                let answer =
                    json!({ "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "clusters": routes });
                Response::new(body::full(answer.to_string()))
            }
            Method::DELETE => {
                self.stop.cancel();
                Response::new(body::full("{}"))
            }
            _ => status_response(StatusCode::METHOD_NOT_ALLOWED, "GET shows, DELETE ends the relay"),
        }
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Arc<Route>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn route(&self, place: &str, cluster: &str) -> Result<Arc<Route>, (StatusCode, String)> {
        let key = (place.to_owned(), cluster.to_owned());
        if let Some(route) = self.routes().get(&key) {
            return Ok(Arc::clone(route));
        }
        let cluster: ClusterId = cluster.parse().map_err(|_| (StatusCode::NOT_FOUND, "no such cluster".to_owned()))?;
        let settings = Settings::load().map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
        let known = settings.hubs.iter().find(|known| seat::place(&known.url) == place);
        let known =
            known.ok_or_else(|| (StatusCode::NOT_FOUND, "that hub is not known here; log in to it".to_owned()))?;
        let made = Route::new(known, cluster.as_str(), &self.metrics).await;
        let made = made.map_err(|why| (StatusCode::BAD_GATEWAY, why))?;
        let mut routes = self.routes();
        if ROUTES <= routes.len() {
            routes.clear();
        }
        Ok(Arc::clone(routes.entry(key).or_insert(made)))
    }

    /// One request. It is sent a second time only where the first cannot have done anything, or nothing could be done by it.
    async fn pass(&self, route: &Arc<Route>, request: Request<Incoming>, rest: &str) -> Response<Body> {
        let (mut parts, incoming) = request.into_parts();
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let upgrade = match accept(&mut parts.headers) {
            Ok(upgrade) => upgrade,
            Err(why) => return status_response(StatusCode::BAD_REQUEST, &why),
        };
        let Ok(uri) = rest.parse() else { return status_response(StatusCode::BAD_REQUEST, "the target is malformed") };
        parts.uri = uri;
        let mut content = match Content::of(incoming).await {
            Ok(content) => content,
            Err(why) => return status_response(StatusCode::BAD_REQUEST, &why),
        };
        let safe = matches!(parts.method, Method::GET | Method::HEAD) && !upgrade;
        let mut first = None;
        loop {
            let way = match route.choose().await {
                Ok(way) => way,
                // The answer that there was says more than that there is none.
                Err(why) => return first.unwrap_or_else(|| no_way(&why)),
            };
            let Some(body) = content.give() else { return first.unwrap_or_else(|| no_way("the way broke")) };
            let again = first.is_none() && content.is_kept();
            match route.send(way, asked(&parts, upgrade, body)).await {
                Ok(answer) => {
                    let refused = way == Way::Direct && answer.status() == StatusCode::UNAUTHORIZED;
                    let doubtful = refused || matches!(answer.status().as_u16(), 502..=504);
                    if doubtful && route.doubt(way) && again && (safe || refused) {
                        first = Some(self.answer(answer, way, None, upgrade));
                        continue;
                    }
                    return self.answer(answer, way, on_upgrade, upgrade);
                }
                Err(NoAnswer::Unsent(why)) => {
                    route.drop_way(way);
                    if !again {
                        return no_way(&why);
                    }
                    first = Some(no_way(&why));
                }
                Err(NoAnswer::Broken(why)) => {
                    route.drop_way(way);
                    if !(again && safe) {
                        return status_response(
                            StatusCode::BAD_GATEWAY,
                            &format!("the way by the {} broke: {why}", way.name()),
                        );
                    }
                    first = Some(no_way(&why));
                }
            }
        }
    }

    fn answer(
        &self,
        mut answer: Response<Body>,
        way: Way,
        on_upgrade: Option<OnUpgrade>,
        upgrade: bool,
    ) -> Response<Body> {
        let upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        clean_response(answer.headers_mut(), upgraded);
        answer.headers_mut().insert(WAY, HeaderValue::from_static(way.name()));
        if !upgraded {
            if upgrade {
                // What the client sent after its request belongs to nothing any more.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return answer;
        }
        let io = answer.extensions_mut().remove::<UpgradedIo>().and_then(|io| io.take());
        let (Some(mut cluster), Some(on_upgrade)) = (io, on_upgrade) else {
            return status_response(StatusCode::BAD_GATEWAY, "this connection cannot be upgraded");
        };
        self.tasks.spawn(async move {
            if let Ok(Ok(client)) = tokio::time::timeout(UPGRADE_WAIT, on_upgrade).await {
                let _ = copy_both(&mut TokioIo::new(client), &mut cluster).await; // both sides see it end
            }
        });
        answer
    }
}

fn no_way(why: &str) -> Response<Body> {
    let mut answer =
        status_response(StatusCode::SERVICE_UNAVAILABLE, &format!("no way leads to the cluster now: {why}"));
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn asked(parts: &Parts, upgrade: bool, content: Body) -> Request<Body> {
    let mut request = Request::new(content);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    if upgrade {
        request.extensions_mut().insert(WantsUpgrade);
    }
    request
}

/// Leaves what may go on. Whom to act as is the user's own to ask (`kubectl --as`): hub and endpoint judge it.
fn accept(headers: &mut HeaderMap) -> Result<bool, String> {
    let acts: Vec<_> = headers.iter().filter(|(name, _)| name.as_str().starts_with("impersonate-")).collect();
    let acts: Vec<(HeaderName, HeaderValue)> = acts.into_iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    let upgrade = clean_request(headers).map_err(|e| e.to_string())?;
    for (name, value) in acts {
        headers.append(name, value);
    }
    Ok(upgrade)
}

/// A body, kept for a second try where it is small.
enum Content {
    Kept(Bytes),
    Passing(Option<Body>),
}

impl Content {
    async fn of(incoming: Incoming) -> Result<Self, String> {
        if incoming.is_end_stream() {
            return Ok(Self::Kept(Bytes::new()));
        }
        if incoming.size_hint().upper().is_some_and(|length| length <= REPLAY as u64) {
            let whole = Limited::new(incoming, REPLAY).collect().await;
            return whole.map(|whole| Self::Kept(whole.to_bytes())).map_err(|e| e.to_string());
        }
        Ok(Self::Passing(Some(body::from(incoming))))
    }

    fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    /// The body; `None`: it was given before.
    fn give(&mut self) -> Option<Body> {
        match self {
            Self::Kept(bytes) if bytes.is_empty() => Some(body::empty()),
            Self::Kept(bytes) => Some(body::full(bytes.clone())),
            Self::Passing(content) => content.take(),
        }
    }
}

/// `/hubs/HUB/clusters/CLUSTER` and what comes after it, as it was sent.
fn split(target: &str) -> Option<(&str, &str, &str)> {
    let (place, rest) = target.strip_prefix("/hubs/")?.split_once("/clusters/")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (cluster, rest) = rest.split_at(end);
    (!place.contains('/') && rest.starts_with('/')).then_some((place, cluster, rest))
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_taken_apart_and_what_is_behind_stays_as_it_is() {
        assert_eq!(split("/hubs/h_1/clusters/e/api?x=%2F"), Some(("h_1", "e", "/api?x=%2F")));
        assert_eq!(split("/hubs/h_1/clusters/e/a/../b%2f"), Some(("h_1", "e", "/a/../b%2f")));
        for bad in ["/", "/api", "/hubs/h/clusters/e", "/hubs/h/clusters/e?x", "/hubs/a/b/clusters/e/x", "/hubs/h"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn s02_whom_to_act_as_goes_on_and_what_the_connection_says_does_not() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer local"),
            ("impersonate-user", "bob"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("connection", "keep-alive"),
            ("accept", "application/json"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(accept(&mut headers), Ok(false));
        assert_eq!(headers.get_all("impersonate-group").iter().count(), 2);
        assert!(headers.contains_key("impersonate-user") && headers.contains_key("accept"));
        assert!(!headers.contains_key("authorization") && !headers.contains_key("connection"));
        headers.insert("connection", HeaderValue::from_static("Impersonate-User"));
        assert!(accept(&mut headers).is_err(), "s01");
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"ab") && same(b"", b""));
    }
}
