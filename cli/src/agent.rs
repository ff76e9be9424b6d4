//! `moorline agent`: runs a cluster's agent.

use crate::{
    daemon::{self, Process},
    failure::usage,
    files,
    logging::LogFormat,
    reference,
    token::pin_of,
};
use moorline_agent::{
    AgentRole, Config, EndpointConfig, Preference, UpstreamConfig,
    node::{AccountJoin, vouch::NodeAccount},
    secret::SecretName,
};
use moorline_link::HubAddress;
use moorline_proto::id::{AgentName, ClusterId};
use serde::{Deserialize, Serialize};
use std::{
    env,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
};

/// Where Kubernetes puts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Threads of an agent: it serves one cluster.
const THREADS: NonZeroUsize = NonZeroUsize::MIN;

/// `moorline agent`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline agent --hub https://hub.example:8443 --token mlj_…            inside a cluster
  moorline agent --hub https://hub.example:8443 --token mlj_… --kubeconfig ~/.kube/config
  moorline agent --config /etc/moorline/agent.yaml

The token is needed once: the agent keeps its key and certificate in the state folder and renews them.
Flags go before environment, environment before the file. The file has the flags' names in camelCase
(stateDir: /var/lib/moorline-agent); a key that is not known is an error. MOORLINE_LOG filters the log.")]
pub struct Args {
    /// YAML file with these settings
    #[arg(long, value_name = "FILE", env = "MOORLINE_CONFIG")]
    config: Option<PathBuf>,
    /// The hub to dial, https://HOST:PORT
    #[arg(long, value_name = "URL", env = "MOORLINE_HUB")]
    hub: Option<HubAddress>,
    /// The token that `moorline token create` printed; only for the first start
    #[arg(long, value_name = "TOKEN", env = "MOORLINE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the token
    #[arg(long, value_name = "FILE", env = "MOORLINE_TOKEN_FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// File that `token create --bundle` wrote: hub and token in one
    #[arg(long, value_name = "FILE", env = "MOORLINE_JOIN_BUNDLE", conflicts_with_all = ["token", "token_file"])]
    join_bundle: Option<PathBuf>,
    /// This agent's name within its cluster [default: the host's name]
    #[arg(long, value_name = "NAME", env = "MOORLINE_NAME")]
    name: Option<AgentName>,
    /// The cluster to join; must be the token's [default: the token's]
    #[arg(long, value_name = "NAME", env = "MOORLINE_CLUSTER")]
    cluster: Option<ClusterId>,
    /// What this agent serves [default: cluster]
    #[arg(long, value_enum, env = "MOORLINE_ROLE")]
    role: Option<Role>,
    /// With --role node: join by this token of the pod's service account, of the audience moorline-join, instead of a
    /// join token; the cluster's agent vouches for it. Needs --hub-pin and --cluster
    #[arg(long, value_name = "FILE", env = "MOORLINE_ACCOUNT_TOKEN_FILE")]
    account_token_file: Option<PathBuf>,
    /// The hub's authority, as `moorline token nodes` prints it. Empty: join by a token
    // One in 64 begins with a hyphen.
    #[arg(long, value_name = "PIN", env = "MOORLINE_HUB_PIN", allow_hyphen_values = true)]
    hub_pin: Option<String>,
    /// The service account of node agents, which this cluster agent vouches for [default: moorline-nodes/moorline-node]
    #[arg(long, value_name = "NAMESPACE/NAME", env = "MOORLINE_NODE_ACCOUNT")]
    node_account: Option<NodeAccount>,
    /// With --role node: the Kubernetes node that it stands for [default: the host's name]
    #[arg(long, value_name = "NODE", env = "NODE_NAME")]
    node_name: Option<String>,
    /// With --role node: the folder whose bin, usr and so on shells run programs from [default: /]
    #[arg(long, value_name = "DIR", env = "MOORLINE_SHELL_ROOT")]
    shell_root: Option<PathBuf>,
    /// With --role node: shells at a time, which take 1152 MiB of memory each at most [default: 32]
    #[arg(long, value_name = "N", env = "MOORLINE_SHELLS")]
    shells: Option<NonZeroUsize>,
    /// With --role node: a folder whose certificates are watched; may be repeated [default: /etc/kubernetes/pki and
    /// /var/lib/kubelet/pki]
    #[arg(long, value_name = "DIR", env = "MOORLINE_PKI_DIRS", value_delimiter = ',')]
    pki_dirs: Vec<PathBuf>,
    /// With --role node: the node's etcd [default: https://127.0.0.1:2379 where etcd/server.crt is in the first of these]
    #[arg(long, value_name = "URL", env = "MOORLINE_ETCD")]
    etcd: Option<String>,
    /// Where key and certificate are kept [default: /var/lib/moorline-agent for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Keep a copy of the state in this Secret, for pods whose folder goes with them [default: none]
    #[arg(long, value_name = "[NAMESPACE/]NAME", env = "MOORLINE_STATE_SECRET")]
    state_secret: Option<SecretName>,
    /// Reach the API server as this kubeconfig says [default: as a pod's service account]
    #[arg(long, value_name = "FILE", env = "MOORLINE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Its context [default: the current one]
    #[arg(long, value_name = "NAME", env = "MOORLINE_CONTEXT")]
    context: Option<String>,
    /// Folder of the service account [default: where Kubernetes puts it]
    #[arg(long, value_name = "DIR", env = "MOORLINE_SERVICE_ACCOUNT_DIR", conflicts_with = "kubeconfig")]
    service_account_dir: Option<PathBuf>,
    /// What the cluster's owner allows through the tunnel, YAML [default: nobody becomes system:*]
    #[arg(long, value_name = "FILE", env = "MOORLINE_POLICY_FILE")]
    policy_file: Option<PathBuf>,
    /// Keep here what `moorline endpoint` needs to let users in while the hub is away
    #[arg(long, value_name = "DIR", env = "MOORLINE_ENDPOINT_DIR")]
    endpoint_dir: Option<PathBuf>,
    /// Import services of other clusters at this address: the agent's own, which pods reach [default: import none]
    #[arg(long, value_name = "ADDRESS", env = "MOORLINE_IMPORTS_ADDRESS")]
    imports_address: Option<IpAddr>,
    /// With --endpoint-dir: file of the key that bundles are sealed with [default: seal.key in that folder]
    #[arg(long, value_name = "FILE", env = "MOORLINE_ENDPOINT_SEAL_KEY")]
    endpoint_seal_key: Option<PathBuf>,
    /// With --endpoint-dir: keep a sealed copy of the bundle in this Secret [default: none]
    #[arg(long, value_name = "[NAMESPACE/]NAME", env = "MOORLINE_ENDPOINT_SECRET")]
    endpoint_secret: Option<SecretName>,
    /// How to reach the hub [default: auto]
    #[arg(long, value_enum, env = "MOORLINE_CARRIER")]
    carrier: Option<Carrier>,
    /// Address for /livez, /readyz and /metrics, plain HTTP [default: none]
    #[arg(long, value_name = "ADDRESS", env = "MOORLINE_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    /// Form of the log [default: text]
    #[arg(long, value_enum, env = "MOORLINE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Worker threads, at most one for each processor [default: 1]
    #[arg(long, value_name = "N", env = "MOORLINE_THREADS")]
    threads: Option<NonZeroUsize>,
}

/// What carries the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// The first that gets through: QUIC, TLS, WebSocket
    Auto,
    /// QUIC only
    Quic,
    /// TLS over TCP only
    Tls,
    /// WebSocket only, with the same TLS inside
    #[value(name = "websocket")]
    WebSocket,
}

/// What an agent serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The whole cluster
    Cluster,
    /// One node; stands in for the cluster's agents where none is left
    Node,
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FileConfig {
    hub: Option<String>,
    token_file: Option<PathBuf>,
    join_bundle: Option<PathBuf>,
    name: Option<String>,
    cluster: Option<String>,
    role: Option<Role>,
    account_token_file: Option<PathBuf>,
    hub_pin: Option<String>,
    node_account: Option<String>,
    node_name: Option<String>,
    shell_root: Option<PathBuf>,
    shells: Option<NonZeroUsize>,
    pki_dirs: Vec<PathBuf>,
    etcd: Option<String>,
    state_dir: Option<PathBuf>,
    state_secret: Option<String>,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    service_account_dir: Option<PathBuf>,
    policy_file: Option<PathBuf>,
    endpoint_dir: Option<PathBuf>,
    imports_address: Option<IpAddr>,
    endpoint_seal_key: Option<PathBuf>,
    endpoint_secret: Option<String>,
    carrier: Option<Carrier>,
    http_listen: Option<SocketAddr>,
    log_format: Option<LogFormat>,
    threads: Option<NonZeroUsize>,
}

/// The keys of the file.
pub fn file_keys() -> &'static [&'static str] {
    reference::keys::<FileConfig>()
}

/// What `moorline token create --bundle` writes and `--join-bundle` reads.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinBundle {
    /// `https://HOST:PORT`
    pub hub: Option<String>,
    /// The join token.
    pub token: Option<String>,
}

/// Keeps a Kubernetes cluster reachable through a tunnel that it dials out to a hub.
#[derive(Debug, clap::Parser)]
#[command(name = "moorline-agent", version, after_help = "The same as `moorline agent`.")]
struct Alone {
    #[command(flatten)]
    args: Args,
}

/// `moorline-agent`.
pub fn alone() -> anyhow::Result<ExitCode> {
    run(<Alone as clap::Parser>::parse().args)
}

/// `moorline agent`: returns when a signal has ended it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, process) = resolve(args)?;
    config.validate().map_err(|e| usage(e.to_string(), "the rules are in --help"))?;
    daemon::run(process, |stop, registry, notifier| async move {
        // A hub that is not there now is dialled until it is: that is what an agent that works does.
        notifier.ready();
        moorline_agent::run(config, stop, &registry).await
    })
}

fn resolve(args: Args) -> anyhow::Result<(Config, Process)> {
    let file: FileConfig = daemon::config(args.config.as_deref())?;
    let bundle: JoinBundle = daemon::config(args.join_bundle.or(file.join_bundle).as_deref())?;
    let hub = daemon::either(args.hub, file.hub.or(bundle.hub), "hub")?;
    let hub = hub.ok_or_else(|| usage("no hub to dial", "name it: moorline agent --hub https://HUB:8443"))?;
    // The flag and the variable are one to clap, and go before the file.
    let token_file = args.token_file.or(file.token_file.filter(|_| args.token.is_none()));
    let token = match (args.token, token_file) {
        (Some(token), _) => Some(token),
        (None, Some(path)) => {
            let text = files::read_text(&path)?;
            let text = text.ok_or_else(|| usage(format!("{} does not exist", path.display()), "check --token-file"))?;
            Some(text.trim().to_owned())
        }
        (None, None) => bundle.token,
    };
    let service_account = args.service_account_dir;
    let kubeconfig = args.kubeconfig.or(file.kubeconfig.filter(|_| service_account.is_none()));
    let service_account = service_account.or(file.service_account_dir);
    let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let upstream = match (kubeconfig, service_account) {
        (Some(path), _) => UpstreamConfig::Kubeconfig { path, context: args.context.or(file.context) },
        (None, Some(dir)) => UpstreamConfig::InCluster { dir },
        (None, None) if in_pod => UpstreamConfig::InCluster { dir: SERVICE_ACCOUNT.into() },
        (None, None) => {
            let advice = "run it in the cluster with a service account, or name a kubeconfig: --kubeconfig FILE";
            return Err(usage("nothing says how to reach the cluster's API server", advice));
        }
    };
    let state_dir = match args.state_dir.or(file.state_dir) {
        Some(dir) => dir,
        None => daemon::state_dir("moorline-agent")?,
    };
    let carrier = match args.carrier.or(file.carrier).unwrap_or(Carrier::Auto) {
        Carrier::Auto => Preference::Auto,
        Carrier::Quic => Preference::Quic,
        Carrier::Tls => Preference::Tls,
        Carrier::WebSocket => Preference::WebSocket,
    };
    let (role, node_name, named) = match args.role.or(file.role).unwrap_or(Role::Cluster) {
        Role::Cluster => (AgentRole::Cluster, None, None),
        Role::Node => {
            let node = args.node_name.or(file.node_name).filter(|name| !name.is_empty());
            let named = node.as_deref().map(agent_name).transpose()?;
            (AgentRole::Node, node, named)
        }
    };
    let mut node = moorline_agent::node::Settings::default();
    let pki_dirs = if args.pki_dirs.is_empty() { file.pki_dirs } else { args.pki_dirs };
    if !pki_dirs.is_empty() {
        node.pki_dirs = pki_dirs;
    }
    node.etcd = args.etcd.or(file.etcd);
    node.shells = args.shells.or(file.shells);
    let account = args.account_token_file.or(file.account_token_file);
    node.join = account_join(account, args.hub_pin.or(file.hub_pin))?;
    if let Some(account) = daemon::either(args.node_account, file.node_account, "nodeAccount")? {
        node.account = account;
    }
    let seal_key = args.endpoint_seal_key.or(file.endpoint_seal_key);
    let secret = daemon::either(args.endpoint_secret, file.endpoint_secret, "endpointSecret")?;
    let endpoint = match args.endpoint_dir.or(file.endpoint_dir) {
        Some(_) if role == AgentRole::Node => {
            let advice = "name it at the cluster's agent, without --role node";
            return Err(usage("--endpoint-dir is for the whole cluster, and a node agent for its node", advice));
        }
        Some(dir) => Some(EndpointConfig { dir, seal_key, secret }),
        None if seal_key.is_some() || secret.is_some() => {
            return Err(usage("a key or Secret for bundles, and no folder for them", "say which: --endpoint-dir DIR"));
        }
        None => None,
    };
    let config = Config {
        node,
        hub,
        token,
        tokens: None,
        name: daemon::either(args.name, file.name, "name")?.or(named),
        cluster: daemon::either(args.cluster, file.cluster, "cluster")?,
        role,
        node_name,
        shell_root: args.shell_root.or(file.shell_root).unwrap_or_else(shell_root),
        state_dir,
        state_secret: daemon::either(args.state_secret, file.state_secret, "stateSecret")?,
        upstream,
        policy_file: args.policy_file.or(file.policy_file),
        imports_address: args.imports_address.or(file.imports_address),
        endpoint,
        carrier,
        http_addr: args.http_listen.or(file.http_listen),
    };
    let log_format = args.log_format.or(file.log_format).unwrap_or(LogFormat::Text);
    Ok((config, Process { log_format, threads: args.threads.or(file.threads).unwrap_or(THREADS) }))
}

/// Without a pin the account's token is not used: manifests name its file always.
fn account_join(token_file: Option<PathBuf>, pin: Option<String>) -> anyhow::Result<Option<AccountJoin>> {
    let Some((token_file, pin)) = token_file.zip(pin.filter(|pin| !pin.is_empty())) else { return Ok(None) };
    let hub_pin = pin_of(&pin)
        .ok_or_else(|| usage("the hub's pin is malformed", "copy it whole, as `moorline token nodes` prints it"))?;
    Ok(Some(AccountJoin { token_file, hub_pin }))
}

/// A node's name as an agent's: Kubernetes calls nodes by DNS names, the hub agents by one label.
fn agent_name(node: &str) -> anyhow::Result<AgentName> {
    let label = node.replace('.', "-");
    label
        .parse()
        .map_err(|e| usage(format!("node name {node:?}: {e}"), "give the agent a name of its own: --name NAME"))
}

/// Where shells have their programs from if nothing says so.
fn shell_root() -> PathBuf {
    let beside = || std::env::current_exe().ok()?.parent().map(PathBuf::from);
    if cfg!(windows) { beside().unwrap_or_default() } else { "/".into() }
}
