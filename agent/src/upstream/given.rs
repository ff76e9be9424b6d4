//! A kubeconfig as a text that came from elsewhere: it may say where the API server is and what to show there, and
//! nothing that reads a file or runs a program on this machine.

use super::endpoint::{EndpointError, error};
use kube::config::Kubeconfig;
use std::fmt;

/// See the module. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct GivenKubeconfig {
    /// YAML or JSON.
    pub text: String,
    /// The context. Default: its current one.
    pub context: Option<String>,
}

impl fmt::Debug for GivenKubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenKubeconfig").field("context", &self.context).finish_non_exhaustive()
    }
}

impl GivenKubeconfig {
    /// Whether it can be used, as far as its text tells. The answer is the server's address.
    ///
    /// # Errors
    /// What is wrong, without a word of its secrets.
    pub fn server(&self) -> Result<String, EndpointError> {
        let mut document = self.document()?;
        let cluster = document.clusters.pop().and_then(|named| named.cluster);
        let cluster = cluster.ok_or_else(|| error("the kubeconfig's context names no cluster"))?;
        let server = cluster.server.unwrap_or_default();
        if !server.starts_with("https://") {
            return Err(error("the kubeconfig's server is not https://HOST"));
        }
        if cluster.certificate_authority_data.is_none() {
            return Err(error(
                "the kubeconfig has no certificate-authority-data: put the authority's PEM in, as base64",
            ));
        }
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Err(error("the kubeconfig skips the verification of the server; name its authority instead"));
        }
        let user = document.auth_infos.pop().and_then(|named| named.auth_info);
        let user = user.ok_or_else(|| error("the kubeconfig's context names no user"))?;
        if user.token.is_none() && user.client_certificate_data.is_none() {
            return Err(error("the kubeconfig's user has neither token nor client-certificate-data"));
        }
        Ok(server)
    }

    /// The document with its one context, cluster and user, none of which points out of it.
    pub(super) fn document(&self) -> Result<Kubeconfig, EndpointError> {
        // The parser's own words would show the line that it stumbled over.
        let mut all = Kubeconfig::from_yaml(&self.text).map_err(|_| error("the text is no kubeconfig"))?;
        let context = self.context.clone().or_else(|| all.current_context.clone());
        let context = context.ok_or_else(|| error("the kubeconfig has no current-context; name a context"))?;
        let named = all.contexts.iter().find(|named| named.name == context).and_then(|named| named.context.clone());
        let named = named.ok_or_else(|| error(format!("the kubeconfig has no context {context:?}")))?;
        all.contexts.retain(|one| one.name == context);
        all.clusters.retain(|one| one.name == named.cluster);
        all.auth_infos.retain(|one| named.user.as_ref() == Some(&one.name));
        all.current_context = Some(context);
        let outside = |there: bool, what: &str| {
            let why =
                format!("the kubeconfig names {what}, which only the machine it comes from has; put its content in");
            if there { Err(error(why)) } else { Ok(()) }
        };
        for cluster in all.clusters.iter().filter_map(|one| one.cluster.as_ref()) {
            outside(cluster.certificate_authority.is_some(), "a file (certificate-authority)")?;
        }
        for user in all.auth_infos.iter().filter_map(|one| one.auth_info.as_ref()) {
            outside(user.client_certificate.is_some(), "a file (client-certificate)")?;
            outside(user.client_key.is_some(), "a file (client-key)")?;
            outside(user.token_file.is_some(), "a file (tokenFile)")?;
            outside(user.exec.is_some(), "a program (exec)")?;
            outside(user.auth_provider.is_some(), "a program (auth-provider)")?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cluster: &str, user: &str) -> GivenKubeconfig {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: other, cluster: {{server: 'http://x'}}}}, {{name: k, cluster: {{{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        );
        GivenKubeconfig { text, context: None }
    }

    const CLUSTER: &str = "server: 'https://k:6443', certificate-authority-data: eA==";

    #[test]
    fn s69_a_given_kubeconfig_reaches_no_file_and_no_program_of_this_machine() {
        assert_eq!(config(CLUSTER, "token: hunter2").server().unwrap(), "https://k:6443");
        for (cluster, user, word) in [
            (CLUSTER, "tokenFile: /etc/shadow", "tokenFile"),
            (CLUSTER, "client-certificate: /etc/x, client-key-data: eA==", "client-certificate"),
            (CLUSTER, "client-key: /etc/x", "client-key"),
            (CLUSTER, "token: hunter2, exec: {command: /bin/sh, apiVersion: v1}", "exec"),
            (CLUSTER, "username: x, password: hunter2", "neither token"),
            ("server: 'https://k:6443', certificate-authority: /etc/x", "token: hunter2", "certificate-authority"),
            ("server: 'https://k:6443'", "token: hunter2", "certificate-authority-data"),
            ("server: 'http://k', certificate-authority-data: eA==", "token: hunter2", "https"),
            (
                "server: 'https://k', certificate-authority-data: eA==, insecure-skip-tls-verify: true",
                "token: hunter2",
                "skips",
            ),
        ] {
            let why = config(cluster, user).server().unwrap_err().to_string();
            assert!(why.contains(word) && !why.contains("hunter2"), "{word}: {why}");
        }
        let text = "token: hunter2: [".to_owned();
        let why = GivenKubeconfig { text, context: None }.server().unwrap_err().to_string();
        assert!(why.contains("no kubeconfig") && !why.contains("hunter2"), "{why}");
        let other = GivenKubeconfig { context: Some("d".to_owned()), ..config(CLUSTER, "token: hunter2") };
        assert!(other.server().unwrap_err().to_string().contains("no context"));
        assert!(!format!("{other:?}").contains("hunter2"));
    }
}
