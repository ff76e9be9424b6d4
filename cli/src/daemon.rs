//! What the hub and the agent have in common as processes: log, signals, limits, threads, a configuration file.

use crate::{
    failure::{advise, usage},
    files,
    logging::{self, LogFormat},
    notify::Notifier,
    text, yaml,
};
use anyhow::Context;
use prometheus::Registry;
use serde::de::DeserializeOwned;
use std::{
    fmt::Display,
    future::Future,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Longest that the end of the process waits for blocking work, such as a file being written.
const LAST_WORK: Duration = Duration::from_secs(5);
/// More threads than this only cost memory: the work is moving bytes.
const MAX_THREADS: usize = 16;

/// Threads for what cannot wait without one: password hashes, the store, name lookups.
const MAX_BLOCKING: usize = 64;

/// Asks the service of this process to end.
static STOP: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);

/// Asks the service of this process to end, as a signal does.
pub fn stop() {
    STOP.cancel();
}

/// How the process runs.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// Form of the log.
    pub log_format: LogFormat,
    /// Worker threads, at most one for each processor.
    pub threads: NonZeroUsize,
}

/// Runs a service until it ends or a signal ends it. SIGTERM or SIGINT: it may finish its work; a second one ends
/// the process at once.
///
/// The service is given a notifier to say that it serves.
pub fn run<F, E>(
    process: Process,
    service: impl FnOnce(CancellationToken, Registry, Arc<Notifier>) -> F,
) -> anyhow::Result<ExitCode>
where
    F: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error>,
{
    let registry = Registry::new();
    let _log = logging::start(process.log_format, &registry)?;
    raise_open_files();
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(process.threads.get().min(cores).min(MAX_THREADS))
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let stop = STOP.clone();
    let notifier = Arc::new(Notifier::from_environment());
    let result = runtime.block_on(async {
        let own = tokio_util::task::AbortOnDropHandle::new;
        let signals = own(tokio::spawn(on_signals(stop.clone(), notifier.clone())));
        let alive = notifier.clone();
        let alive = own(tokio::spawn(async move { alive.alive().await }));
        let result = service(stop, registry, notifier).await;
        drop((signals, alive));
        result
    });
    runtime.shutdown_timeout(LAST_WORK);
    result.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

/// The first signal asks for the end, the second makes it.
async fn on_signals(stop: CancellationToken, notifier: Arc<Notifier>) {
    // Without a handler the system's own stays in place: the process ends at the first signal.
    let Ok(mut signals) = Signals::new() else { return };
    let first = signals.next().await;
    tracing::info!(signal = first.name, "shutting down; a second signal ends at once");
    notifier.stopping();
    stop.cancel();
    let second = signals.next().await;
    // Standard error may be stuck; nothing must keep this from ending.
    std::process::exit(128 + second.number);
}

struct Signal {
    name: &'static str,
    number: i32,
}

const INTERRUPT: Signal = Signal { name: "SIGINT", number: 2 };

/// Listens from its making on, so that a second signal close behind the first is not missed.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal { name: "SIGTERM", number: 15 },
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Signal {
        match tokio::signal::ctrl_c().await {
            Ok(()) => INTERRUPT,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Every stream is a file to the system; the soft limit of many shells is 1024.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let now = getrlimit(Resource::Nofile);
        if now.current != now.maximum && setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now }).is_err() {
            tracing::warn!(limit = now.current, "the limit of open files could not be raised");
        }
    }
}

/// Reads a configuration file. Unknown keys are errors that name the key and the line.
pub fn config<T: DeserializeOwned + Default>(path: Option<&Path>) -> anyhow::Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = files::read_text(path)?
        .ok_or_else(|| usage(format!("{} does not exist", path.display()), "check what --config names"))?;
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    yaml::read(&text).map_err(|e| {
        advise(format!("{}: {}", path.display(), text::clean(&e.to_string())), "the keys are those of --help")
    })
}

/// The flag's or variable's value, or else the file's, read by the same rule.
pub fn either<T>(flag: Option<T>, file: Option<String>, key: &str) -> anyhow::Result<Option<T>>
where
    T: FromStr<Err: Display>,
{
    match flag {
        Some(value) => Ok(Some(value)),
        None => file.map(|text| read(&text, key)).transpose(),
    }
}

/// A setting's value from text.
pub fn read<T>(text: &str, key: &str) -> anyhow::Result<T>
where
    T: FromStr<Err: Display>,
{
    text.parse().map_err(|e: T::Err| usage(format!("{key}: {e}"), "check the configuration; the rules are in --help"))
}

/// A time span from the file.
pub fn span(text: &str, key: &str) -> anyhow::Result<Duration> {
    text::duration(text).map_err(|rule| usage(format!("{key}: {rule}"), "check the configuration file"))
}

/// Where a service keeps its state unless told: the system's place for root, the user's own otherwise.
pub fn state_dir(name: &str) -> anyhow::Result<PathBuf> {
    #[cfg(unix)]
    if rustix::process::geteuid().is_root() {
        return Ok(Path::new("/var/lib").join(name));
    }
    #[cfg(windows)]
    return program_data().map(|base| base.join(name));
    #[cfg(not(windows))]
    user_state().map(|base| base.join(name))
}

/// Where Windows keeps what belongs to the machine; elsewhere the user's own place.
pub fn program_data() -> anyhow::Result<PathBuf> {
    match std::env::var_os("ProgramData").filter(|dir| cfg!(windows) && !dir.is_empty()) {
        Some(dir) => Ok(dir.into()),
        None => user_state(),
    }
}

fn user_state() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty());
    base.map_or_else(|| files::home().map(|home| home.join(".local").join("state")), |dir| Ok(dir.into()))
}
