package cli

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// soon is when a certificate of a CA that has not been renewed is a problem.
const soon = 7 * 24 * time.Hour

// certificateRow is one certificate of the fleet.
type certificateRow struct {
	Kind        string       `json:"kind"`              // root, intermediate, leaf, relay
	Cluster     string       `json:"cluster,omitempty"` // empty: of all
	Subject     string       `json:"subject"`
	Issuer      string       `json:"issuer,omitempty"` // of a root: who holds its key
	Use         string       `json:"use"`
	NotAfter    *metav1.Time `json:"notAfter,omitempty"`
	DaysLeft    *float64     `json:"daysLeft,omitempty"`
	Fingerprint string       `json:"fingerprint,omitempty"`
	Serial      string       `json:"serial,omitempty"`
	Key         string       `json:"key,omitempty"`
	Generation  int64        `json:"generation,omitempty"`
}

func (c *certificateRow) finish(now time.Time) {
	if c.NotAfter != nil {
		days := float64(int64(c.NotAfter.Sub(now).Hours()/24*10)) / 10
		c.DaysLeft = &days
	}
}

// trouble says what is wrong with its end. Leaves and the relay's certificates are renewed when they are near it.
func (c *certificateRow) trouble(now time.Time) string {
	if c.NotAfter == nil {
		return ""
	}
	d := c.NotAfter.Sub(now)
	switch what := c.Kind + " " + c.Subject; {
	case d <= 0 && c.Cluster != "":
		return fmt.Sprintf("cluster %s: %s has expired", c.Cluster, what)
	case d <= 0:
		return what + " has expired"
	case d < soon && c.Kind == "root":
		return fmt.Sprintf("%s ends in %s: begin a rotation (meshctl trust rotate)", what, short(d))
	case d < soon && c.Kind == "intermediate":
		return fmt.Sprintf("cluster %s: %s ends in %s and has not been renewed", c.Cluster, what, short(d))
	}
	return ""
}

// sortCertificates puts what ends first first; what has no known end comes last.
func sortCertificates(all []certificateRow) {
	slices.SortStableFunc(all, func(a, b certificateRow) int {
		switch {
		case a.NotAfter == nil && b.NotAfter == nil:
		case a.NotAfter == nil:
			return 1
		case b.NotAfter == nil:
			return -1
		case !a.NotAfter.Equal(b.NotAfter):
			return a.NotAfter.Compare(b.NotAfter.Time)
		}
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Subject, b.Subject))
	})
}

func fleetCertificates(f *trustFacts, only string) []certificateRow {
	clusters := f.Clusters
	if only != "" {
		clusters = slices.DeleteFunc(slices.Clone(clusters), func(k adminv2.KubernetesCluster) bool { return k.Name != only })
	}
	out := rootRows(f.Policies, clusters, only)
	for i := range clusters {
		if s := clusters[i].Status.CaStatus; s != nil {
			out = append(out, signerRows(clusters[i].Name, s)...)
			out = append(out, leafRows(clusters[i].Name, s)...)
		}
	}
	if only == "" {
		out = append(out, relayRows(f)...)
	}
	return out
}

// rootRows are the policies' roots, then those that clusters trust besides.
func rootRows(policies []adminv2.RootTrustPolicy, clusters []adminv2.KubernetesCluster, only string) []certificateRow {
	var out []certificateRow
	trusting := func(fingerprint string) (names []string) {
		for i := range clusters {
			if s := clusters[i].Status.CaStatus; s != nil && slices.ContainsFunc(s.Roots, func(c adminv2.CACertificate) bool { return c.Fingerprint == fingerprint }) {
				names = append(names, clusters[i].Name)
			}
		}
		return names
	}
	seen := map[string]bool{}
	for i := range policies {
		for _, r := range policies[i].Status.Roots {
			by := trusting(r.Fingerprint)
			if seen[r.Fingerprint] || only != "" && len(by) == 0 {
				continue
			}
			seen[r.Fingerprint] = true
			out = append(out, certificateRow{
				Kind: "root", Subject: r.Subject, Issuer: r.Issuer, Use: fmt.Sprintf("%s, trusted by %s", strings.ToLower(string(r.Role)), trusters(by, only)),
				NotAfter: r.NotAfter, Fingerprint: r.Fingerprint, Generation: r.Generation,
			})
		}
	}
	for i := range clusters {
		s := clusters[i].Status.CaStatus
		if s == nil {
			continue
		}
		for _, r := range s.Roots {
			if seen[r.Fingerprint] {
				continue
			}
			seen[r.Fingerprint] = true
			row := caRow("root", "", r)
			row.Issuer, row.Use = "itself", "of no policy, trusted by "+trusters(trusting(r.Fingerprint), only)
			out = append(out, row)
		}
	}
	return out
}

func trusters(names []string, only string) string {
	if only != "" || len(names) == 1 {
		return strings.Join(names, ", ")
	}
	return count(len(names), "cluster")
}

func caRow(kind, cluster string, c adminv2.CACertificate) certificateRow {
	return certificateRow{
		Kind: kind, Cluster: cluster, Subject: c.Subject, Issuer: c.Issuer, NotAfter: c.NotAfter, Fingerprint: c.Fingerprint, Serial: c.Serial, Key: c.Key, Generation: c.Generation,
	}
}

// signerRows are what the istiods of a cluster sign with: one certificate, and while they change or disagree another by its fingerprint alone.
func signerRows(cluster string, s *adminv2.ClusterCAStatus) []certificateRow {
	users := map[string][]string{}
	var others []string
	for _, i := range s.Istiods {
		if i.Signer == "" {
			continue
		}
		if users[i.Signer] == nil && (s.Intermediate == nil || i.Signer != s.Intermediate.Fingerprint) {
			others = append(others, i.Signer)
		}
		users[i.Signer] = append(users[i.Signer], i.Pod)
	}
	owner := ""
	if s.Owner != "" && s.Owner != mesh.OwnerValue {
		owner = "; owned by " + s.Owner
	}
	var out []certificateRow
	if s.Intermediate != nil {
		row := caRow("intermediate", cluster, *s.Intermediate)
		row.Use = "in cacerts" + owner
		if pods := users[row.Fingerprint]; len(pods) > 0 {
			row.Use = fmt.Sprintf("signs, %s%s", count(len(pods), "istiod"), owner)
		}
		out = append(out, row)
	}
	for _, f := range others {
		out = append(out, certificateRow{Kind: "intermediate", Cluster: cluster, Subject: "SHA-256 " + f[:min(len(f), 16)] + "…", Use: "signs, " + strings.Join(users[f], ", "), Fingerprint: f})
	}
	return out
}

// leafRows are the latest certificates of a cluster's workloads, by kind of verifier.
func leafRows(cluster string, s *adminv2.ClusterCAStatus) []certificateRow {
	var out []certificateRow
	for _, v := range s.Verifiers {
		row := certificateRow{Kind: "leaf", Cluster: cluster, Subject: "latest of " + v.Kind, NotAfter: v.LeafUntil, Issuer: "several intermediates"}
		switch {
		case v.Unknown == v.Total:
			row.Issuer = "unknown"
		case s.Intermediate != nil && v.Presenting == v.Total:
			row.Issuer = s.Intermediate.Subject
		}
		row.Use = fmt.Sprintf("%d/%d trust, %d/%d present", v.Trusting, v.Total, v.Presenting, v.Total)
		if v.Unknown > 0 {
			row.Use += fmt.Sprintf(", %d unknown", v.Unknown)
		}
		out = append(out, row)
	}
	return out
}

// relayRows are the public certificates of the relay's Secrets.
func relayRows(f *trustFacts) []certificateRow {
	var out []certificateRow
	add := func(c *x509.Certificate, use string) {
		row := certificateRow{
			Kind: "relay", Subject: c.Subject.String(), Issuer: c.Issuer.String(), Use: use, NotAfter: &metav1.Time{Time: c.NotAfter},
			Fingerprint: mesh.FingerprintOf(c.Raw).String(), Serial: fmt.Sprintf("%x", c.SerialNumber),
		}
		if !slices.ContainsFunc(out, func(o certificateRow) bool { return o.Fingerprint == row.Fingerprint }) {
			out = append(out, row)
		}
	}
	for _, s := range []struct{ name, use string }{{secretRoot, "root"}, {secretSigning, "signing CA"}, {secretServer, "server"}, {secretClient, "client of the server's own cluster"}} {
		if f.Relay[s.name] == nil {
			continue
		}
		if certs := parseCertificates(f.Relay[s.name].Data["tls.crt"]); len(certs) > 0 {
			add(certs[0], s.use)
		}
		if s.name == secretRoot {
			for _, c := range parseCertificates(f.Relay[s.name].Data["ca.crt"]) {
				add(c, "root that agents trust besides")
			}
		}
	}
	return out
}

func printCertificates(w io.Writer, all []certificateRow, now time.Time, wide bool) {
	if len(all) == 0 {
		fmt.Fprintln(w, "No certificate is known.")
		return
	}
	head := []string{"LEFT", "KIND", "CLUSTER", "SUBJECT", "ISSUED BY", "USE"}
	if wide {
		head = append(head, "UNTIL", "KEY", "SERIAL", "SHA-256")
	}
	rows := make([][]string, 0, len(all))
	for _, c := range all {
		ends, until := "unknown", "unknown"
		if c.NotAfter != nil {
			ends, until = timeLeft(c.NotAfter.Sub(now)), c.NotAfter.UTC().Format(time.RFC3339)
		}
		row := []string{ends, c.Kind, firstOf(c.Cluster, "-"), c.Subject, firstOf(c.Issuer, "-"), c.Use}
		if wide {
			row = append(row, until, firstOf(c.Key, "-"), firstOf(c.Serial, "-"), firstOf(c.Fingerprint, "-"))
		}
		rows = append(rows, row)
	}
	printTable(w, "", head, rows)
}
