//! What comes before anybody has proved who they are: client hellos, certificates, signing requests, tokens.

use crate::world::World;
use moorline_hub::pki::Authority;
use moorline_link::tls;
use moorline_proto::id::SpiffeId;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConnection, pki_types::ServerName};
use rustls_pki_types::CertificateDer;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

fn cases(n: u32) -> TestRunner {
    TestRunner::new(Config { cases: n, failure_persistence: None, ..Config::default() })
}

/// The handshake messages of a flight, cut into records of other sizes (RFC 8446 §5.1 allows any but none).
fn recut(flight: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut messages, mut rest) = (Vec::new(), flight);
    while let Some((head, more)) = rest.split_at_checked(5) {
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        messages.extend_from_slice(&more[..length]);
        rest = &more[length..];
    }
    let (mut out, mut rest) = (Vec::new(), &messages[..]);
    for size in sizes.iter().cycle() {
        let (now, later) = rest.split_at((*size).min(rest.len()));
        out.extend_from_slice(&[0x16, 0x03, 0x01]);
        out.extend_from_slice(&u16::try_from(now.len()).unwrap().to_be_bytes());
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return out;
        }
    }
    out
}

/// Z07: however a client hello is cut the handshake succeeds; however it is bent nothing panics.
#[test]
fn z07_client_hellos_cut_and_bent() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::new());
    let hello = || {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(world.tls(&[b"http/1.1"]), name).unwrap();
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        (client, flight)
    };
    let connect = || {
        let socket = TcpStream::connect(world.hub.addr()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let cut = (prop::collection::vec(1usize..400, 1..8), 1usize..200);
    let whole = cases(24).run(&cut, |(sizes, piece)| {
        let (mut client, flight) = hello();
        let mut socket = connect();
        for part in recut(&flight, &sizes).chunks(piece) {
            socket.write_all(part).unwrap();
        }
        while client.is_handshaking() {
            client.complete_io(&mut socket).unwrap();
        }
        Ok(())
    });
    whole.unwrap();
    let bend = (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>());
    let bent = cases(64).run(&bend, |(at, byte, end)| {
        let (_, mut flight) = hello();
        *at.get_mut(&mut flight) = byte;
        flight.truncate(end.index(flight.len()) + 1);
        let mut socket = connect();
        let _ = socket.write_all(&flight);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut told = Vec::new();
        let _ = socket.read_to_end(&mut told); // alerts, a handshake, or nothing; then the end
        Ok(())
    });
    bent.unwrap();
    assert_eq!(runtime.block_on(world.send("GET", "/livez", &[], "")).code, 200);
    runtime.block_on(world.hub.shutdown());
}

fn authority(dir: &std::path::Path) -> Authority {
    Authority::open(dir, &"moorline.local".parse().unwrap()).unwrap()
}

fn agent() -> SpiffeId {
    "spiffe://moorline.local/cluster/edge1/agent/a1".parse().unwrap()
}

/// Z07: a bent certificate has the identity that it had, or none.
#[test]
fn z07_bent_certificates_are_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let issued = authority(dir.path()).issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap();
    let bend = (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>());
    let result = cases(2000).run(&bend, |(at, byte, end)| {
        let mut der = issued.chain[0].to_vec();
        *at.get_mut(&mut der) = byte;
        der.truncate(der.len() - end.index(der.len()) % 3);
        let cert = CertificateDer::from(der);
        let _ = tls::spki_sha256(&cert);
        if let Ok(id) = tls::peer_id(&cert) {
            // A letter of the name may have been bent; the signature, checked elsewhere, does not cover that.
            prop_assert!(id.to_string().starts_with("spiffe://"));
        }
        Ok(())
    });
    result.unwrap();
}

/// Z08: from a bent signing request comes no certificate, or one with the identity that the hub decided on and no more.
#[test]
fn z08_bent_signing_requests_gain_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
    let bend = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let result = cases(1500).run(&(bend, any::<prop::sample::Index>()), |(bends, end)| {
        let mut der = csr.der().to_vec();
        for (at, byte) in &bends {
            *at.get_mut(&mut der) = *byte;
        }
        if bends.len() == 2 {
            der.truncate(end.index(der.len()));
        }
        if let Ok(issued) = authority.issue_agent(&der, &agent(), Duration::from_secs(60)) {
            let cert = CertificateDer::from(issued.chain[0].to_vec());
            prop_assert_eq!(tls::peer_id(&cert).unwrap(), agent());
            let (_, parsed) = x509_parser::parse_x509_certificate(&cert).unwrap();
            prop_assert!(!parsed.is_ca());
            prop_assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        }
        Ok(())
    });
    result.unwrap();
}

/// Z08: whatever stands in an `Authorization` header or in a join, the answer is a refusal in words.
#[test]
fn z08_no_text_is_a_token_by_chance() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(async {
        let world = World::new().await;
        world.cluster("edge1").await;
        world
    });
    let real = world.admin.clone();
    let near = (any::<prop::sample::Index>(), "[!-~]").prop_map(move |(at, letter)| {
        let mut text = real.clone();
        let at = at.index(text.len());
        text.replace_range(at..=at, &letter);
        text
    });
    let text = prop_oneof![near, "ml[tj]_[a-z2-7]{0,13}\\.[A-Za-z0-9_-]{0,44}", "[ -~]{0,60}"];
    let admin = world.admin.clone();
    let result = cases(48).run(&text, |text| {
        let header = format!("Authorization: Bearer {text}");
        let code = runtime.block_on(world.send("GET", "/k8s/clusters/edge1/api", &[&header], "")).code;
        let same = text.trim() == admin;
        prop_assert_eq!(code, if same { 503 } else { 401 }, "{}", text);
        let question = serde_json::json!({ "token": text, "csr": text, "name": "a1" }).to_string();
        let code = runtime.block_on(world.send("POST", "/agent/join", &[], &question)).code;
        prop_assert_eq!(code, 401, "{}", text);
        Ok(())
    });
    result.unwrap();
    runtime.block_on(world.hub.shutdown());
}
