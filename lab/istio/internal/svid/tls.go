package svid

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
)

// ServerTLS is the server side of mutual TLS for HBONE: it asks every peer for a
// certificate of the roots of the moment, which it lists by name, and judges it
// by them. Session tickets are off: a resumed session would carry a trust
// decision made under older roots. refused, when not nil, hears of peers turned
// away.
func (id *Identity) ServerTLS(refused func(error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := id.now.Load()
			if now == nil {
				return nil, errors.New("no certificate yet")
			}
			return &tls.Config{
				MinVersion:             tls.VersionTLS12,
				NextProtos:             []string{"h2"},
				Certificates:           []tls.Certificate{*now.cert},
				ClientAuth:             tls.RequireAnyClientCert,
				ClientCAs:              now.roots,
				SessionTicketsDisabled: true,
				VerifyConnection: func(cs tls.ConnectionState) error {
					err := id.inbound(cs.PeerCertificates, now.roots)
					if err != nil && refused != nil {
						refused(err)
					}
					return err
				},
			}, nil
		},
	}
}

// inbound accepts a client that the roots vouch for and that is of the own
// trust domain, as ztunnel does (facts: ztunnel ignores aliases).
func (id *Identity) inbound(chain []*x509.Certificate, roots *x509.CertPool) error {
	peer, err := Verify(chain, roots, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	if Domain(peer) != Domain(id.cfg.ID) {
		return fmt.Errorf("peer %s is of another trust domain than %s", peer, id.cfg.ID)
	}
	return nil
}

// Domain is the trust domain of a SPIFFE ID.
func Domain(spiffeID string) string {
	td, _, _ := strings.Cut(strings.TrimPrefix(spiffeID, "spiffe://"), "/")
	return td
}

// ClientTLS is the client side: accept says whether a peer that the roots vouch
// for is the one that was meant.
func (id *Identity) ClientTLS(accept func(spiffeID string) error) (*tls.Config, error) {
	now := id.now.Load()
	if now == nil {
		return nil, fmt.Errorf("%s has no certificate: %s", id.cfg.ID, id.NotReady())
	}
	return &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return now.cert, nil },
		MinVersion:           tls.VersionTLS12,
		NextProtos:           []string{"h2"},
		InsecureSkipVerify:   true, //nolint:gosec // an SVID has no DNS name to verify: VerifyConnection judges it
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := Verify(cs.PeerCertificates, now.roots, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			return accept(peer)
		},
	}, nil
}

// transport is TLS to istiod, whose certificate has the DNS name of address.
func transport(roots *x509.CertPool, address string) credentials.TransportCredentials {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: strings.TrimSuffix(host, "."), MinVersion: tls.VersionTLS12})
}
