#!/usr/bin/env bash
# Measures the hub's own API, over its file and over etcd, against a real kube-apiserver with etcd, in one run: the same
# objects of the same kind, over TLS. The last table has it all: medians, and ratios.
#
#   bench/api.sh
#
# ROUNDS (3), SECONDS_EACH (3), STARTS (5), REST (15): seconds before memory is looked at. As it is it takes some six minutes, once
# it is built. BIN: a folder with moorline and moorline-bench, if they are built already.
. "$(dirname "$0")/lib.sh" mlapi
binaries

mkdir "$work/kube"
tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 160 | tee "$work/up.txt"
pki=$work/kube/pki; api=127.0.0.1:16603; etcd=17541; kube="kube-apiserver, etcd"
kubectl --kubeconfig "$work/kube/kubeconfig" apply -f - <<'YAML'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: users.moorline.dev}
spec:
  group: moorline.dev
  scope: Cluster
  names: {plural: users, singular: user, kind: User}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
YAML
wait_for kubectl --kubeconfig "$work/kube/kubeconfig" get users
up etcd etcd --data-dir "$work/etcd" --listen-client-urls http://127.0.0.1:$etcd --advertise-client-urls http://127.0.0.1:$etcd \
  --listen-peer-urls http://127.0.0.1:17542 --initial-advertise-peer-urls http://127.0.0.1:17542 \
  --initial-cluster default=http://127.0.0.1:17542 --logger zap --log-outputs stderr
hub() { # NAME PORT FLAGS
  local name=$1 port=$2; shift 2
  up "$name" moorline hub --data-dir "$work/$name" --listen 127.0.0.1:"$port" --ops-listen 127.0.0.1:$((port + 1)) \
    --name 127.0.0.1 --public-url "https://127.0.0.1:$port" "$@"
  wait_for curl -sf "http://127.0.0.1:$((port + 1))/readyz"
  XDG_CONFIG_HOME=$work/c-$name moorline login "https://127.0.0.1:$port" --user admin --ca-file "$work/$name/ca.crt" --password-stdin <"$work/$name/admin.password" >/dev/null
}
token() { sed -n 's/^ *"token": *"\([^"]*\)".*/\1/p' "$work/$1/admin.kubeconfig"; }
hub redb 17551; redb_pid=${pids[-1]}
hub etcdhub 17561 --store "etcd://127.0.0.1:$etcd"; etcdhub_pid=${pids[-1]}
# What the shell measures becomes rows of the same table.
figure() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$work/figures"; } # ROW UNIT TARGET VALUE
kube_mib() { awk '$1 == "kube-apiserver" || $1 == "etcd" { print $2 }' "$work/up.txt" | while read -r pid; do mib "$pid"; done | awk '{ all += $1 } END { print all }'; }
resident() { # WHEN
  figure "resident, $1" MiB "$kube" "$(kube_mib)"
  figure "resident, $1" MiB hub-redb "$(mib "$redb_pid")"
  figure "resident, $1" MiB hub-etcd "$(mib "$etcdhub_pid")"
}
# At rest: what the password of the login took (19 MiB) is given back within seconds.
sleep "${REST:-15}"
resident "idle, no objects (goal 40)" && mv "$work/figures" "$work/idle"
target() { # NAME ADDRESS CA CLIENT HEADERS
  printf '{"name":"%s","address":"%s","host":"127.0.0.1","prefix":"/apis/moorline.dev/v1alpha1/users","ca":"%s","client":%s,"headers":%s}' "$@"
}
cat >"$work/plan.json" <<JSON
{"rounds": ${ROUNDS:-3}, "seconds": ${SECONDS_EACH:-3}, "targets": [
  $(target "$kube" $api "$pki/ca.crt" "[\"$pki/admin.crt\",\"$pki/admin.key\"]" '[]'),
  $(target hub-redb 127.0.0.1:17551 "$work/redb/ca.crt" null "[[\"authorization\",\"Bearer $(token redb)\"]]"),
  $(target hub-etcd 127.0.0.1:17561 "$work/etcdhub/ca.crt" null "[[\"authorization\",\"Bearer $(token etcdhub)\"]]")]}
JSON
moorline-bench api "$work/plan.json" --keep "$work/figures"
cat "$work/idle" >>"$work/figures"
sleep "${REST:-15}"
resident "at rest with 5,000 objects"
# Starts with 10,000 objects: from the process to readiness, one after the other.
starts() { # TARGET PORT PID FLAGS
  local target=$1 port=$2 pid=$3 name began; shift 3
  name=${target/hub-/}; name=${name/etcd/etcdhub}
  moorline-bench api "$work/plan.json" --target "$target" --fill 10000
  for _ in $(seq "${STARTS:-5}"); do
    kill "$pid"; wait "$pid" || true
    began=$(date +%s%N)
    up again moorline hub --data-dir "$work/$name" --listen 127.0.0.1:"$port" --ops-listen 127.0.0.1:$((port + 1)) --name 127.0.0.1 --public-url "https://127.0.0.1:$port" "$@"
    pid=$!
    until curl -sf "http://127.0.0.1:$((port + 1))/readyz" >/dev/null; do sleep 0.005; done
    figure "start to ready with 10,000 objects (goal 200)" ms "$target" $((($(date +%s%N) - began) / 1000000))
  done
  sleep "${REST:-15}"
  figure "resident, at rest with 10,000 objects" MiB "$target" "$(mib "$pid")"
}
starts hub-redb 17551 "$redb_pid"
starts hub-etcd 17561 "$etcdhub_pid" --store "etcd://127.0.0.1:$etcd"
echo; echo "× : how many times better than kube-apiserver with its etcd; above 1 is ahead"
moorline-bench table "$work/figures" --against "$kube"
