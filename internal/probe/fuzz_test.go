package probe

import (
	"encoding/json"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What a peer sends must be refused or read, and never end the agent.

func FuzzDistinguishedName(f *testing.F) {
	f.Add(newAuthority(f, "root g1", nil).cert.RawSubject)
	f.Add([]byte{0x30, 0})
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		a, err := DistinguishedName(der)
		if b, err2 := DistinguishedName(der); a != b || (err == nil) != (err2 == nil) {
			t.Errorf("%x: %q and %q", der, a, b)
		}
		_, _ = names([][]byte{der, der})
	})
}

func FuzzAnswer(f *testing.F) {
	a := newAuthority(f, "root g1", nil)
	f.Add([]byte{0x0a, 1, 'x'}, pemOf(a.cert))
	f.Add([]byte{0x12, 1, 'x', 0x0a}, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, wire []byte, pem string) {
		var r certificateResponse
		if err := r.unmarshal(wire); err == nil {
			var got answer
			_ = got.read(r.chain)
		}
		var got answer
		if err := got.read([]string{pem, pem}); err == nil && (got.leaf == nil || len(got.roots) == 0) {
			t.Errorf("%q was read as an answer without leaf or roots", pem)
		}
	})
}

func FuzzPod(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a","labels":{"app":"istiod"}},"spec":{"containers":[{"name":"discovery","env":[{"name":"CLUSTER_ID","value":"c1"}]}]},"status":{"podIP":"10.0.0.1"}}`))
	f.Add([]byte(`{"spec":{"containers":[1,{"name":"istio-proxy"}],"initContainers":{}},"status":{"podIP":"x","conditions":[null]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var o map[string]any
		if json.Unmarshal(raw, &o) != nil || o == nil {
			return
		}
		u := &unstructured.Unstructured{Object: o}
		if p, ok := podOf(u, ""); ok && (p.ip == "" || p.role == roleNone) {
			t.Errorf("%s: %+v", raw, p)
		}
		_, _ = caBundles(u, "istio-system")
		_, _ = rootMap(u)
	})
}
