//! The binaries of other platforms, run: Arm64 by qemu, Windows by Wine, static x86_64 by itself.
//!
//! Each says its version, joins a native hub over each carrier, and serves a request to a real API server. Run by
//! `make test-long`, which builds them first: `cross/build.sh` into `MOORLINE_DIST` (default `target/dist`).

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use moorline_e2e::{
    cluster::Cluster,
    moorline::{Hub, kubectl},
    process::{Process, text},
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

type Scene = Box<dyn Fn(&World) -> Result<()> + Send>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let world: Arc<Mutex<Option<World>>> = Arc::default();
    let mut scenes: Vec<(String, Scene)> = vec![("windows_service_plan".into(), Box::new(service))];
    for (label, platform) in [("amd64", Platform::Native), ("arm64", Platform::Arm64), ("windows", Platform::Windows)] {
        scenes.push((format!("{label}_says_its_version"), Box::new(move |world| version(world, platform))));
        for &carrier in platform.carriers() {
            let name = format!("{label}_serves_over_{carrier}");
            scenes.push((name, Box::new(move |world| serves(world, platform, label, carrier))));
        }
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
