//! A bound on what a shell's processes hold of memory together. The kernel has such bounds for a group of processes
//! alone, which an agent in a pod may not make.

use crate::limits;
use rustix::{
    fs::{Mode, OFlags, open, openat},
    process::{Signal, pidfd_send_signal},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

/// Ends the largest processes of the shell's user until the rest hold no more than they may.
///
/// In `/proc` are the shell's processes alone: with the inner process the outer one has entered the new root.
pub(super) fn bound(uid: u32) -> io::Result<()> {
    let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| process(&entry, uid)).collect();
    for process in surplus(all, limits::HELD) {
        let _ = pidfd_send_signal(process, Signal::KILL); // it may just have ended by itself
    }
    Ok(())
}

/// What one of this user's processes holds, and its folder, which stands for it whoever gets its number next.
fn process(entry: &fs::DirEntry, uid: u32) -> Option<(u64, OwnedFd)> {
    entry.file_name().to_str()?.parse::<u32>().ok()?;
    let folder = open(entry.path(), OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut status = String::new();
    let file = openat(&folder, "status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    File::from(file).read_to_string(&mut status).ok()?;
    let user: u32 = field(&status, "Uid:")?.parse().ok()?;
    if field(&status, "RssAnon:").is_none() {
        status = living(&entry.path()).unwrap_or(status);
    }
    (user == uid).then(|| (held(&status), folder))
}

/// Of a process whose first thread has ended the others tell what it holds.
fn living(process: &Path) -> Option<String> {
    let threads = fs::read_dir(process.join("task")).ok()?.flatten();
    let mut said = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    said.find(|status| field(status, "RssAnon:").is_some())
}

/// The first word of a line of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

/// Bytes that are its own, or shared and in no file, and the kernel's tables for them. What it shares with a parent counts for both.
fn held(status: &str) -> u64 {
    let kib = |name| field(status, name).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    ["RssAnon:", "RssShmem:", "HugetlbPages:", "VmPTE:", "VmSwap:"].map(kib).iter().sum::<u64>().saturating_mul(1024)
}

/// Of these the largest, as many as it takes for the rest to be no more than `most`.
fn surplus<T>(mut all: Vec<(u64, T)>, most: u64) -> Vec<T> {
    all.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
    let mut left: u64 = all.iter().map(|(held, _)| held).sum();
    let too_much = all.into_iter().take_while(|(held, _)| {
        let ends = most < left;
        left = left.saturating_sub(*held);
        ends
    });
    too_much.map(|(_, process)| process).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_go_first_and_no_more_than_need_be() {
        let all = || vec![(10, "small"), (40, "large"), (30, "middle")];
        assert_eq!(surplus(all(), 80), Vec::<&str>::new());
        assert_eq!(surplus(all(), 79), ["large"]);
        assert_eq!(surplus(all(), 39), ["large", "middle"]);
    }

    #[test]
    fn what_is_in_files_is_not_held() {
        let status = "Name:\tx\nVmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 700 kB\nRssShmem:\t 20 kB\nVmPTE:\t 8 kB\nVmSwap:\t 3 kB\n";
        assert_eq!(held(status), 131 << 10);
        assert_eq!(held("Name:\tkthreadd\n"), 0);
    }
}
