package topology_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/topology/demo"
)

func noon() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

func large(tb testing.TB) (*topology.Table, *demo.World) {
	tb.Helper()
	t, w := topology.New(topology.Config{}), demo.New(demo.Large())
	if err := w.Fill(t, noon(), 4); err != nil {
		tb.Fatal(err)
	}
	return t, w
}

// BenchmarkSnapshot is what a browser that opens the map of 2,000 services and 10,000 edges costs, right after every cluster reported: < 50 ms.
func BenchmarkSnapshot(b *testing.B) {
	t, w := large(b)
	for _, level := range []topology.Level{topology.LevelCluster, topology.LevelNamespace, topology.LevelService} {
		b.Run(string(level), func(b *testing.B) {
			b.ReportAllocs()
			now := noon()
			for b.Loop() {
				b.StopTimer()
				now = now.Add(topology.Interval)
				for _, r := range w.Next(now) {
					if err := t.Apply(r, now); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC() // of what made the reports
				b.StartTimer()
				v, err := t.Snapshot(topology.Query{Level: level}, now)
				if err != nil {
					b.Fatal(err)
				}
				data, err := json.Marshal(v.Columns())
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric(float64(len(data)), "payload-B")
				b.ReportMetric(float64(zipped(data)), "gzip-B")
				b.ReportMetric(float64(len(v.Edges)), "edges")
				b.StartTimer()
			}
		})
		t, w = large(b)
	}
}

func zipped(data []byte) int {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(data)
	_ = w.Close()
	return z.Len()
}

// BenchmarkIngest is 1,000 clusters with 10 edges each, once: what the server does every 15 s.
func BenchmarkIngest(b *testing.B) {
	t := topology.New(topology.Config{})
	reports := make([]*topology.Report, 1000)
	for i := range reports {
		r := &topology.Report{Cluster: mesh.ClusterName(fmt.Sprintf("c%d", i)), Epoch: "e"}
		for j := range 10 {
			o := topology.Observation{By: topology.ByWaypoint, Protocol: "http", From: topology.End{Cluster: string(r.Cluster), Namespace: "a", Service: fmt.Sprint(j), Principal: "p"}}
			o.To = topology.End{Cluster: string(r.Cluster), Namespace: "b", Service: fmt.Sprint(j)}
			o.Requests.Success, o.Latency = 10, &topology.Histogram{}
			o.Latency.Buckets[5], o.Latency.Sum = 10, 300
			r.Edges = append(r.Edges, o)
		}
		reports[i] = r
	}
	now := noon()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(topology.Interval)
		for _, r := range reports {
			r.Sequence++
			r.From, r.To = now.Add(-topology.Interval), now
			if err := t.Apply(r, now); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkLayout lays 2,000 services with 10,000 edges out, from nothing, at all levels: < 20 ms.
func BenchmarkLayout(b *testing.B) {
	t, _ := large(b)
	for b.Loop() {
		topology.LayOut(t, noon())
	}
}

// BenchmarkMemory is what the large mesh weighs: table, frame and layout.
func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		t, _ := large(b)
		if _, err := t.Snapshot(topology.Query{Level: topology.LevelService}, noon()); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		runtime.KeepAlive(t)
	}
}
