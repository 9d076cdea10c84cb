package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
)

var (
	noon       = time.Date(2026, 5, 15, 12, 0, 0, 0, time.UTC)
	key1, key2 = mesh.FingerprintOf([]byte("1")), mesh.FingerprintOf([]byte("2"))
)

func hashed(t string) string {
	h := sha256.Sum256([]byte(t))
	return hex.EncodeToString(h[:])
}

func announced(change ...func(*token)) *token {
	t := &token{Hash: hashed("secret"), Expires: noon.Add(time.Minute), UID: "uid-1", Owner: "kc-1"}
	for _, f := range change {
		f(t)
	}
	return t
}

func liveKey() record {
	return record{Keys: []recordKey{{SPKI: key1, Serial: "a", NotAfter: noon.Add(time.Hour)}}}
}

func TestEnrol(t *testing.T) {
	good := func() (facts, relay.EnrolAttempt) {
		return facts{Cluster: "c1", Registration: "kc-1", Namespace: "gloo-mesh", Now: noon, Shared: []byte("shared"), Token: announced()},
			relay.EnrolAttempt{Cluster: "c1", UID: "uid-1", Token: "secret", Key: key1}
	}
	type answer struct {
		Redeem bool
		Reason relayv1.Goodbye_Reason
	}
	for name, tc := range map[string]struct {
		change func(*facts, *relay.EnrolAttempt)
		want   answer
	}{
		"first use":                        {func(*facts, *relay.EnrolAttempt) {}, answer{Redeem: true}},
		"again with the same key":          {func(f *facts, _ *relay.EnrolAttempt) { f.Token.UsedBy = key1.String() }, answer{}},
		"replayed with another key":        {func(f *facts, _ *relay.EnrolAttempt) { f.Token.UsedBy = key2.String() }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"expired":                          {func(f *facts, _ *relay.EnrolAttempt) { f.Now = noon.Add(time.Minute) }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"expired, same key":                {func(f *facts, _ *relay.EnrolAttempt) { f.Now, f.Token.UsedBy = noon.Add(time.Hour), key1.String() }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"guessed":                          {func(_ *facts, a *relay.EnrolAttempt) { a.Token = "guess" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"empty token":                      {func(f *facts, a *relay.EnrolAttempt) { f.Token, f.Shared, a.Token = nil, nil, "" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"empty token, empty hash":          {func(f *facts, a *relay.EnrolAttempt) { f.Token.Hash, f.Shared, a.Token = "", nil, "" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"stolen by another cluster":        {func(_ *facts, a *relay.EnrolAttempt) { a.UID = "uid-2" }, answer{Reason: relayv1.Goodbye_WRONG_CLUSTER}},
		"of an earlier registration":       {func(f *facts, _ *relay.EnrolAttempt) { f.Token.Owner = "kc-0" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"not registered":                   {func(f *facts, _ *relay.EnrolAttempt) { f.Registration = "" }, answer{Reason: relayv1.Goodbye_NOT_REGISTERED}},
		"says no UID":                      {func(_ *facts, a *relay.EnrolAttempt) { a.UID = "" }, answer{Reason: relayv1.Goodbye_WRONG_CLUSTER}},
		"another UID on record":            {func(f *facts, _ *relay.EnrolAttempt) { f.UID = "uid-0" }, answer{Reason: relayv1.Goodbye_WRONG_CLUSTER}},
		"known under another name":         {func(f *facts, _ *relay.EnrolAttempt) { f.NameOfUID = "c0" }, answer{Reason: relayv1.Goodbye_WRONG_CLUSTER}},
		"shared":                           {func(f *facts, a *relay.EnrolAttempt) { f.Token, a.Token = nil, "shared" }, answer{}},
		"shared, token announced too":      {func(_ *facts, a *relay.EnrolAttempt) { a.Token = "shared" }, answer{}},
		"shared, turned off":               {func(f *facts, a *relay.EnrolAttempt) { f.SharedOff, a.Token = true, "shared" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"shared, live key, UID unknown":    {func(f *facts, a *relay.EnrolAttempt) { f.Record, a.Token = liveKey(), "shared" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
		"shared, live key, same UID":       {func(f *facts, a *relay.EnrolAttempt) { f.Record, f.UID, a.Token = liveKey(), "uid-1", "shared" }, answer{}},
		"shared, key revoked":              {func(f *facts, a *relay.EnrolAttempt) { f.Record, a.Token = liveKey().revoked(), "shared" }, answer{}},
		"shared, another UID on record":    {func(f *facts, a *relay.EnrolAttempt) { f.UID, a.Token = "uid-0", "shared" }, answer{Reason: relayv1.Goodbye_WRONG_CLUSTER}},
		"shared token is not there (\"\")": {func(f *facts, a *relay.EnrolAttempt) { f.Shared, f.Token, a.Token = []byte{}, nil, "" }, answer{Reason: relayv1.Goodbye_BAD_TOKEN}},
	} {
		t.Run(name, func(t *testing.T) {
			f, a := good()
			tc.change(&f, &a)
			redeem, no := f.enrol(a)
			got := answer{Redeem: redeem}
			if no != nil {
				got.Reason = no.Reason
				t.Log(no.Message)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAdmit(t *testing.T) {
	id := relay.Identity{Cluster: "c1", Key: key1, Serial: "a", NotAfter: noon.Add(time.Hour)}
	stored := record{UID: "uid-1", Registration: "kc-1", Keys: []recordKey{{SPKI: key1, Serial: "a", NotAfter: noon.Add(time.Hour)}}}
	for name, tc := range map[string]struct {
		facts  facts
		hello  relay.Hello
		want   record
		reason relayv1.Goodbye_Reason
	}{
		"first session":         {facts{Registration: "kc-1"}, relay.Hello{Cluster: "c1", UID: "uid-1"}, stored, 0},
		"next session":          {facts{Registration: "kc-1", UID: "uid-1", Record: stored}, relay.Hello{Cluster: "c1", UID: "uid-1"}, stored, 0},
		"says another name":     {facts{Registration: "kc-1"}, relay.Hello{Cluster: "c2", UID: "uid-1"}, record{}, relayv1.Goodbye_WRONG_CLUSTER},
		"copied to another":     {facts{Registration: "kc-1", UID: "uid-1", NameOfUID: "c2", Record: stored}, relay.Hello{Cluster: "c1", UID: "uid-2"}, stored, relayv1.Goodbye_WRONG_CLUSTER},
		"rebuilt":               {facts{Registration: "kc-1", UID: "uid-0"}, relay.Hello{Cluster: "c1", UID: "uid-1"}, record{}, relayv1.Goodbye_WRONG_CLUSTER},
		"revoked":               {facts{Registration: "kc-2", Record: stored.revoked()}, relay.Hello{Cluster: "c1", UID: "uid-1"}, stored.revoked(), relayv1.Goodbye_REVOKED},
		"revoked, unregistered": {facts{Record: stored.revoked()}, relay.Hello{Cluster: "c1", UID: "uid-1"}, stored.revoked(), relayv1.Goodbye_REVOKED},
		"not registered":        {facts{}, relay.Hello{Cluster: "c1", UID: "uid-1"}, record{}, relayv1.Goodbye_NOT_REGISTERED},
		"expired keys are dropped": {facts{Registration: "kc-1", UID: "uid-1", Record: record{UID: "uid-1", Registration: "kc-1", Keys: []recordKey{
			{SPKI: key2, NotAfter: noon.Add(-time.Second)}, {SPKI: key1, Serial: "a", NotAfter: noon.Add(time.Hour)},
		}}}, relay.Hello{Cluster: "c1", UID: "uid-1"}, stored, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tc.facts.Cluster, tc.facts.Namespace, tc.facts.Now = "c1", "gloo-mesh", noon
			got, no := tc.facts.admit(id, tc.hello)
			if no != nil {
				t.Log(no.Message)
				if no.Reason != tc.reason {
					t.Errorf("refused with %s, want %s", no.Reason, tc.reason)
				}
			} else if tc.reason != 0 {
				t.Errorf("admitted, want %s", tc.reason)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The sentence of the page's "long afternoon": a client certificate copied from one cluster to another. Both names and both UIDs are in it.
func TestCopiedCertificateIsNamed(t *testing.T) {
	f := facts{Cluster: "mgmt", Registration: "kc", UID: "uid-mgmt", NameOfUID: "prod-eu-west-3", Now: noon}
	want := `an agent of cluster "prod-eu-west-3" (kube-system UID uid-prod) comes as "mgmt", which is another cluster (kube-system UID uid-mgmt): ` +
		`give that agent its own name and certificate (relay-client-tls-secret with CN prod-eu-west-3)`
	if diff := cmp.Diff(want, f.whoIs("uid-prod").Message); diff != "" {
		t.Error(diff)
	}
}
