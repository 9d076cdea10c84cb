package probe

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestCountEvents(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want int
		ok   bool
	}{
		"none":           {"# HELP x y\nother{event=\"add\"} 4\n", 0, true},
		"both":           {"remote_cluster_secret_events_total{event=\"add\"} 3\nremote_cluster_secret_events_total{event=\"update\"} 12\n", 15, true},
		"without delete": {"remote_cluster_secret_events_total{event=\"delete\"} 7\nremote_cluster_secret_events_total{event=\"add\"} 1e+00\n", 1, true},
		"nonsense":       {"remote_cluster_secret_events_total{event=\"add\"} x\n", 0, false},
	} {
		got, err := countEvents(strings.NewReader(tt.text))
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
}

// TestDebugWire: what we write is what Envoy's protocol has at these numbers, and only the first resource's value is read.
func TestDebugWire(t *testing.T) {
	raw := debugRequest{namespace: "istio-system", account: "observer", what: "clusterz"}.marshal()
	for field, want := range map[protowire.Number]string{3: "clusterz", 4: "istio.io/debug"} {
		got, err := firstBytes(raw, field)
		if err != nil || string(got) != want {
			t.Errorf("field %d: %q, %v", field, got, err)
		}
	}
	node, _ := firstBytes(raw, 2)
	id, _ := firstBytes(node, 1)
	if string(id) != "sidecar~0.0.0.0~gloo-mesh-agent.istio-system~istio-system.svc.cluster.local" || !bytes.Contains(node, []byte("observer")) {
		t.Errorf("node %q", node)
	}
	resource := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), []byte(`[]`))
	answer := protowire.AppendBytes(protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 7), 2, protowire.BytesType), resource)
	var r debugResponse
	if err := r.unmarshal(answer); err != nil || string(r.body) != "[]" {
		t.Errorf("%q, %v", r.body, err)
	}
	if err := r.unmarshal(answer[:len(answer)-1]); err == nil {
		t.Error("a cut answer is read")
	}
}

func FuzzDebugResponse(f *testing.F) {
	f.Add([]byte{0x12, 0x04, 0x12, 0x02, '[', ']'})
	f.Fuzz(func(_ *testing.T, raw []byte) {
		var r debugResponse
		_ = r.unmarshal(raw)
	})
}
