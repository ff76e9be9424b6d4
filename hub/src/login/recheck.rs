//! Asks providers again about those who are logged in through them: who is gone there is gone here soon.

use super::{Logins, admit::tell_again};
use crate::kinds::{TokenSpec, UserSpec};
use moorline_logins::{LoginError, Still};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

impl Logins {
    /// Goes on until `stop`. Each round asks about everybody with a login through a provider that can be asked.
    pub(crate) async fn recheck(self: std::sync::Arc<Self>, every: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            if stop.run_until_cancelled(self.recheck_once()).await.is_none() {
                return;
            }
        }
    }

    pub(crate) async fn recheck_once(&self) {
        let Ok(tokens) = self.records.list::<TokenSpec>() else { return };
        let mut who: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for token in tokens {
            if let Some(provider) = token.spec.provider.filter(|p| p != super::LOCAL) {
                who.entry(provider).or_default().insert(token.spec.user);
            }
        }
        for (provider, users) in who {
            for user in users {
                // A provider that is away says nothing about anybody: logins last as long as they were made for.
                if let Err(LoginError::Unavailable { why }) = self.recheck_one(&provider, &user).await {
                    tracing::warn!(provider, "cannot be asked about who is logged in: {why}");
                    break;
                }
            }
        }
    }

    async fn recheck_one(&self, provider: &str, name: &str) -> Result<(), LoginError> {
        let away = |e: crate::records::RecordError| LoginError::Unavailable { why: e.to_string() };
        let Some(asked) = self.providers.iter().find(|p| p.name() == provider) else { return Ok(()) };
        let Some(user) = self.records.get::<UserSpec>(name).map_err(away)? else { return Ok(()) };
        let Some(identity) = user.spec.identities.into_iter().find(|i| i.provider == provider) else { return Ok(()) };
        let subject = identity.subject;
        let renewal = self.renewals.of(name, provider, &subject);
        let said = match asked.still(&subject, renewal.as_ref()).await {
            Ok(said) => said,
            Err(LoginError::Unsupported) => return Ok(()),
            Err(error) => return Err(error),
        };
        let changed = match &said {
            Still::There(proof) => {
                if let Some(renewal) = &proof.renewal {
                    self.renewals.keep(name, provider, &subject, renewal).await.map_err(away)?;
                }
                tell_again(&self.records, name, provider, &subject, Ok(proof)).await
            }
            Still::Gone { why } => {
                tracing::info!(user = name, provider, "gone at the provider: {why}");
                self.renewals.forget(name, provider, &subject).await.map_err(away)?;
                tell_again(&self.records, name, provider, &subject, Err(why)).await
            }
        };
        let label = match (&changed, &said) {
            (Err(_), _) => "store",
            (_, Still::Gone { .. }) => "gone",
            (Ok(true), _) => "changed",
            (Ok(false), _) => "same",
        };
        self.metrics.rechecks.with_label_values(&[label]).inc();
        changed.map(drop).map_err(away)
    }
}
