#!/usr/bin/env bash
# A Debian package of the static binary, its units and its configuration files. The same bytes for the same input.
#
#   cross/deb.sh BINARY ARCHITECTURE VERSION OUTPUT.deb
set -euo pipefail
[ $# = 4 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
binary=$1 architecture=$2 version=$3 output=$4
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
tree=$(mktemp -d); trap 'rm -rf "$tree"' EXIT
umask 022
put() { install -D -m "$1" "$2" "$tree/$3"; }
put 755 "$binary" usr/bin/moorline
for unit in hub agent; do
  put 644 "$root/deploy/systemd/moorline-$unit.service" "usr/lib/systemd/system/moorline-$unit.service"
  put 644 "$root/deploy/deb/$unit.yaml" "etc/moorline/$unit.yaml"
done
put 644 "$root/LICENSE" usr/share/doc/moorline/copyright
put 644 "$root/README.md" usr/share/doc/moorline/README.md
mkdir "$tree/DEBIAN"
printf '/etc/moorline/%s.yaml\n' hub agent >"$tree/DEBIAN/conffiles"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: moorline
Version: $version
Architecture: $architecture
Maintainer: The Moorline authors <moorline@localhost>
Installed-Size: $(du -sk --apparent-size "$tree" | cut -f1)
Section: net
Priority: optional
Description: keeps fleets of Kubernetes clusters within reach
 Hub, cluster agent and command line in one static program. The services
 moorline-hub and moorline-agent are installed and not started.
CONTROL
chmod 755 "$tree"
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$tree" "$output" >/dev/null
