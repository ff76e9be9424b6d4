//! Nodes that are lost: one of those that stand by, and the one that the cluster's agent is on.

use crate::faults::{ms, secs};
use anyhow::Result;
use moorline_e2e::process::Process;
use moorline_netsim::{LONG, across::Across, client::Admin, emulator::Road};
use std::time::{Duration, Instant};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Sessions of node agents at the hub: its default of `--standby-nodes`.
const STANDBY: f64 = 3.0;
/// A parked agent asks again within a minute.
const ASKS: u64 = 60;
/// A lost cluster agent is replaced within this, where its connection ended with it; and where nothing says that it is gone.
const KILLED: u64 = 3;
pub const SILENT: u64 = 10;

async fn standing(scene: &Across) -> f64 {
    scene.hub_metric("moorline_hub_sessions_open", &["role=\"node\""]).await.unwrap()
}

/// A node agent that has joined, and is told to come again later.
async fn parked(scene: &Across, name: &str) -> Process {
    let node = scene.begin_node(name, "tls", "{}", &[]).await.unwrap();
    let told = async {
        while scene.admin.look(&format!("nodes/edge1.{name}")).await.is_err() {
            sleep(ms(100)).await;
        }
    };
    timeout(LONG, told).await.unwrap_or_else(|_| panic!("{name} did not come: {}", node.log()));
    node
}

/// Real agents: of five nodes three stand by. When one of these is lost, and then another, those that were parked come in
/// their place.
#[tokio::test(flavor = "multi_thread")]
async fn of_nodes_that_stand_by_each_that_is_lost_is_replaced() {
    let scene = Across::on("tls").await.unwrap();
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        nodes.push(scene.node(name, "tls", "{}", &[]).await.unwrap());
    }
    let waiting = [parked(&scene, "n4").await, parked(&scene, "n5").await];
    assert_eq!(standing(&scene).await, STANDBY);
    for left in (0..waiting.len()).rev() {
        let lost = nodes.remove(0);
        lost.signal(libc::SIGKILL);
        drop(lost);
        let refilled = async {
            loop {
                let mut come = 0;
                for name in ["n4", "n5"] {
                    come += usize::from(scene.has_agent(name, ms(0)).await.is_ok());
                }
                if come == waiting.len() - left && standing(&scene).await == STANDBY {
                    break;
                }
                sleep(ms(100)).await;
            }
        };
        let log = || waiting.each_ref().map(Process::log).join("\n");
        timeout(secs(ASKS), refilled).await.unwrap_or_else(|_| panic!("nobody has come: {}", log()));
    }

    // Who comes back finds enough of them.
    let back = scene.begin_node_by(&["env", "MOORLINE_LOG=debug"], "n1", "tls", "{}", &[]).await.unwrap();
    let asked = async {
        while !back.log().contains("needs no session of this node now") {
            sleep(ms(100)).await;
        }
    };
    timeout(LONG, asked).await.unwrap_or_else(|_| panic!("it was not parked: {}", back.log()));
    assert_eq!(standing(&scene).await, STANDBY);
    assert!(scene.has_agent("n1", ms(0)).await.is_err());
}

/// How a node is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    Killed,
    Frozen,
    /// Its network is: nothing passes, and nobody is told.
    Cut,
}

/// Clients at work: every second one writes, the others read. Each rests between two requests.
const CLIENTS: usize = 30;
const REST: Duration = Duration::from_millis(200);

/// One of them, until there is no more work: when each of its requests began, and what was wrong with it.
async fn works(admin: Admin, writes: bool, over: CancellationToken) -> Vec<(Instant, Result<()>)> {
    let mut all = Vec::new();
    while !over.is_cancelled() {
        let begun = Instant::now();
        all.push((begun, if writes { admin.echo("work").await } else { admin.fetch(10).await }));
        sleep(REST).await;
    }
    all
}

/// The cluster agent's node is lost with the node agent on it: the hub goes over another node's, and back when the network is.
/// No request fails that begins after the loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_agent_that_is_lost_with_its_node_is_replaced_by_another_nodes_agent() {
    for (loss, within) in [(Loss::Killed, KILLED), (Loss::Frozen, SILENT), (Loss::Cut, SILENT)] {
        let scene = Across::on("tls").await.unwrap();
        let elsewhere = scene.elsewhere().unwrap();
        let here = scene.node("n1", "tls", "{}", &[]).await.unwrap();
        let _there = scene.node_at(&elsewhere, "n2", "tls").await.unwrap();
        scene.request().await.unwrap();
        let taken = async || scene.hub_metric("moorline_hub_fallback_streams_total", &[]).await.unwrap();
        assert_eq!(taken().await, 0.0);
        let (over, mut clients) = (CancellationToken::new(), JoinSet::new());
        for n in 0..CLIENTS {
            clients.spawn(works(scene.admin.clone(), n % 2 == 0, over.clone()));
        }

        let signals = |signal| [&here, &scene.agent].map(|process| process.signal(signal));
        match loss {
            Loss::Killed => drop(signals(libc::SIGKILL)),
            Loss::Frozen => drop(signals(libc::SIGSTOP)),
            Loss::Cut => scene.link.becomes(Road::clear().cut()),
        }
        let lost = Instant::now();
        let took = scene.answers_within(secs(within)).await.unwrap();
        // From here on each is answered, whichever of the node agents was tried first.
        for _ in 0..20 {
            scene.request().await.unwrap();
        }
        assert!(taken().await > 20.0);
        let gone = async |name| scene.has_agent(name, ms(0)).await.is_err();
        if loss == Loss::Killed {
            assert!(gone("n1").await && gone("a1").await && !gone("n2").await);
        }
        if loss == Loss::Cut {
            let back = async {
                while !gone("a1").await {
                    sleep(ms(100)).await;
                }
                scene.link.becomes(Road::clear());
                scene.has_agent("a1", LONG).await.unwrap();
                // The node's agent takes no more of them.
                loop {
                    let before = taken().await;
                    for _ in 0..20 {
                        scene.request().await.unwrap();
                    }
                    if taken().await == before {
                        break;
                    }
                }
            };
            timeout(LONG, back).await.unwrap_or_else(|_| panic!("not back: {}", scene.agent.log()));
        }
        over.cancel();
        let since: Vec<_> =
            clients.join_all().await.into_iter().flatten().filter(|(begun, _)| lost <= *begun).collect();
        let failed: Vec<_> = since.iter().filter_map(|(_, was)| was.as_ref().err()).collect();
        assert!(failed.is_empty(), "{loss:?}: {} of {}: {failed:?}", failed.len(), since.len());
        println!("{loss:?}: answered {took:?} after the loss, as were {} requests of clients", since.len());
        here.signal(libc::SIGKILL);
    }
}
