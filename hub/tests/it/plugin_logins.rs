//! Login providers that plugins bring.

use crate::world::World;
use futures_util::{FutureExt, future::BoxFuture};
use moorline_hub::logins::{LoginError, LoginProvider, Proof, Secret, Way};
use moorline_plugin::{Plugin, Registration};
use serde_json::json;
use std::sync::Arc;

struct Harbour(&'static str);

impl Plugin for Harbour {
    fn name(&self) -> &'static str {
        "harbour"
    }
    fn register(&self, into: &mut Registration) {
        into.login(Arc::new(Master(self.0)));
    }
}

struct Master(&'static str);

impl LoginProvider for Master {
    fn name(&self) -> &str {
        self.0
    }
    fn kind(&self) -> &'static str {
        "harbour"
    }
    fn ways(&self) -> &'static [Way] {
        &[Way::Password]
    }
    fn password<'a>(&'a self, user: &'a str, password: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
        assert_ne!(user, "panic", "as a defect would");
        let right = password.reveal() == "aye aye";
        async move {
            let proof = Proof {
                subject: format!("id-{user}"),
                username: user.to_owned(),
                display_name: None,
                groups: vec!["crew".to_owned()],
                renewal: None,
            };
            if right { Ok(proof) } else { Err(LoginError::Wrong { why: "not aye".to_owned() }) }
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_brings_a_place_to_log_in() {
    let world = World::with(|config| config.plugins.push(Arc::new(Harbour("pier")))).await;
    let login = async |user: &str, password: &str| {
        let body = json!({ "provider": "pier", "username": user, "password": password }).to_string();
        world.send("POST", "/auth/login", &[], &body).await
    };
    let listed = world.send("GET", "/auth/providers", &[], "").await.json().to_string();
    assert!(listed.contains("pier") && listed.contains("local"), "{listed}");
    assert_eq!(login("ann", "aye").await.code, 401);
    assert_eq!(login("panic", "aye aye").await.code, 503, "what goes wrong there lets nobody in");
    let made = login("ann", "aye aye").await;
    let token = made.json()["token"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    let me = world.get(&token, "/auth/whoami").await.json();
    assert_eq!((&me["user"], &me["groups"]), (&json!("ann"), &json!(["pier:crew"])), "its groups carry its name");
    // It cannot be searched; who came in through it is known all the same.
    let mut found = Vec::new();
    for text in ["NN", "rew", "nobody"] {
        let answer = world.get(&world.admin, &format!("/auth/principals?q={text}")).await.json();
        let of_it = answer["items"].as_array().unwrap().iter().filter(|item| item["provider"] == "pier");
        found.extend(of_it.map(|item| (item["kind"].clone(), item["name"].clone(), item["subject"].clone())));
    }
    let (ann, crew) = ((json!("user"), json!("ann"), json!("id-ann")), (json!("group"), json!("crew"), json!(null)));
    assert_eq!(found, [ann, crew]);
}

#[tokio::test]
async fn a_provider_takes_no_name_that_is_the_hubs() {
    for name in ["local", "system", "moorline", "a:b", ""] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::world::config(&dir);
        config.plugins.push(Arc::new(Harbour(name)));
        let started = moorline_hub::Hub::start(config, &prometheus::Registry::new()).await;
        assert!(started.is_err_and(|error| error.to_string().contains("login provider")), "{name:?}");
    }
}
