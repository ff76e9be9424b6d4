#!/usr/bin/env bash
# kubectl through the hub to a cluster that nothing can dial into, start to end, on this machine.
#
#   make demo
#
# DEMO_KUBECONFIG=FILE  uses that cluster (its current context) instead of starting one; it gets one
#                       namespace and one role binding, both removed at the end
# DEMO_KEEP=1           leaves everything running, prints the kubeconfig, and how to stop it
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd); cd "$root"
cache=${MOORLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/moorline}
[ "${1:-}" = --stop ] || exec 3>&1

bold=''; dim=''; off=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m'; dim=$'\e[2m'; off=$'\e[0m'; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }
say() { printf '   %s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
# Shows a command as a person would type it, then its output, indented.
show() { printf '%s $ %s%s\n' "$dim" "${shown:-$*}" "$off"; shown=; "$@" 2>&1 | sed 's/^/   /'; return "${PIPESTATUS[0]}"; }
wait_for() { # SECONDS WHAT COMMAND...
  local limit=$1 what=$2 t0=$SECONDS; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((SECONDS - t0)) -lt "$limit" ] || { tail -n 15 "$work"/*.log >&2 || true; die "no $what after ${limit}s"; }
    sleep 0.2
  done
}
start() { # NAME COMMAND...: in the background, its pid and start time recorded
  local name=$1; shift
  setsid "$@" >"$work/$name.log" 2>&1 </dev/null &
  echo "$name $! $(cut -d' ' -f22 "/proc/$!/stat")" >>"$work/pids"
}
stop() { # ends what the record names, in reverse order, and only that
  [ -f "$work/pids" ] || return 0
  local name pid started
  tac "$work/pids" | while read -r name pid started; do
    [ "$(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null)" = "$started" ] || continue
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do [ -e "/proc/$pid" ] && [ "$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null)" != Z ] || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -f "$work/pids"
}
clean() {
  trap - EXIT INT TERM
  [ ! -f "$work/admin" ] || { kubectl --kubeconfig "$(cat "$work/admin")" delete --ignore-not-found --wait=false namespace/moorline-demo >/dev/null 2>&1 || true; }
  stop
  if [ -d "$work/kube" ]; then
    "$root/tests/kube/up.sh" --stop --dir "$work/kube" >/dev/null
    "$root/tests/kube/netns.sh" down mldemo
  fi
  rm -rf "$work"
}

if [ "${1:-}" = --stop ]; then
  work=${2:?the folder that the demo printed}
  [ -f "$work/moorline-demo" ] || die "$work is no folder of the demo"
  PATH=$cache/kubectl:$PATH; clean; echo "demo: stopped"; exit 0
fi

step "Installing what is missing, and building Moorline"
if [ -n "${DEMO_KUBECONFIG:-}" ]; then tests/deps.sh build; else
  [ "$(id -u)" = 0 ] || die "starting a cluster needs root; or give one with DEMO_KUBECONFIG=~/.kube/config"
  tests/deps.sh test
fi
cargo build --release --locked -p moorline-cli
bin=$root/target/release
PATH=$bin:$PATH; command -v kubectl >/dev/null || PATH=$cache/kubectl:$PATH
command -v kubectl >/dev/null || die "no kubectl in PATH"
export PATH NO_PROXY='*'

work=$(mktemp -d /tmp/moorline-demo.XXXXXX); touch "$work/moorline-demo"
failed() { code=$?; [ $code -eq 0 ] || { echo "demo: failed; the logs' last lines:" >&2; tail -n 8 "$work"/*.log >&2 || true; }; clean; exit $code; }
trap failed EXIT
trap 'exit 130' INT TERM
port=18443 ops=19443

if [ -n "${DEMO_KUBECONFIG:-}" ]; then
  step "Using the cluster of $DEMO_KUBECONFIG"
  admin=$DEMO_KUBECONFIG; hub_address=127.0.0.1; inside() { "$@"; }
else
  step "A real Kubernetes cluster in a network of its own: it can dial out, nothing can dial in"
  tests/kube/netns.sh up mldemo 77
  mkdir "$work/kube"
  tests/kube/netns.sh exec mldemo tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 40 --node | sed 's/^/   /'
  admin=$work/kube/kubeconfig; hub_address=10.231.77.1
  inside() { tests/kube/netns.sh exec mldemo "$@"; }
  say "from here, the API server at 10.231.77.2:16483:"
  if curl -sk --max-time 2 https://10.231.77.2:16483/ >/dev/null; then die "the cluster can be dialled; it should not be"; fi
  say "no answer, as it should be"
fi
echo "$admin" >"$work/admin"
inside kubectl --kubeconfig "$admin" get --raw /readyz >/dev/null || die "the cluster does not answer"

step "The hub"
start hub moorline hub --data-dir "$work/hub" --listen "0.0.0.0:$port" --ops-listen "127.0.0.1:$ops" \
  --name 127.0.0.1 --name "$hub_address" --public-url "https://$hub_address:$port"
wait_for 20 "hub" curl -sf "http://127.0.0.1:$ops/readyz"
export XDG_CONFIG_HOME=$work/admin-config
shown="moorline login https://127.0.0.1:$port --user admin" \
  show moorline login "https://127.0.0.1:$port" --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password"

step "The cluster joins: one line, dialled from inside"
join=$(moorline token create --cluster edge1 2>/dev/null)
say "moorline token create --cluster edge1 prints:"
say "$join" | sed -E 's/(mlj_[a-z0-9]*\.)[^ ]*/\1…/'
read -r -a agent <<<"$join"
agent+=(--state-dir "$work/agent" --kubeconfig "$admin")
[ -n "${DEMO_KUBECONFIG:-}" ] || agent=(nsenter --net=/run/netns/mldemo "${agent[@]}")
start agent "${agent[@]}"
connected() { moorline clusters -o json | grep -q '"status": *"True"'; }
wait_for 30 "session of the agent" connected
show moorline clusters

step "A user who may reach it, and what Kubernetes lets her do there"
alice=$work/alice-password; head -c 18 /dev/urandom | base64 >"$alice"
moorline user create alice --password-stdin <"$alice" >/dev/null 2>&1
moorline grant create alice-edge1 --user alice --cluster edge1 >/dev/null 2>&1
inside kubectl --kubeconfig "$admin" create namespace moorline-demo >/dev/null
inside kubectl --kubeconfig "$admin" -n moorline-demo create rolebinding alice --clusterrole edit --user alice >/dev/null
say "the hub grants alice the cluster edge1; the cluster's own RBAC grants her 'edit' in one namespace"
export XDG_CONFIG_HOME=$work/alice-config
shown="moorline login https://127.0.0.1:$port --user alice" \
  show moorline login "https://127.0.0.1:$port" --user alice --ca-file "$work/hub/ca.crt" --password-stdin <"$alice"
moorline kubeconfig edge1 >"$work/edge1.kubeconfig" 2>/dev/null; chmod 600 "$work/edge1.kubeconfig"
say "moorline kubeconfig edge1 > edge1.kubeconfig"
export KUBECONFIG=$work/edge1.kubeconfig

step "Plain kubectl, through the hub"
grep 'server:' "$KUBECONFIG" | sed 's/^ */   /'
shown='kubectl auth can-i --list -n moorline-demo' \
  show bash -c 'kubectl auth can-i --list -n moorline-demo --no-headers | sed -n 1,5p'
cat >"$work/hello.yaml" <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: hello, namespace: moorline-demo, labels: {app: hello}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: hello
    image: docker.io/local/busybox:1
    imagePullPolicy: IfNotPresent
    command: ["/bin/sh", "-c", "i=0; while true; do i=$((i+1)); echo \"line $i from inside the cluster\"; sleep 1; done"]
YAML
[ -z "${DEMO_KUBECONFIG:-}" ] || sed -i 's|docker.io/local/busybox:1|busybox:stable|' "$work/hello.yaml"
# The namespace's own default account must exist before a pod can be admitted.
wait_for 20 "service account" inside kubectl --kubeconfig "$admin" -n moorline-demo get serviceaccount default
show kubectl apply -f "$work/hello.yaml"
show kubectl -n moorline-demo wait pod/hello --for=condition=Ready --timeout=120s
show kubectl -n moorline-demo get pods -o wide
say "\$ kubectl -n moorline-demo logs -f hello    (three seconds of it)"
{ timeout 3 kubectl -n moorline-demo logs -f --tail=1 hello || true; } | sed 's/^/   /'
show kubectl -n moorline-demo exec hello -- /bin/sh -c 'echo "hello from $(hostname), uptime $(cut -d. -f1 /proc/uptime) s"'
say "what alice may not do, Kubernetes refuses, in its own words:"
show kubectl get secrets -n kube-system || true
say "nobody becomes cluster admin by asking:"
show kubectl get nodes --as=root --as-group=system:masters || true

step "What the hub saw"
tail -n 3 "$work/hub/audit.log" | cut -c1-300 | sed 's/^/   /'
export XDG_CONFIG_HOME=$work/admin-config
show moorline status

if [ -n "${DEMO_KEEP:-}" ]; then
  trap - EXIT
  step "Everything keeps running"
  # kubectl asks moorline for alice's token, which finds her login there.
  say "export PATH=$bin:\$PATH XDG_CONFIG_HOME=$work/alice-config KUBECONFIG=$work/edge1.kubeconfig"
  say "stop with: demo/demo.sh --stop $work"
  exit 0
fi
step "Cleaning up"
clean
say "done: the demo worked"
