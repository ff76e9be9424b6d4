//! What is on record of changes of the hub's own objects: as an API server writes it down, and found by it.

use crate::world::{API, World, eventually};
use serde_json::{Value, json};

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_objects_are_on_record_with_their_verb_and_what_they_are_about() {
    let world = World::new().await;
    let (admin, anna) = (world.admin.clone(), world.user("anna", &[]).await);
    let path = format!("{API}/groups/crew");
    let crew = object("Group", "crew", &json!({}));
    let made = world.call(&admin, "POST", &format!("{API}/groups"), &crew).await;
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(world.call(&admin, "POST", &format!("{API}/groups"), &crew).await.code, 409);
    let other = object("Group", "other", &json!({}));
    assert_eq!(world.call(&anna, "POST", &format!("{API}/groups"), &other).await.code, 403);
    assert_eq!(world.call(&admin, "PUT", &path, &world.get(&admin, &path).await.json()).await.code, 200);
    world.patch(&path, &json!({ "spec": { "users": ["anna"] } })).await;
    assert_eq!(world.call(&admin, "DELETE", &path, &Value::Null).await.code, 200);
    assert_eq!(world.call(&admin, "DELETE", &format!("{API}/groups?limit=5"), &Value::Null).await.code, 200);
    let secret = json!({ "password": "correct horse" });
    assert_eq!(world.call(&admin, "PUT", &format!("{API}/users/anna/password"), &secret).await.code, 200);
    let spec = json!({ "user": "anna", "expires": "2999-01-01T00:00:00Z" });
    let token = world.create("tokens", "Token", "", spec).await;
    let token = token["metadata"]["name"].as_str().unwrap();

    // What is asked for and who by: what comes of it, of which object.
    let about = |name: &str, more: &Value| {
        let mut about = json!({ "resource": "groups", "apiGroup": "moorline.dev", "apiVersion": "v1alpha1" });
        if !name.is_empty() {
            about["name"] = name.into();
        }
        about.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        about
    };
    let (none, tokens) = (json!({}), json!({ "resource": "tokens" }));
    let password = json!({ "resource": "users", "subresource": "password" });
    let expected = [
        ("create", "groups", "admin", 201, about("crew", &none)),
        ("create", "groups", "admin", 409, about("crew", &none)),
        ("create", "groups", "anna", 403, about("", &none)),
        ("update", "groups", "admin", 200, about("crew", &none)),
        ("patch", "groups", "admin", 200, about("crew", &none)),
        ("delete", "groups", "admin", 200, about("crew", &none)),
        ("deletecollection", "groups", "admin", 200, about("", &none)),
        ("update", "users/password", "admin", 200, about("anna", &password)),
        ("create", "tokens", "admin", 201, about(token, &tokens)),
    ];
    for (verb, resource, user, code, about) in expected {
        let found = async || {
            let asked = format!("/auth/audit?verb={verb}&resource={resource}&user={user}");
            let found = world.get(&admin, &asked).await.json();
            let found = found["items"].as_array().unwrap().clone();
            found.into_iter().any(|record| record["objectRef"] == about && record["responseStatus"]["code"] == code)
        };
        eventually(&format!("{verb} {resource} by {user}: {code}, {about}"), found).await;
    }
    let all = world.audit_at_end().await;
    for method in ["post", "put"] {
        assert!(!all.contains(&format!("\"verb\":\"{method}\"")), "{all}");
    }
    assert!(!all.contains("correct horse") && all.contains("groups?limit=5"), "{all}");
}
