//! From here to the hub: name, TCP, TLS, QUIC, clock.

use super::Check;
use crate::{
    client::{Client, tls_words},
    target::HubUrl,
    text,
    tls::{self, Peek, Pin},
};
use jiff::Timestamp;
use moorline_proto::id::Role;
use rustls::{RootCertStore, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// The hub's certificate is renewed long before; less than this means that renewal is stuck.
const LOW_LIFETIME: i64 = 24 * 3600;
/// A `Date` header has whole seconds, and the answer takes time: below this is no skew.
const SKEW_SEEN: i64 = 5;
/// Certificates are issued with a start some minutes back; beyond that they are "not valid yet".
const SKEW_BREAKS: i64 = 300;

/// All of them, in the order in which a connection needs them. One that fails skips what hangs on it.
pub async fn checks(url: &HubUrl, roots: Option<&str>, limit: Duration) -> Vec<Check> {
    let mut checks = Vec::new();
    let addresses = match dns(url, limit).await {
        Ok((check, addresses)) => {
            checks.push(check);
            addresses
        }
        Err(check) => {
            checks.push(check);
            checks.extend(["tcp", "tls", "quic", "clock"].map(|name| Check::skip(name, "no address")));
            return checks;
        }
    };
    // UDP that is swallowed takes its full time to notice: it runs beside the rest.
    let (over_tcp, quic) = tokio::join!(over_tcp(url, &addresses, roots, limit), quic(url, &addresses, limit));
    let [tcp, tls, clock] = over_tcp;
    checks.extend([tcp, tls, quic, clock]);
    checks
}

/// TCP, TLS and clock: each needs the one before.
async fn over_tcp(url: &HubUrl, addresses: &[SocketAddr], roots: Option<&str>, limit: Duration) -> [Check; 3] {
    let (tcp, reached) = tcp(addresses, url.port(), limit).await;
    let Some(stream) = reached else {
        return [tcp, Check::skip("tls", "no TCP connection"), Check::skip("clock", "no hub to compare with")];
    };
    let (tls, authority) = tls_check(url, stream, roots, limit).await;
    let clock = match authority {
        Some(pin) => clock(url, pin, limit).await,
        None => Check::skip("clock", "no hub to compare with"),
    };
    [tcp, tls, clock]
}

async fn dns(url: &HubUrl, limit: Duration) -> Result<(Check, Vec<SocketAddr>), Check> {
    let host = url.host();
    if let Ok(ip) = host.parse() {
        return Ok((Check::ok("dns", format!("{host} is an address")), vec![SocketAddr::new(ip, url.port())]));
    }
    let started = Instant::now();
    let fail = |detail: String| Check::fail("dns", detail, "check the name, /etc/resolv.conf and the name server");
    let found = timeout(limit, lookup_host((host, url.port()))).await;
    let found = found.map_err(|_| fail(format!("{host}: no answer within {} s", limit.as_secs())))?;
    let addresses: Vec<_> = found.map_err(|e| fail(format!("{host}: {e}")))?.take(MAX_ADDRESSES).collect();
    if addresses.is_empty() {
        return Err(fail(format!("{host} has no address")));
    }
    let list: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    Ok((Check::ok("dns", format!("{host} is {} ({} ms)", list.join(", "), started.elapsed().as_millis())), addresses))
}

async fn tcp(addresses: &[SocketAddr], port: u16, limit: Duration) -> (Check, Option<TcpStream>) {
    let mut failures = Vec::new();
    for address in addresses {
        let started = Instant::now();
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let detail = format!("{address} connected in {} ms", started.elapsed().as_millis());
                let check = if failures.is_empty() {
                    Check::ok("tcp", detail)
                } else {
                    let advice = "take the dead addresses out of DNS, or mend the route to them";
                    Check::warn("tcp", format!("{detail}, but {}", failures.join("; ")), advice)
                };
                return (check, Some(stream));
            }
            Ok(Err(e)) => failures.push(format!("{address}: {e}")),
            Err(_) => failures.push(format!("{address}: no answer within {} s", limit.as_secs())),
        }
    }
    let advice = format!("is the hub running, and does a firewall let TCP port {port} out?");
    (Check::fail("tcp", failures.join("; "), advice), None)
}

/// The check, and the pin of the authority if a hub of ours showed itself.
async fn tls_check(url: &HubUrl, stream: TcpStream, roots: Option<&str>, limit: Duration) -> (Check, Option<Pin>) {
    let advice = "something between here and the hub breaks the connection: a firewall, or a proxy?";
    let fail = |detail: String| (Check::fail("tls", detail, advice), None);
    let (peek, config) = match Peek::new(b"http/1.1") {
        Ok(made) => made,
        Err(e) => return fail(format!("{e:#}")),
    };
    let Ok(name) = ServerName::try_from(url.host().to_owned()) else { return fail("not a server name".into()) };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let refused = timeout(limit, connector.connect(name, stream)).await;
    match (peek.take(), refused) {
        (Some(chain), _) => judge(url, &chain, roots),
        (None, Err(_)) => fail(format!("no answer within {} s", limit.as_secs())),
        (None, Ok(Err(e))) => fail(tls_words(&e)),
        (None, Ok(Ok(_))) => fail("the server showed no certificate".into()),
    }
}

/// What the shown certificates say.
fn judge(url: &HubUrl, chain: &[CertificateDer<'static>], roots: Option<&str>) -> (Check, Option<Pin>) {
    let Some((leaf, others)) = chain.split_first() else {
        return (Check::fail("tls", "the server showed no certificate", "is it a moorline hub?"), None);
    };
    let Ok(id) = moorline_link::tls::peer_id(leaf) else {
        let detail = format!("not a hub's certificate; its issuer is {}", issuer(leaf));
        let advice = "another server, or a proxy that opens TLS: let moorline's connections pass unopened";
        return (Check::fail("tls", detail, advice), None);
    };
    if !matches!(id.role, Role::Hub(_)) {
        return (Check::fail("tls", format!("{id} answers, which is no hub"), "check the address"), None);
    }
    let pin = tls::authority(chain).and_then(|authority| Pin::of(authority).ok());
    let Some(roots) = roots else {
        let shown = pin.map_or_else(|| "no authority".into(), |pin| format!("the authority {pin}"));
        let advice = "nothing here says whether that is the right one: give --ca-file, or log in";
        return (Check::warn("tls", format!("{id} shows {shown}"), advice), pin);
    };
    if let Err(why) = verify(leaf, others, roots) {
        let advice = match why.as_str() {
            why if why.contains("expired") || why.contains("not valid yet") => "set the clocks; see the hub's log",
            _ => "another hub, or somebody in between: compare the authority with what `moorline hub` printed",
        };
        return (Check::fail("tls", format!("{id}: {why}; its issuer is {}", issuer(leaf)), advice), pin);
    }
    let name = ServerName::try_from(url.host().to_owned());
    let parsed = ParsedCertificate::try_from(leaf);
    if let (Ok(name), Ok(parsed)) = (name, parsed)
        && rustls::client::verify_server_name(&parsed, &name).is_err()
    {
        let advice = format!("agents do not mind, kubectl does: start the hub with --name {}", url.host());
        return (Check::warn("tls", format!("{id}, but its certificate is not for {}", url.host()), advice), pin);
    }
    let left = lifetime(leaf);
    let detail = format!("{id}, certificate good for {}", text::short(left));
    if left < LOW_LIFETIME {
        return (Check::warn("tls", detail, "the hub renews it by itself: see its log why not"), pin);
    }
    (Check::ok("tls", detail), pin)
}

/// Chain and times, not the name.
fn verify(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], roots: &str) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    let all = tls::certificates(roots).map_err(|e| format!("{e:#}"))?;
    store.add_parsable_certificates(all);
    let parsed = ParsedCertificate::try_from(leaf).map_err(|e| tls::words(&e))?;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let now = UnixTime::now();
    rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &store, others, now, algorithms.all)
        .map_err(|e| tls::words(&e))
}

fn issuer(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate)
        .map_or_else(|_| "unreadable".into(), |(_, certificate)| certificate.issuer().to_string())
}

/// Seconds until the certificate ends.
fn lifetime(certificate: &CertificateDer<'_>) -> i64 {
    let end = X509Certificate::from_der(certificate).map_or(0, |(_, c)| c.validity().not_after.timestamp());
    end - Timestamp::now().as_second()
}

/// A QUIC handshake up to the server's certificate: if that arrives, UDP works both ways.
async fn quic(url: &HubUrl, addresses: &[SocketAddr], limit: Duration) -> Check {
    let warn = |detail: String| {
        let advice = format!("agents fall back to TLS, which is slower on bad lines; let UDP port {} out", url.port());
        Check::warn("quic", detail, advice)
    };
    let mut failures = Vec::new();
    for address in addresses {
        match quic_once(url, *address, limit).await {
            Ok(took) => return Check::ok("quic", format!("{address} answered over UDP in {} ms", took.as_millis())),
            Err(why) => failures.push(format!("{address}: {why}")),
        }
    }
    warn(failures.join("; "))
}

async fn quic_once(url: &HubUrl, address: SocketAddr, limit: Duration) -> Result<Duration, String> {
    let (peek, config) = Peek::new(moorline_link::tls::ALPN).map_err(|e| format!("{e:#}"))?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(|e| e.to_string())?;
    let any = if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0; 16], 0)) };
    let endpoint = quinn::Endpoint::client(any).map_err(|e| e.to_string())?;
    let started = Instant::now();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, address, url.host()).map_err(|e| e.to_string())?;
    let outcome = timeout(limit, connecting).await;
    match (peek.take(), outcome) {
        (Some(_), _) => Ok(started.elapsed()),
        (None, Err(_)) => Err(format!("no answer within {} s", limit.as_secs())),
        (None, Ok(Err(e))) => Err(e.to_string()),
        (None, Ok(Ok(_))) => Err("the server showed no certificate".into()),
    }
}

/// The hub's clock from the `Date` of a public answer. Nothing secret is asked or sent.
async fn clock(url: &HubUrl, pin: Pin, limit: Duration) -> Check {
    let config = match tls::pinned(pin) {
        Ok(config) => config,
        Err(e) => return Check::skip("clock", format!("{e:#}")),
    };
    let client = Client::anonymous(url.clone(), config, limit);
    let reply = match client.fetch("/auth/ca", "*/*").await {
        Ok(reply) => reply,
        Err(e) => return Check::skip("clock", format!("the hub gave no time: {e}")),
    };
    let date = reply.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
    let Some(hub) =
        date.and_then(|date| httpdate::parse_http_date(date).ok()).and_then(|t| Timestamp::try_from(t).ok())
    else {
        return Check::skip("clock", "the hub's answer had no Date");
    };
    judge_clock(Timestamp::now().as_second() - hub.as_second())
}

fn judge_clock(ahead: i64) -> Check {
    let words = format!("{} s {} the hub's clock", ahead.abs(), if ahead < 0 { "behind" } else { "ahead of" });
    let advice = "set it: chronyd or systemd-timesyncd on this machine and on the hub";
    match ahead.abs() {
        0..SKEW_SEEN => Check::ok("clock", "agrees with the hub's"),
        SKEW_SEEN..SKEW_BREAKS => Check::warn("clock", words, advice),
        _ => Check::fail("clock", format!("{words}: certificates will look expired or not valid yet"), advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_judged_by_what_it_breaks() {
        assert_eq!(judge_clock(-2).verdict, Verdict::Ok);
        let slow = judge_clock(-30);
        assert_eq!((slow.verdict, slow.detail.as_str()), (Verdict::Warn, "30 s behind the hub's clock"));
        assert_eq!(judge_clock(3600).verdict, Verdict::Fail);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_fails_tcp_and_skips_the_rest() {
        let url: HubUrl = "https://127.0.0.1:1".parse().unwrap();
        let checks = checks(&url, None, Duration::from_secs(2)).await;
        let verdicts: Vec<_> = checks.iter().map(|check| (check.name, check.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("dns", Verdict::Ok),
                ("tcp", Verdict::Fail),
                ("tls", Verdict::Skip),
                ("quic", Verdict::Warn),
                ("clock", Verdict::Skip)
            ]
        );
        assert!(
            checks.iter().all(|check| check.advice.is_some() == matches!(check.verdict, Verdict::Warn | Verdict::Fail))
        );
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_tls_is_told_in_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: HubUrl = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-other\r\n\r\n").await.unwrap();
            stream
        };
        let address = listener.local_addr().unwrap();
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            tls_check(&url, stream, None, Duration::from_secs(5)).await.0
        };
        let (_stream, check) = tokio::join!(server, client);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.detail.contains("does not speak TLS"), "{}", check.detail);
    }
}
