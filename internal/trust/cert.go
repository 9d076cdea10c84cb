package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"ambitmesh.dev/ambit/internal/mesh"
)

// RootOf reads a root certificate.
func RootOf(der []byte, g mesh.Generation, authority string) (Root, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return Root{}, fmt.Errorf("root: %w", err)
	}
	if !c.IsCA {
		return Root{}, fmt.Errorf("root %s is no CA certificate", c.Subject)
	}
	return Root{Generation: g, Certificate: der, Fingerprint: mesh.FingerprintOf(der), Subject: name(c.RawSubject), Authority: authority}, nil
}

// IssuedOf reads the chain that was signed for a slot. Whether it verifies is not looked at.
func IssuedOf(chain []byte, root mesh.Fingerprint) (Issued, error) {
	certs, err := parseAll(chain)
	switch {
	case err != nil:
		return Issued{}, fmt.Errorf("chain: %w", err)
	case len(certs) == 0:
		return Issued{}, errors.New("chain: it is empty")
	}
	c := certs[0]
	return Issued{Root: root, Signer: mesh.FingerprintOf(c.Raw), Chain: chain, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Algorithm: algorithm(c)}, nil
}

// Encode is a directive as it travels, and its fingerprint: what TrustObservation.Applied is compared with. Send exactly these bytes.
func Encode(d *mesh.TrustDirective) ([]byte, mesh.Fingerprint) {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // a struct of strings and bytes
	}
	return b, mesh.FingerprintOf(b)
}

func algorithm(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA-P" + fmt.Sprint(k.Curve.Params().BitSize)
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return c.PublicKeyAlgorithm.String()
	}
}

// name writes a DER Name as mesh.VerifierGroup.Accepts has it (RFC 4514).
func name(der []byte) string {
	var seq pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &seq); err != nil || len(rest) > 0 {
		return ""
	}
	return seq.String()
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// parseAll reads all certificates of a PEM file.
func parseAll(file []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(file)
		if block == nil {
			return out, nil
		}
		file = rest
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}

// join puts PEM files one after the other, so that each is found in it byte for byte.
func join(files ...[]byte) []byte {
	var out []byte
	for _, f := range files {
		if n := len(out); n > 0 && out[n-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(out, f...)
	}
	return bytes.Clone(out)
}

// chainRoot finds the root that a chain verifies to.
func chainRoot(chain []byte, roots []mesh.Fingerprint, certs map[mesh.Fingerprint][]byte) (mesh.Fingerprint, string) {
	all, err := parseAll(chain)
	if err != nil || len(all) == 0 {
		return mesh.Fingerprint{}, "its chain can't be read"
	}
	for _, f := range roots {
		root, err := x509.ParseCertificate(certs[f])
		if err == nil && verify(all, []*x509.Certificate{root}, all[0].NotBefore) == nil {
			return f, ""
		}
	}
	return mesh.Fingerprint{}, "its chain does not verify to its own bundle"
}

func fingerprints(roots []*Root) []mesh.Fingerprint {
	out := make([]mesh.Fingerprint, 0, len(roots))
	for _, r := range roots {
		out = append(out, r.Fingerprint)
	}
	return out
}

// sameSet compares regardless of order and repetition.
func sameSet(a, b []mesh.Fingerprint) bool { return within(a, b) && within(b, a) }

// within reports whether all of a are in b.
func within(a, b []mesh.Fingerprint) bool {
	for _, x := range a {
		found := false
		for _, y := range b {
			found = found || x == y
		}
		if !found {
			return false
		}
	}
	return true
}
