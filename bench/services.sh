#!/usr/bin/env bash
# Measures the way into clusters on loopback, in one run: `moorline forward`, HTTP by path and by host name, DNS over UDP, and
# what they hold in memory, against the same thing reached directly, by `kubectl port-forward`, and the tunnel alone. Needs root,
# nginx, dnsmasq, wrk and python3; BIN is a folder with an optimised moorline, if it is built already: figures of a debug build say
# nothing.
#
#   BIN=target/release bench/services.sh
#
# ROUNDS (3), BIG=0 without the download of 10 GiB, IDLE (1000) forwards, BULK (1073741824) bytes of a download, CARRIER (quic).
. "$(dirname "$0")/lib.sh" mlbenchs
binaries

mkdir "$work/kube"; tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 170 --node
hub=17546; ops=17547; web=17548; dns=17549
k() { "$cache/kubectl/kubectl" --kubeconfig "$work/kube/kubeconfig" "$@"; }
# 10 GB without a byte on disk: a sparse file.
mkdir "$work/www"; truncate -s 10G "$work/www/big"; truncate -s "${BULK:-1073741824}" "$work/www/bulk"; echo ok >"$work/www/small"
cat >"$work/nginx.conf" <<NGINX
worker_processes 1; daemon off; pid $work/nginx.pid; error_log $work/nginx-error.log warn;
events { worker_connections 8192; }
http { access_log off; sendfile on; keepalive_requests 10000000; client_body_temp_path $work/a; proxy_temp_path $work/b;
  fastcgi_temp_path $work/c; uwsgi_temp_path $work/d; scgi_temp_path $work/e;
  server { listen 127.0.0.1:$web backlog=4096; root $work/www; } }
NGINX
chmod 755 "$work" "$work/www"
up nginx nginx -e "$work/nginx-error.log" -c "$work/nginx.conf"
up dns dnsmasq -k -p $dns -a 127.0.0.1 --no-resolv --no-hosts --address=/bench.test/192.0.2.1 --pid-file="$work/dns.pid"
up hub moorline hub --data-dir "$work/hub" --listen 127.0.0.1:$hub --ops-listen 127.0.0.1:$ops --name 127.0.0.1 \
  --public-url https://127.0.0.1:$hub --services-domain services.bench.test
hub_pid=$!
wait_for curl -sf http://127.0.0.1:$ops/readyz
export XDG_CONFIG_HOME=$work/config
moorline login https://127.0.0.1:$hub --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password" >/dev/null
printf 'apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {services: {allowAddresses: ["127.0.0.1"], maxStreams: 4096}}\n' >"$work/policy.yaml"
read -r -a join <<<"$(moorline token create --cluster bench 2>/dev/null)"
up agent moorline agent "${join[@]:2}" --state-dir "$work/agent" --kubeconfig "$work/kube/kubeconfig" --carrier "${CARRIER:-quic}" --policy-file "$work/policy.yaml"
agent_pid=$!
wait_for sh -c "moorline clusters bench -o json | grep -q '\"status\": *\"True\"'"
k create namespace bench >/dev/null
for s in "web $web TCP" "dns $dns UDP"; do
  read -r name port proto <<<"$s"
  # EndpointSlices refuse loopback: an ExternalName is looked up by the agent itself, and the policy opens the address.
  k apply -f - >/dev/null <<YAML
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "$name", "namespace": "bench"}, "spec": {"type": "ExternalName",
 "externalName": "localhost", "ports": [{"name": "main", "port": $port, "protocol": "$proto"}]}}
YAML
done
# On the node's own network, so that kubectl's forward ends at the same nginx.
k apply -f - >/dev/null <<'YAML'
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "peer", "namespace": "bench"}, "spec": {"hostNetwork": true, "containers": [
 {"name": "c", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never", "command": ["/bin/busybox", "sleep", "100000"]}]}}
YAML
wait_for k -n bench wait pod/peer --for=condition=Ready --timeout=1s
up kubectl "$cache/kubectl/kubectl" --kubeconfig "$work/kube/kubeconfig" -n bench port-forward pod/peer ":$web"
wait_for grep -q 'Forwarding from 127' "$work/kubectl.log"
by_kubectl=$(sed -n 's/^Forwarding from \(127[0-9.:]*\) .*/\1/p' "$work/kubectl.log" | head -n 1)
moorline bench bench --seconds "${RAW_SECONDS:-3}" -o json >"$work/raw.json"
token=$(moorline kubeconfig bench --static | sed -n 's/^ *token: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')
up forward moorline forward bench --address 127.0.0.1 svc/bench/web ":$web" udp/svc/bench/dns ":$dns"
forward_pid=$!
wait_for grep -q UDP "$work/forward.log"
tcp=$(sed -n 's/^Forwarding from \([0-9.:]*\) .*/\1/p' "$work/forward.log" | head -n 1)
udp=$(sed -n 's/^Forwarding from \([0-9.:]*\) .*UDP.*/\1/p' "$work/forward.log" | head -n 1)
python3 bench/services.py --web 127.0.0.1:$web --dns 127.0.0.1:$dns --forward "$tcp" --forward-dns "$udp" --hub 127.0.0.1:$hub \
  --ca "$work/hub/ca.crt" --token "$token" --pids "hub=$hub_pid,agent=$agent_pid,forward=$forward_pid" --rounds "${ROUNDS:-3}" \
  --big "${BIG:-1}" --port "$web" --kubectl "$by_kubectl" --raw "$work/raw.json" --idle "${IDLE:-1000}"
