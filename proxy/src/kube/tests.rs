use super::*;
use crate::{
    audit::{AuditFull, Event, Stage},
    body,
    edge::{Reviewer, Upstream, UpstreamError, serve_kube},
    path::split,
};
use http_body_util::BodyExt;
use moorline_authz::{
    access::{Facts, Grant, Grants, authorize},
    edge::EdgePolicy,
    impersonation::Review,
};
use moorline_link::{Session, testing::session_pair};
use moorline_proto::code::RefuseCode;
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

type Answer = Box<dyn Fn(&Request<()>) -> Result<Response<Body>, UpstreamError> + Send>;

/// In the API server's place: keeps all that it saw.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<String>>,
    answer: Mutex<Option<Answer>>,
    asked: Mutex<Vec<Review>>,
    allowed: AtomicBool,
    dropped: Arc<tokio::sync::Notify>,
}

impl Recorder {
    fn answers(&self, answer: impl Fn(&Request<()>) -> Result<Response<Body>, UpstreamError> + Send + 'static) {
        *self.answer.lock().unwrap() = Some(Box::new(answer));
    }
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Upstream for Arc<Recorder> {
    fn send(&self, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(UpstreamError::Body)?.to_bytes();
            let mut lines = vec![format!("{} {}", parts.method, parts.uri)];
            lines.extend(parts.headers.iter().map(|(n, v)| format!("{n}: {}", String::from_utf8_lossy(v.as_bytes()))));
            lines.push(String::from_utf8_lossy(&body).into_owned());
            self.seen.lock().unwrap().push(lines.join("\n"));
            match &*self.answer.lock().unwrap() {
                Some(answer) => answer(&Request::from_parts(parts, ())),
                None => Ok(Response::new(body::full("{}"))),
            }
        })
    }
}
impl Reviewer for Arc<Recorder> {
    fn allowed<'a>(&'a self, _: &'a Identity, review: &'a Review) -> BoxFuture<'a, Result<bool, UpstreamError>> {
        self.asked.lock().unwrap().push(review.clone());
        Box::pin(async { Ok(self.allowed.load(Ordering::Relaxed)) })
    }
}

#[derive(Default)]
struct Log {
    events: Mutex<Vec<Event>>,
    full: AtomicBool,
}
impl AuditSink for Log {
    fn admit(&self) -> BoxFuture<'_, Result<(), AuditFull>> {
        let full = self.full.load(Ordering::Relaxed);
        Box::pin(async move { if full { Err(AuditFull) } else { Ok(()) } })
    }
    fn push(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

struct Hub {
    session: Session,
    dials: AtomicUsize,
    fail: Mutex<Vec<DialError>>,
}
impl Dial for Hub {
    type Stream = moorline_link::Stream;
    fn dial<'a>(
        &'a self,
        _: &'a Permit,
        header: &'a StreamHeader,
        _: u32,
    ) -> BoxFuture<'a, Result<Self::Stream, DialError>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if let Some(e) = self.fail.lock().unwrap().pop() {
                return Err(e);
            }
            self.session.open(header).await.map_err(|_| DialError::Lost)
        })
    }
}

struct World {
    proxy: KubeProxy<Hub>,
    hub: Arc<Hub>,
    up: Arc<Recorder>,
    log: Arc<Log>,
    agent: Session,
    registry: prometheus::Registry,
    record: Option<moorline_authz::access::Recording>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

fn world(policy: &'static str) -> World {
    let (at_hub, agent) = session_pair();
    let up = Arc::new(Recorder::default());
    let serving = tokio::spawn({
        let (agent, up) = (agent.clone(), up.clone());
        async move {
            let policy = if policy.is_empty() { EdgePolicy::default() } else { EdgePolicy::from_yaml(policy).unwrap() };
            let policy = Arc::new(policy);
            let mut tasks = tokio::task::JoinSet::new();
            while let Some(incoming) = agent.accept().await {
                let (up, policy) = (up.clone(), policy.clone());
                tasks.spawn(async move {
                    let _ = serve_kube(incoming, &policy, &up, &up).await;
                    up.dropped.notify_one();
                });
            }
        }
    });
    let hub = Arc::new(Hub { session: at_hub, dials: AtomicUsize::new(0), fail: Mutex::default() });
    let (log, registry) = (Arc::new(Log::default()), prometheus::Registry::new());
    let proxy = KubeProxy::new(hub.clone(), log.clone(), ProxyMetrics::new(&registry).unwrap(), TaskTracker::new());
    World {
        proxy,
        hub,
        up,
        log,
        agent,
        registry,
        record: None,
        _serving: tokio_util::task::AbortOnDropHandle::new(serving),
    }
}

impl World {
    async fn call_as(&self, act_as: Option<ActAs>, request: Request<Body>) -> Response<Body> {
        let ann = Identity { uid: "u1".into(), ..Identity::new("ann", ["dev"]) };
        let grants = Grants::new([Grant {
            name: "g".into(),
            users: vec!["ann".into()],
            clusters: vec!["a".into()],
            as_groups: vec!["ops".into()],
            groups: vec![],
            record: self.record,
        }]);
        let permit = authorize(&Facts { identity: &ann, token_clusters: None, grants: &grants }, "a", act_as).unwrap();
        let caller = Caller { identity: Arc::new(ann), remote: ([192, 0, 2, 1], 5).into() };
        let target = request.uri().to_string();
        let path = split(&target).unwrap().unwrap();
        self.proxy.handle(request, path, &caller, permit).await
    }
    async fn call(&self, request: Request<Body>) -> Response<Body> {
        self.call_as(None, request).await
    }
    fn ended(&self) -> Vec<(u16, String)> {
        let events = self.log.events.lock().unwrap();
        let over = events.iter().filter(|e| e.stage == Stage::ResponseComplete);
        over.map(|e| (e.response_status.unwrap().code, e.annotations["moorline.dev/ended"].clone())).collect()
    }
}

fn get(rest: &str) -> http::request::Builder {
    Request::get(format!("/k8s/clusters/a{rest}"))
}
fn empty(builder: http::request::Builder) -> Request<Body> {
    builder.body(body::empty()).unwrap()
}
async fn text(response: Response<Body>) -> String {
    String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned()
}

#[tokio::test]
async fn whether_one_may_is_answered_by_the_edge_where_it_would_refuse() {
    let world = world("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {api: {readOnly: true}}");
    let ask = |verb: &str| {
        let attributes = serde_json::json!({ "verb": verb, "resource": "pods", "namespace": "shop" });
        let spec = serde_json::json!({ "resourceAttributes": attributes });
        let kind = "SelfSubjectAccessReview";
        let body =
            serde_json::json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec }).to_string();
        let to = "/k8s/clusters/a/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let request = Request::post(to).header("content-type", "application/json").header("content-length", body.len());
        (request.body(body::full(body.clone())).unwrap(), body)
    };
    let (request, sent) = ask("delete");
    let no = world.call(request).await;
    assert_eq!(
        (no.status().as_u16(), &no.headers()["content-type"]),
        (201, &HeaderValue::from_static("application/json"))
    );
    let no: serde_json::Value = serde_json::from_str(&text(no).await).unwrap();
    let reason = "the cluster's edge policy is read-only and refuses verb \"delete\"";
    assert_eq!(no["status"], serde_json::json!({ "allowed": false, "denied": true, "reason": reason }));
    assert_eq!(
        no["spec"],
        serde_json::from_str::<serde_json::Value>(&sent).unwrap()["spec"],
        "and the question stands there"
    );
    assert_eq!(world.up.seen(), [""; 0], "the cluster's own rules do not matter");
    // Where the edge lets it pass, the cluster decides; so it does about what is no such question.
    let (request, sent) = ask("get");
    assert_eq!(text(world.call(request).await).await, "{}");
    assert!(world.up.seen()[0].ends_with(&format!("\n{sent}")) && world.up.seen()[0].contains("impersonate-user: ann"));
    let (mut request, _) = ask("delete");
    *request.body_mut() = body::full("x".repeat(sent.len() + 3));
    assert_eq!(text(world.call(request).await).await, "{}");
    assert_eq!(world.up.seen().len(), 2);
}

/// One byte after each pause.
fn trickle(bytes: usize, pause: std::time::Duration) -> Body {
    let pieces = futures_util::stream::unfold(bytes, move |left| async move {
        tokio::time::sleep(pause).await;
        let byte = http_body::Frame::data(Bytes::from_static(b"x"));
        Some((Ok::<_, std::io::Error>(byte), left.checked_sub(1)?))
    });
    body::from(http_body_util::StreamBody::new(pieces))
}

#[tokio::test(start_paused = true)]
async fn s77_a_body_that_trickles_in_is_ended_and_counted() {
    let world = world("");
    let post = |path: &str, pause| {
        let (bytes, pause) = (600, std::time::Duration::from_millis(pause));
        Request::post(format!("/k8s/clusters/a{path}")).body(trickle(bytes, pause)).unwrap()
    };
    let slow = world.call(post("/api/v1/namespaces/x/configmaps", 1000)).await;
    assert_eq!((slow.status().as_u16(), &slow.headers()["connection"]), (408, &HeaderValue::from_static("close")));
    assert!(text(slow).await.contains("the request's body came too slowly"));
    assert_eq!(world.ended(), [(408, "slow_body".to_owned())]);
    world.up.dropped.notified().await;
    assert_eq!(world.up.seen(), [""; 0], "nothing that is whole arrived");
    let counted = || {
        let all = prometheus::TextEncoder::new().encode_to_string(&world.registry.gather()).unwrap();
        all.contains("moorline_proxy_slow_bodies_total 1\n")
    };
    assert!(counted());
    // As fast as it has to be; and to a pod, which knows itself how long it wants to listen.
    for (path, pause) in [("/api/v1/namespaces/x/configmaps", 9), ("/api/v1/namespaces/x/pods/y/proxy/in", 1000)] {
        assert_eq!(world.call(post(path, pause)).await.status().as_u16(), 200, "{path}");
    }
    assert!(counted());
}

#[tokio::test]
async fn a_call_arrives_as_its_caller_and_with_the_bytes_that_came() {
    let world = world("");
    let request = get("/api/v1/namespaces/x/services/y:80/proxy/a%2Fb?q=%20")
        .header("accept", "*/*")
        .header("authorization", "Bearer mlt_x");
    let response = world.call(empty(request)).await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "{}"));
    let seen = world.up.seen();
    let [seen] = &seen[..] else { panic!("{seen:?}") };
    assert!(seen.starts_with("GET /api/v1/namespaces/x/services/y:80/proxy/a%2Fb?q=%20\n"), "{seen}");
    for line in [
        "impersonate-user: ann",
        "impersonate-uid: u1",
        "impersonate-group: dev",
        "impersonate-group: ops",
        "accept: */*",
    ] {
        assert_eq!(seen.matches(line).count(), 1, "{line} in {seen}");
    }
    assert!(!seen.contains("mlt_x") && !seen.contains("authorization"));
    let events = world.log.events.lock().unwrap();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.user.username.as_str(), event.source_ips[0].as_str()), ("ann", "192.0.2.1"));
    assert_eq!(event.annotations["moorline.dev/bytes-out"], "2");
    assert!(seen.contains(&format!("audit-id: {}", event.audit_id)), "the cluster's audit log names the same call");
    let trace = &event.annotations["moorline.dev/trace-id"];
    assert!(seen.contains(&format!("traceparent: 00-{trace}-")));
}

#[tokio::test]
async fn s01_s05_s06_s47_nothing_that_a_client_says_of_itself_arrives() {
    let world = world("");
    for name in ["Impersonate-User", "authorization", "X-Remote-User"] {
        let response = world.call(empty(get("/api").header("connection", name))).await;
        assert_eq!(response.status(), 400);
    }
    assert!(world.up.seen().is_empty());
    assert_eq!(world.ended(), vec![(400, "refused".to_owned()); 3], "who tried it stands in the audit log");
    let mut request = get("/api");
    for name in [
        "impersonate-user",
        "impersonate_user",
        "impersonate-extra-a",
        "x-remote-group",
        "x-forwarded-for",
        "x-moorline-principal",
        "cookie",
        "forwarded",
    ] {
        request = request.header(name, "evil");
    }
    assert_eq!(world.call(empty(request)).await.status(), 200);
    assert!(!world.up.seen()[0].contains("evil"));
    assert_eq!(world.log.events.lock().unwrap()[3].source_ips, ["192.0.2.1"]);
}

#[tokio::test]
async fn s01_a_stream_without_identity_is_refused_with_502() {
    let world = world("");
    let header = StreamHeader {
        target: Target::Kube,
        class: Class::Interactive,
        deadline_ms: 0,
        traceparent: None,
        principal: None,
    };
    let stream = world.hub.session.open(&header).await.unwrap();
    let answer = wire::request(stream, Request::get("/api").body(body::empty()).unwrap()).await;
    let Err(WireError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.code, RefuseCode::NoIdentity);
    assert_eq!(DialError::Refused(refusal).status(), 502);
    assert!(world.up.seen().is_empty());
}

#[tokio::test]
async fn s02_acting_as_another_needs_the_clusters_own_yes() {
    let world = world("");
    let bob = || Some(ActAs(Identity::new("bob", ["x"])));
    let response = world.call_as(bob(), empty(get("/api"))).await;
    assert_eq!(response.status(), 403);
    assert!(text(response).await.contains("cannot impersonate"));
    assert!(world.up.seen().is_empty());
    world.up.allowed.store(true, Ordering::Relaxed);
    assert_eq!(world.call_as(bob(), empty(get("/api"))).await.status(), 200);
    let seen = &world.up.seen()[0];
    assert!(seen.contains("impersonate-user: bob") && seen.contains("impersonate-group: x"), "{seen}");
    assert!(
        !seen.contains("ann") && !seen.contains("dev") && !seen.contains("u1"),
        "identities are never mixed: {seen}"
    );
    assert_eq!(world.up.asked.lock().unwrap().len(), 3, "one answer of no is enough, then both are asked");
    let events = world.log.events.lock().unwrap();
    assert_eq!(events[1].user.username, "ann");
    assert_eq!(events[1].impersonated_user.as_ref().unwrap().username, "bob");
}

#[tokio::test]
async fn s03_s22_the_edge_refuses_by_its_own_policy() {
    let world = world(
        "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {api: {readOnly: true}, impersonation: {denyUsers: [bob]}}",
    );
    world.up.allowed.store(true, Ordering::Relaxed);
    for act_as in [Identity::new("bob", ["x"]), Identity::new("eve", ["system:nodes"])] {
        let response = world.call_as(Some(ActAs(act_as)), empty(get("/api"))).await;
        assert_eq!(response.status(), 403);
        assert!(text(response).await.contains("edge policy"));
    }
    assert_eq!(world.call(empty(get("/api/v1/namespaces/x/pods/p/exec").header("x", "y"))).await.status(), 403);
    assert!(world.up.seen().is_empty());
    assert_eq!(world.call(empty(get("/api"))).await.status(), 200, "the session lives on");
}

#[tokio::test]
async fn s48_a_get_that_runs_something_is_no_read() {
    let world = world("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {api: {readOnly: true}}");
    for path in [
        "/api/v1/namespaces/x/pods/p/exec?command=id",
        "/api/v1/namespaces/x/pods/p/attach",
        "/api/v1/namespaces/x/pods/p/portforward?ports=80",
        "/api/v1/namespaces/x/pods/p/proxy/run",
        "/api/v1/nodes/n/proxy/exec/x/p/c?command=id",
        "/api/v1/nodes/n/proxy/run/x/p/c",
        "/api/v1/nodes/n/proxy/attach/x/p/c",
        "/api/v1/namespaces/x/pods/p%2Fexec?command=id",
        "/api/v1/namespaces/x/services/s:80/proxy/",
    ] {
        let upgrade = get(path).header("connection", "upgrade").header("upgrade", "websocket");
        assert_eq!(world.call(empty(upgrade)).await.status(), 403, "{path}");
        assert_eq!(world.call(empty(get(path))).await.status(), 403, "{path}");
    }
    assert!(world.up.seen().is_empty());
    assert!(world.log.events.lock().unwrap().iter().all(|event| event.verb == "create"));
    // An API that was added to the cluster has consoles of its own: by the upgrade they are known.
    let console = "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/console";
    let over = |path: &str| empty(get(path).header("connection", "upgrade").header("upgrade", "websocket"));
    assert_eq!(world.call(over(console)).await.status(), 403);
    assert!(world.up.seen().is_empty());
    for path in ["/api/v1/namespaces/x/pods/p/log?follow=1", "/api/v1/pods?watch=1"] {
        assert_ne!(world.call(over(path)).await.status(), 403, "{path}");
    }
    assert_eq!(world.up.seen().len(), 2, "what only listens may come so");
}

#[tokio::test]
async fn s28_redirects_are_relayed_and_never_answer_an_upgrade() {
    let world = world("");
    world.up.answers(|_| {
        Ok(Response::builder().status(302).header("location", "http://169.254.169.254/").body(body::empty()).unwrap())
    });
    let response = world.call(empty(get("/api"))).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["location"].to_str().unwrap()),
        (302, "http://169.254.169.254/")
    );
    let upgrade = get("/api/v1/namespaces/x/pods/p/exec").header("connection", "upgrade").header("upgrade", "SPDY/3.1");
    assert_eq!(world.call(empty(upgrade)).await.status(), 502);
    assert_eq!(world.up.seen().len(), 2);
}

#[tokio::test]
async fn s29_s31_s33_what_is_no_upgrade_closes() {
    let world = world("");
    world.up.answers(|_| Ok(crate::status::status_response(StatusCode::FORBIDDEN, "no exec for you")));
    let upgrade = get("/api/v1/namespaces/x/pods/p/exec").header("connection", "upgrade").header("upgrade", "SPDY/3.1");
    let response = world.call(empty(upgrade)).await;
    assert_eq!((response.status().as_u16(), response.headers()["connection"].to_str().unwrap()), (403, "close"));
    assert!(text(response).await.contains("no exec for you"), "the cluster's own answer");
    let h2c = get("/api")
        .header("connection", "Upgrade, HTTP2-Settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABk");
    assert_eq!(world.call(empty(h2c)).await.status(), 400);
    let connect = Request::builder().method("CONNECT").uri("/k8s/clusters/a/x");
    assert_eq!(world.call(empty(connect)).await.status(), 405);
    let ended: Vec<u16> = world.ended().into_iter().map(|(code, _)| code).collect();
    assert_eq!(ended, [403, 400, 405]);
    assert_eq!(world.up.seen().len(), 1);
}

#[tokio::test]
async fn an_upgrade_joins_client_and_cluster() {
    let world = world("");
    let (server, upstream) = duplex(4096);
    let upstream = Mutex::new(Some(upstream));
    world.up.answers(move |request| {
        assert!(request.extensions().get::<WantsUpgrade>().is_some());
        let mut response = Response::builder().status(101).header("upgrade", "SPDY/3.1").body(body::empty()).unwrap();
        response.extensions_mut().insert(UpgradedIo::new(upstream.lock().unwrap().take().unwrap()));
        Ok(response)
    });
    // A real hyper in front, behind the guard, as the hub has it.
    let (mut client, front) = duplex(4096);
    let world = Arc::new(world);
    let service = {
        let world = world.clone();
        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let world = world.clone();
            async move { Ok::<_, std::convert::Infallible>(world.call(request.map(body::from)).await) }
        })
    };
    let front = TokioIo::new(crate::guard::Guarded::new(front));
    let front =
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(front, service).with_upgrades());
    let request = "POST /k8s/clusters/a/api/v1/namespaces/x/pods/p/exec HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\nls\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut server = server;
    let mut heard = [0; 3];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ls\n");
    server.write_all(b"a b c").await.unwrap();
    server.shutdown().await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\na b c"), "{answer}");
    front.await.unwrap().unwrap();
    world.proxy.tasks.close();
    world.proxy.tasks.wait().await;
    assert_eq!(world.ended(), [(101, "complete".to_owned())]);
    let events = world.log.events.lock().unwrap();
    assert_eq!((events[0].stage, events[0].verb.as_str()), (Stage::ResponseStarted, "create"));
    assert_eq!(
        (
            events[1].annotations["moorline.dev/bytes-in"].as_str(),
            events[1].annotations["moorline.dev/bytes-out"].as_str()
        ),
        ("3", "5")
    );
}

#[tokio::test]
async fn causes_have_statuses() {
    let world = world("");
    let cluster = || "a".to_owned();
    for (error, code, retry, dials) in [
        (DialError::NotConnected { cluster: cluster(), since: Some("2026-01-01T00:00:00Z".into()) }, 503, Some("1"), 1),
        (DialError::Timeout, 504, None, 1),
        (
            DialError::Refused(Refusal { code: RefuseCode::Policy, message: "policy".into(), retry_elsewhere: false }),
            403,
            None,
            1,
        ),
        (
            DialError::Refused(Refusal { code: RefuseCode::Unreachable, message: "x".into(), retry_elsewhere: false }),
            502,
            None,
            1,
        ),
    ] {
        world.hub.dials.store(0, Ordering::Relaxed);
        world.hub.fail.lock().unwrap().push(error);
        let response = world.call(empty(get("/api"))).await;
        assert_eq!(response.status(), code);
        assert_eq!(response.headers().get("retry-after").map(|v| v.to_str().unwrap()), retry);
        assert!(text(response).await.contains("(trace "));
        assert_eq!(world.hub.dials.load(Ordering::Relaxed), dials);
    }
    // One that may be tried elsewhere is tried twice more.
    world.hub.fail.lock().unwrap().push(DialError::Busy { cluster: cluster() });
    assert_eq!(world.call(empty(get("/api"))).await.status(), 200);
    world.hub.fail.lock().unwrap().extend([DialError::Lost, DialError::Lost, DialError::Lost]);
    assert_eq!(world.call(empty(get("/api"))).await.status(), 503);
}

#[tokio::test]
async fn f40_f46_an_unreachable_api_server_has_statuses_of_its_own() {
    let world = world("");
    world.up.answers(|_| Err(UpstreamError::Unreachable("refused".into())));
    assert_eq!(world.call(empty(get("/api"))).await.status(), 502);
    world.up.answers(|_| Err(UpstreamError::Timeout));
    assert_eq!(world.call(empty(get("/api"))).await.status(), 504);
    world.up.answers(|_| Ok(Response::builder().status(500).body(body::full("{}")).unwrap()));
    assert_eq!(world.call(empty(get("/api"))).await.status(), 500);
}

#[tokio::test]
async fn f04_a_session_lost_under_an_answer_is_an_error() {
    let world = world("");
    world.up.answers(|_| {
        let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"half")))]);
        let never = futures_util::stream::pending();
        Ok(Response::new(Body::new(http_body_util::StreamBody::new(futures_util::StreamExt::chain(first, never)))))
    });
    let mut body = world.call(empty(get("/api/v1/pods?watch=1"))).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    world.agent.close(moorline_proto::code::CloseCode::Internal, "gone");
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(world.ended(), [(200, "lost".to_owned())]);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_call_upstream() {
    let world = world("");
    world
        .up
        .answers(|_| Ok(Response::new(Body::new(http_body_util::StreamBody::new(futures_util::stream::pending())))));
    let response = world.call(empty(get("/api/v1/pods?watch=1"))).await;
    drop(response);
    world.up.dropped.notified().await;
    assert_eq!(world.ended(), [(200, "cancelled".to_owned())]);
}

#[tokio::test]
async fn f49_a_full_audit_log_refuses_before_anything_is_dialled() {
    let world = world("");
    world.log.full.store(true, Ordering::Relaxed);
    assert_eq!(world.call(empty(get("/api"))).await.status(), 503);
    assert_eq!(world.hub.dials.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn s71_labels_are_of_fixed_sets() {
    let world = world("");
    let clients = std::env::var("MOORLINE_S71").map_or(50, |many| many.parse::<usize>().unwrap());
    for n in 0..clients {
        let request = Request::builder()
            .method(format!("VERB{n}").as_str())
            .uri(format!("/k8s/clusters/a/p{n}"))
            .header("user-agent", n);
        world.call(empty(request)).await;
    }
    let series: usize = world.registry.gather().iter().map(|family| family.get_metric().len()).sum();
    assert!(series < 12, "{series}");
}

#[test]
fn only_a_valid_traceparent_is_kept() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let of = |value: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert("traceparent", value.parse().unwrap());
        Trace::of(&headers)
    };
    assert_eq!((of(good).parent.as_str(), of(good).id.as_str()), (good, &good[3..35]));
    for bad in [
        "",
        "x",
        &good.to_uppercase(),
        &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
        &format!("{good}-x"),
        &good.replace("00-", "ff-"),
    ] {
        let made = of(bad);
        assert!(made.parent != bad && made.parent.len() == 55, "{bad}");
    }
}

mod recording;
