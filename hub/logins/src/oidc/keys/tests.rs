//! S10: identity tokens as those forge them who have no key of the provider's, or have one for something else.

use super::*;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::json;

const ISSUER: &str = "https://sso.example";
const CLIENT: &str = "moorline";

/// A key pair of P-256.
struct Pair(KeyPair);

impl Pair {
    fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    /// As a provider publishes it.
    fn jwk(&self, kid: &str, purpose: &str) -> Value {
        let point = self.0.public_key_raw();
        let (x, y) = point.strip_prefix(&[4]).unwrap().split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "kid": kid, "use": purpose, "x": BASE64.encode(x), "y": BASE64.encode(y) })
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &EncodingKey::from_ec_der(&self.0.serialize_der())).unwrap()
    }
}

fn header(kid: Option<&str>) -> Header {
    Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Claims that are good, with these in their place; `null` takes one away.
fn claims(other: Value) -> Value {
    let mut all = json!({ "iss": ISSUER, "aud": CLIENT, "sub": "u1", "iat": now(), "exp": now() + 300 });
    let claims = all.as_object_mut().unwrap();
    for (name, value) in other.as_object().unwrap().clone() {
        claims.insert(name, value);
    }
    claims.retain(|_, value| !value.is_null());
    all
}

/// A provider with `keys` and nothing else: nothing is fetched.
struct Provider(Keys);

impl Provider {
    fn of(keys: &[Value]) -> Self {
        let keys: JwkSet = serde_json::from_value(json!({ "keys": keys })).unwrap();
        let at = Instant::now();
        Self(Keys(Mutex::new(Kept { keys: Some((at, Arc::new(keys))), missed: Some(at) })))
    }

    async fn verify(&self, token: &str) -> Result<Map<String, Value>, LoginError> {
        let http = HttpClient::new(None, true).unwrap();
        self.0.verify(&http, "http://127.0.0.1:1/keys", token, ISSUER, CLIENT).await
    }
}

fn part(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

#[tokio::test]
async fn s10_what_the_provider_signed_for_this_client_is_taken_within_its_time() {
    let (pair, other) = (Pair::new(), Pair::new());
    let provider = Provider::of(&[other.jwk("k0", "sig"), pair.jwk("k1", "sig")]);
    let leeway = i64::try_from(limits::LEEWAY.as_secs()).unwrap();
    assert_eq!(leeway, 60);
    // Ten seconds within the edge, for the test itself takes time.
    for good in [
        json!({}),
        json!({ "exp": now() - leeway + 10 }),
        json!({ "nbf": now() + leeway - 10 }),
        json!({ "azp": CLIENT }),
        json!({ "aud": [CLIENT] }),
        json!({ "aud": ["other", CLIENT], "azp": CLIENT }),
    ] {
        let token = pair.sign(&header(Some("k1")), &claims(good.clone()));
        let got = provider.verify(&token).await.unwrap_or_else(|e| panic!("{good}: {e}"));
        assert_eq!(got["sub"], "u1");
    }
    // A token that names no key is tried with all.
    assert!(provider.verify(&pair.sign(&header(None), &claims(json!({})))).await.is_ok());
}

#[tokio::test]
async fn s10_claims_that_are_not_for_here_and_now_are_refused() {
    let pair = Pair::new();
    let provider = Provider::of(&[pair.jwk("k1", "sig")]);
    for bad in [
        json!({ "aud": "other" }),
        json!({ "aud": ["other", "another"], "azp": CLIENT }),
        json!({ "aud": [] }),
        json!({ "aud": null }),
        json!({ "aud": "moorline2" }),
        json!({ "aud": "MOORLINE" }),
        json!({ "iss": "https://evil.example" }),
        json!({ "iss": "https://sso.example/" }),
        json!({ "iss": "https://sso.example.evil.example" }),
        json!({ "iss": null }),
        json!({ "exp": null }),
        json!({ "exp": "2999-01-01T00:00:00Z" }),
        json!({ "exp": now() - 61 }),
        json!({ "exp": 0 }),
        json!({ "exp": -1 }),
        json!({ "nbf": now() + 300 }),
        json!({ "sub": null }),
        json!({ "azp": "other" }),
        json!({ "aud": ["other", CLIENT] }),
        json!({ "aud": ["other", CLIENT], "azp": "other" }),
    ] {
        let token = pair.sign(&header(Some("k1")), &claims(bad.clone()));
        let got = provider.verify(&token).await;
        assert!(matches!(got, Err(LoginError::Wrong { .. })), "{bad}: {got:?}");
    }
}

#[tokio::test]
async fn s10_signatures_that_are_not_the_providers_are_refused() {
    let (pair, stranger, sealer) = (Pair::new(), Pair::new(), Pair::new());
    let provider = Provider::of(&[pair.jwk("k1", "sig"), sealer.jwk("k2", "enc")]);
    let good = pair.sign(&header(Some("k1")), &claims(json!({})));
    assert!(provider.verify(&good).await.is_ok());
    let pieces: Vec<&str> = good.split('.').collect();
    let [head, body, signature] = pieces[..] else { panic!("{good}") };
    let unsigned = |alg: &str| part(&json!({ "alg": alg, "typ": "JWT", "kid": "k1" }));
    // The secret of a shared-secret signature would be what everybody may read.
    let by_secret = |alg: Algorithm, secret: &[u8]| {
        let header = Header { kid: Some("k1".to_owned()), ..Header::new(alg) };
        encode(&header, &claims(json!({})), &EncodingKey::from_secret(secret)).unwrap()
    };
    let point = pair.0.public_key_raw();
    let other = part(&claims(json!({ "sub": "admin" })));
    let mut bent = BASE64.decode(signature).unwrap();
    bent[0] ^= 1;
    for (what, token) in [
        ("alg none", format!("{}.{body}.", unsigned("none"))),
        ("alg None", format!("{}.{body}.", unsigned("None"))),
        ("alg none with the signature", format!("{}.{body}.{signature}", unsigned("none"))),
        ("no alg", format!("{}.{body}.{signature}", part(&json!({ "kid": "k1" })))),
        ("HS256 by the public point", by_secret(Algorithm::HS256, point)),
        ("HS384 by the public point", by_secret(Algorithm::HS384, point)),
        ("HS512 by the public point", by_secret(Algorithm::HS512, point)),
        ("HS256 by the public PEM", by_secret(Algorithm::HS256, pair.0.public_key_pem().as_bytes())),
        ("HS256 by nothing", by_secret(Algorithm::HS256, b"")),
        ("RS256 over a key of P-256", format!("{}.{body}.{signature}", unsigned("RS256"))),
        ("ES384 over a key of P-256", format!("{}.{body}.{signature}", unsigned("ES384"))),
        ("EdDSA over a key of P-256", format!("{}.{body}.{signature}", unsigned("EdDSA"))),
        ("somebody else's key", stranger.sign(&header(Some("k1")), &claims(json!({})))),
        ("somebody else's key, unnamed", stranger.sign(&header(None), &claims(json!({})))),
        ("a key that is not known", stranger.sign(&header(Some("k9")), &claims(json!({})))),
        ("the right key by another name", pair.sign(&header(Some("k9")), &claims(json!({})))),
        ("a key for sealing", sealer.sign(&header(Some("k2")), &claims(json!({})))),
        ("other claims", format!("{head}.{other}.{signature}")),
        ("a bent signature", format!("{head}.{body}.{}", BASE64.encode(&bent))),
        ("half a signature", format!("{head}.{body}.{}", &signature[..signature.len() / 2])),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{good}.{signature}")),
        ("nothing", String::new()),
        ("no JSON", format!("{}.{}.{signature}", BASE64.encode("a"), BASE64.encode("b"))),
        ("too much", format!("{head}.{}.{signature}", "A".repeat(TOKEN))),
    ] {
        let got = provider.verify(&token).await;
        assert!(matches!(got, Err(LoginError::Wrong { .. })), "{what}: {got:?}");
    }
    // A key that a token brings along is nobody's.
    let brings = json!({ "alg": "ES256", "jwk": stranger.jwk("k1", "sig"), "jku": "http://127.0.0.1:1/", "kid": "k1" });
    let signed = stranger.sign(&header(Some("k1")), &claims(json!({})));
    let forged = format!("{}.{}", part(&brings), signed.split_once('.').unwrap().1);
    assert!(matches!(provider.verify(&forged).await, Err(LoginError::Wrong { .. })));
    // A provider that publishes no key vouches for nobody.
    assert!(matches!(Provider::of(&[]).verify(&good).await, Err(LoginError::Wrong { .. })));
}
