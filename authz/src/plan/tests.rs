use super::{steps::mode, *};
use sha2::{Digest, Sha256};

fn write(path: &str) -> Step {
    let write = Write { path: path.to_owned(), content: "x".to_owned(), mode: mode(), sha256: String::new() };
    Step { name: "one".to_owned(), write: Some(write), ..Step::default() }
}
fn plan() -> Plan {
    let (name, uid) = ("p".to_owned(), "u".to_owned());
    let (cluster, agent) = ("edge1".to_owned(), "n1".to_owned());
    Plan { name, uid, cluster, agent, issued: 1, expires: 100, steps: vec![write("/a/b")], ..Plan::default() }
}
fn sign(message: &[u8]) -> Result<Vec<u8>, ()> {
    Ok(Sha256::digest(message).to_vec())
}
fn verify(message: &[u8], signature: &[u8]) -> bool {
    Sha256::digest(message).as_slice() == signature
}

#[test]
fn a_plan_is_for_one_node_until_its_time_and_unaltered() {
    let sealed = seal(&plan(), sign).unwrap();
    assert_eq!(open(&sealed, verify, ("edge1", "n1"), 50), Ok(plan()));
    assert!(matches!(open(&sealed, verify, ("edge1", "n2"), 50), Err(PlanError::Other { .. })));
    assert!(matches!(open(&sealed, verify, ("edge2", "n1"), 50), Err(PlanError::Other { .. })));
    assert_eq!(open(&sealed, verify, ("edge1", "n1"), 107), Err(PlanError::Expired { seconds: 7 }));
    for at in 0..sealed.len() {
        let mut bent = sealed.clone();
        bent[at] ^= 1;
        assert!(open(&bent, verify, ("edge1", "n1"), 50).is_err(), "byte {at}");
        assert!(open(&sealed[..at], verify, ("edge1", "n1"), 50).is_err(), "cut at {at}");
    }
}

#[test]
fn the_checksum_is_of_what_is_done_and_not_of_when() {
    let later = Plan { issued: 7, expires: 9, agent: "n2".to_owned(), ..plan() };
    assert_eq!(later.checksum(), plan().checksum());
    assert_ne!(Plan { run: "2".to_owned(), ..plan() }.checksum(), plan().checksum());
    assert_ne!(Plan { steps: vec![write("/a/c")], ..plan() }.checksum(), plan().checksum());
}

#[test]
fn steps_that_cannot_be_are_told() {
    let wrong = |step: Step| !check(&[step], &[]).is_empty();
    assert!(!wrong(write("/a/b")));
    for path in ["a/b", "/", "/a/../b", "/a//b", "/a/.", "/a\0b"] {
        assert!(wrong(write(path)), "{path:?}");
    }
    assert!(wrong(Step { name: "x".to_owned(), ..Step::default() }), "no kind");
    assert!(wrong(Step { probe: Some(Probe::default()), ..write("/a") }), "two kinds");
    assert!(wrong(Step { tries: 11, ..write("/a") }));
    let run = |command: &[&str]| Step {
        name: "x".to_owned(),
        run: Some(Run { command: command.iter().map(|s| (*s).to_owned()).collect(), ..Run::default() }),
        ..Step::default()
    };
    assert!(!wrong(run(&["/bin/true"])) && wrong(run(&["true"])) && wrong(run(&[])));
    assert!(!check(&[write("/a"), write("/b")], &[]).is_empty(), "a name twice");
    let mut sum = write("/a");
    sum.write.as_mut().unwrap().sha256 = "0".repeat(64);
    assert!(wrong(sum));
    let unknown = r#"{"name":"x","format":{"disk":"/dev/sda"}}"#;
    assert!(serde_json::from_str::<Step>(unknown).is_err(), "a kind that is not known is not passed over");
}
