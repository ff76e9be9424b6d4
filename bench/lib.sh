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

# A control plane, a hub and an agent of the cluster `bench`, on ports from $1 on; sets: hub (its port), hub_pid, token (an
# administrator's).
one_cluster() {
  # With autogroups (sched(7)) priorities count among the processes of one terminal only: the hub's hashing, which steps back
  # behind everything else, would not do so for the API server and etcd, as on no server with a service manager.
  autogroup=/proc/sys/kernel/sched_autogroup_enabled
  if [ -w $autogroup ] && [ "$(cat $autogroup)" = 1 ]; then
    echo 0 >$autogroup
    trap 'echo 1 >$autogroup; clean' EXIT
  fi
  mkdir "$work/kube"
  tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset $(($1 - 17380))
  hub=$1; ops=$(($1 + 1))
  up hub moorline hub --data-dir "$work/hub" --listen 127.0.0.1:$hub --ops-listen 127.0.0.1:$ops --name 127.0.0.1 --public-url https://127.0.0.1:$hub
  hub_pid=$!
  wait_for curl -sf http://127.0.0.1:$ops/readyz
  export XDG_CONFIG_HOME=$work/config
  moorline login https://127.0.0.1:$hub --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password"
  read -r -a join <<<"$(moorline token create --cluster bench 2>/dev/null)"
  up agent moorline agent "${join[@]:2}" --state-dir "$work/agent" --kubeconfig "$work/kube/kubeconfig"
  wait_for sh -c "moorline clusters bench -o json | grep -q '\"status\": *\"True\"'"
  kubectl --kubeconfig "$work/kube/kubeconfig" create clusterrolebinding bench --clusterrole cluster-admin --user admin >/dev/null
  token=$(moorline kubeconfig bench --static | sed -n 's/^ *token: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')
}
