package report

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

func TestExpiryWarning(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		kind     string
		left     time.Duration
		life     time.Duration
		renewAt  time.Duration // before its end; 0: not by itself
		step     string
		contains string
	}{
		"a root with time":               {KindRoot, 91 * day, 3650 * day, 0, "", ""},
		"a root with 90 days":            {KindRoot, 90 * day, 3650 * day, 0, "90d", "meshctl trust rotate"},
		"a root with 8 days":             {KindRoot, 8 * day, 3650 * day, 0, "30d", ""},
		"a root with 7 days":             {KindRoot, 7 * day, 3650 * day, 0, "7d", ""},
		"a root that has ended":          {KindRoot, -time.Hour, 3650 * day, 0, "expired", "has expired at"},
		"an intermediate of somebody":    {KindIntermediate, 29 * day, 365 * day, 0, "30d", "RootTrustPolicy adopt"},
		"an intermediate, one day":       {KindIntermediate, 20 * time.Hour, 365 * day, 0, "1d", ""},
		"before its renewal":             {KindIntermediate, 200 * day, 365 * day, 182 * day, "", ""},
		"renewal due":                    {KindIntermediate, 180 * day, 365 * day, 182 * day, "", ""},
		"renewal overdue":                {KindIntermediate, 140 * day, 365 * day, 182 * day, "overdue", "should have been renewed"},
		"one that lives for a day":       {KindIntermediate, 20 * time.Hour, day, 12 * time.Hour, "", ""},
		"one that lives for a day, late": {KindIntermediate, 9 * time.Hour, day, 12 * time.Hour, "overdue", "at present: Vault is sealed"},
		"one that lives for ten days":    {KindIntermediate, 6 * day, 10 * day, 5 * day, "", ""},
	} {
		e := Expiry{Kind: c.kind, Cluster: "prod", Policy: "p", Subject: "CN=x", NotAfter: now.Add(c.left), NotBefore: now.Add(c.left - c.life), Refusal: "Vault is sealed"}
		if c.renewAt > 0 {
			e.RenewAt = e.NotAfter.Add(-c.renewAt)
		}
		step, message := e.Warning(now)
		if step != c.step || !strings.Contains(message, c.contains) || (step == "") != (message == "") {
			t.Errorf("%s: %q, %q; want %q, %q", name, step, message, c.step, c.contains)
		}
	}
}

func TestExpiries(t *testing.T) {
	t.Parallel()
	at := func(h int) *metav1.Time { return &metav1.Time{Time: time.Unix(0, 0).Add(time.Duration(h) * time.Hour)} }
	inputs := map[string]trust.Input{"p": {Fleet: []trust.Cluster{{Name: "ours"}, {Name: "theirs"}, {Name: "silent"}, {Name: "unknown"}}, Want: trust.Want{RenewRatio: 0.5}}}
	statuses := map[mesh.ClusterName]*adminv2.ClusterCAStatus{
		"ours":   {Owner: mesh.OwnerValue, Problems: []string{"Vault is sealed"}, Intermediate: &adminv2.CACertificate{Fingerprint: "1", NotBefore: at(0), NotAfter: at(100)}},
		"theirs": {Owner: "helm", Intermediate: &adminv2.CACertificate{Fingerprint: "2", NotBefore: at(0), NotAfter: at(50)}},
		"silent": {},
	}
	got := Expiries(inputs, func(c mesh.ClusterName) *adminv2.ClusterCAStatus { return statuses[c] })
	if len(got) != 2 || got[0].Cluster != "theirs" || !got[0].RenewAt.IsZero() || got[1].Cluster != "ours" || !got[1].RenewAt.Equal(at(50).Time) || got[1].Refusal != "Vault is sealed" {
		t.Errorf("%+v", got)
	}
}
