//! What plugins give to whom: global roles, templates in several clusters, members of projects.

use crate::{
    stub::Stub,
    world::{API, World, eventually},
};
use moorline_plugin::{Configured, Plugin};
use moorline_plugin_projects::Projects;
use moorline_plugin_rbac::{
    Rbac,
    powers::{KINDS, Reach, may_give},
};
use serde_json::{Value, json};
use std::sync::Arc;

async fn world() -> World {
    World::with(|config| {
        let rbac = Rbac::new(moorline_plugin_rbac::Config::default()).unwrap();
        let projects = Projects::new(moorline_plugin_projects::Config::default()).unwrap();
        config.plugins = vec![Arc::new(rbac) as Arc<dyn Plugin>, Arc::new(projects)];
    })
    .await
}

/// S55: a kind of the hub that nobody has looked at is one by which somebody may take a right.
#[tokio::test(flavor = "multi_thread")]
async fn s55_each_kind_is_classified_and_none_gives_more_than_that() {
    let world = world().await;
    let served = world.get(&world.admin, API).await.json();
    let names = served["resources"].as_array().unwrap().iter().map(|kind| kind["name"].as_str().unwrap());
    let plurals: Vec<String> = names.filter(|name| !name.contains('/')).map(str::to_owned).collect();
    assert!(plurals.len() > 15, "{plurals:?}");
    let known: Vec<&str> = KINDS.iter().map(|(plural, _)| *plural).collect();
    let unknown: Vec<_> = plurals.iter().filter(|plural| !known.contains(&plural.as_str())).collect();
    assert_eq!(unknown, [""; 0], "name them in hub/plugins/rbac/src/powers.rs");
    let role = async |plural: &str, verb: &str| {
        let spec = json!({ "rules": [{ "resources": [plural], "verbs": [verb] }] });
        let metadata = json!({ "generateName": "r-" });
        let role =
            json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "GlobalRole", "metadata": metadata, "spec": spec });
        world.call(&world.admin, "POST", &format!("{API}/globalroles"), &role).await.code
    };
    for (plural, reach) in KINDS {
        for verb in ["get", "create", "patch", "delete"] {
            let code = if may_give(plural, verb).is_ok() { 201 } else { 422 };
            assert_eq!(role(plural, verb).await, code, "{verb} {plural}, which is {reach:?}");
        }
    }
    for plural in ["projects", "sharedsecrets", "nodeplans", "clusterimports", "accessrequests", "servicegrants"] {
        assert_eq!(role(plural, "create").await, 422, "{plural}");
    }
    assert!(KINDS.iter().any(|(plural, reach)| *plural == "jointokens" && matches!(reach, Reach::Written(_))));

    // What is given counts, and nothing beside it.
    let spec = json!({ "rules": [{ "resources": ["clusters", "projects"], "verbs": ["get", "list"] },
        { "resources": ["clusters"], "verbs": ["create"] }] });
    world.create("globalroles", "GlobalRole", "maker", spec).await;
    world
        .create("globalrolebindings", "GlobalRoleBinding", "makers", json!({ "role": "maker", "groups": ["dev"] }))
        .await;
    let anna = world.user("anna", &[]).await;
    let make = async |plural: &str, kind: &str, spec: Value| {
        let metadata = json!({ "generateName": "x-" });
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec });
        world.call(&anna, "POST", &format!("{API}/{plural}"), &object).await.code
    };
    eventually("the role", async || make("clusters", "Cluster", json!({})).await == 201).await;
    assert_eq!(world.get(&anna, &format!("{API}/projects")).await.code, 200);
    let own =
        json!({ "cluster": "edge1", "namespaces": ["theirs"], "members": [{ "users": ["anna"], "template": "all" }] });
    assert_eq!(make("projects", "Project", own).await, 403, "s55: nobody makes a project for themselves");
}

/// A group holds a template in two clusters, which are kept each by itself; and a project's member holds one in its
/// namespaces alone.
#[tokio::test(flavor = "multi_thread")]
async fn s53_groups_hold_templates_in_their_clusters_and_members_in_their_namespaces() {
    let world = world().await;
    let (mut edge1, mut edge2, mut edge3) = (Stub::default(), Stub::default(), Stub::default());
    edge1.connect(&world, "edge1").await;
    edge2.connect(&world, "edge2").await;
    edge3.connect(&world, "edge3").await;
    let rules = json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] }]);
    let two = json!({ "names": ["edge1", "edge2"] });
    world.create("roletemplates", "RoleTemplate", "deployer", json!({ "rules": rules, "clusters": two })).await;
    let spec = json!({ "template": "deployer", "groups": ["dev", "ops"], "clusters": two });
    world.create("templatebindings", "TemplateBinding", "deployers", spec).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = format!("{rbac}/clusterrolebindings/moorline:deployers");
    let subject = |name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name });
    let wanted = json!([subject("dev"), subject("ops")]);
    let holds = |stub: &Stub| stub.get(&binding).is_some_and(|there| there["subjects"] == wanted);
    eventually("both clusters", async || holds(&edge1) && holds(&edge2)).await;
    let synced =
        async |path: &str| world.get(&world.admin, &format!("{API}/{path}")).await.json()["status"]["sync"].clone();
    for path in ["roletemplates/deployer", "templatebindings/deployers"] {
        eventually(path, async || {
            synced(path).await == json!({ "clusters": 2, "synced": 2, "failed": 0, "failures": [] })
        })
        .await;
    }
    // What is changed in one is put right there; the other is not touched, and the third never was.
    let writes = |stub: &Stub| stub.seen().iter().filter(|line| line.contains(": PATCH ")).count();
    let before = writes(&edge2);
    let mut theirs = edge1.get(&binding).unwrap();
    theirs["subjects"] = json!([subject("everybody")]);
    edge1.put(&binding, theirs);
    eventually("put right", async || holds(&edge1)).await;
    assert_eq!(writes(&edge2), before);
    assert_eq!(writes(&edge3), 0);

    let member = json!({ "users": ["anna"], "groups": ["dev"], "template": "deployer" });
    let spec = json!({ "cluster": "edge1", "namespaces": ["shop"], "members": [member] });
    edge1.put(
        "/api/v1/namespaces/shop",
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "labels": {} } }),
    );
    world.create("projects", "Project", "web", spec).await;
    let of_member = format!("{rbac}/namespaces/shop/rolebindings/moorline-member:moorline:deployer");
    eventually("the member's role", async || edge1.get(&of_member).is_some()).await;
    let bound = edge1.get(&of_member).unwrap();
    assert_eq!(
        (&bound["roleRef"]["kind"], &bound["roleRef"]["name"]),
        (&json!("ClusterRole"), &json!("moorline:deployer"))
    );
    let names: Vec<_> =
        bound["subjects"].as_array().unwrap().iter().map(|s| format!("{} {}", s["kind"], s["name"])).collect();
    assert_eq!(names, [r#""User" "anna""#, r#""Group" "dev""#]);
    assert_eq!(edge2.get(&of_member), None);
}
