//! `moorline hub ca`: replaces the hub's authority.

use crate::text;
use moorline_hub::authority::{self, CaStatus, CaStep, Told};
use std::path::PathBuf;

/// `moorline hub ca`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// Show which authorities there are and which agents do not hold the new one yet
    Status(Folder),
    /// Make the next authority beside the old one; agents get it at once, the others when they connect
    #[command(after_help = "\
Example:
  moorline hub ca rotate && moorline hub ca status

From then on both are believed. Agents get certificates of the new one and go on; join tokens, logins and kubeconfigs that
are made from then on are good for both, older ones until the old authority is dropped: moorline hub ca retire.")]
    Rotate(Folder),
    /// Drop the old authority
    #[command(after_help = "\
Example:
  moorline hub ca retire

Refused while agents with a certificate that is good hold the old one alone: they would have to join anew. Users who logged
in before the rotation log in again: moorline login URL --ca-pin PIN, then moorline kubeconfig --merge.")]
    Retire(RetireArgs),
}

#[derive(Debug, clap::Args)]
struct Folder {
    /// The hub's data folder [default: /var/lib/moorline-hub for root]
    #[arg(long, value_name = "DIR", env = "MOORLINE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RetireArgs {
    /// Drop it although agents hold it alone: they are locked out until they join anew
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    folder: Folder,
}

/// Runs it; returns what to print.
pub fn run(args: &Args, folder: impl FnOnce(Option<PathBuf>) -> anyhow::Result<PathBuf>) -> anyhow::Result<String> {
    let (step, dir) = match &args.step {
        Step::Status(dir) => (CaStep::Status, dir),
        Step::Rotate(dir) => (CaStep::Rotate, dir),
        Step::Retire(args) => (if args.force { CaStep::ForceRetire } else { CaStep::Retire }, &args.folder),
    };
    Ok(words(&authority::step(&folder(dir.data_dir.clone())?, step)?))
}

fn words(status: &CaStatus) -> String {
    let line = |what: &str, told: &Told| format!("{what:<8} {} until {}\n", told.pin, told.expires);
    let mut out = line("serving", &status.serving);
    if let Some(next) = &status.next {
        out.push_str(&line("next", next));
    }
    if !status.counted {
        out.push_str("no hub runs on this folder: agents are not counted\n");
        return out;
    }
    out.push_str(&format!("{} agents hold the new one, {} do not\n", status.hold, status.behind));
    for agent in &status.named {
        out.push_str(&format!("  {}\n", text::clean(agent)));
    }
    if status.named.len() < status.behind {
        out.push_str(&format!("  and {} more\n", status.behind - status.named.len()));
    }
    out.push_str(match (&status.next, status.behind) {
        (None, _) => "",
        (Some(_), 0) => "the old one can be dropped: moorline hub ca retire\n",
        (Some(_), _) => {
            "these get it when they connect; without it they have to join anew once the old one is dropped\n"
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_do_next() {
        let told = |pin: &str| Told { pin: pin.to_owned(), expires: "2036-01-01T00:00:00Z".to_owned() };
        let mut status = CaStatus {
            serving: told("sha256:aa"),
            next: Some(told("sha256:bb")),
            hold: 2,
            behind: 3,
            named: vec!["edge1.a1".to_owned()],
            counted: true,
        };
        let said = words(&status);
        assert!(said.contains("2 agents hold the new one, 3 do not\n  edge1.a1\n  and 2 more\n"), "{said}");
        (status.behind, status.named) = (0, Vec::new());
        assert!(words(&status).ends_with("moorline hub ca retire\n"));
        status.next = None;
        assert!(!words(&status).contains("retire"));
        status.counted = false;
        assert!(words(&status).contains("no hub runs"));
    }
}
