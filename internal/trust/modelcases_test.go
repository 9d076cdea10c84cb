package trust

import "testing"

// What each world may do is in setup; search_test.go says what is looked for. AMBIT_MODEL=full searches much further than fits into `make test`.

func TestModelRotation(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 2, hot: true, webhooks: true, canary: true, bytes: true})
}

func TestModelProbesTakeTime(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 2, verifiers: 2, hot: true, split: true})
}

func TestModelCrashesAndPartitions(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true, away: 1, crashes: 1})
	check(t, setup{clusters: 3, replicas: 2, verifiers: 2, hot: true, split: true, away: 3, crashes: 2, maxStates: 100e3, deep: true})
}

func TestModelRollback(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true, rollback: true, acts: 1})
	check(t, setup{clusters: 3, replicas: 2, verifiers: 1, hot: true, rollback: true, acts: 4, crashes: 2, away: 1, maxStates: 100e3, deep: true})
}

func TestModelRollbackAndCrashes(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, crashes: 1, rollback: true, acts: 1})
}

func TestModelRollbackByHand(t *testing.T) { // multi-root is off: istiods restart when somebody restarts them
	check(t, setup{clusters: 2, replicas: 2, verifiers: 1, rollback: true, acts: 2})
}

func TestModelRollbackWithRestarts(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 2, verifiers: 1, restart: true, rollback: true, acts: 2})
}

func TestModelFences(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, away: 1, fence: true, acts: 2, maxStates: 60e3, deep: true})
}

func TestModelJoin(t *testing.T) { // at every phase
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, own: []bool{false, true}})
}

func TestModelJoinAndRollback(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, restart: true, rollback: true, acts: 1, own: []bool{false, true}, maxStates: 60e3, deep: true})
}

func TestModelFirstInstallation(t *testing.T) { // 3 clusters, each on a root of its own, then 3 on one that somebody gave them by hand
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true, restart: true, own: []bool{true, true, true}})
	check(t, setup{clusters: 3, replicas: 2, verifiers: 1, hot: true, own: []bool{true, true, true}, shared: true})
}

func TestModelSecretRewritten(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 2, verifiers: 1, hot: true, foreign: true, maxStates: 100e3})
}

func TestModelTime(t *testing.T) { // leaves grow old, a verifier can't be seen, files lag
	check(t, setup{clusters: 2, replicas: 1, verifiers: 2, hot: true, time: true, silent: true, maxStates: 50e3, deep: true})
	check(t, setup{clusters: 1, replicas: 2, verifiers: 2, hot: true, time: true, silent: true})
	check(t, setup{clusters: 1, replicas: 1, verifiers: 2, hot: true, time: true, silent: true, rollback: true, acts: 2})
	check(t, setup{clusters: 1, replicas: 2, verifiers: 1, hot: true, time: true, files: true, rollback: true, acts: 1})
}
