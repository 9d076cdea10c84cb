package apply

import (
	"encoding/json"
	"log/slog"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// What a watch tells may be older than what we know, and what is desired may be newer: neither is drift.
func TestSeen(t *testing.T) {
	const manifest = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: billing, labels: {owner.gloo.solo.io/name: gloo-mesh}}, spec: {action: ALLOW}}`
	desired, err := json.Marshal(object(t, manifest))
	if err != nil {
		t.Fatal(err)
	}
	w := newWish(desired)
	at := func(version string, change func(map[string]any)) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: object(t, manifest)}
		change(u.Object)
		u.SetResourceVersion(version)
		return u
	}
	same := func(map[string]any) {}
	opened := func(m map[string]any) { m["spec"].(map[string]any)["rules"] = []any{map[string]any{}} }
	noted := func(m map[string]any) {
		m["metadata"].(map[string]any)["annotations"] = map[string]any{"note": "theirs"}
	}
	client, err := dynamic.NewForConfig(&rest.Config{Host: "127.0.0.1:1"}) // never asked
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		state known
		seen  *unstructured.Unstructured
		want  bool
	}{
		"as we left it":                         {known{hash: w.hash, ok: true}, at("10", same), false},
		"opened":                                {known{hash: w.hash, ok: true}, at("11", opened), true},
		"opened, before our last write":         {known{hash: w.hash, ok: true}, at("9", opened), false},
		"a version that is no number is judged": {known{hash: w.hash, ok: true}, at("x", opened), true},
		"what others may add":                   {known{hash: w.hash, ok: true}, at("11", noted), false},
		"the hub wants something else by now":   {known{hash: mesh.Fingerprint{1}, ok: true}, at("11", opened), false},
		"not applied yet":                       {known{hash: w.hash, tries: 1}, at("11", opened), false},
		"held: looked at whatever changed":      {known{hash: w.hash, ok: true, held: true}, at("11", noted), true},
	} {
		t.Run(name, func(t *testing.T) {
			a := New(Config{Client: client, Outcomes: synclog.NewSource("test"), Log: slog.New(slog.DiscardHandler)})
			r := ref("v1", "a")
			a.desired[r], a.state[r], a.live[r] = w, tc.state, leftAs(at("10", same))
			(&follower{a: a}).Set(tc.seen)
			if got := a.state[r].drifted; got != tc.want {
				t.Errorf("drifted %v, want %v", got, tc.want)
			}
		})
	}
}
