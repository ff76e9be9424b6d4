#!/usr/bin/env bash
# Measures the hub's plugins over a large fleet: 1,000 clusters, 5,000 nodes in the largest, 150,000 pods, simulated at the level
# of the API: memory, processor time, how long until all is known.
#
#   bench/fleet.sh [moorline-bench fleet options, such as --clusters 100]
#   bench/fleet.sh --churn 600     and then ten minutes in which nodes report, pods come and go, sessions are lost, and clusters
#                                  leave and others come: processor time, and by how much memory grows
#
# BIN: a folder with moorline-bench, if it is built already.
. "$(dirname "$0")/lib.sh" mlfleet
binaries
moorline-bench fleet "$@"
