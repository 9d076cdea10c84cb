#!/usr/bin/env bash
# Prints the folder of a Python environment with moto, an independent emulator of AWS, which it makes in the lab's cache when Python and a package index are at hand. Otherwise it prints
# nothing but the reason, on standard error: the tests that need it are then skipped.
set -uo pipefail
version=5.2.5
dir=${AMBIT_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ambit-lab}/moto-$version
if [ ! -x "$dir/bin/python" ]; then
  log=$(mktemp); trap 'rm -f "$log"; rm -rf "$dir.new.$$"' EXIT
  mkdir -p "$(dirname "$dir")"
  # moved into place only when it is complete; its programs name the folder they were made for, so they are run by Python.
  if ! { python3 -m venv "$dir.new.$$" && "$dir.new.$$/bin/python" -m pip install --quiet --disable-pip-version-check "moto==$version" flask==3.1.2 flask-cors==6.0.1; } >"$log" 2>&1; then
    echo "moto.sh: no moto, tests of AWS Private CA against it are skipped: $(tail -n 1 "$log")" >&2
    exit 0
  fi
  mv -T "$dir.new.$$" "$dir" 2>/dev/null || true # another process may have been first
fi
[ -e "$dir/bin/python" ] && echo "$dir"
exit 0
