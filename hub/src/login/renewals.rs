//! What providers are asked again with about those who are logged in through them: kept with their users, sealed, so
//! that a restart of the hub loses nobody of sight.

use crate::{
    kinds::UserSpec,
    records::{RecordError, Records},
};
use moorline_apiserver::Spec;
use moorline_authz::seal::SealKey;
use moorline_logins::Secret;
use std::{io, path::Path};

/// Longest of them, in bytes. Tokens of providers are some KiB at most; one that is longer is not kept.
const LONGEST: usize = 32 << 10;

/// All of them. Each is gone with its user.
pub(super) struct Renewals {
    records: Records,
    /// Its key lies beside the store, not in it: a backup of the store opens nothing at a provider.
    key: Option<SealKey>,
}

impl Renewals {
    /// # Errors
    /// The key's file can be neither read nor made.
    pub(super) fn open(records: Records, data_dir: &Path) -> io::Result<Self> {
        let bytes = crate::files::secret::<32>(&data_dir.join("renewals.secret"))?;
        let key = SealKey::new(&bytes).map_err(|e| tracing::error!("nothing of providers is kept: {e}")).ok();
        Ok(Self { records, key })
    }

    fn place(user: &str, provider: &str, subject: &str) -> String {
        format!("{}/{}/{user}/renewal/{provider}/{subject}", UserSpec::GROUP, UserSpec::PLURAL)
    }

    pub(super) fn of(&self, user: &str, provider: &str, subject: &str) -> Option<Secret> {
        let place = Self::place(user, provider, subject);
        let plain = self.key.as_ref()?.open(&place, &self.records.secret(&place)?)?;
        String::from_utf8(plain).ok().map(Secret::new)
    }

    /// Keeps one, where it is another than before.
    pub(super) async fn keep(
        &self,
        user: &str,
        provider: &str,
        subject: &str,
        renewal: &Secret,
    ) -> Result<(), RecordError> {
        if LONGEST < renewal.reveal().len() || self.of(user, provider, subject).as_ref() == Some(renewal) {
            return Ok(());
        }
        let Some(key) = &self.key else { return Ok(()) };
        let place = Self::place(user, provider, subject);
        let sealed = key.seal(&place, renewal.reveal().as_bytes());
        let sealed = sealed.map_err(|e| RecordError::Failed(e.to_string()))?;
        self.records.set_secret(place, sealed.into()).await
    }

    pub(super) async fn forget(&self, user: &str, provider: &str, subject: &str) -> Result<(), RecordError> {
        self.records.forget_secret(Self::place(user, provider, subject)).await
    }
}
