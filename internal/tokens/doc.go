// Package tokens decides who holds tokens for whose API server, when one is made anew and when an old one may die; and it seals them from one agent to another.
//
// In: the registered clusters, what their agents report, which pairs there are, settings, the time. Out: a directive for each cluster and the state of each pair (Next);
// for an agent, when to make the next token (Due) and envelopes (Keys). It is pure: it must not do I/O, read a clock or know Kubernetes.
//
// The rule that everything serves: a token of one generation dies only after every istiod of the peer was seen synced with a later one, or by its own expiry, or because
// the peer is none any more.
package tokens
