package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"slices"
)

// Dialer opens a connection to host:port.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Handshake is what a TLS server shows of itself to a client without a certificate.
type Handshake struct {
	// Chain is what it presented, the leaf first.
	Chain []*x509.Certificate
	// Accepts are the distinguished names (RFC 4514) of the roots it accepts clients of, sorted, each once. Known is false where it did not list any.
	Accepts []string
	Known   bool
}

// maxNames bounds the CA names taken from one endpoint: a mesh has a handful of roots.
const maxNames = 256

// Shake makes a TLS handshake with address, without a client certificate. That the server refuses such a client afterwards is expected and no error. The server proves that it
// holds the key of the leaf; whether its chain verifies is not looked at.
func Shake(ctx context.Context, dial Dialer, address string) (Handshake, error) {
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return Handshake{}, err
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	var got Handshake
	var asked [][]byte
	requested := false
	conn := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // what it presents is what we want to know; nothing is sent to it
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2"}, // HBONE
		VerifyConnection:   func(s tls.ConnectionState) error { got.Chain = s.PeerCertificates; return nil },
		GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			requested, asked = true, r.AcceptableCAs
			return &tls.Certificate{}, nil
		},
	})
	err = conn.HandshakeContext(ctx)
	if err != nil && (len(got.Chain) == 0 || !requested) { // TLS 1.2 refuses within the handshake, TLS 1.3 after it
		return Handshake{}, err
	}
	if len(got.Chain) == 0 {
		return Handshake{}, errors.New("it presented no certificate")
	}
	if got.Accepts, err = names(asked); err != nil {
		return Handshake{}, err
	}
	got.Known = len(got.Accepts) > 0
	return got, nil
}

// names are the distinguished names of a CertificateRequest, sorted, each once.
func names(raw [][]byte) ([]string, error) {
	if len(raw) > maxNames {
		return nil, fmt.Errorf("it lists %d CA names: at most %d are looked at", len(raw), maxNames)
	}
	var out []string
	for _, r := range raw {
		n, err := DistinguishedName(r)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// DistinguishedName writes a DER Name (RawSubject of a certificate, an entry of certificate_authorities) as RFC 4514 has it: last RDN first, "CN=root,O=Ambit".
func DistinguishedName(der []byte) (string, error) {
	var seq pkix.RDNSequence
	rest, err := asn1.Unmarshal(der, &seq)
	switch {
	case err != nil:
		return "", fmt.Errorf("a CA name is no distinguished name: %w", err)
	case len(rest) > 0:
		return "", fmt.Errorf("a CA name has %d bytes after its end", len(rest))
	}
	return seq.String(), nil
}
