#!/usr/bin/env bash
# Regenerates and tidies in place and fails when that changes anything; then lints. Works on a dirty tree too:
# it compares before with after, not with the last commit.
set -euo pipefail
cd "$(dirname "$0")/.."
sum() { { git ls-files; git ls-files --others --exclude-standard; } | sort -u | while IFS= read -r f; do [ -f "$f" ] && sha256sum "$f"; done; }
before=$(mktemp) after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
sum >"$before"
make --no-print-directory generate tidy
sum >"$after"
if ! diff -u "$before" "$after" >/dev/null; then
  echo "verify: these files are out of date; run 'make generate tidy' and commit:" >&2
  diff "$before" "$after" | awk '/^[<>]/{print "  " $3}' | sort -u >&2
  exit 1
fi
make --no-print-directory lint
echo "verify: generated code, CRDs and go.mod files are up to date; lint is clean"
