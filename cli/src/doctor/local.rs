//! On this machine: proxies in the environment, the login, an agent's state, the API server beside it.

use super::Check;
use crate::{
    client::{ApiError, Client, proxied, tls_words},
    files,
    settings::KnownHub,
    target::HubUrl,
    text,
    tls::{self, Peek},
    yaml,
};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;
use std::{env, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who the agent is, in its state folder: certificate chain, authorities, hub.
const FACTS: &str = "agent.json";
/// The agent's key, PEM.
const KEY: &str = "agent.key";
/// Where Kubernetes puts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The agent renews in the last third of its certificate's life; below this share it is late.
const LATE_SHARE: i64 = 5;

/// Proxies that kubectl obeys and the tunnel does not.
pub fn proxy(url: Option<&HubUrl>) -> Check {
    let set: Vec<_> = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .filter(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
        .collect();
    if set.is_empty() {
        return Check::ok("proxy", "no proxy in the environment");
    }
    let names = set.join(", ");
    match url {
        Some(url) if proxied(&url.to_string()) => {
            let advice = format!("if the hub can be reached directly, add {} to NO_PROXY", url.host());
            Check::warn("proxy", format!("{names} is set: kubectl goes through it, moorline dials directly"), advice)
        }
        _ => Check::ok("proxy", format!("{names} is set, but not for this hub")),
    }
}

/// Whether the hub still takes the stored login.
pub async fn login(hub: Option<&KnownHub>, limit: Duration) -> Check {
    let Some((hub, _)) = hub.and_then(|hub| Some((hub, hub.token.as_ref()?))) else {
        return Check::skip("login", "not logged in here; only users need to be");
    };
    let again = format!("log in again: moorline login {}", hub.url);
    let client = match Client::new(hub, limit) {
        Ok(client) => client,
        Err(e) => return Check::fail("login", format!("{e:#}"), again),
    };
    match client.get("/auth/whoami").await {
        Ok(me) => {
            let user = me.get("user").and_then(Value::as_str).unwrap_or("<unknown>");
            let until = hub.expires.as_deref().map(|at| format!(" until {at}")).unwrap_or_default();
            Check::ok("login", format!("{user}{until}"))
        }
        Err(ApiError::Refused { code, message, .. }) if code == http::StatusCode::UNAUTHORIZED => {
            Check::fail("login", message, again)
        }
        Err(e @ ApiError::Refused { .. }) => Check::fail("login", e.to_string(), e.advice().unwrap_or(again)),
        Err(e) => Check::skip("login", format!("could not be tried: {e}")),
    }
}

/// What an agent keeps about itself, as far as it concerns us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentFacts {
    /// The hub that it joined.
    pub hub: String,
    /// Its certificate, PEM, leaf first.
    chain: Vec<String>,
    /// The authorities that it trusts, PEM.
    bundle: Vec<String>,
}

impl AgentFacts {
    /// Reads them; `None` if they cannot be read, which the check of the state tells.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_str(&files::read_text(&dir.join(FACTS)).ok()??).ok()
    }

    /// The authorities as one PEM text.
    pub fn bundle(&self) -> Option<String> {
        (!self.bundle.is_empty()).then(|| self.bundle.join("\n"))
    }
}

/// The agent's certificate and the permissions of its folder.
pub fn agent_state(dir: &Path) -> Vec<Check> {
    vec![permissions(dir), certificate(dir)]
}

fn permissions(dir: &Path) -> Check {
    let meta = match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => return Check::fail("state", format!("{} is no folder", dir.display()), "check --state-dir"),
        Err(e) => return Check::fail("state", format!("{}: {e}", dir.display()), "check --state-dir, and who you are"),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let key = std::fs::metadata(dir.join(KEY)).map_or(0, |meta| meta.permissions().mode() & 0o077);
        if key != 0 {
            let advice = format!("chmod 600 {}", dir.join(KEY).display());
            return Check::fail("state", "others can read the agent's key", advice);
        }
        if meta.permissions().mode() & 0o022 != 0 {
            return Check::warn("state", format!("others can write to {}", dir.display()), "chmod 700 it");
        }
    }
    let _ = meta;
    Check::ok("state", format!("{} is the agent's own", dir.display()))
}

fn certificate(dir: &Path) -> Check {
    let join = "join again: moorline token create --cluster CLUSTER, then moorline agent --token …";
    let key = files::read_text(&dir.join(KEY)).ok().flatten();
    let chain = AgentFacts::read(dir).map(|facts| facts.chain.join("\n"));
    let (Some(chain), Some(key)) = (chain, key) else {
        return Check::fail("cert", format!("{} holds no certificate and key that can be read", dir.display()), join);
    };
    let (Ok(chain), Ok(key)) = (tls::certificates(&chain), PrivateKeyDer::from_pem_slice(key.as_bytes())) else {
        return Check::fail("cert", "certificate or key is damaged", join);
    };
    let signer = match rustls::crypto::aws_lc_rs::sign::any_supported_type(&key) {
        Ok(signer) => signer,
        Err(_) => return Check::fail("cert", "the key is damaged", join),
    };
    let pair = rustls::sign::CertifiedKey::new(chain, signer);
    if pair.keys_match().is_err() {
        return Check::fail("cert", "certificate and key do not belong together", join);
    }
    match pair.cert.first() {
        Some(leaf) => judge(leaf, Timestamp::now().as_second(), join),
        None => Check::fail("cert", "no certificate", join),
    }
}

fn judge(leaf: &CertificateDer<'_>, now: i64, join: &str) -> Check {
    let Ok(id) = moorline_link::tls::peer_id(leaf) else {
        return Check::fail("cert", "the certificate names no agent", join);
    };
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return Check::fail("cert", "the certificate is damaged", join);
    };
    let (start, end) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    match end - now {
        left if left <= 0 => {
            Check::fail("cert", format!("{id} expired {} ago, or this clock is fast", text::short(-left)), join)
        }
        _ if now < start => {
            Check::fail("cert", format!("{id} is valid in {} only", text::short(start - now)), "this clock is slow")
        }
        left if left < (end - start) / LATE_SHARE => {
            let advice = "the agent renews it while connected: is it running? see its log";
            Check::warn("cert", format!("{id}, only {} left", text::short(left)), advice)
        }
        left => Check::ok("cert", format!("{id}, good for {}", text::short(left))),
    }
}

/// Whether the API server that an agent would serve answers. `None` for the file: only inside a pod.
pub async fn api_server(kubeconfig: Option<&Path>, context: Option<&str>, limit: Duration) -> Check {
    let found = match kubeconfig {
        Some(path) => server_of(path, context),
        None => match in_cluster() {
            Some(found) => found,
            None => return Check::skip("kube", "no --kubeconfig, and not inside a pod"),
        },
    };
    let server = match found {
        Ok(server) => server,
        Err(why) => return Check::fail("kube", why, "check the file, or its context"),
    };
    match reach(&server, limit).await {
        Ok(()) => Check::ok("kube", format!("{server} answers with TLS")),
        Err(why) => {
            Check::fail("kube", format!("{server}: {why}"), "the agent must run where the API server can be reached")
        }
    }
}

fn in_cluster() -> Option<Result<String, String>> {
    let host = env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".into());
    let token = Path::new(SERVICE_ACCOUNT).join("token");
    if !token.is_file() {
        return Some(Err(format!("{} is missing: the pod has no service account token", token.display())));
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Some(Ok(format!("https://{host}:{port}")))
}

/// The server of a kubeconfig's context.
fn server_of(path: &Path, context: Option<&str>) -> Result<String, String> {
    let text = files::read_text(path).map_err(|e| format!("{e:#}"))?;
    let text = text.ok_or_else(|| format!("{} does not exist", path.display()))?;
    let config: Value = yaml::read(&text).map_err(|_| format!("{} is no kubeconfig", path.display()))?;
    let entry = |list: &str, inner: &str, name: &str| {
        let all = config.get(list)?.as_array()?;
        all.iter().find(|e| e.get("name").and_then(Value::as_str) == Some(name))?.get(inner).cloned()
    };
    let current = config.get("current-context").and_then(Value::as_str);
    let name = context.or(current).ok_or("the kubeconfig has no current context")?;
    let context = entry("contexts", "context", name).ok_or_else(|| format!("no context {name}"))?;
    let cluster = context.get("cluster").and_then(Value::as_str).unwrap_or_default();
    let cluster = entry("clusters", "cluster", cluster).ok_or_else(|| format!("no cluster {cluster}"))?;
    let server = cluster.get("server").and_then(Value::as_str);
    server.map(str::to_owned).ok_or_else(|| format!("context {name} names no server"))
}

async fn reach(server: &str, limit: Duration) -> Result<(), String> {
    let uri: http::Uri = server.parse().map_err(|_| "not a URL".to_owned())?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let shown = async {
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| e.to_string())?;
        let (peek, config) = Peek::new(b"h2").map_err(|e| format!("{e:#}"))?;
        let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
        let refused = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        match (peek.take(), refused) {
            (Some(_), _) => Ok(()),
            (None, Err(e)) => Err(tls_words(&e)),
            (None, Ok(_)) => Err("the server showed no certificate".into()),
        }
    };
    timeout(limit, shown).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_server_is_that_of_the_context() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = "current-context: b\nclusters: [{name: x, cluster: {server: 'https://x'}}, {name: y, cluster: {server: 'https://y'}}]\ncontexts: [{name: a, context: {cluster: x}}, {name: b, context: {cluster: y}}, {name: c, context: {cluster: z}}]\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(server_of(&path, None).as_deref(), Ok("https://y"));
        assert_eq!(server_of(&path, Some("a")).as_deref(), Ok("https://x"));
        assert_eq!(server_of(&path, Some("c")), Err("no cluster z".into()));
        assert!(server_of(&dir.path().join("none"), None).is_err());
    }

    #[test]
    fn an_empty_state_folder_says_how_to_join() {
        let dir = tempfile::tempdir().unwrap();
        let [state, cert] = <[Check; 2]>::try_from(agent_state(dir.path())).unwrap();
        assert_eq!((state.verdict, cert.verdict), (Verdict::Ok, Verdict::Fail));
        assert!(cert.advice.unwrap().contains("moorline token create"));
    }

    #[test]
    fn a_certificate_of_another_key_and_a_readable_key_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&theirs).unwrap();
        let facts = serde_json::json!({ "version": 1, "hub": "hub:8443", "chain": [certificate.pem()], "bundle": [] });
        std::fs::write(dir.path().join(FACTS), facts.to_string()).unwrap();
        files::write_private(&dir.path().join(KEY), ours.serialize_pem().as_bytes()).unwrap();
        let [state, cert] = <[Check; 2]>::try_from(agent_state(dir.path())).unwrap();
        assert_eq!((state.verdict, cert.verdict), (Verdict::Ok, Verdict::Fail));
        assert!(cert.detail.contains("do not belong together"), "{}", cert.detail);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(dir.path().join(KEY), open).unwrap();
            assert!(permissions(dir.path()).advice.unwrap().contains("chmod 600"));
        }
    }

    /// A certificate as the hub issues them, judged at three times of its life.
    #[test]
    fn a_certificate_is_judged_by_what_is_left_of_it() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let id = "spiffe://moorline.test/cluster/edge1/agent/a".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(id)];
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 1, 11));
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let at = |time: &str| judge(certificate.der(), time.parse::<Timestamp>().unwrap().as_second(), "join");
        assert_eq!(at("2025-12-31T23:00:00Z").verdict, Verdict::Fail);
        assert_eq!(at("2026-01-02T00:00:00Z").verdict, Verdict::Ok);
        assert_eq!(at("2026-01-10T00:00:00Z").verdict, Verdict::Warn);
        let expired = at("2026-01-11T03:00:00Z");
        assert_eq!(expired.verdict, Verdict::Fail);
        assert!(expired.detail.contains("expired 3h ago"), "{}", expired.detail);
    }
}
