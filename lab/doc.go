// Package lab is the root of the lab module: real Kubernetes control planes,
// real istiods and the product, run as ordinary processes in namespaces of
// their own on one machine, without containers or a container runtime.
//
// In: this repository, and Go modules. Out: clusters that people and tests
// use as they would use any other. The lab is not part of the product: the
// product's module must not import anything below this folder, and the lab
// must not send traffic outside its own network namespace.
package lab
