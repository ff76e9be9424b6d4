//! The system calls that a shell has no use for: those that make or enter namespaces, mount, load, trace what is not
//! its own, keep memory that is no process's, or type into a terminal. They fail as if the right were missing; without a
//! capability most would anyway.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::{collections::BTreeMap, io};

const ARCH: TargetArch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };

/// libc does not know it on every platform: its number in x86's own table, and in the one of all newer architectures.
const KEXEC_FILE_LOAD: libc::c_long = if cfg!(target_arch = "x86_64") { 320 } else { 294 };

/// Refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    KEXEC_FILE_LOAD,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_msgget,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_semget,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_shmget,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// `clone` with any of these makes a namespace.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Filters the calls of this process and of all that come from it.
pub(super) fn apply() -> io::Result<()> {
    let refused = |call: &libc::c_long| (*call, Vec::new());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(refused).collect();
    let flag = |flag: &libc::c_int| {
        let bit = u64::try_from(*flag).map_err(io::Error::other)?;
        rule(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)
    };
    rules.insert(libc::SYS_clone, NAMESPACES.iter().map(flag).collect::<io::Result<_>>()?);
    let ioctls = [libc::TIOCSTI, libc::TIOCLINUX];
    let ioctl = |number: &libc::Ioctl| {
        // Its type is another with another C library.
        #[allow(clippy::unnecessary_cast)]
        let number = u64::from(*number as u32);
        rule(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)
    };
    rules.insert(libc::SYS_ioctl, ioctls.iter().map(ioctl).collect::<io::Result<_>>()?);
    let errno = |code: libc::c_int| u32::try_from(code).unwrap_or(1);
    install(rules, errno(libc::EPERM))?;
    // Its flags are behind a pointer, where no filter sees them: the C library takes `clone` where this is missing.
    // Memory files are nobody's memory: what is in one that no process has mapped is counted nowhere.
    install([libc::SYS_clone3, libc::SYS_memfd_create].map(|call| (call, Vec::new())).into(), errno(libc::ENOSYS))?;
    #[cfg(target_arch = "x86_64")]
    seccompiler::apply_filter(&no_x32(errno(libc::EPERM))).map_err(io::Error::other)?;
    Ok(())
}

/// Where the kernel has the x32 interface, each call has a second number there, of the same architecture: the filters above
/// would not know it.
#[cfg(target_arch = "x86_64")]
fn no_x32(errno: u32) -> BpfProgram {
    /// The bit that makes a number x32's (`__X32_SYSCALL_BIT`).
    const X32: u32 = 0x4000_0000;
    let step =
        |code: u32, jt, jf, k| seccompiler::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k };
    vec![
        // The call's number is what `struct seccomp_data` begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn rule(arg: u8, length: SeccompCmpArgLen, op: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(arg, length, op, value).map_err(io::Error::other)?;
    SeccompRule::new(vec![condition]).map_err(io::Error::other)
}

fn install(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: u32) -> io::Result<()> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), ARCH);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
