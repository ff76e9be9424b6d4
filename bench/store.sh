#!/usr/bin/env bash
# Measures the store behind the hub's API by itself: what it takes to open a GiB of objects, after an end and after kill -9, and
# 500 durable writes a second over 1,000 clusters of 50 nodes, watched by 200.
#
#   bench/store.sh [SECONDS]      of steady writes (default 600)
#
# BYTES (1073741824) of objects in the large one. BIN: a folder with moorline-bench, if it is built already.
. "$(dirname "$0")/lib.sh" mlstore
binaries
moorline-bench store "$work/store" --seconds "${1:-600}" --bytes "${BYTES:-1073741824}"
