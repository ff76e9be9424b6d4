//! Node agents across a network that fails: shells, plans, standing in; and many of them.

use crate::{
    faults::{ms, secs},
    node_loss::SILENT,
};
use futures_util::FutureExt;
use moorline_netsim::{LONG, across::Across, crowd::Crowd, emulator::Road};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

/// A network that fails, and what the node's agent is told to take.
#[derive(Clone, Copy, Debug)]
struct Net {
    worst: bool,
    carrier: &'static str,
}

impl Net {
    /// 300 ms there and back, one packet in a hundred is lost. The worst: each way up to 100 ms longer, one packet in twenty is
    /// lost, 1 Mbit/s, and packets of more than 1280 bytes vanish. UDP is blocked where the agent has to find that out.
    fn road(self) -> Road {
        let road = Road::clear().delay(ms(150));
        let road = match self.worst {
            false => road.jitter(ms(20)).loss(0.01),
            true => road.jitter(ms(100)).loss(0.05).rate(1_000_000, 128 << 10).largest(1280),
        };
        if self.carrier == "auto" { road.without_udp() } else { road }
    }
}

/// One scene on each of these networks, all at once.
async fn on_each<F: Future<Output = ()> + Send + 'static>(scene: impl Fn(Net) -> F) {
    let nets = [(false, "quic"), (false, "auto"), (true, "quic"), (true, "tls"), (true, "websocket"), (true, "auto")];
    let nets = nets.map(|(worst, carrier)| Net { worst, carrier });
    let scenes = nets.map(|net| (net, tokio::spawn(scene(net))));
    let mut failed = Vec::new();
    for (net, scene) in scenes {
        if scene.await.is_err() {
            failed.push(net);
        }
    }
    assert!(failed.is_empty(), "failed on {failed:?}");
}

/// Programs for a shell: one static one, by several names.
fn shell_root(dir: &Path) -> PathBuf {
    let bin = dir.join("root/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in ["sh", "stty", "sleep", "id"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
    dir.join("root")
}

/// How often the shell says that it is there, ten times a second.
const TICKS: usize = 350;

/// A cut of ten seconds, through which the session lives; and one of 25, which the shell outlives without its client.
#[tokio::test(flavor = "multi_thread")]
async fn a_shell_behind_a_bad_network_loses_nothing() {
    on_each(|net| async move {
        let scene = Across::on("tls").await.unwrap();
        scene.link.becomes(net.road());
        let root = shell_root(&scene.dir()).display().to_string();
        let node = scene.node("n1", net.carrier, "{shells: {allow: true}}", &["--shell-root", &root]).await.unwrap();
        let mut shell = tokio::process::Command::from(scene.cli().unwrap());
        shell.args(["shell", "edge1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = shell.kill_on_drop(true).spawn().unwrap();
        let (mut typed, mut shown) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let mut told = shell.stderr.take().unwrap();
        // What is typed is echoed: none of it reads like what is shown.
        let script = format!(
            "exec sh -c 'stty -echo; t=ti; g=go; pad=$(printf %0400d 0); i=0; while [ $i -lt {TICKS} ]; do echo ${{t}}ck $i $pad; \
             i=$((i+1)); sleep 0.1; done; while read line; do echo \"${{g}}t: $line\"; [ \"$line\" = last ] && exit 3; done'\n"
        );
        let pad = "0".repeat(400);
        typed.write_all(script.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let begun = async {
            while !String::from_utf8_lossy(&all).contains("tick 5 ") {
                assert_ne!(shown.read_buf(&mut all).await.unwrap(), 0, "it ended");
            }
        };
        timeout(LONG, begun).await.unwrap_or_else(|_| panic!("no shell: {}", node.log()));
        let rest = tokio::spawn(async move {
            shown.read_to_end(&mut all).await.unwrap();
            String::from_utf8_lossy(&all).into_owned()
        });
        for (long, line) in [(10, "during the first cut"), (25, "during the second cut")] {
            scene.link.becomes(Road::clear().cut());
            sleep(secs(1)).await;
            typed.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            sleep(secs(long - 1)).await;
            scene.link.becomes(net.road());
            sleep(secs(2)).await;
        }
        typed.write_all(b"last\n").await.unwrap();
        let code = timeout(LONG, shell.wait()).await.unwrap().unwrap();
        let (all, mut said) = (rest.await.unwrap(), String::new());
        told.read_to_string(&mut said).await.unwrap();
        assert_eq!(code.code(), Some(3), "{said}");
        assert!(said.contains("coming back to the shell") && !said.contains("not kept"), "{said}");
        let ticks: Vec<&str> = all.lines().filter(|line| line.starts_with("tick ")).collect();
        let wanted: Vec<String> = (0..TICKS).map(|n| format!("tick {n} {pad}")).collect();
        assert_eq!(ticks.len(), wanted.len(), "{net:?}");
        assert!(ticks.iter().zip(&wanted).all(|(tick, wanted)| tick == wanted), "{net:?}");
        let got: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("got: ")).collect();
        assert_eq!(got, ["during the first cut", "during the second cut", "last"], "{net:?}");
        println!("{net:?}: {} ticks and {} lines, each once", ticks.len(), got.len());
    })
    .await;
}

/// A shell that has a name, whose client is killed as when a terminal is closed: another process comes back to it by that name
/// and sees what it has shown; and a third takes it over from that one, which says so and does not fight for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_come_back_to_by_its_name() {
    let scene = Across::on("tls").await.unwrap();
    let root = shell_root(&scene.dir()).display().to_string();
    let node = scene.node("n1", "tls", "{shells: {allow: true}}", &["--shell-root", &root]).await.unwrap();
    let open = |more: &[&str]| {
        let mut shell = tokio::process::Command::from(scene.cli().unwrap());
        shell.args(["shell", "edge1"]).args(more).kill_on_drop(true);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let until = async |shell: &mut tokio::process::Child, mark: &str| {
        let (mut all, out) = (Vec::new(), shell.stdout.as_mut().unwrap());
        let shown = async {
            while !String::from_utf8_lossy(&all).contains(mark) {
                assert_ne!(out.read_buf(&mut all).await.unwrap(), 0, "it ended");
            }
        };
        let shown = timeout(LONG, shown).await;
        assert!(shown.is_ok(), "no {mark}: {:?}, {}", String::from_utf8_lossy(&all), node.log());
        String::from_utf8_lossy(&all).into_owned()
    };
    let mut first = open(&["--session", "work"]);
    // What is typed is echoed: none of it reads like what is shown.
    first.stdin.as_mut().unwrap().write_all(b"stty -echo; here=kept; echo be''gun\n").await.unwrap();
    until(&mut first, "begun\r\n").await;
    first.kill().await.unwrap();

    let named = ["--session", "work", "--attach"];
    let mut second = open(&named);
    second.stdin.as_mut().unwrap().write_all(b"echo $here-by-$(id -u)\n").await.unwrap();
    let shown = until(&mut second, "kept-by-1900000000").await;
    assert!(shown.contains("begun"), "what was shown before is shown again: {shown:?}");

    let mut third = open(&named);
    third.stdin.as_mut().unwrap().write_all(b"echo $here-again\n").await.unwrap();
    until(&mut third, "kept-again").await;
    let taken = timeout(LONG, second.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(taken.status.code() == Some(1) && said.contains("goes on in another terminal"), "{said}");
    third.stdin.as_mut().unwrap().write_all(b"exit 7\n").await.unwrap();
    assert_eq!(timeout(LONG, third.wait()).await.unwrap().unwrap().code(), Some(7));

    // There is none of that name any more.
    let gone = timeout(LONG, open(&named).wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(gone.status.code() == Some(1) && said.contains("the shell is gone"), "{said}");
}

/// What the hub says of a plan.
async fn plan(scene: &Across, name: &str) -> Value {
    scene.admin.look(&format!("nodeplans/{name}")).await.unwrap()["status"].clone()
}

/// Waits until the hub says so of a plan on its one node.
async fn plan_is(scene: &Across, name: &str, what: &str, is: impl Fn(&Value) -> bool) {
    let waited = async {
        while !is(&plan(scene, name).await) {
            sleep(ms(100)).await;
        }
    };
    if timeout(LONG, waited).await.is_err() {
        panic!("{what}: {}", plan(scene, name).await);
    }
}

/// A cut in the middle of a plan, and an agent that is killed while it lasts, as when the node loses its power.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_behind_a_bad_network_goes_on_after_a_cut_and_a_crash() {
    on_each(|net| async move {
        let scene = Across::on("tls").await.unwrap();
        let work = fs::canonicalize(scene.dir()).unwrap().join("work");
        fs::create_dir(&work).unwrap();
        let file = |name: &str| work.join(name).display().to_string();
        let policy = format!("{{plans: {{allow: true, commands: [/bin/sh], paths: ['{}']}}}}", work.display());
        scene.link.becomes(net.road());
        let node = scene.node("n1", net.carrier, &policy, &[]).await.unwrap();

        // Larger than the path holds at once.
        let content = "settings ".repeat(100_000);
        fs::write(scene.dir().join("settings"), &content).unwrap();
        let mut upload = scene.cli().unwrap();
        let said =
            moorline_e2e::process::text(upload.args(["plan", "upload"]).arg(scene.dir().join("settings"))).unwrap();
        let sha256 = said.split_whitespace().find(|word| word.len() == 64).unwrap().to_owned();
        let log = |word: &str| json!({ "command": ["/bin/sh", "-c", format!("echo {word} >> {}", file("log"))] });
        let steps = json!([
            { "name": "first", "run": log("first") },
            { "name": "settings", "tries": 9, "fetch": { "sha256": sha256, "path": file("settings") } },
            { "name": "wait", "probe": { "file": file("go"), "withinSeconds": 300 } },
            { "name": "last", "run": log("last") },
        ]);
        let spec = json!({ "cluster": "edge1", "nodes": ["n1"], "steps": steps });
        scene.admin.make("nodeplans", "NodePlan", json!({ "name": "tune" }), spec).await.unwrap();
        let step = |status: &Value, n: usize| status["nodes"][0]["progress"]["steps"][n]["phase"].clone();
        plan_is(&scene, "tune", "the third step", |status| step(status, 2) == "Running").await;
        assert_eq!(fs::read_to_string(file("settings")).unwrap(), content);

        scene.link.becomes(Road::clear().cut());
        node.signal(libc::SIGKILL);
        drop(node);
        let begun = Instant::now();
        let node = scene.begin_node("n1", net.carrier, &policy, &[]).await.unwrap();
        sleep(secs(10).saturating_sub(begun.elapsed())).await;
        fs::write(file("go"), "").unwrap();
        scene.link.becomes(net.road());
        let healed = Instant::now();
        plan_is(&scene, "tune", "the end", |status| status["phase"] == "Succeeded").await;
        println!("{net:?}: the hub knows of the end {:?} after the heal", healed.elapsed());
        assert_eq!(fs::read_to_string(file("log")).unwrap(), "first\nlast\n", "each once: {}", node.log());
        let status = plan(&scene, "tune").await;
        assert_eq!(status["nodes"][0]["progress"]["steps"][0]["tries"], 1, "{status}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_stands_in_behind_a_bad_network() {
    on_each(|net| async move {
        let scene = Across::on("tls").await.unwrap();
        scene.link.becomes(net.road());
        let _node = scene.node("n1", net.carrier, "{}", &[]).await.unwrap();
        let told = async {
            while scene.admin.look("nodes/edge1.n1").await.is_err() {
                sleep(ms(100)).await;
            }
        };
        timeout(LONG, told).await.unwrap();
        // The cluster agent is frozen: nothing says that it is gone.
        scene.agent.signal(libc::SIGSTOP);
        let took = scene.answers_within(secs(SILENT)).await.unwrap();
        let taken = scene.hub_metric("moorline_hub_fallback_streams_total", &[]).await.unwrap();
        println!("{net:?}: answered {took:?} after the silence");
        assert!(taken > 0.0, "{net:?}");
        scene.agent.signal(libc::SIGCONT);
    })
    .await;
}

/// Node agents of a cluster that were there before the others are counted: what grows with the first ones is not theirs.
const FIRST: usize = 50;

/// A cluster of so many nodes in three zones, one zone after the other: who holds a session, and what the others cost.
async fn crowd(size: usize) {
    let mut crowd = Crowd::start().await.unwrap();
    crowd.join(FIRST, "a").await.unwrap();
    let mut standing = crowd.greet(0).await.unwrap().standing;
    crowd.has_written(FIRST).await.unwrap();
    let before = crowd.memory().await.unwrap();

    for (zone, count) in [("a", size / 3 - FIRST), ("b", size / 3), ("c", size - 2 * (size / 3))] {
        crowd.join(count, zone).await.unwrap();
    }
    let round = crowd.greet(FIRST).await.unwrap();
    standing.extend(round.standing);
    let written = crowd.has_written(size).await.unwrap();
    assert_eq!(crowd.nodes().await.unwrap(), size, "each has its object");
    let each = (crowd.memory().await.unwrap().saturating_sub(before)) / (size - FIRST) as u64;

    // One of each zone, whoever came first.
    let settled = async {
        loop {
            standing.retain(|(_, agent)| agent.session.closed().now_or_never().is_none());
            if standing.len() == 3 && crowd.standing().await.unwrap() == 3 {
                break;
            }
            sleep(ms(100)).await;
        }
    };
    timeout(LONG, settled).await.unwrap();
    let mut zones: Vec<&str> = standing.iter().map(|(zone, _)| *zone).collect();
    zones.sort_unstable();
    assert_eq!(zones, ["a", "b", "c"]);
    assert!(round.pauses.iter().all(|pause| secs(20) <= *pause && *pause <= secs(40)), "{:?}", round.pauses);

    // They ask again, and nothing has changed.
    let again = crowd.greet(0).await.unwrap();
    assert!(size - again.pauses.len() <= 3, "{} were let in", again.standing.len());
    let asking = again.busy.as_secs_f64() / size as f64;
    println!(
        "{size} nodes: 3 hold a session, in zones {zones:?}; each of the others costs the hub {:.1} KiB, and {:.2} ms of a \
         processor when it asks, once in 20 to 40 s; {written} reports were written",
        each as f64 / 1024.0,
        asking * 1e3,
    );
    assert!(each < 64 << 10, "{each} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_node_agents_three_hold_sessions_and_the_others_are_cheap() {
    crowd(240).await;
}

/// For a machine that has nothing else to do: in `make test-long`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn of_a_thousand_node_agents_three_hold_sessions() {
    crowd(1000).await;
}
