package authority

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

const (
	vaultTimeout = 10 * time.Second // for all requests of one question
	vaultAtOnce  = 8                // questions to one Vault
	// vaultBackdate: clocks differ (facts: T15).
	vaultBackdate = 10 * time.Minute
)

// Vault is a PKI secrets engine of Vault. It signs by sign-intermediate; a key is never made there.
type Vault struct {
	mesh.Vault
	Secrets Secrets
	// Token returns a token of a service account of the policy's namespace; nil if there is no Kubernetes to ask.
	Token func(ctx context.Context, serviceAccount string) (string, error)
	Now   func() time.Time
	// Timeout of a question; 0: 10 s.
	Timeout time.Duration
}

// vault is one Vault server, namespace and mount.
type vault struct {
	Vault
	free chan struct{} // a slot for each question at a time

	mu     sync.Mutex
	client *vaultapi.Client // nil before the first login
	bundle []byte           // by which client verifies Vault
}

// New returns the authority; keep it, since it keeps its login. Nothing is asked before it is needed.
func (v Vault) New() Authority {
	v.Timeout = cmp.Or(v.Timeout, vaultTimeout)
	return &vault{Vault: v, free: make(chan struct{}, vaultAtOnce)}
}

// vaultIssuer is an issuer of the mount, by its ID: which one is the default may change at any time.
type vaultIssuer struct {
	id, name string
	chain    []*x509.Certificate // its certificate, then what is above it, the root last
}

func (i vaultIssuer) root() *x509.Certificate { return i.chain[len(i.chain)-1] }

// Roots implements Authority: the root of the pinned or default issuer.
func (v *vault) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	ctx, done, err := v.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	i, err := v.issuer(ctx, cmp.Or(v.Issuer, "default"))
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{i.root()}, nil
}

// SignIntermediate implements Authority.
func (v *vault) SignIntermediate(ctx context.Context, r Request) (Answer, error) {
	csr, err := pki.ParseCSR(r.CSR)
	if err != nil {
		return Answer{}, &Refused{Err: err}
	}
	ctx, done, err := v.begin(ctx)
	if err != nil {
		return Answer{}, err
	}
	defer done()
	i, err := v.issuerFor(ctx, r.Root)
	if err != nil {
		return Answer{}, err
	}
	path := v.Mount + "/issuer/" + i.id + "/sign-intermediate"
	if mesh.ParseVaultPath(v.SignPath).Call == mesh.VaultSignRole {
		path = v.SignPath
	}
	body := signBody(r, i, v.Now())
	raw, err := v.write(ctx, path, body)
	if refused(err) && v.SignPath != "" && v.SignPath != path { // its policy may allow only the path that people wrote
		path = v.SignPath
		raw, err = v.write(ctx, path, body)
	}
	if no, ok := errors.AsType[*Refused](err); ok && mesh.ParseVaultPath(path).Call == mesh.VaultSignRole {
		err = &Misconfigured{Detail: no.Detail, Fix: path + " names a role, and roles sign leaves only: " + v.hint(), Err: no.Err}
	}
	if err != nil {
		return Answer{}, err
	}
	return v.answer(r, csr, i, path, raw)
}

// answer reads and checks what Vault has signed.
func (v *vault) answer(r Request, csr *x509.CertificateRequest, i vaultIssuer, path string, raw []byte) (Answer, error) {
	certs, err := vaultCertificates(raw)
	if err != nil {
		return Answer{}, &Misconfigured{Detail: fmt.Sprintf("Vault %s: %s does not answer with a certificate", v.Server, path), Fix: v.hint(), Err: err}
	}
	a := Answer{
		Chain: append(certs[:1:1], i.chain[:len(i.chain)-1]...), Root: i.root(),
		Issuer: fmt.Sprintf("Vault %s, %s, issuer %s", v.Server, path, i.id),
	}
	err = check(a, r, csr, v.Now())
	switch bad, _ := errors.AsType[*Misconfigured](err); {
	case bad == nil:
	case !certs[0].IsCA:
		bad.Detail, bad.Fix = fmt.Sprintf("Vault returned CA:false: %s names a role, and roles sign leaves only", path), v.hint()
	case certs[0].CheckSignatureFrom(i.chain[0]) != nil:
		bad.Detail, bad.Fix = fmt.Sprintf("Vault signed at %s with another issuer than %s (%s)", path, i.id, i.chain[0].Subject), fmt.Sprintf("allow update on %s/issuer/%s/sign-intermediate, or name the issuer in the policy", v.Mount, i.id)
	}
	if err != nil {
		return Answer{}, err
	}
	if got := certs[0].NotAfter.Sub(v.Now()); got < r.TTL-time.Minute {
		a.Note = fmt.Sprintf("asked for %s, Vault grants %s: it is capped by max_lease_ttl of %s, or by the issuer's own end", r.TTL, got.Round(time.Minute), v.Mount)
	}
	return a, nil
}

func (v *vault) hint() string {
	return fmt.Sprintf("use %s/root/sign-intermediate or %s/issuer/ID/sign-intermediate as csrPath", v.Mount, v.Mount)
}

// signBody asks for exactly the subject: Vault takes none from the request. What begins before its issuer Vault refuses (its own default is 30 s before now); what ends after
// it, sign-intermediate grants.
func signBody(r Request, i vaultIssuer, now time.Time) map[string]any {
	backdate := max(min(vaultBackdate, now.Sub(i.chain[0].NotBefore)/2), 30*time.Second)
	ttl := r.TTL
	for _, above := range i.chain {
		ttl = min(ttl, above.NotAfter.Sub(now))
	}
	uris := make([]string, 0, len(r.URIs))
	for _, u := range r.URIs {
		uris = append(uris, u.String())
	}
	s := r.Subject
	return map[string]any{
		"csr":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR})),
		"common_name": s.CommonName, "organization": s.Organization, "ou": s.OrganizationalUnit, "country": s.Country, "province": s.Province, "locality": s.Locality,
		"serial_number": s.SerialNumber, "uri_sans": strings.Join(uris, ","), "exclude_cn_from_sans": true, "max_path_length": 0,
		"ttl": fmt.Sprintf("%ds", int(ttl.Seconds())), "not_before_duration": fmt.Sprintf("%ds", int(backdate.Seconds())), "format": "pem",
	}
}

// issuerFor is the issuer to sign with: the pinned or default one, or, after a switch of the default, the one that leads to root.
func (v *vault) issuerFor(ctx context.Context, root mesh.Fingerprint) (vaultIssuer, error) {
	i, err := v.issuer(ctx, cmp.Or(v.Issuer, "default"))
	if err != nil || root.IsZero() || mesh.FingerprintOf(i.root().Raw) == root || v.Issuer != "" {
		return i, err
	}
	s, err := v.list(ctx, v.Mount+"/issuers")
	if err != nil {
		return vaultIssuer{}, err
	}
	for _, id := range s {
		if other, err := v.issuer(ctx, id); err == nil && mesh.FingerprintOf(other.root().Raw) == root {
			return other, nil
		}
	}
	return vaultIssuer{}, &Misconfigured{Detail: fmt.Sprintf("Vault %s: no issuer of %s leads to root %s", v.Server, v.Mount, root), Fix: "it was removed in the middle of a rotation: import it again, or roll back"}
}

// issuer reads an issuer: anybody may.
func (v *vault) issuer(ctx context.Context, ref string) (vaultIssuer, error) {
	path := v.Mount + "/issuer/" + ref + "/json"
	raw, err := v.read(ctx, path)
	if refused(err) { // anybody may read it: this is how Vault says that it is not there
		err = &Misconfigured{Detail: fmt.Sprintf("Vault %s: there is no issuer %q at mount %q", v.Server, ref, v.Mount), Fix: "is the mount right, and the namespace? `vault secrets list` tells; it has to be a pki engine of Vault 1.11 or newer", Err: err}
	}
	if err != nil {
		return vaultIssuer{}, err
	}
	var id struct {
		Data struct {
			ID   string `json:"issuer_id"`
			Name string `json:"issuer_name"`
		} `json:"data"`
	}
	certs, err := vaultCertificates(raw)
	if err = cmp.Or(err, json.Unmarshal(raw, &id)); err != nil {
		return vaultIssuer{}, &Misconfigured{Detail: fmt.Sprintf("Vault %s: %s is no issuer", v.Server, path), Fix: v.hint(), Err: err}
	}
	i := vaultIssuer{id: cmp.Or(id.Data.ID, ref), name: id.Data.Name, chain: climb(certs)}
	if selfSigned(i.root()) {
		return i, nil
	}
	if v.RootPath != "" { // its root is of another mount
		if raw, err = v.read(ctx, v.RootPath); err != nil {
			return vaultIssuer{}, err
		}
		above, err := vaultCertificates(raw)
		if err != nil {
			return vaultIssuer{}, &Misconfigured{Detail: fmt.Sprintf("Vault %s: there is no certificate at %s", v.Server, v.RootPath), Fix: "caPath reads the root, such as pki_root/ca", Err: err}
		}
		i.chain = climb(append(i.chain, above...))
	}
	if !selfSigned(i.root()) {
		return vaultIssuer{}, &Misconfigured{
			Detail: fmt.Sprintf("Vault %s: nobody knows the issuer of %s, so there is no root to trust", v.Server, i.root().Subject),
			Fix:    fmt.Sprintf("import its certificate (vault write %s/issuers/import/cert pem_bundle=@root.pem), or let caPath read it", v.Mount),
		}
	}
	return i, nil
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// climb orders certs from the first one up, as far as they lead.
func climb(certs []*x509.Certificate) []*x509.Certificate {
	chain := certs[:1:1]
	for range certs {
		at := chain[len(chain)-1]
		i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return !c.Equal(at) && at.CheckSignatureFrom(c) == nil })
		if i < 0 || selfSigned(at) {
			break
		}
		chain = append(chain, certs[i])
	}
	return chain
}

// vaultCertificates reads what the endpoints of certificates answer: JSON, PEM or DER.
func vaultCertificates(raw []byte) ([]*x509.Certificate, error) {
	var j struct {
		Data struct {
			Certificate string          `json:"certificate"`
			Chain       json.RawMessage `json:"ca_chain"`
		} `json:"data"`
	}
	if json.Unmarshal(raw, &j) == nil {
		var list []string
		if json.Unmarshal(j.Data.Chain, &list) != nil {
			list = []string{strings.Trim(strings.ReplaceAll(string(j.Data.Chain), `\n`, "\n"), `"`)}
		}
		raw = []byte(j.Data.Certificate + "\n" + strings.Join(list, "\n"))
	} else if certs, err := x509.ParseCertificates(raw); err == nil && len(certs) > 0 {
		return certs, nil
	}
	return pki.ParseCertificates(raw)
}

// begin takes a slot and a deadline for a question.
func (v *vault) begin(ctx context.Context) (context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, v.Timeout)
	select {
	case v.free <- struct{}{}:
		return ctx, func() { <-v.free; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, &Unavailable{Detail: fmt.Sprintf("Vault %s: %d questions are unanswered", v.Server, vaultAtOnce), Err: ctx.Err()}
	}
}

// refused says whether err is a no of Vault's policies.
func refused(err error) bool {
	r, ok := errors.AsType[*Refused](err)
	if !ok {
		return false
	}
	e, ok := errors.AsType[*vaultapi.ResponseError](r.Err)
	return ok && e.StatusCode == http.StatusForbidden
}
