//! The providers that the configuration names, as one plugin among others.

use moorline_logins::{
    Providers,
    config::{ConfigError, ProviderConfig, build},
};
use moorline_plugin::{Plugin, Registration};
use std::sync::Arc;

/// LDAP, Active Directory, OpenID Connect and GitHub.
pub(crate) struct Configured(Providers);

impl Configured {
    /// `None`: the configuration names none.
    ///
    /// # Errors
    /// One that cannot work.
    pub(crate) fn plugin(providers: &[ProviderConfig]) -> Result<Option<Arc<dyn Plugin>>, ConfigError> {
        let made = build(providers)?;
        Ok(if made.is_empty() { None } else { Some(Arc::new(Self(made))) })
    }
}

impl Plugin for Configured {
    fn name(&self) -> &'static str {
        "logins"
    }

    fn register(&self, into: &mut Registration) {
        for provider in &self.0 {
            into.login(Arc::clone(provider));
        }
    }
}
