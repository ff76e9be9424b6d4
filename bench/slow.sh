#!/usr/bin/env bash
# What a thousand clients that send or read as slowly as they can do to everybody else, by Debian's slowhttptest: latency of
# small requests through a cluster, and the hub's memory, before and beside them, who come from another address: heads of one
# line in ten seconds, bodies of some bytes a second, and readers of one byte a second.
#
#   bench/slow.sh
#
# SECONDS_EACH (15), ROUNDS (3), CLIENTS (1000). BIN: a folder with moorline and moorline-bench, if they are built already.
# Everything is on loopback and ends by itself.
. "$(dirname "$0")/lib.sh" mlslow
command -v slowhttptest >/dev/null || {
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slowhttptest >/dev/null
}
binaries
one_cluster 17561
ulimit -n "$(ulimit -Hn)"
at=https://127.0.0.1:$hub clients=${CLIENTS:-1000}
beside() { # NAME OPTIONS OF slowhttptest
  echo "== $1"; shift
  moorline-bench beside 127.0.0.1:$hub "$work/hub/ca.crt" "$token" "$hub_pid" --seconds "${SECONDS_EACH:-15}" --rounds "${ROUNDS:-3}" \
    -- slowhttptest -c "$clients" -r "$clients" -l 600 -p 600 "$@"
}
beside "heads, a line in 10 s" -H -i 10 -u "$at/healthz"
beside "bodies, some bytes a second" -B -i 1 -x 1 -s 8192 -t POST -u "$at/auth/login"
beside "readers, a byte a second" -X -w 1 -y 1 -n 1 -z 1 -k 1 -u "$at/ui/"
curl -s "http://127.0.0.1:$ops/metrics" | grep -E '^moorline_hub_(connections|handshake_failures|requests_total)' || true
