//! Shells in real pseudo consoles: on Windows, or under Wine as far as Wine has them (`tests/windows.sh`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(windows)]
#[allow(dead_code)]
#[path = "../it/client.rs"]
mod client;
#[cfg(windows)]
mod probe;
#[cfg(windows)]
mod uses;

#[cfg(not(windows))]
fn main() {}

#[cfg(windows)]
fn main() -> std::process::ExitCode {
    use libtest_mimic::{Arguments, Failed, Trial};
    if let Some(code) = probe::run() {
        return code;
    }
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($name:ident),+ $(,)?) => {$({
            let run = || -> Result<(), Failed> {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                let test = async { tokio::time::timeout(client::LONG, uses::$name()).await };
                runtime.block_on(test).map_err(|_| Failed::from("not in time"))
            };
            trials.push(Trial::test(stringify!($name), run));
        })+};
    }
    trials!(
        commands_run_and_the_exit_code_is_told,
        a_window_that_cannot_change_does_not_disturb,
        what_runs_hears_ctrl_c,
        nothing_of_the_agents_environment_is_there,
        calls_to_the_api_server_are_the_users,
        a_megabyte_can_be_pasted,
        a_megabyte_of_output_arrives,
        a_shell_in_which_nothing_is_typed_ends,
        what_is_typed_may_end,
        a_client_comes_back_to_its_shell,
        nothing_outlives_its_client,
        what_a_killed_agent_left_behind_is_swept_and_the_living_keep_theirs,
        a_node_that_shows_its_secrets_gives_no_shell,
        a_shell_has_no_rights_of_the_agents,
    );
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}
