//! Where a request is addressed to, judged on the raw bytes and never rewritten.

use moorline_authz::verb::percent_decode;
use moorline_proto::id::ClusterId;

/// A cluster's part of a request target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterPath<'a> {
    /// The cluster's name: a DNS label, so it has one spelling only.
    pub cluster: &'a str,
    /// What goes to the cluster, byte for byte, query included; starts with `/`.
    pub rest: &'a str,
}

/// Why a target is refused: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not an origin-form path.
    #[error("the request target must be a path")]
    NotAPath,
    /// `.`, `..`, `//`, `;`, `\`, or an encoded form of them, before the cluster's own part.
    #[error("ambiguous path")]
    Ambiguous,
    /// The cluster's segment is no cluster name.
    #[error("not a cluster name")]
    BadCluster,
    /// Under `/services/`, and no service's.
    #[error("a service's path is /services/NAMESPACE/NAME:PORT/… or /services/NAMESPACE/https:NAME:PORT/…")]
    BadService,
    /// Longer than [`MAX_TARGET`].
    #[error("the request target is too long")]
    TooLong,
}

/// Longest request target, in bytes.
pub const MAX_TARGET: usize = 32 * 1024;

/// Splits `/k8s/clusters/<cluster>/…`. `Ok(None)`: another path, of the hub's own, free of ambiguity.
///
/// # Errors
/// See [`BadPath`].
pub fn split(target: &str) -> Result<Option<ClusterPath<'_>>, BadPath> {
    const PREFIX: &str = "/k8s/clusters/";
    if MAX_TARGET < target.len() {
        return Err(BadPath::TooLong);
    }
    if !target.starts_with('/') {
        return Err(BadPath::NotAPath);
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let Some(after) = path.strip_prefix(PREFIX) else {
        return if is_plain(path) { Ok(None) } else { Err(BadPath::Ambiguous) };
    };
    let end = after.find('/').unwrap_or(after.len());
    let cluster = &after[..end];
    if cluster.parse::<ClusterId>().is_err() {
        let plain = !cluster.is_empty() && is_plain(&path[..PREFIX.len() + end]);
        return Err(if plain { BadPath::BadCluster } else { BadPath::Ambiguous });
    }
    let rest = &target[PREFIX.len() + end..];
    match rest.as_bytes().first() {
        None => Ok(Some(ClusterPath { cluster, rest: "/" })),
        // `…/edge1?x` would need a '/' that was not sent.
        Some(b'?') => Err(BadPath::Ambiguous),
        Some(_) if climbs(&path[PREFIX.len() + end..]) => Err(BadPath::Ambiguous),
        Some(_) => Ok(Some(ClusterPath { cluster, rest })),
    }
}

/// A service's part of a cluster's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePath<'a> {
    /// Namespace, as it stands there: not yet known to be one.
    pub namespace: &'a str,
    /// Spoken to over TLS.
    pub https: bool,
    /// Name, as it stands there.
    pub name: &'a str,
    /// Port, as it stands there.
    pub port: &'a str,
    /// What stands before the service's own path: `/services/<namespace>/[https:]<name>:<port>`.
    pub prefix: &'a str,
    /// What goes to the service, byte for byte, query included; starts with `/`. `None`: not even a slash was there,
    /// and what is relative to such a page would lead elsewhere.
    pub rest: Option<&'a str>,
}

/// Splits `/services/<namespace>/[https:|http:]<name>:<port>/…`, the `rest` of a [`ClusterPath`]. `Ok(None)`: another
/// path, of the API server's.
///
/// # Errors
/// See [`BadPath`].
pub fn service(rest: &str) -> Result<Option<ServicePath<'_>>, BadPath> {
    let Some(after) = rest.strip_prefix("/services/") else { return Ok(None) };
    let (namespace, after) = after.split_once('/').ok_or(BadPath::BadService)?;
    let end = after.find(['/', '?']).unwrap_or(after.len());
    let (place, own) = after.split_at_checked(end).ok_or(BadPath::BadService)?;
    let mut parts = place.split(':');
    let (https, name, port) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("https"), Some(name), Some(port), None) => (true, name, port),
        (Some("http"), Some(name), Some(port), None) | (Some(name), Some(port), None, None) => (false, name, port),
        _ => return Err(BadPath::BadService),
    };
    let path = own.split_once('?').map_or(own, |(path, _)| path);
    if climbs(path) {
        return Err(BadPath::Ambiguous);
    }
    let prefix = &rest[..rest.len() - own.len()];
    Ok(Some(ServicePath { namespace, https, name, port, prefix, rest: own.starts_with('/').then_some(own) }))
}

/// Most times that a path is decoded to see what somebody behind us might make of it.
const DECODINGS: usize = 4;

/// The path as it is, decoded once, decoded twice, … until that changes nothing.
fn readings(path: &str) -> Vec<Vec<u8>> {
    let mut all = vec![path.as_bytes().to_vec()];
    while all.len() <= DECODINGS {
        let decoded = all.last().and_then(|last| std::str::from_utf8(last).ok()).and_then(percent_decode);
        match decoded {
            Some(decoded) if all.last() != Some(&decoded) => all.push(decoded),
            _ => break,
        }
    }
    all
}

/// Whether every reading of a path has the same segments, and none of them is special.
fn is_plain(path: &str) -> bool {
    let slashes = path.bytes().filter(|&b| b == b'/').count();
    readings(path).iter().all(|path| {
        let mut segments = path.split(|&b| b == b'/').skip(1).peekable();
        let mut plain = path.iter().filter(|&&b| b == b'/').count() == slashes;
        while let Some(segment) = segments.next() {
            let last = segments.peek().is_none();
            plain &= !matches!(segment, b"." | b"..") && (last || !segment.is_empty());
            plain &= !segment.iter().any(|b| matches!(b, b';' | b'\\' | 0));
        }
        plain
    })
}

/// Whether some reading of a path leaves the place that it starts from.
fn climbs(path: &str) -> bool {
    // Most have nothing to decode, and one reading.
    if path.contains('%') { readings(path).iter().any(|path| leaves(path)) } else { leaves(path.as_bytes()) }
}

fn leaves(path: &[u8]) -> bool {
    let mut depth = 0i64;
    path.split(|&b| matches!(b, b'/' | b'\\')).any(|segment| {
        depth += match segment {
            b"" | b"." => 0,
            b".." => -1,
            _ => 1,
        };
        depth < 0
    })
}

/// A host name as it is compared: without port and trailing dot, lower-case. `None`: not a host.
pub fn canonical_host(authority: &str) -> Option<String> {
    host_of(authority).map(str::to_ascii_lowercase)
}

/// The host name as it is spelt, without port and trailing dot.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, port.strip_prefix(':').or(port.is_empty().then_some("0"))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "0")),
    };
    port.parse::<u16>().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit()))?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(legal)).then_some(host)
}

/// Whether `authority` (Host or `:authority`) names what the TLS handshake named. Without a server name everything matches.
/// `false` is 421.
pub fn host_matches_sni(authority: &str, sni: Option<&str>) -> bool {
    let Some(host) = host_of(authority) else { return false };
    sni.is_none_or(|sni| host_of(sni).is_some_and(|sni| sni.eq_ignore_ascii_case(host)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s43_nothing_ambiguous_before_the_cluster() {
        for bad in [
            "/k8s/clusters/a/../b",
            "/k8s/clusters/%2e%2e/a",
            "/k8s/clusters/../clusters/a",
            "/k8s/clusters/..%2fa/",
            "/k8s/clusters/..%252fa/",
            "//k8s/clusters/a",
            "/k8s//clusters/a/",
            "/k8s/clusters//a/",
            "/k8s/;/clusters/a",
            "/k8s/clusters/a;x/",
            "/k8s/clusters/a%00/",
            "/k8s/clusters/a\\b/",
            "/k8s/./clusters/a",
            "/k8s/clusters/./a",
            "/k8s/clusters/a/%2e%2e/b",
            "/k8s/clusters/a/..%2fb",
            "/k8s/clusters/a/..%252f..%252fb",
            "/k8s/clusters/a/x/../../b",
            "/k8s/clusters/a%2fb",
            "/k8s%2fclusters/a/",
            "/k8s/clusters/a\\..\\b",
            "/x/../k8s/clusters/a",
            "/k8s/clusters/",
            "/k8s/clusters/a?x=/",
        ] {
            assert_eq!(split(bad), Err(BadPath::Ambiguous), "{bad}");
        }
        for bad in ["/k8s/clusters/A/", "/k8s/clusters/a_b/", "/k8s/clusters/%61/"] {
            assert_eq!(split(bad), Err(BadPath::BadCluster), "{bad}");
        }
    }

    #[test]
    fn s42_a_target_is_a_path() {
        for bad in ["", "*", "k8s/clusters/a", "http://other/k8s/clusters/a"] {
            assert_eq!(split(bad), Err(BadPath::NotAPath), "{bad}");
        }
        assert_eq!(split(&format!("/{}", "a".repeat(MAX_TARGET))), Err(BadPath::TooLong));
    }

    #[test]
    fn s43_after_the_cluster_the_bytes_are_what_came() {
        for rest in [
            "/",
            "/api",
            "/api/v1/namespaces/a/services/b:80/proxy/x%2Fy%2f..%41?a=%2F&b=c?d",
            "/a//b",
            "/a/../b",
            "/a;b/%00",
            "/...",
        ] {
            let target = format!("/k8s/clusters/edge-1{rest}");
            assert_eq!(split(&target), Ok(Some(ClusterPath { cluster: "edge-1", rest })));
        }
        assert_eq!(split("/k8s/clusters/a"), Ok(Some(ClusterPath { cluster: "a", rest: "/" })));
    }

    #[test]
    fn the_hubs_own_paths_are_not_a_clusters() {
        for own in
            ["/", "/apis/moorline.dev/v1alpha1/clusters?watch=1", "/auth/login", "/k8s", "/K8s/clusters/a", "/a/"]
        {
            assert_eq!(split(own), Ok(None), "{own}");
        }
    }

    #[test]
    fn s43_a_services_path_stays_with_the_service() {
        let split = |rest: &'static str| service(rest).unwrap().unwrap();
        let web = split("/services/shop/web:80/a/../b?x=/..");
        assert_eq!((web.namespace, web.https, web.name, web.port), ("shop", false, "web", "80"));
        assert_eq!((web.prefix, web.rest), ("/services/shop/web:80", Some("/a/../b?x=/..")));
        let tls = split("/services/shop/https:web:http/");
        assert_eq!(
            (tls.https, tls.port, tls.prefix, tls.rest),
            (true, "http", "/services/shop/https:web:http", Some("/"))
        );
        assert_eq!((split("/services/shop/web:80").rest, split("/services/shop/web:80?x").rest), (None, None));
        assert_eq!(service("/api/v1/services/"), Ok(None));
        for bad in [
            "/services/",
            "/services/shop",
            "/services/shop/web",
            "/services/shop/ftp:web:80:1/",
            "/services/shop/x:web:80/",
        ] {
            assert_eq!(service(bad), Err(BadPath::BadService), "{bad}");
        }
        for bad in [
            "/services/shop/web:80/../api:80/",
            "/services/shop/web:80/%2e%2e/x",
            "/services/shop/web:80/a/..%2f..%2fx",
        ] {
            assert_eq!(service(bad), Err(BadPath::Ambiguous), "{bad}");
        }
    }

    #[test]
    fn s46_a_host_has_one_name() {
        for same in ["hub.example", "HUB.Example.", "hub.example:8443", "Hub.example.:1"] {
            assert!(host_matches_sni(same, Some("hub.example")) && host_matches_sni(same, None), "{same}");
        }
        for other in
            ["b", "hub.example.org", "x@hub.example", "hub.example:x", "hub.example:", "", ".", "hub example", "[::1"]
        {
            assert!(!host_matches_sni(other, Some("hub.example")), "{other}");
        }
        assert_eq!(canonical_host("[::1]:8443").as_deref(), Some("::1"));
        assert_eq!(canonical_host("127.0.0.1:8443").as_deref(), Some("127.0.0.1"));
    }

    proptest! {
        #[test]
        fn z06_what_a_service_is_sent_is_what_came(target in "/services/[a-z]{0,3}/(https:)?[a-z:%25]{0,8}[a-z0-9./%25eEfF;\\\\-]{0,24}(\\?.{0,8})?") {
            if let Ok(Some(found)) = service(&target) {
                prop_assert_eq!(format!("{}{}", found.prefix, found.rest.unwrap_or_else(|| &target[found.prefix.len()..])), target.clone());
                prop_assert!(!climbs(found.rest.unwrap_or("/").split('?').next().unwrap()));
            }
        }

        #[test]
        fn z06_what_is_authorised_is_what_is_sent(target in "/(k8s/clusters/)?[a-z./%25eEfF;\\\\-]{0,24}(\\?.{0,8})?") {
            if let Ok(Some(ClusterPath { cluster, rest })) = split(&target) {
                prop_assert!(rest.starts_with('/') && !climbs(rest.split('?').next().unwrap()));
                let root = format!("/k8s/clusters/{cluster}");
                if target == root {
                    prop_assert_eq!(rest, "/");
                } else {
                    prop_assert_eq!(root + rest, target);
                }
            }
        }
    }
}
