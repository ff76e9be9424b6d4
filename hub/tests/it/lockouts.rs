//! Wrong passwords in a row.

use crate::world::{API, Answer, World, eventually};
use serde_json::json;
use std::time::Duration;

async fn world(seconds: u64) -> World {
    let world = World::with(|config| {
        config.lockout = moorline_hub::Lockout { user_failures: 3, address_failures: 1000, seconds };
        // However many wait for their turn to be hashed, each is answered.
        config.limits.password_wait = Duration::from_secs(60);
        // These have tests of their own.
        (config.limits.login_burst, config.limits.user_burst, config.limits.address_burst) = (1000, 1000, 1000);
    })
    .await;
    world.create("users", "User", "ann", json!({})).await;
    let (path, password) = (format!("{API}/users/ann/password"), json!({ "password": "correct horse" }));
    assert_eq!(world.call(&world.admin, "PUT", &path, &password).await.code, 200);
    world
}

async fn started_anew(world: World) -> World {
    world.hub.shutdown().await;
    World::in_folder(world.dir, |_| {}).await
}

async fn login(world: &World, user: &str, password: &str) -> Answer {
    let body = json!({ "username": user, "password": password }).to_string();
    world.send("POST", "/auth/login", &[], &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn s56_wrong_passwords_lock_out_and_an_administrator_lets_in_again() {
    let world = world(3600).await;
    // Somebody who is not there is answered as somebody who is, word for word.
    for user in ["ann", "nobody"] {
        for _ in 0..3 {
            let wrong = login(&world, user, "wrong password").await;
            assert_eq!(
                (wrong.code, wrong.json()["message"].as_str()),
                (401, Some("wrong user name or password")),
                "{user}"
            );
        }
        let locked = login(&world, user, "correct horse").await;
        let after: u64 = locked.header("retry-after").expect("when to come again").parse().unwrap();
        assert_eq!((locked.code, (3500..=3601).contains(&after)), (429, true), "{user}: {locked:?}");
        assert_eq!(locked.json()["message"], "too many attempts; try again later", "{user}");
    }
    let ben = world.user("ben", &[]).await;
    assert_eq!(world.get(&ben, "/auth/lockouts").await.code, 403);
    assert_eq!(world.call(&ben, "DELETE", "/auth/lockouts/user/ann", &json!(null)).await.code, 403);
    let shown = world.get(&world.admin, "/auth/lockouts").await.json();
    let names: Vec<_> = shown["items"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ann", "nobody"], "{shown}");
    assert_eq!(world.metric("moorline_hub_lockouts_total{of=\"user\"}"), 2.0);

    let unlocked = world.call(&world.admin, "DELETE", "/auth/lockouts/user/ann", &json!(null)).await;
    assert_eq!((unlocked.code, unlocked.json()["wasCounted"].as_bool()), (200, Some(true)));
    assert_eq!(login(&world, "ann", "correct horse").await.code, 200);
    let log = world.audit_at_end().await;
    assert!(log.contains("\"verb\":\"unlock\"") && !log.contains("correct horse"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tries_at_once_are_no_way_around_a_lock() {
    let world = world(3600).await;
    let tries = (0..40).map(|n| {
        let world = &world;
        async move { login(world, "ann", &format!("wrong password {n}")).await.code }
    });
    let codes = futures_util::future::join_all(tries).await;
    assert_eq!(codes.iter().filter(|code| **code == 401).count(), 3, "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_ends_with_time() {
    let world = world(2).await;
    for _ in 0..3 {
        login(&world, "ann", "wrong password").await;
    }
    eventually("locked", async || world.metric("moorline_hub_lockouts_total{of=\"user\"}") == 1.0).await;
    eventually("the lock ends", async || login(&world, "ann", "correct horse").await.code == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s56_a_restart_of_the_hub_lets_nobody_in_again() {
    let world = world(3600).await;
    for user in ["ann", "nobody"] {
        for _ in 0..3 {
            assert_eq!(login(&world, user, "wrong password").await.code, 401);
        }
    }
    let world = started_anew(world).await;
    for user in ["ann", "nobody"] {
        let locked = login(&world, user, "correct horse").await;
        assert_eq!(locked.code, 429, "{user}: {locked:?}");
        let after: u64 = locked.header("retry-after").unwrap().parse().unwrap();
        // The rules of the second hub: no lock is longer than one that begins under them.
        assert!((800..=901).contains(&after), "{user}: {after}");
    }
    let unlocked = world.call(&world.admin, "DELETE", "/auth/lockouts/user/ann", &json!(null)).await;
    assert_eq!((unlocked.code, unlocked.json()["wasCounted"].as_bool()), (200, Some(true)));
    let world = started_anew(world).await;
    assert_eq!(login(&world, "ann", "correct horse").await.code, 200, "nor is anybody locked out again");
    assert_eq!(login(&world, "nobody", "correct horse").await.code, 429);
}

/// A pipe without a reader refuses every write, as a full disk does.
#[tokio::test(flavor = "multi_thread")]
async fn s70_nobody_is_let_in_again_of_whom_there_is_no_record() {
    let mut reader = None;
    let world = World::with(|config| {
        config.lockout = moorline_hub::Lockout { user_failures: 1, address_failures: 1000, seconds: 3600 };
        std::fs::create_dir_all(&config.data_dir).unwrap();
        let path = config.data_dir.join("audit.log");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        reader = Some(tokio::net::unix::pipe::OpenOptions::new().open_receiver(&path).unwrap());
    })
    .await;
    assert_eq!(login(&world, "ann", "wrong password").await.code, 401);
    drop(reader.take());
    // A few may pass before the log is known to fail; their records wait.
    let unlock =
        async |who: &str| world.call(&world.admin, "DELETE", &format!("/auth/lockouts/{who}"), &json!(null)).await.code;
    eventually("refused", async || unlock("user/nobody").await == 503).await;
    assert_eq!((unlock("user/ann").await, unlock("address/127.0.0.1").await), (503, 503));
    let shown = world.get(&world.admin, "/auth/lockouts").await.json();
    assert_eq!(shown["items"][0]["name"], "ann", "{shown}");
}
