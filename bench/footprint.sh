#!/usr/bin/env bash
# What an agent costs a site: size, memory, processor and traffic while nothing happens, and how fast it is there.
#
#   bench/footprint.sh [SECONDS]      idle time that is measured (default 60); needs root, for a network of its own
#
# Environment: DIST (default target/dist) has the binaries that are measured: make cross.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dist=${DIST:-$root/target/dist} seconds=${1:-60}
agent=$dist/moorline-agent-linux-amd64 full=$dist/moorline-linux-amd64
for f in "$agent" "$full"; do [ -x "$f" ] || { echo "footprint: $f is missing: make cross" >&2; exit 1; }; done
work=$(mktemp -d /tmp/mlfoot.XXXXXX) net=mlfoot pids=()
clean() {
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  "$root/tests/kube/netns.sh" down $net || true
  rm -rf "$work"
}
trap clean EXIT
"$root/tests/kube/netns.sh" up $net 88
hub=10.231.88.1 port=18843
# Plugins off: without an API server they would ask for it again and again, and that would be what is measured.
echo 'plugins: {clusters: {enabled: false}, rbac: {enabled: false}, projects: {enabled: false}, health: {enabled: false}, secrets: {enabled: false}}' >"$work/hub.yaml"
"$full" hub --config "$work/hub.yaml" --data-dir "$work/hub" --listen "0.0.0.0:$port" --ops-listen 127.0.0.1:19843 --name $hub --name 127.0.0.1 \
  --public-url "https://$hub:$port" 2>"$work/hub.log" & pids+=($!)
until curl -sf http://127.0.0.1:19843/readyz >/dev/null; do sleep 0.05; done
export XDG_CONFIG_HOME=$work/config
"$full" login "https://127.0.0.1:$port" --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password" 2>/dev/null
token=$("$full" token create --cluster foot 2>/dev/null | sed 's/.*--token //')
# No API server: what is measured is the tunnel at rest.
cat >"$work/kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: x
clusters: [{name: x, cluster: {server: "https://127.0.0.1:1", certificate-authority: $work/hub/ca.crt}}]
users: [{name: x, user: {token: x}}]
contexts: [{name: x, context: {cluster: x, user: x}}]
YAML
now() { date +%s%N; }
start() { # CARRIER; sets $pid and $took (ms)
  : >"$work/agent.log"
  local t0; t0=$(now)
  nsenter --net=/run/netns/$net "$agent" --hub "https://$hub:$port" --carrier "$1" --token "$token" --name a1 \
    --state-dir "$work/state" --kubeconfig "$work/kubeconfig" --log-format json 2>"$work/agent.log" & pid=$!
  until grep -q '"message":"connected"' "$work/agent.log"; do kill -0 "$pid" || { cat "$work/agent.log" >&2; exit 1; }; sleep 0.005; done
  took=$((($(now) - t0) / 1000000))
}
stop() { kill "$pid"; wait "$pid" || true; }
traffic() { awk -v i="mv$net:" '$1 == i { print $2 + $10 }' /proc/net/dev; }
busy() { awk '{ print $14 + $15 }' "/proc/$pid/stat"; }
rss() { awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"; }

start auto; stop # joins
printf '| what | figure |\n|---|---|\n'
printf '| size of moorline-agent, static, stripped | %s MiB |\n' "$(stat -c %s "$agent" | awk '{ printf "%.1f", $1 / 1048576 }')"
printf '| size of moorline | %s MiB |\n' "$(stat -c %s "$full" | awk '{ printf "%.1f", $1 / 1048576 }')"
for carrier in quic tls websocket; do
  times=()
  for _ in 1 2 3 4 5; do start $carrier; times+=("$took"); stop; done
  median=$(printf '%s\n' "${times[@]}" | sort -n | sed -n 3p)
  start $carrier
  sleep 2
  t=$(traffic) b=$(busy)
  sleep "$seconds"
  t=$(($(traffic) - t)) b=$(($(busy) - b))
  printf '| %s: start to connected, median of 5 | %s ms |\n' $carrier "$median"
  printf '| %s: resident, idle | %s MiB |\n' $carrier "$(rss | awk '{ printf "%.1f", $1 / 1024 }')"
  printf '| %s: processor, idle | %s %% of a core |\n' $carrier "$(awk -v b=$b -v s="$seconds" -v h="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", 100 * b / h / s }')"
  printf '| %s: traffic, idle, both ways | %s KiB an hour |\n' $carrier "$(awk -v t=$t -v s="$seconds" 'BEGIN { printf "%.0f", t / 1024 * 3600 / s }')"
  stop
done
