package tokens

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

func keys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealed is an envelope from a to b, and what is in it.
func sealed(t testing.TB, a, b *Keys, now time.Time) (mesh.TokenEnvelope, mesh.TokenCredential) {
	t.Helper()
	c := mesh.TokenCredential{Server: "https://10.0.0.1:6443", CA: []byte("ca"), Token: "eyJ.secret.token"}
	e, err := a.Seal(mesh.TokenEnvelope{From: "a", To: "b", Generation: 7, Issued: now, Expires: now.Add(time.Hour)}, b.Public("b"), c)
	if err != nil {
		t.Fatal(err)
	}
	return e, c
}

func TestSealAndOpen(t *testing.T) {
	a, b, now := keys(t), keys(t), time.Now()
	e, want := sealed(t, a, b, now)
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{want.Token, "secret", want.Server} {
		if bytes.Contains(raw, []byte(secret)) || bytes.Contains(e.Sealed, []byte(secret)) {
			t.Errorf("the envelope shows %q", secret)
		}
	}
	e, err = ParseEnvelope(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Open(e, "b", a.Public("a").Sign, now)
	if err != nil || got.Server != want.Server || got.Token != want.Token || !bytes.Equal(got.CA, want.CA) {
		t.Errorf("opened %+v, %v", got, err)
	}
}

// TestOpenRefuses: whatever the hub, or anybody on the way, changes or exchanges, nothing is opened.
func TestOpenRefuses(t *testing.T) {
	a, b, other, now := keys(t), keys(t), keys(t), time.Now()
	good, _ := sealed(t, a, b, now)
	resigned := func(e mesh.TokenEnvelope) mesh.TokenEnvelope { // by somebody who is not a
		x, err := other.Seal(mesh.TokenEnvelope{From: e.From, To: e.To, Generation: e.Generation, Issued: e.Issued, Expires: e.Expires}, b.Public("b"), mesh.TokenCredential{Server: "https://evil"})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	change := func(f func(*mesh.TokenEnvelope)) mesh.TokenEnvelope {
		e := good
		e.Sealed, e.Encapsulated, e.Signature = bytes.Clone(e.Sealed), bytes.Clone(e.Encapsulated), bytes.Clone(e.Signature)
		f(&e)
		return e
	}
	pinned := a.Public("a").Sign
	for name, tt := range map[string]struct {
		by   *Keys
		self mesh.ClusterName
		e    mesh.TokenEnvelope
		pin  []byte
		at   time.Time
	}{
		"another's key opens":      {other, "b", good, pinned, now},
		"for another cluster":      {b, "c", good, pinned, now},
		"another sender is pinned": {b, "b", good, other.Public("a").Sign, now},
		"no sender is pinned":      {b, "b", good, nil, now},
		"forged by another":        {b, "b", resigned(good), pinned, now},
		"ended":                    {b, "b", good, pinned, now.Add(time.Hour)},
		"renamed sender":           {b, "b", change(func(e *mesh.TokenEnvelope) { e.From = "c" }), pinned, now},
		"later generation":         {b, "b", change(func(e *mesh.TokenEnvelope) { e.Generation++ }), pinned, now},
		"longer life":              {b, "b", change(func(e *mesh.TokenEnvelope) { e.Expires = e.Expires.Add(time.Hour) }), pinned, now},
		"made later":               {b, "b", change(func(e *mesh.TokenEnvelope) { e.Issued = e.Issued.Add(time.Second) }), pinned, now},
		"changed content":          {b, "b", change(func(e *mesh.TokenEnvelope) { e.Sealed[3] ^= 1 }), pinned, now},
		"changed encapsulated key": {b, "b", change(func(e *mesh.TokenEnvelope) { e.Encapsulated[3] ^= 1 }), pinned, now},
		"changed signature":        {b, "b", change(func(e *mesh.TokenEnvelope) { e.Signature[3] ^= 1 }), pinned, now},
		"no signature":             {b, "b", change(func(e *mesh.TokenEnvelope) { e.Signature = nil }), pinned, now},
	} {
		if c, err := tt.by.Open(tt.e, tt.self, tt.pin, tt.at); err == nil || c.Token != "" || c.Server != "" {
			t.Errorf("%s: opened %+v", name, c)
		}
	}
}

// TestCheckKey: a hub can't give a cluster's peers another sealing key, nor one cluster's key to another.
func TestCheckKey(t *testing.T) {
	a, b := keys(t), keys(t)
	if err := CheckKey("a", a.Public("a")); err != nil {
		t.Error(err)
	}
	exchanged := a.Public("a")
	exchanged.Seal = b.Public("a").Seal
	for name, k := range map[string]mesh.TokenKey{"another sealing key": exchanged, "another cluster's": a.Public("c"), "none": {}} {
		if err := CheckKey("a", k); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := b.Seal(mesh.TokenEnvelope{From: "b", To: "a"}, k, mesh.TokenCredential{}); err == nil {
			t.Errorf("%s: sealed for", name)
		}
	}
}

func TestKeysRoundTrip(t *testing.T) {
	a, b, now := keys(t), keys(t), time.Now()
	again, err := ParseKeys(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	e, _ := sealed(t, a, b, now)
	if _, err := again.Open(e, "b", a.Public("a").Sign, now); err != nil {
		t.Error(err)
	}
	seal, sign := b.Bytes()
	if _, err := ParseKeys(seal[1:], sign); err == nil {
		t.Error("a short sealing key is taken")
	}
	if _, err := ParseKeys(seal, sign[1:]); err == nil {
		t.Error("a short signing key is taken")
	}
}

func FuzzParseEnvelope(f *testing.F) {
	f.Add([]byte(`{"from":"a","to":"b","generation":1,"sealed":"AA=="}`))
	k := keys(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := ParseEnvelope(raw)
		if err != nil {
			return
		}
		if _, err := k.Open(e, e.To, k.Public(e.From).Sign, time.Time{}); err == nil {
			t.Error("opened what nobody sealed")
		}
	})
}
