//! What a request to a Kubernetes API server asks for, as its `RequestInfoFactory` reads it
//! (k8s.io/apiserver `endpoints/request/requestinfo.go`).

/// A request, taken apart. Fields that do not apply are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// Whether it is about an object of an API group, and not a path such as `/healthz`.
    pub is_resource: bool,
    /// get, list, watch, create, update, patch, delete, deletecollection, proxy; the lower-case method for other paths.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    /// Empty for the core group.
    pub api_group: String,
    /// `v1`, …
    pub version: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    /// `exec`, `log`, `status`, …
    pub subresource: String,
    /// The object's name.
    pub name: String,
    /// Whether the answer follows a log or watches: it has no end of its own.
    pub endless: bool,
}

impl RequestInfo {
    /// Whether the API server hands it on to a pod, a service or a node, as it is.
    pub fn is_proxied(&self) -> bool {
        self.verb == "proxy" || self.subresource == "proxy"
    }
}

/// Takes a request apart. `path` and `query` are the raw bytes that came; segments are percent-decoded for the
/// answer only, never for what is sent on.
///
/// GET on `exec`, `attach`, `portforward` and `proxy` is `create`: over a WebSocket these are GETs, and a right to
/// read must not be a right to run.
pub fn request_info(method: &str, path: &str, query: Option<&str>) -> RequestInfo {
    // The API server splits the decoded path, so an encoded slash separates segments here too.
    let decoded = percent_decode(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let decoded = decoded.unwrap_or_else(|| path.to_owned());
    let other = RequestInfo { verb: method.to_ascii_lowercase(), ..RequestInfo::default() };
    let mut parts: Vec<&str> = decoded.trim_matches('/').split('/').collect();
    let grouped = match parts.first() {
        Some(&"api") if 3 <= parts.len() => false,
        Some(&"apis") if 4 <= parts.len() => true,
        _ => return other,
    };
    let mut info = RequestInfo { is_resource: true, prefix: parts.remove(0).to_owned(), ..RequestInfo::default() };
    if grouped {
        info.api_group = parts.remove(0).to_owned();
    }
    info.version = parts.remove(0).to_owned();
    info.verb = match method {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
    .to_owned();
    // Old forms: /api/v1/watch/… and /api/v1/proxy/…
    if let Some(&verb @ ("watch" | "proxy")) = parts.first() {
        if parts.len() < 2 {
            return other;
        }
        info.verb = verb.to_owned();
        parts.remove(0);
    }
    if parts.first() == Some(&"namespaces") && 1 < parts.len() {
        info.namespace = parts[1].to_owned();
        if 2 < parts.len() && !matches!(parts[2], "status" | "finalize") {
            parts.drain(..2);
        }
    }
    let part = |at: usize| parts.get(at).map(|part| (*part).to_owned()).unwrap_or_default();
    (info.resource, info.name) = (part(0), part(1));
    if info.verb != "proxy" {
        info.subresource = part(2);
    }
    if info.name.is_empty() && info.verb == "get" {
        info.verb = if flag(query, "watch") { "watch" } else { "list" }.to_owned();
    }
    if info.name.is_empty() && info.verb == "delete" {
        info.verb = "deletecollection".to_owned();
    }
    if info.verb == "get" && matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") {
        info.verb = "create".to_owned();
    }
    info.endless = info.verb == "watch" || (info.subresource == "log" && flag(query, "follow"));
    info
}

/// A boolean of a query as Kubernetes reads it: there, and neither `false` nor `0`.
fn flag(query: Option<&str>, name: &str) -> bool {
    let mut pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = pairs.find(|(key, _)| percent_decode(key).as_deref() == Some(name.as_bytes()));
    value.is_some_and(|(_, value)| !value.eq_ignore_ascii_case("false") && value != "0")
}

/// Undoes percent-encoding; `None` where a `%` stands before anything but two hexadecimal digits.
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).map(|d| d as u8);
            out.push(digit(bytes.next())? << 4 | digit(bytes.next())?);
        } else {
            out.push(b);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_as_the_api_server_reads_them() {
        // method, target → verb, group, namespace, resource, subresource, name; the rows of Kubernetes' own requestinfo_test.go
        for (method, target, want) in [
            ("GET", "/api/v1/namespaces", "list|||namespaces||"),
            ("GET", "/api/v1/namespaces/other", "get||other|namespaces||other"),
            ("GET", "/api/v1/namespaces/other/pods", "list||other|pods||"),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get||other|pods||foo"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get||other|pods||foo"),
            ("GET", "/api/v1/pods", "list|||pods||"),
            ("HEAD", "/api/v1/pods", "list|||pods||"),
            ("GET", "/api/v1/namespaces/other/pods?watch=true", "watch||other|pods||"),
            ("GET", "/api/v1/pods?watch=0", "list|||pods||"),
            ("GET", "/api/v1/pods?watch=False", "list|||pods||"),
            ("GET", "/api/v1/pods?watch", "watch|||pods||"),
            ("GET", "/api/v1/pods?w%61tch=1", "watch|||pods||"),
            ("GET", "/api/v1/watch/pods", "watch|||pods||"),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch||other|pods||"),
            ("GET", "/api/v1/proxy/namespaces/other/pods/foo/x", "proxy||other|pods||foo"),
            ("GET", "/api/v1/namespaces/other/status", "get||other|namespaces|status|other"),
            ("PUT", "/api/v1/namespaces/other/finalize", "update||other|namespaces|finalize|other"),
            ("PATCH", "/api/v1/namespaces/other/pods/foo", "patch||other|pods||foo"),
            ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete||other|pods||foo"),
            ("DELETE", "/api/v1/namespaces/other/pods", "deletecollection||other|pods||"),
            ("POST", "/apis/extensions/v1beta3/namespaces/other/pods", "create|extensions|other|pods||"),
            ("GET", "/apis/apps/v1/deployments", "list|apps||deployments||"),
            ("GET", "/apis/apps/v1", "get|||||"),
            ("GET", "/api/v1", "get|||||"),
            ("GET", "/healthz", "get|||||"),
            ("POST", "/healthz", "post|||||"),
            ("GET", "/", "get|||||"),
            ("GET", "/api/v1/namespaces/other%2Fpods", "list||other|pods||"),
            ("GET", "/api/v1/nodes/n/proxy/metrics", "create|||nodes|proxy|n"),
        ] {
            let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
            let got = request_info(method, path, query);
            let got = [got.verb, got.api_group, got.namespace, got.resource, got.subresource, got.name].join("|");
            assert_eq!(got, want, "{method} {target}");
        }
    }

    #[test]
    fn s48_running_something_over_a_websocket_is_create() {
        for sub in ["exec", "attach", "portforward", "proxy"] {
            let info = request_info("GET", &format!("/api/v1/namespaces/a/pods/p/{sub}"), Some("command=id"));
            assert_eq!((info.verb.as_str(), info.subresource.as_str()), ("create", sub));
        }
        assert_eq!(request_info("GET", "/api/v1/namespaces/a/pods/p/log", None).verb, "get");
    }

    #[test]
    fn followed_logs_and_watches_have_no_end() {
        let endless = |path, query| request_info("GET", path, Some(query)).endless;
        assert!(endless("/api/v1/namespaces/a/pods/p/log", "follow=true"));
        assert!(!endless("/api/v1/namespaces/a/pods/p/log", "tailLines=1"));
        assert!(endless("/api/v1/pods", "watch=1"));
    }

    proptest! {
        #[test]
        fn z06_any_path_can_be_read(method in "(GET|POST|DELETE|X)", path in "(/(api|apis|v1|namespaces|%2f|watch|[a-z%]{0,4})){0,9}", query in ".{0,12}") {
            request_info(&method, &path, Some(&query));
        }
    }
}
