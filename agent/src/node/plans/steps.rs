//! What each kind of step does.

use super::{
    Plans,
    certificates::{self, Pki},
    collect,
    store::replace,
};
use crate::{limits, node::kubeconfigs};
use moorline_authz::{
    edge::EdgeDenial,
    plan::{Fetch, Move, Probe, Run, Step, Write, is_plain, sha256, without_verbatim},
};
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

/// A step that was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub output: Vec<u8>,
    /// It has left a file for the hub.
    pub file: bool,
}

/// A step that was not done.
#[derive(Debug)]
pub(super) struct Failure {
    pub why: String,
    pub output: Vec<u8>,
}
impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, output: Vec::new() }
    }
}
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        error.to_string().into()
    }
}

/// Why a probe does not say yes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unlike {
    /// It is not so.
    #[error("{0}")]
    Not(String),
    /// The cluster's owner does not let it be looked at.
    #[error("refused by policy: {0}")]
    Refused(EdgeDenial),
}

impl Plans {
    pub(super) async fn perform(&self, uid: &str, step: &Step) -> Result<Done, Failure> {
        if let Some(write) = &step.write {
            return self.write(write).map(|()| Done::default());
        }
        if let Some(fetch) = &step.fetch {
            return self.fetch(fetch).await.map(|()| Done::default());
        }
        if let Some(rename) = &step.rename {
            return self.rename(rename).map(|()| Done::default());
        }
        if let Some(run) = &step.run {
            return self.run_command(run).await;
        }
        if let Some(probe) = &step.probe {
            return self.until(probe).await.map(|()| Done::default()).map_err(|why| why.to_string().into());
        }
        if let Some(report) = &step.report_certificates {
            let pki = self.pki(&report.dir)?;
            return Ok(Done { output: certificates::report(&pki).into_bytes(), file: false });
        }
        if let Some(rotate) = &step.rotate_certificates {
            let (pki, rotate) = (self.pki(&rotate.dir)?, rotate.clone());
            let work = tokio::task::spawn_blocking(move || certificates::rotate(&pki, &rotate));
            let output = work.await.map_err(|_| "it has failed by a bug".to_owned())??;
            return Ok(Done { output: output.into_bytes(), file: false });
        }
        if let Some(collect) = &step.collect {
            let output = collect::collect(self, collect, &self.store.file(uid, &step.name)).await?;
            return Ok(Done { output: output.into_bytes(), file: true });
        }
        Err("this agent knows no such step".to_owned().into())
    }

    /// Where a path leads once the links above it are followed, if the owner allows that place too. The last part may be
    /// missing, and is not followed.
    pub(super) fn real(&self, path: &str) -> Result<PathBuf, Failure> {
        let real = leads(path)?;
        self.allows(&real).map_or_else(|denial| Err(denial.to_string().into()), |()| Ok(real))
    }

    /// A folder whose files are read or replaced: where it is a link, its end must be allowed too.
    fn folder(&self, path: &str) -> Result<PathBuf, Failure> {
        let end = fs::canonicalize(self.real(path)?).map_err(|e| format!("{path}: {e}"))?;
        self.real(without_verbatim(&end.to_string_lossy()))
    }

    /// A folder of certificates, with the kubeconfig files beside it where the owner has named their folder too.
    fn pki(&self, path: &str) -> Result<Pki, Failure> {
        let dir = self.folder(path)?;
        let beside = kubeconfigs::folder(&dir).map_or(Ok(()), |above| self.allows(above).map_err(|e| e.to_string()));
        Ok(Pki { dir, beside })
    }

    fn allows(&self, real: &Path) -> Result<(), EdgeDenial> {
        self.policy.current().plan_path(without_verbatim(&real.to_string_lossy()))
    }

    fn put(&self, path: &str, bytes: &[u8], mode: &str) -> Result<(), Failure> {
        let mode = u32::from_str_radix(mode, 8).map_err(|_| format!("{mode:?} is no mode"))?;
        let path = self.real(path)?;
        if same(&path, bytes, mode) {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        replace(&path, bytes, mode).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    fn write(&self, write: &Write) -> Result<(), Failure> {
        self.put(&write.path, write.content.as_bytes(), &write.mode)
    }

    /// Waits until the hub has sent the file.
    async fn fetch(&self, fetch: &Fetch) -> Result<(), Failure> {
        let kept = self.store.fetched(&fetch.sha256);
        let until = Instant::now() + limits::PLAN_FETCH;
        while !kept.exists() {
            if until < Instant::now() {
                return Err("the hub has not sent the file".to_owned().into());
            }
            sleep(limits::PLAN_LOOK / 4).await;
        }
        let bytes = fs::read(&kept)?;
        if sha256(&bytes) != fetch.sha256 {
            let _ = fs::remove_file(&kept); // it is asked for again
            return Err("the file that the hub has sent has another checksum".to_owned().into());
        }
        self.put(&fetch.path, &bytes, &fetch.mode)?;
        fs::remove_file(&kept).map_err(Failure::from)
    }

    fn rename(&self, rename: &Move) -> Result<(), Failure> {
        let (from, to) = (self.real(&rename.from)?, self.real(&rename.to)?);
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        match (there(&from), there(&to)) {
            (false, true) => Ok(()), // done before
            (true, there) if !there || rename.replace => {
                fs::rename(&from, &to).map_err(|e| format!("{}: {e}", from.display()).into())
            }
            (true, _) => Err(format!("{} is there already", to.display()).into()),
            (false, false) => Err(format!("{} is not there", from.display()).into()),
        }
    }

    async fn run_command(&self, run: &Run) -> Result<Done, Failure> {
        if let Some(unless) = &run.unless {
            match self.probe(unless).await {
                Ok(()) => return Ok(Done { output: b"not needed".to_vec(), file: false }),
                Err(refused @ Unlike::Refused(_)) => return Err(refused.to_string().into()),
                Err(Unlike::Not(_)) => {}
            }
        }
        let seconds = if run.timeout_seconds == 0 { 300 } else { run.timeout_seconds };
        let (output, ended) = command(&run.command, Duration::from_secs(seconds.into()), limits::PLAN_OUTPUT).await?;
        match ended {
            Ok(()) => Ok(Done { output, file: false }),
            Err(why) => Err(Failure { why, output }),
        }
    }

    async fn until(&self, probe: &Probe) -> Result<(), Unlike> {
        let until = Instant::now() + Duration::from_secs(probe.within_seconds.into());
        loop {
            match self.probe(probe).await {
                Err(Unlike::Not(_)) if Instant::now() < until => sleep(limits::PLAN_LOOK / 4).await,
                said => return said,
            }
        }
    }

    /// Whether something is so, as far as the owner lets it be looked at now.
    pub(super) async fn probe(&self, probe: &Probe) -> Result<(), Unlike> {
        self.policy.current().plan_probe(probe).map_err(Unlike::Refused)?;
        let Some(path) = probe.path() else { return self.dial(probe).await.map_err(Unlike::Not) };
        let real = leads(path).map_err(|failure| Unlike::Not(failure.why))?;
        // A link must not tell what is elsewhere.
        self.allows(&real).map_err(Unlike::Refused)?;
        fs::symlink_metadata(&real).map(drop).map_err(|error| Unlike::Not(format!("{path}: {error}")))
    }

    async fn dial(&self, probe: &Probe) -> Result<(), String> {
        let connect = |to: &str| {
            let to = to.to_owned();
            async move {
                let dialled = timeout(limits::NODE_PROBE, TcpStream::connect(to.clone())).await;
                dialled.map_err(|_| format!("{to}: no answer in time"))?.map(drop).map_err(|e| format!("{to}: {e}"))
            }
        };
        if !probe.tcp.is_empty() {
            return connect(&probe.tcp).await;
        }
        if !probe.closed.is_empty() {
            return match connect(&probe.closed).await {
                Ok(()) => Err(format!("{} takes connections", probe.closed)),
                Err(_) => Ok(()),
            };
        }
        let asked = timeout(limits::NODE_PROBE, crate::node::probe::answers(&probe.http)).await;
        asked.map_err(|_| format!("{}: no answer in time", probe.http))?
    }
}

/// Where a path leads once the links above it are followed. The last part may be missing, and is not followed.
fn leads(path: &str) -> Result<PathBuf, Failure> {
    if !is_plain(path) {
        return Err(format!("{path:?} is no absolute path without . and ..").into());
    }
    let path = Path::new(path);
    // Plans do not know what a node runs: `C:\a` is one name on Linux, and `/a` is on no drive on Windows.
    if !path.is_absolute() {
        return Err(format!("{} is no path of this node's system", path.display()).into());
    }
    let mut there = path.parent().unwrap_or(path);
    while !there.exists() {
        there = there.parent().ok_or_else(|| format!("{}: there is no such drive", path.display()))?;
    }
    let rest = path.strip_prefix(there).map_err(|e| e.to_string())?;
    Ok(fs::canonicalize(there)?.join(rest))
}

/// Whether a file is there as it should be.
fn same(path: &Path, bytes: &[u8], mode: u32) -> bool {
    let plain = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && has_mode(&found, mode));
    plain && fs::read(path).is_ok_and(|found| found == bytes)
}
#[cfg(unix)]
fn has_mode(found: &fs::Metadata, mode: u32) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o7777 == mode
}
#[cfg(not(unix))]
fn has_mode(_: &fs::Metadata, _: u32) -> bool {
    true
}

/// Where programs look for others.
#[cfg(not(windows))]
fn surroundings() -> Vec<(&'static str, OsString)> {
    vec![("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())]
}

/// Where programs look for others, and where Windows is: few begin without that.
#[cfg(windows)]
fn surroundings() -> Vec<(&'static str, OsString)> {
    let root = std::env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
    let mut path = root.clone();
    path.push(r"\System32;");
    path.push(&root);
    vec![("SystemRoot", root), ("PATH", path)]
}

/// Runs a program to its end, and gives the end of what it printed. It gets nothing of the agent's: no input, no
/// environment but what [`surroundings`] are, no files.
pub(super) async fn command(
    words: &[String],
    patience: Duration,
    most: usize,
) -> Result<(Vec<u8>, Result<(), String>), Failure> {
    let Some((program, arguments)) = words.split_first() else { return Err("no program".to_owned().into()) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(surroundings())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let mut group = Group(child.id());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut printed = Vec::new();
    let waited = {
        let (heard, mut hear) = tokio::sync::mpsc::channel::<Vec<u8>>(16);
        let pump = async { tokio::join!(drain(out, heard.clone()), drain(err, heard)) };
        tokio::pin!(pump);
        let end = sleep(patience);
        tokio::pin!(end);
        let mut pumping = true;
        let mut exited = None;
        loop {
            tokio::select! {
                biased;
                Some(piece) = hear.recv() => {
                    printed.extend_from_slice(&piece);
                    let surplus = printed.len().saturating_sub(most);
                    printed.drain(..surplus);
                }
                _ = &mut pump, if pumping => pumping = false,
                status = child.wait(), if exited.is_none() => {
                    exited = Some(status);
                    group.leave();
                    // What it has left behind may hold its output open: that is not waited for.
                    end.as_mut().reset(Instant::now() + limits::PLAN_LAST_OUTPUT);
                }
                () = &mut end => break exited,
            }
            if !pumping && exited.is_some() && hear.is_empty() {
                break exited;
            }
        }
    };
    match waited {
        None => {
            group.kill();
            Ok((printed, Err(format!("{program} was killed after {} s", patience.as_secs()))))
        }
        Some(status) => {
            let status = status?;
            let why = format!("{program} ended with {status}");
            Ok((printed, if status.success() { Ok(()) } else { Err(why) }))
        }
    }
}

/// A program and what it has started, as long as that does not leave. Dropped, all of it is killed.
struct Group(Option<u32>);
impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
impl Group {
    /// It has ended by itself: what it has left behind goes on.
    fn leave(&mut self) {
        self.0 = None;
    }

    #[cfg(unix)]
    fn kill(&mut self) {
        use rustix::process::{Pid, Signal, kill_process_group};
        let id = self.0.take().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process_group(id, Signal::KILL); // it may be gone
        }
    }
    #[cfg(not(unix))]
    fn kill(&mut self) {}
}

async fn drain(from: Option<impl AsyncRead + Unpin>, to: tokio::sync::mpsc::Sender<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 8 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.send(buffer.get(..n).unwrap_or_default().to_vec()).await.is_err() {
            return;
        }
    }
}
