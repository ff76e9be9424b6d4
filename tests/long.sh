#!/usr/bin/env bash
# The long tests: every property with many more cases, and the end-to-end scenes several times over.
#
#   tests/long.sh      CASES (20000) per property, ROUNDS (3) of the scenes
set -euo pipefail
cd "$(dirname "$0")/.."
PROPTEST_CASES=${CASES:-20000} cargo test --locked --release -p moorline-proto -p moorline-link -p moorline-authz -p moorline-proxy -p moorline-apiserver
for round in $(seq "${ROUNDS:-3}"); do
  echo "long: round $round of ${ROUNDS:-3}"
  cargo test --locked -p moorline-e2e
done
echo "long: done"
