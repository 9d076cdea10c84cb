package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// BenchmarkNewRootTrusted rotates the root of 50 clusters that do at once what they are told, and says what the management plane itself takes: from the moment a cluster is handed
// the new root to the moment it is told to sign under it, which it is once all 50 have reported that they trust it and the record of that is stored. Agents look every 20 ms.
//
//	go test ./internal/rotation -run '^$' -bench NewRootTrusted -benchtime 3x
func BenchmarkNewRootTrusted(b *testing.B) {
	const clusters = 50
	var names []mesh.ClusterName
	for i := range clusters {
		names = append(names, mesh.ClusterName(fmt.Sprintf("a-%d", i)))
	}
	m := newMesh(b, names...)
	m.apply("a", generated(adminv2.KeyECDSAP256, 0))
	before := m.steady("a", "generated", "")
	var took []time.Duration
	for b.Loop() {
		old := signing(m.told(names[0]))
		m.ask("a", adminv2.ActionRotate)
		handed, switched := map[mesh.ClusterName]time.Time{}, map[mesh.ClusterName]bool{}
		for end := time.Now().Add(limit); len(switched) < clusters; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("%d of %d have the new root, %d sign under it", len(handed), clusters, len(switched))
			}
			for _, c := range names {
				d := m.told(c)
				if d == nil || switched[c] {
					continue
				}
				at, ok := handed[c]
				switch {
				case !ok && bytes.Count(d.Bundle, []byte("BEGIN")) > 1:
					handed[c] = time.Now()
				case ok && signing(d) > old:
					switched[c] = true
					took = append(took, time.Since(at))
				}
			}
		}
		before = m.steady("a", "generated", before.Fingerprint)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "ms-trusted-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Milliseconds()), "ms-trusted-p99")
}

// told is what a cluster is to do now; nil: nothing yet.
func (m *testMesh) told(c mesh.ClusterName) *mesh.TrustDirective {
	board, _ := m.server()
	raw, _ := board.Directive(c)
	if len(raw) == 0 {
		return nil
	}
	d := &mesh.TrustDirective{}
	if err := json.Unmarshal(raw, d); err != nil {
		m.t.Fatal(err)
	}
	return d
}

// signing is the generation of the root that a cluster is to sign under.
func signing(d *mesh.TrustDirective) mesh.Generation {
	i := slices.IndexFunc(d.Intermediates, func(o mesh.IntermediateOrder) bool { return o.ID == d.Signer })
	if i < 0 {
		return 0
	}
	return d.Intermediates[i].Generation
}
