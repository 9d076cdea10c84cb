package family

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Secrets is the data of the Secrets that make up a Family, as in the management cluster.
type Secrets struct {
	Root    map[string][]byte // relay-root-tls-secret: ca.crt (bundle), tls.crt, tls.key, next.crt, next.key
	Signing map[string][]byte // relay-tls-signing-secret: tls.crt, tls.key, ca.crt, previous.crt
	Server  map[string][]byte // relay-server-tls-secret: tls.crt, tls.key, ca.crt
}

// ParseCerts reads the PEM certificates of data; other blocks are an error, none at all gives none.
func ParseCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, errors.New("not PEM")
		}
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block of type %q among its certificates", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// ParseKey reads a PEM key: PKCS#8, SEC 1 or PKCS#1.
func ParseKey(data []byte) (crypto.Signer, error) {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return nil, errors.New("no PEM key")
		}
		if b.Type == "EC PARAMETERS" { // openssl ecparam -genkey writes it before the key
			continue
		}
		if k, err := x509.ParseECPrivateKey(b.Bytes); err == nil {
			return k, nil
		}
		if k, err := x509.ParsePKCS1PrivateKey(b.Bytes); err == nil {
			return k, nil
		}
		k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
		if err != nil {
			return nil, errors.New("key is neither PKCS#8 nor SEC 1 nor PKCS#1") // never the parser's words: it may quote the input
		}
		switch k := k.(type) {
		case *ecdsa.PrivateKey:
			return k, nil
		case *rsa.PrivateKey:
			return k, nil
		case ed25519.PrivateKey:
			return k, nil
		}
		return nil, fmt.Errorf("key of type %T", k)
	}
}

// CertPEM writes certificates (DER) as PEM.
func CertPEM(ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// KeyPEM writes a key as PKCS#8.
func KeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Secrets is the reverse of Parse.
func (f *Family) Secrets() (Secrets, error) {
	pems := func(certs ...*x509.Certificate) []byte {
		var out []byte
		for _, c := range certs {
			out = append(out, CertPEM(c.Raw)...)
		}
		return out
	}
	var errs []error
	put := func(m map[string][]byte, name string, key crypto.Signer) {
		if key != nil {
			p, err := KeyPEM(key)
			errs = append(errs, err)
			m[name] = p
		}
	}
	s := Secrets{
		Root:    map[string][]byte{"ca.crt": pems(f.Bundle...), "tls.crt": pems(f.Root.Cert)},
		Signing: map[string][]byte{"ca.crt": pems(f.Root.Cert), "tls.crt": pems(f.Signing.Cert)},
		Server:  map[string][]byte{"ca.crt": pems(f.Bundle...), "tls.crt": pems(f.Server.Chain...)},
	}
	put(s.Root, "tls.key", f.Root.Key)
	put(s.Signing, "tls.key", f.Signing.Key)
	put(s.Server, "tls.key", f.Server.Key)
	if f.Next.Cert != nil {
		s.Root["next.crt"] = pems(f.Next.Cert)
		put(s.Root, "next.key", f.Next.Key)
	}
	if len(f.Previous) > 0 {
		s.Signing["previous.crt"] = pems(f.Previous...)
	}
	return s, errors.Join(errs...)
}

// Parse reads the Secrets. The Family is nil if a problem is Fatal. The problems are those of reading and those of Check.
func Parse(s Secrets, now time.Time) (*Family, []Problem) {
	r := reader{}
	f := &Family{}
	f.Bundle = r.certs(RootSecret, s.Root, "ca.crt", true)
	f.Root = r.authority(RootSecret, s.Root, "tls", false)
	f.Next = r.authority(RootSecret, s.Root, "next", false)
	if f.Root.Cert == nil && len(f.Bundle) > 0 {
		f.Root.Cert = f.Bundle[0] // a supplied root: the certificate alone
	}
	f.Signing = r.authority(SigningSecret, s.Signing, "tls", true)
	f.Previous = r.certs(SigningSecret, s.Signing, "previous.crt", false)
	f.Server.Chain = r.certs(ServerSecret, s.Server, "tls.crt", true)
	f.Server.Key = r.key(ServerSecret, s.Server, "tls.key", true)
	if len(f.Server.Chain) > 0 && f.Server.Key != nil && !belongs(f.Server.Chain[0], f.Server.Key) {
		r.add(ServerSecret, true, "tls.key is not the key of tls.crt", fixServer)
	}
	for _, p := range r.problems {
		if p.Fatal {
			return nil, r.problems
		}
	}
	if certs, err := ParseCerts(s.Signing["ca.crt"]); err == nil && len(certs) > 0 && !contains(certs, f.Root.Cert) {
		r.add(SigningSecret, false, "its ca.crt is not the root in "+RootSecret, "copy tls.crt of "+RootSecret+" to it")
	}
	return f, append(r.problems, f.Check(now)...)
}

func belongs(c *x509.Certificate, key crypto.Signer) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(c.PublicKey)
}

// reader collects problems.
type reader struct{ problems []Problem }

func (r *reader) add(secret string, fatal bool, message, fix string) {
	r.problems = append(r.problems, Problem{Secret: secret, Fatal: fatal, Message: message, Fix: fix})
}

func (r *reader) certs(secret string, data map[string][]byte, name string, needed bool) []*x509.Certificate {
	certs, err := ParseCerts(data[name])
	switch {
	case err != nil:
		r.add(secret, needed, fmt.Sprintf("%s can't be read: %v", name, err), fixOf(secret))
	case needed && len(certs) == 0:
		r.add(secret, true, "has no "+name, fixOf(secret))
	}
	return certs
}

func (r *reader) key(secret string, data map[string][]byte, name string, needed bool) crypto.Signer {
	if len(data[name]) == 0 {
		if needed {
			r.add(secret, true, "has no "+name, fixOf(secret))
		}
		return nil
	}
	key, err := ParseKey(data[name])
	if err != nil {
		r.add(secret, needed, fmt.Sprintf("%s can't be read: %v", name, err), fixOf(secret))
	}
	return key
}

// authority reads NAME.crt and NAME.key. A key of another certificate is a problem, and is not used.
func (r *reader) authority(secret string, data map[string][]byte, name string, needed bool) Authority {
	certs := r.certs(secret, data, name+".crt", needed)
	key := r.key(secret, data, name+".key", false)
	if len(certs) == 0 {
		return Authority{}
	}
	if key != nil && !belongs(certs[0], key) {
		r.add(secret, false, fmt.Sprintf("%s.key is not the key of %s.crt", name, name), fixOf(secret))
		key = nil
	}
	return Authority{certs[0], key}
}
