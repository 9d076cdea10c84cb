#!/usr/bin/env bash
# Runs every fuzz target of the product for a while. usage: hack/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT
grep -rlE '^func Fuzz' --include='*_test.go' internal | while read -r f; do
  for t in $(grep -oE '^func Fuzz[A-Za-z0-9_]+' "$f" | awk '{print $2}'); do
    if go test "./$(dirname "$f")" -run '^$' -fuzz "^$t\$" -fuzztime "$1" -fuzzminimizetime 10x >"$out" 2>&1; then
      echo "fuzz: $t: $(grep -E '^fuzz: elapsed' "$out" | tail -n 1 | sed 's/^fuzz: //')"
    # On a busy machine go's own clean-up outlasts -fuzztime and is called a failure. What a target finds is always written to a file, and then named.
    elif grep -q 'context deadline exceeded' "$out" && ! grep -qE 'Failing input|panic|fuzzing process hung' "$out"; then
      echo "fuzz: $t: ran out of time while stopping; nothing was found"
    else
      cat "$out"
      exit 1
    fi
  done
done
