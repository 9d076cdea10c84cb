package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The files of a cacerts directory or Secret, in Istio's layout.
const (
	FileCACert    = "ca-cert.pem"    // the signing certificate
	FileCAKey     = "ca-key.pem"     // its key
	FileCertChain = "cert-chain.pem" // what workloads present after their certificate
	FileRootCert  = "root-cert.pem"  // the roots that workloads trust
	FileCRL       = "ca-crl.pem"     // optional
)

// The same in the layout of Secrets of type kubernetes.io/tls, which wins where both are.
const (
	FileTLSCert = "tls.crt"
	FileTLSKey  = "tls.key"
	FileTLSRoot = "ca.crt"
)

// fileGenerated marks a cacerts that istiod made itself (USE_CACERTS_FOR_SELF_SIGNED_CA).
const fileGenerated = "istio-generated"

// Problem is something wrong with a cacerts.
type Problem struct {
	Fatal   bool   `json:"fatal"` // istiod does not load it
	File    string `json:"file,omitempty"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// caFiles is a cacerts as istiod reads it (istio: pilot/pkg/bootstrap/istio_ca.go, security/pkg/pki/util/keycertbundle.go).
type caFiles struct {
	tls              bool
	cert, key, root  string // names
	chain            string // name, for messages
	certPEM, keyPEM  []byte
	chainPEM, crlPEM []byte
	rootPEM          []byte
}

func layoutOf(files map[string][]byte) caFiles {
	c := caFiles{cert: FileCACert, key: FileCAKey, chain: FileCertChain, root: FileRootCert, chainPEM: files[FileCertChain], crlPEM: files[FileCRL]}
	if _, c.tls = files[FileTLSCert]; c.tls {
		c.cert, c.key, c.chain, c.root = FileTLSCert, FileTLSKey, FileTLSCert, FileTLSRoot
		c.chainPEM, c.crlPEM = slices.Concat(files[FileTLSCert], files[FileTLSRoot]), nil // joined as istiod joins them, without a line break between
	}
	c.certPEM, c.keyPEM, c.rootPEM = files[c.cert], files[c.key], files[c.root]
	return c
}

// Presented is what the workloads of a cluster with this cacerts present after their own certificate, and the roots that they trust. Unlike VerifyCACerts it judges nothing but
// whether there is something to read.
func Presented(files map[string][]byte) (chain, roots []*x509.Certificate, err error) {
	c := layoutOf(files)
	if chain = taken(c.chainPEM); len(chain) == 0 {
		return nil, nil, fmt.Errorf("%s has no certificate", c.chain)
	}
	if roots = taken(c.rootPEM); len(roots) == 0 {
		return nil, nil, fmt.Errorf("%s has no certificate", c.root)
	}
	return chain, roots, nil
}

// taken are the certificates that Go's pools, and so istiod, take out of a text: what can't be read is passed over without a word.
func taken(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for n := 0; len(text) > 0 && n < maxCertificates; n++ {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" || len(b.Headers) > 0 {
			continue
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// VerifyCACerts judges the files of a cacerts (name to content): first as istiod does when it loads them, whose refusals are fatal, then what istiod does not look at and a
// handshake, a rotation or a year's end will. No problem: nil. The first one is what to mend first.
func VerifyCACerts(files map[string][]byte, now time.Time) []Problem {
	v := &verification{files: files, f: layoutOf(files), now: now}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if len(files[name]) > maxPEM {
			v.fatal(name, fmt.Sprintf("%d bytes, and a Secret holds at most %d", len(files[name]), maxPEM), "")
		}
	}
	if len(v.problems) > 0 || !v.complete() {
		v.places()
		return v.problems
	}
	v.asIstiod()
	v.places()
	v.texts()
	if v.signer != nil {
		v.chainOf()
		v.signing()
	}
	v.rootsOf()
	v.names()
	v.lists()
	slices.SortStableFunc(v.problems, func(a, b Problem) int { return rank(a) - rank(b) })
	return v.problems
}

func rank(p Problem) int {
	if p.Fatal {
		return 0
	}
	return 1
}

// verification collects the problems of one cacerts.
type verification struct {
	files    map[string][]byte
	f        caFiles
	now      time.Time
	signer   *x509.Certificate // nil: it can't be read
	chain    []*x509.Certificate
	roots    []*x509.Certificate
	problems []Problem
}

func (v *verification) fatal(file, message, fix string) {
	v.problems = append(v.problems, Problem{true, file, message, fix})
}

func (v *verification) problem(file, message, fix string) {
	v.problems = append(v.problems, Problem{false, file, message, fix})
}

// refused reports a *CheckError as a problem.
func (v *verification) refused(file string, err error) {
	if bad, ok := errors.AsType[*CheckError](err); ok && bad != nil {
		v.problem(file, bad.Detail, bad.Fix)
	}
}

// complete: with no file istiod makes a root of its own; with some of them it does not start (since 1.26.1; before, it made a root of its own then too).
func (v *verification) complete() bool {
	want := slices.Compact([]string{v.f.key, v.f.cert, v.f.chain, v.f.root}) // tls.crt is certificate and chain
	have := slices.DeleteFunc(slices.Clone(want), func(n string) bool { _, ok := v.files[n]; return !ok })
	if len(have) == 0 {
		v.fatal("", "it has none of the files that istiod reads: istiod would make a root of its own, which no other cluster trusts",
			fmt.Sprintf("it needs %s (meshctl pki gen-intermediate writes them)%s", strings.Join(want, ", "), v.misnamed()))
		return false
	}
	for _, name := range want {
		if _, ok := v.files[name]; !ok && !slices.ContainsFunc(v.problems, func(p Problem) bool { return p.File == name }) {
			v.fatal(name, "it is missing: istiod does not start with part of the files (before 1.26.1 it made a root of its own)", "add it; it needs "+strings.Join(want, ", ")+v.misnamed())
		}
	}
	return len(v.problems) == 0
}

// misnamed says which files istiod does not know, because that is where the missing ones mostly are.
func (v *verification) misnamed() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(v.files)) {
		if !slices.Contains([]string{FileCACert, FileCAKey, FileCertChain, FileRootCert, FileCRL, FileTLSCert, FileTLSKey, FileTLSRoot, fileGenerated}, name) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "; istiod does not know " + strings.Join(out, ", ")
}

// asIstiod does what istiod does at start and at each reload, and says why it refuses.
func (v *verification) asIstiod() {
	f := v.f
	v.chain, v.roots = taken(f.chainPEM), taken(f.rootPEM)
	block, _ := pem.Decode(f.certPEM)
	if block == nil {
		v.fatal(f.cert, "it has no PEM block", "put the signing certificate there, as PEM")
		return
	}
	signer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		v.fatal(f.cert, fmt.Sprintf("its first PEM block, a %s, is no certificate: %v", block.Type, err), "put the signing certificate first")
		return
	}
	v.signer = signer
	rs, is := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range v.roots {
		rs.AddCert(c)
	}
	for _, c := range v.chain {
		is.AddCert(c)
	}
	if _, err := signer.Verify(x509.VerifyOptions{Roots: rs, Intermediates: is, CurrentTime: v.now}); err != nil { // serverAuth is asked for, as istiod does
		v.fatal(f.cert, fmt.Sprintf("%s does not verify by %s: %v", signer.Subject, f.root, err), v.whyUnverified(err))
	}
	v.keyAsIstiod()
	if !signer.IsCA {
		v.fatal(f.cert, fmt.Sprintf("%s is no CA certificate (CA:false)", signer.Subject), "sign it as an intermediate (meshctl pki gen-intermediate), not as a server's certificate")
	}
	v.listsAsIstiod()
}

func (v *verification) whyUnverified(err error) string {
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch bad.Reason {
		case x509.Expired:
			if v.now.Before(v.signer.NotBefore) {
				return "clocks differ, or it is not yet to be used"
			}
			return "issue it anew, or, if that is what has ended, what signed it"
		case x509.IncompatibleUsage:
			return "istiod asks for serverAuth: leave extended key usages out of CA certificates, or set serverAuth and clientAuth"
		case x509.TooManyIntermediates:
			return "a path length above it is too short: sign it by the root, or use a root without a path length"
		case x509.NotAuthorizedToSign:
			return "what signed it is no CA certificate"
		default:
		}
	}
	var have []string
	for _, r := range v.roots {
		have = append(have, r.Subject.String())
	}
	if len(have) == 0 {
		return fmt.Sprintf("%s has no certificate: put the root %s there", v.f.root, v.signer.Issuer)
	}
	return fmt.Sprintf("it was issued by %s; %s has %s, and %s has to have every certificate between", v.signer.Issuer, v.f.root, strings.Join(have, " and "), v.f.chain)
}

// keyAsIstiod: the first PEM block has to be a key in one of three formats, and that of the first certificate.
func (v *verification) keyAsIstiod() {
	f := v.f
	block, _ := pem.Decode(f.keyPEM)
	if block == nil {
		v.fatal(f.key, "it has no PEM block", "put the private key of "+f.cert+" there, as PEM")
		return
	}
	if block.Type == "EC PARAMETERS" {
		v.fatal(f.key, "it begins with EC PARAMETERS, and istiod reads the first PEM block only", "remove that block, or write the key as PKCS#8 (openssl pkey)")
		return
	}
	if _, err := parseKey(block); err != nil {
		v.fatal(f.key, err.Error(), "put the private key of "+f.cert+" there, as PKCS#8, PKCS#1 or SEC 1, without a password")
		return
	}
	_, err := tls.X509KeyPair(f.certPEM, f.keyPEM)
	if err == nil {
		return
	}
	for i, c := range taken(f.certPEM) {
		if _, err := tls.X509KeyPair(EncodeCertificates(c), f.keyPEM); err == nil && i > 0 {
			v.fatal(f.cert, fmt.Sprintf("the key is that of its certificate number %d, %s, and istiod signs with the first, %s", i+1, c.Subject, v.signer.Subject),
				"leave the signing certificate alone in it: roots belong in "+v.f.root+", which is the only file istiod reads roots from")
			return
		}
	}
	v.fatal(f.key, fmt.Sprintf("it is not the key of %s (%s): %v", f.cert, v.signer.Subject, err), "take certificate and key of one and the same run of gen-intermediate")
}

// listsAsIstiod: with a list, every certificate of the chain has to have signed one; certificates of one name count as one there, the last.
func (v *verification) listsAsIstiod() {
	if len(v.f.crlPEM) == 0 {
		return
	}
	missing := map[string]*x509.Certificate{}
	for rest := v.f.chainPEM; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			v.fatal(v.f.chain, fmt.Sprintf("with a %s istiod reads every block of it, and a %s can't be read: %v", FileCRL, b.Type, err), "leave only certificates in it")
			return
		}
		missing[c.Subject.String()] = c
	}
	for rest := v.f.crlPEM; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		l, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			v.fatal(FileCRL, fmt.Sprintf("a PEM block, a %s, is no revocation list: %v", b.Type, err), "leave only lists in it; until then istiod refuses new keys and certificates too, silently (istio#61075)")
			return
		}
		maps.DeleteFunc(missing, func(_ string, c *x509.Certificate) bool { return l.CheckSignatureFrom(c) == nil })
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		v.fatal(FileCRL, fmt.Sprintf("%s is in %s and has signed no list", name, v.f.chain), "add an empty list of it: until then istiod refuses new keys and certificates too, silently (istio#61075)")
	}
}

// texts: what istiod passes over without a word.
func (v *verification) texts() {
	type file struct {
		name string
		text []byte
	}
	files := []file{{v.f.chain, v.f.chainPEM}, {v.f.root, v.f.rootPEM}}
	if !v.f.tls { // else it is the chain
		files = append(files, file{v.f.cert, v.f.certPEM})
	}
	for _, t := range files {
		if len(bytes.TrimSpace(t.text)) == 0 || hasKey(t.text) { // said by others
			continue
		}
		if _, err := ParseCertificates(t.text); err != nil {
			v.problem(t.name, err.Error(), "istiod passes over what it can't read: leave only certificates in it, each whole and ending with a line break")
		}
	}
}
