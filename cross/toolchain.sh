#!/usr/bin/env bash
# The compilers of a cross-build: a private copy of this machine's Rust toolchain with a standard library for each
# foreign target, and Debian's C compilers. Sourced by build.sh; run alone it sets everything up.
#
#   cross/toolchain.sh [TARGET…]
#
# Debian's rust-src of the very version of the rustc in use is compiled once for each target. After that packages are
# built by plain stable cargo: neither nightly flags nor RUSTC_BOOTSTRAP reach their build scripts.
# Environment: CROSS_DIR (what is kept between runs), RUST_SRC_DEB (a kept rust-src .deb), CROSS_SUITES (where else).
set -euo pipefail

CROSS_DIR=${CROSS_DIR:-${MOORLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/moorline}/cross}
CROSS_SUITES=${CROSS_SUITES:-trixie-backports trixie sid}
TARGETS_ALL="x86_64-unknown-linux-musl aarch64-unknown-linux-musl x86_64-pc-windows-gnu"
TC=$CROSS_DIR/toolchain
# What the layout of CROSS_DIR depends on; a new number builds it anew.
LAYOUT=2

say() { printf 'cross: [%ss] %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'cross: %s\n' "$*" >&2; exit 1; }

install_packages() {
  local p missing=()
  for p in gcc libc6-dev binutils musl-tools gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-mingw-w64-x86-64-win32; do
    [ "$(dpkg-query -Wf '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run as root, or install them"
  say "installing ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=900 install --no-install-recommends "${missing[@]}" >&2
}

# apt with lists of its own, from the mirror that this machine already uses; the machine's own set-up is not touched.
own_apt() { # NAME ARCHITECTURE SUITES TOOL ARGS...
  local a=$CROSS_DIR/apt-$1 arch=$2 suites=$3 tool=$4 uri suite
  shift 4
  if [ ! -e "$a/fresh" ]; then
    mkdir -p "$a/lists/partial" "$a/cache/archives/partial"
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | sed -n 's/ Debian$//p' | head -n 1)
    [ -n "$uri" ] || die "no Debian mirror is configured here"
    for suite in $suites; do
      echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
    done >"$a/list"
  fi
  set -- -o Dir::Etc::SourceList="$a/list" -o Dir::Etc::SourceParts=/nonexistent -o Dir::State::Lists="$a/lists" \
    -o Dir::Cache="$a/cache" -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Acquire::Languages=none \
    -o Dir::State::status=/dev/null -o APT::Sandbox::User=root "$@"
  [ -e "$a/fresh" ] || { apt-get -qq "${@:1:18}" update && touch "$a/fresh"; }
  "$tool" "$@"
}

fetch_rust_src() { # VERSION -> $CROSS_DIR/rust-src.deb
  local version=$1 found
  if [ -n "${RUST_SRC_DEB:-}" ]; then cp "$RUST_SRC_DEB" "$CROSS_DIR/rust-src.deb"; return; fi
  [ ! -e "$CROSS_DIR/rust-src-$version.deb" ] || { cp "$CROSS_DIR/rust-src-$version.deb" "$CROSS_DIR/rust-src.deb"; return; }
  found=$(own_apt src amd64 "$CROSS_SUITES" apt-cache madison rust-src | awk -v v="$version+" 'index($3, v) == 1 { print $3; exit }')
  [ -n "$found" ] || die "no rust-src $version in: $CROSS_SUITES (give RUST_SRC_DEB=FILE)"
  say "rust-src $found"
  (cd "$CROSS_DIR" && rm -f rust-src_*.deb && own_apt src amd64 "$CROSS_SUITES" apt-get -qq download "rust-src=$found" && mv rust-src_*.deb "rust-src-$version.deb")
  cp "$CROSS_DIR/rust-src-$version.deb" "$CROSS_DIR/rust-src.deb"
}

private_toolchain() { # VERSION
  local version=$1 host root part tmp=$CROSS_DIR/toolchain.new
  host=$(rustc -vV | sed -n 's/^host: //p')
  root=$(rustc --print sysroot)
  rm -rf "$tmp" "$TC"
  mkdir -p "$tmp/lib/rustlib/src/rust"
  for part in bin libexec lib/rustlib/etc "lib/rustlib/$host" $(cd "$root" && ls -d lib/*.so*); do
    [ -e "$root/$part" ] || continue
    cp -al "$root/$part" "$tmp/$(dirname "$part")/" 2>/dev/null || cp -a "$root/$part" "$tmp/$(dirname "$part")/"
  done
  dpkg --fsys-tarfile "$CROSS_DIR/rust-src.deb" |
    tar -x -C "$tmp/lib/rustlib/src/rust" --strip-components=4 "./usr/src/rustc-$version/library"
  mv "$tmp" "$TC"
}

build_std() { # TARGET
  local target=$1 w=$CROSS_DIR/std lib=$TC/lib/rustlib/$1/lib
  say "standard library for $target"
  mkdir -p "$w/src"
  : >"$w/src/lib.rs"
  cat >"$w/Cargo.toml" <<'TOML'
cargo-features = ["profile-rustflags"]
[package]
name = "mkstd"
version = "0.0.0"
edition = "2021"
[profile.release]
codegen-units = 1
debug = false
[profile.release.package.panic_abort]
rustflags = ["-Cpanic=abort", "-Cembed-bitcode=yes"]
[profile.release.package.compiler_builtins]
codegen-units = 10000
[workspace]
TOML
  # embed-bitcode: so that a package's own profile may ask for LTO. The paths are the same on every machine.
  (cd "$w" && unset RUSTUP_TOOLCHAIN CARGO_TARGET_DIR && PATH=$TC/bin:$PATH RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS="-Cembed-bitcode=yes -Zunstable-options -Cforce-frame-pointers=non-leaf --remap-path-prefix=$TC/lib/rustlib/src/rust=/rust --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$w=/std" \
    "$TC/bin/cargo" build -q --release --target "$target" --target-dir "$w/target" \
    -Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test -Zbuild-std-features=panic-unwind,backtrace)
  mkdir -p "$lib"
  cp "$w/target/$target/release/deps"/lib*.rlib "$lib/"
  rm -f "$lib"/libmkstd-*.rlib
  rm -rf "$w/target/$target"
}

# A musl target links its own start files, libc and unwinder from this folder. Debian's libunwind is built with
# _FORTIFY_SOURCE, of which musl lacks one symbol.
musl_self_contained() { # TARGET MUSL_LIBRARIES LINKER COMPILER
  local to=$TC/lib/rustlib/$1/lib/self-contained f w=$CROSS_DIR/unwind-$1 arch=amd64
  case $1 in aarch64-*) arch=arm64 ;; esac
  mkdir -p "$to" "$w"
  for f in rcrt1.o crt1.o Scrt1.o crti.o crtn.o libc.a libdl.a libpthread.a; do cp "$2/$f" "$to/"; done
  for f in crtbegin.o crtbeginS.o crtend.o crtendS.o; do cp "$($3 -print-file-name=$f)" "$to/"; done
  (cd "$w" && rm -f ./*.deb && own_apt "$arch" "$arch" bookworm apt-get -qq download libunwind-14-dev && dpkg -x ./*.deb .)
  cp "$(find "$w" -name libunwind.a -type f)" "$to/libunwind.a"
  cat >"$w/fortify.c" <<'C'
#include <stdarg.h>
#include <stdio.h>
int __fprintf_chk(FILE *f, int flag, const char *fmt, ...) {
    va_list ap;
    (void)flag;
    va_start(ap, fmt);
    int n = vfprintf(f, fmt, ap);
    va_end(ap);
    return n;
}
C
  "$4" -O2 -fPIC -U_FORTIFY_SOURCE -c "$w/fortify.c" -o "$w/fortify.o"
  ar rD "$to/libunwind.a" "$w/fortify.o" 2>/dev/null
}

# Debian has no musl compiler for Arm64, but musl's headers and libraries for it: its glibc compiler with those headers.
arm_musl() {
  local w=$CROSS_DIR/musl-arm64
  mkdir -p "$w" "$CROSS_DIR/bin"
  (cd "$w" && rm -f ./*.deb && own_apt arm64 arm64 bookworm apt-get -qq download musl-dev && dpkg -x ./*.deb .)
  # Atomics in place: the helpers that gcc would call ask glibc which ones the processor has.
  cat >"$CROSS_DIR/bin/aarch64-linux-musl-gcc" <<SH
#!/bin/sh
exec aarch64-linux-gnu-gcc -nostdinc -isystem "$w/usr/include/aarch64-linux-musl" \\
  -isystem "\$(aarch64-linux-gnu-gcc -print-file-name=include)" -mno-outline-atomics "\$@"
SH
  chmod +x "$CROSS_DIR/bin/aarch64-linux-musl-gcc"
}

set_up() { # TARGETS
  local version stamp target
  mkdir -p "$CROSS_DIR"
  install_packages
  version=$(rustc -vV | sed -n 's/^release: //p')
  stamp="$(rustc -V) $LAYOUT"
  if [ "$(cat "$TC/stamp" 2>/dev/null)" != "$stamp" ]; then
    fetch_rust_src "$version"
    private_toolchain "$version"
    echo "$stamp" >"$TC/stamp"
  fi
  for target in $1; do
    [ -e "$TC/lib/rustlib/$target/done" ] && continue
    case $target in
      x86_64-unknown-linux-musl) build_std "$target"; musl_self_contained "$target" /usr/lib/x86_64-linux-musl gcc musl-gcc ;;
      aarch64-unknown-linux-musl) arm_musl; build_std "$target"
        musl_self_contained "$target" "$CROSS_DIR/musl-arm64/usr/lib/aarch64-linux-musl" aarch64-linux-gnu-gcc "$CROSS_DIR/bin/aarch64-linux-musl-gcc" ;;
      x86_64-pc-windows-gnu) build_std "$target" ;;
      *) die "no such target here: $target (there are: $TARGETS_ALL)" ;;
    esac
    touch "$TC/lib/rustlib/$target/done"
  done
}

[ "${BASH_SOURCE[0]}" != "$0" ] || set_up "${*:-$TARGETS_ALL}"
