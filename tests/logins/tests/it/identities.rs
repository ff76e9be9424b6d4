//! One person with two ways in, and what ends when one of them, or the person, is closed.

use moorline_logins_tests::{
    cluster::Cluster,
    hub::{Hub, soon},
    slapd::Slapd,
};
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The product's own bound, where the providers are asked each second.
const REVOKED: Duration = Duration::from_secs(5);
/// Longest that anything else may take: debug builds on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// What somebody has open on a cluster, by what it is.
struct Open(Vec<(String, Child)>);

impl Open {
    /// A watch, a shell in a pod and a port-forward: requests of curl's that go on until they are cut.
    fn by(hub: &Hub, edge: &Cluster, person: &str) -> Self {
        let bearer = format!("Authorization: Bearer {}", hub.token(person));
        let stream = |path: &str, upgrade: bool| {
            let mut curl = Command::new("curl");
            curl.args(["-sN", "-m", "300", "--http1.1", "-H", &bearer, "--cacert"]).arg(hub.data("ca.crt"));
            if upgrade {
                curl.args(["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"]);
                curl.args(["-H", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]);
            }
            let url = format!("{}/k8s/clusters/edge1{path}by={person}", hub.url());
            curl.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        };
        let opened = Self(vec![
            (format!("the watch of {person}"), stream("/api/v1/pods?watch=1&", false)),
            (format!("the exec of {person}"), stream("/api/v1/namespaces/a/pods/b/exec?command=sh&", true)),
            (
                format!("the port-forward of {person}"),
                stream("/api/v1/namespaces/a/pods/b/portforward?ports=80&", true),
            ),
        ]);
        let arrived = || {
            let by = format!("by={person}");
            edge.asked().iter().filter(|line| line["url"].as_str().unwrap().ends_with(&by)).count()
        };
        soon("all three are open", SOON, || arrived() == 3);
        opened
    }

    #[track_caller]
    fn still_open(&mut self, hub: &Hub) {
        for (what, child) in &mut self.0 {
            let ended = child.try_wait().unwrap();
            let why = || hub.audit().into_iter().filter(|event| event["annotations"]["moorline.dev/ended"].is_string());
            assert!(ended.is_none(), "{what} has ended: {ended:?} {:#?}", why().collect::<Vec<_>>());
        }
    }

    #[track_caller]
    fn cut(&mut self) {
        soon("all three are cut", REVOKED, || self.0.iter_mut().all(|(_, child)| child.try_wait().unwrap().is_some()));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn s51_s54_who_is_closed_at_one_place_is_out_there_and_who_is_deactivated_is_out_everywhere() {
    let mut slapd = Slapd::start();
    let yaml: String = slapd.ldaps().lines().map(|line| format!("  {line}\n")).collect();
    let hub = Hub::start(&format!("recheckLogins: 1s\nlogins:\n{yaml}"));
    for user in ["ann", "ben"] {
        hub.moorline("admin", &["user", "create", user, "--password-stdin"], "a local password").done();
        hub.admin(&["grant", "create", "--user", user, "--cluster", "edge1"]);
    }
    let refused = hub.login("ann-by-corp", "corp", "ann", "pw of ann").failed("is not linked to you");
    let subject = refused.err.split("--subject ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    hub.admin(&["user", "link", "ann", "--provider", "corp", "--subject", &subject]);
    hub.login("ann-by-corp", "corp", "ann", "pw of ann").done();
    for person in ["ann", "ben"] {
        hub.login(person, "local", person, "a local password").done();
    }
    let whoami = |person: &str| hub.moorline(person, &["whoami"], "");
    for person in ["ann-by-corp", "ann"] {
        assert!(whoami(person).done().out.contains("User:     ann"), "two ways, one person");
    }
    let edge = Cluster::join(&hub, "edge1", |_| {});
    let mut by_corp = Open::by(&hub, &edge, "ann-by-corp");
    let (mut local, mut of_ben) = (Open::by(&hub, &edge, "ann"), Open::by(&hub, &edge, "ben"));

    // An outage of the directory: nobody loses anything by it, and the other way in is open.
    slapd.down();
    let asked_in_vain = || hub.log().lines().filter(|line| line.contains("WARN") && line.contains("corp")).count();
    soon("the hub has asked in vain", SOON, || asked_in_vain() > 0);
    hub.login("eve", "corp", "ann", "pw of ann").failed("does not answer");
    hub.login("ann-again", "local", "ann", "a local password").done();
    whoami("ann-by-corp").done();
    slapd.up();
    for open in [&mut by_corp, &mut local, &mut of_ben] {
        open.still_open(&hub);
    }

    // Gone from the directory: who came in by it is out, and what was opened with its groups is cut, by whichever way. The
    // other way in stays, and so do others.
    slapd.modify("dn: uid=ann,ou=people,dc=moor,dc=test\nchangetype: delete\n");
    by_corp.cut();
    local.cut();
    whoami("ann-by-corp").failed("log in");
    whoami("ann").done();
    hub.login("ann-again", "local", "ann", "a local password").done();
    let mut local = Open::by(&hub, &edge, "ann-again");
    of_ben.still_open(&hub);

    // Deactivated: out, by whichever way.
    hub.admin(&["user", "disable", "ann"]);
    local.cut();
    for person in ["ann", "ann-again"] {
        whoami(person).failed("log in");
    }
    hub.login("ann-again", "local", "ann", "a local password").failed("wrong user name or password");
    of_ben.still_open(&hub);
    whoami("ben").done();
}
