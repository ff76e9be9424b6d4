#!/usr/bin/env bash
# Looks for inputs that reach new code, or break something, by coverage (libFuzzer, on stable Rust).
#
#   tests/fuzz/run.sh [SECONDS (60) [TARGET…]]
#
# What is needed to reach all that is known is kept in corpus/TARGET; an input that breaks something is kept too, as
# crash-…, and fails every later `cargo test -p moorline-fuzz` until what it broke is right.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# = 0 ] || shift
targets=${*:-wire frames calls websocket http secrets store plugins}
host=$(rustc -vV | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags="$flags -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# With --target the flags stay away from build scripts; overflow checks are part of the question.
RUSTFLAGS="$flags -Cdebug-assertions=on -Coverflow-checks=on" CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-target/fuzz} \
  cargo build --locked --release --target "$host" -p moorline-fuzz --features coverage
program=${FUZZ_TARGET_DIR:-target/fuzz}/$host/release/moorline-fuzz
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in $targets; do
  corpus=tests/fuzz/corpus/$target
  mkdir -p "$corpus" "$found/$target"
  echo "fuzz: $target for $seconds s, from $(find "$corpus" -type f | wc -l) inputs"
  MOORLINE_FUZZ=$target "$program" "$found/$target" "$corpus" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
    -rss_limit_mb=1024 -artifact_prefix="$corpus/" -print_final_stats=1 2>&1 | grep -E '^stat::|ERROR|panicked|Test unit|DONE' || true
  ! ls "$corpus" | grep -qE '^(crash|timeout|oom)-' || { echo "fuzz: $target is broken, see $corpus" >&2; exit 1; }
  # The fewest inputs that reach all of it; those that somebody gave a name stay.
  mkdir "$found/$target.fewest"
  MOORLINE_FUZZ=$target "$program" -set_cover_merge=1 "$found/$target.fewest" "$corpus" "$found/$target" >/dev/null 2>&1
  find "$corpus" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
  cp "$found/$target.fewest"/* "$corpus/"
done
echo "fuzz: done"
