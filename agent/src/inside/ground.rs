//! Addresses that no stream leads to: the nodes', the API server's, the hub's, the agent's own.

use super::Failure;
use crate::{limits, upstream::ApiServer};
use http::{Request, StatusCode, header};
use moorline_authz::{address::plain, edge::Terrain};
use moorline_link::HubAddress;
use moorline_proxy::body;
use serde::Deserialize;
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::{Arc, LazyLock},
};
use tokio::{sync::Mutex, time::Instant};

/// What was seen, and when.
type Seen = Option<(Instant, Result<Arc<Terrain>, Failure>)>;

/// Knows them, and looks again from time to time.
pub(super) struct Ground {
    upstream: Arc<ApiServer>,
    hub: Option<HubAddress>,
    seen: Mutex<Seen>,
}

impl Ground {
    pub fn new(upstream: Arc<ApiServer>, hub: Option<HubAddress>) -> Self {
        Self { upstream, hub, seen: Mutex::default() }
    }

    /// The addresses. An agent that cannot tell which they are dials nothing.
    pub async fn terrain(&self) -> Result<Arc<Terrain>, Failure> {
        let mut seen = self.seen.lock().await;
        if let Some((at, terrain)) = &*seen {
            let life = if terrain.is_ok() { limits::GROUND_KNOWN } else { limits::GROUND_RETRY };
            if at.elapsed() < life {
                return terrain.clone();
            }
        }
        let now = self.look().await.map(Arc::new);
        let terrain = match (&*seen, now) {
            // An API server that is down has not moved its nodes.
            (Some((_, Ok(old))), Err(Failure::Unreachable(_))) => Ok(old.clone()),
            (_, now) => now,
        };
        *seen = Some((Instant::now(), terrain.clone()));
        terrain
    }

    async fn look(&self) -> Result<Terrain, Failure> {
        let mut terrain = Terrain { nodes: self.nodes().await?, ..Terrain::default() };
        let (host, port) = self.upstream.address();
        terrain.api = addresses(&host, port).await;
        // The service that stands for it, as pods are told of it.
        let service = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok());
        terrain.api.extend(service.or(self.service().await));
        if let Some(hub) = &self.hub {
            terrain.hub = addresses(&hub.host, hub.port).await;
        }
        Ok(terrain)
    }

    async fn nodes(&self) -> Result<HashSet<IpAddr>, Failure> {
        let (mut nodes, mut more) = (HashSet::new(), String::new());
        for _ in 0..limits::NODE_PAGES {
            let path = format!("/api/v1/nodes?limit={}&continue={more}", limits::NODE_PAGE);
            let page: Nodes = match self.ask(&path).await? {
                (StatusCode::OK, answer) => serde_json::from_slice(&answer).map_err(|e| asked(&e.to_string()))?,
                (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, _) => {
                    return Err(Failure::Policy(
                        "the agent cannot tell which addresses are nodes', and dials nothing: give its service account list on nodes"
                            .to_owned(),
                    ));
                }
                (other, _) => return Err(asked(&format!("it answered {other}"))),
            };
            let all = page.items.iter().flat_map(|node| &node.status.addresses);
            nodes.extend(all.filter_map(|a| a.address.parse().ok()).map(plain));
            more = page.metadata.r#continue;
            if more.is_empty() {
                break;
            }
        }
        Ok(nodes)
    }

    /// The address of the service `kubernetes`, where the agent may look.
    async fn service(&self) -> Option<IpAddr> {
        let (status, answer) = self.ask("/api/v1/namespaces/default/services/kubernetes").await.ok()?;
        let service: serde_json::Value = serde_json::from_slice(&answer).ok()?;
        let address = service.pointer("/spec/clusterIP")?.as_str()?.parse().ok();
        address.filter(|_| status == StatusCode::OK)
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, bytes::Bytes), Failure> {
        let request = Request::get(path).header(header::ACCEPT, "application/json").body(body::empty());
        let request = request.map_err(|e| asked(&e.to_string()))?;
        self.upstream.own(request).await.map_err(|e| asked(&e.to_string()))
    }
}

fn asked(why: &str) -> Failure {
    Failure::Unreachable(format!("the cluster's API server could not be asked for its nodes: {why}"))
}

async fn addresses(host: &str, port: u16) -> HashSet<IpAddr> {
    if let Ok(ip) = host.parse() {
        return [plain(ip)].into();
    }
    let found = tokio::time::timeout(limits::INSIDE_CONNECT, tokio::net::lookup_host((host, port))).await;
    found.ok().and_then(Result::ok).into_iter().flatten().map(|address| plain(address.ip())).collect()
}

/// Whether an address is this host's own: a socket can be bound to it.
pub(super) fn is_own(ip: IpAddr) -> bool {
    /// A host may be set up so that every address can be bound (`ip_nonlocal_bind`). Then binding tells nothing. This
    /// address is nobody's (RFC 5737).
    static TELLS: LazyLock<bool> = LazyLock::new(|| UdpSocket::bind((Ipv4Addr::new(192, 0, 2, 1), 0)).is_err());
    *TELLS && UdpSocket::bind((plain(ip), 0)).is_ok()
}

#[derive(Deserialize)]
struct Nodes {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<Node>,
}
#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default)]
    r#continue: String,
}
#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    status: NodeStatus,
}
#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}
#[derive(Deserialize)]
struct NodeAddress {
    address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s23_the_hosts_own_addresses_are_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()) && is_own("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!is_own("192.0.2.7".parse().unwrap()));
    }
}
