package node

import "time"

// The back-off of crashing containers: Kubernetes' own reduced values (KEP-4603), which suit a lab better than 10 s to 5 min.
const (
	crashBackoffFirst = time.Second
	crashBackoffMax   = time.Minute
	crashBackoffReset = 10 * time.Minute
)

// crashBackoff counts the crashes of one container in a row. The first restart is immediate, as with the kubelet.
type crashBackoff struct{ delay time.Duration }

// next is how long to wait before the container that ran for ran is started again.
func (b *crashBackoff) next(ran time.Duration) time.Duration {
	if ran >= crashBackoffReset {
		b.delay = 0
	}
	d := b.delay
	b.delay = min(max(2*b.delay, crashBackoffFirst), crashBackoffMax)
	return d
}

// restarts decides whether a container that ended with code is started again.
func restarts(policy string, code int) bool {
	switch policy {
	case "Never":
		return false
	case "OnFailure":
		return code != 0
	}
	return true
}
