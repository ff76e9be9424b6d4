//! Providers as a configuration file has them. Unknown keys are errors; secrets stand in files of their own.

use crate::{LoginProvider, Secret, github::GitHub, ldap::Ldap, oidc::Oidc, trust::TrustError};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest file that holds one secret, in bytes.
const SECRET_FILE: u64 = 64 << 10;

/// One provider: a name, and exactly one of the kinds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderConfig {
    /// What people choose it by, and the prefix of its groups: lower-case letters, digits and `-`.
    pub name: String,
    /// A directory by LDAP (RFC 4511).
    #[serde(default)]
    pub ldap: Option<LdapConfig>,
    /// The same with Active Directory's attributes and nesting.
    #[serde(default)]
    pub active_directory: Option<LdapConfig>,
    /// OpenID Connect.
    #[serde(default)]
    pub oidc: Option<OidcConfig>,
    /// GitHub or GitHub Enterprise.
    #[serde(default)]
    pub github: Option<GitHubConfig>,
}

/// A directory. What is not said follows from its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LdapConfig {
    /// `ldaps://HOST[:PORT]`, or `ldap://…` with [`LdapConfig::start_tls`].
    pub url: String,
    /// Ask for TLS on the plain port (RFC 4511 §4.14).
    #[serde(default)]
    pub start_tls: bool,
    /// PEM file of the authority of its certificate; absent: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Who searches; absent: nobody in particular.
    #[serde(default)]
    pub bind_dn: Option<String>,
    /// File with the password of [`LdapConfig::bind_dn`].
    #[serde(default)]
    pub bind_password_file: Option<PathBuf>,
    /// Below which entry users are.
    pub user_base: String,
    /// What finds a user: `{user}` is what was typed, escaped.
    #[serde(default)]
    pub user_filter: Option<String>,
    /// The attribute that names a user.
    #[serde(default)]
    pub user_attribute: Option<String>,
    /// The attribute that stays when everything else changes.
    #[serde(default)]
    pub id_attribute: Option<String>,
    /// Below which entry groups are; absent: no groups.
    #[serde(default)]
    pub group_base: Option<String>,
    /// What all groups have in common.
    #[serde(default)]
    pub group_filter: Option<String>,
    /// The attribute that names a group.
    #[serde(default)]
    pub group_attribute: Option<String>,
}

/// An OpenID provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OidcConfig {
    /// Exactly as its tokens say it.
    pub issuer: String,
    /// This hub, as registered there.
    pub client_id: String,
    /// File with the client's secret; absent: a public client.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// Besides `openid`.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// The claim that names a user.
    #[serde(default = "username_claim")]
    pub username_claim: String,
    /// The claim with the groups.
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
    /// PEM file of the authority of its certificate; absent: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn scopes() -> Vec<String> {
    ["profile", "email", "groups", "offline_access"].map(str::to_owned).into()
}
fn username_claim() -> String {
    "preferred_username".to_owned()
}
fn groups_claim() -> String {
    "groups".to_owned()
}

/// An OAuth app of GitHub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitHubConfig {
    /// `https://github.com`, or the address of an Enterprise server.
    #[serde(default)]
    pub base_url: Option<String>,
    /// Of the API, where it follows from neither.
    #[serde(default)]
    pub api_url: Option<String>,
    /// The app.
    pub client_id: String,
    /// File with its secret.
    pub client_secret_file: PathBuf,
    /// Only members of one of these come in. There is no default: all of GitHub is never meant.
    pub organizations: Vec<String>,
    /// PEM file of the authority of its certificate; absent: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// What cannot be used, and why: the hub does not start with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("logins, {provider:?}: {why}")]
pub struct ConfigError {
    /// Which provider.
    pub provider: String,
    /// What to mend.
    pub why: String,
}

/// Makes the providers. Nothing is asked of them yet: a provider that is away keeps no hub from starting.
///
/// # Errors
/// The first setting that cannot work: a missing file, an address without TLS, two kinds in one, a name used twice.
pub fn build(all: &[ProviderConfig]) -> Result<Vec<Arc<dyn LoginProvider>>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut made: Vec<Arc<dyn LoginProvider>> = Vec::new();
    for config in all {
        let wrong = |why: String| ConfigError { provider: config.name.clone(), why };
        check_name(&config.name).map_err(|why| wrong(why.to_owned()))?;
        if !names.insert(config.name.as_str()) {
            return Err(wrong("this name is used twice".to_owned()));
        }
        let name = config.name.clone();
        made.push(match (&config.ldap, &config.active_directory, &config.oidc, &config.github) {
            (Some(ldap), None, None, None) => Arc::new(Ldap::new(name, ldap, false).map_err(wrong)?),
            (None, Some(ldap), None, None) => Arc::new(Ldap::new(name, ldap, true).map_err(wrong)?),
            (None, None, Some(oidc), None) => Arc::new(Oidc::new(name, oidc).map_err(wrong)?),
            (None, None, None, Some(github)) => Arc::new(GitHub::new(name, github).map_err(wrong)?),
            _ => return Err(wrong("exactly one of ldap, activeDirectory, oidc and github is wanted".to_owned())),
        });
    }
    Ok(made)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    match name {
        // Groups carry the name as a prefix: these prefixes are Kubernetes' and the hub's own.
        "system" | "moorline" | "local" => Err("this name is reserved"),
        _ if letters && (1..=32).contains(&name.len()) => Ok(()),
        _ => Err("a name has 1 to 32 lower-case letters, digits and -"),
    }
}

/// The one secret of a file, without the line's end.
pub(crate) fn secret(path: &Path) -> Result<Secret, String> {
    use std::io::Read;
    let told = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| told(&e))?;
    file.take(SECRET_FILE).read_to_string(&mut text).map_err(|e| told(&e))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(told(&"holds no secret"));
    }
    Ok(Secret::new(secret))
}

impl From<TrustError> for String {
    fn from(error: TrustError) -> Self {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Arc<dyn LoginProvider>>, String> {
        let all: Vec<ProviderConfig> = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        build(&all).map_err(|e| e.to_string())
    }

    fn refused(text: &str) -> String {
        match read(text) {
            Ok(_) => panic!("{text}"),
            Err(why) => why,
        }
    }

    #[test]
    fn z09_what_cannot_work_is_told_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, there) = (dir.path().join("empty"), dir.path().join("secret"));
        std::fs::write(&empty, "\n").unwrap();
        std::fs::write(&there, "s3cret\n").unwrap();
        let (empty, there) = (empty.display(), there.display());
        let good = format!("- name: gh\n  github: {{clientId: a, clientSecretFile: {there}, organizations: [acme]}}");
        let made = read(&good).unwrap();
        assert_eq!((made[0].name(), made[0].kind()), ("gh", "github"));
        for (text, why) in [
            (good.replace("organizations: [acme]", "organizations: []"), "organizations"),
            (good.replace("clientId", "clientld"), "clientld"),
            (good.replace(&there.to_string(), &empty.to_string()), "holds no secret"),
            (good.replace("name: gh", "name: system"), "reserved"),
            (good.replace("name: gh", "name: moorline"), "reserved"),
            (good.replace("name: gh", "name: 'a:b'"), "lower-case"),
            (format!("{good}\n{good}"), "used twice"),
            ("- name: a".to_owned(), "exactly one of"),
            ("- name: a\n  ldap: {url: 'ldap://dc', userBase: 'dc=x'}".to_owned(), "startTls"),
            ("- name: a\n  ldap: {url: 'http://dc', userBase: 'dc=x'}".to_owned(), "ldaps://"),
            ("- name: a\n  ldap: {url: 'ldaps://dc', userBase: 'dc=x', caFile: /none}".to_owned(), "/none"),
            (
                format!("- name: a\n  ldap: {{url: 'ldaps://dc', userBase: 'dc=x', caFile: {there}}}"),
                "holds no certificate",
            ),
            ("- name: a\n  ldap: {url: 'ldaps://dc', userBase: 'dc=x', userFilter: '(uid=x)'}".to_owned(), "{user}"),
            ("- name: a\n  ldap: {url: 'ldaps://dc', userBase: 'dc=x', bindDn: 'cn=a'}".to_owned(), "bindPasswordFile"),
            ("- name: a\n  oidc: {issuer: 'http://id.example', clientId: a}".to_owned(), "https"),
        ] {
            assert!(refused(&text).contains(why), "{text}: {}", refused(&text));
        }
    }

    /// S66: whatever kind of provider it is for, half a file of authorities keeps the hub from its start.
    #[test]
    fn s66_no_provider_is_made_with_half_of_its_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, secret) = (dir.path().join("ca.pem"), dir.path().join("secret"));
        std::fs::write(&secret, "s3cret\n").unwrap();
        let pem = rcgen::generate_simple_self_signed(vec!["ca.example".to_owned()]).unwrap().cert.pem();
        let half = &pem[..pem.len() / 2];
        let (at, secret) = (ca.display(), secret.display());
        for kind in [
            format!("ldap: {{url: 'ldaps://dc', userBase: 'dc=x', caFile: {at}}}"),
            format!("activeDirectory: {{url: 'ldaps://dc', userBase: 'dc=x', caFile: {at}}}"),
            format!("oidc: {{issuer: 'https://id.example', clientId: a, caFile: {at}}}"),
            format!("github: {{clientId: a, clientSecretFile: {secret}, organizations: [acme], caFile: {at}}}"),
        ] {
            let text = format!("- name: a\n  {kind}");
            std::fs::write(&ca, format!("{pem}{pem}")).unwrap();
            assert_eq!(read(&text).map(|made| made.len()), Ok(1), "{text}");
            std::fs::write(&ca, format!("{pem}{half}")).unwrap();
            assert!(refused(&text).contains("ca.pem"), "{text}: {}", refused(&text));
        }
    }
}
