#!/usr/bin/env bash
# The long tests: every property with many more cases, power that goes at every sector, a hundred histories of failing etcds,
# the decoders on bytes that nobody chose, a fleet of two thousand agents, the end-to-end scenes several times over, and a
# release: built for every platform, run there (qemu, Wine), its images on the real node, and the same bytes when it is
# built elsewhere.
#
#   tests/long.sh            CASES (20000) per property, SEEDS (10000) of the simulation, FUZZ (300) seconds per decoder, ROUNDS (3) of the scenes
#   tests/long.sh release    only the release
set -euo pipefail
cd "$(dirname "$0")/.."
release() {
  command -v qemu-aarch64 >/dev/null && [ -e /usr/lib/wine/wine64 ] || {
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends qemu-user wine64 >/dev/null
  }
  export MOORLINE_DIST=${DIST:-$PWD/target/dist}
  DIST=$MOORLINE_DIST cross/release.sh
  cargo build --locked -p moorline-cli -p moorline-pack
  cargo test --locked -p moorline-e2e --test cross -- --ignored
  tests/windows.sh
  cargo test --locked -p moorline-e2e --test it -- deploy_
  bench/footprint.sh
  # Another folder, another day: the same bytes.
  local other; other=$(mktemp -d)
  git clone -q . "$other/tree"
  (cd "$other/tree" && DIST=$other/dist CARGO_TARGET_DIR=$other/target SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) cross/build.sh x86_64-unknown-linux-musl)
  for f in moorline moorline-agent; do cmp "$other/dist/$f-linux-amd64" "$MOORLINE_DIST/$f-linux-amd64"; done
  rm -rf "$other"
}
[ "${1:-}" != release ] || { release; exit 0; }
MOORLINE_SEEDS=${SEEDS:-10000} PROPTEST_CASES=${CASES:-20000} cargo test --locked --release -p moorline-proto -p moorline-link -p moorline-authz -p moorline-proxy -p moorline-apiserver
MOORLINE_P03=all cargo test --locked --release -p moorline-apiserver --test it -- p01_p02_p03
# A real hub that is killed at every write, in every way.
MOORLINE_P01=all cargo test --locked -p moorline-cli --test it -- --nocapture p01_p02_p03
MOORLINE_P13_RUNS=100 MOORLINE_P13_OPERATIONS=2000 cargo test --locked --release -p moorline-apiserver -- --include-ignored p13_
# S71: as many strangers' words as there may be, and no more series.
MOORLINE_S71=100000 cargo test --locked --release -p moorline-proxy --lib -- s71_
MOORLINE_S71=1000 cargo test --locked --release -p moorline-hub --test it -- s71_
# F42: what plugins that panic, or never give their thread back, cost the traffic.
cargo test --locked --release -p moorline-hub --test it -- --ignored --nocapture --test-threads 1 f42_
tests/fuzz/run.sh "${FUZZ:-300}"
# Built for speed, and one after the other: what they print is a figure.
cargo build --locked --release -p moorline-cli
cargo test --locked --release -p moorline-netsim -- --ignored --nocapture --test-threads 1
for round in $(seq "${ROUNDS:-3}"); do
  echo "long: round $round of ${ROUNDS:-3}"
  cargo test --locked -p moorline-e2e
done
release
echo "long: done"
