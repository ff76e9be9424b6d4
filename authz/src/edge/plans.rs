//! Which plans may run on nodes.

use super::EdgeDenial;
use crate::plan::{Plan, Probe, is_below, is_plain, is_same, trimmed};
use serde::Deserialize;

/// Plans of the hub's for this cluster's nodes. Without it: none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Plans {
    allow: bool,
    /// Programs, by their absolute paths, with whatever arguments.
    commands: Vec<String>,
    /// Folders that files may be written, moved, read and looked for in, and files.
    paths: Vec<String>,
    /// Nodes may be emptied of their pods.
    drain: bool,
}

impl Plans {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.commands.iter().chain(&self.paths).find(|path| !is_plain(trimmed(path))) {
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
                if !self.commands.iter().any(|allowed| is_same(allowed, program)) {
                    return Err(EdgeDenial::Command(program.to_owned()));
                }
            }
            for path in step.paths() {
                self.path(path)?;
            }
        }
        plan.probes.iter().try_for_each(|watch| self.probe(&watch.probe))
    }

    /// May this be looked at? By itself: a plan that is done may hold what is not allowed any more.
    pub(super) fn probe(&self, probe: &Probe) -> Result<(), EdgeDenial> {
        match probe.path() {
            _ if !self.allow => Err(EdgeDenial::Plans),
            Some(path) => self.path(path),
            None => Ok(()),
        }
    }

    /// May files be touched there? Asked again of where a path leads once links are followed.
    pub(super) fn path(&self, path: &str) -> Result<(), EdgeDenial> {
        if self.allow && self.paths.iter().any(|allowed| is_below(path, allowed)) {
            Ok(())
        } else {
            Err(EdgeDenial::PlanPath(path.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::EdgePolicy, *};
    use crate::plan::{Move, Run, Step, Watch, Write};

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
    fn what_is_looked_for_is_named_too() {
        let looks = |path: &str| Probe { file: path.to_owned(), ..Probe::default() };
        let waits = |path: &str| plan(Step { probe: Some(looks(path)), ..Step::default() });
        let unless = |path: &str| {
            let run = Run { command: vec!["/bin/true".to_owned()], unless: Some(looks(path)), ..Run::default() };
            plan(Step { run: Some(run), ..Step::default() })
        };
        let watches = |path: &str| {
            let probes = vec![Watch { probe: looks(path), ..Watch::default() }];
            Plan { probes, ..run("/bin/true") }
        };
        let some = policy("{allow: true, commands: [/bin/true], paths: [/a]}");
        for plan in [waits("/a/b"), unless("/a/b"), watches("/a/b")] {
            assert_eq!(some.plan(&plan), Ok(()));
        }
        for plan in [waits("/etc/shadow"), unless("/etc/shadow"), watches("/etc/shadow")] {
            assert_eq!(some.plan(&plan), Err(EdgeDenial::PlanPath("/etc/shadow".to_owned())));
        }
        // A probe by itself, whatever else its plan holds.
        let tcp = Probe { tcp: "127.0.0.1:1".to_owned(), ..Probe::default() };
        let less = policy("{allow: true}");
        assert_eq!((less.plan_probe(&tcp), less.plan_probe(&looks("/a/b")).is_err()), (Ok(()), true));
        assert_eq!(EdgePolicy::default().plan_probe(&tcp), Err(EdgeDenial::Plans));
    }

    #[test]
    fn paths_and_programs_of_windows_are_named_as_windows_takes_them() {
        let some = policy(r"{allow: true, commands: ['C:\Windows\System32\sc.exe'], paths: ['C:\Work\', 'D:/data']}");
        for program in [r"C:\Windows\System32\sc.exe", r"c:\windows\system32\SC.EXE"] {
            assert_eq!(some.plan(&run(program)), Ok(()), "{program}");
        }
        assert!(some.plan(&run(r"C:\Windows\System32\sc.exe.bat")).is_err());
        for path in [r"c:\work\a", r"C:\Work", r"d:\DATA\a\b"] {
            assert_eq!(some.plan(&write(path)), Ok(()), "{path}");
        }
        for path in [r"C:\Workshop", r"C:\Work\..\Windows", r"C:\Work\a:b", r"\\?\C:\Work\a", "/Work/a", r"E:\data"] {
            assert_eq!(some.plan(&write(path)), Err(EdgeDenial::PlanPath(path.to_owned())), "{path}");
        }
    }

    #[test]
    fn a_policy_names_whole_paths() {
        let windows =
            [r"{paths: ['C:\']}", r"{paths: ['C:']}", r"{paths: ['\\server\share']}", r"{commands: ['sc.exe']}"];
        let others = ["{paths: [a]}", "{commands: [etcdctl]}", "{paths: [/a/../b]}", "{paths: [/]}", "{all: true}"];
        for bad in windows.into_iter().chain(others) {
            let text = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{plans: {bad}}}\n");
            assert!(EdgePolicy::from_yaml(&text).is_err(), "{bad}");
        }
    }
}
