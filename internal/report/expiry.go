package report

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// ReasonExpiring is the reason of Events about certificates that end soon.
const ReasonExpiring = "CertificateExpiring"

// Kinds of certificates that end.
const (
	KindIntermediate = "intermediate" // of a cluster
	KindRoot         = "root"         // of a policy
)

// Expiry is a certificate of the mesh and when it ends.
type Expiry struct {
	Kind                 string
	Cluster              mesh.ClusterName // of an intermediate
	Policy               string           // name of the RootTrustPolicy
	Subject, Fingerprint string
	NotBefore, NotAfter  time.Time
	RenewAt              time.Time // zero: it does not renew by itself
	Refusal              string    // of the certificate authority, for this cluster
}

// Expiries are all of the policies' certificates, what ends first being first. status is what was found in a cluster, nil for nothing.
func Expiries(inputs map[string]trust.Input, status func(mesh.ClusterName) *adminv2.ClusterCAStatus) []Expiry {
	var out []Expiry
	for policy, in := range inputs {
		roots := append([]trust.Root{in.Rotation.Current}, in.Rotation.Passive...)
		if in.Rotation.Incoming != nil {
			roots = append(roots, *in.Rotation.Incoming)
		}
		for i := range roots {
			if c, err := x509.ParseCertificate(roots[i].Certificate); err == nil {
				out = append(out, Expiry{Kind: KindRoot, Policy: policy, Subject: roots[i].Subject, Fingerprint: roots[i].Fingerprint.String(), NotBefore: c.NotBefore, NotAfter: c.NotAfter})
			}
		}
		for i := range in.Fleet {
			name := in.Fleet[i].Name
			st := status(name)
			if st == nil || st.Intermediate == nil || st.Intermediate.NotAfter == nil || st.Intermediate.NotBefore == nil {
				continue
			}
			c := st.Intermediate
			e := Expiry{Kind: KindIntermediate, Cluster: name, Policy: policy, Subject: c.Subject, Fingerprint: c.Fingerprint, NotBefore: c.NotBefore.Time, NotAfter: c.NotAfter.Time}
			if st.Owner == mesh.OwnerValue {
				e.RenewAt = mesh.RenewAt(e.NotBefore, e.NotAfter, cmp.Or(in.Want.RenewRatio, 0.5), mesh.DefaultLeafTTL)
				e.Refusal = strings.Join(st.Problems, "; ")
			}
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Expiry) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
	return out
}

// Warning is what is to be said of it now; step names how far it is: each is said once. Empty: nothing. A root is warned of 90, 30 and 7 days before, an intermediate 30, 7 and
// 1; of shorter lives only what is less than half of it. An intermediate is warned of too when its renewal is overdue by a tenth of its life.
func (e *Expiry) Warning(now time.Time) (step, message string) {
	const day = 24 * time.Hour
	left, life := e.NotAfter.Sub(now), e.NotAfter.Sub(e.NotBefore)
	steps := []int{30, 7, 1}
	if e.Kind == KindRoot {
		steps = []int{90, 30, 7}
	}
	what, fix := fmt.Sprintf("intermediate %s of cluster %s", e.Subject, e.Cluster), "make another one and replace Secret cacerts, or let a RootTrustPolicy adopt it"
	switch {
	case e.Kind == KindRoot:
		what, fix = "root "+e.Subject, "rotate it: meshctl trust rotate --reason 'the root expires'"
	case !e.RenewAt.IsZero():
		fix = "it renews by itself when its cluster is connected and the certificate authority answers: meshctl trust status"
		if e.Refusal != "" {
			fix += "; at present: " + e.Refusal
		}
	}
	if left <= 0 {
		return "expired", fmt.Sprintf("%s has expired at %s; %s", what, e.NotAfter.UTC().Format(time.RFC3339), fix)
	}
	for _, days := range slices.Backward(steps) {
		if at := time.Duration(days) * day; left <= at && at < life/2 {
			return fmt.Sprintf("%dd", days), fmt.Sprintf("%s ends at %s, in less than %d days; %s", what, e.NotAfter.UTC().Format(time.RFC3339), days, fix)
		}
	}
	if !e.RenewAt.IsZero() && now.After(e.RenewAt.Add(life/10)) {
		return "overdue", fmt.Sprintf("%s should have been renewed at %s and ends at %s; %s", what, e.RenewAt.UTC().Format(time.RFC3339), e.NotAfter.UTC().Format(time.RFC3339), fix)
	}
	return "", ""
}
