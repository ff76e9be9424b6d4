//! LDAP and Active Directory: find the user, bind as them, follow their groups.

mod groups;
mod state;

use crate::{
    LoginError, LoginProvider, Principal, Proof, Secret, Still, Way,
    config::{LdapConfig, secret},
    limits, tidy,
    trust::tls,
};
use futures_util::{FutureExt, future::BoxFuture};
use ldap3::{
    Ldap as Handle, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions, ldap_escape,
};
use rustls::ClientConfig;
use std::{collections::BTreeSet, future::Future, sync::Arc};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// LDAP's result codes (RFC 4511 appendix A).
const NO_SUCH_OBJECT: u32 = 32;
const INVALID_CREDENTIALS: u32 = 49;
const SIZE_LIMIT: u32 = 4;
/// Also for asking for more than the directory ever gives.
const ADMIN_LIMIT: u32 = 11;

/// A directory.
pub(crate) struct Ldap {
    name: String,
    active_directory: bool,
    url: Url,
    start_tls: bool,
    tls: Arc<ClientConfig>,
    /// Who searches: DN and password.
    searcher: Option<(String, Secret)>,
    user_base: String,
    user_filter: String,
    user_attribute: String,
    id_attribute: String,
    group_base: Option<String>,
    group_filter: String,
    group_attribute: String,
    slots: Semaphore,
}

/// A user's entry.
struct Found {
    dn: String,
    subject: String,
    username: String,
    display_name: Option<String>,
    trouble: Option<&'static str>,
}

/// A connection that ends with it.
struct Connection {
    handle: Handle,
    _driver: AbortOnDropHandle<()>,
}

impl Ldap {
    pub fn new(name: String, config: &LdapConfig, active_directory: bool) -> Result<Self, String> {
        let url = Url::parse(&config.url).map_err(|e| format!("url {:?}: {e}", config.url))?;
        match (url.scheme(), config.start_tls) {
            ("ldaps", false) | ("ldap", true) => {}
            ("ldaps", true) => return Err("startTls is for ldap://; ldaps:// is TLS from the first byte".to_owned()),
            ("ldap", false) => {
                return Err("passwords would cross the network readable: startTls: true, or ldaps://".to_owned());
            }
            _ => return Err(format!("url {:?} must begin with ldaps:// or ldap://", config.url)),
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("url {:?} names no host", config.url));
        }
        let searcher = match (&config.bind_dn, &config.bind_password_file) {
            (Some(dn), Some(file)) => Some((dn.clone(), secret(file)?)),
            (None, None) => None,
            _ => return Err("bindDn and bindPasswordFile go together".to_owned()),
        };
        let pick = |said: &Option<String>, ad: &str, other: &str| {
            said.clone().unwrap_or_else(|| if active_directory { ad } else { other }.to_owned())
        };
        let user_filter = pick(
            &config.user_filter,
            "(&(objectCategory=person)(objectClass=user)(|(sAMAccountName={user})(userPrincipalName={user})))",
            "(&(objectClass=person)(uid={user}))",
        );
        if !user_filter.contains("{user}") {
            return Err("userFilter must have {user} where the typed name belongs".to_owned());
        }
        Ok(Self {
            name,
            active_directory,
            url,
            start_tls: config.start_tls,
            tls: tls(config.ca_file.as_deref())?,
            searcher,
            user_base: config.user_base.clone(),
            user_filter,
            user_attribute: pick(&config.user_attribute, "sAMAccountName", "uid"),
            id_attribute: pick(&config.id_attribute, "objectGUID", "entryUUID"),
            group_base: config.group_base.clone(),
            group_filter: pick(
                &config.group_filter,
                "(objectClass=group)",
                "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))",
            ),
            group_attribute: pick(&config.group_attribute, "sAMAccountName", "cn"),
            slots: Semaphore::new(limits::AT_ONCE),
        })
    }

    /// One piece of work at the directory, bounded in number and time.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T, LoginError>>) -> Result<T, LoginError> {
        let Ok(_slot) = self.slots.try_acquire() else { return Err(LoginError::Busy) };
        timeout(limits::LOGIN, work).await.map_err(|_| LoginError::unavailable("the directory took too long"))?
    }

    async fn connect(&self) -> Result<Connection, LoginError> {
        let settings = LdapConnSettings::new().set_config(Arc::clone(&self.tls)).set_starttls(self.start_tls);
        let made = timeout(limits::CONNECT, LdapConnAsync::from_url_with_settings(settings, &self.url)).await;
        let (driver, handle) =
            made.map_err(|_| LoginError::unavailable("no connection to the directory"))?.map_err(lost)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.drive().await {
                tracing::debug!("LDAP connection: {error}");
            }
        });
        Ok(Connection { handle, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Becomes who searches.
    async fn as_searcher(&self, handle: &mut Handle) -> Result<(), LoginError> {
        let Some((dn, password)) = &self.searcher else { return Ok(()) };
        let result = handle.simple_bind(dn, password.reveal()).await.map_err(lost)?;
        // Whoever logs in is not to blame for it.
        result.success().map(drop).map_err(|e| LoginError::unavailable(format!("bindDn is not let in: {e}")))
    }

    fn attributes(&self) -> Vec<&str> {
        let mut all = vec![self.user_attribute.as_str(), self.id_attribute.as_str(), "displayName", "cn"];
        all.extend(state::ATTRIBUTES);
        all
    }

    /// The one entry that fits; `None` where there is none or more than one.
    async fn find(&self, handle: &mut Handle, filter: &str) -> Result<Option<Found>, LoginError> {
        let options = SearchOptions::new().sizelimit(2);
        handle.with_search_options(options).with_timeout(limits::LOGIN);
        let answer = handle.search(&self.user_base, Scope::Subtree, filter, self.attributes()).await.map_err(lost)?;
        let entries = match answer.1.rc {
            0 | SIZE_LIMIT => answer.0,
            NO_SUCH_OBJECT => Vec::new(),
            _ => return Err(LoginError::unavailable(format!("the search for the user failed: {}", answer.1))),
        };
        let mut entries =
            entries.into_iter().filter(|e| !e.is_ref() && !e.is_intermediate()).map(SearchEntry::construct);
        let (Some(entry), None) = (entries.next(), entries.next()) else { return Ok(None) };
        let first = |name: &str| attribute(&entry, name).and_then(|values| values.first().cloned());
        let Some(subject) = self.subject(&entry) else {
            return Err(LoginError::unavailable(format!("{} has no {}", entry.dn, self.id_attribute)));
        };
        let Some(username) = first(&self.user_attribute) else {
            return Err(LoginError::unavailable(format!("{} has no {}", entry.dn, self.user_attribute)));
        };
        let trouble = state::trouble(&|name| first(name), jiff::Timestamp::now());
        let display_name = first("displayName").or_else(|| first("cn"));
        Ok(Some(Found { dn: entry.dn, subject, username, display_name, trouble }))
    }

    /// `objectGUID` is 16 bytes, first three fields little-endian (MS-DTYP §2.3.4.2); others are text.
    fn subject(&self, entry: &SearchEntry) -> Option<String> {
        let binary = entry.bin_attrs.iter().find(|(name, _)| name.eq_ignore_ascii_case(&self.id_attribute));
        let raw = binary
            .and_then(|(_, values)| values.first().map(Vec::as_slice))
            .or_else(|| attribute(entry, &self.id_attribute).and_then(|values| values.first()).map(String::as_bytes))?;
        if self.id_attribute.eq_ignore_ascii_case("objectGUID") {
            return Some(uuid::Uuid::from_bytes_le(raw.try_into().ok()?).to_string());
        }
        std::str::from_utf8(raw).ok().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// The filter that finds a subject again.
    fn by_subject(&self, subject: &str) -> Result<String, LoginError> {
        let value = if self.id_attribute.eq_ignore_ascii_case("objectGUID") {
            let id = uuid::Uuid::parse_str(subject).map_err(LoginError::wrong)?;
            id.to_bytes_le().iter().map(|byte| format!("\\{byte:02x}")).collect()
        } else {
            ldap_escape(subject).into_owned()
        };
        Ok(format!("({}={value})", self.id_attribute))
    }

    async fn check(&self, user: &str, password: &Secret) -> Result<Proof, LoginError> {
        let mut connection = self.connect().await?;
        let handle = &mut connection.handle;
        self.as_searcher(handle).await?;
        let filter = self.user_filter.replace("{user}", &ldap_escape(user));
        let Some(found) = self.find(handle, &filter).await? else {
            return Err(LoginError::wrong("no such user, or several"));
        };
        let bound = handle.simple_bind(&found.dn, password.reveal()).await.map_err(lost)?;
        if bound.rc != 0 {
            // Codes within the text tell Active Directory's reasons: 533 disabled, 775 locked, 701 expired.
            let why = format!("{}: {bound}", found.dn);
            return Err(if bound.rc == INVALID_CREDENTIALS || state::refuses(bound.rc) {
                LoginError::wrong(why)
            } else {
                LoginError::unavailable(why)
            });
        }
        if let Some(trouble) = found.trouble {
            return Err(LoginError::wrong(format!("{}: {trouble}", found.dn)));
        }
        if self.searcher.is_some() {
            self.as_searcher(handle).await?;
        }
        self.proof(handle, found).await
    }

    async fn proof(&self, handle: &mut Handle, found: Found) -> Result<Proof, LoginError> {
        let groups = self.groups_of(handle, &found.dn, &found.username).await?;
        let Found { subject, username, display_name, .. } = found;
        Ok(Proof { subject, username, display_name, groups: tidy(groups), renewal: None })
    }

    async fn ask_again(&self, subject: &str) -> Result<Still, LoginError> {
        let mut connection = self.connect().await?;
        let handle = &mut connection.handle;
        self.as_searcher(handle).await?;
        let Some(found) = self.find(handle, &self.by_subject(subject)?).await? else {
            return Ok(Still::Gone { why: "no longer in the directory".to_owned() });
        };
        if let Some(trouble) = found.trouble {
            return Ok(Still::Gone { why: format!("{}: {trouble}", found.dn) });
        }
        Ok(Still::There(Box::new(self.proof(handle, found).await?)))
    }

    async fn look_for(&self, text: &str, most: usize) -> Result<Vec<Principal>, LoginError> {
        let mut connection = self.connect().await?;
        let handle = &mut connection.handle;
        self.as_searcher(handle).await?;
        let text = ldap_escape(text);
        let (anyone, user) = (self.user_filter.replace("{user}", "*"), &self.user_attribute);
        let users = [
            format!("(&{anyone}({user}={text}*))"),
            format!("(&{anyone}(|({user}=*{text}*)(cn=*{text}*)(displayName=*{text}*)))"),
        ];
        let mut all = self.named(handle, "user", &self.user_base, &users, user, most).await?;
        if let Some(base) = &self.group_base {
            let (any, group) = (&self.group_filter, &self.group_attribute);
            let groups = [format!("(&{any}({group}={text}*))"), format!("(&{any}({group}=*{text}*))")];
            all.extend(self.named(handle, "group", base, &groups, group, most).await?);
        }
        Ok(all)
    }

    /// At most `most` that fit one of the filters, in their order: whose names begin with a text come before those that have
    /// it somewhere, or among many the one who is meant would be left out.
    async fn named(
        &self,
        handle: &mut Handle,
        kind: &'static str,
        base: &str,
        filters: &[String; 2],
        naming: &str,
        most: usize,
    ) -> Result<Vec<Principal>, LoginError> {
        let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
        for filter in filters {
            let mut limit = i32::try_from(most).unwrap_or(i32::MAX);
            let answer = loop {
                handle.with_search_options(SearchOptions::new().sizelimit(limit)).with_timeout(limits::LOGIN);
                let attributes = vec![naming, "displayName", &self.id_attribute];
                let answer = handle.search(base, Scope::Subtree, filter, attributes).await.map_err(lost)?;
                if answer.1.rc != ADMIN_LIMIT || limit == 0 {
                    break answer;
                }
                limit = 0; // the directory gives nobody as many: as many as it gives, then
            };
            if !matches!(answer.1.rc, 0 | SIZE_LIMIT | NO_SUCH_OBJECT) {
                return Err(LoginError::unavailable(format!("the search failed: {}", answer.1)));
            }
            let entries =
                answer.0.into_iter().filter(|e| !e.is_ref() && !e.is_intermediate()).map(SearchEntry::construct);
            let principal = |entry: SearchEntry| {
                let first = |name| attribute(&entry, name).and_then(|values| values.first().cloned());
                let subject = (kind == "user").then(|| self.subject(&entry)).flatten();
                Some(Principal { kind, name: first(naming)?, display_name: first("displayName"), subject })
            };
            all.extend(entries.filter(|entry| seen.insert(entry.dn.clone())).filter_map(principal));
            if most <= all.len() {
                break;
            }
        }
        all.truncate(most);
        Ok(all)
    }
}

/// Attributes are asked for in one case and may come in another.
fn attribute<'a>(entry: &'a SearchEntry, name: &str) -> Option<&'a Vec<String>> {
    entry.attrs.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, values)| values)
}

fn lost(error: LdapError) -> LoginError {
    LoginError::unavailable(format!("LDAP: {error}"))
}

impl LoginProvider for Ldap {
    fn name(&self) -> &str {
        &self.name
    }
    fn kind(&self) -> &'static str {
        if self.active_directory { "activeDirectory" } else { "ldap" }
    }
    fn ways(&self) -> &'static [Way] {
        &[Way::Password]
    }
    fn password<'a>(&'a self, user: &'a str, password: &'a Secret) -> BoxFuture<'a, Result<Proof, LoginError>> {
        async move {
            // A bind with a name and no password is an anonymous one, and succeeds (RFC 4513 §5.1.2).
            let sound = |text: &str, most| !text.is_empty() && text.len() <= most && !text.contains('\0');
            if !sound(user, limits::USER_NAME) || !sound(password.reveal(), limits::PASSWORD) {
                return Err(LoginError::wrong("an empty or overlong user name or password"));
            }
            self.bounded(self.check(user, password)).await
        }
        .boxed()
    }
    fn still<'a>(&'a self, subject: &'a str, _: Option<&'a Secret>) -> BoxFuture<'a, Result<Still, LoginError>> {
        self.bounded(self.ask_again(subject)).boxed()
    }
    fn search<'a>(&'a self, text: &'a str, most: usize) -> BoxFuture<'a, Result<Vec<Principal>, LoginError>> {
        self.bounded(self.look_for(text, most)).boxed()
    }
}
