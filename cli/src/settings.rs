//! The hubs that were logged in to: `$XDG_CONFIG_HOME/moorline/config.yaml`, mode 0600.

use crate::{failure::advise, files, yaml};
use serde::{Deserialize, Serialize};
use std::{env, fmt, path::PathBuf};

/// Text that is never shown by accident.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: String) -> Self {
        Self(text)
    }
    /// The text, for those who mean it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One hub that was logged in to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHub {
    /// `https://host:port`, without a slash at its end.
    pub url: String,
    /// The certificate authority that vouches for it, PEM.
    pub ca: String,
    /// Who is logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The access token, or an API key. `None` after a logout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// When the token ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// From when on a newer token is asked for, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew: Option<String>,
    /// What the next token is asked for with. Good once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Secret>,
    /// When the login itself ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_expires: Option<String>,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The URL of the hub that commands speak to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Every hub, by URL, in the order of first login.
    #[serde(default)]
    pub hubs: Vec<KnownHub>,
}

impl Settings {
    /// Reads the file; none is an empty one.
    pub fn load() -> anyhow::Result<Self> {
        let path = path()?;
        let Some(text) = files::read_text(&path)? else { return Ok(Self::default()) };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        yaml::read::<Self>(&text).map_err(|_| {
            advise(
                format!("{} is not a settings file of moorline", path.display()),
                "move it away and run: moorline login https://HUB",
            )
        })
    }

    /// Changes the file under its lock, so that two logins at once lose nothing.
    pub fn change<T>(change: impl FnOnce(&mut Self) -> T) -> anyhow::Result<T> {
        let path = path()?;
        let _lock = files::FileLock::take(&path)?;
        let mut settings = Self::load()?;
        let result = change(&mut settings);
        let text = yaml::write(&settings)?;
        files::write_private(&path, text.as_bytes())?;
        Ok(result)
    }

    /// The hub of that URL.
    pub fn hub(&self, url: &str) -> Option<&KnownHub> {
        self.hubs.iter().find(|hub| hub.url == url)
    }

    /// The hub that commands speak to.
    pub fn current(&self) -> Option<&KnownHub> {
        self.current.as_deref().and_then(|url| self.hub(url))
    }

    /// Puts in or replaces a hub and makes it the current one.
    pub fn remember(&mut self, hub: KnownHub) {
        self.current = Some(hub.url.clone());
        match self.hubs.iter_mut().find(|known| known.url == hub.url) {
            Some(known) => *known = hub,
            None => self.hubs.push(hub),
        }
    }
}

/// Where the file is.
pub fn path() -> anyhow::Result<PathBuf> {
    let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = match var("XDG_CONFIG_HOME").or_else(|| var("APPDATA").filter(|_| cfg!(windows))) {
        Some(base) => base,
        None => files::home()?.join(".config"),
    };
    Ok(base.join("moorline").join("config.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_file() {
        let mut settings = Settings::default();
        let hub = |url: &str| KnownHub {
            url: url.into(),
            ca: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into(),
            user: Some("0123".into()),
            token: Some(Secret::new("mlt_abc.def".into())),
            expires: Some("2026-11-21T08:00:00Z".into()),
            refresh: Some(Secret::new("mlr_abc.def".into())),
            ..KnownHub::default()
        };
        settings.remember(hub("https://a:8443"));
        settings.remember(hub("https://b:8443"));
        settings.remember(KnownHub { token: None, expires: None, ..hub("https://a:8443") });
        assert_eq!((settings.hubs.len(), settings.current.as_deref()), (2, Some("https://a:8443")));
        let text = yaml::write(&settings).unwrap();
        assert_eq!(yaml::read::<Settings>(&text).unwrap(), settings);
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("mlt_abc".into())), "***");
        let error = yaml::read::<Settings>("hubs: [{url: a, ca: b, token: [mlt_secret]}]").unwrap_err();
        assert!(!error.to_string().contains("mlt_secret"), "{error}");
    }
}
