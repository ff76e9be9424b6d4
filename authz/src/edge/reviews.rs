//! Questions whether one may do something: what the cluster permits, the policy may refuse all the same.

use super::{EdgeDenial, EdgePolicy};
use crate::verb::RequestInfo;
use serde::Deserialize;

/// What a SelfSubjectAccessReview asks about: its `spec` (`authorization.k8s.io/v1`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
}

/// Something with a kind. Where a field is empty, everything is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ResourceAttributes {
    verb: String,
    group: String,
    version: String,
    namespace: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct NonResourceAttributes {
    verb: String,
    path: String,
}

/// Subresources that become a connection, whatever the verb.
const CONSOLES: [&str; 4] = ["exec", "attach", "portforward", "proxy"];

impl ResourceAttributes {
    fn info(&self) -> RequestInfo {
        let prefix = if self.group.is_empty() { "api" } else { "apis" };
        RequestInfo {
            is_resource: true,
            verb: self.verb.clone(),
            prefix: prefix.to_owned(),
            api_group: self.group.clone(),
            version: self.version.clone(),
            namespace: self.namespace.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            name: self.name.clone(),
            endless: false,
        }
    }

    /// Where such a request goes, as far as the question says it.
    fn path(&self) -> String {
        let version = match (self.version.as_str(), self.group.as_str()) {
            ("" | "*", "") => "v1",
            ("" | "*", _) => "",
            (version, _) => version,
        };
        let mut path = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let within = if self.namespace.is_empty() { "" } else { "namespaces" };
        let parts = [version, within, &self.namespace, &self.resource, &self.name, &self.subresource];
        // Under another part that is not known nothing can be told from the rest.
        for part in if version.is_empty() { &[][..] } else { &parts[..] } {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        path
    }
}

impl EdgePolicy {
    /// Would a request pass of which this asks whether it may be made? For callers whom [`EdgePolicy::decide`] lets ask.
    ///
    /// # Errors
    /// The rule that would refuse it.
    pub fn review(&self, asked: &Asked) -> Result<(), EdgeDenial> {
        if let Some(resource) = &asked.resource_attributes {
            let info = resource.info();
            self.path(&resource.path())?;
            self.namespace(&info)?;
            return self.verb(&info, CONSOLES.contains(&info.subresource.as_str()));
        }
        let Some(NonResourceAttributes { verb, path }) = &asked.non_resource_attributes else { return Ok(()) };
        self.path(path)?;
        self.verb(&RequestInfo { verb: verb.to_ascii_lowercase(), ..RequestInfo::default() }, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_refused_where_the_request_would_be() {
        let policy = |spec: &str| {
            let head = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  api: ";
            EdgePolicy::from_yaml(&format!("{head}{spec}")).unwrap()
        };
        let (read_only, closed, paths) = (
            policy("{readOnly: true}"),
            policy("{denyNamespaces: [kube-system]}"),
            policy("{denyPaths: [/metrics, /api/v1/namespaces/shop/secrets, /apis/apps]}"),
        );
        // Verb, resource, group, namespace, name → whether each of the three lets it pass.
        for (resource, want) in [
            (["get", "pods", "", "shop", ""], [true, true, true]),
            (["delete", "pods", "", "shop", "web"], [false, true, true]),
            (["*", "pods", "", "shop", ""], [false, true, true]),
            (["create", "selfsubjectaccessreviews", "authorization.k8s.io", "", ""], [true, true, true]),
            (["get", "pods", "", "kube-system", ""], [true, false, true]),
            (["list", "pods", "", "", ""], [true, false, true]),
            (["list", "nodes", "", "", ""], [true, true, true]),
            (["get", "secrets", "", "shop", "tls"], [true, true, false]),
            (["get", "secrets", "", "web", "tls"], [true, true, true]),
            (["list", "deployments", "apps", "shop", ""], [true, true, false]),
            (["get", "pods/exec", "", "shop", "web"], [false, true, true]),
            (["get", "pods/log", "", "shop", "web"], [true, true, true]),
            (["get", "nodes/proxy", "", "", "n1"], [false, false, true]),
        ] {
            let [verb, named, group, namespace, name] = resource.map(str::to_owned);
            let (named, subresource) = named.split_once('/').unwrap_or((&named, ""));
            let (resource, subresource) = (named.to_owned(), subresource.to_owned());
            let version = String::new();
            let asked = ResourceAttributes { verb, group, version, namespace, resource, subresource, name };
            let asked = Asked { resource_attributes: Some(asked), ..Asked::default() };
            let said = [&read_only, &closed, &paths].map(|policy| policy.review(&asked).is_ok());
            assert_eq!(said, want, "{asked:?}");
        }
        for (text, want) in [
            (r#"{"nonResourceAttributes":{"verb":"get","path":"/metrics/cadvisor"}}"#, [true, true, false]),
            (r#"{"nonResourceAttributes":{"verb":"post","path":"/logs"}}"#, [false, true, true]),
            ("{}", [true, true, true]),
        ] {
            let asked: Asked = serde_json::from_str(text).unwrap();
            let said = [&read_only, &closed, &paths].map(|policy| policy.review(&asked).is_ok());
            assert_eq!(said, want, "{text}");
        }
    }
}
