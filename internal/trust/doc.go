// Package trust decides how a mesh gets from one root of trust to another without a handshake that fails.
//
// In: the state of the rotation as stored, what the policy wants, and what every cluster was last seen to present and trust. Out: the next state to store, and then what each
// cluster is to be told, what is to be signed, and what everybody waits for, in sentences. Three questions have a function each: Next (what now), Preflight (may it begin), Plan
// (what would happen to every pair of clusters at every step, as real X.509).
//
// One idea carries all of it. A party trusts a bundle and presents a chain; both change late, one party at a time. So what is told to clusters changes in one of two ways only: the
// bundle grows, or it loses a root that nobody chains to any more; and the signer changes only while everybody trusts both. Between such changes stands a barrier, and it is passed by
// observation of every cluster alone (docs/design/trust.md has the proof; model_test.go searches for a counter-example).
//
// It must not do I/O, read a clock or roll dice. It never concludes from a record of its own that a cluster has done what it was told, and never from silence that all is well: unknown
// trust waits.
package trust
