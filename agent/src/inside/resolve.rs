//! From a place's name to its addresses: by the API server, as the agent; by the cluster's DNS where the agent may not
//! ask, and for hosts.

use super::Failure;
use crate::{limits, upstream::ApiServer};
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, StatusCode, header};
use moorline_proto::inside::Destination;
use moorline_proxy::body;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

/// What is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A place that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it answers, in no order.
    pub addresses: Vec<SocketAddr>,
    /// Of the service or pod.
    pub labels: HashMap<String, String>,
    /// The name that its certificate has.
    pub host: String,
    /// The port that was asked for, as a number: of the service, not of its endpoints.
    pub port: u16,
    /// It speaks HTTP/2 in plain text (`appProtocol`).
    pub h2c: bool,
}

/// What is known of one place.
#[derive(Default)]
struct Known {
    found: Mutex<Option<(Instant, Arc<Found>)>>,
    /// Held by who looks.
    looking: AsyncMutex<()>,
}

impl Known {
    fn fresh(&self) -> Option<Arc<Found>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().filter(|(at, _)| at.elapsed() < limits::INSIDE_KNOWN).map(|(_, found)| Arc::clone(found))
    }

    fn set(&self, found: Option<(Instant, Arc<Found>)>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

type Places = HashMap<Destination, Arc<Known>>;

/// Asks DNS for all addresses of a name.
pub type Lookup = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// As this host does it.
fn system() -> Lookup {
    Arc::new(|host, port| {
        async move { Ok(tokio::net::lookup_host((host, port)).await?.take(limits::INSIDE_ADDRESSES).collect()) }.boxed()
    })
}

/// Looks up, and remembers for [`limits::INSIDE_KNOWN`].
pub(super) struct Resolver {
    upstream: Arc<ApiServer>,
    names: Lookup,
    /// Over TCP, over UDP.
    known: Mutex<(Places, Places)>,
}

impl Resolver {
    /// `names`: who is asked for hosts; `None`: whom this host asks.
    pub fn new(upstream: Arc<ApiServer>, names: Option<Lookup>) -> Self {
        Self { upstream, names: names.unwrap_or_else(system), known: Mutex::default() }
    }

    /// The authorities that vouch for the API server: by custom those of the cluster.
    pub fn roots(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.upstream.roots()
    }

    /// The place as it is, or was a moment ago. Those who ask at once wait for one look.
    pub async fn find(&self, to: &Destination, transport: Transport) -> Result<Arc<Found>, Failure> {
        let known = self.known(to, transport);
        // Every request asks: those that find what they need wait for nobody.
        if let Some(found) = known.fresh() {
            return Ok(found);
        }
        let _looking = known.looking.lock().await;
        if let Some(found) = known.fresh() {
            return Ok(found);
        }
        known.set(None);
        let found = Arc::new(self.look(to, transport).await?);
        known.set(Some((Instant::now(), found.clone())));
        Ok(found)
    }

    fn known(&self, to: &Destination, transport: Transport) -> Arc<Known> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all = match transport {
            Transport::Tcp => &mut all.0,
            Transport::Udp => &mut all.1,
        };
        if let Some(known) = all.get(to) {
            return Arc::clone(known);
        }
        if limits::INSIDE_REMEMBERED <= all.len() {
            all.retain(|_, known| known.fresh().is_some());
            if limits::INSIDE_REMEMBERED <= all.len() {
                all.clear();
            }
        }
        Arc::clone(all.entry(to.clone()).or_default())
    }

    /// The next one looks anew.
    pub fn forget(&self, to: &Destination) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.0.remove(to);
        all.1.remove(to);
    }

    async fn look(&self, to: &Destination, transport: Transport) -> Result<Found, Failure> {
        match to {
            Destination::Host { host, port } => {
                let addresses = self.dns(host, *port).await?;
                Ok(Found { addresses, host: host.clone(), port: *port, ..Found::default() })
            }
            Destination::Service { namespace, name, port } => self.service(namespace, name, port, transport).await,
            Destination::Pod { namespace, name, port } => self.pod(namespace, name, port, transport).await,
        }
    }

    /// One lookup, all of its addresses.
    async fn dns(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let found = tokio::time::timeout(limits::INSIDE_CONNECT, (self.names)(host.to_owned(), port)).await;
        match found {
            Err(_) => Err(Failure::Timeout { to: format!("the cluster's DNS, asked for {host}") }),
            Ok(Ok(all)) => Ok(all),
            Ok(Err(e)) => Err(Failure::NotFound(format!("the cluster's DNS knows no address of {host}: {e}"))),
        }
    }

    async fn service(&self, namespace: &str, name: &str, port: &str, transport: Transport) -> Result<Found, Failure> {
        let host = format!("{name}.{namespace}.svc");
        let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
        let service: Service = match self.get(&path).await? {
            Asked::Is(service) => service,
            Asked::Missing => {
                return Err(Failure::NotFound(format!("there is no service {name:?} in namespace {namespace:?}")));
            }
            Asked::Forbidden => return self.by_dns(&host, port, "get on services").await,
        };
        let wanted = service
            .spec
            .ports
            .iter()
            .find(|p| p.protocol() == transport.name() && (p.name == port || p.port.to_string() == port));
        let Some(wanted) = wanted else {
            let has: Vec<_> = service.spec.ports.iter().map(ServicePort::shown).collect();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            let asked = format!("{port} ({})", transport.name());
            return Err(Failure::NotFound(format!("service {namespace}/{name} has no port {asked}; it has: {has}")));
        };
        let h2c = matches!(wanted.app_protocol.as_str(), "kubernetes.io/h2c" | "h2c" | "grpc");
        let labels = service.metadata.labels;
        if service.spec.r#type == "ExternalName" {
            let addresses = self.dns(&service.spec.external_name, wanted.port).await?;
            return Ok(Found { addresses, labels, host: service.spec.external_name, port: wanted.port, h2c });
        }
        let Some(slices) = self.slices(namespace, name).await? else {
            let found = self.by_dns(&host, &wanted.port.to_string(), "list on endpointslices").await?;
            return Ok(Found { labels, h2c, ..found });
        };
        let addresses = slices.ready(&wanted.name, transport);
        if addresses.is_empty() {
            let all: usize = slices.items.iter().map(|slice| slice.endpoints.len()).sum();
            return Err(Failure::NoEndpoints(match all {
                0 => format!("service {namespace}/{name} has no endpoints: does its selector match pods?"),
                _ => format!("service {namespace}/{name}: none of its {all} endpoints is ready; look at its pods"),
            }));
        }
        Ok(Found { addresses, labels, host, port: wanted.port, h2c })
    }

    /// `None`: the agent may not ask.
    async fn slices(&self, namespace: &str, name: &str) -> Result<Option<Slices>, Failure> {
        // v1beta1 is what Kubernetes before 1.21 has.
        for version in ["v1", "v1beta1"] {
            let path = format!(
                "/apis/discovery.k8s.io/{version}/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
            );
            match self.get(&path).await? {
                Asked::Is(slices) => return Ok(Some(slices)),
                Asked::Missing => {}
                Asked::Forbidden => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn by_dns(&self, host: &str, port: &str, right: &str) -> Result<Found, Failure> {
        let Ok(port) = port.parse() else {
            return Err(Failure::Unreachable(format!(
                "the agent may not look up port {port:?} of {host}: give its service account {right}, or name the port by its number"
            )));
        };
        let addresses = self.dns(host, port).await?;
        Ok(Found { addresses, host: host.to_owned(), port, ..Found::default() })
    }

    async fn pod(&self, namespace: &str, name: &str, port: &str, transport: Transport) -> Result<Found, Failure> {
        let pod: Pod = match self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await? {
            Asked::Is(pod) => pod,
            Asked::Missing => {
                return Err(Failure::NotFound(format!("there is no pod {name:?} in namespace {namespace:?}")));
            }
            Asked::Forbidden => {
                return Err(Failure::Unreachable(
                    "the agent may not look up pods: give its service account get on pods".to_owned(),
                ));
            }
        };
        let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
        let named =
            ports.filter(|p| p.protocol() == transport.name()).find(|p| p.name == port).map(|p| p.container_port);
        let Some(number) = port.parse().ok().or(named) else {
            return Err(Failure::NotFound(format!(
                "pod {namespace}/{name} has no port named {port:?}; use its number"
            )));
        };
        let of = |ip: &PodIp| ip.ip.parse().ok().map(|ip| SocketAddr::new(ip, number));
        let addresses: Vec<_> = pod.status.pod_ips.iter().filter_map(of).collect();
        if pod.status.phase != "Running" || addresses.is_empty() {
            return Err(Failure::NoEndpoints(format!("pod {namespace}/{name} is {}, not running", pod.status.phase)));
        }
        let dashed = addresses.first().map(|a| a.ip().to_string().replace(['.', ':'], "-")).unwrap_or_default();
        Ok(Found {
            addresses,
            labels: pod.metadata.labels,
            host: format!("{dashed}.{namespace}.pod"),
            port: number,
            h2c: false,
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Asked<T>, Failure> {
        let failed = |why: &str| Failure::Unreachable(format!("the cluster's API server could not be asked: {why}"));
        let request = Request::get(path)
            .header(header::ACCEPT, "application/json")
            .body(body::empty())
            .map_err(|e| failed(&e.to_string()))?;
        let (status, answer) = self.upstream.own(request).await.map_err(|e| failed(&e.to_string()))?;
        match status {
            StatusCode::OK => serde_json::from_slice(&answer).map(Asked::Is).map_err(|e| failed(&e.to_string())),
            StatusCode::NOT_FOUND => Ok(Asked::Missing),
            StatusCode::FORBIDDEN => Ok(Asked::Forbidden),
            other => Err(failed(&format!("it answered {other}"))),
        }
    }
}

enum Asked<T> {
    Is(T),
    Missing,
    Forbidden,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    labels: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Service {
    #[serde(default)]
    metadata: Meta,
    spec: ServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    r#type: String,
    ports: Vec<ServicePort>,
    external_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServicePort {
    name: String,
    port: u16,
    protocol: String,
    app_protocol: String,
}

impl ServicePort {
    fn protocol(&self) -> &str {
        if self.protocol.is_empty() { "TCP" } else { &self.protocol }
    }
    fn shown(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!("{} ", self.name) };
        format!("{name}{}/{}", self.port, self.protocol())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slices {
    items: Vec<Slice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Slice {
    address_type: String,
    #[serde(deserialize_with = "or_default")]
    endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<SlicePort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: Conditions,
}

/// `null` is unknown, and unknown is ready (Kubernetes' EndpointConditions).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlicePort {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    port: u16,
    #[serde(deserialize_with = "or_default")]
    protocol: String,
}

/// Kubernetes writes `null` for what is empty.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

impl Slices {
    /// Addresses of what is ready; of what still serves while it ends, where nothing is.
    fn ready(&self, port: &str, transport: Transport) -> Vec<SocketAddr> {
        let pick = |wanted: fn(&Conditions) -> bool| -> Vec<SocketAddr> {
            let mut found = Vec::new();
            for slice in self.items.iter().filter(|slice| slice.address_type != "FQDN") {
                let same = |p: &&SlicePort| {
                    let protocol = if p.protocol.is_empty() { "TCP" } else { &p.protocol };
                    p.name == port && protocol == transport.name() && p.port != 0
                };
                let Some(port) = slice.ports.iter().find(same).map(|p| p.port) else { continue };
                for endpoint in slice.endpoints.iter().filter(|e| wanted(&e.conditions)) {
                    let ips = endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
                    found.extend(ips.map(|ip| SocketAddr::new(ip, port)).take(limits::INSIDE_ADDRESSES - found.len()));
                }
            }
            found
        };
        let ready = pick(|c| c.ready != Some(false));
        if ready.is_empty() { pick(|c| c.serving == Some(true)) } else { ready }
    }
}

#[derive(Debug, Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    container_port: u16,
    protocol: String,
}

impl ContainerPort {
    fn protocol(&self) -> &str {
        if self.protocol.is_empty() { "TCP" } else { &self.protocol }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slices(value: serde_json::Value) -> Slices {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn endpoints_are_those_that_are_ready() {
        let all = slices(json!({"items": [
            {"addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
             "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": null}},
            ]},
            {"addressType": "IPv6", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [{"addresses": ["fd00::1"]}]},
            {"addressType": "FQDN", "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["x.y"]}]},
            {"addressType": "IPv4", "ports": null, "endpoints": null},
        ]}));
        let shown = |found: Vec<SocketAddr>| found.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(all.ready("http", Transport::Tcp)), ["10.0.0.1:8080", "10.0.0.3:8080", "[fd00::1]:8080"]);
        assert_eq!(shown(all.ready("dns", Transport::Udp)), ["10.0.0.1:53", "10.0.0.3:53"]);
        assert!(all.ready("dns", Transport::Tcp).is_empty() && all.ready("x", Transport::Tcp).is_empty());
    }

    #[test]
    fn what_ends_and_still_serves_is_better_than_nothing() {
        let all = slices(json!({"items": [{"addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": [
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false}},
        ]}]}));
        assert_eq!(all.ready("", Transport::Tcp), ["10.0.0.2:80".parse().unwrap()]);
    }
}
