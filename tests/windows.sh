#!/usr/bin/env bash
# The tests of what runs on Windows alone, under Wine: shells in pseudo consoles. Needs what cross/build.sh needs.
#
#   tests/windows.sh [NAME…]      TARGET_DIR: where it is built (default: target/cross)
#
# Wine 8 has neither restricting identifiers nor integrity levels nor most bounds of jobs, and its consoles keep their size:
# what rests on these is compiled here and seen on Windows alone.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/toolchain.sh
set_up x86_64-pc-windows-gnu
[ -e /usr/lib/wine/wine64 ] || DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends wine64 >/dev/null
unset RUSTUP_TOOLCHAIN RUSTC_BOOTSTRAP
export PATH=$TC/bin:$PATH CARGO_INCREMENTAL=0 AWS_LC_SYS_PREBUILT_NASM=1
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc
export CARGO_TARGET_DIR=${TARGET_DIR:-$PWD/target/cross}
program=$(cargo test --locked --target x86_64-pc-windows-gnu -p moorline-shell --test windows --no-run 2>&1 |
  tee /dev/stderr | sed -n 's/.*(\(.*windows-.*\.exe\))$/\1/p')
case $program in /*) ;; *) program=$PWD/$program ;; esac
home=$(mktemp -d)
trap 'WINEPREFIX=$home/prefix /usr/lib/wine/wineserver64 -k 2>/dev/null || true; rm -rf "$home"' EXIT
cp "$program" "$home/tests.exe"
# Rust's library wants bcryptprimitives.dll, which Windows 10 has and Wine before 9 has not.
cat >"$home/random.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, (ULONG)n); }
C
x86_64-w64-mingw32-gcc -O2 -shared -o "$home/bcryptprimitives.dll" "$home/random.c" -ladvapi32
cd "$home"
WINEPREFIX=$home/prefix WINEDEBUG=-all DISPLAY='' timeout 900 /usr/lib/wine/wine64 tests.exe "$@"
