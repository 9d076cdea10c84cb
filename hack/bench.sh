#!/usr/bin/env bash
# Prints the figures docs/performance.md quotes: benchmarks of the packages, then what only a whole lab can tell.
# usage: hack/bench.sh   (about ten minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/.."
KUBEBUILDER_ASSETS=$(bin/labbuild assets)
export KUBEBUILDER_ASSETS
echo "== packages (testing.B)"
go test -run '^$' -bench . -benchmem -benchtime "${BENCHTIME:-3x}" -timeout 30m ./internal/... | grep -vE '^(PASS|ok|\?|testing:)'

state=$(mktemp -d)/lab
trap 'bin/lab down --state "$state" >/dev/null 2>&1 || true' EXIT
echo "== lab: warm start of a management cluster and four workload clusters, management plane included"
start=$(date +%s.%N)
bin/lab up --state "$state" | tail -n 30
printf 'lab up: %.1f s\n' "$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN{print b-a}')"
export KUBECONFIG=$state/kubeconfig PATH=$state/bin:$PATH
bin/lab status --state "$state" | sed -n 1p
echo "== meshctl cluster register to Connected, the agent's start included (5 times)"
for _ in 1 2 3 4 5; do
  meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 | grep -E 'is Connected: '
  meshctl cluster deregister prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 >/dev/null
done
meshctl cluster register prod-eu-west-3 --mgmt-context mgmt --remote-context prod-eu-west-3 >/dev/null
echo "== resident memory of server and agents with 4 clusters"
bin/lab status --state "$state" | grep -E 'gloo-mesh-(agent|mgmt-server)'
echo "== status writes in three minutes with 4 clusters and nothing happening"
writes() { kubectl --context mgmt get --raw /metrics | awk '/^apiserver_request_total/ && /resource="kubernetesclusters"/ && /subresource="status"/ && /verb="(PATCH|PUT|APPLY)"/ {n+=$NF} END {print n+0}'; }
before=$(writes); sleep 180; after=$(writes)
echo "$((after - before)) writes in 3 minutes: $(awk -v n=$((after - before)) 'BEGIN{printf "%.2f", n/3}') per minute for 4 clusters"
