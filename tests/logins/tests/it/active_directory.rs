//! Samba's Active Directory.

use moorline_logins::{LoginError, Secret, Still};
use moorline_logins_tests::{provider, samba::Samba};

#[tokio::test(flavor = "multi_thread")]
async fn active_directory_lets_in_whom_it_knows_and_follows_nested_groups_itself() {
    let samba = Samba::start();
    let right = Secret::new("Secr3t!pw");
    for url in ["url: ldaps://127.0.0.77", "url: ldap://127.0.0.77\n    startTls: true"] {
        let ad = provider(&samba.yaml(url));
        let alice = ad.password("alice", &right).await.unwrap();
        assert_eq!((alice.username.as_str(), alice.groups.join(",").as_str()), ("alice", "inner,outer"));
        let by_upn = ad.password("alice@moor.test", &right).await.unwrap();
        assert_eq!(by_upn, alice, "the same person by either name");
        assert_eq!(
            ad.still(&alice.subject, None).await,
            Ok(Still::There(Box::new(alice))),
            "found again by objectGUID"
        );
    }
    let ad = provider(&samba.yaml("url: ldaps://127.0.0.77"));
    let alice = ad.password("alice", &right).await.unwrap();
    let wrong = |result: Result<_, LoginError>| match result {
        Err(LoginError::Wrong { why }) => why,
        other => panic!("{other:?}"),
    };
    assert!(wrong(ad.password("bob", &right).await).contains("data 533"), "disabled");
    assert!(wrong(ad.password("eve", &right).await).contains("data 701"), "expired");
    wrong(ad.password("alice", &Secret::new("")).await);
    wrong(ad.password("nobody", &right).await);
    samba.tool(&["user", "disable", "alice"]);
    let gone = ad.still(&alice.subject, None).await;
    assert!(matches!(&gone, Ok(Still::Gone { why }) if why.contains("disabled")), "{gone:?}");
    samba.tool(&["user", "enable", "alice"]);
    assert!(matches!(ad.still(&alice.subject, None).await, Ok(Still::There(_))));
    for _ in 0..3 {
        assert!(wrong(ad.password("alice", &Secret::new("wrong")).await).contains("49"));
    }
    wrong(ad.password("alice", &right).await);
    let gone = ad.still(&alice.subject, None).await;
    assert!(matches!(&gone, Ok(Still::Gone { why }) if why.contains("locked")), "{gone:?}");

    // In more groups than a page has, and than the domain controller gives at once.
    samba.crowd(1200);
    let max = ad.password("max", &right).await.unwrap();
    assert_eq!(max.groups.len(), 1200);
    assert_eq!(ad.still(&max.subject, None).await, Ok(Still::There(Box::new(max))));
    let found = ad.search("many", 200).await.unwrap();
    assert_eq!((found.len(), found.iter().filter(|p| p.kind == "group").count()), (200, 200), "so many, and no more");
    let found = ad.search("ali", 20).await.unwrap();
    assert!(found.iter().any(|p| p.kind == "user" && p.name == "alice"), "{found:?}");
}
