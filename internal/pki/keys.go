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

// maxKey bounds one private key, in bytes: RSA of 16384 bits fits, and nothing that takes seconds to check.
const maxKey = 1 << 14

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
	if len(text) > maxKey {
		return nil, fmt.Errorf("private key: %d bytes, at most %d", len(text), maxKey)
	}
	var key crypto.Signer
	err := eachBlock("private key", text, func(_ int, b *pem.Block) (err error) {
		switch {
		case b.Type == "EC PARAMETERS": // openssl writes them before the key
			return nil
		case key != nil:
			return fmt.Errorf("a %s comes after it: want one key and nothing else", b.Type)
		}
		key, err = parseKey(b)
		return err
	})
	if err == nil && key == nil {
		err = errors.New("private key: there are only EC PARAMETERS")
	}
	if err != nil {
		return nil, err
	}
	return key, nil
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, errors.New("it is encrypted with a password, which istiod can't read: decrypt it with `openssl pkey`")
	case block.Type == sealedType:
		return nil, errors.New("it is sealed: open it with the wrapping key first")
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "PUBLIC KEY" || block.Type == "RSA PUBLIC KEY":
		return nil, fmt.Errorf("this is a %s: the private one of the pair is needed", block.Type)
	case block.Type == "OPENSSH PRIVATE KEY":
		return nil, errors.New("it is in OpenSSH's format: convert it with `ssh-keygen -p -m PKCS8`")
	default:
		return nil, fmt.Errorf("the PEM block is a %s", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", key)
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
