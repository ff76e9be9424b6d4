//! The WebSocket carrier and CONNECT, through what Debian has.

use moorline_link::{Carrier, DialError, HttpProxy, HubAddress, Limits};
use moorline_netsim::{
    LONG,
    middle::Middle,
    recorder::{Record, Recorder},
    world::World,
};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Seconds after which a proxy ends what is idle.
const IDLE: u32 = 6;
/// The tunnel's probes in these scenes: as far below [`IDLE`] as 5 s are below the 30 s that such proxies come with.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

fn at(port: u16) -> HubAddress {
    HubAddress { host: "localhost".into(), port }
}

fn limits() -> Limits {
    Limits { keep_alive: KEEP_ALIVE, ..Limits::default() }
}

/// A session over `carrier` works in both directions, and outlives the idle time-out of the path by far.
async fn serves(world: &World, at: &HubAddress, carrier: Carrier, proxy: Option<&HttpProxy>) {
    let agent = timeout(LONG, world.dial(at, carrier, proxy, &limits())).await.unwrap().unwrap();
    assert_eq!(agent.session.carrier(), carrier);
    world.admin.fetch(4 << 20).await.unwrap();
    world.admin.echo(&"x".repeat(1 << 20)).await.unwrap();
    let idle = sleep(Duration::from_secs(u64::from(IDLE) * 2 + 1));
    let cut = tokio::select! {
        () = idle => None,
        reason = agent.session.closed() => Some(reason),
    };
    assert_eq!(cut, None);
    world.admin.fetch(10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_goes_through_nginx_that_ends_tls() {
    let world = World::start().await.unwrap();
    let nginx = Middle::nginx(world.dir(), world.port(), IDLE).await.unwrap();
    // The certificate on the way is nobody's: the tunnel itself is refused by its own rules.
    let tls = world.dial(&at(nginx.port), Carrier::Tls, None, &limits()).await.err().unwrap();
    assert!(matches!(tls, DialError::Tls { .. } | DialError::Protocol { .. } | DialError::Lost { .. }), "{tls}");
    serves(&world, &at(nginx.port), Carrier::WebSocket, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_goes_through_haproxy_that_ends_tls() {
    let world = World::start().await.unwrap();
    let haproxy = Middle::haproxy(world.dir(), world.port(), IDLE).await.unwrap();
    serves(&world, &at(haproxy.port), Carrier::WebSocket, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_the_way_that_ends_is_noticed_at_once() {
    let world = World::start().await.unwrap();
    let nginx = Middle::nginx(world.dir(), world.port(), IDLE).await.unwrap();
    let agent = world.dial(&at(nginx.port), Carrier::WebSocket, None, &Limits::default()).await.unwrap();
    drop(nginx);
    // Far below the 15 s of silence.
    timeout(Duration::from_secs(5), agent.session.closed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn squid_lets_both_carriers_through_for_whoever_has_the_password() {
    let world = World::start().await.unwrap();
    let squid = Middle::squid(world.dir()).await.unwrap();
    let hub = at(world.port());
    let named = |who: &str, no: &str| {
        HttpProxy::from_settings(&format!("http://{who}127.0.0.1:{}", squid.port), no, &hub).unwrap()
    };
    let good = named("agent:s3cret@", "");
    for carrier in [Carrier::Tls, Carrier::WebSocket] {
        for (who, words) in [("agent:wrong@", "does not accept"), ("", "asks for a user name")] {
            let error = world.dial(&hub, carrier, named(who, "").as_ref(), &limits()).await.err().unwrap();
            assert!(matches!(&error, DialError::Proxy { cause, .. } if cause.contains(words)), "{error}");
            assert!(!error.to_string().contains("wrong"), "the password is in {error}");
        }
        serves(&world, &hub, carrier, good.as_ref()).await;
    }
    assert!(squid.log("access.log").contains("TCP_TUNNEL/200"), "{}", squid.log("access.log"));
    assert_eq!(named("agent:wrong@", "localhost"), None, "NO_PROXY exempts the hub");
}

#[tokio::test(flavor = "multi_thread")]
async fn squid_and_nginx_in_a_row() {
    let world = World::start().await.unwrap();
    let squid = Middle::squid(world.dir()).await.unwrap();
    let nginx = Middle::nginx(world.dir(), world.port(), IDLE).await.unwrap();
    let hub = at(nginx.port);
    let proxy = HttpProxy::from_settings(&format!("http://agent:s3cret@127.0.0.1:{}", squid.port), "", &hub).unwrap();
    serves(&world, &hub, Carrier::WebSocket, proxy.as_ref()).await;
}

fn holds(record: &Record, text: &str) -> bool {
    let record = record.lock().unwrap();
    record.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Who inspects TLS sees the WebSocket, and in it only TLS that he cannot read.
#[tokio::test(flavor = "multi_thread")]
async fn an_inspecting_proxy_sees_ciphertext() {
    let world = World::start().await.unwrap();
    let inspector = Recorder::start(world.port(), world.admin.client().unwrap()).await.unwrap();
    let _agent = world.dial(&at(inspector.port), Carrier::WebSocket, None, &limits()).await.unwrap();
    let secret = "nobody on the way may read this ".repeat(100);
    world.admin.echo(&secret).await.unwrap();
    assert!(holds(&inspector.up, "GET /connect HTTP/1.1") && holds(&inspector.down, "HTTP/1.1 101"), "it reads along");
    for record in [&inspector.up, &inspector.down] {
        for text in ["nobody on the way", "spiffe://", "netsim/1", "/k8s/", "/echo"] {
            assert!(!holds(record, text), "{text:?} was read on the way");
        }
        assert!(secret.len() < record.lock().unwrap().len(), "the secret itself went by");
    }
}
