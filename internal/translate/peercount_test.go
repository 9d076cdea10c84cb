package translate_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// applied counts what agents have to write for a Result, and how many peers there are in all.
func applied(r translate.Result) (writes, objects int) {
	for _, d := range r.Changed {
		for _, ref := range d.Set {
			if ref.Kind == "Gateway" {
				writes++
			}
		}
	}
	for _, o := range r.Objects {
		for ref := range o.All() {
			if ref.Kind == "Gateway" {
				objects++
			}
		}
	}
	return writes, objects
}

// TestPeerCounts counts, with the translator, what docs/performance.md says of peers by hand and with Ambit. UPDATE=1 rewrites the table.
func TestPeerCounts(t *testing.T) {
	const file, begin, end = "../../docs/performance.md", "<!-- peer counts: TestPeerCounts -->\n", "<!-- end of peer counts -->"
	var b strings.Builder
	b.WriteString("| clusters | Gateways in all | by hand: applies for all, for one more cluster, for another address | with Ambit: a person's commands for the same | written by agents for one more cluster, for another address |\n|---|---|---|---|---|\n")
	for _, n := range []int{4, 10, 50, 100} {
		translator := translate.New()
		next := func(s *mesh.Snapshot) (int, int) {
			t.Helper()
			r, err := translator.Next(s)
			if err != nil {
				t.Fatal(err)
			}
			return applied(r)
		}
		whole := peerFleet(n)
		less := *whole
		less.Clusters = whole.Clusters[:n-1]
		next(&less)
		join, all := next(whole)
		address, _ := next(changed(whole, 0, func(_ *mesh.Cluster, g *mesh.Gateway) { g.Addresses = []string{"198.51.100.1"} }))
		// By hand each of these writes is somebody's kubectl apply, in that cluster.
		fmt.Fprintf(&b, "| %d | %d | %d, %d, %d | %d registrations, 1, 0 | %d, %d |\n", n, all, all, join, address, n, join, address)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if table == b.String() {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s says\n%swant\n%s(UPDATE=1 rewrites it)", file, table, b.String())
	}
	if err := os.WriteFile(file, []byte(before+begin+b.String()+end+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
