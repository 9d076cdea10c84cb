#!/usr/bin/env bash
# Runs every fuzz target of the product for a while. usage: hack/fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rlE '^func Fuzz' --include='*_test.go' internal | while read -r f; do
  for t in $(grep -oE '^func Fuzz[A-Za-z0-9_]+' "$f" | awk '{print $2}'); do
    go test "./$(dirname "$f")" -run '^$' -fuzz "^$t\$" -fuzztime "$1" -fuzzminimizetime 10x
  done
done
