//! `moorline service`: hub or agent as a Windows service.

use crate::{args, daemon, failure::usage, files, logging, text};
use anyhow::Context;
use moorline_service::Registration;
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Size of a log file, in bytes, at which it is put aside; one older file is kept.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// `moorline service`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Register a service that runs a hub or an agent
    #[command(after_help = "\
Examples:
  moorline service install --name moorline-agent -- agent --config C:\\ProgramData\\moorline-agent\\agent.yaml
  moorline service install --name moorline-hub --dry-run -- hub --name hub.example

It starts with the system, as the account LocalService, and again 5 s after a failure. Then: sc start NAME.")]
    Install(InstallArgs),
    /// Stop a service and remove it; its state stays
    Remove {
        /// The service's name
        #[arg(long, value_name = "NAME", default_value = "moorline-agent")]
        name: String,
    },
    /// What the service manager calls
    #[command(hide = true)]
    Run(RunArgs),
}

/// `moorline service install`
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// The service's name
    #[arg(long, value_name = "NAME", default_value = "moorline-agent")]
    name: String,
    /// File for the log [default: NAME.log in the folder of the machine's program data]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Print what would be registered, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// The command: hub or agent, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `moorline service run`
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The service's name
    #[arg(long)]
    name: String,
    /// File for the log
    #[arg(long)]
    log_file: PathBuf,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// `moorline service …`
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Install(args) => install(&args).map(|()| ExitCode::SUCCESS),
        Command::Remove { name } => {
            moorline_service::remove(&name)?;
            text::say(&format!("service {name} removed."));
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => serve(args),
    }
}

fn install(args: &InstallArgs) -> anyhow::Result<()> {
    // Wrong arguments are told now, to a person, not at the next start to a log.
    check(&args.command)?;
    let log_file = match &args.log_file {
        Some(path) => path.clone(),
        None => daemon::program_data()?.join(&args.name).join(format!("{}.log", args.name)),
    };
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let registration = registration(&args.name, program, &log_file, &args.command);
    if args.dry_run {
        return Ok(text::print(&plan(&registration))?);
    }
    if let Some(dir) = log_file.parent() {
        files::make_private_dir(dir)?;
    }
    moorline_service::install(&registration)?;
    text::say(&format!("service {0} registered; start it: sc start {0}", args.name));
    Ok(())
}

fn check(command: &[OsString]) -> anyhow::Result<args::Command> {
    let parsed = args::read(command.to_vec()).map_err(|e| usage(e.to_string(), "after -- comes: hub … or agent …"))?;
    match parsed {
        parsed @ (args::Command::Hub(_) | args::Command::Agent(_)) => Ok(parsed),
        _ => Err(usage("only hub and agent can be services", "after -- comes: hub … or agent …")),
    }
}

fn registration(name: &str, program: PathBuf, log_file: &Path, command: &[OsString]) -> Registration {
    let what = command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let own = ["service", "run", "--name", name, "--log-file"].map(OsString::from);
    let arguments = own.into_iter().chain([log_file.into(), "--".into()]).chain(command.iter().cloned()).collect();
    Registration {
        name: name.to_owned(),
        display_name: format!("Moorline {what}"),
        description: format!("moorline {what}: keeps Kubernetes clusters within reach through a tunnel"),
        program,
        arguments,
    }
}

fn plan(registration: &Registration) -> String {
    let words = registration.arguments.iter().map(|word| word.to_string_lossy().into_owned());
    format!(
        "name:        {}\ndisplay:     {}\ndescription: {}\nprogram:     {}\narguments:   {}\nstart:       automatic\naccount:     LocalService\nat failure:  start again after 5 s\n",
        registration.name,
        registration.display_name,
        registration.description,
        registration.program.display(),
        words.collect::<Vec<_>>().join(" "),
    )
}

fn serve(args: RunArgs) -> anyhow::Result<ExitCode> {
    let command = check(&args.command)?;
    logging::write_to(Box::new(LogFile::open(args.log_file)?));
    let work = move || match args::run(command) {
        Ok(_) => 0,
        Err(error) => {
            tracing::error!(cause = format!("{error:#}"), "ended");
            1
        }
    };
    moorline_service::run(&args.name, Box::new(work), Box::new(daemon::stop))?;
    Ok(ExitCode::SUCCESS)
}

/// A log that never grows past twice [`MAX_LOG`].
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            files::make_private_dir(dir)?;
        }
        Self::with_limit(path.clone(), MAX_LOG).with_context(|| format!("cannot write the log {}", path.display()))
    }

    fn with_limit(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, limit })
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.limit < self.size + line.len() as u64 && self.size != 0 {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".old");
            fs::rename(&self.path, aside)?;
            *self = Self::with_limit(self.path.clone(), self.limit)?;
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_plan_names_program_log_and_command() {
        let made = registration("m", "moorline.exe".into(), Path::new("m.log"), &words("agent --hub https://h:1"));
        let plan = plan(&made);
        assert!(plan.contains("service run --name m --log-file m.log -- agent --hub https://h:1"), "{plan}");
        assert_eq!(made.display_name, "Moorline agent");
    }

    #[test]
    fn a_command_that_is_no_service_is_refused_at_once() {
        for bad in ["agent --hubb x", "token create", "nothing"] {
            assert!(check(&words(bad)).is_err(), "{bad}");
        }
        assert!(check(&words("hub --name a.example")).is_ok());
    }

    #[test]
    fn the_log_is_put_aside_before_it_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::with_limit(path.clone(), 10).unwrap();
        for line in [b"12345678\n", b"abcdefgh\n", b"ABCDEFGH\n"] {
            log.write_all(line).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"ABCDEFGH\n");
        assert_eq!(fs::read(dir.path().join("log.old")).unwrap(), b"abcdefgh\n");
    }
}
