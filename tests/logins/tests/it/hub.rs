//! A hub with several providers at once, through the binary.

use moorline_logins_tests::{
    browser::Browser,
    github::GitHub,
    hub::{Hub, Said, end, soon},
    oidc::Oidc,
    slapd::Slapd,
};
use std::{io::Read, time::Duration};
use url::Url;

/// The product's own bound, S51 and S54, where the providers are asked each second.
const REVOKED: Duration = Duration::from_secs(5);

fn whoami(hub: &Hub, person: &str) -> Said {
    hub.moorline(person, &["whoami"], "")
}

/// `moorline login --provider` with a browser that this test is.
pub fn by_browser(hub: &Hub, person: &str, provider: &str, account: &str) -> Said {
    through_browser(hub, person, provider, account).0
}

/// That, and where the browser was sent to: the hub, and the program that waits.
pub fn through_browser(hub: &Hub, person: &str, provider: &str, account: &str) -> (Said, [Url; 2]) {
    let seen = hub.dir.path().join(format!("opened-by-{person}"));
    let script = hub.dir.path().join("browser");
    std::fs::write(&script, format!("#!/bin/sh\nprintf %s \"$1\" >{0}.part && mv {0}.part {0}\n", seen.display()))
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut command = hub.command(person, &["login", &hub.url(), "--provider", provider]);
    let child = command.env("BROWSER", &script).spawn().unwrap();
    soon("the browser opens", Duration::from_secs(20), || seen.exists());
    let to = std::fs::read_to_string(&seen).unwrap();
    assert!(!to.starts_with(&hub.url()), "the browser goes to the provider at once: {to}");
    let mut browser = Browser::of(account);
    let (back, page) = browser.follow(&to, &format!("{}/auth/callback/", hub.url()));
    assert!(back.as_str().contains("code="), "{back} {}", page.body);
    let (code, target) = hub.curl(&["-o", "/dev/null", "-w", "%{redirect_url}\n%{http_code}", back.as_str()]);
    assert_eq!(code, 302, "{target}");
    assert!(target.starts_with("http://127.0.0.1:"), "{target}");
    let target = Url::parse(&target).unwrap();
    let page = browser.request(&target, None);
    let said = end(child);
    assert_eq!(page.code == 200, said.code == 0, "{} {said:?}", page.body);
    let (code, _) = hub.curl(&[back.as_str()]);
    assert_eq!(code, 400, "a round is good once");
    (said, [back, target])
}

/// What a provider left with a login is kept: a hub that was started anew still hears of an account that is closed.
#[test]
fn s54_a_login_outlives_a_restart_of_the_hub_and_not_its_account() {
    let mut hub = Hub::start("");
    let oidc = Oidc::start(&format!("{}/auth/callback/sso", hub.url()));
    let yaml: String = oidc.yaml().lines().map(|line| format!("  {line}\n")).collect();
    let config = format!("recheckLogins: 1s\nlogins:\n{yaml}");
    hub.configure(&config);
    for who in ["alice", "bob"] {
        by_browser(&hub, who, "sso", who).done();
    }
    hub.configure(&config);
    whoami(&hub, "alice").done();
    oidc.deactivate("alice");
    soon("alice is out", Duration::from_secs(30), || whoami(&hub, "alice").code != 0);
    whoami(&hub, "alice").failed("log in");
    whoami(&hub, "bob").done();
    // What the provider gave stands in no file of the hub's as it is: nobody finds it in a copy of the store.
    let ring = hub.data("renewals.secret");
    assert_eq!(std::fs::metadata(&ring).unwrap().len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_providers_let_people_in_side_by_side() {
    let (mut slapd, github) = (Slapd::start(), GitHub::start().await);
    let mut hub = Hub::start("");
    let oidc = Oidc::start(&format!("{}/auth/callback/sso", hub.url()));
    let indent = |yaml: String| yaml.lines().map(|line| format!("  {line}\n")).collect::<String>();
    let config = |slapd: &Slapd| {
        format!("recheckLogins: 1s\nlogins:\n{}{}{}", indent(slapd.ldaps()), indent(oidc.yaml()), indent(github.yaml()))
    };
    hub.configure(&config(&slapd));
    let hub = tokio::task::spawn_blocking(move || {
        let listed = hub.moorline("admin", &["login", "--list"], "").done().out;
        for (name, way) in
            [("local", "password"), ("corp", "password"), ("sso", "browser, device"), ("gh", "browser, device")]
        {
            assert!(listed.lines().any(|line| line.starts_with(name) && line.ends_with(way)), "{listed}");
        }

        // A directory: its groups carry its name, and the hub's groups hold them.
        hub.login("ann", "corp", "ann", "pw of ann").done();
        let me = whoami(&hub, "ann").done().out;
        assert!(me.contains("User:     ann") && me.contains("corp:inner, corp:outer"), "{me}");
        hub.login("eve", "corp", "ann", "wrong").failed("wrong user name or password");
        hub.login("eve", "corp", "bob", "pw of bob").failed("wrong user name or password");
        hub.login("eve", "nowhere", "ann", "x").failed("no login provider");
        hub.admin(&["group", "create", "ops", "--group", "corp:outer", "--group", "sso:ops"]);
        hub.admin(&["grant", "create", "ops", "--group", "ops", "--cluster", "edge1"]);
        soon("ann is in ops", Duration::from_secs(30), || whoami(&hub, "ann").out.contains("ops"));
        let told = hub.moorline("ann", &["auth", "can-i", "get", "pods", "--cluster", "edge1"], "");
        assert!(told.out.contains("rule: ClusterGrant ops, by group ops"), "{told:?}");
        let told = hub.moorline("ann", &["auth", "can-i", "get", "pods", "--cluster", "other"], "");
        assert!(told.code == 1 && told.out.contains("no access to cluster \"other\""), "{told:?}");
        hub.moorline("ann", &["auth", "can-i", "get", "pods", "--cluster", "edge1", "--as", "admin"], "")
            .failed("only administrators");
        let told = hub.moorline("admin", &["auth", "can-i", "get", "pods", "--cluster", "edge1", "--as", "ann"], "");
        assert!(told.out.contains("by group ops"), "{told:?}");
        let found = hub.admin(&["principals", "search", "inn"]).out;
        assert!(found.lines().any(|line| line.starts_with("corp:inner")), "{found}");
        hub.moorline("ann", &["principals", "search", "inn"], "").failed("only administrators");

        // S55: whoever is called like a user of the hub is not that user, until an administrator says so.
        hub.moorline("admin", &["user", "create", "max", "--password-stdin"], "local password\n").done();
        let refused = hub.login("max", "corp", "max", "pw of max").failed("is not linked to you");
        let subject = refused.err.split("--subject ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        hub.admin(&["user", "link", "max", "--provider", "corp", "--subject", &subject]);
        hub.login("max", "corp", "max", "pw of max").done();

        // A browser, and a terminal without one.
        by_browser(&hub, "alice", "sso", "alice").done();
        let me = whoami(&hub, "alice").done().out;
        assert!(me.contains("User:     alice") && me.contains("sso:dev, sso:ops, ops"), "{me}");
        by_browser(&hub, "root", "sso", "root").done();
        let me = whoami(&hub, "root").done().out;
        assert!(me.contains("sso:moorline:admins"), "{me}");
        hub.moorline("root", &["get", "users"], "").done();
        hub.moorline("root", &["user", "create", "x", "--no-password"], "").failed("cannot create");
        by_browser(&hub, "octocat", "gh", "").done();
        assert!(whoami(&hub, "octocat").done().out.contains("gh:Acme, gh:Acme/platform"));
        // Looked for everywhere at once: those who can be searched say, of the others whoever came in is known.
        let found = hub.admin(&["principals", "search", "a", "-o", "json"]);
        let found: serde_json::Value = serde_json::from_str(&found.out).unwrap();
        for (provider, kind, name) in [
            ("local", "user", "admin"),
            ("corp", "user", "ann"),
            ("sso", "user", "alice"),
            ("gh", "user", "octocat"),
            ("gh", "group", "Acme"),
        ] {
            let is_it =
                |one: &serde_json::Value| one["provider"] == provider && one["kind"] == kind && one["name"] == name;
            assert!(found["items"].as_array().unwrap().iter().any(is_it), "{kind} {name} of {provider}: {found}");
        }
        assert_eq!(found["unavailable"], serde_json::json!([]));
        let mut child = hub.command("bob", &["login", &hub.url(), "--provider", "sso", "--device"]).spawn().unwrap();
        let mut words = String::new();
        let mut stderr = child.stderr.take().unwrap();
        while !words.contains("type the code\n\n") || !words.ends_with("\n\n") {
            let mut some = [0; 1024];
            let n = stderr.read(&mut some).unwrap();
            assert_ne!(n, 0, "{words}");
            words.push_str(&String::from_utf8_lossy(&some[..n]));
        }
        let address = words.split("open ").nth(1).unwrap().split(' ').next().unwrap();
        let code = words.split("type the code\n\n").nth(1).unwrap().trim();
        Browser::of("bob").confirm_device(&format!("{address}?user_code={code}"));
        std::thread::spawn(move || stderr.read_to_string(&mut String::new()));
        end(child).done();
        assert!(whoami(&hub, "bob").done().out.contains("User:     bob"));

        // More rights for a while, from somebody else.
        let words = ["access", "request", "edge1", "--group", "firefighters", "--for", "1h", "--reason", "it burns"];
        let name = hub.moorline("bob", &words, "").done().out.trim().to_owned();
        hub.moorline("bob", &["access", "approve", &name], "").failed("nobody decides their own request");
        hub.moorline("ann", &["access", "approve", &name], "").failed("does not decide requests");
        hub.admin(&["access", "approve", &name, "-m", "go"]);
        let told = hub.moorline("bob", &["auth", "can-i", "get", "pods", "--cluster", "edge1"], "").out;
        assert!(told.contains(&format!("AccessRequest {name}")) && told.contains("firefighters"), "{told}");
        assert!(hub.admin(&["access", "list"]).out.contains("Approved"));
        hub
    })
    .await
    .unwrap();

    tokio::task::spawn_blocking(move || {
        // A provider that is away: nobody is told that their password is wrong, and other ways stay open.
        slapd.down();
        hub.login("eve", "corp", "ann", "pw of ann").failed("does not answer");
        hub.login("max", "local", "max", "local password").done();
        whoami(&hub, "ann").done();
        let found = hub.admin(&["principals", "search", "a"]);
        assert!(found.err.contains("provider corp does not answer"), "{found:?}");
        slapd.up();

        // S51, S54: gone at the provider is gone here within seconds, what is open included; others stay. A round of
        // questions takes as long as the providers take to answer them all.
        let token = hub.token("ann");
        let bearer = format!("Authorization: Bearer {token}");
        let watch = format!("{}/apis/moorline.dev/v1alpha1/clusters?watch=1", hub.url());
        let mut open = std::process::Command::new("curl");
        open.args(["-sN", "-m", "60", "-o", "/dev/null", "-H", &bearer, "--cacert"])
            .arg(hub.data("ca.crt"))
            .arg(&watch);
        let mut open = open.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500)); // longer than a round of questions: it stays open by itself
        assert!(open.try_wait().unwrap().is_none(), "open while nothing changes");
        slapd.modify("dn: uid=ann,ou=people,dc=moor,dc=test\nchangetype: delete\n");
        soon("the watch is cut", REVOKED, || open.try_wait().unwrap().is_some());
        let (code, _) = hub.curl(&["-H", &bearer, &format!("{}/auth/whoami", hub.url())]);
        assert_eq!(code, 401);
        whoami(&hub, "max").done();

        // A provider that is no longer configured vouches for nobody.
        let mut hub = hub;
        hub.configure("");
        whoami(&hub, "alice").failed("log in");
        whoami(&hub, "max").done();

        // The record of it is found, is whole, and shows whoever touches it.
        let found = hub.admin(&["audit", "search", "--user", "ann", "--resource", "logins", "-o", "json"]).out;
        let of_corp = |line: &&str| line.contains("\"moorline.dev/provider\":\"corp\"");
        assert!(found.lines().all(|line| of_corp(&line)), "{found}");
        let let_in = found.lines().filter(|line| line.contains("\"code\":200")).count();
        assert_eq!((let_in, found.lines().count()), (1, 2), "and one try that failed is hers: {found}");
        hub.moorline("max", &["audit", "search"], "").failed("reads no audit log");
        let log = hub.data("audit.log");
        let verify =
            |words: &[&str]| hub.moorline("admin", &[&["audit", "verify", log.to_str().unwrap()], words].concat(), "");
        let whole = verify(&[]).done().out;
        let end = whole.split("end of the chain: ").nth(1).unwrap().trim().to_owned();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, text.replacen("\"username\":\"ann\"", "\"username\":\"bob\"", 1)).unwrap();
        verify(&[]).failed("was edited");
        std::fs::write(&log, &text).unwrap();
        verify(&["--holds", &end]).done();

        // Every login is on record, and no secret is anywhere.
        let logins: Vec<_> = hub.audit().into_iter().filter(|e| e["objectRef"]["resource"] == "logins").collect();
        for provider in ["corp", "sso", "gh"] {
            let of = |code: u64| {
                logins.iter().any(|e| {
                    e["annotations"]["moorline.dev/provider"] == provider && e["responseStatus"]["code"] == code
                })
            };
            assert!(of(200), "{provider}: {logins:?}");
        }
        let all = std::fs::read_to_string(hub.data("audit.log")).unwrap() + &hub.log();
        for secret in
            ["pw of", "local password", "a secret/of+both", "app secret", "looks around", "gho_octocat", token.as_str()]
        {
            assert!(!all.contains(secret), "S69: {secret}");
        }
    })
    .await
    .unwrap();
}
