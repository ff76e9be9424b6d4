//! OpenLDAP with a few people and groups, TLS on both of its ports.

use crate::{
    pki::{self, Pki},
    process::{Process, port, run},
};
use std::{net::SocketAddr, process::Command};
use tempfile::TempDir;

pub struct Slapd {
    pub dir: TempDir,
    pub pki: Pki,
    pub plain: u16,
    pub tls: u16,
    process: Option<Process>,
}

const DATA: &str = "\
dn: dc=moor,dc=test
objectClass: dcObject
objectClass: organization
o: Moor
dc: moor

dn: ou=people,dc=moor,dc=test
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=moor,dc=test
objectClass: organizationalUnit
ou: groups

dn: ou=policies,dc=moor,dc=test
objectClass: organizationalUnit
ou: policies

dn: cn=default,ou=policies,dc=moor,dc=test
objectClass: person
objectClass: pwdPolicy
cn: default
sn: default
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 3

dn: cn=searcher,dc=moor,dc=test
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: looks around
";

fn person(uid: &str, more: &str) -> String {
    format!(
        "\ndn: uid={uid},ou=people,dc=moor,dc=test\nobjectClass: inetOrgPerson\nobjectClass: shadowAccount\nuid: {uid}\n\
         cn: {uid} Example\nsn: Example\ndisplayName: {uid} of Moor\nuserPassword: pw of {uid}\n{more}"
    )
}

fn group(name: &str, members: &[&str]) -> String {
    let members: String = members.iter().map(|m| format!("member: {m},dc=moor,dc=test\n")).collect();
    format!("\ndn: cn={name},ou=groups,dc=moor,dc=test\nobjectClass: groupOfNames\ncn: {name}\n{members}")
}

impl Slapd {
    /// People: ann (in `inner`, which lies in `outer`, which lies in `inner`), bob (locked by an administrator), eve
    /// (expired), max (in 1,200 groups), `we*ird(` (a name that needs escaping), 1,200 with zoe somewhere in their names,
    /// and zoe.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let pki = pki::make(dir.path());
        std::fs::create_dir(at("db")).unwrap();
        let schema = |name: &str| format!("include /etc/ldap/schema/{name}.schema\n");
        let conf = format!(
            "{}{}{}{}modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload ppolicy\npidfile {}\n\
             TLSCACertificateFile {}\nTLSCertificateFile {}\nTLSCertificateKeyFile {}\nsizelimit size.soft=500 size.hard=500 size.pr=500 size.prtotal=unlimited\n\
             database mdb\nmaxsize 67108864\nsuffix dc=moor,dc=test\nrootdn cn=root,dc=moor,dc=test\nrootpw root\n\
             directory {}\nindex objectClass,uid,member,entryUUID eq\n\
             access to attrs=userPassword by anonymous auth by * none\n\
             access to * by dn.exact=cn=searcher,dc=moor,dc=test read by * none\n\
             overlay ppolicy\nppolicy_default cn=default,ou=policies,dc=moor,dc=test\n",
            schema("core"),
            schema("cosine"),
            schema("nis"),
            schema("inetorgperson"),
            at("pid").display(),
            pki.ca.display(),
            pki.cert.display(),
            pki.key.display(),
            at("db").display()
        );
        std::fs::write(at("slapd.conf"), conf).unwrap();
        let mut data = DATA.to_owned();
        data += &person("ann", "");
        data += &person("bob", "pwdAccountLockedTime: 000001010000Z\n");
        data += &person("eve", "shadowExpire: 1\n");
        data += &person("max", "");
        data += &person("we*ird(", "");
        for n in 0..1200 {
            data += &person(&format!("n{n:04}-zoe"), "");
        }
        data += &person("zoe", "");
        data += &group("inner", &["uid=ann,ou=people", "cn=outer,ou=groups"]);
        data += &group("outer", &["cn=inner,ou=groups"]);
        for n in 0..1200 {
            data += &group(&format!("many-{n:04}"), &["uid=max,ou=people"]);
        }
        std::fs::write(at("data.ldif"), data).unwrap();
        run(Command::new("/usr/sbin/slapadd").args(["-q", "-f"]).arg(at("slapd.conf")).arg("-l").arg(at("data.ldif")));
        std::fs::write(at("searcher"), "looks around\n").unwrap();
        let (plain, tls) = (port(), port());
        let mut made = Self { pki, plain, tls, process: None, dir };
        made.up();
        made
    }

    pub fn up(&mut self) {
        let mut command = Command::new("/usr/sbin/slapd");
        let addresses = format!("ldap://127.0.0.1:{}/ ldaps://127.0.0.1:{}/", self.plain, self.tls);
        command.args(["-d", "0", "-f"]).arg(self.dir.path().join("slapd.conf")).arg("-h").arg(addresses);
        let log = self.dir.path().join("slapd.log");
        self.process = Some(Process::start(command, &log, SocketAddr::from(([127, 0, 0, 1], self.tls))));
    }

    pub fn down(&mut self) {
        self.process = None;
    }

    /// Changes the directory as its administrator.
    pub fn modify(&self, ldif: &str) {
        let path = self.dir.path().join("change.ldif");
        std::fs::write(&path, ldif).unwrap();
        let mut command = Command::new("ldapmodify");
        command.env("LDAPTLS_CACERT", &self.pki.ca).args(["-x", "-D", "cn=root,dc=moor,dc=test", "-w", "root", "-H"]);
        run(command.arg(format!("ldaps://127.0.0.1:{}", self.tls)).arg("-f").arg(path));
    }

    /// A provider of this directory: `tls` as in the configuration, such as `url: ldaps://…`.
    pub fn yaml(&self, tls: &str) -> String {
        format!(
            "- name: corp\n  ldap:\n    {tls}\n    caFile: {}\n    bindDn: cn=searcher,dc=moor,dc=test\n    \
             bindPasswordFile: {}\n    userBase: ou=people,dc=moor,dc=test\n    groupBase: ou=groups,dc=moor,dc=test\n",
            self.pki.ca.display(),
            self.dir.path().join("searcher").display()
        )
    }

    pub fn ldaps(&self) -> String {
        self.yaml(&format!("url: ldaps://127.0.0.1:{}", self.tls))
    }

    pub fn start_tls(&self) -> String {
        self.yaml(&format!("url: ldap://127.0.0.1:{}\n    startTls: true", self.plain))
    }
}
