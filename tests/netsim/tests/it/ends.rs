//! What happens at the ends of a path: agents that follow each other, readers that give up, names that move.

use crate::faults::{each, follow, ms, secs};
use moorline_e2e::process::Process;
use moorline_netsim::{across::Across, client::Admin, ended};
use std::{fs, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// Requests, one after the other, until told to stop: how many there were. The first that fails ends it.
pub(crate) fn asking(admin: &Admin) -> (watch::Sender<bool>, JoinHandle<anyhow::Result<usize>>) {
    let (stop, stopped) = watch::channel(false);
    let admin = admin.clone();
    let task = tokio::spawn(async move {
        let mut count = 0;
        while !*stopped.borrow() {
            admin.echo(&format!("request {count}")).await?;
            count += 1;
        }
        Ok(count)
    });
    (stop, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_an_agent_that_drains_beside_another_loses_nothing() {
    each(|carrier| async move {
        let mut scene = Across::on(carrier).await.unwrap();
        let host = scene.link.subnet.host(1).to_string();
        let asking: Vec<_> = (0..4).map(|_| asking(&scene.admin)).collect();
        let _second = scene.one_more("a2", carrier, &host, None).await.unwrap();
        scene.has_agent("a2", secs(20)).await.unwrap();
        scene.agent.signal(libc::SIGTERM);
        ended(&mut scene.agent, secs(35)).await.unwrap();
        // Only the second is there: what is opened now is on it, and a third that comes and goes is none of its business.
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        let mut third = scene.one_more("a3", carrier, &host, None).await.unwrap();
        scene.has_agent("a3", secs(20)).await.unwrap();
        follow(&mut watch, &mut next, secs(1)).await;
        third.signal(libc::SIGTERM);
        ended(&mut third, secs(35)).await.unwrap();
        let stall = follow(&mut watch, &mut next, secs(2)).await;
        assert!(stall < secs(5), "{carrier}: the watch stood still for {stall:?}");
        let mut all = 0;
        for (stop, task) in asking {
            // One whose request failed has ended already, and says why.
            let _ = stop.send(true);
            all += task.await.unwrap().unwrap_or_else(|error| panic!("{carrier}: a request was lost: {error:#}"));
        }
        assert!(20 < all, "{carrier}: only {all} requests");
        println!("{carrier}: {all} requests while agents came and went, none lost");
    })
    .await;
}

/// Memory that a process holds, in KiB.
fn resident(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The hub's half of it is the stream's window and what the agent's side has read ahead; whole, and again.
const HELD: u64 = 4 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn f21_a_reader_that_stops_holds_its_own_stream_only() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        // What buffers have to grow to anyway is not the reader's.
        scene.admin.fetch(8 << 20).await.unwrap();
        let before = (resident(&scene.hub), resident(&scene.agent));
        let stopped = scene.admin.with_little_room().begin(&format!("/bytes/{}", 1u64 << 30)).await.unwrap();
        for _ in 0..40 {
            assert!(scene.request().await.unwrap() < secs(5), "{carrier}: others are held up");
            sleep(ms(50)).await;
        }
        let more = (resident(&scene.hub).saturating_sub(before.0), resident(&scene.agent).saturating_sub(before.1));
        assert!(more.0 <= HELD && more.1 <= HELD, "{carrier}: hub and agent hold {more:?} KiB more");
        drop(stopped);
        scene.admin.fetch(8 << 20).await.unwrap();
        println!("{carrier}: hub and agent held {more:?} KiB for it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f25_a_name_that_is_found_later_and_elsewhere_is_looked_up_anew() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        let names = scene.dir().join("hosts");
        fs::write(&names, "").unwrap();
        let agent = scene.one_more("a2", carrier, "hub.moorline.test", Some(&names)).await.unwrap();
        // Each attempt that fails names the hub.
        let attempts = || agent.log().matches("hub.moorline.test").count();
        let two_more = || async {
            let before = attempts();
            let tried = async {
                while attempts() < before + 2 {
                    sleep(ms(50)).await;
                }
            };
            tokio::time::timeout(secs(30), tried).await.unwrap_or_else(|_| panic!("{}", agent.log()));
        };
        two_more().await;
        // An address where nobody is, and then the right one. In place: the agent sees this very file.
        fs::write(&names, "192.0.2.1 hub.moorline.test\n").unwrap();
        two_more().await;
        fs::write(&names, format!("{} hub.moorline.test\n", scene.link.subnet.host(1))).unwrap();
        let back = scene.has_agent("a2", Duration::from_secs(30)).await.unwrap();
        println!("{carrier}: there {back:?} after its name was");
    })
    .await;
}
