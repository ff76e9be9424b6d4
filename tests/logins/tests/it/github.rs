//! The stand-in for GitHub.

use moorline_logins::{DevicePoll, LoginError, Round, Still};
use moorline_logins_tests::{
    browser::{Browser, field},
    github::GitHub,
    provider,
};

const BACK: &str = "http://127.0.0.1:1/back";

#[tokio::test(flavor = "multi_thread")]
async fn members_of_named_organisations_come_in_with_their_teams() {
    let github = GitHub::start().await;
    let gh = provider(&github.yaml());
    let round = Round::new(BACK);
    let url = gh.browser(&round).await.unwrap();
    let (back, _) = tokio::task::spawn_blocking(move || Browser::default().follow(&url, BACK)).await.unwrap();
    let code = field(&back, "code").unwrap();
    let octocat = gh.returned(&round, &code).await.unwrap();
    assert_eq!((octocat.subject.as_str(), octocat.username.as_str()), ("583231", "octocat"));
    assert_eq!(octocat.groups, ["Acme", "Acme/platform"], "other organisations are nobody's business here");
    assert!(matches!(gh.returned(&round, &code).await, Err(LoginError::Wrong { .. })), "a code is good once");
    let renewal = octocat.renewal.clone();
    assert_eq!(gh.still("583231", renewal.as_ref()).await, Ok(Still::There(Box::new(octocat))));

    let start = gh.device().await.unwrap();
    assert_eq!(start.user_code, "WDJB-MJHT");
    assert_eq!(gh.poll(&start.device_code).await, Ok(DevicePoll::Pending));
    assert_eq!(gh.poll(&start.device_code).await, Ok(DevicePoll::SlowDown));
    assert!(matches!(gh.poll(&start.device_code).await, Ok(DevicePoll::Done(_))));

    github.leave_all();
    assert!(matches!(gh.poll(&start.device_code).await, Err(LoginError::NotAllowed { .. })));
    github.revoke();
    assert!(matches!(gh.still("583231", renewal.as_ref()).await, Ok(Still::Gone { .. })));
}
