//! What passes between hub and plugins: objects that users write of plugins' kinds, tables of the configuration, requests to
//! plugins' paths, amounts that clusters tell. What the hub takes a plugin can read, and no rule of a plugin falls over.

use crate::{split, store::Memory};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use moorline_apiserver::{ApiServer, Everything, Limits, Store};
use moorline_plugin::{Factory, Host, HubObject, RouteRequest, Spec, quantity};
use moorline_plugin_health::kinds::{ClusterHealthSpec, FleetHealthSpec};
use moorline_plugin_projects::kinds::{ProjectNamespaceSpec, ProjectSpec};
use moorline_plugin_rbac::kinds::{GlobalRoleBindingSpec, GlobalRoleSpec, RoleTemplateSpec, TemplateBindingSpec};
use moorline_plugin_secrets::kinds::SharedSecretSpec;
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const PLUGINS: &[Factory] = &[
    Factory::of::<moorline_plugin_health::Health>(),
    Factory::of::<moorline_plugin_projects::Projects>(),
    Factory::of::<moorline_plugin_rbac::Rbac>(),
    Factory::of::<moorline_plugin_secrets::Secrets>(),
];

/// A kind, and whether a plugin can read what is stored of it.
type Kind = (&'static str, fn(&Value) -> bool);

fn reads<S: Spec>(object: &Value) -> bool {
    serde_json::from_value::<HubObject<S>>(object.clone()).is_ok()
}

const KINDS: [Kind; 9] = [
    (RoleTemplateSpec::PLURAL, reads::<RoleTemplateSpec>),
    (TemplateBindingSpec::PLURAL, reads::<TemplateBindingSpec>),
    (GlobalRoleSpec::PLURAL, reads::<GlobalRoleSpec>),
    (GlobalRoleBindingSpec::PLURAL, reads::<GlobalRoleBindingSpec>),
    (ProjectSpec::PLURAL, reads::<ProjectSpec>),
    (ProjectNamespaceSpec::PLURAL, reads::<ProjectNamespaceSpec>),
    (SharedSecretSpec::PLURAL, reads::<SharedSecretSpec>),
    (ClusterHealthSpec::PLURAL, reads::<ClusterHealthSpec>),
    (FleetHealthSpec::PLURAL, reads::<FleetHealthSpec>),
];

/// A hub's API with the plugins' kinds; and the plugins, which do not run.
struct World {
    server: ApiServer,
    host: Host,
    runtime: Runtime,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let registry = prometheus::Registry::new();
    let host = Host::new(Factory::build(PLUGINS, [].into()).unwrap(), &registry).unwrap();
    let store = Store::open_on(Memory::default(), &Limits::default()).unwrap();
    let stop = CancellationToken::new();
    let server = ApiServer::new(store, host.kinds().collect(), Limits::default(), &registry, stop).unwrap();
    World { server, host, runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap() }
});

impl World {
    fn call(&self, method: Method, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let path = format!("/apis/moorline.dev/v1alpha1/{path}");
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        self.runtime.block_on(async {
            let answer = self.server.handle(request, Arc::new(Everything)).await;
            let code = answer.status().as_u16();
            let said = answer.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice(&said).unwrap())
        })
    }
}

/// The first byte chooses what the others are.
pub fn run(data: &[u8]) {
    let (kind, data) = split(data);
    match usize::from(kind) {
        at if at < KINDS.len() * 2 => write(KINDS[at / 2], at % 2 == 1, data),
        0x40 => configure(data),
        0x41 => ask(data),
        _ => amount(data),
    }
}

/// Made, or applied; and gone again.
fn write((plural, reads): Kind, apply: bool, data: &[u8]) {
    let world = &*WORLD;
    let path = format!("{plural}/a?fieldManager=f&force=true");
    let (code, said) = match apply {
        true => world.call(Method::PATCH, &path, "application/apply-patch+yaml", data),
        false => world.call(Method::POST, plural, "application/json", data),
    };
    match code {
        200..=299 => {
            assert!(reads(&said), "the hub took what the plugin cannot read: {said}");
            let name = said["metadata"]["name"].as_str().unwrap();
            let (code, gone) = world.call(Method::DELETE, &format!("{plural}/{name}"), "application/json", b"");
            assert_eq!(code, 200, "{gone}");
        }
        400..=499 => {
            assert_eq!(said["kind"], "Status");
            assert!(!said.to_string().contains("the hub's log says how"), "a rule fell over: {said}");
        }
        _ => panic!("{code}: {said}"),
    }
}

fn configure(data: &[u8]) {
    let Ok(tables) = serde_json::from_slice(data) else { return };
    if let Err(error) = Factory::build(PLUGINS, tables) {
        assert!(error.to_string().starts_with("plugins."), "an error names its table: {error}");
    }
}

fn ask(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let request = RouteRequest {
        method: Method::GET,
        path: path.to_owned(),
        query: query.to_owned(),
        body: Bytes::new(),
        user: "ann".to_owned(),
        may_see: Arc::new(|_| true),
        admin: false,
    };
    let answer = WORLD.runtime.block_on(WORLD.host.route("health", request)).unwrap();
    // The plugin does not run: nothing is known, and sums are for administrators.
    assert_eq!(answer.status(), 404);
}

fn amount(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(amount) = quantity::parse(text) else { return };
    let written = quantity::write(amount);
    // What is larger than any amount of a node need not come back.
    assert!(quantity::parse(&written).is_none_or(|again| again == amount), "{text} became {written}");
}
