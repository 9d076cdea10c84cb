package relay

import (
	"context"
	"crypto"
	"crypto/x509"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
)

func tooLarge(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// Enrol implements relayv1.EnrolmentServer: a token and a certificate request in, a certificate out.
func (h *Hub) Enrol(ctx context.Context, m *relayv1.EnrolRequest) (*relayv1.EnrolResponse, error) {
	conn, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	a := EnrolAttempt{
		Cluster: mesh.ClusterName(m.GetCluster()), UID: mesh.ClusterUID(m.GetClusterUid()), Token: m.GetToken(), AgentVersion: m.GetAgentVersion(),
		Remote: conn.RemoteAddr().String(),
	}
	pub, r := h.checkEnrolment(&a, m.GetCsrDer())
	var res *relayv1.EnrolResponse
	if r == nil {
		res, r = h.enrol(ctx, a, pub)
	}
	if r != nil {
		h.counters.enrolment(false)
		h.note(r, a.Remote, mesh.ClusterName(clip(string(a.Cluster))))
		return nil, toStatus(r)
	}
	h.counters.enrolment(true)
	h.Allow(a.Cluster)
	h.log.Info("agent enrolled", "cluster", a.Cluster, "remote", a.Remote, "uid", a.UID, "key", a.Key.String())
	return res, nil
}

func (h *Hub) checkEnrolment(a *EnrolAttempt, csr []byte) (crypto.PublicKey, *Refusal) {
	if h.cfg.DisableEnrolment {
		return nil, Refuse(relayv1.Goodbye_BAD_TOKEN, "enrolment with tokens is switched off on this management server: supply a client certificate in %s", family.ClientSecret)
	}
	if err := a.Cluster.Validate(); err != nil {
		return nil, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "enrolment: %s", clip(err.Error()))
	}
	if err := checkAbout(a.UID, a.AgentVersion); err != nil {
		return nil, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "enrolment of %q: %v", a.Cluster, err)
	}
	if a.Token == "" || len(a.Token) > maxTokenBytes {
		return nil, Refuse(relayv1.Goodbye_BAD_TOKEN, "enrolment of %q: a token of %d bytes: want 1 to %d", a.Cluster, len(a.Token), maxTokenBytes)
	}
	pub, err := family.CheckCSR(csr, a.Cluster)
	if err == nil {
		a.Key, err = family.KeyFingerprint(pub)
	}
	if err != nil {
		return nil, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "enrolment of %q: %s", a.Cluster, clip(err.Error()))
	}
	return pub, nil
}

func (h *Hub) enrol(ctx context.Context, a EnrolAttempt, pub crypto.PublicKey) (*relayv1.EnrolResponse, *Refusal) {
	select {
	case h.enrolments <- struct{}{}:
		defer func() { <-h.enrolments }()
	case <-ctx.Done():
		return nil, Refuse(relayv1.Goodbye_OVERLOADED, "too many enrolments at once")
	}
	if r := h.askGate(ctx, "enrolment", func(ctx context.Context) error { return h.cfg.Gate.Enrol(ctx, a) }); r != nil {
		return nil, r
	}
	res, _, r := h.issue(ctx, a.Cluster, pub)
	return res, r
}

// issue signs, and hands out only what the Gate has on record.
func (h *Hub) issue(ctx context.Context, c mesh.ClusterName, pub crypto.PublicKey) (*relayv1.EnrolResponse, Identity, *Refusal) {
	f := h.cfg.Family.Current()
	chain, err := f.IssueClient(pub, c, time.Now(), h.cfg.ClientLifetime)
	if err != nil {
		return nil, Identity{}, Refuse(relayv1.Goodbye_OVERLOADED, "the management server can't issue a certificate for %q: %v", c, err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, Identity{}, Refuse(relayv1.Goodbye_OVERLOADED, "the certificate issued for %q can't be read: %v", c, err)
	}
	id, err := identityOf(c, leaf)
	if err != nil {
		return nil, Identity{}, Refuse(relayv1.Goodbye_OVERLOADED, "the certificate issued for %q: %v", c, err)
	}
	if r := h.askGate(ctx, "certificate", func(ctx context.Context) error { return h.cfg.Gate.Issued(ctx, id) }); r != nil {
		return nil, Identity{}, r
	}
	return &relayv1.EnrolResponse{CertificateChainDer: chain, TrustBundle: &relayv1.TrustBundle{RootDer: f.TrustBundle()}}, id, nil
}

// Renew implements relayv1.RelayServer: a new certificate for a new key. The caller's cluster must be in session with the key it
// calls with, so a revoked key or a copy of an old one gets nothing; the running session goes on under the new key.
func (h *Hub) Renew(ctx context.Context, m *relayv1.RenewRequest) (*relayv1.EnrolResponse, error) {
	conn, err := peerOf(ctx)
	if err != nil {
		return nil, err
	}
	id, err := conn.identity()
	if err != nil {
		r := Refuse(relayv1.Goodbye_BAD_CERTIFICATE, "%s", clip(err.Error()))
		h.note(r, conn.RemoteAddr().String(), mesh.ClusterName(conn.claimed))
		return nil, toStatus(r)
	}
	res, r := h.renew(ctx, conn, id, m.GetCsrDer())
	if r != nil {
		h.note(r, conn.RemoteAddr().String(), id.Cluster)
		return nil, toStatus(r)
	}
	return res, nil
}

func (h *Hub) renew(ctx context.Context, conn *peerConn, id Identity, csr []byte) (*relayv1.EnrolResponse, *Refusal) {
	h.mu.Lock()
	cl := h.clusters[id.Cluster]
	h.mu.Unlock()
	noSession := Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "%q asks for a new certificate, but has no session with the key of its present one", id.Cluster)
	if cl == nil || !cl.runsWith(id.Key) {
		return nil, noSession
	}
	pub, err := family.CheckCSR(csr, id.Cluster)
	if err != nil {
		return nil, Refuse(relayv1.Goodbye_PROTOCOL_ERROR, "renewal for %q: %s", id.Cluster, clip(err.Error()))
	}
	res, renewed, r := h.issue(ctx, id.Cluster, pub)
	if r != nil {
		return nil, r
	}
	if !cl.rebind(id.Key, renewed) { // refused or replaced in the meantime
		return nil, noSession
	}
	conn.rebind(renewed)
	h.counters.renewals.Add(1)
	h.log.Info("certificate renewed", "cluster", id.Cluster, "key", renewed.Key.String(), "notAfter", renewed.NotAfter)
	return res, nil
}
