//! What an agent is told at its start.

use crate::{rejoin::TokenSource, secret::SecretName};
use moorline_link::HubAddress;
use moorline_proto::id::{AgentName, ClusterId};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// How an agent runs. `Debug` does not show the token.
#[derive(Clone)]
pub struct Config {
    /// The hub to dial.
    pub hub: HubAddress,
    /// The join token. Needed only while there is no state; ignored once the state belongs to the token's hub.
    pub token: Option<String>,
    /// Instead: where tokens are made when one is needed, at first and once an identity has expired.
    pub tokens: Option<TokenSource>,
    /// This agent's name within its cluster. Default: the state's, or the host's name.
    pub name: Option<AgentName>,
    /// The cluster that the token must be for. Default: the token's.
    pub cluster: Option<ClusterId>,
    /// What this agent serves.
    pub role: AgentRole,
    /// A node agent's Kubernetes node, as its `Node` object is called: the agent asks there for its zone.
    pub node_name: Option<String>,
    /// Where a node agent's shells have their programs from: a folder with `bin`, `usr` and so on.
    pub shell_root: PathBuf,
    /// What a node agent looks at on its node.
    pub node: crate::node::Settings,
    /// Where key, certificate and trust bundle are kept. Made if missing, readable by its owner alone.
    pub state_dir: PathBuf,
    /// A Secret that keeps a copy of the state, for pods whose folder goes with them. `None`: the folder is all.
    pub state_secret: Option<SecretName>,
    /// How the cluster's API server is reached.
    pub upstream: UpstreamConfig,
    /// The edge policy of the cluster's owner. `None`: the built-in one.
    pub policy_file: Option<PathBuf>,
    /// The agent's own address, which the cluster's pods reach: services of other clusters are imported there. `None`:
    /// none are.
    pub imports_address: Option<IpAddr>,
    /// What is shared with endpoints of the cluster's own. `None`: there are none.
    pub endpoint: Option<EndpointConfig>,
    /// What carries the tunnel.
    pub carrier: Preference,
    /// Address for `/livez`, `/readyz` and `/metrics`, plain HTTP. `None`: nowhere.
    pub http_addr: Option<SocketAddr>,
}

/// What an agent serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentRole {
    /// The whole cluster: as the hub writes it, `agent`.
    #[default]
    #[serde(rename = "agent")]
    Cluster,
    /// One node, and the cluster while none of its cluster agents is there.
    Node,
}

impl fmt::Display for AgentRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
        })
    }
}

/// Where an agent keeps what the cluster's own endpoints need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The folder that it shares with endpoints.
    pub dir: PathBuf,
    /// The file of the key that bundles are sealed with. Default: `seal.key` in the folder, made the first time.
    pub seal_key: Option<PathBuf>,
    /// The Secret that a copy is kept in, for folders that do not last.
    pub secret: Option<SecretName>,
}

/// How the cluster's API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamConfig {
    /// As a pod: `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, with the service account in `dir`
    /// (`token`, `ca.crt`), both read again as they are rotated.
    InCluster {
        /// Folder of the service account.
        dir: PathBuf,
    },
    /// As a kubeconfig says. Its files are read again as they change; plugins are not run.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The context. Default: its current one.
        context: Option<String>,
    },
    /// As the text of a kubeconfig says, which stands by itself: it names no files, and nothing is read anew.
    Given(crate::upstream::GivenKubeconfig),
    /// Where it says, by this authority. Each request brings its own credential.
    At {
        /// `https://host:port`, and a path that goes before each other.
        server: String,
        /// PEM.
        authority: String,
    },
}

/// What may carry the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// The first of them that gets through, in this order.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tls,
    /// WebSocket only, with the same TLS inside.
    WebSocket,
}

/// A setting that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The token is not what the hub prints.
    #[error(
        "the join token is malformed: it starts with mlj_ and has three parts; copy it whole, as `moorline token create` printed it"
    )]
    Token,
    /// An address that no pod can reach, or that none is.
    #[error(
        "{0} cannot be where services are imported: it is to be the agent's own address, which the cluster's pods reach"
    )]
    ImportsAddress(IpAddr),
    /// Imports are for the whole cluster.
    #[error("a node agent imports nothing: cluster agents do")]
    NodeImports,
    /// Joining by a service account without what it needs.
    #[error("who joins by a service account is a node agent (--role node) and names its cluster (--cluster)")]
    AccountJoin,
    /// A path that is empty.
    #[error("{0} must not be empty")]
    EmptyPath(&'static str),
}

impl Config {
    /// Checks what can be checked without touching anything.
    ///
    /// # Errors
    /// The first setting that cannot be obeyed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        use moorline_authz::token::{Kind, TokenText};
        if let Some(token) = &self.token {
            match TokenText::parse(token) {
                Ok(TokenText { kind: Kind::Join, pin: Some(_), .. }) => {}
                _ => return Err(ConfigError::Token),
            }
        }
        if self.node.join.is_some() && (self.role != AgentRole::Node || self.cluster.is_none()) {
            return Err(ConfigError::AccountJoin);
        }
        if let Some(address) = self.imports_address {
            if self.role == AgentRole::Node {
                return Err(ConfigError::NodeImports);
            }
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return Err(ConfigError::ImportsAddress(address));
            }
        }
        let upstream = match &self.upstream {
            UpstreamConfig::InCluster { dir } => Some(dir),
            UpstreamConfig::Kubeconfig { path, .. } => Some(path),
            UpstreamConfig::At { .. } | UpstreamConfig::Given(_) => None,
        };
        for (path, what) in [
            (Some(&self.state_dir), "state folder"),
            (upstream, "path to the API server's credential"),
            (self.policy_file.as_ref(), "policy file"),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(ConfigError::EmptyPath(what));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("hub", &self.hub)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("tokens", &self.tokens)
            .field("name", &self.name)
            .field("cluster", &self.cluster)
            .field("role", &self.role)
            .field("node_name", &self.node_name)
            .field("state_dir", &self.state_dir)
            .field("upstream", &self.upstream)
            .field("policy_file", &self.policy_file)
            .field("imports_address", &self.imports_address)
            .field("carrier", &self.carrier)
            .field("http_addr", &self.http_addr)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_authz::token::TokenText;

    fn config(token: Option<String>) -> Config {
        Config {
            hub: "hub:8443".parse().unwrap(),
            token,
            tokens: None,
            name: None,
            cluster: None,
            role: AgentRole::Cluster,
            node_name: None,
            shell_root: "/".into(),
            node: crate::node::Settings::default(),
            state_dir: "/tmp/x".into(),
            state_secret: None,
            endpoint: None,
            upstream: UpstreamConfig::InCluster { dir: "/tmp/y".into() },
            policy_file: None,
            imports_address: None,
            carrier: Preference::Auto,
            http_addr: None,
        }
    }

    #[test]
    fn only_join_tokens_are_taken() {
        let join = TokenText::generate_join([1; 32]).reveal().to_string();
        assert_eq!(config(Some(join)).validate(), Ok(()));
        assert_eq!(config(None).validate(), Ok(()));
        let api = TokenText::generate_api().reveal().to_string();
        for bad in [api, "mlj_x".to_owned(), String::new()] {
            assert_eq!(config(Some(bad)).validate(), Err(ConfigError::Token));
        }
    }

    #[test]
    fn s69_the_token_does_not_print() {
        let token = TokenText::generate_join([1; 32]).reveal().to_string();
        assert!(!format!("{:?}", config(Some(token.clone()))).contains(&token));
    }
}
