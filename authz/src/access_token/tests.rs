use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::Zeroizing;

const ISSUER: &str = "spiffe://moorline.local";
const NOW: u64 = 1_800_000_000;

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(Zeroizing::new([n; 32])).unwrap()
}

fn claims() -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        uid: "u1".to_owned(),
        aud: vec![Audience::Hub.text()],
        iat: NOW,
        nbf: NOW,
        exp: NOW + 3600,
        jti: "j".to_owned(),
        sid: "abcdefghijkl".to_owned(),
        sid_exp: NOW + 9000,
        verbs: None,
    }
}

fn known() -> KeySet {
    KeySet::new([key(1).public().clone()])
}

/// A token with any header and claims, signed as a JWT library would.
fn forged(header: &Value, claims: &Value, key: &SigningKey) -> String {
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())))
}

fn judge(text: &str) -> Result<Claims, TokenError> {
    verify(text, &known(), ISSUER, NOW)
}

#[test]
fn what_is_signed_is_what_is_verified() {
    let text = sign(&claims(), &key(1));
    assert!(looks_like_one(&text), "{text}");
    assert_eq!(judge(&text), Ok(claims()));
    let header = text.split('.').next().and_then(|head| URL_SAFE_NO_PAD.decode(head).ok()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header, json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": key(1).public().kid() }));
}

/// RFC 8037, appendix A: the key, its thumbprint, and a signature over the appendix's own input.
#[test]
fn the_vectors_of_rfc_8037() {
    let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
    let key = SigningKey::from_seed(Zeroizing::new(seed.try_into().unwrap())).unwrap();
    assert_eq!(key.public().kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let input = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(URL_SAFE_NO_PAD.encode(key.sign(input.as_bytes())), signature);
    assert!(key.public().verifies(input.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()));
}

#[test]
fn s10_no_word_in_a_token_chooses_how_it_is_verified() {
    let body = serde_json::to_value(claims()).unwrap();
    let kid = key(1).public().kid().to_owned();
    let none = forged(&json!({ "alg": "none", "typ": "at+jwt", "kid": kid }), &body, &key(1));
    let unsigned = format!("{}.", none.rsplit_once('.').unwrap().0);
    for (text, why) in [
        (none, TokenError::Algorithm),
        (unsigned, TokenError::Algorithm),
        (forged(&json!({ "alg": "HS256", "typ": "at+jwt", "kid": kid }), &body, &key(1)), TokenError::Algorithm),
        (forged(&json!({ "alg": "eddsa", "typ": "at+jwt", "kid": kid }), &body, &key(1)), TokenError::Algorithm),
        (forged(&json!({ "alg": "EdDSA", "typ": "JWT", "kid": kid }), &body, &key(1)), TokenError::Malformed),
        (forged(&json!({ "alg": "EdDSA", "kid": kid }), &body, &key(1)), TokenError::Malformed),
        (forged(&json!({ "alg": "EdDSA", "typ": "at+jwt" }), &body, &key(1)), TokenError::Malformed),
        (
            forged(
                &json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid, "crit": ["b64"], "b64": false }),
                &body,
                &key(1),
            ),
            TokenError::Malformed,
        ),
        (
            forged(&json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid, "jwk": { "x": "mine" } }), &body, &key(2)),
            TokenError::Malformed,
        ),
        (forged(&json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid }), &body, &key(2)), TokenError::Signature),
        (sign(&claims(), &key(2)), TokenError::UnknownKey),
    ] {
        assert_eq!(judge(&text), Err(why), "{text}");
    }
}

#[test]
fn s10_f28_issuer_and_times_are_looked_at_with_a_leeway_of_a_minute() {
    let text = sign(&claims(), &key(1));
    let at = |now| verify(&text, &known(), ISSUER, now);
    assert!(at(NOW - 60).is_ok() && at(NOW + 3660).is_ok());
    assert_eq!(at(NOW - 61), Err(TokenError::NotYet { seconds: 61 }));
    assert_eq!(at(NOW + 3661), Err(TokenError::Expired { seconds: 61 }));
    assert_eq!(at(NOW - 600).map_err(|e| e.label()), Err("not_yet"), "a clock that is ten minutes off is told");
    assert_eq!(verify(&text, &known(), "spiffe://other", NOW), Err(TokenError::Issuer));
    assert_eq!(verify(&text, &KeySet::default(), ISSUER, NOW), Err(TokenError::UnknownKey));
}

#[test]
fn z08_a_token_with_a_hole_is_none() {
    let whole = serde_json::to_value(claims()).unwrap();
    let header = json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": key(1).public().kid() });
    for claim in ["iss", "sub", "uid", "aud", "iat", "nbf", "exp", "jti", "sid", "sid_exp"] {
        let mut body = whole.clone();
        body.as_object_mut().unwrap().remove(claim);
        assert_eq!(judge(&forged(&header, &body, &key(1))), Err(TokenError::Malformed), "without {claim}");
    }
    for (claim, value) in [
        ("sub", json!("")),
        ("sid", json!("")),
        ("exp", json!(-1)),
        ("exp", json!("2030")),
        ("exp", json!(1e300)),
        ("aud", json!("moorline:hub")),
        ("aud", json!(vec!["x"; MAX_AUDIENCES + 1])),
    ] {
        let mut body = whole.clone();
        body[claim] = value;
        assert_eq!(judge(&forged(&header, &body, &key(1))), Err(TokenError::Malformed), "{claim}");
    }
    let mut more = whole;
    more["newer"] = json!({ "a": 1 });
    assert_eq!(judge(&forged(&header, &more, &key(1))), Ok(claims()), "a newer hub may say more");
    let text = sign(&claims(), &key(1));
    for bad in ["", ".", "..", "...", &text[1..], &format!("{text}."), &format!("{text}="), &format!(" {text}")] {
        assert_eq!(judge(bad), Err(TokenError::Malformed), "{bad:?}");
    }
    let twice = r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"x"}"#;
    let doubled = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(twice));
    assert!(matches!(judge(&doubled), Err(TokenError::Malformed)));
    assert_eq!(judge(&"a".repeat(MAX_LEN + 1)), Err(TokenError::Malformed));
    assert_eq!(judge(&format!("{}.e30.AA", URL_SAFE_NO_PAD.encode("[".repeat(5000)))), Err(TokenError::Malformed));
}

#[test]
fn keys_follow_one_another_and_nobody_notices() {
    let first = Ring::generate(NOW).unwrap();
    let old = sign(&claims(), first.current());
    let known_before = first.public(NOW);
    let second = first.rotate(NOW + 10, 100).unwrap();
    let new = sign(&claims(), second.current());
    assert!(verify(&new, &known_before, ISSUER, NOW + 10).is_ok(), "whoever has not heard of it knows the next key");
    assert!(verify(&old, &second.public(NOW + 10), ISSUER, NOW + 10).is_ok());
    assert_eq!(verify(&old, &second.public(NOW + 110), ISSUER, NOW + 110), Err(TokenError::UnknownKey));
    let again = Ring::read(&second.store()).unwrap();
    assert_eq!((again.public(NOW), again.since()), (second.public(NOW), NOW + 10));
    assert_eq!(again.current().public(), second.current().public());
    let mut ring = again;
    for n in 0..40 {
        ring = ring.rotate(NOW + 20 + n, 1000).unwrap();
    }
    let set = serde_json::to_string(&ring.public(NOW + 60)).unwrap();
    assert_eq!(serde_json::from_str::<KeySet>(&set).unwrap(), ring.public(NOW + 60));
}

#[test]
fn s66_a_set_of_keys_is_whole_or_nothing() {
    let good = serde_json::to_value(KeySet::new([key(1).public().clone(), key(2).public().clone()])).unwrap();
    assert!(serde_json::from_value::<KeySet>(good.clone()).is_ok());
    for (pointer, value) in [
        ("/keys/1/x", json!("AA")),
        ("/keys/1/x", json!("")),
        ("/keys/0/kty", json!("oct")),
        ("/keys/0/crv", json!("X25519")),
        ("/keys/0/alg", json!("HS256")),
        ("/keys", json!(null)),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert!(serde_json::from_value::<KeySet>(bad).is_err(), "{pointer}");
    }
    for bad in ["", "{}", "[]", "{\"keys\":[{}]}", "{\"keys\":["] {
        assert!(serde_json::from_str::<KeySet>(bad).is_err(), "{bad}");
    }
    assert!(Ring::read(b"").is_err() && Ring::read(b"{}").is_err());
    let whole = Ring::generate(NOW).unwrap().store();
    assert!(Ring::read(&whole[..whole.len() - 1]).is_err());
}

#[test]
fn s69_a_key_does_not_print_its_seed() {
    let shown = format!("{:?} {:?}", key(7), Ring::generate(NOW).unwrap());
    assert!(!shown.contains("7, 7") && !shown.contains("seed"), "{shown}");
}

#[test]
fn a_verifier_remembers_and_forgets_with_its_keys() {
    let verifier = Verifier::new(ISSUER, known());
    let text = sign(&claims(), &key(1));
    assert!(verifier.verify(&text, NOW).is_ok() && verifier.verify(&text, NOW).is_ok());
    assert_eq!(verifier.verify(&text, NOW + 9000).map_err(|e| e.label()), Err("expired"));
    let mut bent = text.clone();
    bent.replace_range(text.len() - 3..text.len() - 2, if text.ends_with('A') { "B" } else { "A" });
    assert!(verifier.verify(&bent, NOW).is_err());
    verifier.set_keys(KeySet::new([key(2).public().clone()]));
    assert_eq!(verifier.verify(&text, NOW).map_err(|e| e.label()), Err("unknown_key"));
}

proptest! {
    /// A token with one byte bent is no token.
    #[test]
    fn z08_a_bent_token_is_none(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.=-]") {
        let good = sign(&claims(), &key(1));
        let at = at.index(good.len());
        let mut bent = good.clone();
        bent.replace_range(at..=at, &with);
        prop_assume!(bent != good);
        prop_assert!(judge(&bent).is_err());
    }
}
