//! What was given before is given again for as long as it is still right, and no longer.

use super::{
    Gate,
    speed::{call, cluster_of, gate, pass, signed},
};
use crate::{
    directory::Authenticated,
    kinds::{ClusterGrantSpec, GroupSpec},
    records::Change,
};
use http::{HeaderValue, Request};
use moorline_apiserver::Object;
use moorline_authz::{
    access::{Grants, Permit},
    access_token::SigningKey,
    identity::{ADMINS, Identity},
};
use moorline_proxy::path::ClusterPath;
use std::{cell::Cell, net::SocketAddr, sync::Arc};

struct Caller {
    gate: Gate,
    call: Request<()>,
    _dir: tempfile::TempDir,
}

impl Caller {
    /// User 0, who reaches a cluster by a grant to group 0.
    async fn new() -> Self {
        let (dir, key) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
        let gate = gate(dir.path(), &key).await;
        Self { gate, call: call(0, &signed(&key, 0, "one".to_owned())), _dir: dir }
    }

    fn pass(&self) -> Option<Permit> {
        pass(&self.gate, &self.call, SocketAddr::from(([192, 0, 2, 1], 40_000)))
    }

    fn groups(&self) -> Vec<String> {
        self.pass().unwrap().principal().groups.clone()
    }

    fn who(&self) -> Authenticated {
        self.gate.authenticate(&self.call).unwrap()
    }

    async fn grant(&self, as_group: Option<&str>) {
        let spec = |group: &str| ClusterGrantSpec {
            groups: vec!["corp:group-0".to_owned()],
            clusters: vec![cluster_of(0)],
            as_groups: vec![group.to_owned()],
            ..ClusterGrantSpec::default()
        };
        let gone = || Change::Gone("grant-0".to_owned());
        let change = as_group.map_or_else(gone, |group| Change::Put(Box::new(Object::new("grant-0", spec(group)))));
        self.gate.directory.grant_changed(&change);
        self.gate.directory.settled().await;
    }
}

#[tokio::test]
async fn a_permit_that_was_given_before_is_worth_nothing_once_the_grant_is_another_or_gone() {
    let caller = Caller::new().await;
    let first = caller.pass().unwrap();
    let again = caller.pass().unwrap();
    assert!(first == again && Arc::ptr_eq(first.principal(), again.principal()), "it is remembered");
    assert_eq!(caller.groups().last().unwrap(), "viewers");
    caller.grant(Some("editors")).await;
    assert_eq!(caller.groups().last().unwrap(), "editors");
    caller.grant(None).await;
    assert!(caller.pass().is_none());
    caller.grant(Some("viewers")).await;
    assert!(caller.pass().is_some());
}

#[tokio::test]
async fn a_permit_that_was_given_before_is_worth_nothing_once_its_user_is_another() {
    let caller = Caller::new().await;
    assert!(caller.pass().is_some());
    // More groups by one of the hub's, then fewer.
    let ops = || Object::new("ops", GroupSpec { users: vec!["user-0".to_owned()], ..GroupSpec::default() });
    caller.gate.directory.group_changed(&Change::Put(Box::new(ops())));
    assert!(caller.groups().contains(&"ops".to_owned()));
    caller.gate.directory.group_changed(&Change::Gone("ops".to_owned()));
    assert!(!caller.groups().contains(&"ops".to_owned()));
    caller.gate.directory.user_changed(&Change::Gone("user-0".to_owned()));
    assert!(caller.pass().is_none());
}

#[tokio::test]
async fn a_token_that_is_gone_is_not_known_however_often_it_was() {
    let caller = Caller::new().await;
    assert!((0..3).all(|_| caller.pass().is_some()));
    caller.gate.directory.revoke("login-0");
    assert!(caller.pass().is_none());
}

#[tokio::test]
async fn what_a_call_asks_besides_is_neither_remembered_nor_passed_over() {
    let mut caller = Caller::new().await;
    caller.call.headers_mut().insert("impersonate-user", HeaderValue::from_static("bob"));
    assert_eq!(caller.pass().unwrap().act_as().unwrap().0.user, "bob");
    caller.call.headers_mut().remove("impersonate-user");
    assert!(caller.pass().unwrap().act_as().is_none());
    caller.call.headers_mut().insert("impersonate-user", HeaderValue::from_static("moorline:plugin:rbac"));
    assert!(caller.pass().is_none());
    caller.call.headers_mut().remove("impersonate-user");
    // The same person, with a token for another cluster, or for another verb.
    let (cluster, grants) = (cluster_of(0), caller.gate.directory.grants());
    let path = ClusterPath { cluster: &cluster, rest: "/api/v1/pods" };
    let judge = |who: &Authenticated| caller.gate.judge(&caller.call, &path, who, &grants).map_err(|no| no.reason);
    assert!(judge(&caller.who()).is_ok());
    let elsewhere = Authenticated { clusters: Some(["elsewhere".to_owned()].into()), ..caller.who() };
    assert_eq!(judge(&elsewhere).unwrap_err(), "not_granted");
    let writes = Authenticated { verbs: Some(["create".to_owned()].into()), ..caller.who() };
    assert_eq!(judge(&writes).unwrap_err(), "token_verb");
}

#[tokio::test]
async fn one_is_not_known_by_the_name_of_another_and_no_more_are_remembered_than_may_be() {
    let caller = Caller::new().await;
    let (cluster, grants) = (cluster_of(0), caller.gate.directory.grants());
    let exists = Cell::new(false);
    let ask = |who: &Authenticated, grants: &Arc<Grants>| {
        caller.gate.permits.authorize(who, grants, &cluster, None, || exists.get()).is_ok()
    };
    let all = Authenticated { identity: Arc::new(Identity::new("root", [ADMINS])), ..caller.who() };
    for there in [false, true] {
        exists.set(there);
        assert!(ask(&all, &grants));
        assert_eq!(caller.gate.permits.remembered(), usize::from(there), "of names of no cluster there is no end");
    }
    assert!(ask(&caller.who(), &grants) && !ask(&caller.who(), &Arc::default()));
    let namesake = Authenticated { identity: Arc::new(Identity::new("user-0", ["none"])), ..caller.who() };
    assert!(ask(&caller.who(), &grants) && !ask(&namesake, &grants));
    let most = super::permits::REMEMBERED;
    let another = |_| {
        let identity = Arc::new((*caller.who().identity).clone());
        ask(&Authenticated { identity, ..caller.who() }, &grants)
    };
    assert!((0..most + 5).all(another));
    assert!((1..=most).contains(&caller.gate.permits.remembered()));
}
