//! Agents whose certificate's time was over before the hub came back.

use crate::{
    hub::Hub,
    pki::{Authority, own_address},
    run::{Site, chain, kube, start},
};
use http::StatusCode;
use moorline_agent::{AgentRole, Config, node::AccountJoin, rejoin::TokenSource, state::StateDir};
use moorline_authz::token::TokenText;
use prometheus::Registry;
use std::{
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

/// Guards against a hang, no more.
const LONG: Duration = Duration::from_secs(30);

/// The state of an agent whose certificate ends then.
fn keep(dir: &Path, authority: &Authority, role: AgentRole, until: SystemTime) {
    let state = StateDir::open(dir).unwrap();
    state.keep("hub", &authority.member_until(&state.key().unwrap(), role, until)).unwrap();
}

/// A node agent that joins by its pod's service account.
fn by_account(site: &Site, config: Config, pin: [u8; 32]) -> Config {
    let token_file = site.dir.path().join("account");
    std::fs::write(&token_file, "of this pod\n").unwrap();
    let mut config = Config { role: AgentRole::Node, cluster: Some("edge1".parse().unwrap()), ..config };
    config.node.join = Some(AccountJoin { token_file, hub_pin: pin });
    config
}

/// An agent beside its hub, which gets tokens as it needs them.
fn by_tokens(hub: &Hub, config: Config) -> Config {
    let token = hub.token();
    Config { tokens: Some(TokenSource::new(move || std::future::ready(Ok(token.clone())))), ..config }
}

/// Whichever of these fits the role.
fn by_proof(site: &Site, config: Config, role: AgentRole, hub: &Hub) -> Config {
    match role {
        AgentRole::Node => by_account(site, config, hub.shared.authority.pin()),
        AgentRole::Cluster => by_tokens(hub, config),
    }
}

#[tokio::test]
async fn an_identity_that_has_expired_is_replaced_by_a_proof_that_is_good_again() {
    for role in [AgentRole::Node, AgentRole::Cluster] {
        let (hub, site) = (Hub::start().await, Site::new().await);
        keep(&site.state(), &hub.shared.authority, role, SystemTime::now() - Duration::from_secs(3600));
        let (before, config) = (chain(&site.state()), site.config(&hub, None));
        let config = by_proof(&site, config, role, &hub);
        let agent = start(config);
        let session = hub.session().await;
        assert_ne!(chain(&site.state()), before, "{role}: kept for the next start");
        let asked = hub.shared.joins.lock().unwrap().clone();
        assert_eq!((asked.len(), &asked[0]["name"], &asked[0]["cluster"]), (1, &"a1".into(), &"edge1".into()));
        if role == AgentRole::Cluster {
            assert_eq!(kube(&session, "/x").await.status(), StatusCode::OK);
        } else {
            assert_eq!(asked[0]["account"], "of this pod");
        }
        agent.stop().await;
    }
}

/// The same for one that runs all the while: nobody starts it anew.
#[tokio::test]
async fn an_agent_that_outlived_its_certificate_while_the_hub_was_away_comes_back_by_itself() {
    for role in [AgentRole::Node, AgentRole::Cluster] {
        let (hub, site) = (Hub::start().await, Site::new().await);
        // Nobody is there but somebody who hangs up: once it was dialled the agent is past its start.
        let gate = TcpListener::bind(own_address()).await.unwrap();
        let addr = gate.local_addr().unwrap();
        let until = SystemTime::now() + Duration::from_secs(3);
        keep(&site.state(), &hub.shared.authority, role, until);
        let config = Config { hub: addr.to_string().parse().unwrap(), ..site.config(&hub, None) };
        let config = by_proof(&site, config, role, &hub);
        let agent = start(config);
        timeout(LONG, gate.accept()).await.expect("it dials").unwrap();
        drop(gate);
        // A certificate counts to the end of its last second.
        let left = until.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(1);
        tokio::time::sleep(left).await;
        let hub = hub.restart_at(addr).await;
        let session = hub.session().await;
        assert_eq!(session.peer().to_string().contains("/node/"), role == AgentRole::Node);
        assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1, "{role}: it joined once");
        agent.stop().await;
    }
}

/// A token is good once: a new one lets an expired agent in again, and an old one does not end it.
#[tokio::test]
async fn an_expired_agent_takes_a_new_token_and_goes_on_dialling_with_an_old_one() {
    let (hub, site) = (Hub::start().await, Site::new().await);
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    keep(&site.state(), &hub.shared.authority, AgentRole::Cluster, long_ago);
    *hub.shared.join_status.lock().unwrap() = StatusCode::UNAUTHORIZED;
    let (registry, stop) = (Registry::new(), CancellationToken::new());
    let run = moorline_agent::run(site.config(&hub, Some(hub.token())), stop.clone(), &registry);
    let dialled = async {
        let dials = || registry.gather().iter().any(|family| family.name() == "moorline_agent_dials_total");
        while !dials() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        ended = run => panic!("it ended: {ended:?}"),
        done = timeout(LONG, dialled) => done.expect("it dials with what it has"),
    }
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1, "it tried the token once");

    *hub.shared.join_status.lock().unwrap() = StatusCode::OK;
    let agent = start(site.config(&hub, Some(hub.token())));
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    agent.stop().await;
}

/// The hub has replaced its authority while the agent was away: what it pins is what its owner, or its hub, says now.
#[tokio::test]
async fn f26_an_agent_with_a_proof_that_is_good_again_joins_by_the_hubs_next_authority() {
    for role in [AgentRole::Node, AgentRole::Cluster] {
        let (hub, site) = (Hub::start().await, Site::new().await);
        keep(&site.state(), &Authority::new(), role, SystemTime::now() + Duration::from_secs(86_400));
        let config = site.config(&hub, None);
        let config = by_proof(&site, config, role, &hub);
        let agent = start(config);
        let session = hub.session().await;
        assert_eq!(session.peer().to_string().contains("/node/"), role == AgentRole::Node);
        assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 1, "{role}: it joined once");
        agent.stop().await;
    }
}

/// A token that stays in the configuration and pins what the hub has dropped since is not an order to go elsewhere.
#[tokio::test]
async fn f26_a_token_of_the_authority_before_has_done_its_work() {
    let (hub, site, before) = (Hub::start().await, Site::new().await, Authority::new());
    keep(&site.state(), &hub.shared.authority, AgentRole::Cluster, SystemTime::now() + Duration::from_secs(86_400));
    let state = StateDir::open(&site.state()).unwrap();
    state.forgo(&[before.der()], &[hub.shared.authority.der()]).unwrap();
    let token = TokenText::generate_join(before.pin()).reveal().to_string();
    let agent = start(site.config(&hub, Some(token)));
    assert_eq!(kube(&hub.session().await, "/x").await.status(), StatusCode::OK);
    assert_eq!(hub.shared.requests.load(Ordering::SeqCst), 0, "it went in as who it was");
    agent.stop().await;
}

/// Whoever has the key of an authority that was dropped may stand where the hub stood. Nobody shows him what joins.
#[tokio::test]
async fn f26_nobody_joins_by_an_authority_that_was_dropped() {
    let (soon, ago) = (SystemTime::now() + Duration::from_secs(86_400), SystemTime::now() - Duration::from_secs(60));
    for (role, until) in [(AgentRole::Node, soon), (AgentRole::Node, ago), (AgentRole::Cluster, ago)] {
        let (thief, site, hub) = (Hub::start().await, Site::new().await, Authority::new());
        keep(&site.state(), &hub, role, until);
        let state = StateDir::open(&site.state()).unwrap();
        state.forgo(&[thief.shared.authority.der()], &[hub.der()]).unwrap();
        drop(state);
        let config = match role {
            AgentRole::Node => by_account(&site, site.config(&thief, None), thief.shared.authority.pin()),
            AgentRole::Cluster => site.config(&thief, Some(thief.token())),
        };
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let run = moorline_agent::run(config, stop.clone(), &registry);
        let dialled = async {
            let dials = || {
                let all = registry.gather();
                let dials = all.iter().filter(|family| family.name() == "moorline_agent_dials_total");
                dials.flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum::<f64>()
            };
            // It thinks of another authority after some that failed for that.
            while dials() < 5.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            ended = run => panic!("{role}: it ended: {ended:?}"),
            done = timeout(LONG, dialled) => done.expect("it goes on dialling"),
        }
        assert_eq!(thief.shared.requests.load(Ordering::SeqCst), 0, "{role}: it was told what joins");
    }
}
