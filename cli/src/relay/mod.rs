//! One context for a cluster that has two ways to it: kubectl speaks to a relay on this machine, which takes the way that
//! works, and of two the nearer.
//!
//! A kubeconfig's context has one server, one authority and one credential; the two ways differ in all three, and in the
//! path too. So the context names a port of this machine's loopback. What listens there is started by the credential
//! plugin, belongs to one user, lets in whoever shows that user's secret, verifies each way by its own authority, and
//! shows each way the token that is for it alone.

mod seat;
mod serve;
mod ways;

pub use seat::{Direct, Seat, remember};
pub use ways::direct_of;

use crate::{
    client::Client,
    failure::{advise, usage},
    files::{self, ProcessLock},
    settings::{KnownHub, Secret},
    text,
};
use http::Method;
use serde_json::Value;
use std::{
    env, fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest wait for an answer of a relay that is there.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest wait for one that was started.
const START: Duration = Duration::from_secs(15);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long kubectl may go without asking for one: less than an unused one stays, so that it is there.
pub const AGAIN: Duration = Duration::from_secs(600);
/// Bytes of its log that are shown when it does not come up.
const LAST_WORDS: usize = 500;

/// `moorline kube relay`
#[derive(Debug, clap::Args)]
pub struct RelayArgs {
    /// End after this long without a connection
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = text::duration)]
    idle: Duration,
    /// Tell which way each cluster is reached, as JSON, instead of serving
    #[arg(long, conflicts_with_all = ["idle", "stop"])]
    show: bool,
    /// End the one that runs, instead of serving
    #[arg(long, conflicts_with = "idle")]
    stop: bool,
}

/// `moorline kube relay`
pub async fn run(args: RelayArgs) -> anyhow::Result<()> {
    let none = || usage("there is no context for it yet", "write one: moorline kubeconfig CLUSTER --auto --merge");
    let seat = Seat::load()?.ok_or_else(none)?;
    if args.stop {
        if ask(&seat, Method::GET).await.is_ok() {
            ask(&seat, Method::DELETE).await?;
            text::say("The relay ends.");
        } else {
            text::say("No relay runs.");
        }
        return Ok(());
    }
    if args.show {
        let answer = ask(&seat, Method::GET)
            .await
            .map_err(|_| advise("no relay runs", "kubectl starts it when it needs it; or: moorline kube relay"))?;
        return Ok(text::print(&format!("{}\n", serde_json::to_string_pretty(&answer)?))?);
    }
    let Ok(_one) = ProcessLock::take(&seat::dir()?.join("run"), Duration::ZERO).await else {
        text::say("Another relay of this user runs already.");
        return Ok(());
    };
    serve::serve(seat, args.idle).await
}

/// What to show to the relay, which runs when this returns.
///
/// # Errors
/// It cannot be started.
pub async fn ready() -> anyhow::Result<Secret> {
    let again = "write the context anew: moorline kubeconfig CLUSTER --auto --merge";
    let seat = Seat::load()?.ok_or_else(|| advise("this context is not of this user or machine", again))?;
    if ask(&seat, Method::GET).await.is_ok() {
        return Ok(seat.secret);
    }
    // Twenty kubectl at once start one.
    let _one = ProcessLock::take(&seat::dir()?.join("start"), START).await?;
    if ask(&seat, Method::GET).await.is_ok() {
        return Ok(seat.secret);
    }
    let mut child = start()?;
    let begun = Instant::now();
    loop {
        if ask(&seat, Method::GET).await.is_ok() {
            return Ok(seat.secret);
        }
        // One that ended well found another, which may be slow to answer.
        let failed = child.try_wait()?.is_some_and(|ended| !ended.success());
        if failed || START < begun.elapsed() {
            let log = fs::read_to_string(seat::dir()?.join("log")).unwrap_or_default();
            let words: String = log.chars().rev().take(LAST_WORDS).collect::<Vec<_>>().into_iter().rev().collect();
            let port = seat.port;
            return Err(advise(
                format!("the relay at port {port} of this machine does not come up: {}", text::clean(words.trim())),
                format!(
                    "see it: moorline kube relay; if another program has port {port}: moorline kubeconfig CLUSTER --auto --auto-port PORT --merge"
                ),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the relay how it is, or to end. Only the one that has this user's key is believed.
async fn ask(seat: &Seat, method: Method) -> anyhow::Result<Value> {
    let hub =
        KnownHub { url: seat.url(), ca: seat.authority()?, token: Some(seat.secret.clone()), ..KnownHub::default() };
    Ok(Client::new(&hub, ANSWER)?.call(method, "/", None).await?)
}

/// Starts a relay that outlives this process, and holds none of its files: kubectl waits until its plugin's output ends.
fn start() -> anyhow::Result<Child> {
    let log = seat::dir()?.join("log");
    files::write_private(&log, b"")?;
    let log = fs::OpenOptions::new().append(true).open(log)?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["kube", "relay"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // What ends kubectl from the terminal is not meant for the next kubectl's relay.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // DETACHED_PROCESS and CREATE_NEW_PROCESS_GROUP of CreateProcess.
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(&mut command, 0x0000_0008 | 0x0000_0200);
    Ok(command.spawn()?)
}
