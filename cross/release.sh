#!/usr/bin/env bash
# A release, whole: binaries for every platform, bills of materials, images, the air-gap bundle, checksums.
#
#   cross/release.sh            into $DIST (default: target/dist)
#   cross/release.sh --pack     only what is made from binaries that are there
#
# Environment: as cross/build.sh; REGISTRY (default ghcr.io/moorline) is where the images say they are from.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
export DIST=${DIST:-$root/target/dist}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH LC_ALL=C
REGISTRY=${REGISTRY:-ghcr.io/moorline}
[ "${1:-}" = --pack ] || cross/build.sh
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
rustc=$(rustc -vV | sed -n 's/^release: //p')

cargo build -q --locked -p moorline-pack ${JOBS:+-j "$JOBS"}
pack=${CARGO_TARGET_DIR:-$root/target}/debug/moorline-pack
[ -n "${CARGO_TARGET_DIR:-}" ] || pack=$root/target/debug/moorline-pack

mkdir -p "$DIST/images" "$DIST/sbom"
for pair in linux-amd64=x86_64-unknown-linux-musl linux-arm64=aarch64-unknown-linux-musl windows-amd64=x86_64-pc-windows-gnu; do
  platform=${pair%%=*} target=${pair#*=} suffix='' linked=(--linked "rust-std@$rustc")
  case $platform in windows-*) suffix=.exe ;; *) linked+=(--linked musl@1.2.3 --linked llvm-libunwind@14) ;; esac
  "$pack" sbom --package moorline-cli --target "$target" "${linked[@]}" --binary "$DIST/moorline-$platform$suffix" \
    --binary "$DIST/moorline-agent-$platform$suffix" --output "$DIST/sbom/moorline-$platform.cdx.json"
done
image() { # PROGRAM DESCRIPTION FOLDERS...
  local program=$1 description=$2 folders=() folder; shift 2
  for folder; do folders+=(--folder "$folder"); done
  "$pack" image --name "$REGISTRY/$program:$version" --program "$program" --description "$description" "${folders[@]}" \
    --binary "amd64=$DIST/$program-linux-amd64" --binary "arm64=$DIST/$program-linux-arm64" --output "$DIST/images/$program-$version.tar"
}
image moorline-agent "The agent of a Kubernetes cluster: dials a Moorline hub" var/lib/moorline-agent
image moorline "Moorline: hub, agent and command line" var/lib/moorline-hub var/lib/moorline-agent

for arch in amd64 arm64; do cross/deb.sh "$DIST/moorline-linux-$arch" "$arch" "$version" "$DIST/moorline_${version}_$arch.deb"; done

name=moorline-$version-airgap
adds=(--add README.md=deploy/airgap/README.md --add "images=$DIST/images" --add "sbom=$DIST/sbom" --add deploy=deploy
  --add docs=docs/src --add LICENSE=LICENSE)
for file in "$DIST"/moorline*-amd64 "$DIST"/moorline*-arm64 "$DIST"/moorline*.exe "$DIST"/*.deb; do adds+=(--add "bin/$(basename "$file")=$file"); done
"$pack" bundle --name "$name" "${adds[@]}" --output "$DIST/$name.tar.gz"
(cd "$DIST" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs -d '\n' sha256sum >SHA256SUMS)
echo "release: $DIST"
