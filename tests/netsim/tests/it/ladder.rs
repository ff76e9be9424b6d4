//! An agent moves from carrier to carrier, and nobody who uses it notices.

use moorline_agent::Preference;
use moorline_link::HubAddress;
use moorline_netsim::{
    client::Watch,
    gate::Gate,
    middle::Middle,
    site::Site,
    world::{GRACE, World},
};
use std::time::{Duration, Instant};

fn at(port: u16) -> HubAddress {
    HubAddress { host: "127.0.0.1".into(), port }
}

/// Reads on for `long`, and misses no tick. What waits to be read is read at once.
async fn read_on(watch: &mut Watch, next: &mut u32, long: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < long {
        let tick = watch.next("tick ").await.unwrap();
        assert_eq!(tick, Some(next.to_string()), "the stream was cut, or a tick is missing");
        *next += 1;
    }
}

/// Waits until the hub tells this of why the agent is on no better carrier than the one that serves.
async fn told_why(world: &World, is_so: impl Fn(Option<&str>) -> bool) {
    let told = async {
        loop {
            let link = world.admin.look("clusters/edge1/link").await.unwrap();
            let sessions = link["sessions"].as_array().unwrap();
            let serving: Vec<_> = sessions.iter().filter(|session| session["draining"] == false).collect();
            if !serving.is_empty() && serving.iter().all(|session| is_so(session["why"].as_str())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f15_f16_udp_closed_opened_and_closed_again() {
    let world = World::start().await.unwrap();
    let gate = Gate::start(world.port()).await.unwrap();
    let site = Site::start(&world, "a2", at(gate.port), Preference::Auto).await.unwrap();
    let took = site.moves_to("tls").await.unwrap();
    assert!(took < Duration::from_secs(20), "without UDP it took {took:?}");
    told_why(&world, |why| why.is_some_and(|why| why.starts_with("quic: "))).await;
    let (mut early, mut ticks) = (world.admin.watch("/ticks").await.unwrap(), 0);
    read_on(&mut early, &mut ticks, Duration::from_secs(1)).await;

    gate.udp(true);
    site.moves_to("quic").await.unwrap();
    told_why(&world, |why| why.is_none()).await;
    // The hub drains the session on TLS now; what runs there is not cut at the end of its grace.
    read_on(&mut early, &mut ticks, GRACE + Duration::from_secs(2)).await;
    let (mut late, mut of_late) = (world.admin.watch("/ticks").await.unwrap(), 0);
    read_on(&mut late, &mut of_late, Duration::from_secs(1)).await;

    gate.udp(false);
    let took = site.moves_to("tls").await.unwrap();
    assert!(took < Duration::from_secs(20), "back from QUIC it took {took:?}");
    assert_eq!(world.admin.ask("GET", "/k8s/clusters/edge1/version", "").await.unwrap().0, 200);
    read_on(&mut early, &mut ticks, Duration::from_secs(1)).await;
    // What was on QUIC ends where everybody sees it, and does not hang.
    while late.next("tick ").await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_that_ends_tls_the_websocket_is_found() {
    let world = World::start().await.unwrap();
    let direct = Site::start(&world, "a3", at(world.port()), Preference::Tls).await.unwrap();
    direct.moves_to("tls").await.unwrap();
    drop(direct); // it has joined
    let nginx = Middle::nginx(world.dir(), world.port(), 60).await.unwrap();
    let site = Site::again(&world, "a3", at(nginx.port), Preference::Auto).await.unwrap();
    let took = site.moves_to("websocket").await.unwrap();
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    told_why(&world, |why| why.is_some_and(|why| why.contains("quic: ") && why.contains("tls: "))).await;
}
