//! A node that is closed for a plan, at an API server that may be away.

use super::*;
use http::Response;
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use moorline_authz::plan::Plan;
use rcgen::Issuer;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// An API server with one node and a pod on it that no eviction ends.
#[derive(Default)]
struct Cluster {
    node: Mutex<Value>,
    is_away: AtomicBool,
    /// Requests that it did not answer for that.
    missed: AtomicUsize,
}

impl Cluster {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if self.is_away.load(Ordering::SeqCst) {
            self.missed.fetch_add(1, Ordering::SeqCst);
            return Response::builder().status(503).body(Full::default()).unwrap();
        }
        let (head, content) = request.into_parts();
        let content = content.collect().await.unwrap().to_bytes();
        let says = match (head.method, head.uri.path()) {
            (Method::GET, "/api/v1/pods") => json!({ "items": [{ "metadata": { "name": "a", "namespace": "b" } }] }),
            (Method::POST, _) => return Response::builder().status(429).body(Full::default()).unwrap(),
            (Method::PATCH, "/api/v1/nodes/n1") => {
                let patch: Value = serde_json::from_slice(&content).unwrap();
                let mut node = self.node.lock().unwrap();
                let annotations = &patch["metadata"]["annotations"];
                *node = json!({ "metadata": { "annotations": annotations }, "spec": patch["spec"] });
                node["metadata"]["annotations"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
                node.clone()
            }
            (Method::GET, "/api/v1/nodes/n1") => self.node.lock().unwrap().clone(),
            other => panic!("{other:?}"),
        };
        Response::new(Full::from(says.to_string()))
    }

    fn is_closed(&self) -> bool {
        self.node.lock().unwrap()["spec"]["unschedulable"] == true
    }
}

/// Serves it as the API server that the site's kubeconfig names.
async fn serve(site: &Site, cluster: &Arc<Cluster>) -> AbortOnDropHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::from_ca_cert_der(&site.membership.bundle[0], &site.key).unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![own.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let kubeconfig = fs::read_to_string(site.path("kubeconfig")).unwrap();
    let here = listener.local_addr().unwrap().to_string();
    fs::write(site.path("kubeconfig"), kubeconfig.replace("127.0.0.1:1", &here)).unwrap();
    let cluster = Arc::clone(cluster);
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, cluster) = (acceptor.clone(), Arc::clone(&cluster));
            tokio::spawn(async move {
                let Ok(socket) = acceptor.accept(socket).await else { return };
                let service =
                    service_fn(|request| async { Ok::<_, std::convert::Infallible>(cluster.answer(request).await) });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    }))
}

#[tokio::test]
async fn a_node_is_opened_once_that_can_be_done_when_its_plan_is_taken_away() {
    let site = Site::new();
    site.policy(&POLICY.replace("WORK", "/work").replace("allow: true", "allow: true, drain: true"));
    let cluster = Arc::new(Cluster { node: Mutex::new(json!({ "metadata": {}, "spec": {} })), ..Cluster::default() });
    let _served = serve(&site, &cluster).await;
    let agent = site.agent().await;
    let steps = vec![says(&site, "one")];
    put(&agent, &site.seal(Plan { agent: "n1".to_owned(), drain_seconds: 600, steps, ..Plan::default() })).await;
    let scene = async {
        until("a closed node", || cluster.is_closed()).await;
        cluster.is_away.store(true, Ordering::SeqCst);
        assert_eq!(ask(&agent, Method::DELETE, "/plan/0-1", Vec::new()).await.0, StatusCode::OK);
        until("an attempt", || 0 < cluster.missed.load(Ordering::SeqCst)).await;
        assert!(cluster.is_closed());
        cluster.is_away.store(false, Ordering::SeqCst);
        until("an open node", || !cluster.is_closed()).await;
    };
    tokio::select! {
        () = agent.run() => unreachable!(),
        () = scene => {}
    }
    assert_eq!(
        *cluster.node.lock().unwrap(),
        json!({ "metadata": { "annotations": {} }, "spec": { "unschedulable": false } })
    );
}
