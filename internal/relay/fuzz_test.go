package relay

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

// FuzzChunk gives foreign bytes to a sink that has a state already. Whatever they are, the state stays within its limits, nothing
// is lost unless a whole state says so, and the right next chunk is still taken if the foreign one was refused.
func FuzzChunk(f *testing.F) {
	seed := func(c *relayv1.Chunk) {
		b, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	next := &relayv1.Chunk{Epoch: "e", After: 2, Through: 3, Head: 3, Complete: true, Items: []*relayv1.Item{{Type: "t", Name: "c", Version: 3}}}
	seed(next)
	seed(&relayv1.Chunk{Epoch: "e", After: 2, Through: 2, Head: 9, Items: []*relayv1.Item{{Type: "t", Name: "c", Version: 3, Parts: 4, Value: []byte("v")}}})
	seed(&relayv1.Chunk{Epoch: "f", Through: 3, Head: 3, Complete: true, Items: []*relayv1.Item{{Type: "t", Name: "c", Version: 3, Deleted: true}}})
	f.Add([]byte{0x12, 0x00})
	limits := synclog.Limits{Items: 10, Bytes: 1 << 12}
	f.Fuzz(func(t *testing.T, data []byte) {
		k := synclog.NewSink(limits, true)
		first := synclog.Chunk{Epoch: "e", Through: 2, Head: 2, Complete: true, Items: []synclog.Item{
			{Key: synclog.Key{Type: "t", Name: "a"}, Version: 1}, {Key: synclog.Key{Type: "t", Name: "b"}, Version: 2},
		}}
		if err := k.Apply(first); err != nil {
			t.Fatal(err)
		}
		m := &relayv1.Chunk{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		c := toChunk(m)
		err := k.Apply(c)
		s := k.Snapshot()
		var size int
		for key, v := range s.Items {
			size += len(key.Type) + len(key.Name) + len(v)
		}
		switch {
		case len(s.Items) > limits.Items || int64(size) > limits.Bytes:
			t.Fatalf("%d items, %d bytes", len(s.Items), size)
		case (err != nil || !c.Complete) && len(s.Items) < 2:
			t.Fatalf("something is gone though no whole state was received: %v", err)
		case err == nil && s.Complete != c.Complete:
			t.Fatalf("complete %v after a chunk that says %v", s.Complete, c.Complete)
		}
		if err != nil && s.Position.Epoch == "e" && s.Position.Version == 2 {
			if err := k.Apply(toChunk(next)); err != nil {
				t.Fatalf("the right chunk after a wrong one: %v", err)
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	b, err := proto.Marshal(helloOf("prod"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &relayv1.Hello{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		h, protocol, err := parseHello(m)
		if err != nil {
			if r := refusalIn(err); r == nil || r.Message == "" || len(r.Message) > 3*maxSentence {
				t.Fatalf("not a refusal that can be told: %v", err)
			}
			return
		}
		if h.Cluster.Validate() != nil || h.UID == "" || len(h.UID) > maxUIDBytes || len(h.AgentVersion) > maxVersionBytes || protocol < MinProtocol || protocol > Protocol {
			t.Fatalf("taken: %+v, protocol %d", h, protocol)
		}
		_ = newPump(synclog.NewSource("e"), toPosition(m.GetDesired())).next(time.Time{})
	})
}

// FuzzEnrol gives foreign requests to the hub's checks: what passes them is fit to be signed.
func FuzzEnrol(f *testing.F) {
	h := NewHub(HubConfig{Family: newFamilies(f), Gate: newOffice()})
	b, err := proto.Marshal(&relayv1.EnrolRequest{Cluster: "prod", ClusterUid: "u", Token: "t"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &relayv1.EnrolRequest{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		a := EnrolAttempt{Cluster: "prod", UID: "u", Token: m.GetToken(), AgentVersion: m.GetAgentVersion()}
		pub, r := h.checkEnrolment(&a, m.GetCsrDer())
		if r == nil {
			if _, _, r := h.issue(context.Background(), a.Cluster, pub); r != nil {
				t.Fatal(r)
			}
		}
	})
}

// FuzzGoodbye: what a hub says is not trusted either.
func FuzzGoodbye(f *testing.F) {
	f.Add("x", uint32(1), int32(2))
	f.Fuzz(func(t *testing.T, message string, after uint32, reason int32) {
		r := fromGoodbye(&relayv1.Goodbye{Message: message, RetryAfterSeconds: after, Reason: relayv1.Goodbye_Reason(reason)})
		if w := backoff(100, r); w < 0 || w > 2*maxRetryAfter || len(r.Message) > maxSentence+3 {
			t.Fatalf("waits %s", w)
		}
	})
}

func FuzzStoredIdentity(f *testing.F) {
	chain, key, err := newFamilies(f).Current().NewClient("prod", time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0, 200, 'x'}, []byte{0, 40, 'A', 0, 41, 'B'})
	f.Fuzz(func(t *testing.T, edits, keyEdits []byte) {
		chain, key := edited(chain, edits), edited(key, keyEdits)
		if c, err := loadCredential(StoredIdentity{ChainPEM: chain, KeyPEM: key}, "prod", time.Now()); err == nil && (c.leaf == nil || c.identity.Cluster != "prod") {
			t.Fatal("a credential of nobody")
		}
	})
}

// edited changes single bytes of data: each edit is a position (two bytes) and a value. The seeds are keys and certificates, which
// are new at each start; edits of them can be kept and repeated all the same.
func edited(data, edits []byte) []byte {
	out := slices.Clone(data)
	for ; len(edits) >= 3; edits = edits[3:] {
		out[(int(edits[0])<<8|int(edits[1]))%len(out)] = edits[2]
	}
	return out
}
