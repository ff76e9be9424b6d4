//! What a shell must not be good for.

use crate::client::{House, Recorder, processes, statuses};
use moorline_shell::{Visitor, limits};
use std::{io::Read, net::TcpListener, process::Stdio, time::Duration};
use tokio::time::sleep;

/// How often what must not happen is looked for.
const LOOKS: usize = 25;

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not in time");
}

pub async fn nobody_with_no_right() {
    let house = House::new();
    let mut client = house.enter().await;
    let (id, _) = client.run("id -u; id -G").await;
    assert_eq!(id, "1900000000\n1900000000");
    let (status, _) = client.run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t '").await;
    let none =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:0000000000000000")).join("\n");
    assert_eq!(status, format!("{none}\nNoNewPrivs:1\nSeccomp:2"));
    let (open, _) = client.run("readlink /proc/$$/fd/* | sort -u").await;
    // Its terminal; and what a shell has of its own: a pipe to a command, nothing at all.
    let own = |to: &str| ["/dev/pts/", "/dev/console", "/dev/null", "pipe:"].iter().any(|own| to.starts_with(own));
    assert!(open.lines().all(own), "something of the agent's is open: {open}");
    let (environment, _) = client.run("tr '\\0' '\\n' < /proc/1/environ | cut -d= -f1 | sort | tr '\\n' ' '").await;
    assert_eq!(environment, "HOME KUBECONFIG LANG LOGNAME PATH SHELL TERM USER");
}

pub async fn no_file_of_the_node_is_there() {
    let house = House::new();
    let mut client = house.enter().await;
    let (root, _) = client.run("ls / | tr '\\n' ' '").await;
    for folder in root.split_whitespace() {
        assert!(
            ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev", "proc", "tmp", "home"]
                .contains(&folder),
            "{folder}"
        );
    }
    for path in
        ["/etc/shadow", "/root", "/var", "/sys", "/run", "/boot", "/old", "/proc/1/root/root", "/var/run/secrets"]
    {
        assert_ne!(client.run(&format!("ls -d {path}")).await.1, 0, "{path}");
    }
    assert_ne!(client.run("ln -s /proc/1/root/../../etc/shadow /tmp/l; cat /tmp/l").await.1, 0);
    for path in ["/x", "/usr/x", "/bin/x", "/etc/passwd", "/dev/x", "/proc/sys/kernel/hostname"] {
        assert_ne!(client.run(&format!("echo x > {path}")).await.1, 0, "{path} can be written");
    }
    assert_ne!(client.run("mknod /tmp/sda b 8 0").await.1, 0);
}

pub async fn no_process_but_its_own_is_seen() {
    let house = House::new();
    let mut client = house.enter().await;
    let (pids, _) =
        client.run("for p in /proc/[0-9]*; do cat $p/comm 2>/dev/null; done | sort -u | tr '\\n' ' '").await;
    assert!(pids.split(' ').all(|name| ["bash", "cat", "sort", "tr"].contains(&name)), "{pids}");
    let agent = std::process::id();
    assert_ne!(client.run(&format!("kill -0 {agent}")).await.1, 0);
    assert_ne!(client.run(&format!("ls /proc/{agent}")).await.1, 0);
}

pub async fn no_namespace_is_made_or_entered() {
    let house = House::new();
    let mut client = house.enter().await;
    for attempt in [
        "mount -t tmpfs x /tmp",
        "umount /tmp",
        "umount -l /proc",
        "mount -o remount,rw /usr",
        "unshare -Ur true",
        "unshare -m true",
        "unshare -n true",
        "nsenter -t 1 -m true",
        "nsenter -t 1 -n true",
        "chroot /tmp true",
        "hostname other",
        "su -c true",
        "sudo -n true",
        "dmesg",
        "perl -e 'exit(syscall(435, 0, 0) < 0 && $!{ENOSYS} ? 1 : 0)'",
    ] {
        let (said, code) = client.run(attempt).await;
        assert_ne!(code, 0, "{attempt}: {said}");
    }
}

/// Whatever their arguments, the filter says no before the kernel looks at them: with these it would complain of the
/// arguments, or do it.
#[cfg(target_arch = "x86_64")]
pub async fn calls_that_a_shell_has_no_use_for_are_filtered() {
    let filtered = [
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("fsopen", libc::SYS_fsopen),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("keyctl", libc::SYS_keyctl),
        ("mount", libc::SYS_mount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("move_mount", libc::SYS_move_mount),
        ("msgget", libc::SYS_msgget),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("open_tree", libc::SYS_open_tree),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("personality", libc::SYS_personality),
        ("pivot_root", libc::SYS_pivot_root),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("ptrace", libc::SYS_ptrace),
        ("quotactl", libc::SYS_quotactl),
        ("request_key", libc::SYS_request_key),
        ("semget", libc::SYS_semget),
        ("setns", libc::SYS_setns),
        ("shmget", libc::SYS_shmget),
        ("umount2", libc::SYS_umount2),
        ("unshare", libc::SYS_unshare),
        ("userfaultfd", libc::SYS_userfaultfd),
        // By its number of the x32 interface, which an unfiltered kernel does or does not know.
        ("getpid of x32", 0x4000_0000 | libc::SYS_getpid),
    ];
    let house = House::new();
    let mut client = house.enter().await;
    for (name, number) in filtered {
        let call = format!("perl -e '$r = syscall({number}, -1, -1, -1, -1, -1); print $r < 0 ? $! + 0 : \"done\"'");
        assert_eq!(client.run(&call).await.0, libc::EPERM.to_string(), "{name}");
    }
    // A process in a new namespace of users, as anybody may make one: CLONE_NEWUSER with SIGCHLD.
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let clone = format!(
        "perl -e '$r = syscall({}, {flags}, 0, 0, 0, 0); exit 0 if $r == 0; print $r < 0 ? $! + 0 : \"made\"'",
        libc::SYS_clone
    );
    assert_eq!(client.run(&clone).await.0, libc::EPERM.to_string());
}

pub async fn its_namespaces_are_its_own() {
    let house = House::new();
    let (mut one, mut two) = (house.enter().await, house.enter().await);
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        let read = format!("readlink /proc/self/ns/{kind}");
        let (first, second) = (one.run(&read).await.0, two.run(&read).await.0);
        assert!(first.starts_with(kind) && first != ours && second != ours && first != second, "{kind}: {first}");
    }
}

pub async fn its_resources_are_bounded() {
    let house = House::new();
    let mut client = house.enter().await;
    // Blocks of 1024 bytes where bash counts bytes.
    let wanted = [
        ("u", limits::PROCESSES),
        ("n", limits::FILES),
        ("f", limits::FILE_SIZE / 1024),
        ("d", limits::DATA / 1024),
        ("c", 0),
        ("l", 0),
        ("q", 0),
        ("e", 0),
        ("r", 0),
    ];
    for (resource, most) in wanted {
        for (kind, what) in [("S", "soft"), ("H", "hard")] {
            assert_eq!(client.run(&format!("ulimit -{kind}{resource}")).await.0, most.to_string(), "{resource} {what}");
        }
        assert_ne!(client.run(&format!("ulimit -H{resource} 99999999")).await.1, 0, "{resource} can be raised");
    }
    for folder in ["/tmp", "~"] {
        let (size, _) = client.run(&format!("df --output=size -k {folder} | tail -n 1")).await;
        assert_eq!(size.trim(), (u64::from(limits::TMPFS_MIB) * 1024).to_string(), "{folder}");
    }
    let (said, code) = client.run("head -c 100M /dev/zero > /tmp/full").await;
    assert!(code != 0 && said.contains("No space left"), "{said}");
    for folder in ["/tmp", "~"] {
        let (many, _) = client.run(&format!("df --output=itotal {folder} | tail -n 1")).await;
        assert_eq!(many.trim(), limits::TMPFS_FILES.to_string(), "{folder}");
    }
}

/// Processes of a shell that compute for ever.
const BUSY: usize = 16;

/// All that one begins is as nice as it is itself, wherever it runs, and cannot take it back; who computes nothing works beside it.
pub async fn who_computes_gives_way() {
    let house = House::new();
    let mut client = house.enter().await;
    let nice = |n| format!("perl -e 'exit(setpriority(0, 0, {n}) ? 0 : 1)'");
    let less = format!("{} && chrt -b 0 true", nice(limits::NICE + 1));
    assert_eq!(client.run(&less).await.1, 0, "less is everybody's to take");
    for more in [&nice(limits::NICE - 1), "renice -n 0 -p $$", "chrt -f 1 true", "chrt -r 1 true"] {
        assert_ne!(client.run(more).await.1, 0, "{more}");
    }
    client.run(&format!("for i in $(seq {BUSY}); do setsid sh -c 'while :; do :; done' & done")).await;
    eventually("they compute", || processes() > BUSY).await;
    let mut other = house.enter().await;
    assert_eq!(other.run("echo fine").await.0, "fine");
    // The 19th field of proc(5), of which two stand before the bracket's end.
    let all = "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -d ' ' -f 17 | sort -u";
    assert_eq!(client.run(all).await.0, limits::NICE.to_string());
}

/// While its client is away a shell's programs ask the API server in vain.
pub async fn nothing_is_asked_while_the_client_is_away() {
    let house = House::new();
    let id = "c123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    let ask = "exec 3<>/dev/tcp/127.0.0.1/6443; printf 'GET /x HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3 >/dev/null";
    client.type_in(&format!("while :; do ( {ask} ); sleep 0.02; done &\r")).await;
    let asked = || house.kube.0.lock().unwrap().len();
    eventually("calls", || asked() > 3).await;
    drop(client);
    // Until it has noticed, some may be answered.
    let (mut before, mut looks) = (asked(), 0);
    eventually("silence", || {
        let now = asked();
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
        looks > LOOKS / 2
    })
    .await;
    for _ in 0..LOOKS {
        assert_eq!(asked(), before);
        sleep(Duration::from_millis(20)).await;
    }
    let _back = house.enter_with(&format!("session={id}&attach=1")).await;
    eventually("calls again", || asked() > before + 3).await;
}

/// Whoever comes back has the rights of today: who began the shell may have had more.
pub async fn what_is_asked_is_asked_as_whoever_is_there_now() {
    let house = House::new();
    let id = "d123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    let ask = "exec 3<>/dev/tcp/127.0.0.1/6443; printf 'GET /x HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3 >/dev/null";
    client.type_in(&format!("while :; do ( {ask} ); sleep 0.02; done &\r")).await;
    let asked = |of: &Recorder| of.0.lock().unwrap().len();
    eventually("calls", || asked(&house.kube) > 3).await;
    let today = std::sync::Arc::new(Recorder::default());
    let visitor = Visitor { kube: today.clone(), ..house.visitor() };
    let _back = house.begin(&format!("session={id}&attach=1"), visitor).await;
    eventually("calls with the rights of today", || asked(&today) > 3).await;
    let before = asked(&house.kube);
    eventually("more of them", || asked(&today) > 9).await;
    assert_eq!(asked(&house.kube), before, "none with those of before");
}

pub async fn no_network_but_its_own() {
    let host = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let house = House::new();
    let mut client = house.enter().await;
    let (interfaces, _) =
        client.run("ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await;
    assert_eq!(interfaces, "lo");
    for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254"] {
        assert_ne!(client.run(&format!("exec 3<>/dev/tcp/{address}/{port}")).await.1, 0, "{address}");
    }
    assert_ne!(client.run("perl -MSocket -e 'socket(S,AF_INET,SOCK_RAW,1) or exit 1'").await.1, 0);
}

pub async fn nothing_is_typed_into_a_terminal_by_ioctl() {
    let house = House::new();
    let mut client = house.enter().await;
    let (said, _) =
        client.run("perl -e 'my $c = \"x\"; ioctl(STDIN, 0x5412, $c) ? print \"typed\" : print \"refused: $!\"'").await;
    assert_eq!(said, "refused: Operation not permitted");
}

pub async fn one_shell_does_not_see_another() {
    let house = House::new();
    let (mut one, mut two) = (house.enter().await, house.enter().await);
    one.run("echo secret > /tmp/s; echo secret > ~/s; sleep 1000 & true").await;
    assert_eq!(two.run("id -u").await.0, "1900000001", "a user of its own");
    assert_ne!(two.run("cat /tmp/s || cat ~/s").await.1, 0);
    assert_ne!(two.run("pkill sleep || kill $(pgrep sleep)").await.1, 0);
    assert_ne!(two.run("ls /dev/pts/1").await.1, 0);
    assert_eq!(one.run("cat ~/s; kill %1").await, ("secret".to_owned(), 0));
}

pub async fn a_fork_bomb_is_bounded_and_ends_with_its_shell() {
    let house = House::new();
    let mut client = house.enter().await;
    client.type_in("b() { b | b & }; b\r").await;
    eventually("it forks", || processes() > 50).await;
    for _ in 0..LOOKS {
        // The one that the kernel counts when it is changed to this user comes on top.
        assert!(processes() as u64 <= limits::PROCESSES + 1, "{}", processes());
        sleep(Duration::from_millis(20)).await;
    }
    // The node is not the shell's: another one begins and works beside it.
    let mut other = house.enter().await;
    assert_eq!(other.run("echo fine").await.0, "fine");
    drop((client, other));
    eventually("all of it has ended", || processes() == 0).await;
}

/// Bytes that the agent may hold of what one shell shows, and what its allocator keeps beside them.
pub const HELD: usize = 8 << 20;

pub async fn a_client_that_does_not_read_holds_up_nobody() {
    let house = House::new();
    let mut deaf = house.enter().await;
    let before = resident();
    deaf.type_in("head -c 1G /dev/zero\r").await;
    let mut other = house.enter().await;
    assert_eq!(other.run("echo fine").await.0, "fine");
    for _ in 0..LOOKS {
        let grown = resident().saturating_sub(before);
        assert!(grown < HELD, "{grown} bytes for one that does not read");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other.run("echo fine").await.0, "fine");
}

pub fn resident() -> usize {
    let mut text = String::new();
    std::fs::File::open("/proc/self/statm").unwrap().read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

pub async fn nothing_outlives_its_client() {
    let house = House::new();
    let mut client = house.enter().await;
    client.run("sleep 1000 & (setsid nohup sleep 1000 >/dev/null 2>&1 &) ; trap '' HUP TERM; true").await;
    assert!(processes() >= 3);
    drop(client);
    eventually("all of it has ended", || processes() == 0 && house.shells.open() == 0).await;
}

/// It hears neither the terminal's end nor a signal.
pub async fn what_does_not_hear_its_terminal_ends_with_its_shell() {
    let house = House::new();
    let mut client = house.enter().await;
    client.type_in("trap '' HUP INT QUIT TERM; echo i''gnores; exec sleep 1000\r").await;
    client.until("ignores\r\n").await;
    let sleeps = || statuses().iter().any(|status| status.starts_with("Name:\tsleep\n"));
    eventually("it is another program", sleeps).await;
    drop(client);
    eventually("all of it has ended", || processes() == 0 && house.shells.open() == 0).await;
    // Nor the signal of its parent's death: it has renounced that (PR_SET_PDEATHSIG of prctl(2)).
    let mut client = house.enter().await;
    let prctl = if cfg!(target_arch = "x86_64") { 157 } else { 167 };
    let deaf = format!(
        "exec perl -e '$SIG{{$_}} = \"IGNORE\" for qw(HUP INT QUIT TERM); syscall({prctl}, 1, 0, 0, 0, 0); $| = 1; \
         print \"renoun\", \"ces\\n\"; sleep 1000 while 1'\r"
    );
    client.type_in(&deaf).await;
    client.until("renounces\r\n").await;
    drop(client);
    eventually("all of that has ended", || processes() == 0 && house.shells.open() == 0).await;
}

/// Set for the agent that is killed.
pub const KILLED: &str = "MOORLINE_TEST_IS_KILLED";

/// Killed as the kernel does it, an agent says nothing to its shells; of one shell the programs hear no signal but that.
pub async fn nothing_outlives_its_agent() {
    const SLEEPS: &str = "sleep 1000 & (setsid nohup sleep 1000 >/dev/null 2>&1 &)";
    if std::env::var_os(KILLED).is_some() {
        let house = House::new();
        let kept = "columns=80&rows=24&session=e123456789abcdef0123456789abcdef";
        let (mut plain, mut deaf) = (house.enter().await, house.enter_with(kept).await);
        plain.type_in(&format!("{SLEEPS}\r")).await;
        deaf.type_in(&format!("trap '' HUP INT QUIT TERM; {SLEEPS}; exec sleep 1000\r")).await;
        return std::future::pending().await;
    }
    let mut agent = tokio::process::Command::new(std::env::current_exe().unwrap());
    agent.args(["--exact", "nothing_outlives_its_agent"]).env(KILLED, "1").stdout(Stdio::null()).kill_on_drop(true);
    let mut agent = agent.spawn().unwrap();
    let sleeps = || statuses().iter().filter(|status| status.starts_with("Name:\tsleep\n")).count();
    eventually("its shells are at work", || sleeps() == 5).await;
    agent.kill().await.unwrap();
    eventually("all of it has ended", || processes() == 0).await;
}
