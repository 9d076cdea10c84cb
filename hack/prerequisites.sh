#!/usr/bin/env bash
# Makes sure that what the tests call besides Go is on this machine: as root, Debian's packages are installed; otherwise it says which are missing.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need openssl openssl
need base64 coreutils
need git git
need curl curl
need node nodejs
need npm npm
need chromium chromium
need awk gawk
need diff diffutils
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need initdb postgresql
[ -d /etc/ssl/certs ] || missing+=(ca-certificates)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # Debian's package starts a server of its own; the tests start theirs.
  [ -e /etc/postgresql-common/createcluster.conf ] || { mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf; }
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
else
  echo "please install: ${missing[*]}   (Debian: apt-get install ${missing[*]})" >&2
  exit 1
fi
