//! `moorline hub`: runs a hub.

use crate::{
    daemon::{self, Process},
    failure::usage,
    hubstate,
    logging::LogFormat,
    plugins, reference,
    target::HubUrl,
    text,
};
use moorline_hub::{
    Config, Hub, HubError, Lockout, OnFailure, RateLimits, Recordings, StoreSettings, config::GivenCertificate,
    logins::config::ProviderConfig,
};
use moorline_plugin::Factory;
use moorline_proto::id::{HubName, TrustDomain};
use serde::Deserialize;
use std::{
    collections::BTreeMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, process::ExitCode, time::Duration,
};

/// Threads of a hub where there are that many processors.
const THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// `moorline hub`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  moorline hub --data-dir ./hub --name 127.0.0.1                         try it on one machine
  moorline hub --name hub.example --name 192.0.2.7                       as root: state in /var/lib/moorline-hub
  moorline hub --config /etc/moorline/hub.yaml

The first start makes the authority, the store and the user admin, and prints how to log in.
Flags go before environment, environment before the file. The file has the flags' names in camelCase
(dataDir: /var/lib/moorline-hub, names: [hub.example]); a key that is not known is an error.
MOORLINE_LOG filters the log, such as info,moorline_link=debug.")]
pub struct Args {
    #[command(subcommand)]
    state: Option<hubstate::Command>,
    /// YAML file with these settings
    #[arg(long, value_name = "FILE", env = "MOORLINE_CONFIG")]
    config: Option<PathBuf>,
    /// Where authority and store are kept [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    store: hubstate::StoreArgs,
    #[command(flatten)]
    seal: hubstate::SealArgs,
    /// Address for agents, kubectl and people, TCP and UDP [default: 0.0.0.0:8443]
    #[arg(long, value_name = "ADDRESS", env = "MOORLINE_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address for /livez, /readyz and /metrics, plain HTTP [default: 127.0.0.1:9443]
    #[arg(long, value_name = "ADDRESS", env = "MOORLINE_OPS_LISTEN")]
    ops_listen: Option<SocketAddr>,
    /// A DNS name or IP address that the hub is reached by; can be repeated. The first is the public one
    #[arg(long = "name", value_name = "NAME", env = "MOORLINE_NAMES", value_delimiter = ',')]
    names: Vec<String>,
    /// The address that join commands and kubeconfigs name [default: https://FIRST-NAME:PORT]
    #[arg(long, value_name = "URL", env = "MOORLINE_PUBLIC_URL")]
    public_url: Option<HubUrl>,
    /// Domain of the hosts of in-cluster services, NAME--NAMESPACE--CLUSTER.DOMAIN; its DNS leads here by a wildcard
    #[arg(long, value_name = "DOMAIN", env = "MOORLINE_SERVICES_DOMAIN")]
    services_domain: Option<String>,
    /// A certificate (PEM, with its chain) for names that browsers use, such as those of services; read again when it
    /// changes. Agents and kubectl know the hub by its own authority: leave out the names that they use
    #[arg(long, value_name = "FILE", env = "MOORLINE_CERTIFICATE")]
    certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", env = "MOORLINE_CERTIFICATE_KEY")]
    certificate_key: Option<PathBuf>,
    /// Domain of the identities that this hub issues; cannot be changed later
    #[arg(long, value_name = "DOMAIN", env = "MOORLINE_TRUST_DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// This hub's own name within that domain [default: hub]
    #[arg(long, value_name = "NAME", env = "MOORLINE_HUB_NAME")]
    hub_name: Option<HubName>,
    /// Life of an agent's certificate; agents renew at two thirds [default: 24h]
    #[arg(long, value_name = "TIME", env = "MOORLINE_AGENT_CERTIFICATE_LIFE", value_parser = text::duration)]
    agent_certificate_life: Option<Duration>,
    /// How long a login lasts that names no time [default: 12h]
    #[arg(long, value_name = "TIME", env = "MOORLINE_LOGIN_LIFE", value_parser = text::duration)]
    login_life: Option<Duration>,
    /// Life of an access token, renewed by itself; an hour at most [default: 1h]
    #[arg(long, value_name = "TIME", env = "MOORLINE_ACCESS_LIFE", value_parser = text::duration)]
    access_life: Option<Duration>,
    /// How long a cluster's own endpoint lets users in that hears nothing of this hub [default: 24h]
    #[arg(long, value_name = "TIME", env = "MOORLINE_BUNDLE_LIFE", value_parser = text::duration)]
    bundle_life: Option<Duration>,
    /// Node agents of each cluster that hold a session, to stand in for its cluster agents; 0: none does [default: 3]
    #[arg(long, value_name = "N", env = "MOORLINE_STANDBY_NODES")]
    standby_nodes: Option<usize>,
    /// Form of the log [default: text]
    #[arg(long, value_enum, env = "MOORLINE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Worker threads, at most one for each processor [default: 8]
    #[arg(long, value_name = "N", env = "MOORLINE_THREADS")]
    threads: Option<NonZeroUsize>,
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FileConfig {
    data_dir: Option<PathBuf>,
    store: Option<String>,
    store_ca: Option<PathBuf>,
    store_cert: Option<PathBuf>,
    store_key: Option<PathBuf>,
    seal_key_file: Option<PathBuf>,
    listen: Option<SocketAddr>,
    ops_listen: Option<SocketAddr>,
    names: Vec<String>,
    public_url: Option<String>,
    services_domain: Option<String>,
    certificate: Option<PathBuf>,
    certificate_key: Option<PathBuf>,
    trust_domain: Option<String>,
    hub_name: Option<String>,
    agent_certificate_life: Option<String>,
    login_life: Option<String>,
    access_life: Option<String>,
    bundle_life: Option<String>,
    standby_nodes: Option<usize>,
    log_format: Option<LogFormat>,
    threads: Option<NonZeroUsize>,
    /// A table for each plugin; `enabled: false` switches it off.
    plugins: BTreeMap<String, serde_json::Value>,
    logins: Vec<ProviderConfig>,
    recheck_logins: Option<String>,
    rights_without_store: Option<String>,
    audit: AuditConfig,
    rate_limits: RateLimits,
    recordings: Recordings,
    lockout: Lockout,
}

/// The keys of the file.
pub fn file_keys() -> &'static [&'static str] {
    reference::keys::<FileConfig>()
}

/// How the audit log is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AuditConfig {
    max_file_mib: Option<u64>,
    keep_files: Option<usize>,
    on_failure: OnFailure,
}

/// `moorline hub`: returns when a signal has ended it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(command) = args.state {
        return hubstate::run(command).map(|()| ExitCode::SUCCESS);
    }
    let (config, process) = resolve(args)?;
    config.validate().map_err(|e| usage(e.to_string(), "the rules are in --help"))?;
    daemon::run(process, |stop, registry, notifier| async move {
        let hub = Hub::start(config, &registry).await?;
        notifier.ready();
        stop.cancelled().await;
        hub.shutdown().await;
        Ok::<_, HubError>(())
    })
}

fn resolve(args: Args) -> anyhow::Result<(Config, Process)> {
    let file: FileConfig = daemon::config(args.config.as_deref())?;
    let data_dir = match args.data_dir.or(file.data_dir) {
        Some(dir) => dir,
        None => daemon::state_dir("moorline-hub")?,
    };
    let mut config = Config::new(data_dir);
    let (store_ca, store_cert, store_key) = (file.store_ca, file.store_cert, file.store_key);
    let store = args.store.over(StoreSettings { store: file.store, store_ca, store_cert, store_key });
    config.seal_key = args.seal.key(file.seal_key_file.as_deref())?;
    config.store = store.place().map_err(|e| usage(e.to_string(), "see docs/src/operations/store.md"))?;
    config.listen = args.listen.or(file.listen).unwrap_or(config.listen);
    config.ops_listen = args.ops_listen.or(file.ops_listen).unwrap_or(config.ops_listen);
    let mut names = if args.names.is_empty() { file.names } else { args.names };
    let public_url = daemon::either(args.public_url, file.public_url, "publicUrl")?;
    if names.is_empty() {
        // With nothing said it is a hub for this machine; a public URL says more.
        names = vec![public_url.as_ref().map_or("localhost", |url| url.host()).to_owned()];
    }
    let first = names.first().map_or("localhost", String::as_str);
    let host = if first.contains(':') { format!("[{first}]") } else { first.to_owned() };
    let public_url = match public_url {
        Some(url) => url.to_string(),
        None => daemon::read::<HubUrl>(&format!("https://{host}:{}", config.listen.port()), "name")?.to_string(),
    };
    config.names = names;
    config.public_url = public_url;
    if let Some(domain) = daemon::either(args.trust_domain, file.trust_domain, "trustDomain")? {
        config.trust_domain = domain;
    }
    if let Some(name) = daemon::either(args.hub_name, file.hub_name, "hubName")? {
        config.hub_name = name;
    }
    let span = |flag, file: Option<String>, key| match (flag, file) {
        (Some(span), _) => Ok(Some(span)),
        (None, Some(text)) => daemon::span(&text, key).map(Some),
        (None, None) => Ok(None),
    };
    if let Some(life) = span(args.agent_certificate_life, file.agent_certificate_life, "agentCertificateLife")? {
        config.agent_certificate_life = life;
    }
    config.services_domain = args.services_domain.or(file.services_domain);
    config.certificate = match (args.certificate.or(file.certificate), args.certificate_key.or(file.certificate_key)) {
        (Some(chain), Some(key)) => Some(GivenCertificate { chain, key }),
        (None, None) => None,
        _ => return Err(usage("certificate and certificateKey go together", "name both files, or none")),
    };
    if let Some(life) = span(args.login_life, file.login_life, "loginLife")? {
        config.login_life = life;
        config.login_life_max = config.login_life_max.max(life);
    }
    if let Some(life) = span(args.access_life, file.access_life, "accessLife")? {
        config.access_life = life;
    }
    if let Some(life) = span(args.bundle_life, file.bundle_life, "bundleLife")? {
        config.bundle_life = life;
    }
    if let Some(nodes) = args.standby_nodes.or(file.standby_nodes) {
        config.limits.standby_nodes = nodes;
    }
    config.plugins =
        Factory::build(plugins::ALL, file.plugins).map_err(|e| usage(e.to_string(), "see docs/src/plugins.md"))?;
    config.logins = file.logins;
    config.rate_limits = file.rate_limits;
    config.recordings = file.recordings;
    config.lockout = file.lockout;
    config.audit_on_failure = file.audit.on_failure;
    if let Some(mib) = file.audit.max_file_mib {
        config.audit_rotation.max_bytes = mib.saturating_mul(1 << 20);
    }
    if let Some(keep) = file.audit.keep_files {
        config.audit_rotation.keep = keep;
    }
    if let Some(every) = file.recheck_logins {
        config.recheck_logins = daemon::span(&every, "recheckLogins")?;
    }
    if let Some(time) = file.rights_without_store {
        config.rights_without_store = daemon::span(&time, "rightsWithoutStore")?;
    }
    let log_format = args.log_format.or(file.log_format).unwrap_or(LogFormat::Text);
    Ok((config, Process { log_format, threads: args.threads.or(file.threads).unwrap_or(THREADS) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn config(words: &[&str]) -> anyhow::Result<Config> {
        let words = std::iter::once("hub").chain(words.iter().copied());
        resolve(Line::try_parse_from(words)?.args).map(|(config, _)| config)
    }

    #[test]
    fn the_public_address_follows_from_name_and_port() {
        let made = config(&["--data-dir", "x", "--name", "hub.example,192.0.2.7", "--listen", "[::]:9000"]).unwrap();
        assert_eq!(made.public_url.to_string(), "https://hub.example:9000");
        assert_eq!(made.names, ["hub.example", "192.0.2.7"]);
        let made = config(&["--data-dir", "x", "--name", "2001:db8::1"]).unwrap();
        assert_eq!(made.public_url.to_string(), "https://[2001:db8::1]:8443");
        let made = config(&["--data-dir", "x", "--public-url", "https://a.example"]).unwrap();
        assert_eq!(
            (made.public_url.to_string().as_str(), &made.names[..]),
            ("https://a.example", &["a.example".to_owned()][..])
        );
        assert!(config(&["--data-dir", "x", "--name", "not a name"]).is_err());
    }

    #[test]
    fn flags_go_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.yaml");
        std::fs::write(&path, "dataDir: from-file\nlisten: 127.0.0.1:1\nnames: [file.example]\nstandbyNodes: 5\n")
            .unwrap();
        let file = path.to_str().unwrap();
        let made = config(&["--config", file, "--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!((made.listen.port(), made.data_dir.to_str()), (2, Some("from-file")));
        assert_eq!(made.names, ["file.example"]);
        assert_eq!(made.limits.standby_nodes, 5);
        assert_eq!(config(&["--config", file, "--standby-nodes", "0"]).unwrap().limits.standby_nodes, 0);
    }

    /// S66: how the audit log is kept is said as a whole or not at all, and what is not said is the strict way.
    #[test]
    fn s66_what_the_file_says_of_the_audit_log_is_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.yaml");
        let file = path.to_str().unwrap().to_owned();
        let with = |text: &str| {
            std::fs::write(&path, text).unwrap();
            config(&["--data-dir", "x", "--config", &file])
                .map(|made| made.audit_on_failure)
                .map_err(|e| format!("{e:#}"))
        };
        let whole = "names: [a.example]\naudit:\n  onFailure: continue\n  maxFileMib: 8\n  keepFiles: 3\n";
        assert_eq!(with(whole), Ok(OnFailure::Continue));
        for unsaid in ["", "\n", "names: [a.example]\n", "audit: {}\n", "audit: {maxFileMib: 8}\n"] {
            assert_eq!(with(unsaid), Ok(OnFailure::Refuse), "{unsaid:?}");
        }
        for broken in [
            "audit: {onFailure: continue",
            "audit:\n  onFailure: contin\n",
            "audit:\n  onFailure:\n",
            "audit:\n  onFailure: \"continue\n",
            "audit:\n  onfailure: refuse\n",
            "audit:\n  onFailure: refuse\n  onFailure: continue\n",
            "audit:\n  maxFileMib: -1\n",
            "audit:\n  maxFileMib: a lot\n",
            "audit:\n  keepFiles: 1.5\n",
            "audit: continue\n",
            "audit: [onFailure]\n",
            "audti:\n  onFailure: refuse\n",
            "- audit\n",
            "aud",
        ] {
            assert!(with(broken).is_err_and(|why| why.contains("hub.yaml")), "{broken:?}");
        }
        // What would be nothing is refused, also where it would be nothing for being too much.
        for (nothing, most) in [("maxFileMib: 0", false), ("keepFiles: 0", false), ("maxFileMib: 17592186044416", true)]
        {
            std::fs::write(&path, format!("names: [a.example]\naudit: {{{nothing}}}\n")).unwrap();
            let made = config(&["--data-dir", "x", "--config", &file]).unwrap();
            assert_eq!(made.validate().is_ok(), most, "{nothing}");
        }
        // Cut anywhere it is refused, or says less: never is the strict way lost to half a word.
        for end in 0..whole.len() {
            let said = with(&whole[..end]);
            let complete = whole[..end].contains("continue");
            assert!(
                said.as_ref().map_or(true, |policy| (*policy == OnFailure::Continue) == complete),
                "{end}: {said:?}"
            );
        }
        std::fs::write(&path, b"audit:\n  onFailure: \xff\n").unwrap();
        assert!(config(&["--data-dir", "x", "--config", &file]).is_err(), "no text");
        std::fs::remove_file(&path).unwrap();
        assert!(config(&["--data-dir", "x", "--config", &file]).is_err(), "a file that is named and is not there");
    }

    #[test]
    fn plugins_have_tables_and_can_be_switched_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.yaml");
        let with = |tables: &str| {
            std::fs::write(&path, format!("dataDir: x\nplugins: {tables}\n")).unwrap();
            config(&["--config", path.to_str().unwrap()])
                .map(|config| config.plugins.len())
                .map_err(|e| format!("{e:#}"))
        };
        assert_eq!(with("{}"), Ok(plugins::ALL.len()));
        assert_eq!(with("{rbac: {enabled: false}}"), Ok(plugins::ALL.len() - 1));
        assert!(with("{rbac: {colour: red}}").is_err_and(|e| e.contains("plugins.rbac")));
        assert!(with("{rback: {}}").is_err_and(|e| e.contains("there is no such plugin")));
    }
}
