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
