//! Users, tokens and grants in memory, kept up to date by the store's own watches: who asks is decided without I/O.

mod bundle;
mod index;
#[cfg(test)]
mod tests;

use crate::{
    kinds::{AccessRequestSpec, ClusterGrantSpec, ClusterSpec, GroupSpec, ServiceGrantSpec, TokenSpec, UserSpec},
    lease::{Lease, Life},
    login::LOCAL,
    members::{Members, own},
    metrics::Metrics,
    records::{Change, Records},
};
use index::{Edit, Index};
use moorline_apiserver::{Object, Spec};
use moorline_authz::{
    access::{Grant, Grants, Recording, ServiceGrant},
    access_token::{self, Audience, Claims, Verifier},
    identity::Identity,
    token::{TokenHash, TokenText},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::SystemTime,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A caller that proved who they are.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated {
    /// The same one from call to call, until anything about the user changes.
    pub identity: Arc<Identity>,
    /// Id of the token: the name of its object.
    pub token: String,
    /// The clusters it is restricted to.
    pub clusters: Option<Arc<[String]>>,
    /// The verbs it is restricted to.
    pub verbs: Option<Arc<[String]>>,
    /// How long the right lasts.
    pub lease: Lease,
}

impl Authenticated {
    /// Whether they administer the hub with the token that they showed: one that is restricted does not.
    pub fn administers(&self) -> bool {
        self.identity.is_admin() && self.clusters.is_none() && self.verbs.is_none()
    }
}

/// How often a token and its user are read while they change.
const FETCHES: u32 = 5;

#[derive(Debug)]
struct TokenEntry {
    user: String,
    /// `metadata.uid` of the user that it was made for: a namesake made later is somebody else.
    user_uid: String,
    proof: Proof,
    /// Of a login that another than this hub vouched for.
    provider: Option<String>,
    /// What is open follows it.
    life: Arc<Life>,
    /// The latest that it was: tokens for clusters that were made by it may be good until then.
    latest: SystemTime,
    clusters: Option<Arc<[String]>>,
    verbs: Option<Arc<[String]>>,
}

/// What shows that a caller holds a token.
#[derive(Debug)]
enum Proof {
    /// An API key's secret.
    Key(TokenHash),
    /// A login's: access tokens that the hub signed.
    Login,
}

#[derive(Debug)]
struct UserEntry {
    uid: String,
    /// Their own, and those that providers tell.
    own: Arc<[String]>,
    in_all: InAll,
    /// Providers that stand for them.
    live: Vec<String>,
    /// Who they are at providers.
    identities: Vec<(String, String)>,
    /// Of the object: what the watch tells late is not put over what is known by then.
    revision: u64,
    gone: CancellationToken,
}

/// All groups that a user is in, and who they are with them. What is said of the groups is said of both: they change as one.
#[derive(Debug)]
struct InAll {
    /// For most users the same list as their own.
    groups: Arc<[String]>,
    /// Made for those who come.
    identity: OnceLock<Arc<Identity>>,
}

impl InAll {
    fn new(groups: Arc<[String]>) -> Self {
        Self { groups, identity: OnceLock::new() }
    }

    /// Who this is, by the name and id that they have for as long as their groups are these.
    fn identity(&self, name: &str, uid: &str) -> Arc<Identity> {
        let made = || {
            let identity = Identity::new(name, self.groups.iter().cloned());
            Arc::new(Identity { uid: uid.to_owned(), ..identity })
        };
        Arc::clone(self.identity.get_or_init(made))
    }
}

#[derive(Debug, Default)]
struct Maps {
    tokens: HashMap<String, TokenEntry>,
    users: HashMap<String, UserEntry>,
    /// What requests for access grant, by their names, and until when.
    access: BTreeMap<String, (Grant, SystemTime)>,
    members: Members,
    /// Provider and subject to user.
    owners: HashMap<(String, String), String>,
}

/// The index. Cutting open streams is its job too: each hangs on the tokens handed out here.
#[derive(Debug)]
pub(crate) struct Directory {
    maps: RwLock<Maps>,
    /// All grants.
    index: Index,
    records: Records,
    metrics: Metrics,
    verifier: Arc<Verifier>,
    /// Names of the login providers that are configured.
    providers: Vec<String>,
    ended: Mutex<bundle::Ended>,
}

impl Directory {
    /// Knows callers by API keys, and by access tokens that `verifier` takes.
    pub fn new(records: Records, metrics: Metrics, verifier: Arc<Verifier>, providers: Vec<String>) -> Self {
        Self {
            maps: RwLock::default(),
            index: Index::new(Recording::Never),
            records,
            metrics,
            verifier,
            providers,
            ended: Mutex::default(),
        }
    }

    /// With what is recorded of sessions where neither cluster nor grants say anything.
    pub fn recording(self, usual: Recording) -> Self {
        Self { index: Index::new(usual), ..self }
    }

    /// A change of a cluster.
    pub fn cluster_changed(&self, change: &Change<ClusterSpec>) {
        let (name, said) = match change {
            Change::Put(cluster) => (&cluster.metadata.name, cluster.spec.record),
            Change::Gone(name) => (name, None),
        };
        self.index.edit(Edit::Recorded(name.clone(), said));
    }

    /// Who is this at that provider, as far as is known here.
    pub fn owner_of(&self, provider: &str, subject: &str) -> Option<String> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.owners.get(&(provider.to_owned(), subject.to_owned())).cloned()
    }

    /// A change of a request for access.
    pub fn access_changed(&self, change: &Change<AccessRequestSpec>) {
        let (name, granted) = match change {
            Change::Put(request) => (&request.metadata.name, crate::access::granted(request)),
            Change::Gone(name) => (name, None),
        };
        let granted = granted.filter(|(_, ends)| *ends > SystemTime::now());
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let grant = granted.as_ref().map(|(grant, _)| grant.clone());
        let changed = match granted {
            Some(granted) => maps.access.insert(name.clone(), granted.clone()) != Some(granted),
            None => maps.access.remove(name).is_some(),
        };
        if changed {
            self.index.edit(Edit::Access(name.clone(), grant));
        }
    }

    /// Ends what has run its time; the names of those requests.
    pub fn end_access(&self, now: SystemTime) -> Vec<String> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let over = maps.access.iter().filter(|(_, (_, ends))| *ends <= now);
        let names: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        for name in &names {
            maps.access.remove(name);
            self.index.edit(Edit::Access(name.clone(), None));
        }
        names
    }

    /// Waits until every change of rights that was told before counts: changes are taken in at once, and until then what was
    /// before them is answered.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn settled(&self) {
        self.index.settled().await;
    }

    /// What was just written, before the watch tells it.
    pub fn learn(&self, user: &Object<UserSpec>) {
        self.put_user(user);
    }

    /// All groups of a user as they are now.
    pub fn groups_of(&self, user: &str) -> Option<Vec<String>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.users.get(user).filter(|user| !user.gone.is_cancelled()).map(|user| user.in_all.groups.to_vec())
    }

    /// A change of a group.
    pub fn group_changed(&self, change: &Change<GroupSpec>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let Maps { users, members, .. } = &mut *maps;
        match change {
            Change::Put(group) => members.put(&group.metadata.name, &group.spec),
            Change::Gone(name) => members.remove(name),
        }
        for (name, user) in users {
            let groups = members.of(name, &user.own);
            if *user.in_all.groups == *groups {
                continue;
            }
            if user.in_all.groups.iter().any(|group| !groups.contains(group)) && !user.gone.is_cancelled() {
                self.cut(&user.gone);
                user.gone = CancellationToken::new();
            }
            user.in_all = InAll::new(groups.into());
        }
    }

    /// All grants.
    pub fn grants(&self) -> Arc<Grants> {
        self.index.grants()
    }

    /// All grants, and every change of them.
    pub fn watch_grants(&self) -> watch::Receiver<Arc<Grants>> {
        self.index.watch()
    }

    /// Who presents this token; `None` whatever the reason.
    pub fn authenticate(&self, text: &str) -> Option<Authenticated> {
        let shown = if access_token::looks_like_one(text) {
            let claims = self.verifier.verify(text, crate::signing::now()).inspect_err(|error| {
                self.metrics.bad_tokens.with_label_values(&[error.label()]).inc();
                tracing::debug!("an access token was refused: {error}");
            });
            // One for a service or its backend opens nothing of the hub's.
            Shown::Access(claims.ok().filter(|c| c.is_for(&Audience::Hub) || c.clusters().next().is_some())?)
        } else {
            Shown::Key(TokenText::parse(text).ok().filter(|token| token.kind == moorline_authz::token::Kind::Api)?)
        };
        self.known(&shown)
    }

    /// Who presents a token that is for `audience` alone; `None` whatever the reason.
    pub fn authenticate_for(&self, text: &str, audience: &str) -> Option<Authenticated> {
        let claims = self.verifier.verify(text, crate::signing::now()).ok()?;
        let [only] = &claims.aud[..] else { return None };
        if only != audience {
            return None;
        }
        self.known(&Shown::Place(claims))
    }

    fn known(&self, shown: &Shown) -> Option<Authenticated> {
        match self.look_up(shown) {
            Found::Yes(who) => Some(*who),
            Found::No => None,
            // Made a moment ago, and the watch has not told us yet.
            Found::Unknown => {
                self.fetch(shown.id())?;
                match self.look_up(shown) {
                    Found::Yes(who) => Some(*who),
                    _ => None,
                }
            }
        }
    }

    /// Takes a token and its user from the store. What the watch tells meanwhile is newer than what was read here, so
    /// both are read again until nothing has changed: a right that was taken away is not put back.
    fn fetch(&self, id: &str) -> Option<()> {
        for _ in 0..FETCHES {
            let token = self.records.get::<TokenSpec>(id).ok()??;
            let user = self.records.get::<UserSpec>(&token.spec.user).ok()??;
            self.put_user(&user);
            self.put_token(&token);
            let (now, its_user) = (self.records.get::<TokenSpec>(id), self.records.get::<UserSpec>(&token.spec.user));
            match (now, its_user) {
                (Ok(Some(now)), Ok(Some(its_user)))
                    if now.metadata.resource_version == token.metadata.resource_version
                        && its_user.metadata.resource_version == user.metadata.resource_version =>
                {
                    return Some(());
                }
                (Ok(Some(_)), Ok(Some(_))) => {}
                _ => break,
            }
        }
        self.revoke(id);
        None
    }

    fn look_up(&self, shown: &Shown) -> Found {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = maps.tokens.get(shown.id()) else { return Found::Unknown };
        if !shown.proves(entry) || *entry.life.expires.borrow() <= SystemTime::now() || entry.life.gone.is_cancelled() {
            return Found::No;
        }
        let Some(user) = maps.users.get(&entry.user) else { return Found::Unknown };
        if user.gone.is_cancelled() || user.uid != entry.user_uid {
            return Found::No;
        }
        // A login lasts no longer than its provider stands for its user.
        if entry.provider.as_ref().is_some_and(|provider| !user.live.contains(provider)) {
            return Found::No;
        }
        let identity = user.in_all.identity(&entry.user, &user.uid);
        let lease = Lease { token: Arc::clone(&entry.life), user: user.gone.clone() };
        let clusters = shown.clusters(entry);
        let verbs = entry.verbs.clone();
        Found::Yes(Box::new(Authenticated { identity, token: shown.id().to_owned(), clusters, verbs, lease }))
    }

    /// Takes in many changes; the index is made once, after them.
    pub fn at_once<T>(&self, changes: impl FnOnce() -> T) -> T {
        self.index.at_once(changes)
    }

    /// A change of a user.
    pub fn user_changed(&self, change: &Change<UserSpec>) {
        match change {
            Change::Put(user) => self.put_user(user),
            Change::Gone(name) => {
                let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(user) = maps.users.remove(name) {
                    self.cut(&user.gone);
                    user.identities.iter().for_each(|identity| drop(maps.owners.remove(identity)));
                }
            }
        }
    }

    /// A change of a token.
    pub fn token_changed(&self, change: &Change<TokenSpec>) {
        match change {
            Change::Put(token) => self.put_token(token),
            Change::Gone(name) => self.revoke(name),
        }
    }

    /// The token is gone: nobody gets in with it from now on, and what is open is cut.
    pub fn revoke(&self, id: &str) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = maps.tokens.remove(id) {
            self.cut(&token.life.gone);
            self.ended.lock().unwrap_or_else(PoisonError::into_inner).note(id, token.latest);
        }
    }

    /// A change of a grant.
    pub fn grant_changed(&self, change: &Change<ClusterGrantSpec>) {
        match change {
            Change::Put(grant) => self.put_grant(grant),
            Change::Gone(name) => self.index.edit(Edit::Grant(name.clone(), None)),
        }
    }

    /// A change of a grant for services.
    pub fn service_grant_changed(&self, change: &Change<ServiceGrantSpec>) {
        match change {
            Change::Put(grant) => self.put_service_grant(grant),
            Change::Gone(name) => self.index.edit(Edit::Service(name.clone(), None)),
        }
    }

    fn put_service_grant(&self, grant: &Object<ServiceGrantSpec>) {
        let spec = grant.spec.clone();
        let made = ServiceGrant {
            users: spec.users,
            groups: spec.groups,
            clusters: spec.clusters,
            namespaces: spec.namespaces,
            services: spec.services,
            pods: spec.pods,
            // What is no rule was refused when it was written; one that is read from an older store grants nothing.
            hosts: spec.hosts.iter().filter_map(|host| host.parse().ok()).collect(),
            labels: spec.labels.into_iter().collect(),
        };
        self.index.edit(Edit::Service(grant.metadata.name.clone(), Some(made)));
    }

    fn cut(&self, gone: &CancellationToken) {
        gone.cancel();
        self.metrics.streams_revoked.inc();
    }

    /// Whether the store has it just so.
    fn stands(&self, user: &Object<UserSpec>) -> bool {
        let there = self.records.get::<UserSpec>(&user.metadata.name);
        there.is_ok_and(|there| {
            there.is_some_and(|there| there.metadata.resource_version == user.metadata.resource_version)
        })
    }

    fn put_user(&self, user: &Object<UserSpec>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let name = user.metadata.name.clone();
        let uid = user.metadata.uid.clone();
        let revision = user.metadata.resource_version.parse().unwrap_or_default();
        // Told late, unless the store goes back to it: one that was put back from a backup, whose rights are those that count.
        let late = maps.users.get(&name).is_some_and(|known| known.uid == uid && revision < known.revision);
        if late && !self.stands(user) {
            return;
        }
        let (live, own) = own(&user.spec, user.status.as_ref(), &self.providers);
        let groups = maps.members.of(&name, &own);
        let known = maps.users.get(&name);
        let lost = |before: &[String], now: &[String]| before.iter().any(|one| !now.contains(one));
        let less =
            known.is_some_and(|old| old.uid != uid || lost(&old.in_all.groups, &groups) || lost(&old.live, &live));
        let mut gone = match known {
            Some(old) if !less && !old.gone.is_cancelled() => old.gone.clone(),
            Some(old) => {
                self.cut(&old.gone); // what was opened with a right that is gone
                CancellationToken::new()
            }
            None => CancellationToken::new(),
        };
        if user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
            self.cut(&gone);
        } else if gone.is_cancelled() {
            gone = CancellationToken::new();
        }
        let identities: Vec<_> = user.spec.identities.iter().map(|i| (i.provider.clone(), i.subject.clone())).collect();
        let before = known.map(|old| old.identities.clone()).unwrap_or_default();
        before.iter().for_each(|identity| drop(maps.owners.remove(identity)));
        for identity in &identities {
            maps.owners.insert(identity.clone(), name.clone());
        }
        let same = groups == own;
        let own: Arc<[String]> = own.into();
        let groups = if same { Arc::clone(&own) } else { groups.into() };
        maps.users.insert(name, UserEntry { uid, own, in_all: InAll::new(groups), live, identities, revision, gone });
    }

    fn put_token(&self, token: &Object<TokenSpec>) {
        let id = &token.metadata.name;
        let expires = token.spec.expires.parse::<jiff::Timestamp>().map(SystemTime::from);
        let proof = match token.spec.provider {
            Some(_) => Some(Proof::Login),
            None => self.records.token_hash::<TokenSpec>(id).map(Proof::Key),
        };
        let (Some(proof), Ok(expires)) = (proof, expires) else {
            return self.revoke(id);
        };
        let verbs: Option<Arc<[String]>> = token.spec.verbs.clone().map(Into::into);
        let clusters: Option<Arc<[String]>> = token.spec.clusters.clone().map(Into::into);
        let user = token.spec.user.clone();
        let owner = token.metadata.owner_references.iter().find(|owner| owner.kind == UserSpec::KIND);
        let user_uid = owner.map(|owner| owner.uid.clone()).unwrap_or_default();
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let (life, latest) = match maps.tokens.remove(id) {
            Some(old) => {
                let latest = expires.max(old.latest);
                if expires <= SystemTime::now() {
                    // It was ended by its time: clusters' own endpoints are to know.
                    self.ended.lock().unwrap_or_else(PoisonError::into_inner).note(id, latest);
                }
                old.life.expires.send_replace(expires);
                let kept = old.user == user && old.clusters == clusters && old.verbs == verbs;
                if !kept {
                    self.cut(&old.life.gone);
                }
                (if kept { old.life } else { Life::until(expires) }, latest)
            }
            None => (Life::until(expires), expires),
        };
        let provider = token.spec.provider.clone().filter(|provider| provider != LOCAL);
        let entry = TokenEntry { user, user_uid, proof, provider, life, latest, clusters, verbs };
        maps.tokens.insert(id.clone(), entry);
    }

    fn put_grant(&self, grant: &Object<ClusterGrantSpec>) {
        let spec = grant.spec.clone();
        let name = grant.metadata.name.clone();
        let made = Grant {
            name,
            users: spec.users,
            groups: spec.groups,
            clusters: spec.clusters,
            as_groups: spec.as_groups,
            record: spec.record,
        };
        self.index.edit(Edit::Grant(grant.metadata.name.clone(), Some(made)));
    }
}

/// What a caller presented.
enum Shown {
    Key(TokenText),
    /// Verified: what it says is what the hub signed. Whether its login lives is seen here.
    Access(Arc<Claims>),
    /// The same, for one place alone, which has been compared.
    Place(Arc<Claims>),
}

impl Shown {
    fn id(&self) -> &str {
        match self {
            Self::Key(token) => &token.id,
            Self::Access(claims) | Self::Place(claims) => &claims.sid,
        }
    }

    fn proves(&self, entry: &TokenEntry) -> bool {
        match (self, &entry.proof) {
            (Self::Key(token), Proof::Key(hash)) => hash.verify(token),
            (Self::Key(_), Proof::Login) => false,
            // Those for clusters alone are made from keys too.
            (Self::Access(claims) | Self::Place(claims), _) => claims.sub == entry.user && claims.uid == entry.user_uid,
        }
    }

    /// What it is restricted to: a token that is not for the hub is for its clusters alone.
    fn clusters(&self, entry: &TokenEntry) -> Option<Arc<[String]>> {
        match self {
            Self::Access(claims) if !claims.is_for(&Audience::Hub) => {
                let within = |name: &&str| entry.clusters.as_ref().is_none_or(|only| only.iter().any(|c| c == name));
                Some(claims.clusters().filter(within).map(str::to_owned).collect())
            }
            _ => entry.clusters.clone(),
        }
    }
}

enum Found {
    Yes(Box<Authenticated>),
    No,
    Unknown,
}
