#!/usr/bin/env bash
# What a flood of wrong logins does to everybody else: latency of small requests through a cluster, and the hub's memory,
# before and during 1,000 wrong logins a second from 200 addresses of this machine, from a process of its own that steps back
# behind the others (nice 10), for strangers do their work elsewhere.
#
#   bench/logins.sh
#
# SECONDS_EACH (10), ROUNDS (5), LOGINS (1000, each second). BIN: a folder with moorline and moorline-bench, if they are built already. Everything is on
# loopback and ends by itself. Decisions and tokens: cargo bench -p moorline-authz. Audit: cargo bench -p moorline-proxy.
. "$(dirname "$0")/lib.sh" mllogins
binaries
# With autogroups (sched(7)) priorities count among the processes of one terminal only: the hub's hashing, which steps back
# behind everything else, would not do so for the API server and etcd, as on no server with a service manager.
autogroup=/proc/sys/kernel/sched_autogroup_enabled
if [ -w $autogroup ] && [ "$(cat $autogroup)" = 1 ]; then
  echo 0 >$autogroup
  trap 'echo 1 >$autogroup; clean' EXIT
fi

mkdir "$work/kube"
tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 170
hub=17551; ops=17552
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
moorline-bench logins 127.0.0.1:$hub "$work/hub/ca.crt" "$token" "$hub_pid" --logins "${LOGINS:-1000}" --seconds "${SECONDS_EACH:-10}" --rounds "${ROUNDS:-5}"
