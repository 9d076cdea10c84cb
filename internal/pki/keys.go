package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// KeyAlgorithm is how a key is: the values below.
type KeyAlgorithm string

// The key algorithms that istiod and every proxy understand.
const (
	RSA2048   KeyAlgorithm = "RSA-2048"
	RSA3072   KeyAlgorithm = "RSA-3072"
	RSA4096   KeyAlgorithm = "RSA-4096"
	ECDSAP256 KeyAlgorithm = "ECDSA-P256"
	ECDSAP384 KeyAlgorithm = "ECDSA-P384"
)

// maxPEM bounds what is parsed as one PEM text, in bytes.
const maxPEM = 1 << 20

// GenerateKey makes a key. RSA may have any size of 2048 to 8192 bits that is a multiple of 8 ("RSA-3072").
func GenerateKey(a KeyAlgorithm) (crypto.Signer, error) {
	switch a {
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default: // RSA of some size
	}
	var bits int
	if _, err := fmt.Sscanf(string(a), "RSA-%d", &bits); err != nil || a != KeyAlgorithm(fmt.Sprintf("RSA-%d", bits)) || bits < 2048 || bits > 8192 || bits%8 != 0 {
		return nil, fmt.Errorf("key algorithm %q: want %s, %s, %s, %s or %s", a, RSA2048, RSA3072, RSA4096, ECDSAP256, ECDSAP384)
	}
	return rsa.GenerateKey(rand.Reader, bits)
}

// AlgorithmOf names a public key's algorithm: "RSA-4096", "ECDSA-P256"; others as Go names them.
func AlgorithmOf(key crypto.PublicKey) KeyAlgorithm {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return KeyAlgorithm(fmt.Sprintf("RSA-%d", k.N.BitLen()))
	case *ecdsa.PublicKey:
		return KeyAlgorithm("ECDSA-P" + fmt.Sprint(k.Curve.Params().BitSize))
	default:
		return KeyAlgorithm(fmt.Sprintf("%T", key))
	}
}

// ParseKey reads one private key: PKCS#8, PKCS#1 or SEC 1. The error says what else it is.
func ParseKey(text []byte) (crypto.Signer, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("private key: %d bytes, at most %d", len(text), maxPEM)
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("private key: no PEM block of a private key")
		}
		if block.Type == "EC PARAMETERS" { // openssl writes them before the key
			text = rest
			continue
		}
		return parseKey(block)
	}
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("private key: it is encrypted with a password; istiod can't read that: decrypt it with `openssl pkey`")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("private key: the PEM block is a %s", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: a %T can't sign", key)
	}
	return signer, nil
}

// EncodeKey is the key as PKCS#8, which istiod reads.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// sameKey reports whether two public keys are one.
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
