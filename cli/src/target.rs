//! Which hub a command speaks to.

use crate::{
    client::Client,
    failure::advise,
    settings::{KnownHub, Secret, Settings},
    text, tls,
};
use moorline_link::{HubAddress, InvalidAddress};
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

/// Where a hub is: `https://host:port`. Nothing else of a URL makes sense here, so nothing else is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUrl(HubAddress);

impl HubUrl {
    /// Host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.0.host
    }
    /// TCP and UDP port.
    pub fn port(&self) -> u16 {
        self.0.port
    }
    /// `host:port` as a `Host` header has it: no port if it is HTTPS's own.
    pub fn authority(&self) -> String {
        let host = if self.host().contains(':') { format!("[{}]", self.host()) } else { self.host().to_owned() };
        if self.port() == 443 { host } else { format!("{host}:{}", self.port()) }
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl FromStr for HubUrl {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let mut address: HubAddress = text.parse()?;
        address.host.make_ascii_lowercase();
        Ok(Self(address))
    }
}

/// Which hub a command speaks to, and how patiently.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct HubArgs {
    /// The hub to speak to [default: the one of the last `moorline login`]
    #[arg(long, value_name = "URL", env = "MOORLINE_HUB")]
    pub hub: Option<HubUrl>,
    /// PEM file of the hub's certificate authority [default: the one kept at login]
    #[arg(long, value_name = "FILE", env = "MOORLINE_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Give up on a request after this long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = text::duration)]
    pub request_timeout: Duration,
}

impl HubArgs {
    /// The hub as kept at login, with what the flags change.
    pub fn known(&self) -> anyhow::Result<KnownHub> {
        let settings = Settings::load()?;
        let stored = match &self.hub {
            Some(url) => settings.hub(&url.to_string()),
            None => settings.current(),
        };
        let ca = self.ca_file.as_deref().map(tls::ca_from_file).transpose()?;
        let mut hub = match (stored, &self.hub, &ca) {
            (Some(stored), _, _) => stored.clone(),
            (None, Some(url), Some(ca)) => KnownHub { url: url.to_string(), ca: ca.clone(), ..KnownHub::default() },
            (None, Some(url), None) => {
                return Err(advise(format!("{url} is not known yet"), format!("log in: moorline login {url}")));
            }
            (None, None, _) => {
                return Err(advise("not logged in to any hub", "log in: moorline login https://HUB:8443"));
            }
        };
        hub.ca = ca.unwrap_or(hub.ca);
        if let Some(key) = std::env::var("MOORLINE_API_KEY").ok().filter(|key| !key.is_empty()) {
            hub = KnownHub { token: Some(Secret::new(key)), url: hub.url, ca: hub.ca, ..KnownHub::default() };
        }
        Ok(hub)
    }

    /// A client for that hub. Without a login this is an error at once, not a 401 later.
    pub fn client(&self) -> anyhow::Result<Client> {
        let hub = self.known()?;
        if hub.token.is_none() {
            return Err(advise(format!("logged out of {}", hub.url), format!("log in: moorline login {}", hub.url)));
        }
        Client::new(&hub, self.request_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_named_by_scheme_host_and_port_alone() {
        for (text, want) in [
            ("https://hub.example:8443", "https://hub.example:8443"),
            ("https://HUB.example/", "https://hub.example"),
            ("hub.example:443", "https://hub.example"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
            ("https://127.0.0.1:1", "https://127.0.0.1:1"),
        ] {
            assert_eq!(text.parse::<HubUrl>().map(|u| u.to_string()).as_deref(), Ok(want), "{text}");
        }
        for bad in [
            "http://hub",
            "https://",
            "",
            "https://hub/path",
            "https://u:p@hub",
            "https://hub:0",
            "https://hub:99999",
            "https://hub?x",
            "https://-/ ",
        ] {
            assert!(bad.parse::<HubUrl>().is_err(), "{bad:?}");
        }
    }
}
