//! Nodes that are lost: one of those that stand by, and the one that the cluster's agent is on.

use crate::faults::{ms, secs};
use moorline_e2e::process::Process;
use moorline_netsim::{LONG, across::Across};
use tokio::time::{sleep, timeout};

/// Sessions of node agents at the hub: its default of `--standby-nodes`.
const STANDBY: f64 = 3.0;
/// A parked agent asks again within a minute.
const ASKS: u64 = 60;
/// A lost cluster agent is replaced within this, where its connection ended with it; and where nothing says that it is gone.
const KILLED: u64 = 3;
const SILENT: u64 = 10;

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

/// The cluster agent's node is lost with the node agent on it, by a crash or silently: the hub goes over another node's.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_agent_that_is_lost_with_its_node_is_replaced_by_another_nodes_agent() {
    for (signal, within) in [(libc::SIGKILL, KILLED), (libc::SIGSTOP, SILENT)] {
        let scene = Across::on("tls").await.unwrap();
        let here = scene.node("n1", "tls", "{}", &[]).await.unwrap();
        let _there = scene.node("n2", "tls", "{}", &[]).await.unwrap();
        scene.request().await.unwrap();
        assert_eq!(scene.hub_metric("moorline_hub_fallback_streams_total", &[]).await.unwrap(), 0.0);

        here.signal(signal);
        scene.agent.signal(signal);
        let took = scene.answers_within(secs(within)).await.unwrap();
        println!("signal {signal}: answered {took:?} after the loss");
        // From here on each is answered, whichever of the node agents was tried first.
        for _ in 0..20 {
            scene.request().await.unwrap();
        }
        assert!(scene.hub_metric("moorline_hub_fallback_streams_total", &[]).await.unwrap() > 20.0);
        let gone = |name| {
            let scene = &scene;
            async move { scene.has_agent(name, ms(0)).await.is_err() }
        };
        if signal == libc::SIGKILL {
            assert!(gone("n1").await && gone("a1").await && !gone("n2").await);
        }
        here.signal(libc::SIGKILL);
    }
}
