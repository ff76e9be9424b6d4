#!/usr/bin/env bash
# Release binaries for every platform from one Debian machine, byte for byte the same each time.
#
#   cross/build.sh [TARGET…]        into $DIST (default: target/dist)
#   cross/build.sh --check TARGET   compiles only, quickly: does the code build there at all
#
# Gives DIST/moorline-linux-amd64, moorline-agent-linux-arm64, moorline-windows-amd64.exe, … and SHA256SUMS.
# Environment: CARGO_TARGET_DIR, DIST, SOURCE_DATE_EPOCH (default: the time of the last commit), JOBS.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=cross/toolchain.sh
. "$root/cross/toolchain.sh"
cd "$root"

command=build
[ "${1:-}" != --check ] || { command=check; shift; }
targets=${*:-$TARGETS_ALL}
DIST=${DIST:-$root/target/dist}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/cross} CARGO_INCREMENTAL=0
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022

# What a file of a target is called in DIST.
platform() { # TARGET
  case $1 in
    x86_64-unknown-linux-musl) echo linux-amd64 ;;
    aarch64-unknown-linux-musl) echo linux-arm64 ;;
    x86_64-pc-windows-gnu) echo windows-amd64 ;;
    *) die "no such target here: $1 (there are: $TARGETS_ALL)" ;;
  esac
}

# Everything that would carry this machine's paths into the binary.
paths="$root=/moorline ${CARGO_HOME:-$HOME/.cargo}=/cargo $CARGO_TARGET_DIR=/target $TC=/toolchain"
flags() { # TARGET
  local pair
  for pair in $paths; do printf -- '--remap-path-prefix=%s ' "$pair"; done
  case $1 in
    # jemalloc counts bits by a helper of gcc's own library, which nothing else needs: it comes last.
    *-musl) printf -- '-Ctarget-feature=+crt-static -Clink-self-contained=yes -Clink-arg=-lgcc ' ;;
    # A time in the file's header would tell two builds apart.
    *-windows-*) printf -- '-Clink-arg=-Wl,--no-insert-timestamp ' ;;
  esac
}
c_flags() {
  local pair
  for pair in $paths; do printf -- '-ffile-prefix-map=%s ' "$pair"; done
}

build() { # TARGET
  local target=$1 name=${1//-/_}
  say "cargo $command for $target"
  # The toolchain goes first in PATH and RUSTUP_TOOLCHAIN out: some crates ship a rust-toolchain file.
  (
    unset RUSTUP_TOOLCHAIN RUSTC_BOOTSTRAP
    export PATH=$TC/bin:$PATH
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
    # The host's gcc: musl-gcc as the linker makes a dynamic program that crashes.
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=gcc
    export CC_aarch64_unknown_linux_musl=$CROSS_DIR/bin/aarch64-linux-musl-gcc CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc
    export CC_x86_64_unknown_linux_musl=musl-gcc AR_aarch64_unknown_linux_musl=aarch64-linux-gnu-ar
    export AWS_LC_SYS_PREBUILT_NASM=1
    # Arm64 kernels have pages of 4, 16 or 64 KiB; an allocator made for the largest runs on all.
    case $target in aarch64-*) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; *) export JEMALLOC_SYS_WITH_LG_PAGE=12 ;; esac
    export "CFLAGS_$name=$(c_flags)" "CARGO_TARGET_$(echo "$name" | tr a-z A-Z)_RUSTFLAGS=$(flags "$target")"
    cargo "$command" ${JOBS:+-j "$JOBS"} --locked --profile dist --target "$target" -p moorline-cli --bin moorline --bin moorline-agent
  )
}

# shellcheck disable=SC2086
set_up "$targets"
for target in $targets; do platform "$target" >/dev/null; done
for target in $targets; do
  build "$target"
  [ "$command" = build ] || continue
  mkdir -p "$DIST"
  suffix=''; case $target in *-windows-*) suffix=.exe ;; esac
  for bin in moorline moorline-agent; do
    install -m 755 "$CARGO_TARGET_DIR/$target/dist/$bin$suffix" "$DIST/$bin-$(platform "$target")$suffix"
  done
  case $target in *-musl)
    for bin in moorline moorline-agent; do
      ! readelf -lW "$DIST/$bin-$(platform "$target")" | grep -q INTERP || die "$bin for $target is not static"
    done ;;
  esac
done
[ "$command" = build ] || exit 0
(cd "$DIST" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
say "done: $DIST"
cat "$DIST/SHA256SUMS"
