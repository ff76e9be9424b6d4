//! The rights that a node agent needs for shells are those that its pod is given. The tests run with these alone.

use crate::client::House;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use std::process::{Command, Stdio};

/// The pod, as it is deployed.
const POD: &str = include_str!("../../../../deploy/node-shells/agent.yaml");
/// Names one right that is missing.
const WITHOUT: &str = "MOORLINE_TEST_WITHOUT";

/// The capabilities that the pod is given.
fn given() -> Vec<&'static str> {
    let lines = POD.lines().map(str::trim).skip_while(|line| *line != "add:").skip(1);
    let items = lines.filter(|line| !line.starts_with('#')).map_while(|line| line.strip_prefix("- "));
    let given: Vec<_> = items.collect();
    assert!(!given.is_empty(), "the pod is given no capability");
    given
}

/// Whether this run is about what does not work without a right.
pub fn lacks_one() -> bool {
    std::env::var_os(WITHOUT).is_some()
}

/// Gives up every other right, for what is executed next.
pub fn keep() {
    let without = std::env::var(WITHOUT).ok();
    let kept = given().into_iter().filter(|name| without.as_deref() != Some(name));
    let kept = kept.fold(CapabilitySet::empty(), |all, name| all | CapabilitySet::from_name(name).expect(name));
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !kept.contains(one) && remove_capability_from_bounding_set(one) == Err(rustix::io::Errno::INVAL) {
            break; // the kernel knows no more of them
        }
    }
    rustix::thread::set_no_new_privs(true).unwrap();
}

pub async fn each_that_it_is_given_is_needed() {
    let mut client = House::new().enter().await;
    assert_eq!(client.run("true").await.1, 0);
    for right in given() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", "commands_run_and_the_exit_code_is_told"])
            .env(WITHOUT, right)
            .env_remove(crate::IGNORING);
        let status = again.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(!status.success(), "a shell begins without {right}");
    }
}
