//! The book's reference pages, written from the code: `moorline reference PAGE`. `make docs` writes them, a test compares.

use crate::{agent, args::Cli, hub, text};
use clap::CommandFactory;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use std::{fmt::Write as _, process::ExitCode};

/// Columns of the help texts, whatever the terminal has.
const WIDTH: usize = 100;

/// What the keys are that no flag has: they are trees of their own.
const FILE_ONLY: &[(&str, &str)] = &[
    (
        "audit",
        "When a file of the audit log is set aside, how many are kept, and what happens while it cannot be written",
    ),
    ("lockout", "When wrong passwords lock a local user or an address out, and for how long"),
    ("logins", "The login providers beside the local users: LDAP, Active Directory, OpenID Connect, GitHub"),
    ("plugins", "The plugins that run, with the settings of each"),
    ("rateLimits", "How much one user, one address and one cluster may ask for: more gets 429"),
    ("recordings", "Which sessions in terminals are recorded, how much is kept and for how long"),
    ("rightsWithoutStore", "How long what is known of logins and rights counts while the store's etcd does not answer"),
    ("recheckLogins", "How often the login providers are asked whether users are still there"),
];

/// A page.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Page {
    /// Every command with its help
    Cli,
    /// Every key of the configuration files
    Configuration,
}

/// Prints a page.
pub fn run(page: Page) -> anyhow::Result<ExitCode> {
    let page = match page {
        Page::Cli => commands()?,
        Page::Configuration => configuration()?,
    };
    text::print(&page)?;
    Ok(ExitCode::SUCCESS)
}

/// The command line as it is shown to anybody: without this machine's environment and terminal.
fn plain(command: clap::Command) -> clap::Command {
    let command = command.term_width(WIDTH).color(clap::ColorChoice::Never);
    let command = command.mut_args(|argument| argument.hide_env_values(true)).disable_help_subcommand(true);
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, plain))
}

fn commands() -> anyhow::Result<String> {
    fn walk(command: &mut clap::Command, path: &str, page: &mut String) -> anyhow::Result<()> {
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        writeln!(page, "## {path}\n\n```text\n{}\n```\n", lines.join("\n").trim())?;
        for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            walk(sub, &path, page)?;
        }
        Ok(())
    }
    let mut root = plain(Cli::command());
    root.build();
    let mut page = "# Command line\n\nWritten from the code by `make docs`.\n\n".to_owned();
    walk(&mut root, "moorline", &mut page)?;
    Ok(page.trim_end().to_owned() + "\n")
}

fn configuration() -> anyhow::Result<String> {
    let mut page = "# Configuration files\n\nWritten from the code by `make docs`.\n\n`--config FILE` names a YAML file. Flags go before \
                    environment, environment before the file. A key that is not known is an error that names the line.\n"
        .to_owned();
    let root = Cli::command();
    for (name, keys) in [("hub", hub::file_keys()), ("agent", agent::file_keys())] {
        writeln!(page, "\n## moorline {name}\n\n| key | variable | what |\n|---|---|---|")?;
        let command = root.find_subcommand(name);
        for key in keys {
            let argument = command.and_then(|command| command.get_arguments().find(|a| is_flag_of(a, key)));
            let own = FILE_ONLY.iter().find(|(name, _)| name == key).map(|(_, help)| (*help).to_owned());
            let help = argument.and_then(|a| a.get_help()).map(ToString::to_string).or(own);
            let help = help.map(|help| help.replace('|', "\\|"));
            let variable = argument.and_then(|a| a.get_env()).map(|name| format!("`{}`", name.to_string_lossy()));
            writeln!(page, "| `{key}` | {} | {} |", variable.unwrap_or_default(), help.unwrap_or_default())?;
        }
    }
    Ok(page)
}

/// `stateDir` is `--state-dir`, and `names` is what `--name` repeats.
fn is_flag_of(argument: &clap::Arg, key: &str) -> bool {
    let flag: String =
        key.chars().flat_map(|c| c.is_ascii_uppercase().then_some('-').into_iter().chain(c.to_lowercase())).collect();
    argument.get_long().is_some_and(|long| long == flag || flag.strip_suffix('s') == Some(long))
}

/// The keys that a configuration file of this type may have, as serde knows them.
pub fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // It never gives a value: the keys are all that is wanted.
    drop(T::deserialize(Keys(&mut found)));
    found
}

struct Keys<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Keys<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only a struct has keys"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("done"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;
    use std::{fs, path::Path};

    #[test]
    fn each_key_of_a_file_is_a_flag_with_help() {
        for (name, keys) in [("hub", hub::file_keys()), ("agent", agent::file_keys())] {
            assert!(keys.len() > 5, "{name}: {keys:?}");
            let root = Cli::command();
            let command = root.find_subcommand(name).unwrap();
            for key in keys {
                let told = FILE_ONLY.iter().any(|(name, _)| name == key);
                let flag = command.get_arguments().any(|a| is_flag_of(a, key));
                assert!(told || flag, "{name}: {key} has no flag; say in FILE_ONLY what it is");
            }
        }
    }

    /// Lines of shell in Markdown, continuation lines joined, comments gone.
    fn shell(markdown: &str) -> Vec<String> {
        let (mut inside, mut lines) = (false, Vec::new());
        for line in markdown.lines() {
            if line.starts_with("```") {
                inside = !inside && line == "```sh";
            } else if inside {
                lines.push(line.split(" #").next().unwrap_or_default().trim().to_owned());
            }
        }
        lines.join("\n").replace("\\\n", " ").lines().map(str::to_owned).collect()
    }

    /// Every `moorline …` that a page tells a reader to run is understood. A word `…` stands for what was said before.
    #[test]
    fn the_commands_in_the_book_are_commands() {
        fn pages(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pages(&path, found);
                } else {
                    found.push(path);
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut found = vec![root.join("README.md")];
        pages(&root.join("docs/src"), &mut found);
        let mut tried = 0;
        for page in found.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
            for line in shell(&fs::read_to_string(page).unwrap()) {
                let line = line.replace("sha256:…", &format!("sha256:{}", "0".repeat(64)));
                let line = line.strip_prefix("sudo ").unwrap_or(&line);
                let Some(rest) = line.strip_prefix("moorline ") else { continue };
                let words = rest.split(['|', '>', ';', '&']).next().unwrap_or_default();
                let words: Vec<_> = words_of(words).into_iter().filter(|w| w != "…").map(Into::into).collect();
                tried += 1;
                if let Err(error) = args::read(words) {
                    let help = matches!(
                        error.kind(),
                        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
                    );
                    assert!(help, "{}: {line}\n{error}", page.display());
                }
            }
        }
        assert!(tried > 10, "only {tried} commands were found");
    }

    /// A command line's words, with quotes as a shell has them.
    fn words_of(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                ('\'' | '"', None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (c, None) if c.is_whitespace() => words.extend(word.take()),
                (c, _) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }
}
