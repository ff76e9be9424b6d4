//! The first start: somebody must be able to log in.

use crate::{
    config::Config,
    files::write_atomically,
    kinds::UserSpec,
    login::Logins,
    pki::Authority,
    records::{RecordError, Records},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use moorline_apiserver::Object;
use moorline_authz::identity::ADMINS;
use serde_json::json;
use std::{fs, io, path::PathBuf, time::Duration};

/// The first user.
const ADMIN: &str = "admin";
/// Life of the token in `admin.kubeconfig`.
const KUBECONFIG_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why the first start came to no end. The next one goes on where this one stopped.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file.
    #[error("cannot write {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error("the store: {0}")]
    Store(String),
}

impl From<RecordError> for BootstrapError {
    fn from(error: RecordError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Makes user, password and kubeconfig where there are no users yet, or where that was cut short.
pub(crate) async fn bootstrap(
    config: &Config,
    records: &Records,
    logins: &Logins,
    authority: &Authority,
) -> Result<(), BootstrapError> {
    let password_file = config.data_dir.join("admin.password");
    let kubeconfig_file = config.data_dir.join("admin.kubeconfig");
    let admin = records.get::<UserSpec>(ADMIN)?;
    let begun = password_file.exists() && !kubeconfig_file.exists();
    if records.any::<UserSpec>() && !(admin.is_some() && begun) {
        return Ok(());
    }
    // The file before the user: a password that nobody knows would lock everybody out.
    let password = match fs::read_to_string(&password_file) {
        Ok(password) if !password.trim().is_empty() => password.trim().to_owned(),
        _ => {
            let password = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>());
            write(password_file.clone(), format!("{password}\n").as_bytes())?;
            password
        }
    };
    let user = match admin {
        Some(user) => user,
        None => {
            let spec = UserSpec { groups: vec![ADMINS.to_owned()], ..UserSpec::default() };
            records.create(&Object::new(ADMIN, spec)).await?
        }
    };
    logins.set_password(ADMIN, password).await.map_err(|e| BootstrapError::Store(e.to_string()))?;
    let (token, _) = logins.key(&user, "admin.kubeconfig", KUBECONFIG_LIFE).await?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "moorline",
        "clusters": [{ "name": "moorline", "cluster": {
            "server": config.public_url, "certificate-authority-data": STANDARD.encode(authority.pem()) } }],
        "users": [{ "name": ADMIN, "user": { "token": token } }],
        "contexts": [{ "name": "moorline", "context": { "cluster": "moorline", "user": ADMIN } }],
    });
    write(kubeconfig_file.clone(), format!("{kubeconfig:#}\n").as_bytes())?;
    tracing::info!(
        password = %password_file.display(), kubeconfig = %kubeconfig_file.display(),
        "first start: user admin was made. Log in: moorline login {} --user {ADMIN} --password-stdin --ca-file {} < {}",
        config.public_url, config.data_dir.join("ca.crt").display(), password_file.display()
    );
    Ok(())
}

fn write(path: PathBuf, bytes: &[u8]) -> Result<(), BootstrapError> {
    write_atomically(&path, bytes, 0o600).map_err(|source| BootstrapError::Io { path, source })
}
