//! Where an etcd is.

use super::EtcdError;
use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Files of the TLS to an etcd, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authorities that the members' certificates are of.
    pub ca: PathBuf,
    /// This client's certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Which etcd, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdPlace {
    /// `host:port` of its members.
    pub(super) members: Vec<String>,
    /// Beginning of all keys, without slashes at the ends.
    pub(super) root: String,
    pub(super) tls: Option<EtcdTls>,
}

/// Beginning of the keys of a store whose address names none.
const ROOT: &str = "moorline";
/// The port of etcd's clients.
const PORT: u16 = 2379;
/// Most members that an address may name.
const MEMBERS: usize = 16;

impl EtcdPlace {
    /// Reads `etcd://host:2379,host:2379/root`, or `etcds://…` for TLS, which `tls` has the files of. Port and root may be
    /// left out.
    ///
    /// # Errors
    /// It is not of that form; TLS is wanted without its files; or it is not, and a member is not on this machine.
    pub fn parse(address: &str, tls: Option<EtcdTls>) -> Result<Self, EtcdError> {
        let bad = |why: &str| EtcdError::Address { address: address.to_owned(), why: why.to_owned() };
        let (secure, rest) = match (address.strip_prefix("etcd://"), address.strip_prefix("etcds://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            (None, None) => return Err(bad("it begins with etcd:// or, with TLS, etcds://")),
        };
        let (members, root) = rest.split_once('/').unwrap_or((rest, ""));
        let root = root.trim_matches('/');
        if !root.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
            return Err(bad("what follows the members is the beginning of keys: letters, digits and -_./"));
        }
        let members: Vec<String> = members.split(',').map(with_port).collect::<Option<_>>().ok_or_else(|| {
            bad("a member is a name or an address with a port, as in 10.0.0.1:2379, and several have commas between")
        })?;
        if MEMBERS < members.len() {
            return Err(bad("it has too many members: 16 are enough"));
        }
        match (secure, &tls) {
            (true, None) => return Err(bad("TLS needs the file of the authority that etcd's certificates are of")),
            (false, Some(_)) => return Err(bad("there are files for TLS, which etcds:// uses and etcd:// does not")),
            (false, None) if !members.iter().all(|member| is_here(host(member))) => {
                return Err(bad("an etcd on another machine is reached by TLS only: etcds://"));
            }
            _ => {}
        }
        let root = if root.is_empty() { ROOT } else { root }.to_owned();
        Ok(Self { members, root, tls })
    }

    pub(super) fn client_config(&self) -> Result<Option<Arc<rustls::ClientConfig>>, EtcdError> {
        use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let Some(tls) = &self.tls else { return Ok(None) };
        let bad = |file: &Path, why: &dyn fmt::Display| EtcdError::Tls { file: file.to_owned(), why: why.to_string() };
        let read = |file: &Path| {
            let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            all.map_err(|e| bad(file, &e)).and_then(|all| match all.is_empty() {
                true => Err(bad(file, &"there is no certificate in it")),
                false => Ok(all),
            })
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in read(&tls.ca)? {
            roots.add(certificate).map_err(|e| bad(&tls.ca, &e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&tls.ca, &e))?
            .with_root_certificates(roots);
        let mut config = match &tls.client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
                config.with_client_auth_cert(read(chain)?, private).map_err(|e| bad(key, &e))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

impl fmt::Display for EtcdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}/{}", self.members.join(","), self.root)
    }
}

fn with_port(member: &str) -> Option<String> {
    let host = host(member);
    let name = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let sound = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
    if !sound {
        return None;
    }
    match member.get(host.len()..)? {
        "" => Some(format!("{host}:{PORT}")),
        port => port.strip_prefix(':')?.parse::<u16>().ok().map(|_| member.to_owned()),
    }
}

/// A member without its port.
pub(super) fn host(member: &str) -> &str {
    match (member.rfind(']'), member.rfind(':')) {
        (Some(end), _) => member.get(..=end).unwrap_or(member),
        (None, Some(colon)) => member.get(..colon).unwrap_or(member),
        (None, None) => member,
    }
}

fn is_here(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> EtcdTls {
        EtcdTls { ca: "ca.pem".into(), client: None }
    }

    #[test]
    fn addresses_are_read() {
        let read =
            |text: &str, tls| EtcdPlace::parse(text, tls).map(|place| place.to_string()).map_err(|e| e.to_string());
        assert_eq!(read("etcd://localhost", None).unwrap(), "etcd://localhost:2379/moorline");
        assert_eq!(
            read("etcd://127.0.0.1:1,[::1]:2,[::1]/a/b/", None).unwrap(),
            "etcd://127.0.0.1:1,[::1]:2,[::1]:2379/a/b"
        );
        assert_eq!(
            read("etcds://e1.example,e2.example:5", Some(tls())).unwrap(),
            "etcds://e1.example:2379,e2.example:5/moorline"
        );
        for (text, tls, why) in [
            ("http://localhost", None, "begins with etcd://"),
            ("etcd://", None, "a member is"),
            ("etcd://localhost:port", None, "a member is"),
            ("etcd://a@localhost", None, "a member is"),
            ("etcd://localhost/a b", None, "beginning of keys"),
            ("etcds://localhost", None, "TLS needs"),
            ("etcd://localhost", Some(tls()), "files for TLS"),
            ("etcd://10.0.0.1", None, "by TLS only"),
            ("etcd://localhost,etcd.example", None, "by TLS only"),
        ] {
            let error = read(text, tls).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
