//! A whole agent: joins, dials, comes back, goes away.

use crate::{
    hub::{self, Hub},
    pki::Authority,
    recorder::{Recorder, kubeconfig},
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use moorline_agent::{
    AgentError, Config, Preference,
    join::{JoinError, Proof},
    state::StateDir,
};
use moorline_link::Session;
use moorline_proto::header::{Class, Principal, StreamHeader, Target};
use moorline_proxy::{body, wire};
use prometheus::Registry;
use std::{path::Path, sync::atomic::Ordering, time::Duration};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

const SOON: Duration = Duration::from_secs(10);

pub struct Site {
    pub dir: tempfile::TempDir,
    authority: Authority,
    recorder: Recorder,
}

impl Site {
    pub async fn new() -> Self {
        let authority = Authority::new();
        let recorder = Recorder::start(&authority, &[b"h2"], None).await;
        Self { dir: tempfile::tempdir().unwrap(), authority, recorder }
    }

    pub fn config(&self, hub: &Hub, token: Option<String>) -> Config {
        Config {
            hub: hub.address(),
            token,
            tokens: None,
            name: Some("a1".parse().unwrap()),
            cluster: None,
            role: moorline_agent::AgentRole::Cluster,
            node_name: None,
            node: moorline_agent::node::Settings::default(),
            shell_root: "/".into(),
            state_dir: self.state(),
            upstream: kubeconfig(self.dir.path(), &self.authority, self.recorder.addr),
            policy_file: None,
            imports_address: None,
            carrier: Preference::Tls,
            state_secret: None,
            endpoint: None,
            http_addr: None,
        }
    }

    pub fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }
}

pub struct Agent {
    stop: CancellationToken,
    task: AbortOnDropHandle<Result<(), AgentError>>,
}

pub fn start(config: Config) -> Agent {
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let stop = stop.clone();
        async move { moorline_agent::run(config, stop, &Registry::new()).await }
    });
    Agent { stop, task: AbortOnDropHandle::new(task) }
}

impl Agent {
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.expect("an end in time").unwrap().unwrap();
    }
    async fn fails(self) -> AgentError {
        timeout(SOON, self.task).await.expect("an end in time").unwrap().unwrap_err()
    }
}

pub async fn kube(session: &Session, path: &str) -> http::Response<moorline_proxy::Body> {
    let principal = Some(Principal { user: "alice".into(), ..Principal::default() });
    let header =
        StreamHeader { target: Target::Kube, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal };
    let stream = session.open(&header).await.unwrap();
    wire::request(stream, Request::get(path).body(body::empty()).unwrap()).await.unwrap()
}

pub fn chain(state: &Path) -> Vec<u8> {
    let state = StateDir::open(state).unwrap();
    let membership = state.membership(&state.key().unwrap()).unwrap().unwrap();
    membership.chain[0].to_vec()
}

#[tokio::test]
async fn joins_once_serves_and_needs_no_token_again() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let agent = start(site.config(&hub, Some(hub.token())));
    let session = hub.session().await;
    assert_eq!(session.peer().to_string(), "spiffe://example/cluster/edge1/agent/a1");
    let facts = &session.hello().unwrap().facts;
    assert!(facts.contains(&("kubernetesVersion".into(), "v1.34.1".into())), "{facts:?}");
    assert_eq!(kube(&session, "/x").await.status(), StatusCode::OK);
    agent.stop().await;
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1);

    // Without a token, and with one that has done its work: the state is enough.
    for token in [None, Some(hub.token())] {
        let agent = start(site.config(&hub, token));
        assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
        agent.stop().await;
    }
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1, "it joined once");
}

/// A pod's folder goes with it: the next one finds itself in the Secret, with neither token nor join.
#[tokio::test]
async fn the_state_survives_its_folder_in_a_secret() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let secret = "/api/v1/namespaces/moorline/secrets/state";
    let config = |token: Option<String>| {
        let _ = std::fs::remove_dir_all(site.state());
        Config { state_secret: Some("moorline/state".parse().unwrap()), ..site.config(&hub, token) }
    };
    let error = start(config(Some(hub.token()))).fails().await;
    assert!(error.to_string().contains("Secret moorline/state does not exist"), "{error}");
    assert_eq!(
        hub.shared.requests.load(Ordering::SeqCst),
        0,
        "no token is spent before there is a place for the state"
    );

    site.recorder.log.objects.lock().unwrap().insert(secret.to_owned(), serde_json::json!({ "data": {} }));
    let agent = start(config(Some(hub.token())));
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    agent.stop().await;
    let mine = chain(&site.state());

    let agent = start(config(None));
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    agent.stop().await;
    assert_eq!(chain(&site.state()), mine);
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1, "it joined once");
}

#[tokio::test]
async fn without_state_and_token_it_says_what_to_do() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let error = start(site.config(&hub, None)).fails().await;
    assert!(matches!(error, AgentError::NotJoined { .. }) && error.to_string().contains("moorline token"));
}

#[tokio::test]
async fn s67_another_hub_gets_no_token() {
    let hub = Hub::start().await;
    let pin = Authority::new().pin();
    let other = moorline_authz::token::TokenText::generate_join(pin).reveal().to_string();
    let key = rcgen::KeyPair::generate().unwrap();
    let name = "a1".parse().unwrap();
    for (proof, role) in [
        (Proof::Token(other), moorline_agent::AgentRole::Cluster),
        (Proof::Account { token: "of a pod".to_owned(), pin }, moorline_agent::AgentRole::Node),
    ] {
        let joined = moorline_agent::join::join(&hub.address(), &proof, &key, (&name, role), None).await;
        let error = joined.unwrap_err();
        assert!(matches!(error, JoinError::NotTheHub { .. }) && error.is_retryable(), "{error}");
    }
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn s16_s17_refused_tokens_end_the_agent_with_advice() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    for (status, words) in
        [(StatusCode::UNAUTHORIZED, "moorline token create"), (StatusCode::FORBIDDEN, "said the hub")]
    {
        *hub.shared.join_status.lock().unwrap() = status;
        let error = start(site.config(&hub, Some(hub.token()))).fails().await.to_string();
        assert!(error.contains(words), "{error}");
    }
    *hub.shared.join_status.lock().unwrap() = StatusCode::OK;
    let config = Config { cluster: Some("edge2".parse().unwrap()), ..site.config(&hub, Some(hub.token())) };
    assert!(matches!(start(config).fails().await, AgentError::Join(JoinError::Answer(_))));
    assert!(!site.state().join("agent.json").exists(), "nothing was kept");
}

#[tokio::test]
async fn f01_a_hub_that_was_killed_is_found_again() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let agent = start(site.config(&hub, Some(hub.token())));
    let session = hub.session().await;
    let watch = kube(&session, "/watch").await;
    let mut watching = site.recorder.log.watching.subscribe();
    timeout(SOON, watching.wait_for(|n| *n == 1)).await.unwrap().unwrap();
    session.close(moorline_proto::code::CloseCode::Internal, "killed");
    drop(session);
    let hub = hub.restart().await;
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    timeout(SOON, watching.wait_for(|n| *n == 0)).await.unwrap().unwrap();
    drop(watch);
    agent.stop().await;
}

#[tokio::test]
async fn f03_a_draining_hub_gets_a_new_session_before_the_old_one_ends() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let agent = start(site.config(&hub, Some(hub.token())));
    let old = hub.session().await;
    let mut watch = kube(&old, "/watch").await.into_body();
    assert!(watch.frame().await.unwrap().is_ok());
    old.drain(Duration::from_secs(60));
    let new = hub.session().await;
    assert_eq!(kube(&new, "/x").await.status(), StatusCode::OK);
    assert_eq!(old.open_streams(), 1, "the watch is still served");
    drop(watch);
    timeout(SOON, old.closed()).await.expect("the old session ends with its last stream");
    agent.stop().await;
}

#[tokio::test]
async fn a_stopped_agent_lets_its_streams_end() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let agent = start(site.config(&hub, Some(hub.token())));
    let session = hub.session().await;
    let mut watch = kube(&session, "/watch").await.into_body();
    assert!(watch.frame().await.unwrap().is_ok());
    agent.stop.cancel();
    timeout(SOON, session.peer_draining()).await.expect("the hub is told");
    assert!(!agent.task.is_finished());
    drop(watch);
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_past_two_thirds_of_its_life_is_renewed_and_shown() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let state = StateDir::open(&site.state()).unwrap();
    let key = state.key().unwrap();
    state.keep("hub", &hub.shared.authority.old_member(&key)).unwrap();
    let before = chain(&site.state());
    let agent = start(site.config(&hub, None));
    let old = hub.session().await;
    timeout(SOON, hub::renew(&old, &hub.shared.authority)).await.expect("a request in time");
    let new = hub.session().await;
    assert_ne!(chain(&site.state()), before);
    assert_eq!(kube(&new, "/x").await.status(), StatusCode::OK);
    assert_eq!(kube(&old, "/x").await.status(), StatusCode::OK, "until the hub drains it");
    old.drain(Duration::from_secs(5));
    timeout(SOON, old.closed()).await.unwrap();
    agent.stop().await;
}

/// Somebody empties the folder under a running agent: the next renewal makes it whole, and the next start needs no token.
#[tokio::test]
async fn p16_a_folder_that_was_wiped_is_whole_again_with_the_next_renewal() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let state = StateDir::open(&site.state()).unwrap();
    let key = state.key().unwrap();
    state.keep("hub", &hub.shared.authority.old_member(&key)).unwrap();
    let agent = start(site.config(&hub, None));
    let old = hub.session().await;
    std::fs::remove_dir_all(site.state()).unwrap();
    timeout(SOON, hub::renew(&old, &hub.shared.authority)).await.expect("a request in time");
    let _new = hub.session().await;
    old.drain(Duration::ZERO);
    agent.stop().await;

    let agent = start(site.config(&hub, None));
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 0, "it joined nowhere");
    agent.stop().await;
}

/// Where nothing can be kept any more, an agent whose time is nearly over goes on with what it was given.
#[tokio::test]
async fn p16_what_cannot_be_kept_is_used_before_the_way_in_is_lost() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let state = StateDir::open(&site.state()).unwrap();
    let key = state.key().unwrap();
    let soon = std::time::SystemTime::now() + Duration::from_secs(600);
    let member = hub.shared.authority.member_until(&key, moorline_agent::AgentRole::Cluster, soon);
    state.keep("hub", &member).unwrap();
    let agent = start(site.config(&hub, None));
    let old = hub.session().await;
    // A file where the folder was: nobody can write there, not even root.
    std::fs::remove_dir_all(site.state()).unwrap();
    std::fs::write(site.state(), "").unwrap();
    timeout(SOON, hub::renew(&old, &hub.shared.authority)).await.expect("a request in time");
    let new = hub.session().await;
    assert_eq!(kube(&new, "/x").await.status(), StatusCode::OK);
    old.drain(Duration::ZERO);
    agent.stop().await;
}
