#!/usr/bin/env bash
# Lints every module with the one configuration at the root. usage: hack/lint.sh PATH-TO-golangci-lint
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
for m in . lab lab/istio lab/vault lab/certmanager tools; do
  echo "lint: module $m"
  (cd "$m" && "$1" run --config "$root/.golangci.yml" ./...)
done
