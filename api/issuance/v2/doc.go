// Package v2 holds the internal.gloo.solo.io/v2 kinds: the steps by which a cluster gets its intermediate, for people to watch.
//
// In: what the management server reports. Out: Go types and the CRDs generated from them. The package is not called internal, after its group: Go gives that name a meaning.
// It must not hold logic, and nothing may decide by these objects: the truth is in the clusters and in the RootTrustPolicy.
//
// +kubebuilder:object:generate=true
// +groupName=internal.gloo.solo.io
package v2
