// Package cacerts keeps istiod's plugged-in CA (Secret istio-system/cacerts) as directed, and the keys for it.
//
// In: a mesh.TrustDirective, the cluster's API server, and what the probes see. Out: keys that are made in this cluster and stay in it, certificate requests for them, one atomic
// update of cacerts at a time, restarts in the safe order, and a State that says how far things are.
//
// It must not write half of a CA, nor one that istiod would refuse or that does not verify (internal/pki); touch a cacerts of somebody else unless told to adopt it; fight with whoever
// changes one of ours; restart anything before the new certificate is there; or do anything at all without a directive.
//
// The loop is gather, decide (slots.go, write.go, restart.go: pure), act.
package cacerts
