#!/usr/bin/env bash
# Measures the tunnel by itself, as a relay for TCP on loopback, in one run with what others do the same with: rathole (plain TCP),
# ssh -R, a TLS connection for each connection, and bare quinn.
#
#   bench/tunnel.sh [moorline-bench tunnel run options, such as --only small]
#
# ROUNDS (5), SECONDS_EACH (2). BIN: a folder with moorline-bench, if it is built already. rathole is built once, into the cache;
# ssh is left out where there is no sshd.
. "$(dirname "$0")/lib.sh" mltunnel
binaries

rathole=$cache/rathole/bin/rathole
[ -x "$rathole" ] || cargo install -q --root "$cache/rathole" --no-default-features --features server,client rathole@0.5.0
service=127.0.0.1:17600
up service moorline-bench tunnel serve --listen $service
moorline-bench relay keys "$work"
targets=("{\"name\":\"direct\",\"address\":\"$service\"}")
target() { targets+=("{\"name\":\"$1\",\"address\":\"127.0.0.1:$2\",\"processes\":[$3,$4]}"); }
port=17601
for kind in tls quic bare-tls bare-quic; do
  near=$port meet=$((port + 1)) port=$((port + 2))
  first=near second=far
  case $kind in bare-*) first=far second=near ;; esac
  for end in $first $second; do
    case $end in near) flag=(--listen 127.0.0.1:$near) ;; far) flag=(--target $service) ;; esac
    up "$kind-$end" moorline-bench relay $end $kind "$work" --meet 127.0.0.1:$meet "${flag[@]}"
    # Whoever listens is there before it is dialled.
    [ $end = $second ] || sleep 0.5
  done
  target "$kind" $near "${pids[-1]}" "${pids[-2]}"
done
cat >"$work/server.toml" <<TOML
[server]
bind_addr = "127.0.0.1:$((port + 1))"
default_token = "bench"
[server.services.one]
bind_addr = "127.0.0.1:$port"
TOML
cat >"$work/client.toml" <<TOML
[client]
remote_addr = "127.0.0.1:$((port + 1))"
default_token = "bench"
[client.services.one]
local_addr = "$service"
TOML
up rathole-server "$rathole" --server "$work/server.toml"
up rathole-client "$rathole" --client "$work/client.toml"
target rathole $port "${pids[-1]}" "${pids[-2]}"
port=$((port + 2))
if [ -x /usr/sbin/sshd ]; then
  ssh-keygen -q -t ed25519 -N '' -f "$work/host"; ssh-keygen -q -t ed25519 -N '' -f "$work/user"
  mkdir -p /run/sshd; cp "$work/user.pub" "$work/authorized"
  up sshd /usr/sbin/sshd -D -e -f /dev/null -p $((port + 1)) -o ListenAddress=127.0.0.1 -h "$work/host" -o StrictModes=no \
    -o AuthorizedKeysFile="$work/authorized" -o UsePAM=no -o PidFile=none
  sleep 0.5
  up ssh ssh -F /dev/null -N -T -p $((port + 1)) -i "$work/user" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o ExitOnForwardFailure=yes -R 127.0.0.1:$port:$service "root@127.0.0.1"
  targets+=("{\"name\":\"ssh -R\",\"address\":\"127.0.0.1:$port\"}")
fi
for at in $(seq 17601 2 $port); do
  [ "$at" = $((port)) ] && [ ! -x /usr/sbin/sshd ] || wait_for bash -c "exec 3<>/dev/tcp/127.0.0.1/$at"
done
printf '{"rounds":%s,"seconds":%s,"targets":[%s]}' "${ROUNDS:-5}" "${SECONDS_EACH:-2}" "$(IFS=,; echo "${targets[*]}")" >"$work/plan.json"
moorline-bench tunnel run "$work/plan.json" "$@"
