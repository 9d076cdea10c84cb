// Package addons makes a workload cluster out of a bare control plane: the
// Istio and Gateway API CRDs, a real istiod, an east-west gateway and the demo
// applications; and it runs the product's own installer on top.
//
// In goes a kubeconfig of each cluster and the folders with the charts and
// CRDs of the Istio and Gateway API modules. Out come applied objects and one
// error per cluster, naming the object and the reason. What is applied is
// decided by functions on values (Istiod, EastWest, Demo, ...), which tests
// compare whole; Install only sends and waits.
//
// It must not start or stop processes of the control planes (package daemon
// does), must not know how Pods run (package node does), and must not import
// the product: the product is installed through its own binaries.
package addons
