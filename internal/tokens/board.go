package tokens

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// maxReport bounds a cluster's report in bytes: about 300 for each peer.
const maxReport = 4 << 20

// Board is where what agents report of tokens meets what they are told. It carries envelopes as bytes. Safe for concurrent use.
type Board struct {
	mu       sync.Mutex
	seen     map[mesh.ClusterName]*seen
	dirty    bool
	decided  time.Time
	items    map[mesh.ClusterName]map[mesh.ItemKey][]byte
	pairs    []Status
	settings Settings
}

// seen is what a cluster reported.
type seen struct {
	report    *mesh.TokenReport
	envelopes map[mesh.ClusterName][]byte // JSON, by whom they are for
}

// NewBoard returns an empty board for settings that are complete and valid.
func NewBoard(s Settings) *Board {
	return &Board{seen: map[mesh.ClusterName]*seen{}, items: map[mesh.ClusterName]map[mesh.ItemKey][]byte{}, settings: s}
}

// Take takes up an item of a cluster's inventory, nil for one that is gone, and reports whether it was about tokens. What can't be read counts as not there.
func (b *Board) Take(c mesh.ClusterName, key mesh.ItemKey, value []byte) bool {
	if key.Type != mesh.ItemTokens && key.Type != mesh.ItemTokenEnvelope {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.seen[c]
	if s == nil {
		s = &seen{envelopes: map[mesh.ClusterName][]byte{}}
		b.seen[c] = s
	}
	b.dirty = true
	if key.Type == mesh.ItemTokenEnvelope {
		delete(s.envelopes, mesh.ClusterName(key.Name))
		if e, err := ParseEnvelope(value); value != nil && err == nil && e.From == c && string(e.To) == key.Name {
			s.envelopes[e.To] = value
		}
		return true
	}
	s.report = nil
	if value == nil || len(value) > maxReport {
		return true
	}
	r := &mesh.TokenReport{}
	if json.Unmarshal(value, r) == nil {
		s.report = r
	}
	return true
}

// Forget drops what a deregistered cluster reported.
func (b *Board) Forget(c mesh.ClusterName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.seen, c)
	delete(b.items, c)
	b.dirty = true
}

// Due reports whether something has changed since the last decision, or it is older than every.
func (b *Board) Due(now time.Time, every time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dirty || now.Sub(b.decided) >= every
}

// Report is what a cluster reported last; nil: nothing.
func (b *Board) Report(c mesh.ClusterName) *mesh.TokenReport {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.seen[c]; s != nil {
		return s.report
	}
	return nil
}

// Decide decides anew. members need no Report.
func (b *Board) Decide(members []Member, wanted map[Pair]bool, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	members = slices.Clone(members)
	for i := range members {
		if s := b.seen[members[i].Cluster]; s != nil {
			members[i].Report = s.report
		}
	}
	plan := Next(Input{Settings: b.settings, Members: members, Wanted: wanted}, now)
	items := make(map[mesh.ClusterName]map[mesh.ItemKey][]byte, len(plan.Directives))
	for c, d := range plan.Directives {
		raw, err := json.Marshal(d)
		if err != nil {
			return fmt.Errorf("cluster %q: directive about tokens: %w", c, err)
		}
		all := map[mesh.ItemKey][]byte{{Type: mesh.ItemTokens, Name: mesh.ItemTokens}: raw}
		for _, p := range d.Peers {
			if s := b.seen[p.Cluster]; p.Take && s != nil && s.envelopes[c] != nil {
				all[mesh.ItemKey{Type: mesh.ItemTokenEnvelope, Name: string(p.Cluster)}] = s.envelopes[c]
			}
		}
		if maps.EqualFunc(all, b.items[c], bytes.Equal) {
			all = b.items[c]
		}
		items[c] = all
	}
	b.items, b.pairs, b.dirty, b.decided = items, plan.Pairs, false, now
	return nil
}

// Items are what a cluster is to be told; nil before the first decision. The map must not be changed, and is the same one until something in it is different.
func (b *Board) Items(c mesh.ClusterName) map[mesh.ItemKey][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.items[c]
}

// Pairs are how all pairs were doing when the last decision was made. The list must not be changed.
func (b *Board) Pairs() []Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pairs
}
