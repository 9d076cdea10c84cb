package tokens

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// What signatures and keys are for; they separate one use of a key from every other.
const (
	keyPurpose      = "ambit remote-secret key v1"
	envelopePurpose = "ambit remote-secret token v1"
)

// maxEnvelope bounds an envelope's JSON in bytes: a token has about 1 KiB, a CA bundle a few.
const maxEnvelope = 256 << 10

// Keys are an agent's private keys. They never leave its cluster.
type Keys struct {
	seal *ecdh.PrivateKey
	sign ed25519.PrivateKey
}

// NewKeys makes keys.
func NewKeys() (*Keys, error) {
	seal, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	_, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Keys{seal, sign}, nil
}

// ParseKeys reads what Bytes wrote.
func ParseKeys(seal, sign []byte) (*Keys, error) {
	k, err := ecdh.X25519().NewPrivateKey(seal)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	if len(sign) != ed25519.SeedSize {
		return nil, fmt.Errorf("signing key: %d bytes, want %d", len(sign), ed25519.SeedSize)
	}
	return &Keys{k, ed25519.NewKeyFromSeed(sign)}, nil
}

// Bytes are the secret halves, for the agent's own Secret.
func (k *Keys) Bytes() (seal, sign []byte) { return k.seal.Bytes(), k.sign.Seed() }

// Public is the public half, proven to belong to a cluster.
func (k *Keys) Public(c mesh.ClusterName) mesh.TokenKey {
	seal := k.seal.PublicKey().Bytes()
	sign, _ := k.sign.Public().(ed25519.PublicKey)
	return mesh.TokenKey{Seal: seal, Sign: sign, Proof: ed25519.Sign(k.sign, keyText(c, seal))}
}

func keyText(c mesh.ClusterName, seal []byte) []byte {
	return append([]byte(keyPurpose+"\x00"+string(c)+"\x00"), seal...)
}

// CheckKey checks that a key belongs together and to the cluster. Whether it is the one seen before is for the caller.
func CheckKey(c mesh.ClusterName, k mesh.TokenKey) error {
	if len(k.Sign) != ed25519.PublicKeySize || !ed25519.Verify(k.Sign, keyText(c, k.Seal), k.Proof) {
		return fmt.Errorf("the key of cluster %q is not signed by itself", c)
	}
	if _, err := ecdh.X25519().NewPublicKey(k.Seal); err != nil {
		return fmt.Errorf("the key of cluster %q: %w", c, err)
	}
	return nil
}

// header is what an envelope says in the clear, byte for byte the same on both sides.
func header(e *mesh.TokenEnvelope) []byte {
	return fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d\x00%d", envelopePurpose, e.From, e.To, e.Generation, e.Issued.Unix(), e.Expires.Unix())
}

// signedText is all of an envelope but the signature. The encapsulated key has a fixed length, so that no two envelopes have the same text.
func signedText(e *mesh.TokenEnvelope) []byte {
	return bytes.Join([][]byte{header(e), e.Encapsulated, e.Sealed}, []byte{0})
}

// Seal puts a credential into an envelope that only the holder of to's key can open. e's other fields are kept; times are cut to seconds.
func (k *Keys) Seal(e mesh.TokenEnvelope, to mesh.TokenKey, c mesh.TokenCredential) (mesh.TokenEnvelope, error) {
	e.Issued, e.Expires = e.Issued.UTC().Truncate(time.Second), e.Expires.UTC().Truncate(time.Second)
	if err := CheckKey(e.To, to); err != nil {
		return e, err
	}
	pub, err := ecdh.X25519().NewPublicKey(to.Seal)
	if err != nil {
		return e, fmt.Errorf("key of cluster %q: %w", e.To, err)
	}
	recipient, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return e, fmt.Errorf("key of cluster %q: %w", e.To, err)
	}
	enc, sender, err := hpke.NewSender(recipient, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), header(&e))
	if err != nil {
		return e, fmt.Errorf("seal for cluster %q: %w", e.To, err)
	}
	plain, err := json.Marshal(c)
	if err != nil {
		return e, err
	}
	if e.Sealed, err = sender.Seal(header(&e), plain); err != nil {
		return e, fmt.Errorf("seal for cluster %q: %w", e.To, err)
	}
	e.Encapsulated = enc
	e.Signature = ed25519.Sign(k.sign, signedText(&e))
	return e, nil
}

// ParseEnvelope reads an envelope's JSON; nothing in it is checked yet.
func ParseEnvelope(raw []byte) (e mesh.TokenEnvelope, err error) {
	if len(raw) > maxEnvelope {
		return e, fmt.Errorf("envelope of %d bytes, at most %d", len(raw), maxEnvelope)
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("envelope: %w", err)
	}
	return e, nil
}

// errOpen says no more than that: whoever made the envelope learns nothing.
var errOpen = errors.New("the envelope was not sealed for this cluster's key")

// Open verifies an envelope by the key pinned for its sender and opens it. self is this cluster; an expired one is refused.
func (k *Keys) Open(e mesh.TokenEnvelope, self mesh.ClusterName, pinned []byte, now time.Time) (c mesh.TokenCredential, err error) {
	switch {
	case e.To != self:
		return c, fmt.Errorf("the envelope is for cluster %q", e.To)
	case len(pinned) != ed25519.PublicKeySize || !ed25519.Verify(pinned, signedText(&e), e.Signature):
		return c, fmt.Errorf("the envelope is not signed by cluster %q", e.From)
	case !e.Expires.After(now):
		return c, fmt.Errorf("the token of cluster %q expired at %s", e.From, e.Expires.UTC().Format(time.RFC3339))
	}
	private, err := hpke.NewDHKEMPrivateKey(k.seal)
	if err != nil {
		return c, errOpen
	}
	r, err := hpke.NewRecipient(e.Encapsulated, private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), header(&e))
	if err != nil {
		return c, errOpen
	}
	plain, err := r.Open(header(&e), e.Sealed)
	if err != nil {
		return c, errOpen
	}
	if err := json.Unmarshal(plain, &c); err != nil {
		return mesh.TokenCredential{}, errOpen
	}
	return c, nil
}
