package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// What istiod does not check.

const (
	// soonCA is when an intermediate has to be replaced: leaves of 24 hours outlive it else (istiod before 1.30 does not shorten them), twice for the margin.
	soonCA = 48 * time.Hour
	// soonRoot is how long a rotation of the root may take: leaves of up to 90 days (MAX_WORKLOAD_CERT_TTL) have to die out.
	soonRoot = 90 * 24 * time.Hour
)

// chainOf: what workloads present has to lead any peer from their leaf to a root.
func (v *verification) chainOf() {
	isRoot := slices.ContainsFunc(v.roots, v.signer.Equal)
	at := slices.IndexFunc(v.chain, v.signer.Equal)
	switch {
	case at < 0 && isRoot: // peers need no certificate between
	case len(v.chain) == 0:
		v.problem(v.f.chain, "it has no certificate: workloads present their leaf alone, and every peer refuses it (unknown issuer)", "put "+v.f.cert+" into it, then what signed that, without the root")
	case at < 0:
		v.problem(v.f.chain, fmt.Sprintf("it does not have the signing certificate %s: workloads don't present it, and every peer refuses them (unknown issuer)", v.signer.Subject), "put "+v.f.cert+" first")
	case at > 0:
		v.problem(v.f.chain, fmt.Sprintf("it begins with %s, not with the signing certificate %s", v.chain[0].Subject, v.signer.Subject), "order it: signing certificate, then what signed it, and so on")
	}
	for i, c := range v.chain {
		if i+1 < len(v.chain) && c.CheckSignatureFrom(v.chain[i+1]) != nil && !slices.ContainsFunc(v.roots, c.Equal) {
			v.problem(v.f.chain, fmt.Sprintf("%s is not signed by %s, which comes after it", c.Subject, v.chain[i+1].Subject), "order it: signing certificate, then what signed it, and so on; leave others out")
		}
	}
	if slices.ContainsFunc(v.problems, func(p Problem) bool { return p.Fatal && p.File == v.f.cert }) {
		return // said already that it does not verify
	}
	if err := VerifyPeer(append([]*x509.Certificate{v.signer}, v.chain...), v.roots, v.now); err != nil {
		bad, ok := errors.AsType[*CheckError](err)
		if !ok {
			bad = &CheckError{Detail: err.Error()}
		}
		v.problem(v.f.cert, bad.Detail, bad.Fix)
	}
}

// signing: can the CAs sign what every proxy takes.
func (v *verification) signing() {
	cas := []*x509.Certificate{v.signer}
	for _, c := range v.chain {
		if !c.Equal(v.signer) && !slices.ContainsFunc(v.roots, c.Equal) {
			cas = append(cas, c)
		}
	}
	for i, c := range cas {
		file := v.f.cert
		if i > 0 {
			file = v.f.chain
		}
		// typed nils are no errors to refused
		v.refused(file, checkUsage(c, Expect{}))
		v.refused(file, checkEncoding(c))
		for _, issuer := range slices.Concat(v.chain, v.roots) {
			if !issuer.Equal(c) && bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil {
				v.refused(file, checkKeyIDs(c, issuer))
			}
		}
		if left := c.NotAfter.Sub(v.now); left > 0 && left < soonCA {
			v.problem(file, fmt.Sprintf("%s ends %s, and before 1.30 istiod gives leaves 24 hours all the same: they would outlive it", c.Subject, at(c.NotAfter)), "issue the next intermediate now")
		}
	}
	if slices.ContainsFunc(v.roots, v.signer.Equal) {
		v.problem(v.f.cert, fmt.Sprintf("the cluster signs with the root %s itself: whoever reads this Secret has the key to every cluster", v.signer.Subject), "give each cluster an intermediate (meshctl pki gen-intermediate)")
	}
	for _, r := range v.roots {
		if v.signer.CheckSignatureFrom(r) == nil && v.signer.NotAfter.After(r.NotAfter) && !v.signer.Equal(r) {
			v.problem(v.f.cert, fmt.Sprintf("%s ends %s, after its root, which ends %s", v.signer.Subject, at(v.signer.NotAfter), at(r.NotAfter)), "replace the root before; gen-intermediate shortens what outlives its root")
		}
	}
}

// rootsOf: each root is one, and lives.
func (v *verification) rootsOf() {
	for i, r := range v.roots {
		switch left := r.NotAfter.Sub(v.now); {
		case v.now.Before(r.NotBefore):
			v.problem(v.f.root, fmt.Sprintf("the root %s begins %s", r.Subject, at(r.NotBefore)), "clocks differ, or it is not yet to be used")
		case left <= 0:
			v.problem(v.f.root, fmt.Sprintf("the root %s ended %s: what it signed is refused", r.Subject, at(r.NotAfter)), "remove it once nothing lives that it signed; istiod's metric shows the first root only")
		case left < soonRoot:
			v.problem(v.f.root, fmt.Sprintf("the root %s ends %s", r.Subject, at(r.NotAfter)), "begin a rotation of the root: its barriers take up to 90 days")
		}
		switch {
		case slices.ContainsFunc(v.roots[:i], r.Equal):
			v.problem(v.f.root, fmt.Sprintf("the root %s is there twice", r.Subject), "leave it there once")
		case !r.IsCA:
			v.problem(v.f.root, fmt.Sprintf("%s is no CA certificate", r.Subject), "put only roots there")
		case r.CheckSignatureFrom(r) != nil:
			v.problem(v.f.root, fmt.Sprintf("%s is not self-signed: it is an intermediate of %s, and OpenSSL and Envoy look on for its issuer", r.Subject, r.Issuer), "put the root itself there; intermediates belong in "+v.f.chain)
		default:
			v.refused(v.f.root, checkEncoding(r))
		}
	}
}

// names: no two CAs with different keys may have one name.
func (v *verification) names() {
	all := slices.Concat(v.roots, v.chain)
	if v.signer != nil {
		all = append(all, v.signer)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if !bytes.Equal(a.RawSubject, b.RawSubject) || sameKey(a.PublicKey, b.PublicKey) {
				continue
			}
			v.problem(v.f.root, fmt.Sprintf("two CAs with different keys have the name %s, %s", a.Subject, v.danger()), "give each generation of a root a name of its own (meshctl pki gen-root does)")
			return
		}
	}
}

// danger of two CAs of one name, by whether what they sign says whose key signed it.
func (v *verification) danger() string {
	if v.signer != nil && len(v.signer.AuthorityKeyId) > 0 {
		return "and a handshake shows only names of roots, so nobody can see which of them a proxy trusts"
	}
	return "and the signing certificate has no authority key identifier: OpenSSL and Envoy try the first by name only, and fail depending on the order"
}

// lists: what Envoy asks beyond istiod.
func (v *verification) lists() {
	_, has := v.files[FileCRL]
	switch {
	case has && v.f.tls:
		v.problem(FileCRL, "istiod reads no revocation list in the layout of tls.crt: it has no effect", "use Istio's layout: "+strings.Join([]string{FileCACert, FileCAKey, FileCertChain, FileRootCert}, ", "))
	case has && len(v.f.crlPEM) == 0:
		v.problem(FileCRL, "it is empty: istiod keeps the lists it has loaded before", "remove it, or put an empty list of every CA into it")
	case has && !slices.ContainsFunc(v.problems, func(p Problem) bool { return p.Fatal && p.File == FileCRL }):
		v.refused(FileCRL, CheckCRL(v.f.crlPEM, v.chain, v.roots, v.now))
	}
}

// places: everything is where it belongs, keys before all.
func (v *verification) places() {
	for _, name := range slices.Sorted(maps.Keys(v.files)) {
		if !hasKey(v.files[name]) || name == v.f.key {
			continue
		}
		switch name {
		case v.f.root:
			v.problem(name, "it has a private key in it: istiod copies this file into a ConfigMap of every namespace, for all to read", "that key is compromised: rotate it, and remove it from here")
		case v.f.cert, v.f.chain, FileTLSRoot, FileCACert, FileCertChain, FileRootCert, FileCRL:
			v.problem(name, "it has a private key in it: this file is handed to workloads", "that key is compromised: rotate it, and remove it from here")
		default:
			v.problem(name, "it has a private key, which istiod does not use from here, and the stock istio-reader role may read every Secret", "remove it; a root's key stays away from clusters")
		}
	}
	if _, ok := v.files[fileGenerated]; ok {
		v.problem(fileGenerated, "this marks a CA that istiod made itself: with USE_CACERTS_FOR_SELF_SIGNED_CA it ignores the files beside it", "remove the key from the Secret")
	}
	if !v.f.tls {
		for _, name := range []string{FileTLSKey, FileTLSRoot} {
			if _, ok := v.files[name]; ok {
				v.problem(name, "istiod does not read it without "+FileTLSCert, "remove it")
			}
		}
	} else {
		v.problem(FileTLSCert, "in this layout workloads present the roots of ca.crt in every handshake, ca.crt holds what its issuer knows (mostly one root, so no rotation), and revocation lists are not read",
			"use Istio's layout: "+strings.Join([]string{FileCACert, FileCAKey, FileCertChain, FileRootCert}, ", "))
		for _, name := range []string{FileCACert, FileCAKey, FileCertChain, FileRootCert} {
			if _, ok := v.files[name]; ok {
				v.problem(name, "istiod does not read it: tls.crt wins where both layouts are", "remove one of the two layouts")
			}
		}
	}
	if certs := taken(v.f.certPEM); !v.f.tls && len(certs) > 1 {
		v.problem(v.f.cert, fmt.Sprintf("it has %d certificates, and istiod reads the first, as its signing certificate; nobody trusts the others by being here", len(certs)), "roots belong in "+v.f.root+", other intermediates in "+v.f.chain)
	}
}

// hasKey reports whether a text has a PEM block of a private key.
func hasKey(text []byte) bool {
	for n := 0; len(text) > 0 && n < maxCertificates; n++ {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return false
		}
		if strings.HasSuffix(b.Type, "PRIVATE KEY") {
			return true
		}
	}
	return false
}
