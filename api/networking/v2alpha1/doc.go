// Package v2alpha1 holds the networking.solo.io/v2alpha1 kinds: Services that the whole mesh shares.
//
// In: YAML written by people, GitOps and meshctl. Out: Go types and the CRDs generated from them.
// It must not hold logic: rules live in internal/validate, decisions in internal/translate.
//
// +kubebuilder:object:generate=true
// +groupName=networking.solo.io
package v2alpha1
