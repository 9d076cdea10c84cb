package family

import (
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Problem is one way in which the Secrets don't fit together.
type Problem struct {
	Secret  string // its published name, e.g. "relay-server-tls-secret"
	Fatal   bool   // the hub can't serve with it
	Message string // what is wrong
	Fix     string // what to do
}

// String is one line for people.
func (p Problem) String() string { return p.Secret + ": " + p.Message + ": " + p.Fix }

// What to do. "Delete the Secret" works because the management server makes what is missing (Repair) from the root it finds.
const (
	fixRoot    = "restore it from a backup; or delete all relay-* Secrets of the management server, which makes a new family, and register every cluster again"
	fixSigning = "delete " + SigningSecret + ": the management server makes a new one from the root; clusters with a certificate of the old one are registered again"
	fixServer  = "delete " + ServerSecret + ": the management server makes a new one from the root"
	fixClient  = "run `meshctl cluster register` for this cluster again, or mint a certificate from " + SigningSecret
	fixToken   = "delete " + TokenSecret + ": the management server makes a new one"
)

func fixOf(secret string) string {
	return map[string]string{RootSecret: fixRoot, SigningSecret: fixSigning, ServerSecret: fixServer}[secret]
}

// warnBefore is how long before its end a certificate that nobody renews is a problem.
const warnBefore = 30 * day

// Check looks at the family as one chain.
func (f *Family) Check(now time.Time) []Problem {
	r := reader{}
	r.lifetime(RootSecret, "the root", f.Root.Cert, now, warnBefore, "make the successor the root: `meshctl relay rotate`")
	if !contains(f.Bundle, f.Root.Cert) {
		r.add(RootSecret, false, fmt.Sprintf("ca.crt does not contain the root in tls.crt (%q), so agents don't trust what it signs", f.Root.Cert.Subject.CommonName), "add it to ca.crt")
	}
	if f.Next.Cert != nil && !contains(f.Bundle, f.Next.Cert) {
		r.add(RootSecret, false, "ca.crt does not contain the successor in next.crt, so a rotation would cut agents off", "add it to ca.crt")
	}
	for _, c := range f.Bundle {
		if !c.IsCA {
			r.add(RootSecret, false, fmt.Sprintf("ca.crt contains %q, which is not a CA certificate", c.Subject.CommonName), "remove it from ca.crt")
		}
	}
	r.lifetime(SigningSecret, "the signing CA", f.Signing.Cert, now, warnBefore, fixSigning)
	if !f.Signing.Cert.IsCA {
		r.add(SigningSecret, false, "tls.crt is not a CA certificate, so no client certificate verifies", fixSigning)
	}
	if !issuedByAny(f.Signing.Cert, f.Bundle) {
		r.add(SigningSecret, false, fmt.Sprintf("tls.crt was issued by %q, which is not among the roots in %s", f.Signing.Cert.Issuer.CommonName, RootSecret), fixSigning)
	}
	leaf := f.Server.Chain[0]
	r.lifetime(ServerSecret, "the server certificate", leaf, now, 7*day, fixServer)
	at := now
	if !now.Before(leaf.NotAfter) {
		at = leaf.NotAfter // said already
	}
	if err := VerifyServer(f.Server.Chain, f.Bundle, "", at); err != nil {
		r.add(ServerSecret, false, fmt.Sprintf("agents refuse tls.crt (issuer %q): %v", leaf.Issuer.CommonName, err), fixServer)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		r.add(ServerSecret, false, "tls.crt has no subject alternative name, so no client accepts it", fixServer)
	}
	return r.problems
}

func issuedByAny(c *x509.Certificate, roots []*x509.Certificate) bool {
	for _, root := range roots {
		if c.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}

func (r *reader) lifetime(secret, what string, c *x509.Certificate, now time.Time, warn time.Duration, fix string) {
	switch {
	case now.Before(c.NotBefore):
		r.add(secret, false, fmt.Sprintf("%s is valid from %s only (it is %s)", what, stamp(c.NotBefore), stamp(now)), "compare clocks")
	case !now.Before(c.NotAfter):
		r.add(secret, false, fmt.Sprintf("%s expired at %s", what, stamp(c.NotAfter)), fix)
	case now.Add(warn).After(c.NotAfter):
		r.add(secret, false, fmt.Sprintf("%s expires at %s", what, stamp(c.NotAfter)), fix)
	}
}

// CheckServerNames says which of the names the server leaf lacks.
func (f *Family) CheckServerNames(names []string) []Problem {
	r := reader{}
	for _, n := range names {
		check := n
		if ip := net.ParseIP(n); ip != nil {
			check = "[" + n + "]"
		} else if len(n) > 2 && n[:2] == "*." {
			check = "x" + n[1:]
		}
		if f.Server.Chain[0].VerifyHostname(check) != nil {
			r.add(ServerSecret, false, fmt.Sprintf("tls.crt is not valid for %q", n), fixServer)
		}
	}
	return r.problems
}

// CheckClient says what is wrong with a client certificate for cluster (PEM), e.g. the content of relay-client-tls-secret.
func (f *Family) CheckClient(chainPEM, keyPEM []byte, cluster mesh.ClusterName, now time.Time) []Problem {
	r := reader{}
	chain, err := ParseCerts(chainPEM)
	if err != nil || len(chain) == 0 {
		r.add(ClientSecret, false, "tls.crt can't be read or is empty", fixClient)
		return r.problems
	}
	if key, err := ParseKey(keyPEM); err != nil {
		r.add(ClientSecret, false, fmt.Sprintf("tls.key can't be read: %v", err), fixClient)
	} else if !belongs(chain[0], key) {
		r.add(ClientSecret, false, "tls.key is not the key of tls.crt", fixClient)
	}
	named, err := f.VerifyClient(chain, now)
	switch {
	case err != nil:
		r.add(ClientSecret, false, err.Error(), fixClient)
	case named != cluster:
		r.add(ClientSecret, false, fmt.Sprintf("the certificate is that of cluster %q, not of %q: it was copied from another cluster", named, cluster), fixClient)
	}
	return r.problems
}

// CheckToken says what is wrong with the shared token.
func CheckToken(token []byte) []Problem {
	r := reader{}
	if len(token) < 16 {
		r.add(TokenSecret, false, fmt.Sprintf("the token has %d bytes: too short to be secret", len(token)), fixToken)
	}
	return r.problems
}

// Repair makes a usable family of what is there: whatever is missing, unreadable or doesn't fit is made anew from the root, if the
// root's key is there; a family that is missing altogether is generated. It returns what it did, in sentences; an empty list means
// that nothing had to be done. It never replaces a root.
func Repair(s Secrets, now time.Time, o Options) (*Family, []string, error) {
	o = o.withDefaults()
	if len(s.Root) == 0 && len(s.Signing) == 0 && len(s.Server) == 0 {
		f, err := Generate(now, o)
		return f, []string{"made a new certificate family: none of its Secrets existed"}, err
	}
	f, problems := Parse(s, now)
	broken := map[string]Problem{}
	for _, p := range problems {
		if _, ok := broken[p.Secret]; !ok && p.Fix == fixOf(p.Secret) {
			broken[p.Secret] = p
		}
	}
	if len(broken) == 0 && f != nil {
		return f, nil, nil
	}
	r := reader{}
	root := r.authority(RootSecret, s.Root, "tls", true)
	if p, ok := broken[RootSecret]; ok {
		return nil, nil, fmt.Errorf("%s", p)
	}
	if root.Key == nil {
		for _, p := range broken {
			return nil, nil, fmt.Errorf("%s (the root's key is not in %s, so the server can't do it)", p, RootSecret)
		}
		return nil, nil, fmt.Errorf("%s", problems[0])
	}
	return rebuild(s, root, broken, now, o)
}

func rebuild(s Secrets, root Authority, broken map[string]Problem, now time.Time, o Options) (*Family, []string, error) {
	r := reader{}
	f := &Family{Root: root, Next: r.authority(RootSecret, s.Root, "next", false), Bundle: r.certs(RootSecret, s.Root, "ca.crt", true)}
	var done []string
	var err error
	if p, bad := broken[SigningSecret]; bad {
		if f.Signing, err = newSigning(root, now, o); err != nil {
			return nil, nil, err
		}
		old := (&reader{}).certs(SigningSecret, s.Signing, "tls.crt", false)
		for _, c := range append(old, (&reader{}).certs(SigningSecret, s.Signing, "previous.crt", false)...) {
			if c.IsCA && issuedByAny(c, f.Bundle) { // its leaves are ours, even if its key is lost
				f.Previous = appendNew(f.Previous, []*x509.Certificate{c}, now)
			}
		}
		done = append(done, fmt.Sprintf("made a new %s: %s", SigningSecret, p.Message))
	} else {
		f.Signing = r.authority(SigningSecret, s.Signing, "tls", true)
		f.Previous = r.certs(SigningSecret, s.Signing, "previous.crt", false)
	}
	if p, bad := broken[ServerSecret]; bad {
		if f.Server, err = newServer(root, now, o); err != nil {
			return nil, nil, err
		}
		done = append(done, fmt.Sprintf("made a new %s: %s", ServerSecret, p.Message))
	} else {
		f.Server.Chain = r.certs(ServerSecret, s.Server, "tls.crt", true)
		f.Server.Key = r.key(ServerSecret, s.Server, "tls.key", true)
	}
	return f, done, nil
}
