// Package istio pins the istiod that the lab runs: this module's go.mod names
// the version of istio.io/istio and of sigs.k8s.io/gateway-api.
//
// In: Go modules. Out: the command istio.io/istio/pilot/cmd/pilot-discovery,
// built as "istiod" by lab/internal/build, and the Helm charts and CRDs of the
// same two modules, so that a chart always fits the binary: the lab runs istiod
// as it is released. What stands in for its data plane, which is not written in
// Go, is cmd/labproxy and internal; it is here to speak istiod's own messages.
//
// istio.io/istio publishes no release tags as Go modules; the version is a
// commit of the 1.31 development branch.
package istio
