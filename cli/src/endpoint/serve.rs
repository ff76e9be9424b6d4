//! `moorline endpoint --mode …`: serves until a signal ends it.

use super::Folder;
use crate::{
    daemon::{self, Process},
    failure, files,
    logging::LogFormat,
    target::HubUrl,
};
use anyhow::Context;
use moorline_agent::{UpstreamConfig, policy::PolicyFile, review::ClusterRules, upstream::ApiServer};
use moorline_endpoint::{
    limits,
    live::Live,
    metrics::Metrics,
    ops,
    proxy::Proxy,
    queue::Queue,
    recordings::{self, outbox},
    server, tls, usage, webhook,
};
use moorline_proxy::{
    audit::{AuditSink, FileSink, OnFailure, chain::Chain},
    kube::ProxyMetrics,
    tape::{Outbox, Store},
};
use serde_json::json;
use std::{env, net::SocketAddr, num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where Kubernetes puts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Threads of an endpoint where there are that many processors.
const THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);
/// Audit records that may wait for the disk before calls are refused.
const WAITING: usize = 4096;

/// How users get to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// By this endpoint, which impersonates them
    Proxy,
    /// By themselves: the API server asks this endpoint who they are
    Webhook,
}

/// `moorline endpoint --mode …`
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// How users get to the API server
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    #[command(flatten)]
    folder: Folder,
    /// Address to serve at, TLS [default: 0.0.0.0:6444]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MOORLINE_LISTEN",
        default_value = "0.0.0.0:6444",
        hide_default_value = true
    )]
    listen: SocketAddr,
    /// A DNS name or IP address that it is reached by; can be repeated [default: localhost]
    #[arg(long = "name", value_name = "NAME", env = "MOORLINE_NAMES", value_delimiter = ',')]
    names: Vec<String>,
    /// What users' kubeconfigs shall name: this endpoint, or with a webhook the API server
    #[arg(long, value_name = "URL", env = "MOORLINE_PUBLIC_URL")]
    public_url: Option<HubUrl>,
    /// With --public-url of a webhook: PEM file of the API server's authority
    #[arg(long, value_name = "FILE")]
    public_ca: Option<PathBuf>,
    /// Certificate chain to show, PEM [default: of an authority of this endpoint's own]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Reach the API server as this kubeconfig says [default: as a pod's service account]
    #[arg(long, value_name = "FILE", env = "MOORLINE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// What the cluster's owner allows, YAML: the agent's policy file
    #[arg(long, value_name = "FILE", env = "MOORLINE_POLICY_FILE")]
    policy_file: Option<PathBuf>,
    /// A user who gets in also when the bundle's time is over; can be repeated
    #[arg(long = "break-glass", value_name = "USER", env = "MOORLINE_BREAK_GLASS", value_delimiter = ',')]
    break_glass: Vec<String>,
    /// Longest recording of a session in a terminal, in MiB; such a session ends there [default: 32]
    #[arg(long, value_name = "MIB", env = "MOORLINE_RECORDINGS_MAX_FILE_MIB", value_parser = clap::value_parser!(u64).range(1..=limits::RECORDING_MOST >> 20))]
    recordings_max_file_mib: Option<u64>,
    /// Recordings that may wait for the hub, in MiB; with more no session that has to be recorded begins or goes on [default: 256]
    #[arg(long, value_name = "MIB", env = "MOORLINE_RECORDINGS_MAX_TOTAL_MIB", value_parser = clap::value_parser!(u64).range(1..1 << 30))]
    recordings_max_total_mib: Option<u64>,
    /// Address for /livez, /readyz and /metrics, plain HTTP [default: none]
    #[arg(long, value_name = "ADDRESS", env = "MOORLINE_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    /// Form of the log [default: text]
    #[arg(long, value_enum, env = "MOORLINE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let Some(mode) = args.mode else {
        return Err(failure::usage("how shall users get in?", "say it: --mode proxy or --mode webhook"));
    };
    args.folder.dir()?;
    let log_format = args.log_format.unwrap_or(LogFormat::Text);
    daemon::run(Process { log_format, threads: THREADS }, |stop, registry, notifier| async move {
        serve(args, mode, stop, registry, || notifier.ready()).await
    })
}

async fn serve(
    args: ServeArgs,
    mode: Mode,
    stop: CancellationToken,
    registry: prometheus::Registry,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    let dir = args.folder.dir()?.to_owned();
    let shelf = args.folder.shelf()?;
    let metrics = Metrics::new(&registry)?;
    let cluster = shelf.cluster().to_owned();
    // An empty variable is an empty list, and not a user without a name.
    let glass = args.break_glass.iter().filter(|user| !user.is_empty()).cloned().collect();
    let live = Live::open(shelf, glass, metrics.clone())?;
    let agent_metrics = moorline_agent::metrics::Metrics::new(&registry)?;
    let policy = Arc::new(PolicyFile::open(args.policy_file.as_deref())?);
    let current = Arc::clone(&policy);
    let policy_now: webhook::PolicyNow = Arc::new(move || current.current());
    let names = if args.names.is_empty() { vec!["localhost".to_owned()] } else { args.names.clone() };
    let served = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => tls::given(cert, key)?,
        _ => {
            let own = dir.join("tls");
            files::make_private_dir(&own)?;
            tls::own(&own, &names)?
        }
    };
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    let ops_listener = match args.http_listen {
        Some(addr) => Some(TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?),
        None => None,
    };
    tell(&args, mode, &dir, &served.ca_pem)?;
    let ops = async {
        match ops_listener {
            Some(listener) => ops::serve(listener, registry.clone(), live.clone()).await,
            None => std::future::pending().await,
        }
    };
    tracing::info!(cluster, addr = %args.listen, ?mode, current = live.is_current(), "endpoint serves");
    ready();
    let tasks = TaskTracker::new();
    let follow = live.clone();
    let word = match mode {
        Mode::Proxy => "proxy",
        Mode::Webhook => "webhook",
    };
    let work = async {
        match mode {
            Mode::Webhook => {
                let handler = Arc::new(webhook::Webhook { live: live.clone(), policy: policy_now });
                server::serve(listener, served.config, handler, metrics, tasks, stop.clone()).await;
            }
            Mode::Proxy => {
                let upstream = Arc::new(ApiServer::new(upstream(&args)?, agent_metrics.clone()).await?);
                let (queue, outbox) = (Queue::open(&dir.join("audit"))?, outbox(&dir));
                let audit = FileSink::to_writer(queue.writer()?, Chain::default(), WAITING, OnFailure::Refuse)?;
                let handler = Proxy::new(
                    live.clone(),
                    policy_now,
                    Arc::clone(&upstream),
                    Arc::new(ClusterRules::new(Arc::clone(&upstream))),
                    Arc::clone(&audit) as _,
                    ProxyMetrics::new(&registry)?,
                    tasks.clone(),
                );
                let handler = handler.recording(recordings_store(&args, &dir, Arc::clone(&audit) as _)?);
                let serving = server::serve(listener, served.config, Arc::new(handler), metrics.clone(), tasks, stop);
                tokio::select! {
                    () = serving => {}
                    () = upstream.maintain() => {}
                    () = measure(&queue, &outbox, &metrics) => {}
                }
                audit.close().await;
            }
        }
        Ok(())
    };
    tokio::select! {
        done = work => done,
        () = ops => Ok(()),
        () = follow.follow() => Ok(()),
        () = usage::tell(&dir, word, &follow) => Ok(()),
        () = policy.watch(&agent_metrics) => Ok(()),
    }
}

/// Where sessions in terminals are recorded.
fn recordings_store(args: &ServeArgs, dir: &std::path::Path, log: Arc<dyn AuditSink>) -> anyhow::Result<Arc<Store>> {
    let mib = |said: Option<u64>, usual: u64| said.map_or(usual, |mib| mib << 20);
    let max_file = mib(args.recordings_max_file_mib, limits::RECORDING);
    let max_total = mib(args.recordings_max_total_mib, limits::RECORDINGS);
    if max_total < max_file {
        return Err(failure::usage(
            "no recording could grow to --recordings-max-file-mib",
            "let --recordings-max-total-mib be at least as much",
        ));
    }
    let store = recordings::store(dir, max_file, max_total, log);
    store.with_context(|| format!("cannot keep recordings in {}", dir.display()))
}

/// Shows how much waits for the hub.
async fn measure(queue: &Queue, outbox: &Outbox, metrics: &Metrics) {
    loop {
        for (gauge, bytes) in [(&metrics.queued, queue.bytes()), (&metrics.recordings, outbox.bytes())] {
            gauge.set(i64::try_from(bytes.unwrap_or_default()).unwrap_or(i64::MAX));
        }
        tokio::time::sleep(moorline_endpoint::limits::LOOK * 10).await;
    }
}

fn upstream(args: &ServeArgs) -> anyhow::Result<UpstreamConfig> {
    match &args.kubeconfig {
        Some(path) => Ok(UpstreamConfig::Kubeconfig { path: path.clone(), context: None }),
        None if env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Ok(UpstreamConfig::InCluster { dir: SERVICE_ACCOUNT.into() })
        }
        None => Err(failure::usage(
            "nothing says how to reach the cluster's API server",
            "run it in the cluster with a service account, or name a kubeconfig: --kubeconfig FILE",
        )),
    }
}

/// Leaves word for the agent, and so for the hub, of where users find this endpoint.
fn tell(args: &ServeArgs, mode: Mode, dir: &std::path::Path, own_ca: &str) -> anyhow::Result<()> {
    let Some(url) = &args.public_url else { return Ok(()) };
    let ca = match (&args.public_ca, mode) {
        (Some(path), _) => crate::tls::ca_from_file(path)?,
        (None, Mode::Proxy) => own_ca.to_owned(),
        (None, Mode::Webhook) => {
            return Err(failure::usage(
                "--public-url of a webhook is the API server's",
                "name its authority: --public-ca FILE",
            ));
        }
    };
    let word = json!({ "server": url.to_string(), "certificateAuthority": ca });
    files::write_private(&dir.join("endpoint.json"), format!("{word}\n").as_bytes())
}
