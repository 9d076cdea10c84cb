// Package nodetest holds the lab node's tests against real control planes: two clusters with kube-apiserver, scheduler and
// controller manager, a node each, and kubectl.
package nodetest
