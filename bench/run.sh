#!/usr/bin/env bash
# Measures Moorline against direct and against nginx, in one run, on real parts: a real kube-apiserver with etcd,
# Debian's nginx, the release binary.
#
#   bench/run.sh [moorline-bench run options, such as --only small]
#
# ROUNDS (5), SECONDS_EACH (3), PODS (5000). Everything is on loopback and ends by itself.
. "$(dirname "$0")/lib.sh" mlbench
binaries

mkdir "$work/kube"
tests/kube/up.sh --bin "$cache/kube/bin" --dir "$work/kube" --offset 160
pki=$work/kube/pki; api=127.0.0.1:16603; origin=127.0.0.1:17443; nginx=17444; nginx_origin=17445; hub=17446; ops=17447
up origin moorline-bench origin --listen $origin --cert "$pki/apiserver.crt" --key "$pki/apiserver.key"

server() { # PORT UPSTREAM: TLS in, TLS out, connections kept, nothing buffered
  cat <<NGINX
  upstream u$1 { server $2; keepalive 256; keepalive_requests 10000000; }
  server {
    listen 127.0.0.1:$1 ssl http2 backlog=1024;
    ssl_certificate $pki/apiserver.crt; ssl_certificate_key $pki/apiserver.key;
    keepalive_requests 10000000; http2_max_concurrent_streams 2000; client_max_body_size 0; client_body_timeout 1h;
    location / {
      proxy_pass https://u$1; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host \$host;
      proxy_ssl_certificate $pki/admin.crt; proxy_ssl_certificate_key $pki/admin.key;
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; proxy_buffer_size 64k; proxy_buffers 8 64k;
      $3
    }
  }
NGINX
}
{
  echo "worker_processes auto; daemon off; pid $work/nginx.pid; error_log $work/nginx-error.log warn; worker_rlimit_nofile 20000;"
  echo "events { worker_connections 8192; }"
  echo "http { access_log off;"
  for d in body proxy fastcgi uwsgi scgi; do echo "  ${d/body/client_body}_temp_path $work/nginx-$d;"; done
  server $nginx $api ""
  server $nginx_origin $origin ""
  server 17448 $api "proxy_set_header Impersonate-User bench;"
  echo "}"
} >"$work/nginx.conf"
up nginx nginx -e "$work/nginx-error.log" -c "$work/nginx.conf"
wait_for curl -sk "https://127.0.0.1:$nginx/livez"

up hub moorline hub --data-dir "$work/hub" --listen 127.0.0.1:$hub --ops-listen 127.0.0.1:$ops --name 127.0.0.1 --public-url https://127.0.0.1:$hub
hub_pid=$!
wait_for curl -sf http://127.0.0.1:$ops/readyz
export XDG_CONFIG_HOME=$work/config
moorline login https://127.0.0.1:$hub --user admin --ca-file "$work/hub/ca.crt" --password-stdin <"$work/hub/admin.password"
sed "s|server: .*|server: \"https://$origin\", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]|" "$work/kube/kubeconfig" >"$work/origin.kubeconfig"
agents=()
for c in "bench $work/kube/kubeconfig --carrier=quic" "benchtls $work/kube/kubeconfig --carrier=tls" "origin $work/origin.kubeconfig --carrier=quic" "tls $work/origin.kubeconfig --carrier=tls"; do
  read -r name config more <<<"$c"
  read -r -a join <<<"$(moorline token create --cluster "$name" 2>/dev/null)"
  # shellcheck disable=SC2086
  up "agent-$name" moorline-agent "${join[@]:2}" --state-dir "$work/agent-$name" --kubeconfig "$config" $more
  agents+=($!)
done
for c in bench benchtls origin tls; do wait_for sh -c "moorline clusters $c -o json | grep -q '\"status\": *\"True\"'"; done
echo "a-password-for-bench-123" | moorline user create bench --password-stdin >/dev/null
moorline grant create bench --user bench --cluster '*' >/dev/null
kubectl --kubeconfig "$work/kube/kubeconfig" create clusterrolebinding bench --clusterrole cluster-admin --user bench >/dev/null
echo "a-password-for-bench-123" | XDG_CONFIG_HOME=$work/user moorline login https://127.0.0.1:$hub --user bench --ca-file "$work/hub/ca.crt" --password-stdin
token=$(XDG_CONFIG_HOME=$work/user moorline kubeconfig bench --static | sed -n 's/^ *token: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')

target() { # NAME ADDRESS PREFIX CA CLIENT HEADERS
  printf '{"name":"%s","address":"%s","host":"127.0.0.1","prefix":"%s","ca":"%s","client":%s,"headers":%s}' "$@"
}
admin="[\"$pki/admin.crt\",\"$pki/admin.key\"]"; bearer="[[\"authorization\",\"Bearer $token\"]]"
cat >"$work/plan.json" <<JSON
{"rounds": ${ROUNDS:-5}, "seconds": ${SECONDS_EACH:-3},
 "targets": [$(target direct $api "" "$pki/ca.crt" "$admin" '[]'),
             $(target nginx 127.0.0.1:$nginx "" "$pki/ca.crt" null '[]'),
             $(target nginx+impersonation 127.0.0.1:17448 "" "$pki/ca.crt" null '[]'),
             $(target moorline-tls 127.0.0.1:$hub /k8s/clusters/benchtls "$work/hub/ca.crt" null "$bearer"),
             $(target moorline-quic 127.0.0.1:$hub /k8s/clusters/bench "$work/hub/ca.crt" null "$bearer")],
 "bulk": [$(target direct $origin "" "$pki/ca.crt" null '[]'),
          $(target nginx 127.0.0.1:$nginx_origin "" "$pki/ca.crt" null '[]'),
          $(target moorline-quic 127.0.0.1:$hub /k8s/clusters/origin "$work/hub/ca.crt" null "$bearer"),
          $(target moorline-tls 127.0.0.1:$hub /k8s/clusters/tls "$work/hub/ca.crt" null "$bearer")],
 "processes": [["hub", $hub_pid], ["agent-quic", ${agents[0]}], ["agent-tls", ${agents[1]}], ["agent-quic-bulk", ${agents[2]}], ["agent-tls-bulk", ${agents[3]}]]}
JSON
moorline-bench fill "$work/plan.json" --pods "${PODS:-5000}"
moorline-bench run "$work/plan.json" "$@"
