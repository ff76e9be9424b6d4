//! The edge policy: what the owner of a cluster refuses, whatever the hub says.

use crate::{
    access::PLUGIN_PREFIX,
    identity::{ActAs, Identity},
    verb::{RequestInfo, percent_decode},
};
use serde::Deserialize;

mod plans;
mod reviews;
mod services;

pub use reviews::Asked;
pub use services::Terrain;

/// A policy. The default is what applies where no file is named: nobody passes as a part of Kubernetes itself.
///
/// Built in, whatever the file says: users `system:*` other than service accounts, and groups `system:*` other than
/// `system:authenticated` and those of service accounts, are refused unless `allowUsers` or `allowGroups` names them.
/// What `denyUsers` and `denyGroups` name is refused in any case; there a trailing `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgePolicy(Spec);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    #[serde(default, rename = "name")]
    _name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Spec {
    impersonation: Impersonation,
    api: Api,
    plugins: Plugins,
    services: services::Services,
    imports: services::Imports,
    stand_in: StandIn,
    shells: Shells,
    plans: plans::Plans,
}

/// Whether node agents do what users ask for, by the cluster's right to act as them. Without it: they do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct StandIn {
    allow: bool,
}

impl Default for StandIn {
    fn default() -> Self {
        Self { allow: true }
    }
}

/// Whether node agents give shells. Without it: to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Shells {
    allow: bool,
}

/// Which of the hub's plugins may do something here, each as the user `moorline:plugin:<name>`. Without it: none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Plugins {
    allow: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Impersonation {
    deny_users: Vec<String>,
    deny_groups: Vec<String>,
    allow_users: Vec<String>,
    allow_groups: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Api {
    read_only: bool,
    deny_paths: Vec<String>,
    deny_namespaces: Vec<String>,
}

/// The file is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an edge policy: {0}")]
pub struct PolicyError(String);

/// What is to be decided.
#[derive(Debug, Clone, Copy)]
pub struct EdgeRequest<'a> {
    /// On whose behalf.
    pub principal: &'a Identity,
    /// Whom they ask to act as.
    pub act_as: Option<&'a ActAs>,
    /// What.
    pub info: &'a RequestInfo,
    /// The raw path, without query.
    pub path: &'a str,
    /// It asks for an upgrade: what follows are bytes both ways that nobody judges.
    pub upgrade: bool,
}

/// A refusal. The text is for the caller and names the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EdgeDenial {
    /// The user may not be used here.
    #[error("the cluster's edge policy refuses user {0:?}")]
    User(String),
    /// A plugin of the hub that the owner has not let in.
    #[error(
        "the cluster's edge policy does not allow the hub's plugin {0:?}: its owner can name it in spec.plugins.allow"
    )]
    Plugin(String),
    /// The group may not be used here.
    #[error("the cluster's edge policy refuses group {0:?}")]
    Group(String),
    /// Only reading is allowed.
    #[error("the cluster's edge policy is read-only and refuses verb {0:?}")]
    ReadOnly(String),
    /// The path is closed.
    #[error("the cluster's edge policy refuses paths under {0:?}")]
    Path(String),
    /// The namespace is closed.
    #[error("the cluster's edge policy refuses namespace {0:?}")]
    Namespace(String),
    /// The service, pod or host is closed.
    #[error("the cluster's edge policy refuses {0}")]
    Service(String),
    /// A service that another cluster's pods may not reach.
    #[error("the cluster's edge policy refuses {to} to cluster {cluster:?}: its owner names it in services.importers")]
    Importer {
        /// Whose agent asked.
        cluster: String,
        /// For what.
        to: String,
    },
    /// A service that is not made for another cluster's.
    #[error("the cluster's edge policy lets no service {0} be imported: its owner names it in imports.allow")]
    Import(String),
    /// The cluster is read-only, and names no services that are open all the same.
    #[error("the cluster's edge policy is read-only and refuses {0}: its owner opens services by services.allow")]
    ServiceReadOnly(String),
    /// The address is none that is dialled.
    #[error(
        "the cluster's edge policy refuses {address}: {what} address; its owner opens it by services.allowAddresses"
    )]
    Address {
        /// With its port.
        address: String,
        /// What it is.
        what: &'static str,
    },
    /// Nodes give no shells.
    #[error("the cluster's edge policy gives no shells: its owner can switch them on by spec.shells.allow")]
    Shell,
    /// Node agents act as nobody.
    #[error("the cluster's edge policy has node agents act for no user: its owner can let them by spec.standIn.allow")]
    StandIn,
    /// Nodes take no plans.
    #[error("the cluster's edge policy takes no plans: its owner can switch them on by spec.plans.allow")]
    Plans,
    /// Nodes are not emptied.
    #[error("the cluster's edge policy lets no node be emptied: its owner can allow it by spec.plans.drain")]
    Drain,
    /// The program is not allowed.
    #[error("the cluster's edge policy refuses the program {0:?}: its owner can name it in spec.plans.commands")]
    Command(String),
    /// The file or folder is closed to plans.
    #[error("the cluster's edge policy refuses {0:?}: its owner can open a folder to plans by spec.plans.paths")]
    PlanPath(String),
    /// Some namespaces are closed, and this request reaches into all of them.
    #[error("the cluster's edge policy closes namespaces and refuses {0:?} across all of them: name one")]
    AllNamespaces(String),
}

impl EdgePolicy {
    /// Reads a policy file (YAML). Unknown keys, duplicate keys and further documents are errors.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_yaml(text: &str) -> Result<Self, PolicyError> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| PolicyError(e.to_string()))?;
        if file.api_version != "moorline.dev/v1alpha1" || file.kind != "EdgePolicy" {
            return Err(PolicyError("apiVersion must be moorline.dev/v1alpha1 and kind EdgePolicy".to_owned()));
        }
        let api = &file.spec.api;
        if let Some(path) = api.deny_paths.iter().find(|path| !path.starts_with('/')) {
            return Err(PolicyError(format!("denyPaths: {path:?} does not start with '/'")));
        }
        let named = &file.spec.impersonation;
        let plugins = &file.spec.plugins.allow;
        let mut names = plugins.iter().chain(&named.allow_users).chain(&named.allow_groups).chain(&api.deny_namespaces);
        if let Some(name) = names.find(|name| name.is_empty() || name.contains('*')) {
            return Err(PolicyError(format!("{name:?}: what is allowed, and each namespace, has to be named in full")));
        }
        file.spec.services.check().map_err(PolicyError)?;
        file.spec.plans.check().map_err(PolicyError)?;
        file.spec.imports.check().map_err(PolicyError)?;
        Ok(Self(file.spec))
    }

    /// May this request pass? Asks about the principal and about the identity to act as.
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn decide(&self, request: &EdgeRequest<'_>) -> Result<(), EdgeDenial> {
        self.admit(request.principal)?;
        if let Some(ActAs(who)) = request.act_as {
            self.admit(who)?;
        }
        self.path(request.path)?;
        self.namespace(request.info)?;
        self.verb(request.info, request.upgrade)
    }

    /// May this user have a shell on a node? What the shell then asks of the API server is decided call by call.
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn shell(&self, who: &Identity) -> Result<(), EdgeDenial> {
        self.admit(who)?;
        if self.0.shells.allow { Ok(()) } else { Err(EdgeDenial::Shell) }
    }

    /// May node agents carry what users ask for: calls to the API server while no cluster agent answers, and shells?
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn stands_in(&self) -> Result<(), EdgeDenial> {
        if self.0.stand_in.allow { Ok(()) } else { Err(EdgeDenial::StandIn) }
    }

    /// May this plan be done on a node?
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn plan(&self, plan: &crate::plan::Plan) -> Result<(), EdgeDenial> {
        self.0.plans.decide(plan)
    }

    /// May a plan look at this?
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn plan_probe(&self, probe: &crate::plan::Probe) -> Result<(), EdgeDenial> {
        self.0.plans.probe(probe)
    }

    /// May a plan touch what is at this path, which is where links have led?
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn plan_path(&self, path: &str) -> Result<(), EdgeDenial> {
        self.0.plans.path(path)
    }

    /// May anybody be this user here? For where the API server itself judges what they ask.
    ///
    /// # Errors
    /// The rule that refuses.
    pub fn admit(&self, who: &Identity) -> Result<(), EdgeDenial> {
        let rules = &self.0.impersonation;
        let system_user = |name: &str| name.starts_with("system:") && !name.starts_with("system:serviceaccount:");
        let refused = who.user.is_empty()
            || matches_any(&rules.deny_users, &who.user)
            || (system_user(&who.user) && !rules.allow_users.contains(&who.user));
        if refused {
            return Err(EdgeDenial::User(who.user.clone()));
        }
        if let Some(plugin) = who.user.strip_prefix(PLUGIN_PREFIX)
            && !self.0.plugins.allow.iter().any(|allowed| allowed == plugin)
        {
            return Err(EdgeDenial::Plugin(plugin.to_owned()));
        }
        let system_group = |name: &str| {
            name.starts_with("system:")
                && name != "system:authenticated"
                && name != "system:serviceaccounts"
                && !name.starts_with("system:serviceaccounts:")
        };
        let refused = who.groups.iter().find(|group| {
            matches_any(&rules.deny_groups, group) || (system_group(group) && !rules.allow_groups.contains(group))
        });
        refused.map_or(Ok(()), |group| Err(EdgeDenial::Group(group.clone())))
    }

    /// Judged on the raw path, on the decoded one, and on the decoded one without empty and `.` segments.
    fn path(&self, raw: &str) -> Result<(), EdgeDenial> {
        if self.0.api.deny_paths.is_empty() {
            return Ok(());
        }
        let Some(decoded) = percent_decode(raw) else { return Err(EdgeDenial::Path(raw.to_owned())) };
        let decoded = String::from_utf8_lossy(&decoded);
        let mut plain = String::with_capacity(decoded.len());
        for segment in decoded.split('/').filter(|segment| !matches!(*segment, "" | ".")) {
            if segment == ".." {
                return Err(EdgeDenial::Path("..".to_owned()));
            }
            plain.push('/');
            plain.push_str(segment);
        }
        let under = |prefix: &str, path: &str| {
            let prefix = prefix.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let hit = |prefix: &&String| [raw, &decoded, &plain].iter().any(|path| under(prefix, path));
        self.0.api.deny_paths.iter().find(hit).map_or(Ok(()), |prefix| Err(EdgeDenial::Path(prefix.clone())))
    }

    fn namespace(&self, info: &RequestInfo) -> Result<(), EdgeDenial> {
        let closed = &self.0.api.deny_namespaces;
        if closed.is_empty() || !info.is_resource {
            return Ok(());
        }
        if closed.contains(&info.namespace) {
            return Err(EdgeDenial::Namespace(info.namespace.clone()));
        }
        // A kubelet serves every namespace's pods.
        let kubelet = info.resource == "nodes" && (info.subresource == "proxy" || info.verb == "proxy");
        let everywhere = info.namespace.is_empty() && info.name.is_empty() && info.verb != "create";
        if kubelet || (everywhere && !CLUSTER_SCOPED.contains(&info.resource.as_str())) {
            return Err(EdgeDenial::AllNamespaces(info.resource.clone()));
        }
        Ok(())
    }

    fn verb(&self, info: &RequestInfo, upgrade: bool) -> Result<(), EdgeDenial> {
        // Asking about oneself changes nothing, though it is a POST.
        let asks = matches!(info.api_group.as_str(), "authorization.k8s.io" | "authentication.k8s.io")
            && matches!(
                info.resource.as_str(),
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
            );
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options");
        // Watches and logs may come over a WebSocket too. Any other GET of one is a console of some kind, built in or of
        // an API that was added to the cluster.
        let listens = info.verb == "watch" || (info.verb == "get" && info.subresource == "log");
        let reads = reads && (!upgrade || listens);
        if self.0.api.read_only && !reads && !asks { Err(EdgeDenial::ReadOnly(info.verb.clone())) } else { Ok(()) }
    }
}

/// Kinds without a namespace that Kubernetes itself has. A list of any other kind without a namespace may be one of all namespaces.
const CLUSTER_SCOPED: [&str; 20] = [
    "apiservices",
    "certificatesigningrequests",
    "clusterrolebindings",
    "clusterroles",
    "componentstatuses",
    "csidrivers",
    "csinodes",
    "customresourcedefinitions",
    "flowschemas",
    "ingressclasses",
    "mutatingwebhookconfigurations",
    "namespaces",
    "nodes",
    "persistentvolumes",
    "priorityclasses",
    "prioritylevelconfigurations",
    "runtimeclasses",
    "storageclasses",
    "validatingwebhookconfigurations",
    "volumeattachments",
];

fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verb::request_info;

    fn policy(spec: &str) -> EdgePolicy {
        EdgePolicy::from_yaml(&format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n{spec}")).unwrap()
    }
    fn who(policy: &EdgePolicy, user: &str, groups: &[&str]) -> Result<(), EdgeDenial> {
        let principal = Identity::new(user, groups.iter().copied());
        let info = request_info("GET", "/api", None);
        policy.decide(&EdgeRequest { principal: &principal, act_as: None, info: &info, path: "/api", upgrade: false })
    }
    fn what(policy: &EdgePolicy, method: &str, target: &str) -> Result<(), EdgeDenial> {
        let principal = Identity::new("ann", ["dev"]);
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let info = request_info(method, path, query);
        policy.decide(&EdgeRequest { principal: &principal, act_as: None, info: &info, path, upgrade: false })
    }

    #[test]
    fn shells_are_given_only_where_the_owner_says_so() {
        let ann = Identity::new("ann", ["dev"]);
        assert_eq!(EdgePolicy::default().stands_in(), Ok(()));
        assert_eq!(policy("  standIn: {allow: false}").stands_in(), Err(EdgeDenial::StandIn));
        let open = policy("  shells: {allow: true}\n  impersonation: {denyUsers: [bob]}");
        assert_eq!(open.shell(&ann), Ok(()));
        assert_eq!(EdgePolicy::default().shell(&ann), Err(EdgeDenial::Shell));
        assert!(open.shell(&Identity::new("bob", ["dev"])).is_err(), "whom the policy refuses gets no shell either");
        assert!(open.shell(&Identity::new("ann", ["system:masters"])).is_err());
    }

    #[test]
    fn plugins_are_let_in_by_name() {
        let open = policy("  plugins: {allow: [rbac]}");
        assert_eq!(who(&open, "moorline:plugin:rbac", &["moorline:plugins"]), Ok(()));
        let refused = |policy: &EdgePolicy, name: &str| matches!(who(policy, name, &[]), Err(EdgeDenial::Plugin(_)));
        assert!(refused(&open, "moorline:plugin:projects") && refused(&open, "moorline:plugin:rbac2"));
        assert!(refused(&EdgePolicy::default(), "moorline:plugin:rbac"), "none by default");
        let any = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  plugins: {allow: [\"*\"]}";
        assert!(EdgePolicy::from_yaml(any).is_err(), "each has to be named");
    }

    #[test]
    fn s03_without_a_file_nobody_is_kubernetes_itself() {
        let policy = EdgePolicy::default();
        assert_eq!(who(&policy, "ann", &["dev", "system:authenticated"]), Ok(()));
        assert_eq!(
            who(&policy, "system:serviceaccount:a:b", &["system:serviceaccounts", "system:serviceaccounts:a"]),
            Ok(())
        );
        for group in ["system:masters", "system:nodes", "system:unauthenticated", "system:serviceaccountsx", "system:"]
        {
            assert_eq!(who(&policy, "ann", &["dev", group]), Err(EdgeDenial::Group(group.into())));
        }
        for user in ["system:admin", "system:node:a", "system:anonymous", "system:serviceaccount", ""] {
            assert_eq!(who(&policy, user, &[]), Err(EdgeDenial::User(user.into())));
        }
    }

    #[test]
    fn s03_the_identity_to_act_as_is_judged_too() {
        let (principal, act_as) = (Identity::new("ann", ["dev"]), ActAs(Identity::new("bob", ["system:masters"])));
        let info = request_info("GET", "/api", None);
        let request =
            EdgeRequest { principal: &principal, act_as: Some(&act_as), info: &info, path: "/api", upgrade: false };
        assert!(EdgePolicy::default().decide(&request).is_err());
    }

    #[test]
    fn only_a_full_name_opens_what_is_closed() {
        let open =
            policy("  impersonation: {allowGroups: ['system:masters'], denyUsers: ['tmp-*'], denyGroups: ['guests']}");
        assert_eq!(who(&open, "ann", &["system:masters"]), Ok(()));
        assert!(who(&open, "ann", &["system:nodes"]).is_err());
        assert!(who(&open, "tmp-1", &[]).is_err() && who(&open, "ann", &["guests"]).is_err());
        let both = policy("  impersonation: {allowGroups: ['system:masters'], denyGroups: ['system:masters']}");
        assert!(who(&both, "ann", &["system:masters"]).is_err(), "a refusal wins");
    }

    #[test]
    fn s66_what_is_no_policy_is_refused() {
        let head = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\n";
        for text in [
            "",
            "null",
            "[]",
            "spec: {}",
            head,
            "apiVersion: v1\nkind: EdgePolicy\nspec: {}",
            &format!("{head}spec: {{api: {{readonly: true}}}}"),
            &format!("{head}spec: {{api: {{readOnly: yes please}}}}"),
            &format!("{head}spec: {{}}\nspec: {{api: {{readOnly: true}}}}"),
            &format!("{head}spec: {{}}\nextra: 1"),
            &format!("{head}spec: {{}}\n---\n{head}spec: {{}}"),
            &format!("{head}spec: {{impersonation: {{allowGroups: ['*']}}}}"),
            &format!("{head}spec: {{api: {{denyPaths: ['metrics']}}}}"),
            &format!("{head}spec: {{api: {{denyPaths: ['/metr"),
        ] {
            assert!(EdgePolicy::from_yaml(text).is_err(), "{text}");
        }
        assert!(EdgePolicy::from_yaml(&format!("{head}metadata: {{name: x}}\nspec: {{}}")).is_ok());
    }

    #[test]
    fn s43_closed_paths_stay_closed_however_they_are_spelt() {
        let policy = policy("  api: {denyPaths: [/metrics, /apis/acme.io/]}");
        for path in [
            "/metrics",
            "/metrics/slis",
            "/%6detrics",
            "//metrics",
            "/./metrics",
            "/a/../metrics",
            "/apis/acme.io",
            "/apis%2Facme.io/v1/x",
            "/%zz",
        ] {
            assert!(what(&policy, "GET", path).is_err(), "{path}");
        }
        for path in ["/metricsx", "/api/v1/pods", "/apis/acme.iox/v1/y"] {
            assert_eq!(what(&policy, "GET", path), Ok(()), "{path}");
        }
    }

    #[test]
    fn closed_namespaces_are_closed_from_all_sides() {
        let policy = policy("  api: {denyNamespaces: [vault]}");
        for target in [
            "/api/v1/namespaces/vault",
            "/api/v1/namespaces/vault/secrets",
            "/api/v1/namespaces/vault%2Fsecrets",
            "/api/v1/secrets",
            "/api/v1/secrets?watch=1",
            "/api/v1/watch/secrets",
            "/api/v1/nodes/n/proxy/pods",
            "/api/v1/watch/namespaces/vault/secrets",
        ] {
            assert!(what(&policy, "GET", target).is_err(), "{target}");
        }
        for target in ["/api/v1/namespaces/a/secrets", "/api/v1/nodes", "/api/v1/nodes/n", "/healthz", "/api/v1"] {
            assert_eq!(what(&policy, "GET", target), Ok(()), "{target}");
        }
    }

    #[test]
    fn s48_read_only_is_no_way_to_run_things() {
        let policy = policy("  api: {readOnly: true}");
        for (method, target) in [
            ("GET", "/api/v1/namespaces/a/pods/p/exec?command=id"),
            ("GET", "/api/v1/nodes/n/proxy/run/a/b/c"),
            ("POST", "/api/v1/namespaces/a/pods"),
            ("GET", "/api/v1/proxy/nodes/n/x"),
            ("DELETE", "/api/v1/nodes"),
            ("POST", "/x"),
            ("PATCH", "/api/v1/nodes/n"),
            ("QUERY", "/api/v1/nodes/n"),
        ] {
            assert!(what(&policy, method, target).is_err(), "{method} {target}");
        }
        for (method, target) in [
            ("GET", "/api/v1/pods?watch=1"),
            ("HEAD", "/version"),
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ] {
            assert_eq!(what(&policy, method, target), Ok(()), "{method} {target}");
        }
    }
}
