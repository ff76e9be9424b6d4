//! Does etcd answer?

use crate::{limits, upstream::chain};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{path::Path, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Asks `etcd` for its health, with kubeadm's certificate for that purpose where it is there. Without one, an etcd that
/// asks for a certificate is taken for well if its port is open.
pub(super) async fn etcd(etcd: &str, pki: Option<&std::path::PathBuf>) -> Result<(), String> {
    let uri: Uri = etcd.parse().map_err(|_| "not an address".to_owned())?;
    let (host, port) = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(2379));
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|e| e.to_string())?;
    if uri.scheme_str() != Some("https") {
        return health(tcp, &host).await;
    }
    let Some(config) = pki.and_then(|dir| client(&dir.join("etcd"))) else { return Ok(()) };
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| chain(&e))?;
    health(tls, &host).await
}

/// Whether an address of plain HTTP answers with success.
pub(super) async fn answers(address: &str) -> Result<(), String> {
    let uri: Uri = address.parse().map_err(|_| format!("{address}: not an address"))?;
    let wrong = |cause: String| format!("{address}: {cause}");
    let (host, port) = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(80));
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|e| wrong(e.to_string()))?;
    let (mut send, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(|e| wrong(chain(&e)))?;
    let _task = AbortOnDropHandle::new(tokio::spawn(connection));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new());
    let response = send.send_request(request.map_err(|e| wrong(e.to_string()))?).await.map_err(|e| wrong(chain(&e)))?;
    if response.status().is_success() { Ok(()) } else { Err(wrong(format!("it answers {}", response.status()))) }
}

fn client(dir: &Path) -> Option<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.crt")).ok()?).ok()?;
    let chain = CertificateDer::pem_file_iter(dir.join("healthcheck-client.crt")).ok()?;
    let chain = chain.collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_file(dir.join("healthcheck-client.key")).ok()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    builder.with_root_certificates(roots).with_client_auth_cert(chain, key).ok()
}

async fn health(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, host: &str) -> Result<(), String> {
    let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| chain(&e))?;
    let _task = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get("/health").header(header::HOST, host).body(Empty::<Bytes>::new());
    let response = send.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| chain(&e))?;
    let code = response.status();
    let body = Limited::new(response.into_body(), limits::NODE_ANSWER).collect().await.map_err(|e| e.to_string())?;
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    if code.is_success() && body.contains(r#""health":"true""#) {
        Ok(())
    } else {
        Err(format!("it says of itself {code} {}", body.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{ServerConfig, server::WebPkiClientVerifier};
    use std::fs;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    /// The folder that kubeadm makes, and what an etcd there asks of its clients.
    fn kubeadm(dir: &Path, san: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = |names: &[&str]| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            (CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap(), key)
        };
        let ((server, server_key), (client, client_key)) = (leaf(&[san]), leaf(&["healthcheck"]));
        fs::create_dir_all(dir.join("etcd")).unwrap();
        let put = |name: &str, text: String| fs::write(dir.join("etcd").join(name), text).unwrap();
        put("ca.crt", ca.pem());
        put("healthcheck-client.crt", client.pem());
        put("healthcheck-client.key", client_key.serialize_pem());
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let server_key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.unwrap())
            .with_single_cert(vec![server.der().clone()], server_key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// An etcd in name only, that says this of itself to whoever shows a certificate.
    async fn listen(acceptor: TlsAcceptor, says: &'static str) -> (String, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && tls.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{says}", says.len());
                let _ = tls.write_all(answer.as_bytes()).await; // whoever asked may be gone
            }
        });
        (address, AbortOnDropHandle::new(task))
    }

    #[tokio::test]
    async fn an_etcd_as_kubeadm_makes_it_is_asked_with_kubeadms_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().to_owned();
        let (well, _task) = listen(kubeadm(&pki, "127.0.0.1"), r#"{"health":"true"}"#).await;
        assert_eq!(etcd(&well, Some(&pki)).await, Ok(()));
        assert_eq!(etcd(&well, None).await, Ok(()), "without a certificate an open port has to do");
        let (ill, _task) = listen(kubeadm(&pki, "127.0.0.1"), r#"{"health":"false","reason":"NOSPACE"}"#).await;
        let said = etcd(&ill, Some(&pki)).await.unwrap_err();
        assert!(said.contains("NOSPACE"), "{said}");
        let (other, _task) = listen(kubeadm(&pki, "127.0.0.2"), r#"{"health":"true"}"#).await;
        assert!(etcd(&other, Some(&pki)).await.is_err(), "a certificate for another address");
        let strangers = tempfile::tempdir().unwrap();
        let (strange, _task) = listen(kubeadm(strangers.path(), "127.0.0.1"), r#"{"health":"true"}"#).await;
        assert!(etcd(&strange, Some(&pki)).await.is_err(), "another authority's");
        assert!(etcd("https://127.0.0.1:1", Some(&pki)).await.is_err(), "nobody is there");
    }
}
