//! Somebody with a right, and the call that is made again and again.

use crate::Hub;
use http::{Request, Response};
use moorline_authz::{
    access::{Facts, Grant, Grants, authorize},
    identity::Identity,
};
use moorline_proxy::{
    Body,
    kube::{Caller, KubeProxy},
    path::split,
};
use std::sync::{Arc, LazyLock};

pub const TARGET: &str = "/k8s/clusters/a/api/v1/namespaces/default/pods/web";

static ANN: LazyLock<(Identity, Grants)> = LazyLock::new(|| {
    let grant = Grant { users: vec!["ann".to_owned()], clusters: vec!["a".to_owned()], ..Grant::default() };
    (Identity::new("ann", ["dev"]), Grants::new([grant]))
});

/// What the hub does with a request once it knows whose it is.
pub async fn call(proxy: &Arc<KubeProxy<Hub>>, request: Request<Body>) -> Response<Body> {
    let (ann, grants) = &*ANN;
    let permit = authorize(&Facts { identity: ann, token_clusters: None, grants }, "a", None).unwrap();
    let caller = Caller { identity: Arc::new(ann.clone()), remote: ([192, 0, 2, 1], 5).into() };
    proxy.handle(request, split(TARGET).unwrap().unwrap(), &caller, permit).await
}
