//! Certificates as kubeadm lays them out: when they end, and how they are made anew.
//!
//! A new certificate is for the same key: the file beside it stays as it is, so that there is no moment, and no crash, in
//! which key and certificate do not belong together.

use super::store::replace;
use crate::node::facts;
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

/// One line for each certificate, the first to end first.
pub(super) fn report(dir: &Path) -> String {
    let now = super::now();
    let lines = facts::certificates(&[dir.to_owned()]).into_iter().map(|(until, name)| {
        let days = until.saturating_sub(now) / DAY;
        let left = if until <= now { "has ended".to_owned() } else { format!("{days} days left") };
        format!("{name}: {left}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Makes certificates anew, each at once or not at all. Authorities stay as they are.
pub(super) fn rotate(dir: &Path, wish: &Rotate) -> Result<String, String> {
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
    for leaf in leaves {
        let name = leaf.strip_prefix(dir).unwrap_or(&leaf).display().to_string();
        let ends = facts::ends(&leaf).unwrap_or_default();
        if 0 < wish.within_days && limit < ends {
            said.push(format!("{name}: {} days left, kept", ends.saturating_sub(super::now()) / DAY));
            continue;
        }
        let made = renew(&leaf, &authorities, days).map_err(|why| format!("{name}: {why}\n{}", said.join("\n")))?;
        said.push(format!("{name}: renewed, {} days left", made.saturating_sub(super::now()) / DAY));
    }
    Ok(said.join("\n"))
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

/// Makes one anew; gives its end, in seconds since 1970.
fn renew(path: &Path, authorities: &[PathBuf], days: u32) -> Result<u64, String> {
    let old = read(path)?;
    let certificate = parse(&old)?;
    let key_of_leaf = key(path)?;
    if key_of_leaf.subject_public_key_info() != certificate.public_key().raw {
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
    let new = params.signed_by(&key_of_leaf, &issuer).map_err(|e| e.to_string())?;
    let mode = mode(path).map_err(|e| e.to_string())?;
    replace(path, new.pem().as_bytes(), mode).map_err(|e| e.to_string())?;
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
    use std::process::Command;

    fn openssl(dir: &Path, words: &str) {
        let done = Command::new("openssl").current_dir(dir).args(words.split(' ')).output().unwrap();
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// What kubeadm makes, as openssl writes it: RSA keys in PKCS #1, an authority of its own for etcd.
    fn kubeadm() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("etcd")).unwrap();
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
        dir
    }

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
        let dir = kubeadm();
        let root = dir.path();
        let names = ["apiserver.crt", "apiserver-etcd-client.crt", "etcd/server.crt"];
        let before = names.map(|name| said(root, name));
        let kept = fs::read(root.join("apiserver-etcd-client.crt")).unwrap();
        let authority = fs::read(root.join("ca.crt")).unwrap();
        let wish = Rotate { within_days: 30, ..Rotate::default() };
        let told = rotate(root, &wish).unwrap();
        assert!(told.contains("apiserver.crt: renewed, 36"), "{told}");
        assert!(told.contains("apiserver-etcd-client.crt: ") && told.contains(" days left, kept"), "{told}");
        assert_eq!(names.map(|name| said(root, name)), before, "the same subject, names, uses and key");
        openssl(root, "verify -CAfile ca.crt apiserver.crt");
        openssl(root, "verify -CAfile etcd/ca.crt etcd/server.crt");
        assert_eq!(fs::read(root.join("apiserver-etcd-client.crt")).unwrap(), kept);
        assert_eq!(fs::read(root.join("ca.crt")).unwrap(), authority);
        let again = rotate(root, &wish).unwrap();
        assert!(!again.contains("renewed"), "once is enough: {again}");
        rotate(root, &Rotate { days: 5, ..Rotate::default() }).unwrap();
        openssl(root, "verify -CAfile etcd/ca.crt apiserver-etcd-client.crt");
        let first = report(root).lines().next().unwrap().to_owned();
        assert!(first.ends_with("4 days left") || first.ends_with("5 days left"), "{first}");
    }

    #[test]
    fn nothing_is_made_without_the_authoritys_key_or_for_anothers_key() {
        let dir = kubeadm();
        let before = fs::read(dir.path().join("apiserver.crt")).unwrap();
        fs::rename(dir.path().join("apiserver.key"), dir.path().join("kept")).unwrap();
        fs::copy(dir.path().join("etcd/server.key"), dir.path().join("apiserver.key")).unwrap();
        assert!(rotate(dir.path(), &Rotate::default()).unwrap_err().contains("another certificate's"));
        fs::rename(dir.path().join("kept"), dir.path().join("apiserver.key")).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(rotate(dir.path(), &Rotate::default()).unwrap_err().contains("authority"));
        assert_eq!(fs::read(dir.path().join("apiserver.crt")).unwrap(), before);
    }
}
