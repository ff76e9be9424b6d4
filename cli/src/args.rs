//! The command line as a whole.

use crate::{
    access, agent, apikey, audit, bench, can_i, clusters, delete, doctor, endpoint, forward, get, grant, group, hub,
    import, kube, kubeconfig, login, plan, principals, reference, service, share, shell, status, text, token, user,
    version,
};
use clap::{CommandFactory, FromArgMatches};
use std::{path::Path, process::ExitCode};

/// Keeps Kubernetes clusters reachable through a tunnel that their agents dial out.
#[derive(Debug, clap::Parser)]
#[command(
    name = "moorline",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    subcommand_required = true
)]
#[command(after_help = "\
First steps:
  moorline hub --data-dir hub --name hub.example       run a hub; it prints how to log in
  moorline login https://hub.example:8443 --user admin
  moorline token create --cluster edge1                print the command that joins a cluster
  moorline kubeconfig edge1 --merge --use              then: kubectl get pods

Exit codes: 0 done, 1 failed, 2 called wrongly. Data goes to standard output, words to standard error.
Environment: MOORLINE_HUB, MOORLINE_CA_FILE, MOORLINE_API_KEY, MOORLINE_LOG, NO_COLOR.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Every command.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Log in to a hub
    Login(login::LoginArgs),
    /// Log out: the hub forgets the login
    Logout(login::LogoutArgs),
    /// Who the hub takes you for
    Whoami(login::WhoamiArgs),
    /// List clusters
    #[command(visible_alias = "cluster")]
    Clusters(clusters::Args),
    /// The hub and its clusters at a glance
    Status(status::Args),
    /// Write what kubectl needs to reach clusters
    Kubeconfig(Box<kubeconfig::Args>),
    /// Services, pods and hosts of a cluster at local ports
    #[command(visible_alias = "port-forward")]
    Forward(Box<forward::Args>),
    /// Open a terminal on a node of a cluster
    Shell(shell::Args),
    /// What the tunnel to a cluster can carry
    Bench(bench::Args),
    /// Have something done on nodes of a cluster
    #[command(subcommand, arg_required_else_help = true)]
    Plan(plan::Command),
    /// Find out why something does not connect
    Doctor(doctor::Args),
    /// Tokens that let agents join
    #[command(subcommand, arg_required_else_help = true)]
    Token(token::Command),
    /// Tokens for programs
    #[command(subcommand, arg_required_else_help = true)]
    Apikey(apikey::Command),
    /// The hub's local users
    #[command(subcommand, arg_required_else_help = true)]
    User(user::Command),
    /// Groups of users and of login providers' groups
    #[command(subcommand, arg_required_else_help = true)]
    Group(group::Command),
    /// Users and groups, wherever they are known
    #[command(subcommand, arg_required_else_help = true)]
    Principals(principals::Command),
    /// Who may use which cluster
    #[command(subcommand, arg_required_else_help = true)]
    Grant(grant::Command),
    /// Services of one cluster at addresses of another
    #[command(subcommand, arg_required_else_help = true)]
    Share(share::Command),
    /// More rights on a cluster for a while
    #[command(subcommand, arg_required_else_help = true)]
    Access(access::Command),
    /// What you may do, and which rule says so
    #[command(subcommand, arg_required_else_help = true)]
    Auth(can_i::Command),
    /// Have the hub reach a cluster by itself, with a kubeconfig and without an agent there
    Import(import::Args),
    /// List objects of the hub's API
    Get(get::Args),
    /// Delete objects of the hub's API
    Delete(delete::Args),
    /// Who did what
    #[command(subcommand, arg_required_else_help = true)]
    Audit(audit::Command),
    /// Run a hub
    Hub(Box<hub::Args>),
    /// Run a cluster's agent
    Agent(Box<agent::Args>),
    /// Hub or agent as a Windows service
    #[command(subcommand, arg_required_else_help = true)]
    Service(service::Command),
    /// Let a cluster's users in while the hub is away
    Endpoint(Box<endpoint::Args>),
    /// What kubectl calls by itself
    #[command(subcommand, arg_required_else_help = true, hide = true)]
    Kube(kube::Command),
    /// A reference page of the book, written from the code
    #[command(hide = true)]
    Reference {
        /// Which
        #[arg(value_enum)]
        page: reference::Page,
    },
    /// Versions of this program and of the hub
    Version(version::Args),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  source <(moorline completion bash)
  moorline completion zsh > ~/.zfunc/_moorline
  moorline completion fish > ~/.config/fish/completions/moorline.fish
  moorline completion powershell | Out-String | Invoke-Expression")]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Reads this process's command line. Wrong usage ends the process with 2, `--help` and `--version` with 0.
pub fn parse() -> Command {
    let plugin = std::env::args_os().next().is_some_and(|me| is_plugin(Path::new(&me)));
    let command = Cli::command().bin_name(if plugin { "kubectl moorline" } else { "moorline" });
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    }
}

/// Reads a command line without the program's name.
pub fn read(words: Vec<std::ffi::OsString>) -> Result<Command, clap::Error> {
    let words = std::iter::once("moorline".into()).chain(words);
    Cli::command().try_get_matches_from(words).and_then(|m| Cli::from_arg_matches(&m)).map(|cli| cli.command)
}

/// Called by kubectl, as its plugin `kubectl-moorline`.
fn is_plugin(program: &Path) -> bool {
    program.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
}

/// Runs a command to its end.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Hub(args) => hub::run(*args),
        Command::Agent(args) => agent::run(*args),
        Command::Endpoint(args) => endpoint::run(*args),
        Command::Forward(args) => forward::run(*args),
        Command::Completion { shell } => completion(shell).map(|()| ExitCode::SUCCESS),
        Command::Service(command) => service::run(command),
        Command::Reference { page } => reference::run(page),
        other => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(ask(other));
            // A name lookup that hangs must not keep a finished command.
            runtime.shutdown_background();
            result
        }
    }
}

/// The commands that ask a hub something.
async fn ask(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Doctor(args) => return doctor::run(args).await,
        Command::Shell(args) => return shell::run(args).await,
        Command::Login(args) => login::login(args).await,
        Command::Logout(args) => login::logout(args).await,
        Command::Whoami(args) => login::whoami(args).await,
        Command::Clusters(args) => clusters::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Kubeconfig(args) => kubeconfig::run(*args).await,
        Command::Token(command) => token::run(command).await,
        Command::Apikey(command) => apikey::run(command).await,
        Command::User(command) => user::run(command).await,
        Command::Grant(command) => grant::run(command).await,
        Command::Share(command) => share::run(command).await,
        Command::Access(command) => access::run(command).await,
        Command::Plan(command) => plan::run(command).await,
        Command::Group(command) => group::run(command).await,
        Command::Principals(command) => principals::run(command).await,
        Command::Audit(command) => return audit::run(command).await,
        Command::Auth(command) => return can_i::run(command).await,
        Command::Import(args) => import::run(args).await,
        Command::Get(args) => get::run(args).await,
        Command::Delete(args) => delete::run(args).await,
        Command::Kube(command) => kube::run(command).await,
        Command::Version(args) => version::run(args).await,
        // Taken care of by the caller.
        Command::Hub(_) | Command::Agent(_) | Command::Endpoint(_) | Command::Forward(_) => Ok(()),
        Command::Service(_) | Command::Reference { .. } | Command::Completion { .. } => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "moorline", &mut script);
    Ok(text::print(&String::from_utf8(script)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectl_plugins_are_told_by_name() {
        assert!(is_plugin(Path::new("/usr/bin/kubectl-moorline")));
        assert!(is_plugin(Path::new("kubectl-moorline.exe")));
        assert!(!is_plugin(Path::new("/usr/bin/moorline")));
    }

    /// Every command and argument tells what it is.
    #[test]
    fn nothing_is_without_help() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no help");
            for argument in command.get_arguments().filter(|a| a.get_id() != "help" && a.get_id() != "version") {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            command.get_subcommands().for_each(|sub| walk(sub, &format!("{path} {}", sub.get_name())));
        }
        walk(&Cli::command(), "moorline");
    }
}
