//! The plugins that this hub is built with. All are on unless the configuration says otherwise.

use moorline_plugin::Factory;

/// Each by its factory. No other place names them.
pub const ALL: &[Factory] = &[
    Factory::of::<moorline_plugin_clusters::ClustersPlugin>(),
    Factory::of::<moorline_plugin_health::Health>(),
    Factory::of::<moorline_plugin_projects::Projects>(),
    Factory::of::<moorline_plugin_rbac::Rbac>(),
    Factory::of::<moorline_plugin_secrets::Secrets>(),
];

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_plugin::Host;
    use std::collections::BTreeMap;

    /// S55: a kind that a plugin brings is one by which somebody may take a right, until somebody has looked at it.
    #[tokio::test]
    async fn s55_each_kind_of_a_plugin_is_classified() {
        let all = Factory::build(ALL, BTreeMap::new()).unwrap();
        let host = Host::new(all, &prometheus::Registry::new()).unwrap();
        let known: Vec<_> = moorline_plugin_rbac::powers::KINDS.iter().map(|(plural, _)| *plural).collect();
        let unknown: Vec<_> = host.kinds().map(|kind| kind.plural()).filter(|p| !known.contains(p)).collect();
        assert_eq!(unknown, [""; 0], "name them in hub/plugins/rbac/src/powers.rs");
    }
}
