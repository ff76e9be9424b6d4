//! An Active Directory domain controller: Samba's, with a domain of its own. It serves LDAP alone, at 127.0.0.77, for
//! its ports are fixed.

use crate::{
    pki::{self, Pki},
    process::{Process, run},
};
use std::{net::SocketAddr, path::PathBuf, process::Command};
use tempfile::TempDir;

pub struct Samba {
    pub dir: TempDir,
    pub pki: Pki,
    _process: Process,
}

const PASSWORD: &str = "Secr3t!pw";

impl Samba {
    /// People: alice (in `inner`, which lies in `outer`), bob (disabled), eve (expired), max (in no group yet).
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = pki::make(dir.path());
        let domain = dir.path().join("domain");
        std::fs::create_dir(&domain).unwrap();
        let mut provision = Command::new("samba-tool");
        provision.args(["domain", "provision", "--realm=MOOR.TEST", "--domain=MOOR", "--adminpass=Passw0rd!x"]);
        provision.args(["--server-role=dc", "--dns-backend=NONE", "--host-name=dc1", "--host-ip=127.0.0.77"]);
        provision.args(["--option=interfaces=127.0.0.77/8", "--option=bind interfaces only=yes"]);
        provision.args(["--option=server services=ldap", "--option=vfs objects=dfs_samba4 acl_xattr xattr_tdb"]);
        provision.arg(format!("--option=tls keyfile={}", pki.key.display()));
        provision.arg(format!("--option=tls certfile={}", pki.cert.display()));
        provision.arg(format!("--option=tls cafile={}", pki.ca.display()));
        run(provision.arg(format!("--targetdir={}", domain.display())));
        let tool = |words: &[&str]| {
            let mut command = Command::new("samba-tool");
            command.args(words).arg("-H").arg(domain.join("private/sam.ldb"));
            run(command.arg(format!("--configfile={}", domain.join("etc/smb.conf").display())));
        };
        for user in ["alice", "bob", "eve", "max", "searcher"] {
            tool(&["user", "create", user, PASSWORD]);
        }
        tool(&["user", "disable", "bob"]);
        tool(&["user", "setexpiry", "eve", "--days=-1"]);
        tool(&["group", "add", "inner"]);
        tool(&["group", "add", "outer"]);
        tool(&["group", "addmembers", "inner", "alice"]);
        tool(&["group", "addmembers", "outer", "inner"]);
        tool(&["domain", "passwordsettings", "set", "--account-lockout-threshold=3"]);
        std::fs::write(dir.path().join("searcher"), PASSWORD).unwrap();
        let state = domain.join("state");
        let mut command = Command::new("samba");
        command.args(["-i", "-M", "single", "--debug-stdout", "-d1", "-s"]).arg(domain.join("etc/smb.conf"));
        for (option, at) in [
            ("pid directory", &domain),
            ("lock directory", &state),
            ("state directory", &state),
            ("cache directory", &state),
            ("ncalrpc dir", &state.join("ncalrpc")),
        ] {
            command.arg(format!("--option={option}={}", at.display()));
        }
        let log = dir.path().join("samba.log");
        let process = Process::start(command, &log, SocketAddr::from(([127, 0, 0, 77], 636)));
        Self { dir, pki, _process: process }
    }

    pub fn tool(&self, words: &[&str]) {
        let domain: PathBuf = self.dir.path().join("domain");
        let mut command = Command::new("samba-tool");
        command.args(words).arg("-H").arg(domain.join("private/sam.ldb"));
        run(command.arg(format!("--configfile={}", domain.join("etc/smb.conf").display())));
    }

    /// max is in this many groups more, in a domain that gives a thousand entries at once.
    pub fn crowd(&self, groups: usize) {
        let group = |n| {
            format!(
                "dn: CN=many-{n:04},CN=Users,DC=moor,DC=test\nobjectClass: group\nsAMAccountName: many-{n:04}\n\
                 member: CN=max,CN=Users,DC=moor,DC=test\n\n"
            )
        };
        let path = self.dir.path().join("crowd.ldif");
        std::fs::write(&path, (0..groups).map(group).collect::<String>()).unwrap();
        let mut command = Command::new("ldapmodify");
        command.env("LDAPTLS_CACERT", &self.pki.ca).args([
            "-a",
            "-x",
            "-D",
            "administrator@moor.test",
            "-w",
            "Passw0rd!x",
        ]);
        run(command.args(["-H", "ldaps://127.0.0.77", "-f"]).arg(path));
    }

    pub fn yaml(&self, url: &str) -> String {
        format!(
            "- name: ad\n  activeDirectory:\n    {url}\n    caFile: {}\n    bindDn: searcher@moor.test\n    \
             bindPasswordFile: {}\n    userBase: DC=moor,DC=test\n    groupBase: DC=moor,DC=test\n",
            self.pki.ca.display(),
            self.dir.path().join("searcher").display()
        )
    }
}
