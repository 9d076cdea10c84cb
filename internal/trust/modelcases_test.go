package trust

import "testing"

func TestModelA1(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 2, hot: true, split: true, webhooks: true})
}
func TestModelA2(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 1, hot: true, rollback: true, acts: 3})
}
func TestModelA3(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 1, hot: true, away: 3, crash: true})
}
func TestModelA4(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true, away: 1, fence: true, acts: 2})
}
func TestModelA5(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 1, verifiers: 1, hot: true, own: []bool{false, false, true}})
}
func TestModelA6(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 2, hot: false, restart: true})
}
func TestModelA7(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 2, hot: true, ticks: 28, silent: true})
}
func TestModelA8(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, away: 1, fence: true, rollback: true, acts: 2})
}
func TestModelA9(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 1, hot: true, own: []bool{true, true, true}, shared: true})
}
func TestModelB1(t *testing.T) {
	check(t, setup{clusters: 3, replicas: 2, verifiers: 2, hot: true, canary: true, bytes: true})
}
func TestModelB2(t *testing.T) {
	check(t, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: true, acts: 1, own: []bool{false, true}})
}
