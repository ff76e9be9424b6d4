use super::*;
use rcgen::CertificateParams;
use std::{fs, os::unix::fs::PermissionsExt};

fn domain() -> TrustDomain {
    "moorline.local".parse().unwrap()
}
fn agent() -> SpiffeId {
    "spiffe://moorline.local/cluster/edge1/agent/a1".parse().unwrap()
}

#[test]
fn s66_an_authority_that_is_half_there_or_broken_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let pin = Authority::open(dir.path(), &domain()).unwrap().pin();
    assert_eq!(Authority::open(dir.path(), &domain()).unwrap().pin(), pin, "the second start reads the first's");
    let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let (good_cert, good_key) = (fs::read(&cert).unwrap(), fs::read(&key).unwrap());
    for (path, good) in [(&cert, &good_cert), (&key, &good_key)] {
        fs::remove_file(path).unwrap();
        assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Half { .. })));
        for bad in [&b""[..], &good[..good.len() / 2], b"-----BEGIN"] {
            fs::write(path, bad).unwrap();
            assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Broken { .. })));
        }
        fs::write(path, good).unwrap();
    }
    let other = tempfile::tempdir().unwrap();
    Authority::open(other.path(), &domain()).unwrap();
    fs::copy(other.path().join("ca.key"), &key).unwrap();
    assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Broken { .. })), "a foreign key");
    fs::write(&key, &good_key).unwrap();
    fs::write(&cert, [&good_cert[..], &good_cert[..40]].concat()).unwrap();
    assert!(Authority::open(dir.path(), &domain()).is_err(), "a second, broken certificate");
}

#[test]
fn an_agent_gets_its_identity_and_nothing_that_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
    wish.subject_alt_names.push(SanType::URI("spiffe://moorline.local/hub/hub".try_into().unwrap()));
    wish.distinguished_name.push(DnType::CommonName, "admin");
    wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let csr = wish.serialize_request(&key).unwrap();
    let issued = ca.issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!((names, tls::peer_id(&issued.chain[0]).unwrap()), (1, agent()));
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !cert.is_ca());
    let life = cert.validity().time_to_expiration().unwrap();
    assert!(life.whole_seconds() <= 60, "{life}");
    assert!(!cert.subject().to_string().contains("admin"));
    // A request that was altered after it was signed.
    let mut bent = csr.der().to_vec();
    *bent.last_mut().unwrap() ^= 1;
    assert!(ca.issue_agent(&bent, &agent(), Duration::from_secs(60)).is_err());
    assert_eq!(ca.issue_agent(b"", &agent(), Duration::from_secs(60)).unwrap_err(), CsrError::Malformed);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::default().serialize_request(&p384).unwrap();
    assert_eq!(ca.issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap_err(), CsrError::Key);
}

#[test]
fn nothing_outlives_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let issued = ca.issue_agent(csr.der(), &agent(), AUTHORITY_LIFE * 2).unwrap();
    assert_eq!(issued.expires, ca.expires());
}

/// A write, and what it is called.
type Step<'a> = (&'a str, &'a dyn Fn(&Path));

/// Every folder that a kill can leave behind, by name.
fn snapshots(of: &Path, steps: &[Step<'_>]) -> Vec<(String, tempfile::TempDir)> {
    let mut all = Vec::new();
    let mut last = of.to_owned();
    for (name, step) in steps {
        let next = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&last).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), next.path().join(entry.file_name())).unwrap();
        }
        step(next.path());
        last = next.path().to_owned();
        all.push(((*name).to_owned(), next));
    }
    all
}

#[test]
fn f26_a_kill_between_any_two_writes_leaves_a_hub_that_starts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let old = ca.pin();
    // While the next one is made: as if that had never begun, and it can be made still.
    let junk = |name: &'static str| move |dir: &Path| fs::write(dir.join(name), "half").unwrap();
    let (key, tried) = (junk("ca-next.key"), junk("ca-next.tried"));
    for (name, left) in snapshots(dir.path(), &[("its key", &key), ("its certificate, untried", &tried)]) {
        let ca = Authority::open(left.path(), &domain()).unwrap();
        assert_eq!((ca.all().len(), ca.pin()), (1, old), "{name}");
        ca.rotate().unwrap();
        assert_eq!(ca.all().len(), 2, "{name}");
    }
    ca.rotate().unwrap();
    let new = ca.all()[1].0;
    assert_eq!(Authority::open(dir.path(), &domain()).unwrap().pin(), new, "agents' certificates are of the new one");

    // While the old one is dropped: each of these is brought to its end.
    let copy = |from: &'static str, to: &'static str| {
        move |dir: &Path| assert!(fs::copy(dir.join(from), dir.join(to)).unwrap() > 0)
    };
    let remove = |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).unwrap();
    let mark = |dir: &Path| fs::write(dir.join("ca-retire"), "1000\n").unwrap();
    let left = snapshots(
        dir.path(),
        &[
            ("the mark", &mark),
            ("the key", &copy("ca-next.key", "ca.key")),
            ("the certificate", &copy("ca-next.crt", "ca.crt")),
            ("the time", &copy("ca-retire", "ca-retired")),
            ("the next certificate removed", &remove("ca-next.crt")),
            ("the next key removed", &remove("ca-next.key")),
            ("the mark removed", &remove("ca-retire")),
        ],
    );
    for (name, left) in left {
        let ca = Authority::open(left.path(), &domain()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((ca.all().len(), ca.pin()), (1, new), "{name}");
        let mut files: Vec<_> =
            fs::read_dir(left.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort_unstable();
        assert_eq!(files, ["ca-retired", "ca.crt", "ca.key"], "{name}: nothing of the old one's key is left");
        ca.rotate().unwrap();
        ca.retire().unwrap();
    }
}

#[test]
fn f26_a_next_authority_that_is_half_there_or_broken_is_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    assert!(matches!(ca.retire(), Err(CaError::Settled)));
    ca.rotate().unwrap();
    assert!(matches!(ca.rotate(), Err(CaError::Turning)));
    let (cert, key) = (dir.path().join("ca-next.crt"), dir.path().join("ca-next.key"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let good = fs::read(&key).unwrap();
    fs::write(&key, &good[..good.len() / 2]).unwrap();
    assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Broken { .. })));
    assert!(matches!(ca.retire(), Err(CaError::Broken { .. })), "the old one is not given up for one that cannot sign");
    assert!(!dir.path().join("ca-retire").exists());
    fs::remove_file(&key).unwrap();
    assert!(matches!(Authority::open(dir.path(), &domain()), Err(CaError::Half { .. })));
    fs::write(&key, &good).unwrap();
    assert!(cert.exists() && Authority::open(dir.path(), &domain()).is_ok());
}

#[test]
fn f26_the_hub_shows_the_way_to_either_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let shown = |ca: &Authority| {
        let id = "spiffe://moorline.local/hub/hub".parse().unwrap();
        let (identity, _) = ca.issue_hub(&id, &["localhost".to_owned()], Duration::from_secs(60)).unwrap();
        let name = |name: &x509_parser::prelude::X509Name| name.to_string().replace("CN=moorline ", "");
        let names = identity.chain.iter().map(|cert| {
            let (_, cert) = x509_parser::parse_x509_certificate(cert).unwrap();
            (name(cert.subject()), name(cert.issuer()))
        });
        names.collect::<Vec<_>>()
    };
    let pair = |subject: &str, issuer: &str| (subject.to_owned(), issuer.to_owned());
    let old = "authority of moorline.local";
    assert_eq!(shown(&ca), [pair("hub", old), pair(old, old)]);
    ca.rotate().unwrap();
    let new = format!("{old} {}", &moorline_authz::hex::hex(&ca.all()[1].0)[..8]);
    // OpenSSL goes no further from one that signed itself: the way across comes before it.
    assert_eq!(shown(&ca), [pair("hub", old), pair(old, &new), pair(old, old), pair(&new, &new)]);
    ca.retire().unwrap();
    assert_eq!(shown(&ca), [pair("hub", &new), pair(&new, &new)]);
    ca.rotate().unwrap();
    assert_eq!(shown(&ca)[3].0.len(), new.len(), "names do not grow");
}

/// Everybody can keep what the hub shows. Who has the old authority's key too could be the hub, long after it was dropped.
#[test]
fn f26_the_way_across_is_soon_of_no_use_and_for_servers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let id = "spiffe://moorline.local/hub/hub".parse().unwrap();
    let issue = || ca.issue_hub(&id, &["localhost".to_owned()], HUB_LIFE).unwrap();
    assert!(issue().1 > SystemTime::now() + HUB_LIFE / 2);
    ca.rotate().unwrap();
    let (identity, expires) = issue();
    let most = SystemTime::now() + CROSS_LIFE;
    assert!(expires <= most && ca.hub_life(HUB_LIFE) == CROSS_LIFE, "so it is made anew in time");
    let (_, cross) = x509_parser::parse_x509_certificate(&identity.chain[1]).unwrap();
    assert!(SystemTime::from(cross.validity().not_after.to_datetime()) <= most);
    let uses = cross.extended_key_usage().unwrap().expect("what it is for").value;
    assert!(uses.server_auth && !uses.client_auth && !uses.any);
    ca.retire().unwrap();
    assert_eq!(ca.hub_life(HUB_LIFE), HUB_LIFE);
}

#[test]
fn f26_what_agents_have_to_hold_is_known_before_anybody_is_given_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    assert_eq!(ca.staying_pin(), ca.pin());
    ca.rotate().unwrap();
    // The listeners do not believe it yet.
    assert_eq!((ca.pin(), ca.staying_pin()), (ca.all()[0].0, ca.all()[1].0));
}

#[test]
fn f26_a_retirement_that_failed_half_way_is_ended_by_the_next_call() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    ca.rotate().unwrap();
    let new = ca.staying_pin();
    // A folder in the place of the file that comes last: what comes before it is done.
    fs::create_dir(dir.path().join("ca-retired")).unwrap();
    assert!(matches!(ca.retire(), Err(CaError::Io { .. })));
    fs::remove_dir(dir.path().join("ca-retired")).unwrap();
    ca.retire().unwrap();
    assert_eq!((ca.all().len(), ca.pin()), (1, new));
    assert!(matches!(ca.retire(), Err(CaError::Settled)));
}

#[test]
fn f26_who_is_behind_is_told_by_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), &domain()).unwrap();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let issue = |ca: &Authority| {
        let issued = ca.issue_agent(csr.der(), &agent(), Duration::from_secs(60)).unwrap();
        Origin::of(&issued.chain[0])
    };
    let first = issue(&ca);
    assert!(!ca.is_behind(&first) && ca.pin_of(&first) == Some(ca.pin()));
    ca.rotate().unwrap();
    assert!(!ca.is_behind(&first), "nothing is given that the listeners refuse yet");
    assert_eq!(issue(&ca).issuer, first.issuer);
    ca.listens(ca.change());
    assert!(ca.is_behind(&first) && ca.pin_of(&first).is_some(), "believed, and to be replaced");
    let second = issue(&ca);
    assert!(!ca.is_behind(&second) && ca.pin_of(&second) == Some(ca.pin()));
    ca.retire().unwrap();
    assert!(ca.is_behind(&first) && ca.pin_of(&first).is_none());
    let (pin, old) = (ca.pin_of(&second), second);
    assert!(pin.is_some() && ca.is_behind(&old), "it was given two authorities");
    let last = issue(&ca);
    assert!(!ca.is_behind(&Origin { issued: last.issued + 1, ..last }), "not for long");
    assert!(ca.is_behind(&Origin::of(b"no certificate")));
}
