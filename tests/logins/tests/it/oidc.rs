//! oidc-provider.

use moorline_logins::{DevicePoll, LoginError, LoginProvider, Proof, Round, Still};
use moorline_logins_tests::{
    browser::{Browser, field},
    oidc::Oidc,
    provider,
};

const BACK: &str = "http://127.0.0.1:1/back";

/// One way through the browser; what came back.
async fn through(sso: &dyn LoginProvider, account: &str, oidc: &Oidc) -> (Round, String) {
    let round = Round::new(BACK);
    let url = sso.browser(&round).await.unwrap();
    let (back, page) = Browser::of(account).follow(&url, BACK);
    let code = field(&back, "code").unwrap_or_else(|| panic!("{back} {} {}\n{}", page.code, page.body, oidc.said()));
    assert_eq!(field(&back, "state").as_deref(), Some(round.state.as_str()));
    (round, code)
}

fn wrong(result: Result<Proof, LoginError>) {
    assert!(matches!(result, Err(LoginError::Wrong { .. })), "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_comes_back_with_a_code_that_is_good_once_and_for_us() {
    let mut oidc = Oidc::start(BACK);
    let sso = provider(&oidc.yaml());
    let (round, code) = through(&*sso, "alice", &oidc).await;
    let alice = sso.returned(&round, &code).await.unwrap();
    assert_eq!((alice.subject.as_str(), alice.username.as_str()), ("id-alice", "alice"));
    assert_eq!(alice.groups, ["dev", "ops"]);
    wrong(sso.returned(&round, &code).await);

    // Another login's verifier, nonce or redirect: the provider or we refuse.
    let (round, code) = through(&*sso, "alice", &oidc).await;
    let other = Round { state: round.state.clone(), nonce: round.nonce.clone(), ..Round::new(BACK) };
    wrong(sso.returned(&other, &code).await);
    let (round, code) = through(&*sso, "alice", &oidc).await;
    let other = Round { nonce: "another".to_owned(), ..round };
    wrong(sso.returned(&other, &code).await);

    // Renewed later without them; the old renewal is not good twice.
    let (round, code) = through(&*sso, "alice", &oidc).await;
    let alice = sso.returned(&round, &code).await.unwrap();
    let renewal = alice.renewal.clone().expect("a refresh token");
    let Ok(Still::There(again)) = sso.still("id-alice", Some(&renewal)).await else { panic!() };
    assert_eq!((again.groups.clone(), again.renewal == alice.renewal), (alice.groups, false));
    assert!(sso.still("id-bob", again.renewal.as_ref()).await.is_err(), "a renewal is of one person");
    assert!(matches!(sso.still("id-alice", Some(&renewal)).await, Ok(Still::Gone { .. })));

    // New keys: fetched when a token names one that is not known, without a restart of ours.
    oidc.up("second", true);
    let (round, code) = through(&*sso, "bob", &oidc).await;
    let bob = sso.returned(&round, &code).await.unwrap();
    assert_eq!((bob.username.as_str(), bob.groups.len()), ("bob", 0), "what the token lacks, userinfo has");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_waits_while_somebody_types_its_code() {
    let oidc = Oidc::start(BACK);
    let sso = provider(&oidc.yaml());
    let start = sso.device().await.unwrap();
    assert_eq!(sso.poll(&start.device_code).await, Ok(DevicePoll::Pending));
    let page = Browser::of("alice").confirm_device(&start.verification_uri_complete.unwrap());
    assert_eq!(page.code, 200, "{}", page.body);
    let done = sso.poll(&start.device_code).await;
    assert!(matches!(&done, Ok(DevicePoll::Done(proof)) if proof.username == "alice"), "{done:?}");
    let again = sso.poll(&start.device_code).await;
    assert!(matches!(again, Err(LoginError::Wrong { .. })), "a code is good once: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_token_for_another_client_or_from_another_issuer_opens_nothing() {
    let oidc = Oidc::start(BACK);
    // A code of the other client, redeemed as ourselves.
    let other = provider(&oidc.yaml_of("other", "other"));
    let (round, code) = through(&*other, "alice", &oidc).await;
    wrong(provider(&oidc.yaml()).returned(&round, &code).await);
    // The wrong secret is our trouble, not the user's.
    let (round, code) = through(&*provider(&oidc.yaml()), "alice", &oidc).await;
    let refused = provider(&oidc.yaml_of("moorline", "other")).returned(&round, &code).await;
    assert!(matches!(refused, Err(LoginError::Unavailable { .. })), "{refused:?}");
    // A provider that calls itself something else.
    let yaml = oidc.yaml().replace("127.0.0.1", "localhost");
    let refused = provider(&yaml).browser(&Round::new(BACK)).await;
    assert!(matches!(&refused, Err(LoginError::Unavailable { why }) if why.contains("speaks for")), "{refused:?}");
}
