//! Which plans may run on nodes.

use super::EdgeDenial;
use crate::plan::{Plan, is_plain};
use serde::Deserialize;

/// Plans of the hub's for this cluster's nodes. Without it: none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Plans {
    allow: bool,
    /// Programs, by their absolute paths, with whatever arguments.
    commands: Vec<String>,
    /// Folders that files may be written, moved and read in, and files.
    paths: Vec<String>,
    /// Nodes may be emptied of their pods.
    drain: bool,
}

impl Plans {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.commands.iter().chain(&self.paths).find(|path| !is_plain(path.trim_end_matches('/'))) {
            Some(path) => Err(format!("plans: {path:?} is no absolute path without . and ..")),
            None => Ok(()),
        }
    }

    pub(super) fn decide(&self, plan: &Plan) -> Result<(), EdgeDenial> {
        if !self.allow {
            return Err(EdgeDenial::Plans);
        }
        if 0 < plan.drain_seconds && !self.drain {
            return Err(EdgeDenial::Drain);
        }
        for step in &plan.steps {
            for command in step.commands() {
                let program = command.first().map(String::as_str).unwrap_or_default();
                if !self.commands.iter().any(|allowed| allowed == program) {
                    return Err(EdgeDenial::Command(program.to_owned()));
                }
            }
            for path in step.paths() {
                self.path(path)?;
            }
        }
        Ok(())
    }

    /// May files be touched there? Asked again of where a path leads once links are followed.
    pub(super) fn path(&self, path: &str) -> Result<(), EdgeDenial> {
        let below = |allowed: &String| {
            let allowed = allowed.trim_end_matches('/');
            path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.allow && is_plain(path) && self.paths.iter().any(below) {
            Ok(())
        } else {
            Err(EdgeDenial::PlanPath(path.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::EdgePolicy, *};
    use crate::plan::{Move, Run, Step, Write};

    fn policy(spec: &str) -> EdgePolicy {
        let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{plans: {spec}}}\n");
        EdgePolicy::from_yaml(&text).unwrap()
    }
    fn plan(step: Step) -> Plan {
        Plan { steps: vec![step], ..Plan::default() }
    }
    fn run(program: &str) -> Plan {
        plan(Step { run: Some(Run { command: vec![program.to_owned()], ..Run::default() }), ..Step::default() })
    }
    fn write(path: &str) -> Plan {
        plan(Step { write: Some(Write { path: path.to_owned(), ..Write::default() }), ..Step::default() })
    }

    #[test]
    fn nothing_is_done_that_the_owner_has_not_named() {
        let none = EdgePolicy::default();
        assert_eq!(none.plan(&write("/a/b")), Err(EdgeDenial::Plans));
        assert_eq!(policy("{commands: [/bin/true], paths: [/a]}").plan(&run("/bin/true")), Err(EdgeDenial::Plans));
        let some = policy("{allow: true, commands: [/bin/true], paths: [/a/b/, /etc/one]}");
        assert_eq!(some.plan(&run("/bin/true")), Ok(()));
        assert_eq!(some.plan(&run("/bin/truer")), Err(EdgeDenial::Command("/bin/truer".to_owned())));
        for path in ["/a/b/c", "/a/b/c/d", "/etc/one"] {
            assert_eq!(some.plan(&write(path)), Ok(()), "{path}");
        }
        for path in ["/a", "/a/bc", "/etc/one2", "/a/b/../../etc/shadow", "/"] {
            assert_eq!(some.plan(&write(path)), Err(EdgeDenial::PlanPath(path.to_owned())), "{path}");
        }
        let out = Move { from: "/a/b/c".to_owned(), to: "/elsewhere".to_owned(), replace: false };
        assert!(some.plan(&plan(Step { rename: Some(out), ..Step::default() })).is_err());
        let drain = Plan { drain_seconds: 5, ..run("/bin/true") };
        assert_eq!(some.plan(&drain), Err(EdgeDenial::Drain));
        assert_eq!(policy("{allow: true, drain: true, commands: [/bin/true]}").plan(&drain), Ok(()));
    }

    #[test]
    fn a_policy_names_whole_paths() {
        for bad in ["{paths: [a]}", "{commands: [etcdctl]}", "{paths: [/a/../b]}", "{paths: [/]}", "{all: true}"] {
            let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{plans: {bad}}}\n");
            assert!(EdgePolicy::from_yaml(&text).is_err(), "{bad}");
        }
    }
}
