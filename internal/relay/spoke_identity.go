package relay

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
)

// credential is a certificate that can be shown, with its key.
type credential struct {
	cert     tls.Certificate
	leaf     *x509.Certificate
	identity Identity
}

// loadCredential reads what is stored. The error says why it won't do; leaf is set all the same if it can be shown to the hub.
func loadCredential(st StoredIdentity, cluster mesh.ClusterName, now time.Time) (credential, error) {
	if len(st.ChainPEM) == 0 {
		return credential{}, fmt.Errorf("cluster %q has neither a client certificate (%s) nor a registration token: run `meshctl cluster register %s`", cluster, family.ClientSecret, cluster)
	}
	cert, err := tls.X509KeyPair(st.ChainPEM, st.KeyPEM)
	if err != nil {
		return credential{}, fmt.Errorf("%s: tls.crt and tls.key don't go together: %w", family.ClientSecret, err)
	}
	id, err := identityOf(mesh.ClusterName(cert.Leaf.Subject.CommonName), cert.Leaf)
	if err != nil {
		return credential{}, fmt.Errorf("%s: %w", family.ClientSecret, err)
	}
	c := credential{cert, cert.Leaf, id}
	switch {
	case id.Cluster != cluster:
		return c, fmt.Errorf("%s holds the certificate of cluster %q, but this is %q: it was copied from another cluster", family.ClientSecret, id.Cluster, cluster)
	case !now.Before(id.NotAfter):
		return c, fmt.Errorf("%s: the certificate expired at %s (it is %s here)", family.ClientSecret, id.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return c, nil
}

// enrol exchanges the token for a certificate. The key is stored before it is used: if we die between the hub's answer and storing
// it, the next attempt asks with the same key, which is answered again although the token has been used.
func (s *Spoke) enrol(ctx context.Context, st StoredIdentity) (StoredIdentity, credential, error) {
	key, err := family.ParseKey(st.PendingKey)
	if err != nil {
		if key, err = family.NewKey(); err != nil {
			return st, credential{}, err
		}
		if st.PendingKey, err = family.KeyPEM(key); err != nil {
			return st, credential{}, err
		}
		if err := s.cfg.Identity.Save(ctx, st); err != nil {
			return st, credential{}, fmt.Errorf("store the new key: %w", err)
		}
	}
	csr, err := family.NewCSR(key, s.cfg.Cluster)
	if err != nil {
		return st, credential{}, err
	}
	conn, err := s.dial(st, false)
	if err != nil {
		return st, credential{}, err
	}
	defer conn.Close()
	callCtx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	res, err := relayv1.NewEnrolmentClient(conn).Enrol(callCtx, &relayv1.EnrolRequest{
		Cluster: string(s.cfg.Cluster), ClusterUid: string(s.cfg.UID), Token: st.Token, CsrDer: csr, AgentVersion: s.cfg.Version,
	})
	if err != nil {
		return st, credential{}, conn.explain(err)
	}
	st.TokenUsed = true
	st, cred, err := s.adopt(ctx, st, key, res)
	if err != nil {
		return st, cred, err
	}
	s.log.Info("enrolled", "cluster", s.cfg.Cluster, "key", cred.identity.Key.String(), "notAfter", cred.identity.NotAfter)
	return st, cred, nil
}

// adopt stores a certificate that the hub has issued for key.
func (s *Spoke) adopt(ctx context.Context, st StoredIdentity, key crypto.Signer, res *relayv1.EnrolResponse) (StoredIdentity, credential, error) {
	keyPEM, err := family.KeyPEM(key)
	if err != nil {
		return st, credential{}, err
	}
	st.KeyPEM, st.ChainPEM = keyPEM, family.CertPEM(res.GetCertificateChainDer()...)
	cred, err := loadCredential(st, s.cfg.Cluster, time.Now().Add(-family.Skew)) // an agent's clock may be ahead
	if err != nil {
		return st, credential{}, fmt.Errorf("the management server issued a certificate that is of no use: %w", err)
	}
	if roots, err := s.checkBundle(st, res.GetTrustBundle()); err != nil {
		s.log.Warn("trust bundle not taken over", "error", err)
	} else {
		st.Roots = roots
	}
	st.PendingKey = nil
	if err := s.cfg.Identity.Save(ctx, st); err != nil {
		return st, credential{}, fmt.Errorf("store the new certificate: %w", err)
	}
	st.TokenUsed = false // said once
	return st, cred, nil
}

const maxRoots = 32

// checkBundle reads a trust bundle. It must have a root in common with the present one: that is what lets the present server's
// certificate go on verifying, and keeps a mistake on the other side from cutting us off.
func (s *Spoke) checkBundle(st StoredIdentity, b *relayv1.TrustBundle) ([]byte, error) {
	if n := len(b.GetRootDer()); n == 0 || n > maxRoots {
		return nil, fmt.Errorf("a trust bundle of %d roots: want 1 to %d", n, maxRoots)
	}
	held, err := family.ParseCerts(st.Roots)
	if err != nil {
		return nil, fmt.Errorf("stored roots: %w", err)
	}
	common := false
	for _, der := range b.GetRootDer() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: %w", err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("trust bundle: %q is not a CA", c.Subject.CommonName)
		}
		common = common || slices.ContainsFunc(held, c.Equal)
	}
	if !common {
		return nil, errors.New("the trust bundle has no root in common with the present one")
	}
	return family.CertPEM(b.GetRootDer()...), nil
}

// learn stores a trust bundle that is new, and returns the identity as stored.
func (s *Spoke) learn(ctx context.Context, st StoredIdentity, b *relayv1.TrustBundle) StoredIdentity {
	roots, err := s.checkBundle(st, b)
	if err != nil {
		s.log.Warn("trust bundle not taken over", "error", err)
		return st
	}
	if string(roots) == string(st.Roots) {
		return st
	}
	next := st
	next.Roots = roots
	if err := s.cfg.Identity.Save(ctx, next); err != nil {
		s.log.Error("trust bundle not stored; it is kept until the next connection", "error", err)
		return st
	}
	s.log.Info("trust bundle updated", "roots", len(b.GetRootDer()))
	return next
}

// hubConn is a gRPC connection that remembers why its TLS handshake failed: gRPC tells only a string.
type hubConn struct {
	*grpc.ClientConn
	creds *spokeCredentials
}

type spokeCredentials struct {
	credentials.TransportCredentials
	mu  sync.Mutex
	err error
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *spokeCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (c *spokeCredentials) Clone() credentials.TransportCredentials { return c }

// dial prepares a connection; gRPC makes it with the first call. With client, the certificate in use is shown.
func (s *Spoke) dial(st StoredIdentity, client bool) (*hubConn, error) {
	roots, err := family.ParseCerts(st.Roots)
	if err != nil || len(roots) == 0 {
		return nil, fmt.Errorf("%s has no usable ca.crt, so the management server can't be verified: copy ca.crt from the management cluster, or run `meshctl cluster register %s`", family.RootSecret, s.cfg.Cluster)
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: s.cfg.Authority}
	if client {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := s.credential()
			return &c.cert, nil
		}
	}
	creds := &spokeCredentials{TransportCredentials: credentials.NewTLS(conf)}
	cc, err := grpc.NewClient("passthrough:///"+s.cfg.ServerAddress,
		grpc.WithTransportCredentials(creds), grpc.WithContextDialer(s.cfg.Dial), grpc.WithAuthority(s.cfg.Authority),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(16<<10),
	)
	if err != nil {
		return nil, fmt.Errorf("management server %s: %w", s.cfg.ServerAddress, err)
	}
	return &hubConn{cc, creds}, nil
}

// explain makes a sentence of an error of gRPC.
func (c *hubConn) explain(err error) error {
	if r := refusalIn(err); r != nil {
		return r
	}
	c.creds.mu.Lock()
	tlsErr := c.creds.err
	c.creds.mu.Unlock()
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(tlsErr, &unknown):
		issuer := "unknown"
		if unknown.Cert != nil {
			issuer = unknown.Cert.Issuer.CommonName
		}
		return fmt.Errorf("the management server's certificate (issuer %q) is not signed by any root in %s: the address leads to another installation, or the root was replaced while this agent was away; compare ca.crt with the management cluster's, or run `meshctl cluster register` again: %w", issuer, family.RootSecret, tlsErr)
	case errors.As(tlsErr, &host):
		return fmt.Errorf("the management server's certificate is not valid for the name it was reached by; set the relay authority (glooAgent.relay.authority) to one of its names: %w", tlsErr)
	case errors.As(tlsErr, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the management server's certificate is not valid at this time; compare the clocks of both clusters, then look at %s: %w", family.ServerSecret, tlsErr)
	case tlsErr != nil:
		return fmt.Errorf("TLS with the management server failed: %w", tlsErr)
	case status.Code(err) == codes.Unimplemented:
		return fmt.Errorf("what answers at the relay address is not an Ambit management server: %w", err)
	}
	return err
}
