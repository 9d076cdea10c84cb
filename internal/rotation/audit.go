package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
)

// phaseRecord is the record of a phase that began.
func phaseRecord(p *mesh.RootTrustPolicy, before, after *trust.Rotation, why string, now time.Time) audit.Record {
	to := string(after.Phase)
	if after.Back {
		to += " (rolling back)"
	}
	detail := fmt.Sprintf("%s to %s: %s; root %s", from(before), to, why, after.Current.Fingerprint)
	if after.Incoming != nil {
		detail += ", incoming " + after.Incoming.Fingerprint.String()
	}
	return audit.Record{
		At: now, Act: audit.TrustChanged, Source: "rotation", User: p.ChangedBy, Policy: p.Source.Namespace + "/" + p.Source.Name,
		Object: "RootTrustPolicy " + p.Source.Namespace + "/" + p.Source.Name, Detail: detail,
	}
}

func from(r *trust.Rotation) string {
	if r.Phase == "" {
		return "nothing"
	}
	return string(r.Phase)
}

// requestRecord is the record of a person's request, and what became of it.
func requestRecord(v verdict, now time.Time) audit.Record {
	q := v.request
	clusters := make([]string, len(q.Clusters))
	for i, c := range q.Clusters {
		clusters[i] = string(c)
	}
	slices.Sort(clusters)
	return audit.Record{
		At: now, Act: audit.TrustRequested, Source: "rotation", User: q.By, Cluster: strings.Join(clusters, ","), Object: "RotationRequest " + q.Source.Namespace + "/" + q.Source.Name,
		Policy: q.Policy.Namespace + "/" + q.Policy.Name, Detail: fmt.Sprintf("%s because %q: %s, %s", q.Action, q.Reason, v.state, v.message),
	}
}

// issueRecord is the record of a certificate that was signed.
func issueRecord(p *mesh.RootTrustPolicy, c mesh.ClusterName, slot, issuer string, cert trust.Issued, now time.Time) audit.Record {
	issued := &audit.Certificate{Requester: "agent of " + string(c), Fingerprint: cert.Signer.String(), NotAfter: cert.NotAfter.UTC().Format(time.RFC3339), Issuer: issuer}
	if chain, err := pki.ParseCertificates(cert.Chain); err == nil && len(chain) > 0 {
		issued.Serial, issued.Subject, issued.Issuer = chain[0].SerialNumber.Text(16), chain[0].Subject.String(), chain[0].Issuer.String()
	}
	return audit.Record{
		At: now, Act: audit.CertificateIssued, Source: "rotation", Cluster: string(c), Certificate: issued, Policy: p.Source.Namespace + "/" + p.Source.Name, Object: "intermediate " + slot + " of cluster " + string(c),
		Detail: fmt.Sprintf("SHA-256 %s under root %s, until %s, signed by %s", cert.Signer, cert.Root, cert.NotAfter.UTC().Format(time.RFC3339), issuer),
	}
}
