//! Plans as the hub hands them over, done by an agent that may be stopped at any time.

mod drains;
mod watch;

use super::*;
use crate::{AgentRole, UpstreamConfig, metrics::Metrics};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use moorline_authz::plan::{self, Certificates, Collect, Probe, Rotate, Run, Step, Write};
use moorline_proxy::body;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey};
use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};
use tokio::time::{sleep, timeout};

/// A node with an allowed folder, `work`, and an authority.
struct Site {
    dir: tempfile::TempDir,
    key: KeyPair,
    membership: Membership,
}

const POLICY: &str = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {plans: {allow: true, commands: [/bin/sh, /bin/false], paths: [WORK]}}\n";

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let membership = Membership {
            cluster: "edge1".parse().unwrap(),
            name: "n1".parse().unwrap(),
            role: AgentRole::Node,
            trust_domain: "moorline.local".parse().unwrap(),
            chain: Vec::new(),
            bundle: vec![authority.der().clone()],
        };
        fs::create_dir(dir.path().join("work")).unwrap();
        let site = Self { dir, key, membership };
        site.policy(&POLICY.replace("WORK", &site.work("").display().to_string()));
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             clusters: [{{name: a, cluster: {{server: \"https://127.0.0.1:1\", certificate-authority: {}}}}}]\n\
             users: [{{name: a, user: {{token: t}}}}]\n",
            site.path("ca.pem").display()
        );
        fs::write(site.path("ca.pem"), authority.pem()).unwrap();
        fs::write(site.path("kubeconfig"), config).unwrap();
        site
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn work(&self, name: &str) -> PathBuf {
        let work = fs::canonicalize(self.path("work")).unwrap();
        if name.is_empty() { work } else { work.join(name) }
    }
    fn policy(&self, text: &str) {
        fs::write(self.path("policy.yaml"), text).unwrap();
    }
    /// An agent on what is there.
    async fn agent(&self) -> Arc<Plans> {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let policy = Arc::new(PolicyFile::open(Some(&self.path("policy.yaml"))).unwrap());
        let config = UpstreamConfig::Kubeconfig { path: self.path("kubeconfig"), context: None };
        let upstream = Arc::new(ApiServer::new(config, metrics).await.unwrap());
        let node = Some("n1".to_owned());
        Arc::new(Plans::open(&self.path("state"), &self.membership, node, policy, upstream).unwrap())
    }
    fn sealed(&self, steps: &[Step]) -> Vec<u8> {
        self.sealed_for("n1", steps)
    }
    fn sealed_for(&self, agent: &str, steps: &[Step]) -> Vec<u8> {
        self.seal(Plan { agent: agent.to_owned(), steps: steps.to_vec(), ..Plan::default() })
    }
    /// A plan of this hub's for this cluster.
    fn seal(&self, plan: Plan) -> Vec<u8> {
        let plan = Plan {
            name: "test".to_owned(),
            uid: "0-1".to_owned(),
            cluster: "edge1".to_owned(),
            issued: now(),
            expires: now() + 60,
            ..plan
        };
        plan::seal(&plan, |message| self.key.sign(message)).unwrap()
    }
    fn log(&self) -> String {
        fs::read_to_string(self.work("log")).unwrap_or_default()
    }
}

async fn ask(agent: &Plans, method: Method, path: &str, content: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let request = Request::builder().method(method).uri(path).body(body::full(content)).unwrap();
    let response = agent.answer(request).await;
    (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

async fn put(agent: &Plans, sealed: &[u8]) -> (StatusCode, String) {
    let (code, said) = ask(agent, Method::PUT, "/plan", sealed.to_vec()).await;
    (code, String::from_utf8_lossy(&said).into_owned())
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !so() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// Works until the plan is over.
async fn over(agent: &Arc<Plans>) -> Progress {
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = until("over", || agent.progress("0-1").unwrap().phase.is_over()) => {}
    }
    agent.progress("0-1").unwrap()
}

fn step(name: &str) -> Step {
    Step { name: name.to_owned(), ..Step::default() }
}
fn sh(name: &str, script: &str) -> Step {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Step { run: Some(Run { command, ..Run::default() }), ..step(name) }
}
fn write(path: PathBuf) -> Step {
    let path = path.display().to_string();
    Step {
        write: Some(Write { path, content: "hello".to_owned(), mode: "0640".to_owned(), ..Write::default() }),
        ..step("write")
    }
}
fn says(site: &Site, word: &str) -> Step {
    sh(word, &format!("echo {word} | tee -a {}", site.work("log").display()))
}

#[test]
fn output_is_cut_to_its_end_and_harmless() {
    assert_eq!(tail(b"a\x1b[2Jb\nc\r\n", 100), "a[2Jb\nc");
    assert_eq!(tail("ääää".as_bytes(), 3), "ä");
    assert_eq!(tail(&[0xff; 10], 1000).chars().count(), 10);
}

#[tokio::test]
async fn a_plan_is_done_once_however_often_it_is_handed_over() {
    let site = Site::new();
    let agent = site.agent().await;
    let plan = site.sealed(&[write(site.work("new/file")), says(&site, "one")]);
    assert_eq!(put(&agent, &plan).await.0, StatusCode::OK);
    let done = over(&agent).await;
    assert_eq!((done.phase, done.steps[1].output.as_str()), (Phase::Succeeded, "one"));
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(site.work("new/file")).unwrap().permissions().mode() & 0o777;
    assert_eq!((fs::read_to_string(site.work("new/file")).unwrap().as_str(), mode), ("hello", 0o640));

    for _ in 0..2 {
        let agent = site.agent().await; // one that was started anew, too
        let again = site.sealed(&[write(site.work("new/file")), says(&site, "one")]);
        let (code, said) = put(&agent, &again).await;
        assert_eq!(code, StatusCode::OK);
        assert_eq!(serde_json::from_str::<Progress>(&said).unwrap().phase, Phase::Succeeded, "{said}");
    }
    assert_eq!(site.log(), "one\n");
    let agent = site.agent().await;
    put(&agent, &site.sealed(&[says(&site, "two")])).await;
    over(&agent).await;
    assert_eq!(site.log(), "one\ntwo\n", "another content is another plan");
}

#[tokio::test]
async fn a_plan_goes_on_where_it_was_when_the_agent_starts_anew() {
    let site = Site::new();
    let mut wait = step("wait");
    let go = site.work("go");
    wait.probe = Some(Probe { file: go.display().to_string(), within_seconds: 3600, ..Probe::default() });
    let agent = site.agent().await;
    put(&agent, &site.sealed(&[says(&site, "one"), wait, says(&site, "two")])).await;
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = until("the wait", || agent.progress("0-1").unwrap().steps.len() == 2) => {}
    }
    drop(agent);
    fs::write(go, "").unwrap();
    let done = over(&site.agent().await).await;
    assert_eq!((done.phase, site.log().as_str()), (Phase::Succeeded, "one\ntwo\n"));
}

#[tokio::test]
async fn what_the_owner_has_not_named_is_not_touched() {
    let site = Site::new();
    fs::create_dir(site.path("secret")).unwrap();
    symlink(site.path("secret"), site.work("link")).unwrap();
    let agent = site.agent().await;
    let refused = [
        write(site.path("secret/a")),
        Step { run: Some(Run { command: vec!["/bin/ls".to_owned()], ..Run::default() }), ..step("ls") },
    ];
    for one in refused {
        let (code, said) = put(&agent, &site.sealed(&[one])).await;
        assert_eq!(code, StatusCode::FORBIDDEN);
        assert!(said.contains("spec.plans."), "{said}");
    }
    put(&agent, &site.sealed(&[write(site.work("link/a"))])).await;
    let done = over(&agent).await;
    assert_eq!(done.phase, Phase::Failed);
    assert!(done.message.contains("spec.plans.paths"), "a link leads nowhere else: {}", done.message);
    assert_eq!(fs::read_dir(site.path("secret")).unwrap().count(), 0);

    site.policy("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {}\n");
    let (code, said) = put(&*site.agent().await, &site.sealed(&[says(&site, "one")])).await;
    assert!(code == StatusCode::FORBIDDEN && said.contains("spec.plans.allow"), "by default nothing is: {said}");
}

#[tokio::test]
async fn a_folder_of_certificates_that_is_a_link_leads_nowhere_else() {
    let dir = |site: &Site| site.work("pki").display().to_string();
    let steps: [&dyn Fn(&Site) -> Step; 2] =
        [&|site| Step { report_certificates: Some(Certificates { dir: dir(site) }), ..step("reads") }, &|site| Step {
            rotate_certificates: Some(Rotate { dir: dir(site), ..Rotate::default() }),
            ..step("rotates")
        }];
    for step in steps {
        let site = Site::new();
        fs::create_dir(site.path("secret")).unwrap();
        symlink(site.path("secret"), site.work("pki")).unwrap();
        let agent = site.agent().await;
        put(&agent, &site.sealed(&[step(&site)])).await;
        let done = over(&agent).await;
        assert!(done.phase == Phase::Failed && done.message.contains("spec.plans.paths"), "{}", done.message);
    }
}

#[tokio::test]
async fn kubeconfig_files_beside_certificates_are_left_unless_their_folder_is_named() {
    let site = Site::new();
    let (pki, conf) = (site.work("pki"), site.work("admin.conf"));
    fs::create_dir(&pki).unwrap();
    fs::write(&conf, "kept").unwrap();
    let dir = pki.display().to_string();
    let steps = [Step { report_certificates: Some(Certificates { dir: dir.clone() }), ..step("reads") }];
    for (named, told) in [(dir, "left"), (site.work("").display().to_string(), "")] {
        site.policy(&POLICY.replace("WORK", &named));
        let agent = site.agent().await;
        put(&agent, &site.sealed(&steps)).await;
        let done = over(&agent).await;
        assert_eq!(done.phase, Phase::Succeeded, "{done:?}");
        let said = &done.steps[0].output;
        assert!(said.contains(told) && (told.is_empty() == said.is_empty()), "{named}: {said}");
        assert_eq!(ask(&agent, Method::DELETE, "/plan/0-1", Vec::new()).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn nothing_is_looked_for_that_the_owner_has_not_named() {
    let site = Site::new();
    fs::create_dir(site.path("secret")).unwrap();
    fs::write(site.path("secret/a"), "").unwrap();
    symlink(site.path("secret"), site.work("link")).unwrap();
    let looks = |path: PathBuf| Probe { file: path.display().to_string(), ..Probe::default() };
    let agent = site.agent().await;
    let unless = |path| {
        let mut step = says(&site, "one");
        step.run.as_mut().unwrap().unless = Some(looks(path));
        step
    };
    for step in [Step { probe: Some(looks(site.path("secret/a"))), ..step("waits") }, unless(site.path("secret/a"))] {
        let (code, said) = put(&agent, &site.sealed(&[step])).await;
        assert!(code == StatusCode::FORBIDDEN && said.contains("spec.plans.paths"), "{code} {said}");
    }
    // A link does not tell either, and nothing is done on its word.
    for name in ["link/a", "link/missing"] {
        put(&agent, &site.sealed(&[unless(site.work(name))])).await;
        let done = over(&agent).await;
        assert_eq!(done.phase, Phase::Failed);
        assert!(done.message.contains("refused by policy"), "{}", done.message);
        assert_eq!(ask(&agent, Method::DELETE, "/plan/0-1", Vec::new()).await.0, StatusCode::OK);
    }
    assert_eq!(site.log(), "");
}

#[tokio::test]
async fn a_path_of_another_system_is_none_here() {
    let site = Site::new();
    let there = r"C:\work\a";
    site.policy(&POLICY.replace("WORK", r"'C:\work'"));
    let agent = site.agent().await;
    put(&agent, &site.sealed(&[write(there.into())])).await;
    let done = over(&agent).await;
    assert_eq!(done.phase, Phase::Failed);
    assert!(done.message.contains("no path of this node's system"), "{}", done.message);
    assert!(!std::path::Path::new(there).exists(), "nor a file of that name in whatever folder this is");
}

#[tokio::test]
async fn plans_that_are_not_the_hubs_or_not_this_nodes_are_refused() {
    let site = Site::new();
    let agent = site.agent().await;
    let steps = [says(&site, "one")];
    let other = Site::new();
    let (code, said) = put(&agent, &other.sealed(&steps)).await;
    assert!(code == StatusCode::CONFLICT && said.contains("not signed"), "{said}");
    let (code, said) = put(&agent, &site.sealed_for("n2", &steps)).await;
    assert!(code == StatusCode::CONFLICT && said.contains("edge1.n2"), "{said}");
    assert_eq!(agent.progress("0-1"), None);
    let mut bent = site.sealed(&steps);
    *bent.last_mut().unwrap() ^= 1;
    assert_eq!(put(&agent, &bent).await.0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_step_is_tried_as_often_as_it_may_be_and_a_program_that_hangs_is_killed() {
    let site = Site::new();
    let agent = site.agent().await;
    let log = site.work("log").display().to_string();
    let flaky = Step { tries: 2, ..sh("flaky", &format!("echo x >> {log}; test $(wc -l < {log}) -ge 2")) };
    let child = site.work("child").display().to_string();
    let mut hangs = sh("hangs", &format!("echo before; sleep 1000 & echo $! > {child}; sleep 1000"));
    hangs.run.as_mut().unwrap().timeout_seconds = 5;
    put(&agent, &site.sealed(&[flaky, hangs, says(&site, "never")])).await;
    let done = over(&agent).await;
    assert_eq!((done.phase, done.steps[0].phase, done.steps[0].tries), (Phase::Failed, Phase::Succeeded, 2));
    assert_eq!((done.steps[1].output.as_str(), done.steps.len()), ("before", 2), "{done:?}");
    assert!(done.message.contains("killed after 5 s"), "{}", done.message);
    assert_eq!(site.log(), "x\nx\n");
    // And what it had started. Who has ended and was not waited for yet is a zombie.
    let child = fs::read_to_string(site.work("child")).unwrap();
    let status = format!("/proc/{}/stat", child.trim());
    until("its child's end", || fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z "))).await;
}

#[tokio::test]
async fn a_plan_that_is_taken_away_takes_with_it_all_that_it_has_started() {
    let site = Site::new();
    let agent = site.agent().await;
    let child = site.work("child");
    let steps = [sh("hangs", &format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", child.display()))];
    put(&agent, &site.sealed(&steps)).await;
    let running = tokio::spawn({
        let agent = Arc::clone(&agent);
        async move { agent.run().await }
    });
    until("a child", || child.exists()).await;
    let status = format!("/proc/{}/stat", fs::read_to_string(&child).unwrap().trim());
    assert!(fs::exists(&status).unwrap());
    assert_eq!(ask(&agent, Method::DELETE, "/plan/0-1", Vec::new()).await.0, StatusCode::OK);
    until("its child's end", || fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z "))).await;
    running.abort();
}

#[tokio::test]
async fn a_file_of_the_hubs_is_fetched_by_its_checksum() {
    let site = Site::new();
    let agent = site.agent().await;
    let sum = plan::sha256(b"#!/bin/sh\n");
    let fetch =
        plan::Fetch { sha256: sum.clone(), path: site.work("tool").display().to_string(), mode: "0755".to_owned() };
    let (code, _) = ask(&agent, Method::PUT, &format!("/file/{sum}"), b"x".to_vec()).await;
    assert_eq!(code, StatusCode::CONFLICT, "nothing is kept that nobody waits for");
    put(&agent, &site.sealed(&[Step { fetch: Some(fetch), ..step("fetch") }])).await;
    let deliver = async {
        until("the need", || agent.progress("0-1").unwrap().needs == [sum.clone()]).await;
        let path = format!("/file/{sum}");
        assert_eq!(ask(&agent, Method::PUT, &path, b"other".to_vec()).await.0, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(ask(&agent, Method::PUT, &path, b"#!/bin/sh\n".to_vec()).await.0, StatusCode::OK);
    };
    let (done, ()) = tokio::join!(over(&agent), deliver);
    assert_eq!(done.phase, Phase::Succeeded, "{done:?}");
    assert_eq!(fs::read(site.work("tool")).unwrap(), b"#!/bin/sh\n");
}

#[tokio::test]
async fn a_support_bundle_has_what_was_asked_for_and_no_keys() {
    let site = Site::new();
    fs::write(site.work("app.log"), "hello").unwrap();
    fs::write(site.work("tls.pem"), site.key.serialize_pem()).unwrap();
    fs::write(site.path("elsewhere"), "secret").unwrap();
    symlink(site.path("elsewhere"), site.work("link")).unwrap();
    let files = ["app.log", "tls.pem", "link", "missing"].map(|name| site.work(name).display().to_string()).to_vec();
    let commands = vec![["/bin/sh", "-c", "echo up; exit 3"].map(str::to_owned).to_vec()];
    let agent = site.agent().await;
    put(&agent, &site.sealed(&[Step { collect: Some(Collect { files, commands }), ..step("bundle") }])).await;
    let done = over(&agent).await;
    assert_eq!(done.phase, Phase::Succeeded, "{done:?}");
    let (code, archive) = ask(&agent, Method::GET, "/plan/0-1/bundle", Vec::new()).await;
    assert_eq!(code, StatusCode::OK);
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        found.insert(entry.path().unwrap().display().to_string(), text);
    }
    assert_eq!(found.len(), 3, "{:?}", found.keys());
    assert!(
        found.values().any(|text| text == "hello")
            && !found.values().any(|text| text.contains("secret") || text.contains("PRIVATE"))
    );
    assert!(found.values().any(|text| text.starts_with("up\n") && text.contains("exit status: 3")), "{found:?}");
    let contents = &found["CONTENTS"];
    assert!(contents.contains("private key") && contents.contains("spec.plans.paths"), "{contents}");
    assert_eq!(ask(&agent, Method::DELETE, "/plan/0-1", Vec::new()).await.0, StatusCode::OK);
    assert_eq!(ask(&agent, Method::GET, "/plan/0-1/bundle", Vec::new()).await.0, StatusCode::NOT_FOUND);
}
