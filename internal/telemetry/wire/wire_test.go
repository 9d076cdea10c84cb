package wire_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/telemetry/wire"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/topology/demo"
)

// A report comes back as it went, but for whose it is and by which clock.
func TestRoundTrip(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, r := range demo.New(demo.Small()).Next(at) {
		r.Caps = []topology.CapHit{{Cap: "edgesPerService", Limit: 200, Dropped: 3, Example: "x"}}
		data, err := wire.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.Decode(data, "other", "1.2.3", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		want := *r
		want.Cluster, want.Agent, want.From, want.To = "other", "1.2.3", r.From.Add(time.Minute), r.To.Add(time.Minute)
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Error(diff)
		}
		t.Logf("%d edges in %d bytes", len(r.Edges), len(data))
	}
}

// Whatever bytes an agent sends, the table stands.
func FuzzDecode(f *testing.F) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	data, err := wire.Encode(demo.New(demo.Small()).Next(at)[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{0x32, 0x02, 0x08, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := wire.Decode(data, "c", "v", 0)
		if err != nil {
			return
		}
		table := topology.New(topology.Config{})
		if table.Apply(r, at) == nil {
			if _, err := table.Snapshot(topology.Query{Level: topology.LevelService}, at); err != nil {
				t.Fatal(err)
			}
		}
	})
}
