//! F28: a hub or an agent whose clock is ten minutes off.

use moorline_logins_tests::{
    clock::{Shift, shift},
    cluster::Cluster,
    hub::{Hub, program, soon},
    process::{Process, port},
};
use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Ten minutes, in seconds.
const OFF: Shift = 600;
/// For how long rights are granted.
const GRANTED: Duration = Duration::from_secs(10);
/// The product's own bound: what is open ends this soon after the right to it.
const REVOKED: Duration = Duration::from_secs(5);
/// Longest that anything else may take: debug builds on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Everybody gets in, uses a token and more rights for a while, which end when they should; the agent connects once and
/// says what is wrong.
fn all_is_well(hub_is_off: Shift, agent_is_off: Shift) {
    let hub = Hub::start_at(hub_is_off, "");
    hub.moorline("admin", &["user", "create", "anna", "--password-stdin"], "anna has a password").done();
    hub.login("anna", "local", "anna", "wrong").failed("wrong user name or password");
    hub.login("anna", "local", "anna", "anna has a password").done();
    let edge = Cluster::join(&hub, "edge1", |command| shift(command, agent_is_off));

    let bearer = format!("Authorization: Bearer {}", hub.token("anna"));
    let api = |path: &str| hub.curl(&["-H", &bearer, &format!("{}/k8s/clusters/edge1{path}", hub.url())]).0;
    assert_eq!(api("/api"), 403, "known, and not allowed yet");
    let words = ["access", "request", "edge1", "--group", "firefighters", "--for", "10s", "--reason", "it burns"];
    let name = hub.moorline("anna", &words, "").done().out.trim().to_owned();
    let asked = Instant::now();
    hub.admin(&["access", "approve", &name]);
    soon("anna is let in", REVOKED, || api("/api") == 200);
    let mut watch = hub.watch(&bearer, "/k8s/clusters/edge1/api/v1/pods?watch=1");
    soon("her watch begins", REVOKED, || {
        edge.asked().iter().any(|line| line["url"].as_str().unwrap().contains("watch=1"))
    });
    let seen = edge.asked().into_iter().find(|line| line["url"] == "/api").unwrap();
    assert_eq!(seen["user"], "anna");
    assert!(seen["group"].as_str().unwrap().contains("firefighters"), "{seen}");
    soon("the clock ends it", GRANTED + REVOKED, || watch.try_wait().unwrap().is_some());
    // Times are told in whole seconds.
    assert!(GRANTED - Duration::from_secs(1) <= asked.elapsed(), "{:?} is too early", asked.elapsed());
    assert_eq!(api("/api"), 403);
    soon("it is told", SOON, || hub.admin(&["access", "list"]).out.contains("Expired"));
    // A login is renewed in its time, not by the difference of two clocks.
    hub.moorline("anna", &["whoami"], "").done();
    let renewed = hub.log().matches("/auth/refresh").count();
    assert_eq!(renewed, 0, "{}", hub.log());

    // No loop: one session, no try that failed. And whoever reads the log knows what to mend.
    let log = edge.log();
    assert_eq!((log.matches(" connected ").count(), log.matches("trying again").count()), (1, 0), "{log}");
    let told = log.lines().find(|line| line.contains("this host's clock and the hub's differ"));
    let told = told.unwrap_or_else(|| panic!("not told: {log}"));
    let seconds = told.split("seconds=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!((OFF - 60..=OFF + 60).contains(&seconds.parse().unwrap()), "{told}");
    assert!(told.contains("NTP"), "{told}");
}

#[test]
fn f28_a_hub_that_is_ten_minutes_ahead_or_behind_serves_all_the_same() {
    for clock in [OFF, -OFF] {
        all_is_well(clock, 0);
    }
}

#[test]
fn f28_an_agent_that_is_ten_minutes_ahead_or_behind_is_connected_once_and_says_so() {
    for clock in [OFF, -OFF] {
        all_is_well(0, clock);
    }
}

/// A webhook over this folder, and its address.
fn webhook(room: &Path, clock: Shift) -> (Process, SocketAddr) {
    let at = SocketAddr::from(([127, 0, 0, 1], port()));
    let mut command = Command::new(program());
    command
        .args(["endpoint", "--mode", "webhook", "--listen", &at.to_string(), "--dir"])
        .arg(room)
        .env("NO_COLOR", "1");
    shift(&mut command, clock);
    (Process::start(command, &room.with_extension("log"), at), at)
}

/// Whether an API server that asks there would let the token's holder in.
fn is_let_in(at: SocketAddr, token: &str) -> bool {
    let review = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    let mut curl = Command::new("curl");
    let said = curl.args(["-sk", "-m", "20", "-d", &review.to_string(), &format!("https://{at}/")]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    said["status"]["authenticated"] == true
}

/// Offline nothing but its own clock tells an endpoint whether a token's time has come.
#[test]
fn f28_an_endpoint_that_is_ten_minutes_behind_its_hub_lets_nobody_in_and_says_why() {
    let hub = Hub::start_at(OFF, "");
    hub.moorline("admin", &["user", "create", "anna", "--password-stdin"], "anna has a password").done();
    hub.login("anna", "local", "anna", "anna has a password").done();
    hub.admin(&["grant", "create", "--user", "anna", "--cluster", "edge1"]);
    let room = hub.dir.path().join("room");
    let edge = Cluster::join(&hub, "edge1", |command| {
        command.arg("--endpoint-dir").arg(&room);
    });
    soon("a bundle with anna", SOON, || {
        edge.log().lines().any(|l| l.contains("a bundle was kept") && l.contains("users=2"))
    });
    let words = ["kube", "credential", "--hub", &hub.url(), "--cluster", "edge1"];
    let credential: serde_json::Value = serde_json::from_str(&hub.moorline("anna", &words, "").done().out).unwrap();
    let token = credential["status"]["token"].as_str().unwrap();
    {
        let (right, at) = webhook(&room, 0);
        assert!(!(0..3).any(|_| is_let_in(at, token)), "the hub's token is of the future here");
        let log = right.said();
        let told: Vec<_> = log.lines().filter(|line| line.contains("this host's clock and the hub's differ")).collect();
        assert_eq!(told.len(), 1, "once, not once per token: {log}");
        assert!(told[0].contains("NTP") && told[0].contains("not valid for another"), "{log}");
    }
    // It is the clock: with the hub's own she is let in.
    let (_same, at) = webhook(&room, OFF);
    assert!(is_let_in(at, token));
}
