//! The hub's authority is replaced under agents and users.

use crate::{
    ends::asking,
    faults::{each, follow, ms, secs},
};
use moorline_netsim::{LONG, across::Across, client::Admin, ended};
use std::time::Instant;
use tokio::time::sleep;

/// What the line about it says in an agent's log.
const ADVICE: &str = "replaced while this agent was away, join again with a new token";

/// Waits until `moorline hub ca status` says so.
async fn says(scene: &Across, what: &str) {
    let begin = Instant::now();
    loop {
        let said = scene.ca(&["status"]).unwrap();
        if said.contains(what) {
            return;
        }
        assert!(begin.elapsed() < LONG, "not {what:?} but:\n{said}");
        sleep(ms(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_the_authority_is_replaced_and_only_who_slept_through_it_joins_anew() {
    each(|carrier| async move {
        let mut scene = Across::on(carrier).await.unwrap();
        let token = scene.admin.join_token().await.unwrap();
        let host = scene.link.subnet.host(1).to_string();
        let mut sleeper = scene.one_more("a2", carrier, &host, None).await.unwrap();
        scene.has_agent("a2", LONG).await.unwrap();
        sleeper.signal(libc::SIGTERM);
        ended(&mut sleeper, secs(60)).await.unwrap();
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        follow(&mut watch, &mut next, secs(1)).await;

        // Who asks knows the old authority alone, then the new one alone.
        let old = asking(&scene.admin);
        let said = scene.ca(&["rotate"]).unwrap();
        assert!(said.contains("serving") && said.contains("next"), "{said}");
        says(&scene, "1 agents hold the new one, 1 do not\n  edge1.a2\n").await;
        let mut stall = follow(&mut watch, &mut next, secs(1)).await;
        let refused = scene.ca(&["retire"]).unwrap_err().to_string();
        assert!(refused.contains("edge1.a2") && refused.contains("--force"), "{refused}");
        let mut all = stopped(old, carrier).await;
        let mut admin: Admin = scene.admin.clone();
        admin.root = scene.authority("ca-next.crt").unwrap();
        let new = asking(&admin);
        stall = stall.max(follow(&mut watch, &mut next, secs(1)).await);
        let said = scene.ca(&["retire", "--force"]).unwrap();
        assert!(!said.contains("next "), "{said}");
        stall = stall.max(follow(&mut watch, &mut next, secs(2)).await);
        all += stopped(new, carrier).await;
        assert!(20 < all, "{carrier}: only {all} requests");
        assert!(stall < secs(5), "{carrier}: the watch stood still for {stall:?}");
        drop(watch);

        // The agent that was there comes back, though its configuration has a token still that pins what is gone.
        scene.admin = admin;
        scene.agent.signal(libc::SIGKILL);
        ended(&mut scene.agent, LONG).await.unwrap();
        scene.is_called_connected(false, secs(60)).await.unwrap();
        scene.agent = scene.again(("a1", "agent"), carrier, &token, "again.log").unwrap();
        scene.has_agent("a1", secs(60)).await.unwrap_or_else(|e| panic!("{e:#}: {}", scene.agent.log()));
        scene.answers_within(LONG).await.unwrap();

        // The one that slept is told what to do, and once that is done it is back.
        let sleeper = scene.again(("a2", "a2"), carrier, &token, "slept.log").unwrap();
        let begin = Instant::now();
        while !sleeper.log().contains(ADVICE) {
            assert!(begin.elapsed() < secs(60), "{carrier}: {}", sleeper.log());
            sleep(ms(100)).await;
        }
        assert!(scene.admin.look("agents/edge1.a2").await.unwrap()["status"]["carrier"].is_null());
        drop(sleeper);
        std::fs::remove_dir_all(scene.dir().join("a2")).unwrap();
        let _joined = scene.one_more("a3", carrier, &host, None).await.unwrap();
        scene.has_agent("a3", LONG).await.unwrap();
        println!("{carrier}: {all} requests and a watch over the whole rotation, longest pause {stall:?}");
    })
    .await;
}

type Asking = (tokio::sync::watch::Sender<bool>, tokio::task::JoinHandle<anyhow::Result<usize>>);

async fn stopped((stop, task): Asking, carrier: &str) -> usize {
    let _ = stop.send(true);
    task.await.unwrap().unwrap_or_else(|error| panic!("{carrier}: a request was lost: {error:#}"))
}
