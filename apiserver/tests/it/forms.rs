//! Forms of answers and of bodies, discovery, and how much is served at once.

use super::*;
use std::{io::Read, time::Duration};

async fn ask(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    world.send(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap(), Arc::new(Everything)).await
}

async fn bytes(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

async fn value(response: Response<Body>) -> Value {
    serde_json::from_slice(&bytes(response).await).unwrap()
}

const BOATS: &str = "/apis/moorline.dev/v1alpha1/boats";

#[tokio::test]
async fn large_answers_are_packed_for_those_who_take_it() {
    let world = World::new();
    let small = ask(&world, "GET", BOATS, &[("accept-encoding", "gzip")], b"").await;
    assert!(small.headers().get("content-encoding").is_none());
    for i in 0..4 {
        let labels = json!({ "metadata": { "name": format!("b{i}"), "annotations": { "a": "x".repeat(50_000) } }, "spec": { "metres": 1 } });
        assert_eq!(world.call("POST", "/boats", "application/json", &labels.to_string()).await.0, 201);
    }
    for (encodings, packed) in [("gzip", true), ("br, gzip;q=0.5", true), ("gzip;q=0", false), ("identity", false)] {
        let response = ask(&world, "GET", BOATS, &[("accept-encoding", encodings)], b"").await;
        assert_eq!(response.headers().get("content-encoding").is_some_and(|v| v == "gzip"), packed, "{encodings}");
        let mut text = bytes(response).await.to_vec();
        if packed {
            assert!(text.len() < 10_000);
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&text[..]).read_to_end(&mut plain).unwrap();
            text = plain;
        }
        let list: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 4);
    }
}

#[tokio::test]
async fn s56_a_packed_body_is_refused_unread() {
    let world = World::new();
    let headers = [("content-encoding", "gzip"), ("content-type", "application/json")];
    let response = ask(&world, "POST", BOATS, &headers, &[0x1f, 0x8b, 8, 0]).await;
    assert_eq!(response.status(), 415);
}

#[tokio::test]
async fn yaml_goes_both_ways() {
    let world = World::new();
    let yaml = b"metadata:\n  name: ada\nspec:\n  metres: 3\n";
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let response = ask(&world, "POST", BOATS, &headers, yaml).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (201, &"application/yaml".parse().unwrap())
    );
    let text = bytes(response).await;
    let boat: Value = serde_saphyr::from_slice(&text).unwrap();
    assert_eq!(boat, world.get("/boats/ada").await.1);
}

#[tokio::test]
async fn protobuf_is_refused_in_words() {
    let world = World::new();
    for path in [BOATS, "/apis", "/openapi/v2", "/apis/moorline.dev/v1alpha1"] {
        let response = ask(&world, "GET", path, &[("accept", "application/vnd.kubernetes.protobuf")], b"").await;
        assert_eq!(response.status(), 406, "{path}");
        assert_eq!(value(response).await["reason"], "NotAcceptable");
        let both = [("accept", "application/vnd.kubernetes.protobuf, */*;q=0.1")];
        assert_eq!(ask(&world, "GET", path, &both, b"").await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn discovery_comes_in_one_piece_for_those_who_ask() {
    let world = World::new();
    for version in ["v2", "v2beta1"] {
        let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let response =
            ask(&world, "GET", "/apis", &[("accept", &format!("{media},application/json;q=0.9"))], b"").await;
        assert_eq!(response.headers()["content-type"], media);
        let all = value(response).await;
        assert_eq!(all["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        let boats = &all["items"][0]["versions"][0]["resources"][0];
        assert_eq!((&boats["resource"], &boats["responseKind"]["kind"]), (&json!("boats"), &json!("Boat")));
        assert_eq!(boats["subresources"][0]["subresource"], "status");
    }
    let unknown = [("accept", "application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,application/json")];
    assert_eq!(value(ask(&world, "GET", "/apis", &unknown, b"").await).await["kind"], "APIGroupList");
}

#[tokio::test]
async fn open_api_comes_in_both_versions() {
    let world = World::new();
    let two = value(ask(&world, "GET", "/openapi/v2", &[], b"").await).await;
    let boat = &two["definitions"]["dev.moorline.v1alpha1.Boat"];
    assert_eq!(boat["properties"]["spec"]["properties"]["metres"]["description"], "Length over all, in metres.");
    let three = value(ask(&world, "GET", "/openapi/v3/apis/moorline.dev/v1alpha1", &[], b"").await).await;
    let boat = &three["components"]["schemas"]["dev.moorline.v1alpha1.Boat"];
    assert_eq!(boat["properties"]["metadata"]["properties"]["finalizers"]["x-kubernetes-list-type"], "set");
    let patch = &three["paths"]["/apis/moorline.dev/v1alpha1/boats/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
    let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert!(names.contains(&&json!("fieldValidation")), "kubectl leaves validation to servers that say so");
}

#[tokio::test]
async fn kubectl_gets_open_api_2_as_protobuf() {
    let world = World::new();
    let media = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let response = ask(&world, "GET", "/openapi/v2", &[("accept", media)], b"").await;
    let named = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &named.parse().unwrap()));
    let document = bytes(response).await;
    assert_eq!(document[..5], [0x0a, 3, b'2', b'.', b'0']);
    let has = |text: &str| document.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(has("dev.moorline.v1alpha1.Boat") && has("x-kubernetes-group-version-kind"));
    assert_eq!(ask(&world, "GET", "/openapi/v3", &[("accept", media)], b"").await.status(), 406);
}

/// A body that never comes, so that its request stays.
fn endless() -> http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible> {
    http_body_util::StreamBody::new(futures_util::stream::pending()).boxed_unsync()
}

/// Whose requests count together.
struct Named(&'static str);
impl Authorizer for Named {
    fn authorize(&self, _: &Attributes<'_>) -> Result<(), String> {
        Ok(())
    }
    fn visible(&self, _: &str, _: &Value) -> bool {
        true
    }
    fn flow(&self) -> &str {
        self.0
    }
}

#[tokio::test]
async fn one_caller_cannot_take_all_places() {
    let world = World::with(Limits { writes: 3, caller_requests: 2, body_time: Duration::from_secs(600), ..limits() });
    let send = |who: &'static str| {
        let request = Request::post(BOATS).body(endless()).unwrap();
        let server = world.server.clone();
        async move { server.handle(request, Arc::new(Named(who))).await }
    };
    let mut open = tokio::task::JoinSet::new();
    let mut hold = async |who| {
        let mut future = Box::pin(send(who));
        // Polled once, it has its seat and waits for its body.
        match futures_util::poll!(&mut future) {
            std::task::Poll::Ready(response) => Some(response),
            std::task::Poll::Pending => {
                open.spawn(future);
                None
            }
        }
    };
    assert!(hold("greedy").await.is_none());
    assert!(hold("greedy").await.is_none());
    let refused = hold("greedy").await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert!(hold("other").await.is_none(), "there is a place for others");
    assert_eq!(hold("third").await.unwrap().status(), 429, "all places are taken");
    let read = Request::get(BOATS).body(Full::<Bytes>::default()).unwrap();
    assert_eq!(world.server.handle(read, Arc::new(Named("third"))).await.status(), 200, "reads have their own");
    open.shutdown().await;
    assert_eq!(world.call("POST", "/boats", "application/json", "{").await.0, 400, "places come back");
}
