//! The shell's file system: programs, read-only, from one folder; everything else made anew, in memory.

use super::{Plan, USER, at};
use crate::limits;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, chdir, pivot_root, setegid, seteuid},
};
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

/// Folders with programs and what they need to run. All that a shell sees of the agent's files.
const PROGRAMS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr"];
/// Devices that hold nothing.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// Where the new root is built. Any folder that is there will do: only this process sees what is mounted on it.
const PLACES: &[&str] = &["/tmp", "/mnt", "/run", "/var"];
const NONE: Option<&str> = None;
const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Makes the root and enters it. Afterwards nothing of the old one can be reached.
pub(super) fn make(plan: &Plan, home: &str) -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(at("keep mounts to itself"))?;
    // Found before anything is covered.
    let programs = programs(&plan.root)?;
    let place = PLACES.iter().map(Path::new).find(|place| place.is_dir() && !plan.root.starts_with(place));
    let new = place.ok_or_else(|| io::Error::other("no folder to build its root on"))?;
    tmpfs(new, "size=1m,mode=755", MsFlags::empty())?;
    for program in &programs {
        let target = new.join(program.name);
        match &program.link {
            Some(to) => symlink(to, &target)?,
            None => {
                fs::create_dir(&target)?;
                bind(&program.from, &target, MsFlags::MS_RDONLY | SAFE)?;
            }
        }
    }
    etc(new, plan, home)?;
    devices(new)?;
    for folder in ["proc", "tmp", "old", home.trim_start_matches('/')] {
        fs::create_dir_all(new.join(folder))?;
    }
    // A new process namespace, a new view: only the shell's own processes are in it. Nothing is written there, such as
    // that somebody else should go first when memory is short.
    let flags = SAFE | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("proc"), &new.join("proc"), Some("proc"), flags, NONE).map_err(at("mount proc"))?;
    let (size, files) = (limits::TMPFS_MIB, limits::TMPFS_FILES);
    tmpfs(&new.join("tmp"), &format!("size={size}m,nr_inodes={files},mode=1777"), SAFE)?;
    let at_home = new.join(home.trim_start_matches('/'));
    tmpfs(&at_home, &format!("size={size}m,nr_inodes={files},mode=700,uid={0},gid={0}", plan.uid), SAFE)?;
    as_user(plan.uid, || profile(&at_home, plan)).map_err(at("furnish its home"))?;

    pivot_root(new, &new.join("old")).map_err(at("enter its root"))?;
    chdir("/").map_err(at("enter its root"))?;
    umount2("/old", MntFlags::MNT_DETACH).map_err(at("leave the old root"))?;
    fs::remove_dir("/old")?;
    mount(NONE, "/", NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | SAFE, NONE).map_err(at("close its root"))
}

struct Program {
    name: &'static str,
    from: std::path::PathBuf,
    /// Where there is a link and not a folder: `bin -> usr/bin`.
    link: Option<std::path::PathBuf>,
}

fn programs(root: &Path) -> io::Result<Vec<Program>> {
    let mut found = Vec::new();
    for name in PROGRAMS {
        let from = root.join(name);
        match fs::symlink_metadata(&from) {
            Ok(meta) if meta.is_symlink() => found.push(Program { name, link: Some(fs::read_link(&from)?), from }),
            Ok(meta) if meta.is_dir() => found.push(Program { name, link: None, from }),
            _ => {}
        }
    }
    Ok(found)
}

fn tmpfs(at_path: &Path, options: &str, flags: MsFlags) -> io::Result<()> {
    mount(Some("tmpfs"), at_path, Some("tmpfs"), flags, Some(options)).map_err(at("mount memory"))
}

/// The kernel takes the flags of a bind mount only in a second step.
fn bind(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).map_err(at("bind"))?;
    mount(NONE, to, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, NONE).map_err(at("bind read-only"))
}

fn etc(new: &Path, plan: &Plan, home: &str) -> io::Result<()> {
    let etc = new.join("etc");
    fs::create_dir(&etc)?;
    let uid = plan.uid;
    fs::write(etc.join("passwd"), format!("root:x:0:0:root:/:/bin/false\n{USER}:x:{uid}:{uid}::{home}:/bin/sh\n"))?;
    fs::write(etc.join("group"), format!("root:x:0:\n{USER}:x:{uid}:\n"))?;
    fs::write(etc.join("hosts"), format!("127.0.0.1 localhost {}\n", plan.cluster))?;
    fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files\n")?;
    // Debian's editors and pagers are links through here.
    let alternatives = plan.root.join("etc/alternatives");
    if alternatives.is_dir() {
        let target = etc.join("alternatives");
        fs::create_dir(&target)?;
        bind(&alternatives, &target, MsFlags::MS_RDONLY | SAFE)?;
    }
    Ok(())
}

fn devices(new: &Path) -> io::Result<()> {
    let dev = new.join("dev");
    fs::create_dir(&dev)?;
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, "")?;
        bind(&Path::new("/dev").join(name), &target, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    // Under a name that is the same everywhere, so that programs which ask for their terminal's find one.
    let console = dev.join("console");
    fs::write(&console, "")?;
    bind(&fs::read_link("/proc/self/fd/0")?, &console, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(name))?;
    }
    let pts = dev.join("pts");
    fs::create_dir(&pts)?;
    mount(
        Some("devpts"),
        &pts,
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=620,max=64"),
    )
    .map_err(at("mount devpts"))?;
    symlink("pts/ptmx", dev.join("ptmx"))
}

/// Does this as the user: what it makes is the user's at once. Root that may neither pass over modes nor give files away,
/// as in a pod, could not do it otherwise.
fn as_user(uid: u32, does: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    setegid(Gid::from_raw(uid))?;
    seteuid(Uid::from_raw(uid))?;
    let done = does();
    seteuid(Uid::from_raw(0))?;
    setegid(Gid::from_raw(0))?;
    done
}

/// What greets the user: kubectl's configuration, its completion, a prompt that names the cluster.
fn profile(home: &Path, plan: &Plan) -> io::Result<()> {
    let kube = home.join(".kube");
    fs::create_dir(&kube)?;
    let files = [
        (kube.join("config"), plan.kubeconfig.as_str()),
        (home.join(".bashrc"), BASHRC),
        (home.join(".profile"), PROFILE),
    ];
    for (path, text) in &files {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

const PROFILE: &str = "PS1='\\h\\$ '; export PS1\n[ -z \"$BASH_VERSION\" ] || . ~/.bashrc\n";
const BASHRC: &str = "\
PS1='\\h:\\w\\$ '
HISTFILE=
[ ! -f /usr/share/bash-completion/bash_completion ] || . /usr/share/bash-completion/bash_completion
if command -v kubectl >/dev/null; then . <(kubectl completion bash 2>/dev/null); alias k=kubectl; complete -o default -F __start_kubectl k; fi
";
