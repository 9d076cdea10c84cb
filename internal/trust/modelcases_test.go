package trust

import "testing"

func TestModelSmall(t *testing.T) {
	check(t, setup{clusters: 1, replicas: 2, verifiers: 1, hot: true})
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true})
}

func TestModelX(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: 2})
}
