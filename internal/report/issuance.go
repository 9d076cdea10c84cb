package report

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

const istioNamespace = "istio-system"

// Issuance is how the clusters of one policy get their intermediates, for people to watch: one IssuedCertificate and at most one PodBounceDirective for each cluster, one
// CertificateRequest for each slot that it is to hold. There are certificates in it, and no keys.
type Issuance struct {
	Certificates []issuancev2.IssuedCertificate
	// Requests without a CertificateSigningRequest have been answered: who has them already keeps the one they have.
	Requests []issuancev2.CertificateRequest
	Bounces  []issuancev2.PodBounceDirective
}

// Issuances are those of in. csr is the request (DER) of a slot that a cluster has sent, nil for none.
func Issuances(in Trust, csr func(c mesh.ClusterName, slot string) []byte) Issuance {
	var out Issuance
	for i := range in.Input.Fleet {
		c := &in.Input.Fleet[i]
		d, m := in.Step.Directives[c.Name], in.Step.Rotation.Members[c.Name]
		id := cmp.Or(m.Fresh, m.New, m.Old)
		if d == nil || id == "" {
			continue
		}
		o := issuing{in: &in, c: c, meta: metav1.ObjectMeta{Name: "istiod-" + istioNamespace + "-" + string(c.Name), Namespace: in.Policy.Source.Namespace}}
		o.mesh = &issuancev2.ObjectReference{Name: "istiod", Namespace: istioNamespace, Cluster: string(c.Name)}
		for _, slot := range d.Intermediates {
			if slot.Take != "" {
				continue
			}
			request := o.request(slot, csr(c.Name, slot.ID))
			out.Requests = append(out.Requests, request)
			if slot.ID == id {
				out.Certificates = append(out.Certificates, o.certificate(slot))
			}
		}
		if d.Restart != (mesh.RestartOrder{}) {
			out.Bounces = append(out.Bounces, o.bounce(d.Restart))
		}
	}
	return out
}

// issuing is one cluster.
type issuing struct {
	in   *Trust
	c    *trust.Cluster
	meta metav1.ObjectMeta
	mesh *issuancev2.ObjectReference
}

// failed says what keeps a slot from being certified, or used.
func (o *issuing) failed(slot string) string {
	if _, has := o.c.Issued[slot]; !has {
		return o.in.Refusals[o.c.Name]
	}
	if o.c.Observation != nil {
		for _, s := range o.c.Observation.Slots {
			if s.ID == slot && s.Checked != "" {
				return "the cluster refuses it: " + s.Checked
			}
		}
	}
	return ""
}

func (o *issuing) certificate(slot mesh.IntermediateOrder) issuancev2.IssuedCertificate {
	p := o.in.Policy
	out := issuancev2.IssuedCertificate{ObjectMeta: o.meta, Spec: issuancev2.IssuedCertificateSpec{
		Hosts: slot.URIs, IssuedCertificateSecret: &adminv2.ObjectRef{Name: "cacerts", Namespace: istioNamespace}, CertOptions: commonCertOptions(p.Intermediate),
		MeshRef: o.mesh, AutoRestartPods: p.Restart,
	}}
	switch {
	case p.Authority.Generated != nil:
		out.Spec.MgmtServerCa = &issuancev2.SigningCA{}
	case p.Authority.Secret != "":
		out.Spec.MgmtServerCa = &issuancev2.SigningCA{SigningCertificateSecret: &adminv2.ObjectRef{Name: p.Authority.Secret, Namespace: p.Source.Namespace}}
	default:
		out.Spec.AgentCa = &issuancev2.AgentCA{}
	}
	i, has := o.c.Issued[slot.ID]
	st := &out.Status
	st.Error = o.failed(slot.ID)
	if has {
		st.Fingerprint, st.NotAfter = i.Signer.String(), stamp(i.NotAfter)
	}
	switch {
	case st.Error != "":
		st.State = issuancev2.IssuedFailed
	case has && everyIstiodSigns(o.c.Observation, i.Signer):
		st.State = issuancev2.IssuedFinished
	case has:
		st.State = issuancev2.IssuedIssued
	case o.c.Requests[slot.ID]:
		st.State = issuancev2.IssuedRequested
	default:
		st.State = issuancev2.IssuedPending
	}
	return out
}

func everyIstiodSigns(o *mesh.TrustObservation, signer mesh.Fingerprint) bool {
	if o == nil || len(o.Istiods) == 0 {
		return false
	}
	for i := range o.Istiods {
		if o.Istiods[i].Signer != signer {
			return false
		}
	}
	return true
}

// commonCertOptions are o in the API's words.
func commonCertOptions(o mesh.CertOptions) *adminv2.CommonCertOptions {
	out := &adminv2.CommonCertOptions{OrgName: o.Organization, SecretRotationGracePeriodRatio: o.RenewRatio, TTLDays: uint32(o.TTL / (24 * time.Hour))} //nolint:gosec // days
	if bits, ok := strings.CutPrefix(o.Algorithm, "RSA-"); ok {
		n, _ := strconv.ParseUint(bits, 10, 32)
		out.RSAKeySizeBytes = uint32(n)
	} else {
		out.KeyAlgorithm = adminv2.KeyAlgorithm(o.Algorithm)
	}
	return out
}

func (o *issuing) request(slot mesh.IntermediateOrder, csr []byte) issuancev2.CertificateRequest {
	out := issuancev2.CertificateRequest{ObjectMeta: o.meta}
	out.Name += "-" + strings.ToLower(slot.ID)
	if csr != nil {
		out.Spec.CertificateSigningRequest = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	}
	st := &out.Status
	st.State, st.Error = issuancev2.RequestPending, o.failed(slot.ID)
	if i, has := o.c.Issued[slot.ID]; has {
		st.State, st.SigningRootCa = issuancev2.RequestFinished, slot.Root
		if root := o.root(i.Root); root != nil {
			st.SigningRootCa = root
		}
		if at := bytes.Index(i.Chain, []byte("-----END CERTIFICATE-----\n")); at >= 0 {
			end := at + len("-----END CERTIFICATE-----\n")
			st.SignedCertificate, st.CertChain = i.Chain[:end], i.Chain[end:]
		}
	}
	if st.Error != "" {
		st.State = issuancev2.RequestFailed
	}
	return out
}

// root is the PEM of one of the rotation's roots.
func (o *issuing) root(f mesh.Fingerprint) []byte {
	r := &o.in.Step.Rotation
	for _, root := range []*trust.Root{&r.Current, r.Incoming} {
		if root != nil && root.Fingerprint == f {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return nil
}

// bounce is what is restarted, in order: istiods first; then, when each namespace has the new roots, ztunnels, gateways and waypoints.
func (o *issuing) bounce(order mesh.RestartOrder) issuancev2.PodBounceDirective {
	out := issuancev2.PodBounceDirective{ObjectMeta: o.meta, Spec: issuancev2.PodBounceDirectiveSpec{MeshRef: o.mesh}}
	add := func(namespace, label, value string, sync *issuancev2.RootCertSync) {
		out.Spec.PodsToBounce = append(out.Spec.PodsToBounce, issuancev2.PodSelector{Namespace: namespace, Labels: map[string]string{label: value}, RootCertSync: sync})
	}
	if order.Istiod != "" {
		add(istioNamespace, "app", "istiod", nil)
	}
	if order.DataPlane != "" {
		const managed = "gateway.istio.io/managed"
		add(istioNamespace, "app", "ztunnel", &issuancev2.RootCertSync{ //nolint:gosec // names
			SecretRef: &adminv2.ObjectRef{Name: "cacerts", Namespace: istioNamespace}, SecretKey: "root-cert.pem",
			ConfigMapRef: &adminv2.ObjectRef{Name: "istio-ca-root-cert", Namespace: istioNamespace}, ConfigMapKey: "root-cert.pem",
		})
		add("", managed, "istio.io-eastwest-controller", nil)
		add("", managed, "istio.io-gateway-controller", nil)
		add("", managed, "istio.io-mesh-controller", nil)
	}
	out.Status.State = issuancev2.BouncePending
	if obs := o.c.Observation; obs != nil {
		switch {
		case obs.Restarted.Done == order:
			out.Status.State = issuancev2.BounceFinished
		case obs.Restarted.Doing != "":
			out.Status.State = issuancev2.BounceBouncing
		}
	}
	return out
}
