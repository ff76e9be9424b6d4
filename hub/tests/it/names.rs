//! Services by host name, and the login in front of them.

use crate::world::{Answer, REVOKED, World, eventually, read_answer, within};
use moorline_link::Carrier;
use serde_json::json;
use tokio::io::AsyncWriteExt;

const WEB: &str = "web--shop--edge1.services.example";
const API: &str = "8080--api--shop--edge1.services.example";

async fn world() -> World {
    World::with(|config| config.services_domain = Some("services.example".to_owned())).await
}

/// One request to this host, over TLS that names it.
async fn ask(world: &World, host: &str, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!(
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    let mut stream = world.connect(host, &[b"http/1.1"]).await;
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    read_answer(&mut stream).await
}

/// `name=value` of a cookie that an answer sets.
fn cookie(answer: &Answer, name: &str) -> String {
    let lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    let mut set = lines.filter(|(n, v)| n.eq_ignore_ascii_case("set-cookie") && v.starts_with(name)).map(|(_, v)| v);
    let value = set.next().unwrap_or_else(|| panic!("no {name} in {answer:?}"));
    for attribute in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax"] {
        assert!(value.contains(attribute), "{value}");
    }
    assert!(!value.contains("Domain"), "{value}");
    value.split(';').next().unwrap().to_owned()
}

fn after<'a>(location: &'a str, host: &str) -> &'a str {
    location.strip_prefix("https://").unwrap().strip_prefix(host).unwrap_or_else(|| panic!("{location}"))
}

/// Logs in by the form, as a browser does; gives the service's cookie.
async fn log_in(world: &World, host: &str, path: &str, user: &str, password: &str) -> String {
    let first = ask(world, host, "GET", path, &["Accept: text/html,*/*"], "").await;
    assert_eq!(first.code, 303, "{first:?}");
    let state = cookie(&first, "__Host-moorline-state");
    let page = after(first.header("location").unwrap(), "localhost:8443").to_owned();
    let form = ask(world, "localhost", "GET", &page, &[], "").await;
    assert!(form.code == 200 && form.body.contains("<form method=post>"), "{form:?}");
    let csp = form.header("content-security-policy").unwrap();
    assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'"), "{csp}");
    let wrong = ask(world, "localhost", "POST", &page, &[], &format!("username={user}&password=wrong")).await;
    assert_eq!(wrong.code, 401);
    let right = format!("username={user}&password={password}");
    let evil = ask(world, "localhost", "POST", &page, &["Origin: https://evil.example"], &right).await;
    assert_eq!(evil.code, 403, "another page logs nobody in");
    let done = ask(world, "localhost", "POST", &page, &["Origin: https://localhost:8443"], &right).await;
    assert_eq!((done.code, done.header("location")), (303, Some(page.as_str())), "{done:?}");
    let login = cookie(&done, "__Host-moorline-login");
    let back = ask(world, "localhost", "GET", &page, &[&format!("Cookie: {login}")], "").await;
    let way = after(back.header("location").unwrap_or_else(|| panic!("{back:?}")), host).to_owned();
    // Without the mark of the browser that began it, a code is worth nothing; it is then used up.
    let stolen = ask(world, host, "GET", &way, &["Cookie: __Host-moorline-state=x"], "").await;
    assert_eq!(stolen.code, 403, "{stolen:?}");
    let home = ask(world, host, "GET", &way, &[&format!("Cookie: {state}")], "").await;
    assert_eq!((home.code, home.header("location")), (303, Some(path)), "{home:?}");
    let again = ask(world, host, "GET", &way, &[&format!("Cookie: {state}")], "").await;
    assert_eq!(again.code, 403, "a code is good once");
    cookie(&home, "__Host-moorline-service")
}

#[tokio::test(flavor = "multi_thread")]
async fn s08_s14_s15_s46_s73_a_service_has_an_origin_and_a_login_of_its_own() {
    let world = world().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let token = world.user("anna", &[]).await;
    let spec = json!({ "users": ["anna"], "clusters": ["edge1"], "namespaces": ["shop"], "services": ["web", "api"] });
    world.create("servicegrants", "ServiceGrant", "anna", spec).await;
    let password = world
        .call(
            &world.admin,
            "PUT",
            "/apis/moorline.dev/v1alpha1/users/anna/password",
            &json!({ "password": "correct-horse" }),
        )
        .await;
    assert_eq!(password.code, 200, "{password:?}");
    let bearer = format!("Authorization: Bearer {token}");
    eventually("grant", async || ask(&world, WEB, "GET", "/", &[&bearer], "").await.code == 200).await;
    let service = log_in(&world, WEB, "/d/x?y=1", "anna", "correct-horse").await;
    let cookies = format!("Cookie: own=1; {service}");
    let answer = ask(&world, WEB, "GET", "/d/x?y=1", &[&cookies], "").await;
    assert!(answer.code == 200 && answer.body.contains("up: /d/x?y=1"), "{answer:?}");
    let seen = agent.last();
    let header = |name: &str| seen.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(
        (header("cookie"), header("host"), header("x-forwarded-user")),
        (Some("own=1"), Some(WEB), Some("anna"))
    );
    assert_eq!((header("authorization"), header("x-forwarded-prefix")), (None, None));
    // Signed by the hub's published keys, for this backend alone, and no key to the hub or to the service.
    let identity = header("x-moorline-identity").unwrap();
    let claims = identity.split('.').nth(1).unwrap();
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("anna"), &json!([format!("moorline:backend:{WEB}")])));
    let replayed = format!("Cookie: __Host-moorline-service={identity}");
    assert_eq!(ask(&world, WEB, "GET", "/", &[&replayed], "").await.code, 401);
    assert_eq!(world.get(identity, "/k8s/clusters/edge1/services/shop/web:80/").await.code, 401);
    // The cookie of one service is none for another, nor for the hub, in whatever place.
    assert_eq!(ask(&world, API, "GET", "/", &[&cookies], "").await.code, 401);
    assert_eq!(
        ask(&world, "localhost", "GET", "/k8s/clusters/edge1/services/shop/web:80/", &[&cookies], "").await.code,
        401
    );
    let value = service.split_once('=').unwrap().1;
    assert_eq!(world.get(value, "/auth/whoami").await.code, 401);
    // Pages of other services are one site with this one: the cookie alone is no word of its user's.
    for (method, headers, code) in [
        ("POST", vec!["Origin: https://evil--shop--edge1.services.example"], 403),
        ("GET", vec!["Origin: null"], 403),
        ("GET", vec!["Origin: https://evil.example", "Connection: Upgrade", "Upgrade: websocket"], 403),
        ("POST", vec!["Sec-Fetch-Site: same-site"], 403),
        ("POST", vec!["Sec-Fetch-Site: cross-site"], 403),
        ("POST", vec![], 403),
        ("POST", vec!["Origin: https://web--shop--edge1.services.example"], 200),
        ("POST", vec!["Sec-Fetch-Site: same-origin"], 200),
        ("GET", vec!["Sec-Fetch-Site: cross-site"], 200),
        // Upgraded: /exec is answered 101 where it is let through.
        ("GET", vec!["Connection: Upgrade", "Upgrade: websocket"], 403),
        ("GET", vec!["Connection: Upgrade", "Upgrade: websocket", "Sec-Fetch-Site: same-origin"], 403),
        (
            "GET",
            vec!["Connection: Upgrade", "Upgrade: websocket", "Origin: https://web--shop--edge1.services.example"],
            101,
        ),
    ] {
        let all: Vec<&str> = headers.iter().copied().chain([cookies.as_str()]).collect();
        let answer = ask(&world, WEB, method, "/exec", &all, if method == "POST" { "a=b" } else { "" }).await;
        assert_eq!(answer.code, code, "{method} {headers:?}: {answer:?}");
    }
    // What shows a token of its own is no browser that somebody's page could use.
    let upgraded = ask(&world, WEB, "GET", "/exec", &[&bearer, "Connection: Upgrade", "Upgrade: websocket"], "").await;
    assert_eq!(upgraded.code, 101, "{upgraded:?}");
    // What a service sets for the hub's names, or for others, does not stay.
    let moved = ask(&world, WEB, "GET", "/moved", &[&cookies], "").await;
    assert_eq!(moved.header("location"), Some("/login?a=%2F"));
    let set: Vec<_> = moved.head.lines().filter(|l| l.to_lowercase().starts_with("set-cookie")).collect();
    assert_eq!(set, ["set-cookie: a=1; Path=/"]);
    assert_eq!(moved.header("content-security-policy"), None, "its own origin is its own");
    // The names of the TLS handshake and of the request are one.
    let mut stream = world.connect(WEB, &[b"http/1.1"]).await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {API}\r\n{cookies}\r\n\r\n").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(read_answer(&mut stream).await.code, 421);
    // A path of the hub's is the service's own here, and the hub's own prefix is not.
    assert!(ask(&world, WEB, "GET", "/auth/ca", &[&cookies], "").await.body.contains("up: /auth/ca"));
    assert!(ask(&world, WEB, "GET", "/connect", &[&cookies], "").await.body.contains("up: /connect"));
    assert_eq!(ask(&world, WEB, "GET", "/.moorline/x", &[&cookies], "").await.code, 404);
    let out = ask(&world, WEB, "POST", "/.moorline/logout", &[&cookies], "").await;
    assert!(out.head.contains("__Host-moorline-service=; "), "{out:?}");
    // What comes without a cookie and is no page is told so; a host that names no service is not found.
    assert_eq!(ask(&world, WEB, "GET", "/api", &[], "").await.code, 401);
    assert_eq!(ask(&world, "x--y.services.example", "GET", "/", &[&cookies], "").await.code, 404);
}

/// As a service does it that has the hub's address and its own name, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_told_who_calls_by_a_word_that_anybody_verifies() {
    use moorline_authz::access_token::{KeySet, verify};
    let world = world().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let told = async |host: &str, token: &str| {
        let answer = ask(&world, host, "GET", "/", &[&format!("Authorization: Bearer {token}")], "").await;
        assert_eq!(answer.code, 200, "{answer:?}");
        let seen = agent.last();
        let word = seen.headers.iter().find(|(name, _)| name == "x-moorline-identity").unwrap().1.clone();
        let keys: KeySet = serde_json::from_value(world.send("GET", "/auth/keys", &[], "").await.json()).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = verify(&word, &keys, "spiffe://moorline.local", now).unwrap();
        assert_eq!(claims.aud, [format!("moorline:backend:{host}")]);
        assert!(now < claims.exp && claims.exp <= now + 3601, "{claims:?}");
        (word, claims.sub)
    };
    let spec =
        json!({ "users": ["anna", "ben"], "clusters": ["edge1"], "namespaces": ["shop"], "services": ["web", "api"] });
    world.create("servicegrants", "ServiceGrant", "both", spec).await;
    let (anna, ben) = (world.user("anna", &[]).await, world.user("ben", &[]).await);
    for token in [&anna, &ben] {
        let bearer = format!("Authorization: Bearer {token}");
        eventually("grant", async || ask(&world, WEB, "GET", "/", &[&bearer], "").await.code == 200).await;
    }
    let (word, who) = told(WEB, &anna).await;
    assert_eq!(who, "anna");
    // To make one costs more than the rest of a request: the same serves for a while, for this caller and service alone.
    assert_eq!(told(WEB, &anna).await.0, word);
    assert_eq!(told(WEB, &ben).await.1, "ben");
    assert_ne!(told(API, &anna).await.0, word);
    // A key that is lost vouches for nothing: the next request has a word by the new one.
    let rotated = world.call(&world.admin, "POST", "/auth/keys/rotate", &json!({ "lost": true })).await;
    assert_eq!(rotated.code, 200, "{rotated:?}");
    assert_ne!(told(WEB, &anna).await.0, word);
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_deleted_user_is_out_of_services_too() {
    let world = world().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    world.user("anna", &[]).await;
    let spec = json!({ "users": ["anna"], "clusters": ["*"], "namespaces": ["*"], "services": ["*"] });
    world.create("servicegrants", "ServiceGrant", "anna", spec).await;
    let path = "/apis/moorline.dev/v1alpha1/users/anna";
    world.call(&world.admin, "PUT", &format!("{path}/password"), &json!({ "password": "correct-horse" })).await;
    let cookie = log_in(&world, WEB, "/", "anna", "correct-horse").await;
    let header = format!("Cookie: {cookie}");
    eventually("grant", async || ask(&world, WEB, "GET", "/", &[&header], "").await.code == 200).await;
    world.patch(path, &json!({ "spec": { "disabled": true } })).await;
    within(REVOKED, "out", async || ask(&world, WEB, "GET", "/", &[&header], "").await.code == 401).await;
}

/// The certificate that a connection with this name is shown.
async fn shown(world: &World, name: &str) -> Vec<u8> {
    let mut config = (*world.tls(&[b"http/1.1"])).clone();
    config.dangerous().set_certificate_verifier(std::sync::Arc::new(Whoever));
    let socket = tokio::net::TcpStream::connect(world.hub.addr()).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, socket).await.unwrap();
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Believes everybody: this test looks at what is shown.
#[derive(Debug)]
struct Whoever;
impl rustls::client::danger::ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s46_a_given_certificate_is_shown_for_its_names_and_changes_without_a_restart() {
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
    let make = || {
        let made = rcgen::generate_simple_self_signed(vec!["*.services.example".to_owned()]).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&chain, made.cert.pem()).unwrap();
        made.cert.der().to_vec()
    };
    let first = make();
    let world = World::with(|config| {
        config.services_domain = Some("services.example".to_owned());
        config.certificate = Some(moorline_hub::config::GivenCertificate { chain: chain.clone(), key: key.clone() });
    })
    .await;
    assert_eq!(shown(&world, WEB).await, first);
    for own in ["localhost", "other.example", "a.b.services.example"] {
        assert_ne!(shown(&world, own).await, first, "{own}");
    }
    // Half a change: the last good one stays, and a metric says so.
    std::fs::write(&key, "nothing").unwrap();
    eventually("the trouble is counted", async || world.metric("moorline_hub_given_certificate_current") == 0.0).await;
    assert_eq!(shown(&world, WEB).await, first);
    let second = make();
    eventually("the new one is shown", async || shown(&world, WEB).await == second).await;
    assert_eq!(world.metric("moorline_hub_given_certificate_current"), 1.0);
}
