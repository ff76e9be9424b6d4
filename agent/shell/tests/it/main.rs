//! Real shells in real sandboxes, used and attacked. They need root, as a node agent that gives shells does.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attacks;
mod client;
mod escapes;
mod memory;
mod rights;
mod uses;

use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// Set where signals are ignored.
const IGNORING: &str = "MOORLINE_TEST_IGNORES_SIGNALS";

fn main() -> ExitCode {
    if let Some(code) = moorline_shell::inside() {
        return code;
    }
    let root = std::fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    // As an agent that something in the background has started: what it ignores, a shell must not. And as one in a pod:
    // with the rights that it has there, and no other.
    if std::env::var_os(IGNORING).is_none() {
        if root {
            rights::keep();
        }
        let mut again = Command::new("/bin/sh");
        again.args(["-c", "trap '' INT QUIT HUP TSTP; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
        again.args(std::env::args_os().skip(1)).env(IGNORING, "1").env("MOORLINE_TOKEN", escapes::CANARY);
        panic!("no /bin/sh: {}", again.exec());
    }
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($(#[$only:meta])? $module:ident :: $name:ident),+ $(,)?) => {$($(#[$only])? {
            let run = || -> Result<(), Failed> {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                let test = async { tokio::time::timeout(client::LONG, $module::$name()).await };
                runtime.block_on(test).map_err(|_| Failed::from("not in time"))
            };
            trials.push(Trial::test(stringify!($name), run).with_ignored_flag(!root));
        })+};
    }
    trials!(
        uses::commands_run_and_the_exit_code_is_told,
        uses::the_window_has_the_clients_size,
        uses::keys_stop_and_end_what_runs,
        uses::a_letter_of_many_bytes_is_taken_back_whole,
        uses::a_megabyte_can_be_pasted,
        uses::a_gigabyte_of_output_arrives_whole,
        uses::calls_to_the_api_server_are_the_users,
        uses::a_shell_in_which_nothing_is_typed_ends,
        uses::a_client_comes_back_to_its_shell,
        uses::nothing_is_lost_or_shown_twice_when_a_client_comes_back,
        uses::a_shell_that_shows_much_waits_for_its_client,
        uses::a_shell_whose_client_stays_away_ends,
        uses::a_request_that_is_no_websocket_is_told_so,
        attacks::nobody_with_no_right,
        attacks::no_file_of_the_node_is_there,
        attacks::no_process_but_its_own_is_seen,
        attacks::no_namespace_is_made_or_entered,
        #[cfg(target_arch = "x86_64")]
        attacks::calls_that_a_shell_has_no_use_for_are_filtered,
        attacks::its_namespaces_are_its_own,
        attacks::its_resources_are_bounded,
        attacks::who_computes_gives_way,
        attacks::nothing_is_asked_while_the_client_is_away,
        attacks::what_is_asked_is_asked_as_whoever_is_there_now,
        attacks::no_network_but_its_own,
        attacks::nothing_is_typed_into_a_terminal_by_ioctl,
        attacks::one_shell_does_not_see_another,
        attacks::a_fork_bomb_is_bounded_and_ends_with_its_shell,
        attacks::a_client_that_does_not_read_holds_up_nobody,
        attacks::nothing_outlives_its_client,
        attacks::what_does_not_hear_its_terminal_ends_with_its_shell,
        attacks::nothing_outlives_its_agent,
        escapes::no_secret_of_the_agent_or_the_node_is_found,
        escapes::no_link_leads_out,
        escapes::another_users_shell_is_out_of_reach,
        memory::who_eats_memory_is_ended_and_nobody_else,
        memory::the_shells_processes_go_before_the_agent,
        memory::nothing_is_kept_that_is_no_processs_memory,
        rights::each_that_it_is_given_is_needed,
    );
    // One at a time, and no other run beside: each counts the processes of the user ids that shells have.
    // Without root there is nothing to be alone for, and the file may be root's.
    let alone = (root && !rights::lacks_one() && std::env::var_os(attacks::KILLED).is_none())
        .then(|| std::fs::File::create(std::env::temp_dir().join("moorline-shell-tests.lock")).unwrap());
    alone.iter().for_each(|file| file.lock().unwrap());
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}
