//! The main job on real parts: real control planes that nothing can dial into, a hub, agents, users, plain kubectl.
//!
//! Run with `cargo test -p moorline-e2e`; `-- NAME` picks scenes. Needs root and what `tests/deps.sh` installs.

mod clusters;
mod commands;
mod deploy;
mod deploy_reasons;
mod drains;
mod endpoint;
mod endpoint_auto;
mod endpoint_kept;
mod endpoint_pods;
mod endpoint_recorded;
mod failures;
mod hub_api;
mod identity;
mod load;
mod load_pods;
mod logins;
mod nodes;
mod plans;
mod plans_kubeadm;
mod plugins;
mod plugins_clusters;
mod recordings;
mod services;
mod services_http;
mod shares;
mod store;
mod streams;
mod terminals;
mod units;
mod world;

use libtest_mimic::{Arguments, Trial};
use std::sync::{Arc, Mutex};
use world::World;

type Scene = fn(&mut World) -> anyhow::Result<()>;

const SCENES: &[(&str, Scene)] = &[
    ("commands_equal_direct", commands::equal_direct),
    ("objects_live_and_die_through_the_hub", commands::lifecycle),
    ("watch_shows_each_change", commands::watch),
    ("logs_exec_attach_cp_forward_proxy", streams::all),
    ("u09_kubectl_1_32_speaks_too", streams::older_kubectl),
    ("s02_act_as_needs_the_clusters_own_right", identity::act_as),
    ("s03_nobody_becomes_system_masters", identity::masters),
    ("s01_s06_smuggled_identity_never_arrives", identity::smuggled),
    ("errors_are_a_status_that_kubectl_prints", identity::errors),
    ("kubectl_renews_its_login_once_for_all", logins::credential_plugin),
    ("hub_api_speaks_kubectl", hub_api::kubectl),
    ("agent_runs_in_a_pod_with_its_service_account", hub_api::pod),
    ("plugin_rbac_keeps_roles_in_clusters", plugins::rbac),
    ("plugin_rbac_keeps_roles_in_the_clusters_that_match", plugins_clusters::rbac),
    ("a_node_agent_stands_in_for_its_cluster_agent", nodes::stands_in),
    ("a_node_agent_stands_in_while_fifty_clients_work", load::all),
    ("a_node_tells_how_it_is", nodes::facts),
    ("plans_bring_a_deleted_namespace_back", plans::all),
    ("plans_restore_an_etcd_as_kubeadm_has_it", plans_kubeadm::all),
    ("a_shell_on_a_node_is_its_users", nodes::shells),
    ("a_shells_terminal_is_raw_tells_its_size_and_is_given_back", terminals::all),
    ("sessions_in_terminals_are_recorded_and_replayed", recordings::all),
    ("deploy_manifests_and_chart_say_the_same", deploy::same),
    ("deploy_every_right_has_its_reason", deploy_reasons::all),
    ("deploy_units_are_hardened", deploy::units),
    ("deploy_units_run_under_a_real_systemd", units::all),
    ("deploy_an_unused_right_is_named", deploy::judge),
    ("deploy_endpoint_beside_the_agents", deploy::endpoint),
    ("deploy_pods_stand_in_while_fifty_kubectls_work", load_pods::all),
    ("plugin_projects_group_namespaces", plugins::projects),
    ("services_a_prometheus_federates_through_the_hub", services::prometheus),
    ("services_psql_speaks_to_a_postgresql", services::postgresql),
    ("services_dns_over_udp", services::dns),
    ("services_a_grpc_health_check", services::grpc),
    ("services_a_terminal_behind_a_websocket", services::terminal),
    ("services_http_streams_and_failures_have_names", services_http::all),
    ("services_of_two_clusters_have_an_address_in_another", shares::shared),
    ("plugin_health_tells_how_clusters_are", plugins::health),
    ("f35_u06_a_hub_moves_to_etcd_and_back", store::moves),
    ("plugin_secrets_follow_what_is_declared", plugins::secrets),
    ("plugin_clusters_imports_and_cleans_up", clusters::all),
    ("a_copied_identity_is_refused", failures::copied_identity),
    ("a_clock_an_hour_off_is_named", failures::clock),
    ("endpoint_answers_as_the_hub_does_and_while_it_is_away", endpoint::all),
    ("f01_one_context_follows_the_way_that_works", endpoint_auto::all),
    ("a_bundle_in_a_secret_outlives_hub_and_folder", endpoint_kept::all),
    ("terminals_of_the_direct_way_are_recorded_and_taken_over", endpoint_recorded::all),
    ("deploy_endpoint_pods_serve_users_while_the_hub_is_away", endpoint_pods::all),
    // These evict what others have left on the node.
    ("deploy_agents_run_from_images_and_use_every_right", deploy::installed),
    ("plans_empty_a_node_first_and_go_on_after_a_reboot", drains::all),
    // From here on edge2 has no API server.
    ("f40_api_server_down_is_a_502", failures::api_server_down),
    ("f04_agent_killed_is_an_error_and_it_comes_back", failures::agent_killed),
    ("f03_hub_drains_on_sigterm", failures::hub_drains),
    ("f01_hub_killed_and_agents_return_without_a_token", failures::hub_killed),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // One world, one scene at a time: scenes break and mend the same hub and agents.
    arguments.test_threads = Some(1);
    let world: Arc<Mutex<Option<Result<World, String>>>> = Arc::default();
    let trials = SCENES.iter().map(|&(name, scene)| {
        let world = Arc::clone(&world);
        Trial::test(name, move || {
            let mut guard = world.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // What does not start once is not tried for each scene.
            let world = guard.get_or_insert_with(|| World::start().map_err(|e| format!("{e:#}")));
            let world = world.as_mut().map_err(|e| e.clone())?;
            world.heal().and_then(|()| scene(world)).map_err(|e| format!("{e:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The world ends its processes, namespaces and mounts before the exit code is given.
    drop(world.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    conclusion.exit();
}
