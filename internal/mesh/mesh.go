// Package mesh holds the nouns every stage shares, each as its own type, so that arguments can't be swapped.
//
// In: nothing. Out: types with small methods. It must not do I/O, read a clock, or import a Kubernetes client or gRPC.
package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
)

// ClusterName names a cluster of the mesh: a KubernetesCluster's metadata.name and the CN of its agent's certificate.
type ClusterName string

// TrustDomain is a SPIFFE trust domain, e.g. "cluster.local".
type TrustDomain string

// ClusterUID is the UID of a cluster's kube-system namespace: what a cluster is, whatever it is called.
type ClusterUID string

// Fingerprint is the SHA-256 of a certificate (DER) or of a public key (SubjectPublicKeyInfo, DER); the field's name says which.
type Fingerprint [sha256.Size]byte

// String is lower-case hex.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// IsZero reports whether f was never set.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// ParseFingerprint reads what String wrote.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("fingerprint %q: want %d hex digits", s, 2*len(f))
	}
	copy(f[:], b)
	return f, nil
}

// FingerprintOf hashes DER bytes.
func FingerprintOf(der []byte) Fingerprint { return sha256.Sum256(der) }

var clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// Validate checks that n can be a DNS label (RFC 1123), since it becomes a certificate's DNS name; at most 63 characters.
func (n ClusterName) Validate() error {
	switch {
	case n == "":
		return fmt.Errorf("cluster name is empty: want a DNS label such as %q", "prod-eu-west-3")
	case len(n) > 63:
		return fmt.Errorf("cluster name %q has %d characters: at most 63, because it becomes a DNS name in the agent's certificate", string(n), len(n))
	case !clusterName.MatchString(string(n)):
		return fmt.Errorf("cluster name %q: want lower-case letters, digits and '-', beginning and ending with a letter or digit (no '_' or '.'), because it becomes a DNS name in the agent's certificate", string(n))
	}
	return nil
}
