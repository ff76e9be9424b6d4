//! kubeadm's kubeconfig files, such as `admin.conf`: beside its folder `pki`, each with a client certificate and its key in
//! it. A new certificate takes the place of the old one's text; the rest of the file stays as it is, to the letter.

use crate::{limits, state::read_text};
use base64::{Engine, engine::general_purpose::STANDARD};
use kube::config::Kubeconfig;
use secrecy::ExposeSecret;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A kubeconfig whose user has certificate and key in it.
pub(super) struct Embedded {
    text: String,
    /// The certificate as the file has it.
    pub encoded: String,
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

/// The folder of the kubeconfig files: the one that has a folder which is called `pki`.
pub(super) fn folder(pki: &Path) -> Option<&Path> {
    pki.parent().filter(|_| pki.file_name().is_some_and(|name| name == "pki"))
}

/// The kubeconfig files beside a folder that is called `pki`. Links are left out.
pub(super) fn beside(pki: &Path) -> Vec<PathBuf> {
    let entries = folder(pki).and_then(|above| fs::read_dir(above).ok()).into_iter().flatten().flatten();
    let plain = entries.take(limits::NODE_FILES).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut found: Vec<PathBuf> = plain.map(|entry| entry.path()).filter(|path| is_kubeconfig(path)).collect();
    found.sort();
    found
}

/// As its name has it.
pub(super) fn is_kubeconfig(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conf")
}

impl Embedded {
    /// `None`: what is there is none such. The kubelet's names files that it renews itself.
    pub fn read(path: &Path) -> Option<Self> {
        let text = read_text(path).ok()?;
        let users = Kubeconfig::from_yaml(&text).ok()?.auth_infos;
        let of = |encoded: &str| String::from_utf8(STANDARD.decode(encoded).ok()?).ok();
        let (encoded, key) = users.into_iter().find_map(|user| {
            let user = user.auth_info?;
            Some((user.client_certificate_data?, of(user.client_key_data?.expose_secret())?))
        })?;
        Some(Self { certificate: of(&encoded)?, text, encoded, key })
    }

    /// The file with this certificate in the old one's place.
    pub fn with(&self, certificate: &str) -> Result<String, String> {
        if self.text.matches(&self.encoded).count() != 1 {
            return Err("its certificate is not on one line, once".to_owned());
        }
        Ok(self.text.replacen(&self.encoded, &STANDARD.encode(certificate), 1))
    }
}
