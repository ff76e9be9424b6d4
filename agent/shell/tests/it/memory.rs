//! Memory: what a shell may hold, and who goes when there is too little.

use crate::{
    attacks::eventually,
    client::{House, statuses},
};
use moorline_shell::limits;

/// Each holds less than one may, all together more than a shell may.
const EATERS: u64 = 8;

/// Bytes of memory that all shells' processes have as their own.
fn held() -> u64 {
    let kib = |status: &String| {
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    statuses().iter().filter_map(kib).sum::<u64>() * 1024
}

pub async fn who_eats_memory_is_ended_and_nobody_else() {
    let house = House::new();
    let (mut eater, mut other) = (house.enter().await, house.enter().await);
    // One alone is refused more than a process may have.
    let (_, code) = eater.run(&format!("perl -e '$n = {}; $x = \"x\" x $n'", limits::DATA)).await;
    assert_ne!(code, 0);
    let each = limits::HELD / (EATERS - 2);
    let eats = format!("perl -e '$n = {each}; $x = \"x\" x $n; sleep 1000'");
    let (said, _) =
        eater.run(&format!("for i in $(seq {EATERS}); do {eats} & done; wait -n; echo \"first: $?\"")).await;
    assert!(said.contains("first: 137"), "one was killed: {said}");
    eventually("the rest is within the bound", || held() <= limits::HELD).await;
    assert_eq!(other.run("echo fine").await, ("fine".to_owned(), 0), "another shell");
    assert_eq!(eater.run("echo fine; kill $(jobs -p)").await.0.lines().next(), Some("fine"), "the shell itself");
    assert_eq!(house.shells.open(), 2);
}

pub async fn the_shells_processes_go_before_the_agent() {
    let house = House::new();
    let mut client = house.enter().await;
    assert_eq!(client.run("cat /proc/self/oom_score_adj").await.0, limits::OOM_SCORE);
    for process in ["self", "1"] {
        assert_ne!(client.run(&format!("echo 0 > /proc/{process}/oom_score_adj")).await.1, 0, "it can be taken back");
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_ne!(own.trim(), limits::OOM_SCORE, "the agent's is its own");
}

pub async fn nothing_is_kept_that_is_no_processs_memory() {
    let house = House::new();
    let mut client = house.enter().await;
    let memfd =
        format!("perl -e '$n = \"x\"; print syscall({}, $n, 0) < 0 ? $! + 0 : \"made\"'", libc::SYS_memfd_create);
    assert_eq!(client.run(&memfd).await.0, libc::ENOSYS.to_string());
    let queue = format!(
        "perl -e '$n = \"x\"; print syscall({}, $n, {}, 0600, 0) < 0 ? $! + 0 : \"made\"'",
        libc::SYS_mq_open,
        libc::O_CREAT | libc::O_RDWR
    );
    assert_eq!(client.run(&queue).await.0, libc::EMFILE.to_string());
    assert_ne!(client.run("ls -d /dev/shm /dev/mqueue").await.1, 0);
}
