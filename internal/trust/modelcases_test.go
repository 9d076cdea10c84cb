package trust

import "testing"

func TestModelSmall(t *testing.T) {
	check(t, setup{clusters: 1, replicas: 2, verifiers: 1, hot: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true})
}

func TestModelX(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 2, verifiers: 2, hot: true})
	check(t, setup{clusters: 2, replicas: 2, verifiers: 1, hot: true, split: true})
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, away: 1, fence: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, crash: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, own: []bool{false, true}})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: false})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: false, restart: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, bytes: true, webhooks: true})
}
