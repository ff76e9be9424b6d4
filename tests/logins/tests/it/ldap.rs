//! OpenLDAP.

use moorline_logins::{LoginError, Secret, Still};
use moorline_logins_tests::{provider, slapd::Slapd};

fn password(user: &str) -> Secret {
    Secret::new(format!("pw of {user}"))
}

fn wrong<T: std::fmt::Debug>(result: Result<T, LoginError>) -> String {
    match result {
        Err(LoginError::Wrong { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openldap_lets_in_whom_it_knows_with_groups_within_groups() {
    let mut slapd = Slapd::start();
    for yaml in [slapd.ldaps(), slapd.start_tls()] {
        let corp = provider(&yaml);
        let ann = corp.password("ann", &password("ann")).await.unwrap();
        assert_eq!((ann.username.as_str(), ann.display_name.as_deref()), ("ann", Some("ann of Moor")));
        assert_eq!(ann.groups, ["inner", "outer"], "a circle of groups is followed once");
        assert_eq!(ann.subject.len(), 36, "entryUUID: {}", ann.subject);
        assert_eq!(corp.still(&ann.subject, None).await, Ok(Still::There(Box::new(ann.clone()))));

        let max = corp.password("max", &password("max")).await.unwrap();
        assert_eq!(max.groups.len(), 1200, "more than one page, and more than the server gives at once");

        let odd = corp.password("we*ird(", &password("we*ird(")).await.unwrap();
        assert_eq!(odd.username, "we*ird(");
    }
    let corp = provider(&slapd.ldaps());
    let ann = corp.password("ann", &password("ann")).await.unwrap();

    // Refused, and told apart for the log alone.
    assert!(wrong(corp.password("ann", &Secret::new("wrong")).await).contains("49"));
    wrong(corp.password("nobody", &password("nobody")).await);
    for (user, secret) in
        [("ann", ""), ("", "x"), ("ann", "pw of ann\0"), ("*", "pw of ann"), ("ann)(uid=*", "pw of ann")]
    {
        wrong(corp.password(user, &Secret::new(secret)).await);
    }
    wrong(corp.password("bob", &password("bob")).await);
    assert!(wrong(corp.password("eve", &password("eve")).await).contains("expired"));
    // Locked by the directory's own policy after three failures, the right password included.
    for _ in 0..3 {
        wrong(corp.password("max", &Secret::new("wrong")).await);
    }
    wrong(corp.password("max", &password("max")).await);

    let found = corp.search("inn", 10).await.unwrap();
    assert!(found.iter().any(|p| p.kind == "group" && p.name == "inner"), "{found:?}");
    assert!(corp.search("an", 10).await.unwrap().iter().any(|p| p.kind == "user" && p.name == "ann"));
    assert_eq!(corp.search("*", 10).await.unwrap().iter().filter(|p| p.kind == "group").count(), 0, "no wildcard");
    // More than the server gives at once, and more than are asked for: so many, and the one who is meant among them.
    let many = corp.search("many", 7).await.unwrap();
    assert_eq!((many.len(), many.iter().filter(|p| p.kind == "group").count()), (7, 7), "{many:?}");
    for most in [20, 200] {
        let found = corp.search("zoe", most).await.unwrap();
        assert_eq!(found.len(), most);
        assert_eq!((found[0].kind, found[0].name.as_str()), ("user", "zoe"), "{found:?}");
        let names: std::collections::BTreeSet<_> = found.iter().map(|p| &p.name).collect();
        assert_eq!(names.len(), most, "each once");
    }
    assert_eq!(corp.search("of Moor", 600).await.unwrap().len(), 500, "what the server gives");

    // Out of a group, locked, gone: told when asked again.
    slapd.modify("dn: cn=outer,ou=groups,dc=moor,dc=test\nchangetype: modify\nreplace: member\nmember: uid=bob,ou=people,dc=moor,dc=test\n");
    let Ok(Still::There(now)) = corp.still(&ann.subject, None).await else { panic!() };
    assert_eq!(now.groups, ["inner"]);
    slapd.modify("dn: uid=ann,ou=people,dc=moor,dc=test\nchangetype: delete\n");
    assert!(matches!(corp.still(&ann.subject, None).await, Ok(Still::Gone { .. })));

    // Away is not wrong: nobody is told that their password is.
    slapd.down();
    assert!(matches!(corp.password("ann", &password("ann")).await, Err(LoginError::Unavailable { .. })));
    assert!(matches!(corp.still(&ann.subject, None).await, Err(LoginError::Unavailable { .. })));
    slapd.up();
    assert!(matches!(corp.password("ann", &password("ann")).await, Err(LoginError::Wrong { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn s67_a_directory_that_another_authority_vouches_for_sees_no_password() {
    let slapd = Slapd::start();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = moorline_logins_tests::pki::make(elsewhere.path());
    for yaml in [slapd.ldaps(), slapd.start_tls()] {
        let yaml = yaml.replace(slapd.pki.ca.to_str().unwrap(), other.ca.to_str().unwrap());
        let refused = provider(&yaml).password("ann", &password("ann")).await;
        assert!(matches!(refused, Err(LoginError::Unavailable { .. })), "{refused:?}");
    }
    // A searcher that the directory does not let in is the hub's trouble, not the user's.
    std::fs::write(slapd.dir.path().join("searcher"), "no longer\n").unwrap();
    let refused = provider(&slapd.ldaps()).password("ann", &password("ann")).await;
    assert!(matches!(refused, Err(LoginError::Unavailable { .. })), "{refused:?}");
}
