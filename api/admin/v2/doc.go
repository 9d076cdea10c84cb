// Package v2 holds the admin.gloo.solo.io/v2 kinds: the clusters of the mesh, workspaces, and the root of trust.
//
// In: YAML written by people, GitOps and meshctl. Out: Go types and the CRDs generated from them.
// It must not hold logic: rules live in internal/validate, decisions in internal/translate and internal/trust.
//
// +kubebuilder:object:generate=true
// +groupName=admin.gloo.solo.io
package v2
