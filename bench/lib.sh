# What every measurement begins with; sourced, with the name of its scratch folder: . bench/lib.sh mlapi
#
# Leaves in the repository's root, and sets: cache (what tests/deps.sh fetched), work (scratch), pids (what `up` started, ended
# at the end, with a control plane in $work/kube).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${MOORLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/moorline}
PATH=$cache/kubectl:$PATH; export PATH NO_PROXY='*'
work=$(mktemp -d "/tmp/$1.XXXXXX")
pids=()
clean() {
  trap - EXIT
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [ ! -d "$work/kube" ] || tests/kube/up.sh --stop --dir "$work/kube" >/dev/null || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
# Builds what is measured, unless BIN names a folder that has it, and puts it first.
binaries() {
  [ -n "${BIN:-}" ] || { cargo build --profile dist --locked -p moorline-cli -p moorline-bench; BIN=target/dist; }
  BIN=$(realpath "$BIN"); PATH=$BIN:$PATH
}
up() { local name=$1; shift; "$@" >"$work/$name.log" 2>&1 </dev/null & pids+=($!); }
wait_for() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; tail -n 20 "$work"/*.log >&2; echo "bench: no answer to: $*" >&2; exit 1; }
mib() { awk '/VmRSS/ { printf "%.1f\n", $2 / 1024 }' "/proc/$1/status"; }
rss() { awk '/VmRSS/ { printf "%.1f MiB", $2 / 1024 }' "/proc/$1/status"; }
