//! A stand-in for a hub: real TLS, scripted answers, and a record of what was asked.

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::PrivateKeyDer;
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, runtime::Runtime};

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub accept: String,
    pub authorization: Option<String>,
    pub body: String,
}

/// Status and body of an answer.
pub type Answer = (u16, String);
type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// Serves until dropped.
pub struct FakeHub {
    pub url: String,
    /// Its authority, PEM.
    pub ca: String,
    pub ca_file: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    _runtime: Runtime,
}

impl FakeHub {
    /// Serves `script` under the names, with an authority of its own that is written into `dir`.
    pub fn start(dir: &Path, names: &[&str], script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (tls, ca) = certificates(names);
        let ca_file = dir.join("fake-ca.crt");
        std::fs::write(&ca_file, &ca).unwrap();
        let pem = ca.clone();
        let script = move |asked: &Asked| if asked.path == "/auth/ca" { (200, ca.clone()) } else { script(asked) };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let asked = Arc::default();
        runtime.spawn(serve(listener, tls, Arc::new(script), Arc::clone(&asked)));
        Self { url, ca: pem, ca_file, asked, _runtime: runtime }
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn certificates(names: &[&str]) -> (Arc<rustls::ServerConfig>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut leaf = CertificateParams::new(names).unwrap();
    leaf.subject_alt_names.push(SanType::URI("spiffe://moorline.test/hub/hub".try_into().unwrap()));
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone(), ca.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Arc::new(config), ca.pem())
}

async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    while let Ok((tcp, _)) = listener.accept().await {
        // A client that does not like the certificate is none of our business.
        let Ok(tls) = acceptor.accept(tcp).await else { continue };
        let (script, asked) = (script.clone(), asked.clone());
        let service = service_fn(move |request| answer(request, script.clone(), asked.clone()));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
        tokio::spawn(connection);
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let text = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let asked_now = Asked {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        accept: text("accept").unwrap_or_default(),
        authorization: text("authorization"),
        body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
    };
    let (status, body) = script(&asked_now);
    asked.lock().unwrap().push(asked_now);
    let mut response = Response::builder().status(status);
    if status == 503 {
        response = response.header("retry-after", "5");
    }
    Ok(response.body(Full::new(body.into())).unwrap())
}
