// Package v2 holds the security.policy.gloo.solo.io/v2 kinds: who may call what in the whole mesh, and the leases that suspend it.
//
// In: YAML written by people, GitOps and meshctl. Out: Go types and the CRDs generated from them.
// It must not hold logic: rules live in internal/validate, decisions in internal/translate.
//
// +kubebuilder:object:generate=true
// +groupName=security.policy.gloo.solo.io
package v2
