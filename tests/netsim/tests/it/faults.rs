//! The real hub and agent across a network that fails: what users notice, and for how long.
//!
//! Each scene runs on its own link; `MOORLINE_SEED` replays its chances.

use moorline_netsim::{
    across::Across,
    client::Watch,
    emulator::{Link, Road, Way},
};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

pub const CARRIERS: [&str; 3] = ["quic", "tls", "websocket"];

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An ordinary way to a far cluster: 50 ms there and back.
fn far() -> Road {
    Road::clear().delay(ms(25))
}

/// Runs one scene on each carrier, all at once.
pub async fn each<F: Future<Output = ()> + Send + 'static>(scene: impl Fn(&'static str) -> F) {
    let mut scenes = tokio::task::JoinSet::new();
    for carrier in CARRIERS {
        let scene = scene(carrier);
        scenes.spawn(async move { (carrier, tokio::spawn(scene).await) });
    }
    let mut failed = Vec::new();
    while let Some(done) = scenes.join_next().await {
        let (carrier, outcome) = done.unwrap();
        if outcome.is_err() {
            failed.push(carrier);
        }
    }
    assert!(failed.is_empty(), "failed on {failed:?}");
}

/// The next ticks for `long`: none is missing, none comes twice, and the longest pause between two.
pub async fn follow(watch: &mut Watch, next: &mut u64, long: Duration) -> Duration {
    let (begin, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    while begin.elapsed() < long {
        let tick = watch.next("tick ").await.unwrap();
        assert_eq!(tick, Some(next.to_string()), "the stream was cut, or a tick is missing");
        *next += 1;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_a_path_that_dies_silently_is_noticed_and_replaced() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(far());
        scene.is_called_connected(true, secs(5)).await.unwrap();
        scene.link.becomes(Road::clear().cut());
        let noticed = scene.is_called_connected(false, secs(20)).await.unwrap();
        // Nobody waits for an agent that is gone: 503 at once.
        let asked = Instant::now();
        assert!(scene.request().await.is_err());
        let refused = asked.elapsed();
        assert!(refused < secs(5), "{carrier}: the refusal took {refused:?}");
        sleep(secs(5)).await;
        scene.link.becomes(far());
        let back = scene.answers_within(secs(20)).await.unwrap();
        scene.is_called_connected(true, secs(5)).await.unwrap();
        println!("{carrier}: noticed after {noticed:?}, back {back:?} after the heal");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f09_a_path_that_is_dead_one_way_is_noticed_by_both() {
    each(|carrier| async move {
        for way in [Way::Down, Way::Up] {
            let scene = Across::on(carrier).await.unwrap();
            scene.is_called_connected(true, secs(5)).await.unwrap();
            scene.link.becomes_one_way(way, Road::clear().cut());
            // Over a WebSocket the hub does not see that its bytes are not taken: it hears what was on its way for a while.
            let bound = secs(if carrier == "websocket" { 25 } else { 20 });
            let noticed = scene.is_called_connected(false, bound).await.unwrap();
            scene.link.becomes(Road::clear());
            let back = scene.answers_within(secs(20)).await.unwrap();
            println!("{carrier}: {way:?} dead, noticed after {noticed:?}, back {back:?} after the heal");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_frozen_agent_is_shed_and_comes_back() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.is_called_connected(true, secs(5)).await.unwrap();
        scene.agent.signal(libc::SIGSTOP);
        let noticed = scene.is_called_connected(false, secs(20)).await.unwrap();
        let asked = Instant::now();
        assert!(scene.request().await.is_err());
        assert!(asked.elapsed() < secs(5), "{carrier}: the refusal took {:?}", asked.elapsed());
        scene.agent.signal(libc::SIGCONT);
        let back = scene.answers_within(secs(10)).await.unwrap();
        println!("{carrier}: noticed after {noticed:?}, back {back:?} after it woke");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_frozen_hub_finds_its_agents_again() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.hub.signal(libc::SIGSTOP);
        sleep(secs(20)).await;
        scene.hub.signal(libc::SIGCONT);
        let back = scene.answers_within(secs(30)).await.unwrap();
        println!("{carrier}: back {back:?} after it woke");
    })
    .await;
}

/// Whether this kernel lets a program bound the wait between two tries of TCP (`TCP_RTO_MAX_MS`, Linux 6.15).
fn waits_are_bounded() -> bool {
    std::path::Path::new("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()
}

/// A watch that is open when the network goes away for ten seconds, and the first small request afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_cut_of_ten_seconds() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(far());
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        follow(&mut watch, &mut next, secs(2)).await;
        scene.link.becomes(Road::clear().cut());
        sleep(secs(10)).await;
        scene.link.becomes(far());
        let stall = follow(&mut watch, &mut next, secs(9)).await;
        let bound = if carrier == "quic" || waits_are_bounded() { secs(5) } else { secs(8) };
        assert!(stall < bound, "{carrier}: after the heal nothing came for {stall:?}");
        println!("{carrier}: longest pause after the heal {stall:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_at_once_after_five_seconds_of_loss() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(far());
        let usual = scene.request().await.unwrap();
        scene.link.becomes(Road::clear().cut());
        sleep(secs(5)).await;
        scene.link.becomes(far());
        let back = scene.answers_within(secs(15)).await.unwrap();
        let bound = if carrier == "quic" {
            ms(500)
        } else if waits_are_bounded() {
            secs(1)
        } else {
            secs(6)
        };
        println!("{carrier}: {back:?}, usually {usual:?}");
        // The machine of the tests is shared: what a request takes and a busy moment are added.
        assert!(back < bound + ms(500) + 4 * usual, "{carrier}: {back:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f18_quic_outlives_nat_that_forgets_and_a_new_address() {
    let scene = Across::on("quic").await.unwrap();
    scene.link.becomes(far());
    scene.link.rebinds(); // the box appears: the address changes for the first time
    let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
    follow(&mut watch, &mut next, secs(1)).await;
    let begun = scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap();
    for round in 0..3 {
        if round == 1 {
            scene.link.moves()
        } else {
            scene.link.rebinds()
        }
        let stall = follow(&mut watch, &mut next, secs(2)).await;
        assert!(stall < secs(3), "round {round}: nothing came for {stall:?}");
        scene.answers_within(secs(5)).await.unwrap();
    }
    let now = scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap();
    assert_eq!(begun, now, "the session was begun anew");
    assert!(begun > 0.0, "the metric has another name");
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_udp_that_is_blocked_under_a_session_is_left_for_tcp() {
    let scene = Across::on("auto").await.unwrap();
    scene.is_on("quic", secs(5)).await.unwrap();
    let mut watch = scene.admin.watch("/ticks").await.unwrap();
    watch.next("tick ").await.unwrap();
    scene.link.becomes(Road::clear().without_udp());
    let took = scene.is_on("tls", secs(20)).await.unwrap();
    scene.answers_within(secs(2)).await.unwrap();
    // What was on QUIC ends visibly, and does not hang.
    timeout(secs(20), async { while watch.next("tick ").await.unwrap().is_some() {} }).await.unwrap();
    println!("moved after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_black_hole_for_large_packets_stalls_nothing_for_long() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(far());
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        scene.admin.fetch(1 << 20).await.unwrap(); // large packets have gone by
        scene.link.becomes(far().largest(1280));
        let begin = Instant::now();
        scene.admin.fetch(2 << 20).await.unwrap();
        let took = begin.elapsed();
        let stall = follow(&mut watch, &mut next, secs(1)).await;
        println!("{carrier}: 2 MiB took {took:?}, a tick waited {stall:?}");
        assert!(took < secs(10), "{carrier}: {took:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f23_a_reset_in_the_middle_of_a_frame_costs_seconds() {
    for carrier in ["tls", "websocket"] {
        let scene = Across::on(carrier).await.unwrap();
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        follow(&mut watch, &mut next, ms(500)).await;
        scene.link.resets_tcp(Way::Up);
        // What was cut ends, and is no clean end: the chunked answer has no last chunk.
        let begin = Instant::now();
        while watch.next("tick ").await.unwrap().is_some() {}
        let seen = begin.elapsed();
        let back = scene.answers_within(secs(5)).await.unwrap();
        println!("{carrier}: seen after {seen:?}, back after {back:?}");
        assert!(seen < secs(5), "{carrier}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_what_is_reordered_doubled_and_bent_arrives_as_it_was() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(Road::clear().delay(ms(5)).reorder(0.25).duplicate(0.1).flip(0.01));
        scene.admin.fetch(4 << 20).await.unwrap();
        scene.admin.echo(&"moor".repeat(100_000)).await.unwrap();
        scene.link.becomes(Road::clear());
        scene.answers_within(secs(5)).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_a_slow_and_restless_path_times_nothing_out() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(Road::clear().delay(ms(100)).jitter(ms(100)));
        let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
        let begun = scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap();
        follow(&mut watch, &mut next, secs(12)).await;
        let slowest = scene.request().await.unwrap();
        assert!(slowest < secs(2), "{carrier}: {slowest:?}");
        assert_eq!(begun, scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_a_link_that_flaps_is_used_whenever_it_is_up() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        let (mut asked, mut answered) = (0, 0);
        for _ in 0..3 {
            scene.link.becomes(Road::clear().cut());
            sleep(secs(5)).await;
            scene.link.becomes(far());
            let up = Instant::now();
            sleep(secs(3)).await;
            while up.elapsed() < secs(5) {
                asked += 1;
                answered += u32::from(matches!(timeout(secs(2), scene.request()).await, Ok(Ok(_))));
                sleep(ms(50)).await;
            }
        }
        println!("{carrier}: {answered} of {asked}");
        assert!(asked * 95 <= answered * 100, "{carrier}: {answered} of {asked}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_thin_link_that_is_full_is_no_dead_link() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(far().rate(1_000_000, 128 << 10));
        let begun = scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap();
        let mut busy = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let admin = scene.admin.clone();
            busy.spawn(async move { admin.rate(16 << 20).await.map(drop) });
        }
        let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
        while begin.elapsed() < secs(25) {
            slowest = slowest.max(scene.request().await.unwrap());
            sleep(ms(500)).await;
        }
        drop(busy);
        println!("{carrier}: the slowest small request beside it took {slowest:?}");
        assert_eq!(begun, scene.hub_metric("moorline_hub_greetings_total", &["welcome"]).await.unwrap(), "{carrier}");
    })
    .await;
}

/// The bad link is there before the first dial.
#[tokio::test(flavor = "multi_thread")]
async fn f12_f15_an_agent_comes_up_on_a_link_that_loses_and_blocks() {
    let lossy = Link::make().unwrap();
    lossy.becomes(far().loss(0.2));
    let scene = Across::over(lossy, "quic").await.unwrap();
    scene.admin.fetch(1 << 20).await.unwrap();
    let blocked = Link::make().unwrap();
    blocked.becomes(far().without_udp().largest(1280)); // what is larger vanishes: a handshake's first flight is
    let begin = Instant::now();
    let scene = Across::over(blocked, "auto").await.unwrap();
    scene.is_on("tls", secs(5)).await.unwrap();
    println!("joined and connected without UDP after {:?}", begin.elapsed());
}
