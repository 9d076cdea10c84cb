package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// The envelope of a sealed key: a PEM block whose headers are authenticated with it (AES-GCM's additional data).
const (
	sealedType    = "AMBIT SEALED KEY"
	sealAlgorithm = "AES-256-GCM"
	sealVersion   = "1"
	headAlgorithm = "Algorithm"
	headKeyID     = "Key-Id"
	headVersion   = "Version"
)

// WrapKeySize is the size of a wrapping key, in bytes.
const WrapKeySize = 32

// ErrOtherWrapKey says that a key was sealed with another wrapping key.
var ErrOtherWrapKey = errors.New("sealed with another wrapping key")

// WrapKeyID names a wrapping key without telling it: 16 hexadecimal digits of a hash of it.
func WrapKeyID(wrap []byte) string {
	sum := sha256.Sum256(append([]byte("ambit wrapping key\x00"), wrap...))
	return hex.EncodeToString(sum[:8])
}

// SealKey encrypts a private key's PEM (any bytes) with a wrapping key of 32 random bytes, for a Secret that others may read.
func SealKey(key, wrap []byte) ([]byte, error) {
	aead, err := sealCipher(wrap)
	if err != nil {
		return nil, err
	}
	headers := map[string]string{headAlgorithm: sealAlgorithm, headKeyID: WrapKeyID(wrap), headVersion: sealVersion}
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails (Go 1.24)
	return pem.EncodeToMemory(&pem.Block{Type: sealedType, Headers: headers, Bytes: aead.Seal(nonce, nonce, key, sealedHeader(headers))}), nil
}

// IsSealed reports whether text is what SealKey makes, so that it needs a wrapping key.
func IsSealed(text []byte) bool {
	b, _ := pem.Decode(text)
	return b != nil && b.Type == sealedType
}

// OpenKey decrypts what SealKey has made. ErrOtherWrapKey: wrap is not the key it was sealed with.
func OpenKey(sealed, wrap []byte) ([]byte, error) {
	aead, err := sealCipher(wrap)
	if err != nil {
		return nil, err
	}
	var key []byte
	err = eachBlock("sealed key", sealed, func(n int, b *pem.Block) error {
		switch {
		case n > 1:
			return errors.New("more than one PEM block")
		case b.Type != sealedType:
			return fmt.Errorf("the PEM block is a %s, not a %s", b.Type, sealedType)
		case b.Headers[headVersion] != sealVersion || b.Headers[headAlgorithm] != sealAlgorithm:
			return fmt.Errorf("version %q, algorithm %q: this program knows version %s, %s", b.Headers[headVersion], b.Headers[headAlgorithm], sealVersion, sealAlgorithm)
		case b.Headers[headKeyID] != WrapKeyID(wrap):
			return fmt.Errorf("%w: it needs %q, and this is %q", ErrOtherWrapKey, b.Headers[headKeyID], WrapKeyID(wrap))
		case len(b.Bytes) < aead.NonceSize():
			return errors.New("it is too short")
		}
		key, err = aead.Open(nil, b.Bytes[:aead.NonceSize()], b.Bytes[aead.NonceSize():], sealedHeader(b.Headers))
		if err != nil {
			return errors.New("it was changed since it was sealed")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

func sealCipher(wrap []byte) (cipher.AEAD, error) {
	if len(wrap) != WrapKeySize {
		return nil, fmt.Errorf("wrapping key: %d bytes, want %d random ones", len(wrap), WrapKeySize)
	}
	block, err := aes.NewCipher(wrap)
	if err != nil {
		return nil, fmt.Errorf("wrapping key: %w", err)
	}
	return cipher.NewGCM(block)
}

// sealedHeader is what is authenticated beside the key.
func sealedHeader(h map[string]string) []byte {
	return []byte(strings.Join([]string{sealedType, h[headVersion], h[headAlgorithm], h[headKeyID]}, "\n"))
}
