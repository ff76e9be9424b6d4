//! What a directory takes of what it is told late, or again.

use super::*;
use crate::records::tests::records;
use moorline_authz::access_token::KeySet;

/// A user as another history had them: later than the store that was put back knows of.
fn later(user: &Object<UserSpec>, groups: &[&str]) -> Object<UserSpec> {
    let mut later = user.clone();
    let revision: u64 = user.metadata.resource_version.parse().unwrap();
    later.metadata.resource_version = (revision + 5).to_string();
    later.spec.groups = groups.iter().map(|&group| group.to_owned()).collect();
    later
}

#[tokio::test]
async fn a_store_that_was_put_back_takes_away_what_it_does_not_give() {
    let dir = tempfile::tempdir().unwrap();
    let (records, registry) = (records(dir.path()).await, prometheus::Registry::new());
    let verifier = Arc::new(Verifier::new("spiffe://moorline.local", KeySet::default()));
    let metrics = Metrics::new(&registry).unwrap();
    let directory = Directory::new(records.clone(), metrics, verifier, Vec::new());
    let ann = records.create(&Object::new("ann", UserSpec::default())).await.unwrap();
    let put = |user: &Object<UserSpec>| directory.user_changed(&Change::Put(Box::new(user.clone())));
    put(&later(&ann, &["admins"]));
    assert_eq!(directory.groups_of("ann").unwrap(), ["admins"]);
    // All of the store is told anew.
    let mut told = records.watch::<UserSpec>();
    told.tell_there(|change| directory.user_changed(change)).unwrap();
    assert!(directory.groups_of("ann").unwrap().is_empty());
    // What is older and not what the store has is late: it gives nothing back.
    let mut with = ann.clone();
    with.spec.groups = vec!["users".to_owned()];
    let now = records.update(&with).await.unwrap();
    put(&now);
    put(&ann);
    assert_eq!(directory.groups_of("ann").unwrap(), ["users"]);
}
