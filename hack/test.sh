#!/usr/bin/env bash
# Everything. The checks of generated code and style come first, because they rewrite files in place; then the unit tests and the lab's tests side by
# side, then each fuzz target for a few seconds and the UI in a browser beside the latter; last and alone the end-to-end scenarios. Each job's output is printed whole when it ends.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"; kill $(jobs -p) 2>/dev/null' EXIT
declare -A pid
start() { local name=$1; shift; touch "$logs/$name.running"; ( time "$@" ) >"$logs/$name" 2>&1 & pid[$name]=$!; }
failed=()
finish() {
  local name=$1
  if wait "${pid[$name]}"; then echo "== $name: ok"; else echo "== $name: FAILED"; failed+=("$name"); fi
  rm -f "$logs/$name.running"
  cat "$logs/$name"
}
progress() { while sleep 60; do (cd "$logs" && for n in *.running; do [ -e "$n" ] && echo "   ... $(date +%H:%M:%S) still running: ${n%.running}"; done); done; }
progress & watcher=$!

echo "== binaries of the lab (built once per version, then cached)"
make --no-print-directory lab-binaries counterparts || { echo "== binaries of the lab: FAILED"; kill $watcher; exit 1; }
start verify make --no-print-directory verify
finish verify
start unit make --no-print-directory unit
start lab-test make --no-print-directory lab-test
finish unit
start fuzz hack/fuzz.sh 2s
finish lab-test
start ui-test make --no-print-directory ui-test
finish fuzz
finish ui-test
start e2e make --no-print-directory e2e
finish e2e
kill $watcher 2>/dev/null
if [ ${#failed[@]} -gt 0 ]; then
  echo "== FAILED: ${failed[*]}"
  exit 1
fi
echo "== all suites passed: verify unit fuzz lab-test ui-test e2e"
