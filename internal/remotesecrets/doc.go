// Package remotesecrets is the agent's part in remote secrets: it makes tokens for the clusters that may read this one, and turns those of others into the Secrets that istiod
// reads remote clusters by.
//
// In: a directive (whom to let in, whose tokens to take), envelopes of other agents. Out: envelopes for them, Secrets istio-remote-secret-CLUSTER, a report of what was made and of
// what istiods were seen synced with. Everything it must remember is in its cluster, so that it goes on after a restart where it was.
//
// It must not decide when an old token may die (the directive says so, internal/tokens decides), must not touch a remote secret that somebody else made, and must never log,
// report or store a token anywhere but in the remote secret.
package remotesecrets
