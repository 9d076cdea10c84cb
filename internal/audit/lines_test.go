package audit_test

import (
	"bytes"
	"testing"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/audit/storetest"
)

// A log without a store goes on from commit to commit with what it keeps of the tree, also when it has to ask for it again.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	lines, key, kept := audit.NewLines(&out), storetest.NewKey(t), &memory{}
	whole, _ := storetest.Start(t, kept, key, nil)
	for range 5 {
		l, stop := storetest.Start(t, lines, key, nil)
		for _, n := range []int{1, 3, 7} {
			for _, to := range []*audit.Log{l, whole} {
				if err := to.Append(t.Context(), storetest.Sample(n)...); err != nil {
					t.Fatal(err)
				}
			}
		}
		stop()
	}
	_, head, _ := lines.Head(t.Context())
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 55 || !bytes.Equal(head, kept.head) {
		t.Errorf("%d lines, and head\n%s, want\n%s", n, head, kept.head)
	}
}
