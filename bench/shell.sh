#!/usr/bin/env bash
# Measures a shell on a node on loopback, in one run: the echo of a key and ten megabytes of output through hub, tunnel and
# sandbox, beside the raw tunnel, a bare terminal, and `kubectl exec` straight at the API server. Needs root, python3 and what
# tests/deps.sh installs.
#
#   bench/shell.sh
#
# KEYS (2000), ROUNDS (5), CARRIER (auto). BIN: a folder with moorline, if it is built already.
. "$(dirname "$0")/lib.sh" mlbenchsh
binaries

mkdir "$work/kube"; tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 176 --node
hub=17556; ops=17557
k() { "$cache/kubectl/kubectl" --kubeconfig "$work/kube/kubeconfig" "$@"; }
k apply -f - >/dev/null <<'YAML'
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "peer"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
 {"name": "c", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never", "command": ["/bin/busybox", "sleep", "100000"]}]}}
YAML
up hub moorline hub --data-dir "$work/hub" --listen 127.0.0.1:$hub --ops-listen 127.0.0.1:$ops --name 127.0.0.1 \
  --public-url https://127.0.0.1:$hub
wait_for curl -sf http://127.0.0.1:$ops/readyz
export XDG_CONFIG_HOME=$work/config
moorline login https://127.0.0.1:$hub --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password" >/dev/null
mkdir -p "$work/root/bin"; cp "$(command -v busybox)" "$work/root/bin/busybox"
for name in sh cat stty head sleep; do ln -s busybox "$work/root/bin/$name"; done
printf 'apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {shells: {allow: true}}\n' >"$work/policy.yaml"
read -r -a join <<<"$(moorline token create --cluster bench 2>/dev/null)"
up node moorline agent "${join[@]:2}" --role node --name n1 --node-name n1 --state-dir "$work/agent" --kubeconfig "$work/kube/kubeconfig" \
  --carrier "${CARRIER:-auto}" --policy-file "$work/policy.yaml" --shell-root "$work/root"
wait_for sh -c "moorline clusters bench -o json | grep -q '\"status\": *\"True\"'"
wait_for k wait pod/peer --for=condition=Ready --timeout=1s
moorline bench bench --seconds 2 -o json >"$work/raw.json"
python3 bench/shell.py --raw "$work/raw.json" --keys "${KEYS:-2000}" --rounds "${ROUNDS:-5}" \
  --exec "$cache/kubectl/kubectl --kubeconfig $work/kube/kubeconfig exec -i peer -- /bin/busybox" --shell "moorline shell bench"
