//! The proxy with the connections that it has: HTTP over TLS from who calls, a tunnel over TLS to the agent, and HTTP over TLS
//! to an API server, here one that answers at once.

use crate::{Hub, caller};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1::SendRequest, server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::TokioIo;
use moorline_proxy::{
    Body, body,
    edge::{Upstream, UpstreamError},
    guard::Guarded,
    kube::KubeProxy,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs::default_provider};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

const NAME: &str = "hub.example";

/// Both ends of TLS, by one self-signed certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
    }

    async fn accept(&self, socket: TcpStream) -> TlsStream<TcpStream> {
        socket.set_nodelay(true).unwrap();
        self.acceptor.accept(socket).await.unwrap().into()
    }

    async fn connect(&self, to: SocketAddr) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(to).await.unwrap();
        socket.set_nodelay(true).unwrap();
        self.connector.connect(ServerName::try_from(NAME).unwrap(), socket).await.unwrap().into()
    }

    /// What a tunnel runs over: its end at the hub, and the agent's.
    pub async fn pair(&self) -> (TlsStream<TcpStream>, TlsStream<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let accept = async { self.accept(listener.accept().await.unwrap().0).await };
        tokio::join!(accept, self.connect(listener.local_addr().unwrap()))
    }

    async fn serve<F: Future<Output = Response<Body>> + Send>(
        &self,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = self.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, answer) = (tls.clone(), answer.clone());
                tokio::spawn(async move {
                    let io = TokioIo::new(Guarded::new(tls.accept(socket).await));
                    let service = service_fn(|request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    Builder::new().serve_connection(io, service).with_upgrades().await
                });
            }
        });
        address
    }

    /// Serves a proxy, as the hub does behind its gate.
    pub async fn front(&self, proxy: Arc<KubeProxy<Hub>>) -> SocketAddr {
        self.serve(move |request| {
            let proxy = Arc::clone(&proxy);
            async move { caller::call(&proxy, request.map(body::from)).await }
        })
        .await
    }

    /// An API server that answers at once.
    pub async fn api_server(&self) -> ApiServer {
        let address = self.serve(async |_| Response::new(body::full("{}"))).await;
        ApiServer { tls: self.clone(), address, idle: Mutex::default() }
    }

    async fn open<B>(&self, to: SocketAddr) -> SendRequest<B>
    where
        B: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let io = TokioIo::new(self.connect(to).await);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// One client's connection.
    pub async fn client(&self, to: SocketAddr) -> Client {
        Client(self.open(to).await)
    }
}

/// See [`Tls::api_server`]. Connections are kept, as an agent does.
pub struct ApiServer {
    tls: Tls,
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl Upstream for ApiServer {
    fn send(&self, mut request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, UpstreamError>> {
        Box::pin(async move {
            let idle = self.idle.lock().unwrap().pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.tls.open(self.address).await,
            };
            request.headers_mut().insert("host", NAME.parse().unwrap());
            connection.ready().await.unwrap();
            let (head, body) = connection.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            self.idle.lock().unwrap().push(connection);
            Ok(Response::from_parts(head, body::full(body)))
        })
    }
}

pub struct Client(SendRequest<Empty<bytes::Bytes>>);

impl Client {
    pub async fn call(&mut self) {
        let request = Request::get(caller::TARGET).header("host", NAME).body(Empty::new()).unwrap();
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}
