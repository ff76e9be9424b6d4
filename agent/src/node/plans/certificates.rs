//! Certificates as kubeadm lays them out: when they end, and how they are made anew.
//!
//! A new certificate is for the same key: the file beside it stays as it is, so that there is no moment, and no crash, in
//! which key and certificate do not belong together.

use super::store::replace;
use crate::node::{
    facts,
    kubeconfigs::{self, Embedded, is_kubeconfig},
};
use moorline_authz::plan::Rotate;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    slice,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    oid_registry::{
        OID_X509_COMMON_NAME, OID_X509_COUNTRY_NAME, OID_X509_LOCALITY_NAME, OID_X509_ORGANIZATION_NAME,
        OID_X509_ORGANIZATIONAL_UNIT, OID_X509_STATE_OR_PROVINCE_NAME,
    },
};

const DAY: u64 = 86_400;
/// A clock that is behind by so much takes a new certificate all the same.
const BACKDATED: Duration = Duration::from_secs(300);

/// Where certificates are, as far as the owner lets it be worked with.
pub(super) struct Pki {
    /// The folder, where no link leads elsewhere.
    pub dir: PathBuf,
    /// Why nothing is done with the kubeconfig files beside it.
    pub beside: Result<(), String>,
}

impl Pki {
    fn kubeconfigs(&self) -> Vec<PathBuf> {
        if self.beside.is_ok() { kubeconfigs::beside(&self.dir) } else { Vec::new() }
    }

    /// What was said, and what was left out.
    fn told(&self, mut lines: Vec<String>) -> String {
        lines.extend(self.beside.as_ref().err().map(|why| format!("kubeconfig files beside it: left, {why}")));
        lines.join("\n")
    }
}

/// One line for each certificate, the first to end first.
pub(super) fn report(pki: &Pki) -> String {
    let now = super::now();
    let lines = facts::certificates(slice::from_ref(&pki.dir), &pki.kubeconfigs()).into_iter().map(|(until, name)| {
        let days = until.saturating_sub(now) / DAY;
        let left = if until <= now { "has ended".to_owned() } else { format!("{days} days left") };
        format!("{name}: {left}")
    });
    pki.told(lines.collect())
}

/// Makes certificates anew, each at once or not at all. Authorities stay as they are.
pub(super) fn rotate(pki: &Pki, wish: &Rotate) -> Result<String, String> {
    let dir = &pki.dir;
    let mut folders = vec![dir.to_owned()];
    let below = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    folders.extend(below.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    folders.sort();
    let all: Vec<PathBuf> = folders.iter().flat_map(|folder| pairs(folder)).collect();
    let (authorities, leaves): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| is_authority(path));
    if authorities.is_empty() {
        return Err(format!("no authority with its key is in {}", dir.display()));
    }
    let limit = super::now() + u64::from(wish.within_days) * DAY;
    let days = if wish.days == 0 { 365 } else { wish.days };
    let mut said = Vec::new();
    let embedded = pki.kubeconfigs().into_iter().filter(|path| Embedded::read(path).is_some());
    for leaf in leaves.into_iter().chain(embedded) {
        let name = leaf.strip_prefix(dir).or(leaf.strip_prefix(dir.parent().unwrap_or(dir)));
        let name = name.unwrap_or(&leaf).display().to_string();
        let ends = facts::ends(&leaf).unwrap_or_default();
        if 0 < wish.within_days && limit < ends {
            said.push(format!("{name}: {} days left, kept", ends.saturating_sub(super::now()) / DAY));
            continue;
        }
        let made = renew(&leaf, &authorities, days).map_err(|why| format!("{name}: {why}\n{}", said.join("\n")))?;
        said.push(format!("{name}: renewed, {} days left", made.saturating_sub(super::now()) / DAY));
    }
    Ok(pki.told(said))
}

/// Certificates of a folder whose keys are beside them.
fn pairs(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "crt") && path.with_extension("key").is_file());
    found.sort();
    found
}

fn is_authority(path: &Path) -> bool {
    let der = read(path);
    der.is_ok_and(|der| parse(&der).is_ok_and(|certificate| certificate.is_ca()))
}

fn read(path: &Path) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    x509_parser::parse_x509_certificate(der).map(|(_, certificate)| certificate).map_err(|e| e.to_string())
}

fn key(certificate: &Path) -> Result<KeyPair, String> {
    let path = certificate.with_extension("key");
    let text = crate::state::read_text(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    KeyPair::from_pem(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// What is made anew.
struct Leaf {
    old: CertificateDer<'static>,
    key: KeyPair,
    /// It is part of this file.
    kubeconfig: Option<Embedded>,
}

impl Leaf {
    fn read(path: &Path) -> Result<Self, String> {
        if !is_kubeconfig(path) {
            return Ok(Self { old: read(path)?, key: key(path)?, kubeconfig: None });
        }
        let embedded = Embedded::read(path).ok_or("it is no kubeconfig with a client certificate any more")?;
        let old = CertificateDer::from_pem_slice(embedded.certificate.as_bytes()).map_err(|e| e.to_string())?;
        let key = KeyPair::from_pem(&embedded.key).map_err(|e| e.to_string())?;
        Ok(Self { old, key, kubeconfig: Some(embedded) })
    }
}

/// Makes one anew; gives its end, in seconds since 1970.
fn renew(path: &Path, authorities: &[PathBuf], days: u32) -> Result<u64, String> {
    let leaf = Leaf::read(path)?;
    let certificate = parse(&leaf.old)?;
    if leaf.key.subject_public_key_info() != certificate.public_key().raw {
        return Err("the key beside it is another certificate's".to_owned());
    }
    // The authority of the same folder first: etcd's may have the same name as the cluster's.
    let near = |authority: &&PathBuf| authority.parent() != path.parent();
    let mut fitting = authorities.iter().collect::<Vec<_>>();
    fitting.sort_by_key(near);
    let issued = |authority: &&PathBuf| {
        let der = read(authority);
        der.is_ok_and(|der| parse(&der).is_ok_and(|a| a.subject().as_raw() == certificate.issuer().as_raw()))
    };
    let authority = fitting.into_iter().find(issued).ok_or("its authority's certificate and key are not there")?;
    let der = read(authority)?;
    let last = parse(&der)?.validity().not_after.timestamp();
    let mut params = params(&certificate)?;
    let now = SystemTime::now();
    let until = (now + Duration::from_secs(u64::from(days) * DAY))
        .min(UNIX_EPOCH + Duration::from_secs(u64::try_from(last).unwrap_or(0)));
    if until <= now {
        return Err("its authority has ended itself".to_owned());
    }
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), until.into());
    let issuer = Issuer::from_ca_cert_der(&der, key(authority)?).map_err(|e| e.to_string())?;
    let new = params.signed_by(&leaf.key, &issuer).map_err(|e| e.to_string())?.pem();
    let text = match &leaf.kubeconfig {
        Some(kubeconfig) => kubeconfig.with(&new)?,
        None => new,
    };
    let mode = mode(path).map_err(|e| e.to_string())?;
    replace(path, text.as_bytes(), mode).map_err(|e| e.to_string())?;
    Ok(until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

#[cfg(unix)]
fn mode(path: &Path) -> io::Result<u32> {
    Ok(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path)?.permissions()) & 0o777)
}
#[cfg(not(unix))]
fn mode(_: &Path) -> io::Result<u32> {
    Ok(0o600)
}

/// Who it is for and what for, as the old one says. What cannot be said again makes it none: a certificate that has lost
/// something is worse than one that ends.
fn params(old: &X509Certificate<'_>) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let mut seen = Vec::new();
    for attribute in old.subject().iter_attributes() {
        let kind = attribute.attr_type();
        let name = [
            (OID_X509_COMMON_NAME, DnType::CommonName),
            (OID_X509_ORGANIZATION_NAME, DnType::OrganizationName),
            (OID_X509_ORGANIZATIONAL_UNIT, DnType::OrganizationalUnitName),
            (OID_X509_COUNTRY_NAME, DnType::CountryName),
            (OID_X509_LOCALITY_NAME, DnType::LocalityName),
            (OID_X509_STATE_OR_PROVINCE_NAME, DnType::StateOrProvinceName),
        ];
        let name = name.into_iter().find(|(oid, _)| oid == kind).map(|(_, name)| name);
        let name =
            name.filter(|name| !seen.contains(name)).ok_or("its subject has parts that cannot be written anew")?;
        let value = attribute.as_str().map_err(|e| e.to_string())?;
        params.distinguished_name.push(name.clone(), DnValue::Utf8String(value.to_owned()));
        seen.push(name);
    }
    let names = old.subject_alternative_name().map_err(|e| e.to_string())?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let text = |text: &str| Ia5String::try_from(text.to_owned()).map_err(|e| e.to_string());
        params.subject_alt_names.push(match name {
            GeneralName::DNSName(dns) => SanType::DnsName(text(dns)?),
            GeneralName::URI(uri) => SanType::URI(text(uri)?),
            GeneralName::RFC822Name(mail) => SanType::Rfc822Name(text(mail)?),
            GeneralName::IPAddress(bytes) => SanType::IpAddress(address(bytes)?),
            _ => return Err("it has an alternative name of a kind that cannot be written anew".to_owned()),
        });
    }
    if let Some(usage) = old.key_usage().map_err(|e| e.to_string())? {
        let all = [
            (usage.value.digital_signature(), KeyUsagePurpose::DigitalSignature),
            (usage.value.key_encipherment(), KeyUsagePurpose::KeyEncipherment),
            (usage.value.data_encipherment(), KeyUsagePurpose::DataEncipherment),
            (usage.value.key_agreement(), KeyUsagePurpose::KeyAgreement),
        ];
        params.key_usages = all.into_iter().filter(|(set, _)| *set).map(|(_, usage)| usage).collect();
    }
    if let Some(usage) = old.extended_key_usage().map_err(|e| e.to_string())? {
        let all = [
            (usage.value.client_auth, ExtendedKeyUsagePurpose::ClientAuth),
            (usage.value.server_auth, ExtendedKeyUsagePurpose::ServerAuth),
        ];
        params.extended_key_usages = all.into_iter().filter(|(set, _)| *set).map(|(_, usage)| usage).collect();
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| "it has an address that is none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};
    use std::process::Command;

    fn openssl(dir: &Path, words: &str) {
        let done = Command::new("openssl").current_dir(dir).args(words.split(' ')).output().unwrap();
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// What kubeadm makes, as openssl writes it: RSA keys in PKCS #1, an authority of its own for etcd, an `admin.conf`.
    fn kubeadm() -> (tempfile::TempDir, Pki) {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki { dir: dir.path().join("pki"), beside: Ok(()) };
        let root = pki.dir.as_path();
        fs::create_dir_all(root.join("etcd")).unwrap();
        for (ca, name) in [("ca", "kubernetes"), ("etcd/ca", "etcd-ca")] {
            openssl(root, &format!("genrsa -traditional -out {ca}.key 2048"));
            openssl(root, &format!("req -x509 -new -key {ca}.key -subj /CN={name} -days 3650 -out {ca}.crt"));
        }
        let leaves = [
            (
                "apiserver",
                "ca",
                "/CN=kube-apiserver",
                "DNS:kubernetes,DNS:kubernetes.default.svc,IP:10.96.0.1,IP:fd00::1",
                10,
            ),
            (
                "apiserver-etcd-client",
                "etcd/ca",
                "/O=kubeadm:cluster-admins/CN=kube-apiserver-etcd-client",
                "DNS:x",
                300,
            ),
            ("etcd/server", "etcd/ca", "/CN=node1", "DNS:localhost,IP:127.0.0.1", 20),
            ("admin", "ca", "/O=kubeadm:cluster-admins/CN=kubernetes-admin", "DNS:x", 15),
        ];
        for (name, ca, subject, names, days) in leaves {
            openssl(root, &format!("genrsa -traditional -out {name}.key 2048"));
            let usage = "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth";
            fs::write(root.join("ext"), format!("{usage}\nsubjectAltName={names}\n")).unwrap();
            openssl(root, &format!("req -new -key {name}.key -subj {subject} -out csr"));
            openssl(
                root,
                &format!(
                    "x509 -req -in csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -days {days} -extfile ext -out {name}.crt"
                ),
            );
        }
        fs::remove_file(root.join("ext")).unwrap();
        let taken = |name: &str| {
            let text = STANDARD.encode(fs::read(root.join(name)).unwrap());
            fs::remove_file(root.join(name)).unwrap();
            text
        };
        let (certificate, key) = (taken("admin.crt"), taken("admin.key"));
        let users =
            format!("- name: admin\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n");
        fs::write(dir.path().join("admin.conf"), format!("{KUBECONFIG}users: # one\n{users}")).unwrap();
        let kubelet = "users:\n- {name: k, user: {client-certificate: /k.pem, client-key: /k.pem}}\n";
        fs::write(dir.path().join("kubelet.conf"), format!("{KUBECONFIG}{kubelet}")).unwrap();
        (dir, pki)
    }

    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\n";

    /// What a certificate says, in no order.
    fn said(dir: &Path, name: &str) -> Vec<String> {
        let words =
            ["x509", "-noout", "-subject", "-ext", "subjectAltName,keyUsage,extendedKeyUsage", "-pubkey", "-in", name];
        let done = Command::new("openssl").current_dir(dir).args(words).output().unwrap();
        assert!(done.status.success());
        let text = String::from_utf8(done.stdout).unwrap();
        let mut words: Vec<String> = text.split(['\n', ',']).map(|word| word.trim().to_owned()).collect();
        words.sort();
        words
    }

    #[test]
    fn certificates_that_end_soon_are_made_anew_and_say_the_same() {
        let (_dir, pki) = kubeadm();
        let root = pki.dir.as_path();
        let names = ["apiserver.crt", "apiserver-etcd-client.crt", "etcd/server.crt"];
        let before = names.map(|name| said(root, name));
        let kept = fs::read(root.join("apiserver-etcd-client.crt")).unwrap();
        let authority = fs::read(root.join("ca.crt")).unwrap();
        let wish = Rotate { within_days: 30, ..Rotate::default() };
        let told = rotate(&pki, &wish).unwrap();
        assert!(told.contains("apiserver.crt: renewed, 36"), "{told}");
        assert!(told.contains("apiserver-etcd-client.crt: ") && told.contains(" days left, kept"), "{told}");
        assert_eq!(names.map(|name| said(root, name)), before, "the same subject, names, uses and key");
        openssl(root, "verify -CAfile ca.crt apiserver.crt");
        openssl(root, "verify -CAfile etcd/ca.crt etcd/server.crt");
        assert_eq!(fs::read(root.join("apiserver-etcd-client.crt")).unwrap(), kept);
        assert_eq!(fs::read(root.join("ca.crt")).unwrap(), authority);
        let again = rotate(&pki, &wish).unwrap();
        assert!(!again.contains("renewed"), "once is enough: {again}");
        rotate(&pki, &Rotate { days: 5, ..Rotate::default() }).unwrap();
        openssl(root, "verify -CAfile etcd/ca.crt apiserver-etcd-client.crt");
        let first = report(&pki).lines().next().unwrap().to_owned();
        assert!(first.ends_with("4 days left") || first.ends_with("5 days left"), "{first}");
    }

    #[test]
    fn nothing_is_made_without_the_authoritys_key_or_for_anothers_key() {
        let (_dir, pki) = kubeadm();
        let dir = pki.dir.as_path();
        let before = fs::read(dir.join("apiserver.crt")).unwrap();
        fs::rename(dir.join("apiserver.key"), dir.join("kept")).unwrap();
        fs::copy(dir.join("etcd/server.key"), dir.join("apiserver.key")).unwrap();
        assert!(rotate(&pki, &Rotate::default()).unwrap_err().contains("another certificate's"));
        fs::rename(dir.join("kept"), dir.join("apiserver.key")).unwrap();
        fs::remove_file(dir.join("ca.key")).unwrap();
        assert!(rotate(&pki, &Rotate::default()).unwrap_err().contains("authority"));
        assert_eq!(fs::read(dir.join("apiserver.crt")).unwrap(), before);
    }
    #[test]
    fn a_kubeconfigs_certificate_is_made_anew_and_the_rest_of_the_file_stays() {
        let (dir, mut pki) = kubeadm();
        let path = dir.path().join("admin.conf");
        let before = fs::read_to_string(&path).unwrap();
        let unpacked = || {
            let embedded = Embedded::read(&path).unwrap();
            fs::write(dir.path().join("admin.crt"), &embedded.certificate).unwrap();
            (said(dir.path(), "admin.crt"), embedded.encoded)
        };
        let (old, encoded) = unpacked();
        pki.beside = Err("not named".to_owned());
        assert!(rotate(&pki, &Rotate::default()).unwrap().ends_with("\nkubeconfig files beside it: left, not named"));
        assert!(!report(&pki).contains("admin.conf"));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        pki.beside = Ok(());
        assert!(report(&pki).starts_with("admin.conf: 1"), "{}", report(&pki));
        let told = rotate(&pki, &Rotate { within_days: 30, ..Rotate::default() }).unwrap();
        assert!(told.contains("\nadmin.conf: renewed, 36") && !told.contains("kubelet.conf"), "{told}");
        let (new, renewed) = unpacked();
        assert_eq!(old, new, "the same subject, names, uses and key");
        openssl(dir.path(), "verify -CAfile pki/ca.crt admin.crt");
        assert_eq!(fs::read_to_string(&path).unwrap(), before.replace(&encoded, &renewed));
        // What cannot be told apart is not written.
        fs::write(&path, format!("{before}# {encoded}\n")).unwrap();
        assert!(rotate(&pki, &Rotate::default()).unwrap_err().contains("admin.conf: its certificate is not"));
    }
}
