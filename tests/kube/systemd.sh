#!/usr/bin/env bash
# Boots this machine's own systemd as the first process of namespaces of its own, on a copy of the file system that is gone
# when it ends, so that units run as they are meant to: users, folders, sandboxes, watchdogs.
#
#   systemd.sh DIR [FILE=/path]...
#
# DIR/files goes over the copy's root; each FILE is seen at its path. DIR/cgroup names the group to remove afterwards.
# Stays in the foreground; killing it ends everything. Needs root.
set -euo pipefail
die() { echo "systemd.sh: $*" >&2; exit 1; }
if [ "${1:-}" != --inside ]; then
  [ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
  [ "$(id -u)" = 0 ] || die "needs root"
  dir=$(cd "$1" && pwd); shift
  # A group of its own: systemd makes and removes groups below the one that it is in.
  if grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts; then top=/sys/fs/cgroup; else top=/sys/fs/cgroup/systemd; fi
  group=$top/moor-systemd-$$
  mkdir "$group"
  echo "$group" >"$dir/cgroup"
  echo $$ >"$group/cgroup.procs"
  exec unshare --mount --pid --fork --cgroup --uts --ipc --kill-child bash "$(readlink -f "$0")" --inside "$dir" "$@"
fi

dir=$2; shift 2
mount --make-rprivate /
mkdir -p "$dir/top"
mount -t tmpfs tmpfs "$dir/top"
mkdir "$dir/top/"{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/top/upper,workdir=$dir/top/work" "$dir/top/root"
root=$dir/top/root
# Nothing of this machine's own services comes along.
rm -rf "$root/etc/systemd/system"
mkdir -p "$root/etc/systemd/system"
cp -a "$dir/files/." "$root/"
for pair; do
  mkdir -p "$(dirname "$root${pair#*=}")"
  touch "$root${pair#*=}"
  mount --bind "${pair%%=*}" "$root${pair#*=}"
done
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/"{shm,pts,mqueue}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
if grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  mkdir "$root/sys/fs/cgroup/systemd"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
cd "$root"
mkdir -p before
pivot_root . before
umount -l /before
exec env -i container=moorline PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=basic.target --log-target=journal
