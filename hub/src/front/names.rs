//! Services by host name: each has an origin of its own, and a login in front of it.
//!
//! `https://[PORT--]NAME--NAMESPACE--CLUSTER.<domain>/` is that service; `https-PORT--…` is spoken to over TLS. Whoever
//! comes without a cookie is sent to the hub's own origin, logs in there, and comes back with a code that is good once,
//! for this service and the browser that asked. The cookie is good for this one service.

mod identity;
mod sso;

use super::{
    Front,
    answers::closing,
    gate::{UNAUTHORIZED, note_known},
    inside::Reached,
};
use crate::{config::Config, directory::Authenticated};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use identity::Words;
use moorline_authz::verb::percent_decode;
use moorline_proto::inside::Destination;
use moorline_proxy::{
    Body, body,
    kube::{OWN_COOKIE, Service},
    path::canonical_host,
    status::status_response,
};
use sso::Wanted;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Codes that wait to be taken up.
const CODES: usize = 4096;
/// How long a code waits.
const CODE_LIFE: Duration = Duration::from_secs(60);
/// Paths of a service's host that are the hub's.
const OWN: &str = "/.moorline/";
/// The path of logins of browsers, at the hub's own origin.
pub(super) const BROWSER: &str = "/auth/browser";
/// Longest form of a login, name and password and where to.
const FIELD: usize = 8 << 10;

/// A login on its way from the hub's origin to a service's.
struct Code {
    host: String,
    state: String,
    token: String,
    life: u64,
    until: Instant,
}

/// What services by host name need.
pub(crate) struct Names {
    /// What stands behind `NAME--NAMESPACE--CLUSTER.`; `None`: there are none.
    domain: Option<String>,
    /// The hub's own origin.
    public_url: String,
    codes: Mutex<HashMap<String, Code>>,
    /// What services are told of who calls.
    words: Words,
}

impl Names {
    pub fn new(config: &Config) -> Self {
        let domain = config.services_domain.as_ref().map(|domain| domain.to_ascii_lowercase());
        Self {
            domain,
            public_url: config.public_url.trim_end_matches('/').to_owned(),
            codes: Mutex::default(),
            words: Words::default(),
        }
    }

    /// The label in front of the domain, if the host is one of a service.
    pub fn label(&self, authority: &str) -> Option<String> {
        let host = canonical_host(authority)?;
        let label = host.strip_suffix(self.domain.as_deref()?)?.strip_suffix('.')?;
        (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
    }

    fn keep(&self, code: Code) -> Option<String> {
        let name = random();
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        codes.retain(|_, code| now < code.until);
        if CODES <= codes.len() {
            return None;
        }
        codes.insert(name.clone(), code);
        Some(name)
    }

    /// The code, once, for the host and the browser that it is for.
    fn take(&self, name: &str, host: &str, state: &str) -> Option<Code> {
        let code = self.codes.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        (code.host == host && code.state == state && Instant::now() < code.until).then_some(code)
    }
}

fn random() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// The place that a label names, and whether it is spoken to over TLS.
fn place(label: &str) -> Option<(String, Destination, bool)> {
    let parts: Vec<&str> = label.split("--").collect();
    let (port, name, namespace, cluster) = match parts[..] {
        [name, namespace, cluster] => ("80", name, namespace, cluster),
        [port, name, namespace, cluster] => (port, name, namespace, cluster),
        _ => return None,
    };
    let (https, port) = match port.strip_prefix("https-") {
        Some(port) => (true, port),
        None => (false, port),
    };
    cluster.parse::<moorline_proto::id::ClusterId>().ok()?;
    Some((cluster.to_owned(), Destination::service(namespace, name, port).ok()?, https))
}

/// What a cookie for this host is good for.
fn audience(host: &str) -> String {
    format!("moorline:service:{host}")
}

impl Front {
    /// Whether a request is for a host of a service: then no path of it is the hub's.
    pub fn is_of_a_service(&self, request: &Request<Incoming>) -> bool {
        self.names.label(&super::inside::host_of(request)).is_some()
    }

    /// A request for a host of a service.
    pub(super) async fn by_name(
        &self,
        request: Request<Incoming>,
        authority: String,
        label: &str,
        remote: SocketAddr,
    ) -> Response<Body> {
        let Some((cluster, to, https)) = place(label) else {
            self.count_refusal("path");
            let words = "a service's host is [PORT--]NAME--NAMESPACE--CLUSTER, or https-PORT--NAME--NAMESPACE--CLUSTER";
            return closing(StatusCode::NOT_FOUND, words);
        };
        let host = canonical_host(&authority).unwrap_or_default();
        let path = request.uri().path().to_owned();
        if path.starts_with(OWN) {
            return self.at_service(&request, &path, &host);
        }
        let by_cookie =
            cookie(&request, "-service").and_then(|token| self.directory.authenticate_for(token, &audience(&host)));
        let who = match (by_cookie, request.headers().contains_key(header::AUTHORIZATION)) {
            (Some(who), _) => {
                if let Some(response) = self.gate.unheard() {
                    return response;
                }
                // Services of one domain are one site to a browser: the cookie alone does not say whose page asks.
                if !cookie_counts(&request, &authority) {
                    self.count_refusal("origin");
                    return closing(StatusCode::FORBIDDEN, "a page of another origin asks with this service's cookie");
                }
                note_known(&request);
                who
            }
            (None, true) => match self.gate.authenticate(&request) {
                Ok(who) => who,
                Err(response) => return response,
            },
            (None, false) => return self.send_to_login(&request, &authority),
        };
        if let Some(response) = self.gate.over_quota(&who, remote) {
            return response;
        }
        let identity = self.names.words.of(&who, &host, &self.issuer);
        let Destination::Service { namespace, name, port } = to.clone() else {
            return closing(StatusCode::NOT_FOUND, "no service");
        };
        let service =
            Service { namespace, name, port, https, prefix: String::new(), host: authority, identity: Some(identity) };
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        self.reach(request, Reached { cluster: &cluster, rest: &target, to: &to, service }, who, remote).await
    }

    /// Off to the hub's own origin, with a mark in this browser that the way back needs.
    fn send_to_login(&self, request: &Request<Incoming>, authority: &str) -> Response<Body> {
        let page = request
            .headers()
            .get(header::ACCEPT)
            .is_some_and(|a| String::from_utf8_lossy(a.as_bytes()).contains("text/html"));
        if !matches!(*request.method(), Method::GET | Method::HEAD) || !page {
            self.count_refusal("unauthenticated");
            return status_response(StatusCode::UNAUTHORIZED, UNAUTHORIZED);
        }
        let state = random();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let to = format!(
            "{}{BROWSER}?host={}&state={state}&path={}",
            self.names.public_url,
            encode(authority),
            encode(path)
        );
        let mut response = redirect(&to);
        set_cookie(
            &mut response,
            &format!("{OWN_COOKIE}-state={state}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=600"),
        );
        response
    }

    /// The hub's own paths at a service's host: coming back from a login, and logging out.
    fn at_service(&self, request: &Request<Incoming>, path: &str, host: &str) -> Response<Body> {
        let query = fields(request.uri().query().unwrap_or_default());
        let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        match (request.method(), path.strip_prefix(OWN).unwrap_or_default()) {
            (&Method::GET, "login") => {
                let state = cookie(request, "-state").unwrap_or_default();
                let code = (!state.is_empty() && state == of("state"))
                    .then(|| self.names.take(of("code"), host, state))
                    .flatten();
                let Some(code) = code else {
                    self.count_refusal("login_code");
                    return closing(
                        StatusCode::FORBIDDEN,
                        "this login was not begun here, or took too long: open the service again",
                    );
                };
                let mut response = redirect(local(of("path")));
                let attributes = "Path=/; Secure; HttpOnly; SameSite=Lax";
                set_cookie(
                    &mut response,
                    &format!("{OWN_COOKIE}-service={}; {attributes}; Max-Age={}", code.token, code.life),
                );
                set_cookie(&mut response, &format!("{OWN_COOKIE}-state=; {attributes}; Max-Age=0"));
                response
            }
            (&Method::GET | &Method::POST, "logout") => {
                let mut response = super::answers::text(StatusCode::OK, "logged out of this service\n");
                set_cookie(
                    &mut response,
                    &format!("{OWN_COOKIE}-service=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"),
                );
                response
            }
            _ => closing(StatusCode::NOT_FOUND, "the hub serves nothing at this path"),
        }
    }

    /// `GET` and `POST /auth/browser`, at the hub's own origin: a login for a service, by name and password or at a
    /// provider.
    pub(super) async fn browser(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        let query = fields(request.uri().query().unwrap_or_default());
        let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let (authority, state, path) = (of("host").to_owned(), of("state").to_owned(), of("path").to_owned());
        if self.names.label(&authority).and_then(|label| place(&label)).is_none() || state.len() != 64 {
            self.count_refusal("path");
            return closing(StatusCode::BAD_REQUEST, "no service of this hub is asked for");
        }
        let wanted = Wanted { authority: &authority, state: &state, path: &path };
        match *request.method() {
            Method::GET if query.contains_key("provider") => {
                self.leave_for_provider(of("provider"), &wanted, remote).await
            }
            Method::GET if query.contains_key("code") => {
                self.back_from_provider(&request, of("code"), &wanted, remote).await
            }
            Method::GET if query.contains_key("error") => {
                // Words in a link are shown to nobody whose browser did not begin a login here.
                let words = cookie(&request, "-round").map_or("The login was refused.", |_| of("error_description"));
                self.refused_page(&wanted, words)
            }
            Method::GET => {
                let who = cookie(&request, "-login").and_then(|token| self.directory.authenticate(token));
                let Some(who) = who else { return self.page(&wanted, "") };
                if let Some(response) = self.gate.unheard() {
                    return response;
                }
                note_known(&request);
                self.back_to_service(&who, &authority, &state, &path)
            }
            Method::POST => {
                let own = self.names.public_url.strip_prefix("https://").unwrap_or_default().to_owned();
                if own_page(&request, &own) == Some(false) {
                    self.count_refusal("origin");
                    return closing(StatusCode::FORBIDDEN, "logins are sent by the hub's own page alone");
                }
                let target = request.uri().path_and_query().map_or(BROWSER, |target| target.as_str()).to_owned();
                let form = match self.read_of_stranger(request, remote).await {
                    Ok(form) => form,
                    Err(response) => return response,
                };
                let form = fields(&String::from_utf8_lossy(&form));
                let asked = serde_json::json!({ "username": form.get("username"), "password": form.get("password") });
                match self.logged_in(asked.to_string().as_bytes(), remote).await {
                    Ok(issued) => {
                        let mut response = redirect(&target);
                        let (token, life) = (issued.token, issued.expires_in);
                        let attributes = "Path=/; Secure; HttpOnly; SameSite=Lax";
                        set_cookie(&mut response, &format!("{OWN_COOKIE}-login={token}; {attributes}; Max-Age={life}"));
                        response
                    }
                    Err(response) if response.status() == StatusCode::UNAUTHORIZED => {
                        self.refused_page(&wanted, "Wrong user name or password.")
                    }
                    Err(response) => response,
                }
            }
            _ => closing(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"),
        }
    }

    fn back_to_service(&self, who: &Authenticated, authority: &str, state: &str, path: &str) -> Response<Body> {
        let host = canonical_host(authority).unwrap_or_default();
        let (token, life) = self.issuer.for_audience(who, audience(&host));
        let code = Code { host, state: state.to_owned(), token, life, until: Instant::now() + CODE_LIFE };
        match self.names.keep(code) {
            Some(code) => redirect(&format!(
                "https://{authority}{OWN}login?code={code}&state={state}&path={}",
                encode(local(path))
            )),
            None => super::answers::later(StatusCode::SERVICE_UNAVAILABLE, "too many logins", Duration::from_secs(1)),
        }
    }

    /// The form again, after a login that came to nothing.
    fn refused_page(&self, wanted: &Wanted<'_>, words: &str) -> Response<Body> {
        let mut page = self.page(wanted, words);
        *page.status_mut() = StatusCode::UNAUTHORIZED;
        page
    }

    /// The form. It runs nothing, loads nothing, and is shown in no frame.
    fn page(&self, wanted: &Wanted<'_>, words: &str) -> Response<Body> {
        let html = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Log in</title>\
             <style>body{{font:16px system-ui;max-width:22em;margin:12vh auto;padding:0 1em}}input,button{{font:inherit;width:100%;\
             box-sizing:border-box;padding:.5em;margin:.3em 0 1em}}</style><h1>Log in</h1><p>to reach <b>{}</b><p role=alert>{}\
             <form method=post><label>User name<input name=username autocomplete=username required autofocus></label>\
             <label>Password<input name=password type=password autocomplete=current-password required></label>\
             <button>Log in</button></form>{}",
            escape(wanted.authority),
            escape(words),
            self.provider_links(wanted)
        );
        let mut response = Response::new(body::full(html));
        let port =
            self.names.public_url.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self' https://*.{}{port}; frame-ancestors 'none'; base-uri 'none'",
            self.names.domain.as_deref().unwrap_or_default()
        );
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        if let Ok(policy) = HeaderValue::try_from(policy) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        response
    }
}

/// Whether a request comes from a page of this host. `None`: it does not say.
fn own_page(request: &Request<Incoming>, authority: &str) -> Option<bool> {
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let host = origin.to_str().unwrap_or_default().strip_prefix("https://");
        return Some(host.is_some_and(|host| host.eq_ignore_ascii_case(authority)));
    }
    headers.get("sec-fetch-site").map(|site| site == "same-origin")
}

/// Whether a cookie says whose wish a request is. What only navigates to a page is let in: it reads nothing of the answer.
/// Of everything else browsers say whose page asks, and of an upgrade its origin.
fn cookie_counts(request: &Request<Incoming>, authority: &str) -> bool {
    let says_origin = request.headers().contains_key(header::ORIGIN);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let navigates = !upgrades && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match says_origin {
        false if navigates => true,
        false if upgrades => false,
        _ => own_page(request, authority) == Some(true),
    }
}

/// The value of one of the hub's own cookies; `None` if it is there twice.
fn cookie<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let all = request.headers().get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut found = all
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| key.strip_prefix(OWN_COOKIE) == Some(name))
        .map(|(_, value)| value);
    found.next().filter(|_| found.next().is_none())
}

fn set_cookie(response: &mut Response<Body>, cookie: &str) {
    if let Ok(value) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::LOCATION, HeaderValue::try_from(to).unwrap_or(HeaderValue::from_static("/")));
    response
}

/// A path of the same host, or its root.
fn local(path: &str) -> &str {
    let plain = path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/\\");
    if plain && path.bytes().all(|b| b.is_ascii_graphic()) { path } else { "/" }
}

/// The fields of a form or query, each once: of twins the first.
fn fields(text: &str) -> HashMap<String, String> {
    let decode = |part: &str| {
        let bytes = percent_decode(&part.replace('+', " ")).filter(|bytes| bytes.len() <= FIELD)?;
        String::from_utf8(bytes).ok()
    };
    let mut all = HashMap::new();
    for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
        if let (Some(name), Some(value)) = (decode(name), decode(value)) {
            all.entry(name).or_insert(value);
        }
    }
    all
}

fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut config = Config::new("x");
        config.services_domain = Some("services.hub.example".to_owned());
        Names::new(&config)
    }

    #[test]
    fn s46_a_label_names_one_place() {
        let names = names();
        for (host, want) in [
            ("web--shop--edge1.services.hub.example", Some(("edge1", "svc/shop/web:80", false))),
            ("WEB--shop--edge1.Services.Hub.example.:8443", Some(("edge1", "svc/shop/web:80", false))),
            ("9090--prom--mon--edge1.services.hub.example", Some(("edge1", "svc/mon/prom:9090", false))),
            ("https-443--api--shop--edge1.services.hub.example", Some(("edge1", "svc/shop/api:443", true))),
            ("web--shop.services.hub.example", None),
            ("a--b--c--d--e.services.hub.example", None),
            ("x.web--shop--edge1.services.hub.example", None),
            ("web--shop--edge1.services.hub.example.evil", None),
            ("services.hub.example", None),
            ("hub.example", None),
        ] {
            let found = names.label(host).and_then(|label| place(&label));
            let found = found.map(|(cluster, to, https)| (cluster, to.to_string(), https));
            assert_eq!(found, want.map(|(c, to, https)| (c.to_owned(), to.to_owned(), https)), "{host}");
        }
    }

    #[test]
    fn a_code_is_good_once_for_its_host_and_browser() {
        let names = names();
        let code = || Code {
            host: "a".into(),
            state: "s".into(),
            token: "t".into(),
            life: 1,
            until: Instant::now() + CODE_LIFE,
        };
        let one = names.keep(code()).unwrap();
        assert!(
            names.take(&one, "b", "s").is_none() && names.take(&one, "a", "s").is_none(),
            "a wrong host uses it up"
        );
        let two = names.keep(code()).unwrap();
        assert!(names.take(&two, "a", "x").is_none());
        let three = names.keep(code()).unwrap();
        assert!(names.take(&three, "a", "s").is_some() && names.take(&three, "a", "s").is_none());
    }

    #[test]
    fn s28_the_way_back_stays_on_the_host() {
        for bad in ["", "//evil", "https://evil", "/\\evil", "/a b", "/a\r\nx", "evil"] {
            assert_eq!(local(bad), "/", "{bad:?}");
        }
        assert_eq!(local("/d/x?y=//z"), "/d/x?y=//z");
        assert_eq!(fields("a=1&b=%2Fx+y&a=2").get("a").map(String::as_str), Some("1"));
        assert_eq!(fields("b=%2Fx+y").get("b").map(String::as_str), Some("/x y"));
        assert_eq!(encode("/d?x=1"), "%2Fd%3Fx%3D1");
    }
}
