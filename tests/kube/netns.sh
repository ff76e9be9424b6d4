#!/usr/bin/env bash
# A network that can dial out and that nothing can dial into: a namespace behind a veth pair and a firewall.
#
#   netns.sh up NAME N       makes it: this side is 10.231.N.1, the inside is 10.231.N.2
#   netns.sh down NAME       removes it
#   netns.sh exec NAME CMD…  runs a command inside
#
# Needs root. NAME: at most 9 letters and digits.
set -euo pipefail
die() { echo "netns.sh: $*" >&2; exit 1; }
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
what=$1 name=$2; shift 2
case $name in *[!a-z0-9]*|??????????*) die "not a usable name: $name" ;; esac
case $what in
up)
  n=$1
  [ "$(id -u)" = 0 ] || die "needs root"
  # What a run left that was killed.
  ! ip netns list | grep -qw "$name" || bash "$0" down "$name"
  ip netns add "$name"
  trap '[ $? -eq 0 ] || ip netns delete "$name"' EXIT
  ip link add "mv$name" type veth peer name eth0 netns "$name"
  ip addr add "10.231.$n.1/30" dev "mv$name"
  ip link set "mv$name" up
  inside() { nsenter --net="/run/netns/$name" "$@"; }
  inside ip link set lo up
  inside ip addr add "10.231.$n.2/30" dev eth0
  inside ip link set eth0 up
  inside ip route add default via "10.231.$n.1"
  # Replies to what was dialled from inside come back; everything else that arrives is dropped.
  inside nft -f - <<'NFT'
table inet gate {
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    iifname != "eth0" accept
    ct state established,related accept
  }
}
NFT
  ;;
down)
  ip netns pids "$name" 2>/dev/null | grep -q . && die "programs still run in $name: $(ip netns pids "$name" | tr '\n' ' ')"
  ip netns delete "$name" 2>/dev/null || true
  ip link delete "mv$name" 2>/dev/null || true
  ;;
exec) exec nsenter --net="/run/netns/$name" "$@" ;;
*) die "unknown: $what" ;;
esac
