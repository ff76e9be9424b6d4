//! What is looked at again and again, and how long what fails is waited with.

use super::*;
use crate::limits;
use moorline_authz::plan::{Move, ProbeResult, Watch};
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

const EVERY: u64 = 30;
/// Looks are this far apart at most.
const STEP: Duration = limits::PLAN_LOOK;

fn watch(name: &str, probe: Probe) -> Watch {
    Watch { name: name.to_owned(), probe, every_seconds: u32::try_from(EVERY).unwrap() }
}

impl Site {
    fn watching(&self, steps: Vec<Step>, probes: Vec<Watch>) -> Vec<u8> {
        self.seal(Plan { agent: "n1".to_owned(), steps, probes, ..Plan::default() })
    }
}

/// What the probes of the plan say.
fn probes(agent: &Plans) -> Vec<ProbeResult> {
    agent.progress("0-1").map(|progress| progress.probes).unwrap_or_default()
}

fn ok(agent: &Plans) -> Vec<bool> {
    probes(agent).iter().map(|probe| probe.ok).collect()
}

/// Works, and runs the clock until it is so; how long that took.
async fn when(agent: &Arc<Plans>, what: &str, so: impl Fn(&Plans) -> bool) -> Duration {
    let begin = Instant::now();
    let wait = async {
        while !so(agent) {
            assert!(
                begin.elapsed() < 10 * Duration::from_secs(EVERY),
                "{what}: not in time, {:?}",
                agent.progress("0-1")
            );
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = wait => begin.elapsed(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_watched_is_looked_at_as_often_as_the_plan_says_once_it_is_done() {
    let site = Site::new();
    let flag = site.work("flag");
    let file = Probe { file: flag.display().to_string(), ..Probe::default() };
    let agent = site.agent().await;
    let plan = site.watching(vec![write(site.work("new"))], vec![watch("flag", file)]);
    assert_eq!(put(&agent, &plan).await.0, StatusCode::OK);
    assert_eq!(probes(&agent), [], "not before it is done");
    when(&agent, "a first look", |agent| ok(agent) == [false]).await;
    assert!(probes(&agent)[0].message.contains("flag"), "{:?}", probes(&agent));

    // One agent from here on, which remembers when it has looked.
    let looked = async {
        let begin = Instant::now();
        while ok(&agent) != [true] {
            sleep(Duration::from_millis(50)).await;
        }
        fs::remove_file(&flag).unwrap();
        let first = begin.elapsed();
        while ok(&agent) != [false] {
            sleep(Duration::from_millis(50)).await;
        }
        (first, begin.elapsed() - first)
    };
    fs::write(&flag, "").unwrap();
    let (first, second) = tokio::select! {
        () = agent.run() => unreachable!(),
        looked = looked => looked,
    };
    assert!(first <= 2 * STEP, "an agent that begins looks at once: {first:?}");
    let every = Duration::from_secs(EVERY);
    assert!(every - STEP <= second && second <= every + 2 * STEP, "{second:?}");
    assert!(!probes(&agent)[0].message.is_empty());

    // It is on disk too.
    assert_eq!(ok(&*site.agent().await), [false]);

    // The owner thinks better of it.
    fs::write(&flag, "").unwrap();
    when(&agent, "it is there again", |agent| ok(agent) == [true]).await;
    site.policy("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {}\n");
    let agent = site.agent().await;
    when(&agent, "nothing is looked at", |agent| probes(agent)[0].message.contains("spec.plans.allow")).await;
    assert_eq!(ok(&agent), [false]);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_looked_at_any_more_is_refused_and_nothing_else_is() {
    let site = Site::new();
    let flag = site.work("flag");
    fs::write(&flag, "").unwrap();
    let probes_of = vec![
        watch("flag", Probe { file: flag.display().to_string(), ..Probe::default() }),
        watch("closed", Probe { closed: "127.0.0.1:1".to_owned(), ..Probe::default() }),
    ];
    let agent = site.agent().await;
    assert_eq!(put(&agent, &site.watching(vec![write(site.work("new"))], probes_of)).await.0, StatusCode::OK);
    when(&agent, "both are so", |agent| ok(agent) == [true, true]).await;

    // The owner closes the folder to plans, after the plan was done.
    let said = |agent: &Plans| probes(agent).iter().map(|probe| (probe.ok, probe.refused)).collect::<Vec<_>>();
    site.policy(&POLICY.replace("WORK", &site.path("elsewhere").display().to_string()));
    let agent = site.agent().await;
    when(&agent, "one is refused", |agent| said(agent) == [(false, true), (true, false)]).await;
    let message = probes(&agent)[0].message.clone();
    assert!(message.starts_with("refused by policy") && message.contains("spec.plans.paths"), "{message}");
    assert_eq!(agent.progress("0-1").unwrap().phase, Phase::Succeeded, "what was done is done");

    site.policy(&POLICY.replace("WORK", &site.work("").display().to_string()));
    fs::remove_file(&flag).unwrap();
    let agent = site.agent().await;
    when(&agent, "it is looked at again", |agent| said(agent) == [(false, false), (true, false)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_has_failed_is_not_watched() {
    let site = Site::new();
    let (from, to) = (site.work("missing").display().to_string(), site.work("to").display().to_string());
    let fails = Step { rename: Some(Move { from, to, replace: false }), ..step("fails") };
    let agent = site.agent().await;
    let file = Probe { file: site.work("").display().to_string(), ..Probe::default() };
    put(&agent, &site.watching(vec![fails], vec![watch("work", file)])).await;
    assert_eq!(over(&agent).await.phase, Phase::Failed);
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = sleep(Duration::from_secs(3 * EVERY)) => {}
    }
    assert_eq!(probes(&agent), []);
}

/// What answers each request with the status that stands in `says`.
async fn web(says: Arc<AtomicU16>) -> (String, tokio_util::task::AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/healthz?deep", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && tcp.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            let right = head.starts_with(b"GET /healthz?deep HTTP/1.1\r\n");
            let status = if right { says.load(Ordering::Relaxed) } else { 404 };
            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
            drop(tcp.write_all(answer.as_bytes()).await); // whoever asked may be gone
        }
    });
    (address, tokio_util::task::AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn an_address_that_answers_is_one_that_answers_with_success() {
    let site = Site::new();
    let agent = site.agent().await;
    let says = Arc::new(AtomicU16::new(503));
    let (address, _web) = web(says.clone()).await;
    let http = |within_seconds| Probe { http: address.clone(), within_seconds, ..Probe::default() };
    let said = agent.probe(&http(0)).await.unwrap_err().to_string();
    assert!(said.contains("503") && said.contains(&address), "{said}");

    // A step waits for it, and it is watched from then on.
    let waits = Step { probe: Some(http(600)), ..step("waits") };
    put(&agent, &site.watching(vec![waits, says_one(&site)], vec![watch("web", http(0))])).await;
    let heals = async {
        until("the wait", || agent.progress("0-1").is_some_and(|progress| progress.steps.len() == 1)).await;
        assert_eq!(site.log(), "", "it waits");
        says.store(204, Ordering::Relaxed);
        until("a look", || ok(&agent) == [true]).await;
    };
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = heals => {}
    }
    assert_eq!(site.log(), "one\n");
    says.store(500, Ordering::Relaxed);
    let agent = site.agent().await; // one that begins looks at once
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = until("another look", || probes(&agent).iter().any(|probe| probe.message.contains("500"))) => {}
    }
    for other in ["http://127.0.0.1:1/", "not an address"] {
        assert!(agent.probe(&Probe { http: other.to_owned(), ..Probe::default() }).await.is_err(), "{other}");
    }
}

fn says_one(site: &Site) -> Step {
    super::says(site, "one")
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_after_pauses_that_grow_to_a_bound() {
    const TRIES: u32 = 9;
    let site = Site::new();
    let (from, to) = (site.work("missing").display().to_string(), site.work("to").display().to_string());
    let fails = Step { rename: Some(Move { from, to, replace: false }), tries: TRIES, ..step("fails") };
    let agent = site.agent().await;
    put(&agent, &site.sealed(&[fails])).await;
    let mut begun = Vec::new();
    let tries = async {
        loop {
            let progress = agent.progress("0-1").unwrap();
            let tries = progress.steps.first().map_or(0, |step| step.tries);
            if usize::try_from(tries).unwrap() > begun.len() {
                begun.push(Instant::now());
            }
            if progress.phase.is_over() {
                return progress;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let done = tokio::select! {
        () = agent.run() => unreachable!(),
        done = tries => done,
    };
    assert_eq!((done.phase, done.steps[0].tries), (Phase::Failed, TRIES));
    let mut shortest = limits::PLAN_PAUSE;
    for pair in begun.windows(2) {
        let pause = pair[1] - pair[0];
        let late = Duration::from_millis(50);
        assert!(shortest.saturating_sub(late) <= pause && pause <= 2 * shortest + late, "{pause:?}, from {shortest:?}");
        shortest = (2 * shortest).min(limits::PLAN_PAUSE_MAX);
    }
    assert_eq!((begun.len(), shortest), (usize::try_from(TRIES).unwrap(), limits::PLAN_PAUSE_MAX));
}
