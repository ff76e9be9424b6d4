//! The device flow as a person at a terminal meets it, and a script that has none.

use moorline_logins_tests::{
    browser::Browser,
    hub::{Hub, end},
    oidc::Oidc,
};
use std::{
    io::Read,
    process::{Child, Command, Stdio},
};

/// A program that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until the code is shown: all that was shown, the address and the code.
pub fn shown(mut out: impl Read) -> (String, String, String) {
    let mut words = String::new();
    loop {
        let asked = words.replace('\r', "");
        if let Some((before, code)) = asked.split_once(" and type the code\n\n  ")
            && let Some((code, _)) = code.split_once("\n\n")
        {
            let (_, address) = before.rsplit_once("open ").unwrap();
            return (words, address.to_owned(), code.to_owned());
        }
        let mut some = [0; 1024];
        let n = out.read(&mut some).unwrap();
        assert_ne!(n, 0, "{words}");
        words.push_str(&String::from_utf8_lossy(&some[..n]));
    }
}

#[test]
fn a_device_login_draws_the_address_on_a_terminal_and_nowhere_else() {
    let mut hub = Hub::start("");
    let oidc = Oidc::start(&format!("{}/auth/callback/sso", hub.url()));
    let yaml: String = oidc.yaml().lines().map(|line| format!("  {line}\n")).collect();
    hub.configure(&format!("logins:\n{yaml}"));
    let words = ["login", &hub.url(), "--provider", "sso", "--device"];

    let mut child = hub.command("ci", &words).spawn().unwrap();
    let (said, address, _) = shown(child.stderr.take().unwrap());
    child.kill().unwrap();
    assert!(!said.contains('█') && end(child).out.is_empty(), "{said}");

    let bob = hub.command("bob", &words);
    let line: Vec<_> = std::iter::once(bob.get_program()).chain(bob.get_args()).map(|w| w.to_str().unwrap()).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    for (name, value) in bob.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let mut child = Ended(script.env("TERM", "xterm-256color").env_remove("NO_COLOR").spawn().unwrap());
    let mut out = child.0.stdout.take().unwrap();
    let (drawn, again, code) = shown(&mut out);
    assert_eq!(again, address, "the same words beside it");
    assert!(drawn.contains("\x1b[38;5;231;48;5;16m"), "in colours of its own");
    // The light of it is printed: above and beside it is a margin.
    let picture: Vec<&str> = drawn.lines().filter(|line| line.contains('█')).collect();
    assert!(10 < picture.len() && picture[0].matches('█').count() > 20 && !picture[0].contains(' '), "{drawn}");
    Browser::of("bob").confirm_device(&format!("{address}?user_code={code}"));
    let rest = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    assert!(child.0.wait().unwrap().success());
    rest.join().unwrap().unwrap();
    assert!(hub.moorline("bob", &["whoami"], "").done().out.contains("User:     bob"));
}
