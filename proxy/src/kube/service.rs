//! Calls to services inside a cluster: what of a request reaches them, and how their answers are kept under the prefix
//! by which they are reached.

use super::Caller;
use crate::path::{ServicePath, canonical_host};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_LOCATION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST, LOCATION, SET_COOKIE},
};
use moorline_authz::verb::RequestInfo;

/// Cookies of the hub's own begin so: they never reach a service, and no service sets one.
pub const OWN_COOKIE: &str = "__Host-moorline";

/// What a page that is reached by path may do: it shares the hub's origin, and must not act there as the hub's own.
const SANDBOX: &str = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/// How a service is reached.
#[derive(Debug, Clone)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Name or number of its port.
    pub port: String,
    /// Spoken to over TLS.
    pub https: bool,
    /// What stands in front of its own paths, without a slash at its end; empty where it has a host of its own.
    pub prefix: String,
    /// The host that the client named.
    pub host: String,
    /// A signed word of who calls (a JWT), where there is one.
    pub identity: Option<String>,
}

impl Service {
    /// A service reached by path.
    pub fn by_path(cluster: &str, path: &ServicePath<'_>, host: &str) -> Self {
        Self {
            namespace: path.namespace.to_owned(),
            name: path.name.to_owned(),
            port: path.port.to_owned(),
            https: path.https,
            prefix: format!("/k8s/clusters/{cluster}{}", path.prefix),
            host: host.to_owned(),
            identity: None,
        }
    }

    /// What the call is, in Kubernetes' terms: it has no word for what a method does to a service.
    pub(super) fn info(&self) -> RequestInfo {
        let (verb, resource, subresource) = ("proxy".to_owned(), "services".to_owned(), "proxy".to_owned());
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        RequestInfo { verb, resource, subresource, namespace, name, is_resource: true, ..RequestInfo::default() }
    }

    /// Tells the service who calls and by which way. The request is clean of all such words by then.
    pub(super) fn introduce(&self, headers: &mut HeaderMap, caller: &Caller) {
        let mut say = |name: &'static str, value: &str| {
            // What no header can carry is left out: a service then knows nobody.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        say("x-forwarded-for", &caller.remote.ip().to_string());
        say("x-forwarded-host", &self.host);
        say("x-forwarded-proto", "https");
        say("x-forwarded-user", &caller.identity.user);
        if let Some(identity) = &self.identity {
            say("x-moorline-identity", identity);
        }
        if self.prefix.is_empty() {
            // On a host of its own a service must know it: pages of other origins are told by it.
            if let Ok(host) = HeaderValue::try_from(self.host.as_str()) {
                headers.insert(HOST, host);
            }
        } else {
            say("x-forwarded-prefix", &self.prefix);
        }
    }

    /// Keeps an answer under the prefix.
    pub(super) fn settle(&self, headers: &mut HeaderMap) {
        for name in [LOCATION, CONTENT_LOCATION] {
            let moved = headers.get(&name).and_then(|value| value.to_str().ok()).and_then(|value| self.moved(value));
            if let Some(value) = moved.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().filter_map(|value| self.cookie(value)).collect();
        headers.remove(SET_COOKIE);
        for cookie in cookies {
            headers.append(SET_COOKIE, cookie);
        }
        let page = headers.get(CONTENT_TYPE).is_none_or(|kind| {
            let kind = kind.as_bytes().to_ascii_lowercase();
            [&b"text/html"[..], b"application/xhtml", b"image/svg", b"text/xml", b"application/xml"]
                .iter()
                .any(|page| kind.starts_with(page))
        });
        if !self.prefix.is_empty() && page {
            headers.append(CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
        }
    }

    /// Where a redirect leads by way of the hub. `None`: it stays as it is; nobody follows it here.
    fn moved(&self, location: &str) -> Option<String> {
        let under = |path: &str| {
            path.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
        };
        let there = |path: &str| (!under(path)).then(|| format!("{}{path}", self.prefix));
        if location.starts_with('/') && !location.starts_with("//") {
            return there(location).filter(|_| !self.prefix.is_empty());
        }
        let rest = location.strip_prefix("http://").or_else(|| location.strip_prefix("https://"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let host = canonical_host(authority)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let hub = canonical_host(&self.host).is_some_and(|hub| hub == host);
        if hub && (self.prefix.is_empty() || under(&path)) {
            return Some(path);
        }
        (hub || self.is_called(&host)).then(|| there(&path).unwrap_or(path))
    }

    /// Whether a host is the service, by one of the names that the cluster's DNS has for it.
    fn is_called(&self, host: &str) -> bool {
        let Some(rest) = host.strip_prefix(self.name.as_str()) else { return false };
        let Some(rest) = rest.strip_prefix('.').and_then(|rest| rest.strip_prefix(self.namespace.as_str())) else {
            return rest.is_empty();
        };
        matches!(rest, "" | ".svc" | ".svc.cluster.local")
    }

    /// A cookie as it may be set: for the service's own paths, and never one of the hub's. `None`: not at all.
    fn cookie(&self, value: &HeaderValue) -> Option<HeaderValue> {
        let text = value.to_str().ok()?;
        let mut parts = text.split(';');
        let pair = parts.next()?.trim();
        let name = pair.split('=').next()?.trim();
        if is_own(name) {
            return None;
        }
        if self.prefix.is_empty() {
            // A domain would hand it to other services.
            let kept = parts.filter(|part| !names(part, "domain")).collect::<Vec<_>>().join(";");
            let kept = if kept.is_empty() { pair.to_owned() } else { format!("{pair};{kept}") };
            return HeaderValue::try_from(kept).ok();
        }
        // Cookies of this kind are for the whole host by definition, and the host is not the service's.
        if name.to_ascii_lowercase().starts_with("__host-") {
            return None;
        }
        let (mut cookie, mut path) = (pair.to_owned(), None);
        for part in parts {
            if names(part, "path") {
                path = part.split_once('=').map(|(_, path)| path.trim().trim_matches('"').to_owned());
            } else if !names(part, "domain") {
                cookie.push_str("; ");
                cookie.push_str(part.trim());
            }
        }
        let path = path.filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned());
        let path = match path.strip_prefix(&self.prefix) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => path,
            _ => format!("{}{path}", self.prefix),
        };
        HeaderValue::try_from(format!("{cookie}; Path={path}")).ok()
    }
}

fn names(part: &str, attribute: &str) -> bool {
    part.split('=').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(attribute))
}

fn is_own(cookie: &str) -> bool {
    let own = OWN_COOKIE.as_bytes();
    cookie.as_bytes().get(..own.len()).is_some_and(|start| start.eq_ignore_ascii_case(own))
}

/// Takes the hub's own cookies out of a request.
pub(super) fn strip_own_cookies(headers: &mut HeaderMap) {
    if !headers.contains_key(COOKIE) {
        return;
    }
    let all: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    let mut kept: Vec<&[u8]> = Vec::new();
    for value in &all {
        let parts = value.as_bytes().split(|&b| b == b';').map(<[u8]>::trim_ascii);
        kept.extend(parts.filter(|part| !part.is_empty() && !is_own(&String::from_utf8_lossy(part))));
    }
    if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
        && !kept.is_empty()
    {
        headers.insert(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        let path = crate::path::service("/services/shop/web:80/a").unwrap().unwrap();
        Service::by_path("edge1", &path, "hub.example:8443")
    }
    const PREFIX: &str = "/k8s/clusters/edge1/services/shop/web:80";

    #[test]
    fn s28_redirects_stay_under_the_prefix_and_strangers_are_left_alone() {
        let moved = |location: &str| service().moved(location);
        for (from, to) in [
            ("/login", "/login"),
            ("/login?next=%2F", "/login?next=%2F"),
            ("http://web.shop.svc/x", "/x"),
            ("http://web.shop.svc.cluster.local:80/x?y", "/x?y"),
            ("https://web/x", "/x"),
            ("http://WEB.shop:80", "/"),
            ("https://hub.example:8443/x", "/x"),
            ("http://web.shop?q", "/?q"),
        ] {
            assert_eq!(moved(from), Some(format!("{PREFIX}{to}")), "{from}");
        }
        assert_eq!(moved(&format!("https://hub.example{PREFIX}/x")), Some(format!("{PREFIX}/x")));
        for same in [
            "http://169.254.169.254/latest",
            "//evil/x",
            "https://evil/",
            "x/y",
            "../x",
            "http://webx.shop/",
            "http://web.other.svc/",
            &format!("{PREFIX}/x"),
            "javascript:1",
            "http://web.shop.svc@evil/",
        ] {
            assert_eq!(moved(same), None, "{same}");
        }
    }

    #[test]
    fn s73_cookies_are_the_services_own_and_never_the_hubs() {
        let set = |value: &str| {
            let made = service().cookie(&HeaderValue::try_from(value).unwrap());
            made.map(|value| value.to_str().unwrap().to_owned())
        };
        for (from, to) in [
            ("a=b", format!("a=b; Path={PREFIX}/")),
            ("a=b; Path=/; HttpOnly", format!("a=b; HttpOnly; Path={PREFIX}/")),
            ("a=b;path=/x;Domain=example;Secure", format!("a=b; Secure; Path={PREFIX}/x")),
            ("a=b; Path=x", format!("a=b; Path={PREFIX}/")),
            (&format!("a=b; Path={PREFIX}/x"), format!("a=b; Path={PREFIX}/x")),
        ] {
            assert_eq!(set(from), Some(to), "{from}");
        }
        for none in [
            "__Host-a=b; Path=/; Secure",
            "__Host-moorline-session=x",
            "__HOST-MOORLINE=x; Path=/",
            " __host-moorline=1",
        ] {
            assert_eq!(set(none), None, "{none}");
        }
        let own = Service { prefix: String::new(), ..service() };
        let made = own.cookie(&HeaderValue::from_static("a=b; Domain=example; Path=/; HttpOnly")).unwrap();
        assert_eq!(made, "a=b; Path=/; HttpOnly");
        assert!(own.cookie(&HeaderValue::from_static("__Host-moorline-x=1; Path=/")).is_none());
    }

    #[test]
    fn s08_the_hubs_cookies_do_not_arrive() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; __Host-moorline-session=secret; b=2"));
        headers.append(COOKIE, HeaderValue::from_static("__HOST-MOORLINE=x"));
        strip_own_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn s73_a_page_by_path_has_no_origin_to_act_from() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
        service().settle(&mut headers);
        assert_eq!(headers.get_all(CONTENT_SECURITY_POLICY).iter().count(), 2);
        let mut json = HeaderMap::new();
        json.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        service().settle(&mut json);
        assert!(!json.contains_key(CONTENT_SECURITY_POLICY));
    }
}
