package cacerts

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// slot is a key at hand.
type slot struct {
	key    crypto.Signer
	keyPEM []byte
	csr    []byte // DER; nil: none made
}

// What a slot's key and request are called in the Secret of keys.
const (
	keySuffix = ".key"
	csrSuffix = ".csr"
)

// public is the SHA-256 of the key's SubjectPublicKeyInfo.
func (s slot) public() mesh.Fingerprint { return publicOf(s.key.Public()) }

func publicOf(key crypto.PublicKey) mesh.Fingerprint {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return mesh.Fingerprint{}
	}
	return mesh.FingerprintOf(der)
}

// readSlots reads the Secret of keys; nil: there is none. A key that can't be read is a problem, and is never overwritten or destroyed.
func readSlots(s *secret) (slots map[string]slot, problems []string) {
	slots = map[string]slot{}
	if s == nil {
		return slots, nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.data)) {
		id, ok := strings.CutSuffix(name, keySuffix)
		if !ok {
			continue
		}
		key, err := pki.ParseKey(s.data[name])
		if err != nil {
			problems = append(problems, fmt.Sprintf("key %s of Secret %s can't be read: %v: restore it, or delete it and have the intermediate issued anew", name, KeysName, err))
			continue
		}
		slots[id] = slot{key: key, keyPEM: s.data[name], csr: s.data[id+csrSuffix]}
	}
	return slots, problems
}

// slotPlan is what is to be done to the keys.
type slotPlan struct {
	make    []mesh.IntermediateOrder // keys to make, or to take
	ask     []mesh.IntermediateOrder // certificates to ask for
	destroy []string                 // keys that nobody wants any more
}

// planSlots decides about keys. checked says of each slot at hand why its chain is no good; inUse is the public key of the CA that istiod has in cacerts.
func planSlots(d *directive, have map[string]slot, unreadable bool, checked map[string]string, inUse mesh.Fingerprint) slotPlan {
	var p slotPlan
	for _, o := range d.Intermediates {
		if _, ok := have[o.ID]; !ok && !unreadable {
			p.make = append(p.make, o)
		}
		if o.Take == "" && (len(o.Chain) == 0 || checked[o.ID] != "") {
			p.ask = append(p.ask, o)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(have)) {
		if d.order(id) == nil && have[id].public() != inUse {
			p.destroy = append(p.destroy, id)
		}
	}
	return p
}

// fits says whether a request is still what the order wants.
func fits(csr []byte, s slot, o mesh.IntermediateOrder) bool {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil || publicOf(r.PublicKey) != s.public() || r.Subject.CommonName != o.CommonName || len(r.URIs) != len(o.URIs) {
		return false
	}
	if got := strings.Join(r.Subject.Organization, "\x00"); got != o.Organization {
		return false
	}
	for i, u := range r.URIs {
		if u.String() != o.URIs[i] {
			return false
		}
	}
	return true
}

// taken copies the key that an order takes over, from the Secret that holds it.
func taken(o mesh.IntermediateOrder, from *secret) (slot, error) {
	name, key := CACertsName, caKeyFile
	if o.Take == mesh.TakeSelfSigned {
		name = SelfSignedName
	}
	if from == nil {
		return slot{}, fmt.Errorf("intermediate %q is to be taken over from Secret %s, which does not exist", o.ID, name)
	}
	if from.data[tlsCert] != nil && o.Take == mesh.TakeCACerts { // it wins where both are (facts 1)
		key = tlsKey
	}
	signer, err := pki.ParseKey(from.data[key])
	if err != nil {
		return slot{}, fmt.Errorf("intermediate %q is to be taken over from Secret %s, whose %s can't be read: %w", o.ID, name, key, err)
	}
	return slot{key: signer, keyPEM: from.data[key]}, nil
}
