//! S69 where people and providers are real: what they tell the hub is in none of its words, however much it says.

use crate::hub::through_browser;
use moorline_logins_tests::{
    browser::{Browser, field},
    github::GitHub,
    hub::{Hub, Said, end, soon},
    oidc::Oidc,
    slapd::Slapd,
};
use std::{
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest that the hub may take to ask its providers again, which it does each second here.
const ASKED: Duration = Duration::from_secs(30);

/// Files of a folder and all below it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => path.is_file().then_some(path).into_iter().collect(), // and no socket
    };
    std::fs::read_dir(dir).unwrap().flatten().flat_map(|entry| below(entry.path())).collect()
}

/// What somebody has to keep for themselves, with what it is.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    fn plant(&mut self, what: &str, secret: impl Into<String>) {
        self.0.push((what.to_owned(), secret.into()));
    }

    fn tokens_of(&mut self, hub: &Hub, person: &str) {
        self.plant(&format!("the access token of {person}"), hub.token(person));
        self.plant(&format!("the refresh token of {person}"), hub.refresh_token(person));
    }

    /// Those among `bytes`, found in `place`.
    fn among(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        let is_there = |secret: &str| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
        self.0.iter().filter(|(_, secret)| is_there(secret)).map(|(what, _)| format!("{what} in {place}")).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s69_what_people_and_providers_tell_a_hub_it_tells_nobody() {
    let (slapd, github) = (Slapd::start(), GitHub::start().await);
    tokio::task::spawn_blocking(move || told_to_nobody(&slapd, &github)).await.unwrap();
}

fn told_to_nobody(slapd: &Slapd, github: &GitHub) {
    let mut hub = Hub::start("");
    let oidc = Oidc::start(&format!("{}/auth/callback/sso", hub.url()));
    let indent = |yaml: String| yaml.lines().map(|line| format!("  {line}\n")).collect::<String>();
    hub.level = "trace";
    let (corp, sso, gh) = (indent(slapd.ldaps()), indent(oidc.yaml()), indent(github.yaml()));
    hub.configure(&format!("recheckLogins: 1s\nlogins:\n{corp}{sso}{gh}"));
    let mut planted = Secrets::default();
    let mut said: Vec<Said> = Vec::new();

    // The hub's own at its providers, in each form that a request gives them.
    planted.plant("the searcher's password", "looks around");
    for form in ["a secret/of+both", "a%20secret%2Fof%2Bboth", "a+secret%2Fof%2Bboth"] {
        planted.plant("the client secret", form);
    }
    for form in [
        "bW9vcmxpbmU6YSBzZWNyZXQvb2YrYm90aA",
        "bW9vcmxpbmU6YSUyMHNlY3JldCUyRm9mJTJCYm90aA",
        "bW9vcmxpbmU6YStzZWNyZXQlMkZvZiUyQmJvdGg",
    ] {
        planted.plant("the client secret, as a header has it", form);
    }
    for form in ["app secret", "app%20secret", "app+secret", "gho_octocat"] {
        planted.plant("a secret of GitHub's", form);
    }

    // Passwords, right and wrong.
    said.push(hub.login("ann", "corp", "ann", "pw of ann").done());
    planted.plant("a password", "pw of ann");
    for provider in ["corp", "local"] {
        said.push(hub.login("eve", provider, "ann", "mistyped-by-ann").failed("wrong user name or password"));
    }
    planted.plant("a wrong password", "mistyped-by-ann");

    // Browsers: what they carry from one to the other.
    for (person, provider) in [("alice", "sso"), ("octocat", "gh")] {
        let (words, [back, target]) = through_browser(&hub, person, provider, person);
        said.push(words.done());
        let own = field(&target, "code").unwrap();
        planted.plant("the hub's code", own);
        if provider == "sso" {
            planted.plant("the provider's code", field(&back, "code").unwrap());
        }
    }
    // A device.
    let mut child = hub.command("bob", &["login", &hub.url(), "--provider", "sso", "--device"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (_, address, code) = crate::device::shown(&mut stderr);
    Browser::of("bob").confirm_device(&format!("{address}?user_code={code}"));
    std::thread::spawn(move || stderr.read_to_string(&mut String::new()));
    said.push(end(child).done());

    // Tokens of each kind, and the next ones of one who renews.
    for person in ["admin", "ann", "alice", "octocat", "bob"] {
        planted.tokens_of(&hub, person);
    }
    let body = format!("{{\"refreshToken\":\"{}\"}}", hub.refresh_token("ann"));
    let (code, answer) = hub.curl(&["-X", "POST", "-d", &body, &format!("{}/auth/refresh", hub.url())]);
    assert_eq!(code, 200, "{answer}");
    let next: serde_json::Value = serde_json::from_str(&answer).unwrap();
    for name in ["token", "refreshToken"] {
        planted.plant(&format!("a renewed {name}"), next[name].as_str().unwrap());
    }
    hub.admin(&["grant", "create", "--user", "alice", "--cluster", "edge1"]);
    let words = ["kube", "credential", "--hub", &hub.url(), "--cluster", "edge1"];
    let mut direct = String::new();
    soon("the grant counts", ASKED, || {
        direct = hub.moorline("alice", &words, "").out;
        !direct.is_empty()
    });
    let direct: serde_json::Value = serde_json::from_str(&direct).unwrap();
    planted.plant("a token for a cluster", direct["status"]["token"].as_str().unwrap());

    // What the provider gave is shown to it again and again, until it says no.
    oidc.deactivate("alice");
    soon("alice is out", ASKED, || hub.moorline("alice", &["whoami"], "").code != 0);
    said.push(hub.moorline("alice", &["whoami"], "").failed("log in"));
    said.push(hub.moorline("bob", &["logout"], "").done());

    let own = |path: &Path| path.starts_with(hub.dir.path().join("people")) || path.ends_with("admin.password");
    let mut found: Vec<String> = Vec::new();
    for path in files(hub.dir.path()) {
        let bytes = std::fs::read(&path).unwrap();
        if !own(&path) {
            found.extend(planted.among(&path.display().to_string(), &bytes));
        } else if !planted.among("", &bytes).is_empty() {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    for words in &said {
        found.extend(planted.among("what was said to a person", format!("{words:?}").as_bytes()));
    }
    let (_, metrics) = hub.curl(&[&format!("http://127.0.0.1:{}/metrics", hub.ops)]);
    assert!(metrics.contains("moorline_hub_logins_total"), "{metrics}");
    found.extend(planted.among("the metrics", metrics.as_bytes()));
    assert!(found.is_empty(), "{found:#?}");
    // Nor any other token that is signed, a provider's included. What is looked for there would be seen.
    let log = hub.log();
    assert!(log.contains("TRACE") && log.contains("octocat"), "the log says little");
    let signed = log.lines().find(|line| line.contains("eyJ"));
    assert!(signed.is_none(), "{signed:?}");
}
