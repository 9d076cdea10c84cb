// Package istio pins the istiod that the lab runs: this module's go.mod names
// the version of istio.io/istio and of sigs.k8s.io/gateway-api.
//
// In: Go modules. Out: the command istio.io/istio/pilot/cmd/pilot-discovery,
// built as "istiod" by lab/internal/build, and the Helm charts and CRDs of the
// same two modules, so that a chart always fits the binary. It has no code of
// its own and must not get any: the lab runs istiod as it is released.
//
// istio.io/istio publishes no release tags as Go modules; the version is a
// commit of the 1.31 development branch.
package istio
