//! `moorline shell` in a real terminal: it is raw while the shell lasts, tells its size and each change of it, and is as it
//! was afterwards.

use crate::{
    nodes::{join, shell_root},
    world::{ALICE, World},
};
use anyhow::{Result, ensure};
use moorline_e2e::process::{Followed, eventually, text};
use std::{
    io::Write,
    process::{ChildStdin, Command, Stdio},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(30);

/// A program that is typed into, such as util-linux' script, which gives it a terminal.
pub struct Terminal {
    script: Followed,
    keys: ChildStdin,
}

impl Terminal {
    pub fn begin(mut script: Command) -> Result<Self> {
        let mut script = Followed::spawn(script.stdin(Stdio::piped()))?;
        let keys = script.input()?;
        Ok(Self { script, keys })
    }

    pub fn shown(&self) -> String {
        self.script.shown()
    }

    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Ends its input, and waits until it has ended over that.
    pub fn end(self) -> Result<()> {
        let Self { mut script, keys } = self;
        drop(keys);
        script.ends(LONG).map(drop)
    }

    pub fn until(&self, what: &str) -> Result<()> {
        eventually(what, LONG, || {
            ensure!(self.shown().contains(what), "{}", self.shown());
            Ok(())
        })
    }
}

pub fn all(world: &mut World) -> Result<()> {
    let root = shell_root(world)?.to_string_lossy().into_owned();
    let policy = world.dir.join("terminals.yaml");
    std::fs::write(&policy, "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {shells: {allow: true}}\n")?;
    let _node = join(world, &["--shell-root", &root, "--policy-file", &policy.to_string_lossy()])?;

    let file = |name: &str| world.dir.join(format!("terminal-{name}"));
    let client = world.hub.cli(ALICE);
    let words = format!(
        "stty rows 31 cols 97; tty > {}; stty -g > {}; {} shell edge1; echo \"code <$?>\"; stty -g > {}",
        file("name").display(),
        file("before").display(),
        client.get_program().to_string_lossy(),
        file("after").display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &words, "/dev/null"]).env("TERM", "xterm");
    for (key, value) in client.get_envs() {
        if let Some(value) = value {
            script.env(key, value);
        }
    }
    let mut terminal = Terminal::begin(script)?;
    // What is typed before the shell is there is the shell's too; it says each answer's beginning itself.
    terminal.type_in("echo be''gin; stty size\r")?;
    terminal.until("begin")?;
    terminal.until("31 97")?;

    let name = std::fs::read_to_string(file("name"))?.trim().to_owned();
    let stty = |words: &[&str]| text(Command::new("stty").args(["-F", &name]).args(words));
    let now = stty(&["-a"])?;
    for off in ["-echo", "-icanon", "-isig", "-icrnl", "-opost"] {
        ensure!(now.split([' ', ';', '\n']).any(|word| word == off), "{off}: {now}");
    }

    stty(&["rows", "50", "cols", "132"])?;
    eventually("the new size", LONG, || {
        terminal.type_in("stty size\r")?;
        ensure!(terminal.shown().contains("50 132"), "{}", terminal.shown());
        Ok(())
    })?;

    terminal.type_in("exit 3\r")?;
    terminal.until("code <3>")?;
    eventually("the terminal afterwards", LONG, || {
        let (before, after) = (std::fs::read_to_string(file("before"))?, std::fs::read_to_string(file("after"))?);
        ensure!(!before.trim().is_empty() && before == after, "{before} is {after}");
        Ok(())
    })
}
