package cacerts

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"regexp"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// directive is one that makes sense, taken apart.
type directive struct {
	mesh.TrustDirective
	applied mesh.Fingerprint
	since   time.Time
	roots   []*x509.Certificate // Bundle
}

const (
	maxSlots  = 16        // a rotation needs two or three
	maxToken  = 256       // characters of a restart token: it becomes an annotation
	maxBundle = 512 << 10 // a Secret holds 1 MiB in all
)

var slotID = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// readDirective refuses what does not make sense, as a whole: half a directive is worse than the one before.
func readDirective(raw []byte, now time.Time) (*directive, error) {
	d := &directive{applied: mesh.FingerprintOf(raw), since: now}
	if err := json.Unmarshal(raw, &d.TrustDirective); err != nil { // unknown fields are of a newer server, and additive
		return nil, fmt.Errorf("it is no JSON of a trust directive: %w", err)
	}
	if len(d.Intermediates) > maxSlots {
		return nil, fmt.Errorf("it lists %d intermediates: at most %d", len(d.Intermediates), maxSlots)
	}
	if len(d.Bundle)+len(d.CRL) > maxBundle {
		return nil, fmt.Errorf("its bundle and CRL have %d bytes: at most %d, since they share a Secret with the rest", len(d.Bundle)+len(d.CRL), maxBundle)
	}
	if len(d.Restart.Istiod) > maxToken || len(d.Restart.DataPlane) > maxToken {
		return nil, fmt.Errorf("a restart token has more than %d characters", maxToken)
	}
	seen := map[string]mesh.IntermediateOrder{}
	for _, o := range d.Intermediates {
		switch _, twice := seen[o.ID]; {
		case !slotID.MatchString(o.ID):
			return nil, fmt.Errorf("intermediate %q: its ID must be lower-case letters, digits, '-' and '.'", o.ID)
		case twice:
			return nil, fmt.Errorf("intermediate %q is listed twice", o.ID)
		case o.Take != "" && o.Take != mesh.TakeCACerts && o.Take != mesh.TakeSelfSigned:
			return nil, fmt.Errorf("intermediate %q: this agent knows no way to take %q (it is older than the management server)", o.ID, o.Take)
		}
		seen[o.ID] = o
	}
	var err error
	if d.roots, err = parse(d.Bundle); err != nil {
		return nil, fmt.Errorf("its bundle: %w", err)
	}
	if d.Signer == "" {
		return d, nil
	}
	signer, ok := seen[d.Signer]
	switch {
	case !ok:
		return nil, fmt.Errorf("its signer %q is not among its intermediates", d.Signer)
	case len(signer.Chain) == 0:
		return nil, fmt.Errorf("its signer %q has no certificate yet", d.Signer)
	case len(d.roots) == 0:
		return nil, fmt.Errorf("it has a signer (%q) and no bundle", d.Signer)
	}
	return d, nil
}

// order finds a slot's order; nil: it is not wanted.
func (d *directive) order(id string) *mesh.IntermediateOrder {
	for i := range d.Intermediates {
		if d.Intermediates[i].ID == id {
			return &d.Intermediates[i]
		}
	}
	return nil
}

// parse reads PEM certificates; anything else in it is an error.
func parse(raw []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(raw); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, fmt.Errorf("after %d certificates comes what is no PEM", len(out))
		}
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func fingerprints(certs []*x509.Certificate) []mesh.Fingerprint {
	var out []mesh.Fingerprint
	for _, c := range certs {
		out = append(out, mesh.FingerprintOf(c.Raw))
	}
	return out
}
