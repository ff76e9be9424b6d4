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
one_cluster 17551
moorline-bench logins 127.0.0.1:$hub "$work/hub/ca.crt" "$token" "$hub_pid" --logins "${LOGINS:-1000}" --seconds "${SECONDS_EACH:-10}" --rounds "${ROUNDS:-5}"
