//! Ways out of a shell's root, and into another's.

use crate::client::House;
use http::StatusCode;
use moorline_shell::Visitor;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What each secret of the node and of its agent says, and the agent's environment.
pub const CANARY: &str = "canary-of-the-node-8c1f";
/// The same as a pattern that does not match itself.
const PATTERN: &str = "canary-of-the-[n]ode-8c1f";

/// Where secrets are: of pods, the agent, the kubelet, kubeadm and root.
const SECRETS: [&str; 8] = [
    "/var/run/secrets/moorline-test/token",
    "/var/lib/moorline-test/agent.key",
    "/var/lib/kubelet/pki/moorline-test.pem",
    "/etc/kubernetes/moorline-test.conf",
    "/etc/kubernetes/pki/moorline-test.key",
    "/root/.kube/moorline-test",
    "/opt/moorline-test/secret",
    "/tmp/moorline-test/secret",
];

/// Secrets in their real places. They go with it, and so do the folders that were made for them.
struct Planted(Vec<PathBuf>);
impl Planted {
    fn new() -> Self {
        let mut made = Vec::new();
        for secret in SECRETS.map(Path::new) {
            let missing: Vec<_> = secret.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
            for folder in missing.iter().rev() {
                fs::create_dir(folder).unwrap();
            }
            made.extend(missing.into_iter().rev().map(Path::to_owned));
            fs::write(secret, CANARY).unwrap();
            // Nothing but where it is keeps a shell from it.
            fs::set_permissions(secret, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        }
        Self(made)
    }
}
impl Drop for Planted {
    fn drop(&mut self) {
        SECRETS.iter().for_each(|secret| drop(fs::remove_file(secret)));
        self.0.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

pub async fn no_secret_of_the_agent_or_the_node_is_found() {
    let _planted = Planted::new();
    let house = House::new();
    let mut client = house.enter().await;
    for secret in SECRETS {
        assert_ne!(client.run(&format!("cat {secret}")).await.1, 0, "{secret}");
    }
    for (what, search) in [
        ("files", format!("grep -rslE --devices=skip '{PATTERN}' /etc /home /tmp")),
        ("names", "find / -path /proc -prune -o -path /usr -prune -o -name 'moorline-test*' -print 2>/dev/null".into()),
        ("processes", format!("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | grep -aE '{PATTERN}'")),
        ("mounts", "grep -E 'moorline-test|secrets|kubelet|/root' /proc/[0-9]*/mountinfo".into()),
    ] {
        assert_eq!(client.run(&format!("{search} | head -n 5")).await.0, "", "{what}");
    }
    // The search finds what there is.
    client.run(&format!("echo {CANARY} > /tmp/own")).await;
    assert_eq!(client.run(&format!("grep -rslE --devices=skip '{PATTERN}' /tmp")).await.0, "/tmp/own");
}

pub async fn no_link_leads_out() {
    let _planted = Planted::new();
    let house = House::new();
    let mut client = house.enter().await;
    for way in
        ["/proc/self/root", "/proc/1/root", "/proc/1/cwd/../..", "/proc/self/cwd/../..", "/proc/thread-self/root"]
    {
        assert_eq!(client.run(&format!("ls {way}/../../ | cmp - <(ls /)")).await, (String::new(), 0), "{way}");
        for secret in SECRETS {
            assert_ne!(client.run(&format!("cat {way}{secret}")).await.1, 0, "{way}{secret}");
        }
    }
    // Every file that anything has open, as a folder to go up from.
    let up = format!("for fd in /proc/[0-9]*/fd/*; do cat $fd/../..{0} $fd/../../..{0}; done 2>/dev/null", SECRETS[0]);
    assert_eq!(client.run(&up).await.0, "");
    for secret in SECRETS {
        let link = format!("ln -sf ../../../../..{secret} ~/l && ln -sf /../..{secret} /tmp/l; cat ~/l || cat /tmp/l");
        assert_ne!(client.run(&link).await.1, 0, "{secret}");
    }
    // A second name for what is not the shell's: nothing that it may write holds one.
    for file in ["/etc/passwd", "/bin/sh", "/usr/bin/env", "/proc/self/status", "/dev/null"] {
        assert_ne!(client.run(&format!("ln -L {file} /tmp/h || ln -L {file} ~/h")).await.1, 0, "{file}");
    }
}

pub async fn another_users_shell_is_out_of_reach() {
    let house = House::new();
    let id = "d123456789abcdef0123456789abcdef";
    let mut ana = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    ana.type_in("stty -echo; PS1=; PS2=; set +m; echo be''gin\r").await;
    ana.until("begin\r\n").await;
    let socket = "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0)";
    let listens = format!(
        "perl -e '{socket}; bind(S, pack_sockaddr_un(\"\\0canary\")) && listen(S, 1) or exit 1; open F, \">/tmp/on\"; close F; sleep 1000' & while [ ! -e /tmp/on ]; do sleep 0.05; done; echo {CANARY} | tee ~/s > /tmp/s"
    );
    assert_eq!(ana.run(&listens).await.1, 0);
    let connects = format!("perl -e '{socket}; connect(S, pack_sockaddr_un(\"\\0canary\")) or exit 1'");
    assert_eq!(ana.run(&connects).await.1, 0, "its own");

    let bob = || Visitor { user: "bob".to_owned(), ..house.visitor() };
    let attach = house.request(&format!("session={id}&attach=1"));
    assert_eq!(house.shells.serve(attach, bob()).await.status(), StatusCode::NOT_FOUND);
    let mut theirs = house.enter_as(bob()).await;
    assert_ne!(theirs.run(&connects).await.1, 0, "another's");
    assert_ne!(theirs.run("cat /tmp/s || cat ~/s || cat /proc/[0-9]*/root/tmp/s").await.1, 0);
    assert_eq!(theirs.run(&format!("grep -rslE --devices=skip '{PATTERN}' /tmp /home")).await.0, "");
    // Every process that it can name, and whatever it may signal at all.
    theirs
        .run("for p in $(seq 2 400); do [ $p = $$ ] || kill -9 $p; done 2>/dev/null; (trap '' TERM; kill -TERM -1)")
        .await;
    assert_eq!(ana.run("cat ~/s; jobs -pr | wc -l").await.0, format!("{CANARY}\n1"), "it goes on");
}
