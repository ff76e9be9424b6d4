//! The binaries of other platforms, run: Arm64 by qemu, Windows by Wine, static x86_64 by itself.
//!
//! Each says its version, joins a native hub over each carrier, and serves a request to a real API server; as a node agent it
//! tells how its node is, stands in and does plans; a Windows node gives a shell. Run by
//! `make test-long`, which builds them first: `cross/build.sh` into `MOORLINE_DIST` (default `target/dist`).

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use moorline_e2e::{
    cluster::Cluster,
    moorline::{Hub, kubectl},
    process::{Process, eventually, run, text},
    root,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A foreign program starts slowly: qemu translates it, Wine makes itself a home first.
const START: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq)]
enum Platform {
    Native,
    Arm64,
    Windows,
}

impl Platform {
    fn file(self, program: &str) -> Result<PathBuf> {
        let dist = std::env::var_os("MOORLINE_DIST").map_or_else(|| root().join("target/dist"), PathBuf::from);
        let name = match self {
            Self::Native => format!("{program}-linux-amd64"),
            Self::Arm64 => format!("{program}-linux-arm64"),
            Self::Windows => format!("{program}-windows-amd64.exe"),
        };
        dist.join(&name).canonicalize().with_context(|| format!("{name} is missing: make cross"))
    }

    /// The program as this machine runs it. `home`: a folder of the test's.
    fn command(self, program: &str, home: &Path) -> Result<Command> {
        let file = self.file(program)?;
        Ok(match self {
            Self::Native => Command::new(file),
            Self::Arm64 => {
                let mut command = Command::new("qemu-aarch64");
                command.arg(file);
                command
            }
            Self::Windows => {
                let copy = home.join("moorline.exe");
                std::fs::copy(file, &copy)?;
                wine_library(home)?;
                let mut command = wine(home);
                command.arg(copy);
                command
            }
        })
    }

    /// A file of this machine's, as the program names it.
    fn path(self, path: &Path) -> String {
        match self {
            // Wine has this machine's files there.
            Self::Windows => format!("Z:{}", path.display()),
            _ => path.display().to_string(),
        }
    }

    fn carriers(self) -> &'static [&'static str] {
        match self {
            // Wine 8 has neither IP_RECVECN nor IPV6_V6ONLY on a v4 socket: quinn's UDP socket cannot be opened there.
            Self::Windows => &["tls", "websocket", "auto"],
            _ => &["quic", "tls", "websocket"],
        }
    }
}

fn wine(home: &Path) -> Command {
    let wine = ["/usr/lib/wine/wine64", "/usr/bin/wine64"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(wine.unwrap_or("wine"));
    command.env("WINEPREFIX", home.join("prefix")).env("WINEDEBUG", "-all").env("DISPLAY", "").current_dir(home);
    command
}

/// Rust's library wants bcryptprimitives.dll, which Windows 10 has and Wine before 9 has not.
fn wine_library(home: &Path) -> Result<()> {
    let source = home.join("random.c");
    std::fs::write(
        &source,
        "#include <windows.h>\nBOOLEAN NTAPI SystemFunction036(PVOID, ULONG);\n\
         __declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, (ULONG)n); }\n",
    )?;
    let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
    compiler.args(["-O2", "-shared", "-o"]).arg(home.join("bcryptprimitives.dll")).arg(source).arg("-ladvapi32");
    text(&mut compiler).map(drop)
}

struct World {
    hub: Hub,
    cluster: Cluster,
    dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl World {
    fn start() -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("mlcross").tempdir_in("/tmp")?;
        let dir = temporary.path().to_owned();
        let cluster = Cluster::start(103, false, None)?;
        let hub = Hub::start(&dir, 18743, &["127.0.0.1"])?;
        cluster.admin(&["create", "clusterrolebinding", "alice", "--clusterrole=view", "--user=alice"])?;
        hub.add_user("alice", &[])?;
        Ok(Self { hub, cluster, dir, _temporary: temporary })
    }

    fn home(&self, name: &str) -> Result<PathBuf> {
        let home = self.dir.join(name);
        std::fs::create_dir_all(&home)?;
        Ok(home)
    }
}

fn version(world: &World, platform: Platform) -> Result<()> {
    for program in ["moorline", "moorline-agent"] {
        let said = text(platform.command(program, &world.home(&format!("version-{program}"))?)?.arg("--version"))?;
        ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    }
    Ok(())
}

fn serves(world: &World, platform: Platform, label: &str, carrier: &str) -> Result<()> {
    let name = format!("{label}-{carrier}");
    let home = world.home(&name)?;
    let join = world.hub.join_command(&name)?;
    let mut command = platform.command("moorline-agent", &home)?;
    command.args(join.iter().skip(2)).args(["--carrier", carrier, "--name", "a1", "--state-dir"]);
    command.arg(home.join("state")).arg("--kubeconfig").arg(world.cluster.kubeconfig());
    let mut agent = Process::spawn(command, &home.join("agent.log"))?;
    let outcome = (|| {
        world.hub.wait_connected(&name, START)?;
        let json = world.hub.moorline("admin", &["clusters", &name, "-o", "json"])?;
        let object: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(carrier == "auto" || object["status"]["carrier"] == carrier, "{json}");
        world
            .hub
            .moorline("admin", &["grant", "create", &format!("alice-{name}"), "--user", "alice", "--cluster", &name])?;
        let config = world.hub.kubeconfig("alice", &name)?;
        let kube = |args: &[&str]| text(Command::new(kubectl()).arg("--kubeconfig").arg(&config).args(args));
        ensure!(kube(&["get", "namespaces"])?.contains("kube-system"), "no namespaces");
        ensure!(kube(&["get", "--raw", "/openapi/v2"])?.len() > 100_000, "a large answer is cut");
        Ok(())
    })();
    let log = agent.log();
    agent.signal(libc::SIGTERM);
    if platform == Platform::Windows {
        let _ = text(Command::new("/usr/lib/wine/wineserver64").arg("-k").env("WINEPREFIX", home.join("prefix")));
    }
    let _ = agent.wait(Duration::from_secs(40));
    outcome.with_context(|| log)
}

/// A node agent: it tells how its node is, stands in where the cluster has no other agent, and does a plan.
fn node(world: &World, platform: Platform, label: &str) -> Result<()> {
    let name = format!("{label}-node");
    let home = world.home(&name)?;
    let (work, policy) = (home.join("work"), home.join("policy.yaml"));
    let pki = work.join("pki");
    std::fs::create_dir_all(&work)?;
    text(Command::new("cp").arg("-r").arg(world.cluster.dir.join("pki")).arg(&pki))?;
    let program = match platform {
        Platform::Windows => platform.path(&home.join("moorline.exe")),
        _ => "/bin/uname".to_owned(),
    };
    let allowed = format!("{{allow: true, commands: [\"{program}\"], paths: [\"{}\"]}}", platform.path(&work));
    let text_of = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{plans: {allowed}}}\n");
    std::fs::write(&policy, text_of)?;
    let mut command = platform.command("moorline-agent", &home)?;
    command.args(world.hub.join_command(&name)?.iter().skip(2));
    command.args(["--role", "node", "--carrier", "tls", "--name", "n1", "--node-name", "n1", "--state-dir"]);
    command.arg(home.join("state")).arg("--kubeconfig").arg(world.cluster.kubeconfig());
    command.arg("--policy-file").arg(&policy).arg("--pki-dirs").arg(&pki);
    let mut agent = Process::spawn(command, &home.join("agent.log"))?;
    let outcome = (|| {
        world.hub.wait_connected(&name, START)?;
        eventually("what the node tells", START, || {
            let node = world.hub.moorline("admin", &["get", "nodes", &format!("{name}.n1"), "-o", "json"])?;
            let node: serde_json::Value = serde_json::from_str(&node)?;
            for resource in ["memory", "disk"] {
                let left = &node["status"][format!("{resource}AvailablePercent")];
                ensure!(left.as_u64().is_some_and(|left| 0 < left && left <= 100), "{resource}: {node}");
            }
            let certificates = node["status"]["certificates"].as_array().context("certificates")?;
            ensure!(certificates.iter().any(|certificate| certificate["name"] == "apiserver.crt"), "{node}");
            Ok(())
        })?;

        let cluster = world.hub.moorline("admin", &["clusters", &name, "-o", "json"])?;
        ensure!(cluster.contains("NodeAgentOnly"), "another agent is there: {cluster}");
        world
            .hub
            .moorline("admin", &["grant", "create", &format!("alice-{name}"), "--user", "alice", "--cluster", &name])?;
        let config = world.hub.kubeconfig("alice", &name)?;
        let namespaces = text(Command::new(kubectl()).arg("--kubeconfig").arg(&config).args(["get", "namespaces"]))?;
        ensure!(namespaces.contains("kube-system"), "{namespaces}");

        let plan = |words: &[&str]| -> Result<String> {
            let mut command = world.hub.cli("admin");
            command.arg("plan").args(words).args(["-c", &name, "--node", "n1", "--wait"]);
            let output = run(&mut command, b"")?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            ensure!(output.status.success(), "{said}");
            Ok(said)
        };
        let folder = platform.path(&pki);
        let said = plan(&["certificates", &format!("look-{label}"), "--dir", &folder])?;
        ensure!(said.contains("apiserver.crt: ") && said.contains(" days left"), "{said}");
        let said =
            plan(&["certificates", &format!("renew-{label}"), "--dir", &folder, "--rotate", "--within-days", "0"])?;
        ensure!(said.contains("apiserver.crt: renewed, "), "{said}");
        let said = plan(&["support-bundle", &format!("help-{label}"), "--command", &format!("{program} --version")])?;
        ensure!(said.contains("---version: ") && !said.contains("version: 0 bytes"), "{said}");
        Ok(())
    })();
    let log = agent.log();
    agent.signal(libc::SIGTERM);
    let _ = agent.wait(Duration::from_secs(40));
    outcome.with_context(|| log)
}

/// What Windows is told of a service. Wine's own service manager starts no service of a prefix without a desktop.
fn service(world: &World) -> Result<()> {
    let home = world.home("service")?;
    let mut command = Platform::Windows.command("moorline", &home)?;
    command.args(["service", "install", "--dry-run", "--", "agent", "--hub", "https://hub.example:8443"]);
    let plan = text(&mut command)?;
    ensure!(plan.contains("moorline.exe") && plan.contains("-- agent --hub https://hub.example:8443"), "{plan}");
    ensure!(plan.to_lowercase().contains("programdata"), "the log is not with the machine's data: {plan}");
    Ok(())
}

/// What stands for kubectl, of which Debian has none for Windows: asks the server of the kubeconfig for a path.
const KUBECTL: &str = r#"
#include <winsock2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) {
    static char config[65536], answer[1 << 20];
    FILE *file = fopen(getenv("KUBECONFIG"), "rb");
    if (!file || argc < 2) return 2;
    fread(config, 1, sizeof config - 1, file);
    char *server = strstr(config, "http://") + 7, *end = strchr(server, '"'), *port = strchr(server, ':') + 1;
    *end = 0;
    char *key = strchr(server, '/'), request[2048];
    snprintf(request, sizeof request, "GET %s%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", key ? key : "", argv[1]);
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
    SOCKET conn = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    to.sin_addr.s_addr = inet_addr("127.0.0.1");
    if (connect(conn, (struct sockaddr *)&to, sizeof to)) return 3;
    send(conn, request, strlen(request), 0);
    size_t had = 0;
    for (int n; had < sizeof answer - 1 && (n = recv(conn, answer + had, sizeof answer - 1 - had, 0)) > 0;) had += n;
    for (int n = 2; n < argc; n++) printf("[%s:%s]\n", argv[n], strstr(answer, argv[n]) ? "yes" : "no");
    return 0;
}
"#;

/// What a terminal shows, without how: Wine's console writes each letter by itself.
fn plain(shown: &str) -> String {
    let mut pieces = shown.split("\x1b[");
    let first = pieces.next().unwrap_or_default().to_owned();
    let rest = pieces.filter_map(|piece| piece.split_once(|c: char| c.is_ascii_alphabetic()));
    rest.fold(first, |shown, (_, text)| shown + text)
}

/// `moorline shell` onto a Windows node.
fn shell(world: &World) -> Result<()> {
    let home = world.home("shell")?;
    let programs = home.join("programs");
    std::fs::create_dir_all(&programs)?;
    std::fs::write(home.join("kubectl.c"), KUBECTL)?;
    let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
    compiler.args(["-O2", "-o"]).arg(programs.join("kubectl.exe")).arg(home.join("kubectl.c")).arg("-lws2_32");
    text(&mut compiler)?;
    // What begins in a pseudo console of Wine's finds the console only when it opens it.
    std::fs::write(programs.join("shell.cmd"), "@cmd /D <CON >CON 2>CON\r\n@exit %errorlevel%\r\n")?;
    let policy = home.join("policy.yaml");
    std::fs::write(&policy, "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {shells: {allow: true}}\n")?;
    let config = home.join("kubeconfig");
    std::fs::copy(world.cluster.kubeconfig(), &config)?;
    let state = home.join("state");
    std::fs::create_dir_all(&state)?;
    let mut command = Platform::Windows.command("moorline-agent", &home)?;
    command.args(world.hub.join_command("winedge")?.iter().skip(2));
    command.args(["--role", "node", "--carrier", "tls", "--name", "win1", "--state-dir"]).arg(&state);
    command.arg("--kubeconfig").arg(&config).arg("--shell-root").arg(&programs).arg("--policy-file").arg(&policy);
    let mut agent = Process::spawn(command, &home.join("agent.log"))?;
    let outcome = (|| {
        world.hub.wait_connected("winedge", START)?;
        world
            .hub
            .moorline("admin", &["grant", "create", "alice-winedge", "--user", "alice", "--cluster", "winedge"])?;
        let open = |typed: &str| -> Result<(String, Option<i32>)> {
            let output = run(world.hub.cli("alice").args(["shell", "winedge", "--node", "win1"]), typed.as_bytes())?;
            let said = [output.stdout, output.stderr].concat();
            Ok((plain(&String::from_utf8_lossy(&said)), output.status.code()))
        };
        let node = world.hub.moorline("admin", &["get", "nodes", "winedge.win1", "-o", "json"])?;
        let node: serde_json::Value = serde_json::from_str(&node)?;
        for resource in ["memory", "disk"] {
            let left = &node["status"][format!("{resource}AvailablePercent")];
            ensure!(left.as_u64().is_some_and(|left| 0 < left && left <= 100), "{resource}: {node}");
        }
        // The agent's own folder can be read by its user, and Wine knows no restricted tokens: no shell.
        let (said, code) = open("exit 3\n")?;
        ensure!(code == Some(1) && said.contains("every user of this node may read"), "{code:?} {said}");
        for path in [&state, &config] {
            std::os::unix::fs::chown(path, Some(12345), None)?;
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        let script = "kubectl /api/v1/namespaces kube-system\n\
                      kubectl /apis/rbac.authorization.k8s.io/v1/clusterroles cannot alice\nexit 3\n";
        let (said, code) = open(script)?;
        println!("a shell of alice's on Windows:\n{said}");
        ensure!(code == Some(3), "{code:?} {said}");
        ensure!(said.contains("[kube-system:yes]"), "{said}");
        ensure!(said.contains("[cannot:yes]") && said.contains("[alice:yes]"), "as herself, no more: {said}");
        Ok(())
    })();
    let log = agent.log();
    let _ = text(Command::new("/usr/lib/wine/wineserver64").arg("-k").env("WINEPREFIX", home.join("prefix")));
    let _ = agent.wait(Duration::from_secs(40));
    outcome.with_context(|| log)
}

type Scene = Box<dyn Fn(&World) -> Result<()> + Send>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let world: Arc<Mutex<Option<World>>> = Arc::default();
    let mut scenes: Vec<(String, Scene)> = vec![
        ("windows_service_plan".into(), Box::new(service)),
        ("windows_a_shell_on_a_node_is_its_users".into(), Box::new(shell)),
    ];
    for (label, platform) in [("amd64", Platform::Native), ("arm64", Platform::Arm64), ("windows", Platform::Windows)] {
        scenes.push((format!("{label}_says_its_version"), Box::new(move |world| version(world, platform))));
        for &carrier in platform.carriers() {
            let name = format!("{label}_serves_over_{carrier}");
            scenes.push((name, Box::new(move |world| serves(world, platform, label, carrier))));
        }
        scenes.push((format!("{label}_is_a_node"), Box::new(move |world| node(world, platform, label))));
    }
    let trials = scenes.into_iter().map(|(name, scene)| {
        let world = Arc::clone(&world);
        Trial::test(name, move || {
            let mut guard = world.lock().unwrap_or_else(PoisonError::into_inner);
            if guard.is_none() {
                *guard = Some(World::start().map_err(|e| format!("{e:#}"))?);
            }
            let Some(world) = guard.as_ref() else { return Err("no world".into()) };
            scene(world).map_err(|e| format!("{e:#}").into())
        })
        // They take minutes and need `make cross` first.
        .with_ignored_flag(true)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(world.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit();
}
