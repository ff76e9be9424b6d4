use super::*;
use crate::{
    access_token::{Claims, SigningKey, sign},
    identity::ADMINS,
};
use zeroize::Zeroizing;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "spiffe://moorline.local";

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(Zeroizing::new([n; 32])).unwrap()
}

fn api_key() -> &'static (String, String, String) {
    static KEY: std::sync::LazyLock<(String, String, String)> = std::sync::LazyLock::new(|| {
        let token = TokenText::generate_api();
        (token.id.clone(), URL_SAFE_NO_PAD.encode(token.hash().as_bytes()), token.reveal().to_string())
    });
    &KEY
}

fn bundle() -> Bundle {
    let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let user =
        |name: &str, groups: &[&str]| BundleUser { name: name.into(), uid: format!("u-{name}"), groups: words(groups) };
    let (id, hash, _) = api_key().clone();
    Bundle {
        cluster: "edge1".into(),
        serial: 7,
        issued: NOW,
        expires: NOW + 86_400,
        issuer: ISSUER.into(),
        keys: KeySet::new([key(1).public().clone()]),
        users: vec![user("anna", &["dev"]), user("ci", &[]), user("root", &[ADMINS])],
        grants: vec![BundleGrant {
            users: words(&["ci"]),
            groups: words(&["dev"]),
            as_groups: words(&["ops"]),
            record: None,
        }],
        api_keys: vec![BundleKey { id, hash, user: "ci".into(), expires: NOW + 500, verbs: Some(words(&["get"])) }],
        revoked: vec![Revoked { id: "ended2222222".into(), until: NOW + 3600 }],
        record: Recording::Never,
    }
}

fn claims(user: &str) -> Claims {
    Claims {
        iss: ISSUER.into(),
        sub: user.into(),
        uid: format!("u-{user}"),
        aud: vec![Audience::Cluster("edge1".into()).text()],
        iat: NOW,
        nbf: NOW,
        exp: NOW + 3600,
        jti: "j".into(),
        sid: "login2222222".into(),
        sid_exp: NOW + 40_000,
        verbs: None,
    }
}

fn sealed(bundle: &Bundle, by: &SigningKey) -> Vec<u8> {
    seal(bundle, |message| Ok::<_, ()>(by.sign(message))).unwrap()
}

fn read(bytes: &[u8], cluster: &str, have: Option<u64>) -> Result<Bundle, BundleError> {
    let hub = key(9);
    open(bytes, |message, signature| hub.public().verifies(message, signature), cluster, have)
}

#[test]
fn what_is_sealed_is_what_is_read() {
    let bytes = sealed(&bundle(), &key(9));
    for have in [None, Some(6), Some(7)] {
        assert_eq!(read(&bytes, "edge1", have), Ok(bundle()));
    }
    assert_eq!(bundle().check_time(NOW), Ok(()));
}

#[test]
fn a_bundle_that_is_older_foreign_altered_truncated_or_too_large_is_refused() {
    let bytes = sealed(&bundle(), &key(9));
    assert_eq!(read(&bytes, "edge1", Some(8)), Err(BundleError::Older { found: 7, have: 8 }));
    let foreign = BundleError::Cluster { found: "edge1".into(), wanted: "edge2".into() };
    assert_eq!(read(&bytes, "edge2", None), Err(foreign));
    assert_eq!(read(&sealed(&bundle(), &key(8)), "edge1", None), Err(BundleError::Signature));
    for at in 0..bytes.len() {
        let mut bent = bytes.clone();
        bent[at] ^= 1;
        assert!(read(&bent, "edge1", None).is_err(), "byte {at}");
        assert!(read(&bytes[..at], "edge1", None).is_err(), "cut at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(b' ');
    assert_eq!(read(&longer, "edge1", None), Err(BundleError::Signature));
    assert_eq!(read(&vec![b'x'; 100 << 20], "edge1", None), Err(BundleError::TooLarge));
    assert_eq!(read(b"", "edge1", None), Err(BundleError::Malformed));
    assert_eq!(bundle().check_time(NOW + 86_400), Err(BundleError::Expired { seconds: 0 }));
    // A signature of the same key over something else is none over a bundle.
    let content = serde_json::to_vec(&bundle()).unwrap();
    let other = format!("{} {}\n", KIND.magic, URL_SAFE_NO_PAD.encode(key(9).sign(&content)));
    assert_eq!(read(&[other.as_bytes(), &content].concat(), "edge1", None), Err(BundleError::Signature));
}

#[test]
fn u08_a_newer_hub_may_say_more() {
    let mut value = serde_json::to_value(bundle()).unwrap();
    value["newer"] = serde_json::json!([1]);
    value["users"][0]["newer"] = serde_json::json!({});
    let opened = |value: &serde_json::Value| {
        let bytes = signed::seal(KIND, value, |message| Ok::<_, ()>(key(9).sign(message))).unwrap();
        read(&bytes, "edge1", None).unwrap()
    };
    assert_eq!(opened(&value), bundle());
    // A way to record that is not known here yet asks for one all the same.
    value["record"] = serde_json::json!("onVideo");
    value["grants"][0]["record"] = serde_json::json!("onVideo");
    let newer = opened(&value);
    assert_eq!((newer.record, newer.grants[0].record), (Recording::Always, Some(Recording::Always)));
}

#[test]
fn u08_an_older_hub_says_nothing_of_recording_and_an_older_endpoint_reads_what_a_newer_hub_says() {
    // What a hub writes that asks for nothing is what hubs wrote before they knew of it.
    let text = serde_json::to_string(&bundle()).unwrap();
    assert!(!text.contains("record"), "{text}");
    let older: Bundle = serde_json::from_str(&text).unwrap();
    let anna = Identity::new("anna", ["dev"]);
    let known = Known { identity: anna, session: String::new(), ends: NOW, verbs: None };
    assert_eq!(Standing::new(older).permit(&known, None).unwrap().record(), Recording::Never);
    // Bundles as endpoints of before read them: what they do not know is passed over.
    #[derive(Deserialize)]
    struct Older {
        grants: Vec<OlderGrant>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OlderGrant {
        as_groups: Vec<String>,
    }
    let mut said = bundle();
    (said.record, said.grants[0].record) = (Recording::Always, Some(Recording::WithInput));
    let text = serde_json::to_string(&said).unwrap();
    assert!(text.contains(r#""record":"always""#) && text.contains(r#""record":"withInput""#), "{text}");
    let older: Older = serde_json::from_str(&text).unwrap();
    assert_eq!(older.grants[0].as_groups, ["ops"]);
}

proptest::proptest! {
    /// The same facts, at the hub and by the bundle that it makes of them: the same recording.
    #[test]
    fn what_is_recorded_at_the_endpoint_is_what_is_recorded_at_the_hub(
        usual in 0usize..3, cluster in 0usize..4, admin in proptest::bool::ANY,
        grants in proptest::collection::vec((0usize..4, proptest::bool::ANY, proptest::bool::ANY), 0..5),
    ) {
        let kinds = [Recording::Never, Recording::Always, Recording::WithInput];
        let said = |at: usize| kinds.get(at).copied();
        let whole = grants.iter().map(|(record, by_group, here)| Grant {
            users: if *by_group { vec![] } else { vec!["anna".to_owned()] },
            groups: if *by_group { vec!["dev".to_owned()] } else { vec![] },
            clusters: vec![if *here { "edge1" } else { "edge2" }.to_owned()],
            record: said(*record),
            ..Grant::default()
        });
        let whole: Vec<Grant> = whole.collect();
        let who = Identity::new("anna", if admin { vec!["dev", ADMINS] } else { vec!["dev"] });
        let known = Known { identity: who.clone(), session: String::new(), ends: NOW, verbs: None };
        let mut made = bundle();
        made.record = said(cluster).unwrap_or(kinds[usual]);
        made.grants = whole.iter().filter(|grant| grant.clusters[0] == "edge1").map(|grant| BundleGrant {
            users: grant.users.clone(),
            groups: grant.groups.clone(),
            as_groups: grant.as_groups.clone(),
            record: grant.record,
        }).collect();
        let at_hub = Grants::new(whole)
            .with_recording(kinds[usual], said(cluster).map(|recording| ("edge1".to_owned(), recording)));
        let facts = Facts { identity: &who, token_clusters: None, grants: &at_hub };
        let hub = authorize(&facts, "edge1", None).map(|permit| permit.record()).ok();
        let bytes = sealed(&made, &key(9));
        let endpoint = Standing::new(read(&bytes, "edge1", None).unwrap());
        proptest::prop_assert_eq!(endpoint.permit(&known, None).map(|permit| permit.record()).ok(), hub);
    }
}

#[test]
fn s10_who_gets_in_by_a_token_and_who_does_not() {
    let standing = Standing::new(bundle());
    let ask = |claims: &Claims, now: u64| standing.who(&sign(claims, &key(1)), now, &[]);
    let anna = ask(&claims("anna"), NOW).unwrap();
    assert_eq!((anna.identity.user.as_str(), anna.identity.uid.as_str()), ("anna", "u-anna"));
    assert_eq!(standing.permit(&anna, None).unwrap().principal().groups, ["dev", "ops"]);
    let wrong = |change: fn(&mut Claims)| {
        let mut bent = claims("anna");
        change(&mut bent);
        ask(&bent, NOW).unwrap_err().label()
    };
    assert_eq!(wrong(|c| c.aud = vec![Audience::Cluster("edge2".into()).text()]), "audience");
    assert_eq!(wrong(|c| c.aud = vec![Audience::Hub.text()]), "audience");
    assert_eq!(wrong(|c| c.aud.clear()), "audience");
    assert_eq!(wrong(|c| c.nbf = NOW + 300), "not_yet");
    assert_eq!(wrong(|c| c.exp = NOW - 61), "expired");
    assert_eq!(wrong(|c| c.iss = "spiffe://other".into()), "issuer");
    assert_eq!(wrong(|c| c.sid = "ended2222222".into()), "revoked");
    assert_eq!(wrong(|c| c.sid_exp = NOW), "revoked");
    assert_eq!(wrong(|c| c.uid = "u-namesake".into()), "unknown_user");
    assert_eq!(wrong(|c| c.sub = "gone".into()), "unknown_user");
    let stranger = sign(&claims("anna"), &key(2));
    assert_eq!(standing.who(&stranger, NOW, &[]).unwrap_err().label(), "unknown_key");
}

#[test]
fn after_the_bundles_time_nobody_gets_in_but_whom_the_owner_named() {
    let mut long = claims("anna");
    long.exp = NOW + 90_000;
    long.sid_exp = NOW + 90_000;
    let (standing, token) = (Standing::new(bundle()), sign(&long, &key(1)));
    let late = NOW + 86_400;
    assert!(standing.who(&token, late - 1, &[]).is_ok());
    assert_eq!(standing.who(&token, late, &[]), Err(Refused::Stale));
    assert_eq!(standing.who(&token, late, &["bob".to_owned()]), Err(Refused::Stale));
    assert!(standing.who(&token, late, &["anna".to_owned()]).is_ok());
}

#[test]
fn s51_s54_a_newer_bundle_ends_what_is_open() {
    let standing = Standing::new(bundle());
    let anna = standing.who(&sign(&claims("anna"), &key(1)), NOW, &[]).unwrap();
    let after = |change: fn(&mut Bundle)| {
        let mut newer = bundle();
        change(&mut newer);
        let newer = Standing::new(newer);
        newer
            .still(&anna, NOW, &[])
            .map_err(|refused| refused.label())
            .and_then(|()| newer.permit(&anna, None).map(drop).map_err(|_| "no grant"))
    };
    assert_eq!(after(|b| b.serial += 1), Ok(()));
    assert_eq!(after(|b| drop(b.users.remove(0))), Err("unknown_user"));
    assert_eq!(after(|b| b.users[0].groups.clear()), Err("unknown_user"), "a group that is gone");
    assert_eq!(after(|b| b.revoked[0].id = "login2222222".into()), Err("revoked"));
    assert_eq!(after(|b| b.grants.clear()), Err("no grant"));
}

#[test]
fn an_api_key_that_names_the_cluster_works_and_no_other() {
    let standing = Standing::new(bundle());
    let (_, _, text) = api_key();
    let ci = standing.who(text, NOW, &[]).unwrap();
    assert_eq!((ci.identity.user.as_str(), ci.verbs), ("ci", Some(vec!["get".to_owned()])));
    assert_eq!(standing.who(text, NOW + 500, &[]), Err(Refused::Revoked));
    let other = TokenText::generate_api();
    assert_eq!(standing.who(&other.reveal(), NOW, &[]), Err(Refused::Key));
    let same_name = TokenText { id: api_key().0.clone(), ..TokenText::generate_api() };
    assert_eq!(standing.who(&same_name.reveal(), NOW, &[]), Err(Refused::Key));
    for text in ["", "x", "mlr_abcdefghijkl.AAAA", &TokenText::generate_join([1; 32]).reveal()] {
        assert_eq!(standing.who(text, NOW, &[]), Err(Refused::Key), "{text}");
    }
}

#[test]
fn administrators_get_in_as_at_the_hub() {
    let root = Standing::new(bundle());
    let root_known = root.who(&sign(&claims("root"), &key(1)), NOW, &[]).unwrap();
    assert!(root.permit(&root_known, None).is_ok(), "as at the hub");
    let mut other = bundle();
    (other.serial, other.issued, other.expires) = (99, 1, 2);
    assert_eq!(fingerprint(&other), fingerprint(&bundle()));
    other.users.clear();
    assert_ne!(fingerprint(&other), fingerprint(&bundle()));
}
