package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// TestStatusOfRevocation: who is revoked, where that is in force, and who does not care, in words; what is not in force anywhere is a problem.
func TestStatusOfRevocation(t *testing.T) {
	f := trustWorld()
	if revokedOf(f, "") != nil {
		t.Error("nothing is revoked, and something is said")
	}
	f.Policies[0].Status.Revoked = []adminv2.RevokedCertificate{
		{Cluster: "c9", Subject: "CN=c9 g1", Serial: "4711", RevokedAt: end(-time.Hour), NotAfter: end(48 * time.Hour), By: "alice", Reason: "INC-1"},
		{Cluster: "c8", Subject: "CN=c8 g1", Serial: "815", Problem: "can't revoke: cert-manager has no revocation"},
	}
	f.Clusters[0].Status.CaStatus.Revocation = &adminv2.RevocationStatus{State: adminv2.RevocationInForce, Verifiers: 4, Honouring: 3, NotHonoured: []string{"waypoint: no list"}}
	f.Clusters[1].Status.CaStatus.Revocation = &adminv2.RevocationStatus{State: adminv2.RevocationWithheld, Message: "2 sidecars", Verifiers: 2}
	r := trustReportOf(f, "")
	var out bytes.Buffer
	r.print(&out, f.Now, false)
	for _, want := range []string{
		"CN=c9 g1 of c9, serial number 4711, since ", "by alice: INC-1", "in c1: InForce, honoured by 3 of 4 verifiers", "    waypoint: no list", "in c2: Withheld, honoured by 0 of 2 verifiers: 2 sidecars",
		"revoked intermediate 815 of c8: can't revoke: cert-manager has no revocation", "cluster c2 is given no revocation lists: 2 sidecars",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if one := revokedOf(f, "c1"); len(one.Clusters) != 1 || len(one.Certificates) != 2 {
		t.Errorf("%+v", one)
	}
}
