//! Every bound of a shell, by name.

use std::time::Duration;

/// Shells of one agent at once, where it is not told that they are fewer.
pub const SHELLS: usize = 32;
/// The first of the user ids that shells run as, one each: what one shell leaves behind no other can touch, and the
/// kernel counts processes by user id. Far above what distributions and container runtimes hand out by default.
pub const FIRST_UID: u32 = 1_900_000_000;
/// Processes of one shell.
pub const PROCESSES: u64 = 256;
/// Open files of one process.
pub const FILES: u64 = 1024;
/// Largest file that a process may write, in bytes.
pub const FILE_SIZE: u64 = 256 << 20;
/// Bytes of memory that one process may ask for as data: half of [`HELD`], so that one alone cannot have it all. kubectl
/// takes some tens of MiB.
pub const DATA: u64 = 512 << 20;
/// Bytes of memory that all processes of a shell may hold together (Linux). The kernel bounds each alone, and
/// [`PROCESSES`] times [`DATA`] is more than a node has.
pub const HELD: u64 = 1 << 30;
/// MiB of memory that a shell takes at most: what its programs hold, its home and its `/tmp`. A pod that gives shells has
/// room for so many of these, and for its agent.
pub const MIB: u64 = (HELD >> 20) + 2 * TMPFS_MIB as u64;
/// How often it is looked how many they hold. A processor fills some hundred MiB in that time.
pub const MEMORY_LOOK: Duration = Duration::from_millis(100);
/// How much sooner than others a shell's processes are killed where memory is short: the most that there is (proc(5),
/// `oom_score_adj`).
pub const OOM_SCORE: &str = "1000";
/// Bytes of memory that all processes of a shell may commit together, where the system counts them so (Windows).
pub const MEMORY: usize = 2 << 30;
/// How often it is tried to remove a shell's folder, while its processes still end (Windows).
pub const HOME_TRIES: usize = 100;
/// Pause between these.
pub const HOME_PAUSE: Duration = Duration::from_millis(50);
/// Folders of shells whose agents have ended that one agent removes when it begins (Windows). Those beyond are the next's.
pub const SWEPT: usize = 1024;
/// Size of the home folder and of `/tmp`, each, in MiB. Both are memory, and end with the shell.
pub const TMPFS_MIB: u32 = 64;
/// Files in each: an empty one is a KiB of the kernel's.
pub const TMPFS_FILES: u32 = 16 * 1024;
/// How nice a shell's processes are to others (nice(1)).
pub const NICE: i32 = 10;
/// A shell in which nothing is typed for this long ends.
pub const IDLE: Duration = Duration::from_secs(30 * 60);
/// The longest that a shell lasts.
pub const TOTAL: Duration = Duration::from_secs(8 * 3600);
/// How long a shell whose client is gone waits for it to come back.
pub const DETACHED: Duration = Duration::from_secs(60);
/// Bytes that are kept of what it shows, the end: half for what was on its way when a connection broke, half for what is
/// shown until its client is back. A shell that shows more than that without a client waits.
pub const HISTORY: usize = 1 << 20;
/// Bytes that a client keeps of what it has typed until the shell has taken them. It takes no more before.
pub const TYPED: usize = 1 << 20;
/// How often, in bytes typed, a client asks how far the shell is.
pub const ASK: usize = 64 << 10;
/// Letters of a shell's own id, which its client chose: enough that nobody guesses it.
pub const SESSION: std::ops::RangeInclusive<usize> = 32..=64;
/// Longest wait for the sandbox to stand.
pub const START: Duration = Duration::from_secs(10);
/// Longest wait for what the shell's last process wrote, after it ended.
pub const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// Longest wait for a sandbox to end its programs; then it is ended itself.
pub const END: Duration = Duration::from_secs(5);
/// Bytes moved between terminal and network at a time.
pub const CHUNK: usize = 16 << 10;
/// Largest message that a client may send, in bytes.
pub const MESSAGE: usize = 64 << 10;
/// Bytes that wait between the terminal and a slow network, each way.
pub const PIPE: usize = 64 << 10;
/// How often a shell whose client will type nothing more is told so. One that is about to read a line loses what came
/// a moment before.
pub const END_AGAIN: Duration = Duration::from_millis(250);
/// Calls of one shell to the API server at once: connections to its own little listener.
pub const CALLS: usize = 64;
/// Longest wait for the head of such a call.
pub const HEAD: Duration = Duration::from_secs(30);
/// Rows and columns of a terminal, at most.
pub const CELLS: u16 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMONSET: &str = include_str!("../../../deploy/daemonset/agent.yaml");
    const WITH_SHELLS: &str = include_str!("../../../deploy/node-shells/agent.yaml");

    /// What stands behind these words, the first time that they stand in a line.
    fn said<'a>(manifest: &'a str, words: &str) -> &'a str {
        manifest.lines().find_map(|line| line.trim().strip_prefix(words)).expect(words).trim_matches(['"', ' '])
    }

    /// A pod's limit of memory, in MiB.
    fn limit(manifest: &str) -> u64 {
        let limits = manifest.split_once("limits:").expect("limits").1;
        said(limits, "memory:").strip_suffix("Mi").and_then(|mib| mib.parse().ok()).expect("MiB")
    }

    #[test]
    fn a_pod_has_room_for_every_shell_that_it_gives_and_for_its_agent() {
        let env = WITH_SHELLS.split_once("- name: MOORLINE_SHELLS").expect("how many").1;
        let shells: u64 = said(env, "value:").parse().unwrap();
        assert!((1..=SHELLS as u64).contains(&shells), "{shells}");
        assert_eq!(MIB, 1152, "the chart, the book and `--shells` name it");
        assert_eq!(limit(WITH_SHELLS), limit(DAEMONSET) + shells * MIB, "{shells} shells of {MIB} MiB");
    }
}
