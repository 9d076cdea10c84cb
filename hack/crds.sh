#!/usr/bin/env bash
# Generates the CRDs from api/ into the chart that ships them. usage: hack/crds.sh PATH-TO-controller-gen
set -euo pipefail
cd "$(dirname "$0")/.."
"$1" crd:maxDescLen=400 paths=./api/... output:crd:dir=charts/gloo-platform-crds/crds-generated
