//! From what a provider proved to the hub's user.

use super::{LOCAL, LoginError, Logins};
use crate::{
    directory::Directory,
    kinds::{IdentityStatus, UserIdentity, UserSpec, UserStatus},
    records::{RecordError, Records},
    status::time,
};
use moorline_apiserver::Object;
use moorline_logins::Proof;
use std::time::SystemTime;

/// How often a user is read and written while others write.
const TRIES: u32 = 5;

/// The user whom a proof stands for, made at the first login, with what the provider says of them now.
///
/// A user is found by the provider's own unchanging id, never by name: who is called like somebody else is not them.
pub(crate) async fn admit(
    records: &Records,
    directory: &Directory,
    provider: &str,
    proof: &Proof,
) -> Result<Object<UserSpec>, LoginError> {
    if provider == LOCAL {
        let user = records.get::<UserSpec>(&proof.username)?;
        let user = user.filter(|user| user.metadata.uid == proof.subject && !user.spec.disabled);
        return user.ok_or(LoginError::Wrong);
    }
    for _ in 0..TRIES {
        let user = match known(records, directory, provider, proof)? {
            Some(user) => user,
            None => match create(records, provider, proof).await {
                Ok(user) => user,
                Err(LoginError::Store(RecordError::Conflict)) => continue, // made a moment ago by somebody else
                Err(error) => return Err(error),
            },
        };
        if user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
            return Err(LoginError::Wrong);
        }
        match tell(records, user, provider, proof).await {
            Ok(user) => {
                directory.learn(&user);
                return Ok(user);
            }
            Err(RecordError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LoginError::Store(RecordError::Conflict))
}

fn linked(user: &Object<UserSpec>, provider: &str, subject: &str) -> bool {
    user.spec.identities.iter().any(|i| i.provider == provider && i.subject == subject)
}

fn known(
    records: &Records,
    directory: &Directory,
    provider: &str,
    proof: &Proof,
) -> Result<Option<Object<UserSpec>>, LoginError> {
    let name = match directory.owner_of(provider, &proof.subject) {
        Some(name) => name,
        // The index may not have heard of it yet.
        None => user_name(&proof.username)?,
    };
    let user = records.get::<UserSpec>(&name)?;
    Ok(user.filter(|user| linked(user, provider, &proof.subject)))
}

async fn create(records: &Records, provider: &str, proof: &Proof) -> Result<Object<UserSpec>, LoginError> {
    let name = user_name(&proof.username)?;
    if records.get::<UserSpec>(&name)?.is_some() {
        tracing::warn!(
            user = name,
            provider,
            subject = proof.subject,
            "a login was refused: the name is another user's"
        );
        return Err(LoginError::Refused(format!(
            "user {name:?} of this hub is not linked to you; an administrator can: moorline user link {name} --provider \
             {provider} --subject {}",
            proof.subject
        )));
    }
    let identity = UserIdentity { provider: provider.to_owned(), subject: proof.subject.clone() };
    let spec = UserSpec { display_name: shown(proof), identities: vec![identity], ..UserSpec::default() };
    let made = records.create(&Object::new(&name, spec)).await?;
    tracing::info!(user = name, provider, "a user was made at their first login");
    Ok(made)
}

fn shown(proof: &Proof) -> Option<String> {
    let name = proof.display_name.clone()?;
    (name.len() <= 256 && !name.chars().any(char::is_control)).then_some(name)
}

/// Writes what the provider says, where it is news.
async fn tell(
    records: &Records,
    mut user: Object<UserSpec>,
    provider: &str,
    proof: &Proof,
) -> Result<Object<UserSpec>, RecordError> {
    let mut status = user.status.take().unwrap_or_default();
    let now = time(SystemTime::now());
    status.identities.retain(|i| i.provider != provider || i.subject == proof.subject);
    let news = IdentityStatus {
        provider: provider.to_owned(),
        subject: proof.subject.clone(),
        username: proof.username.clone(),
        groups: proof.groups.clone(),
        last_proven: now,
        gone: None,
    };
    match status.identities.iter_mut().find(|i| i.provider == provider) {
        Some(old) => *old = news,
        None => status.identities.push(news),
    }
    user.status = Some(status);
    records.update_status(&user).await
}

/// What a check of somebody who was let in before comes to: written only where it changes anything.
pub(crate) async fn tell_again(
    records: &Records,
    name: &str,
    provider: &str,
    subject: &str,
    said: Result<&Proof, &str>,
) -> Result<bool, RecordError> {
    for _ in 0..TRIES {
        let Some(mut user) = records.get::<UserSpec>(name)? else { return Ok(false) };
        let Some(UserStatus { identities }) = &mut user.status else { return Ok(false) };
        let Some(known) = identities.iter_mut().find(|i| i.provider == provider && i.subject == subject) else {
            return Ok(false);
        };
        let gone = said.err().map(str::to_owned);
        let groups = said.map_or_else(|_| known.groups.clone(), |proof| proof.groups.clone());
        if known.gone.is_some() == gone.is_some() && known.groups == groups {
            return Ok(false);
        }
        (known.gone, known.groups) = (gone, groups);
        match records.update_status(&user).await {
            Ok(_) => return Ok(true),
            Err(RecordError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Err(RecordError::Conflict)
}

impl Logins {
    /// The user of this hub who is meant by a name that was typed, if anybody could have come in by it. For records of what
    /// failed: what else is typed there may be a password.
    pub(crate) fn meant(&self, provider: &str, typed: &str) -> Option<String> {
        if provider == LOCAL {
            let name = typed.to_lowercase();
            return self.records.user_exists(&name).then_some(name);
        }
        let user = self.records.get::<UserSpec>(&user_name(typed).ok()?).ok()??;
        user.spec.identities.iter().any(|i| i.provider == provider).then_some(user.metadata.name)
    }
}

/// A name that the hub's API takes, from what a provider calls somebody: lower-case, `@` as `.`, `_` and blanks as `-`.
fn user_name(theirs: &str) -> Result<String, LoginError> {
    let name: String = theirs
        .chars()
        .map(|c| match c {
            '@' | '\\' | '/' => '.',
            '_' | ' ' => '-',
            c => c.to_ascii_lowercase(),
        })
        .collect();
    if moorline_apiserver::dns_subdomain(&name).is_err() {
        return Err(LoginError::Refused(format!(
            "user name {theirs:?} cannot be one of this hub's (letters, digits, '-' and '.'); an administrator can make \
             a user and link it: moorline user link"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_become_names_of_ours_or_are_refused() {
        for (theirs, ours) in
            [("Ann", "ann"), ("ann@Moor.test", "ann.moor.test"), ("a_b c", "a-b-c"), ("MOOR\\ann", "moor.ann")]
        {
            assert_eq!(user_name(theirs).unwrap(), ours);
        }
        for bad in ["", "system:admin", "änn", "-ann", "a\nb", "a..b", &"a".repeat(300)] {
            assert!(matches!(user_name(bad), Err(LoginError::Refused(_))), "{bad:?}");
        }
    }
}
