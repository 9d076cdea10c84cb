package cli

import (
	"fmt"
	"io"
	"time"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// revokedReport is what is revoked, and what each cluster makes of it.
type revokedReport struct {
	Certificates []adminv2.RevokedCertificate         `json:"certificates"`
	Clusters     map[string]*adminv2.RevocationStatus `json:"clusters,omitempty"`
}

// revokedOf gathers it; nil: nothing is revoked, and no cluster has lists. only is the one cluster that is asked for, empty: all.
func revokedOf(f *trustFacts, only string) *revokedReport {
	r := &revokedReport{Certificates: []adminv2.RevokedCertificate{}, Clusters: map[string]*adminv2.RevocationStatus{}}
	for i := range f.Policies {
		r.Certificates = append(r.Certificates, f.Policies[i].Status.Revoked...)
	}
	for i := range f.Clusters {
		if s := f.Clusters[i].Status.CaStatus; s != nil && s.Revocation != nil && (only == "" || only == f.Clusters[i].Name) {
			r.Clusters[f.Clusters[i].Name] = s.Revocation
		}
	}
	if len(r.Certificates)+len(r.Clusters) == 0 {
		return nil
	}
	return r
}

// problems are revocations that are on no list, and clusters that get no lists.
func (r *revokedReport) problems() []string {
	var out []string
	for _, c := range r.Certificates {
		if c.Problem != "" {
			out = append(out, fmt.Sprintf("revoked intermediate %s of %s: %s", c.Serial, c.Cluster, c.Problem))
		}
	}
	for _, name := range sortedKeys(r.Clusters) {
		if s := r.Clusters[name]; s.State == adminv2.RevocationWithheld {
			out = append(out, fmt.Sprintf("cluster %s is given no revocation lists: %s", name, s.Message))
		}
	}
	return out
}

func (r *revokedReport) print(w io.Writer, now time.Time) {
	fmt.Fprintln(w, "\nRevoked:")
	for _, c := range r.Certificates {
		fmt.Fprintf(w, "  %s of %s, serial number %s", c.Subject, c.Cluster, c.Serial)
		if c.RevokedAt != nil {
			fmt.Fprintf(w, ", since %s", c.RevokedAt.UTC().Format(time.RFC3339))
		}
		if c.NotAfter != nil && c.NotAfter.After(now) {
			fmt.Fprintf(w, ", would have ended in %s", short(c.NotAfter.Sub(now)))
		}
		if c.By != "" {
			fmt.Fprintf(w, ", by %s", c.By)
		}
		fmt.Fprintf(w, ": %s\n", firstOf(c.Reason, "no reason given"))
	}
	for _, name := range sortedKeys(r.Clusters) {
		s := r.Clusters[name]
		fmt.Fprintf(w, "  in %s: %s, honoured by %d of %d verifiers", name, s.State, s.Honouring, s.Verifiers)
		if s.Message != "" {
			fmt.Fprintf(w, ": %s", s.Message)
		}
		fmt.Fprintln(w)
		for _, why := range s.NotHonoured {
			fmt.Fprintf(w, "    %s\n", why)
		}
	}
}
