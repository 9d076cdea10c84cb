package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"sync"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// maxItem bounds what an agent may say of trust in one item.
const maxItem = 4 << 20

// Board is where what agents report of trust meets what they are told. Safe for concurrent use.
type Board struct {
	mu       sync.Mutex
	seen     map[mesh.ClusterName]*seen
	directed map[mesh.ClusterName][]byte
	ready    bool
	news     chan struct{} // capacity 1: something was reported
	orders   func()        // called when a directive has changed
}

// seen is what a cluster reported.
type seen struct {
	observation *mesh.TrustObservation
	requests    map[string][]byte // CSR, DER, by slot
	problem     string
}

// NewBoard returns an empty board. orders is called, without locks, whenever a directive has changed.
func NewBoard(orders func()) *Board {
	return &Board{seen: map[mesh.ClusterName]*seen{}, directed: map[mesh.ClusterName][]byte{}, news: make(chan struct{}, 1), orders: orders}
}

// Take takes up an item of a cluster's inventory, nil for one that is gone, and reports whether it was about trust. One that can't be read is kept as the cluster's
// problem: what it said before no longer counts.
func (b *Board) Take(c mesh.ClusterName, key mesh.ItemKey, value []byte) bool {
	if key.Type != mesh.ItemTrust && key.Type != mesh.ItemTrustRequest {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.seen[c]
	if s == nil {
		s = &seen{requests: map[string][]byte{}}
		b.seen[c] = s
	}
	s.problem = ""
	if err := s.take(key, value); err != nil {
		s.problem = err.Error()
	}
	select {
	case b.news <- struct{}{}:
	default:
	}
	return true
}

func (s *seen) take(key mesh.ItemKey, value []byte) error {
	if len(value) > maxItem {
		s.observation = nil
		return fmt.Errorf("%s: %d bytes, at most %d", key.Type, len(value), maxItem)
	}
	if key.Type == mesh.ItemTrust {
		s.observation = nil
		if value == nil {
			return nil
		}
		o := &mesh.TrustObservation{}
		if err := json.Unmarshal(value, o); err != nil {
			return fmt.Errorf("the agent's observation can't be read: %w", err)
		}
		s.observation = o
		return nil
	}
	requests := maps.Clone(s.requests) // fleets handed out before keep theirs
	delete(requests, key.Name)
	s.requests = requests
	if value == nil {
		return nil
	}
	var r mesh.IntermediateRequest
	if err := json.Unmarshal(value, &r); err != nil || r.ID != key.Name {
		return fmt.Errorf("the agent's certificate request %q can't be read: %w", key.Name, err)
	}
	requests[r.ID] = r.CSR
	return nil
}

// Forget drops what a deregistered cluster reported and was told.
func (b *Board) Forget(c mesh.ClusterName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.seen, c)
	delete(b.directed, c)
}

// Directive is what a cluster is to be told, nil for nothing. ready is false until the first decision since the server began: until then nobody knows.
func (b *Board) Directive(c mesh.ClusterName) (raw []byte, ready bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.directed[c], b.ready
}

// direct makes these directives the ones in force. A cluster without one keeps what it has.
func (b *Board) direct(all map[mesh.ClusterName]*mesh.TrustDirective) {
	b.mu.Lock()
	changed := !b.ready
	b.ready = true
	for c, d := range all {
		if raw, _ := trust.Encode(d); !bytes.Equal(raw, b.directed[c]) {
			b.directed[c], changed = raw, true
		}
	}
	b.mu.Unlock()
	if changed {
		b.orders()
	}
}

// look is what a cluster reported last.
func (b *Board) look(c mesh.ClusterName) seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.seen[c]; s != nil {
		return *s
	}
	return seen{}
}
