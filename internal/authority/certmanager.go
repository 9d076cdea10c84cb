package authority

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

const (
	certManagerTimeout = 20 * time.Second // until a request has to be answered
	certManagerPoll    = 250 * time.Millisecond
	// certManagerGlance is how long a request that was made before is waited for: for an approval it may take days.
	certManagerGlance = 2 * time.Second
	// certManagerProbe is how often an issuer is asked for its root, and how long the certificate lives by which it tells (the least that cert-manager takes).
	certManagerProbe = time.Hour
	// certManagerGroup is that of cert-manager's own issuers. Those of others can sign, but what they are is not looked at.
	certManagerGroup = "cert-manager.io"
)

// CertManager is an issuer of cert-manager: intermediates are asked for by CertificateRequests. Nothing of cert-manager is imported: its API is small.
type CertManager struct {
	mesh.CertManager
	Client client.Client
	// Namespace of the requests, of the Secret with the root and of issuers of kind Issuer.
	Namespace string
	// Owner of the requests, so that none stays when it goes; without a UID: none.
	Owner   metav1.OwnerReference
	Secrets Secrets
	Now     func() time.Time
	// Timeout of a request; 0: 20 s.
	Timeout time.Duration
}

type certManager struct {
	CertManager

	mu    sync.Mutex
	root  *x509.Certificate // as the issuer told last; nil: unknown
	asked time.Time
}

// New returns the authority; keep it, since it remembers the root.
func (c CertManager) New() Authority {
	c.Timeout = cmp.Or(c.Timeout, certManagerTimeout)
	return &certManager{CertManager: c}
}

func (c *certManager) name() string { return fmt.Sprintf("cert-manager %s %s", c.Kind, c.Name) }

// Roots implements Authority: what the policy's Secret says, or else what the issuer tells with a certificate that is thrown away.
func (c *certManager) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	if c.RootSecret != "" {
		root, err := c.rootOfSecret(ctx)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{root}, nil
	}
	c.mu.Lock()
	root, fresh := c.root, c.Now().Sub(c.asked) < certManagerProbe
	c.mu.Unlock()
	if root != nil && fresh {
		return []*x509.Certificate{root}, nil
	}
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	csr, err := probeRequest()
	if err != nil {
		return nil, err
	}
	certs, err := c.request(ctx, order{name: "trust-root", csr: csr, ttl: certManagerProbe, usages: []any{"digital signature"}})
	if err != nil {
		return nil, err
	}
	if root, err = c.rootIn(certs); err != nil {
		return nil, err
	}
	return []*x509.Certificate{root}, nil
}

// probeRequest is for a leaf whose key nobody has.
func probeRequest() ([]byte, error) {
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		return nil, err
	}
	var unique [4]byte
	_, _ = rand.Read(unique[:]) // never fails
	return pki.NewCSR(key, pkix.Name{CommonName: "which root signs this " + hex.EncodeToString(unique[:])}, nil)
}

func (c *certManager) rootOfSecret(ctx context.Context) (*x509.Certificate, error) {
	data, err := c.Secrets.Get(ctx, c.RootSecret)
	if err != nil {
		return nil, &Unavailable{Detail: "Secret " + c.RootSecret, Err: err}
	}
	key := keyRoot
	if data[key] == nil {
		key = tlsCA
	}
	certs, err := pki.ParseCertificates(data[key])
	if err != nil {
		return nil, &Misconfigured{Detail: fmt.Sprintf("there is no Secret %s with the root of %s in %s or %s", c.RootSecret, c.name(), keyRoot, tlsCA), Fix: "make it in the policy's namespace", Err: err}
	}
	if !selfSigned(certs[0]) {
		return nil, &Misconfigured{Detail: fmt.Sprintf("Secret %s, key %s: %s is not self-signed", c.RootSecret, key, certs[0].Subject), Fix: "put the root there"}
	}
	return certs[0], nil
}

// rootIn finds the root in an answer, the certificate first, and remembers it.
func (c *certManager) rootIn(certs []*x509.Certificate) (*x509.Certificate, error) {
	root := climb(certs)
	last := root[len(root)-1]
	if !selfSigned(last) {
		return nil, &Misconfigured{
			Detail: fmt.Sprintf("%s does not tell its root: its answer ends with %s, which %s has issued", c.name(), last.Subject, last.Issuer),
			Fix:    "put the root into a Secret of the policy's namespace, key ca.crt, and name it in agentCa.certManager.rootSecretRef",
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.root, c.asked = last, c.Now()
	return last, nil
}

// SignIntermediate implements Authority.
func (c *certManager) SignIntermediate(ctx context.Context, r Request) (Answer, error) {
	csr, err := pki.ParseCSR(r.CSR)
	if err != nil {
		return Answer{}, &Refused{Err: err}
	}
	if err := c.usable(ctx); err != nil {
		return Answer{}, err
	}
	certs, err := c.request(ctx, order{
		name: fmt.Sprintf("trust-%s-%s", r.Cluster, r.Generation), csr: r.CSR, ttl: r.TTL, ca: true, usages: []any{"cert sign", "crl sign", "digital signature"},
	})
	if err != nil {
		return Answer{}, err
	}
	root, err := c.rootFor(ctx, certs)
	if err != nil {
		return Answer{}, err
	}
	chain := climb(append(certs, root))
	if chain[len(chain)-1].Equal(root) && len(chain) > 1 {
		chain = chain[:len(chain)-1]
	}
	a := Answer{Chain: chain, Root: root, Issuer: c.name()}
	if !certs[0].IsCA {
		return Answer{}, &Misconfigured{Detail: fmt.Sprintf("cert-manager returned CA:false: %s signs leaves only", c.name()), Fix: "an issuer of type vault needs a path that ends in /root/sign-intermediate, one of AWS Private CA a SubordinateCACertificate template; one of type ca always works"}
	}
	if err := check(a, r, csr, c.Now()); err != nil {
		return Answer{}, err
	}
	if got := certs[0].NotAfter.Sub(c.Now()); got < r.TTL-time.Minute {
		a.Note = fmt.Sprintf("asked for %s, %s grants %s", r.TTL, c.name(), got.Round(time.Minute))
	}
	return a, nil
}

func (c *certManager) rootFor(ctx context.Context, certs []*x509.Certificate) (*x509.Certificate, error) {
	if c.RootSecret != "" {
		return c.rootOfSecret(ctx)
	}
	return c.rootIn(certs)
}

func certManagerObject(group, kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: "v1", Kind: kind})
	return u
}

// usable says what is wrong with the issuer, as far as can be seen before it is asked.
func (c *certManager) usable(ctx context.Context) error {
	if c.Group != certManagerGroup {
		return nil
	}
	u := certManagerObject(certManagerGroup, c.Kind)
	key := client.ObjectKey{Name: c.Name}
	if c.Kind == "Issuer" {
		key.Namespace = c.Namespace
	}
	if err := c.Client.Get(ctx, key, u); err != nil {
		if apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) {
			return &Misconfigured{Detail: fmt.Sprintf("there is no %s", c.name()), Fix: "make it: one of kind Issuer in the policy's namespace"}
		}
		return c.failure(err)
	}
	spec, _, _ := unstructured.NestedMap(u.Object, "spec")
	switch {
	case spec["selfSigned"] != nil:
		return &Misconfigured{Detail: c.name() + " is of type selfSigned: each certificate would be a root of its own", Fix: "sign one root with it (Certificate, isCA: true), and use an issuer of type ca with that one's Secret"}
	case spec["acme"] != nil:
		return &Misconfigured{Detail: c.name() + " is of type acme, which signs leaves only", Fix: "use an issuer of type ca or vault"}
	}
	if status, said := condition(u, "Ready"); status != "True" {
		return &Unavailable{Detail: fmt.Sprintf("%s is not Ready: %s", c.name(), cmp.Or(said, "cert-manager has not looked at it; does it run?"))}
	}
	return nil
}

// condition is the status of a condition, "" if there is none, and its message.
func condition(u *unstructured.Unstructured, kind string) (status, message string) {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, one := range all {
		if m, ok := one.(map[string]any); ok && m["type"] == kind {
			status, _ = m["status"].(string)
			message, _ = m["message"].(string)
			if reason, _ := m["reason"].(string); kind == "Ready" && reason == "Failed" {
				status = reason
			}
		}
	}
	return status, message
}

// order is what a CertificateRequest asks for. Its name and content say which one it is: after a crash it is found again.
type order struct {
	name   string
	csr    []byte // DER
	ttl    time.Duration
	ca     bool
	usages []any
}

func (c *certManager) object(o order) *unstructured.Unstructured {
	h := sha256.New()
	fmt.Fprintf(h, "%s/%s/%s %s ", c.Group, c.Kind, c.Name, o.ttl)
	h.Write(o.csr)
	u := certManagerObject(certManagerGroup, "CertificateRequest")
	u.SetNamespace(c.Namespace)
	u.SetName(strings.ToLower(o.name) + "-" + hex.EncodeToString(h.Sum(nil))[:10])
	u.SetLabels(map[string]string{mesh.OwnerLabel: mesh.OwnerValue})
	if c.Owner.UID != "" {
		u.SetOwnerReferences([]metav1.OwnerReference{c.Owner})
	}
	u.Object["spec"] = map[string]any{
		"request": base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: o.csr})), "isCA": o.ca, "duration": o.ttl.String(), "usages": o.usages,
		"issuerRef": map[string]any{"name": c.Name, "kind": c.Kind, "group": c.Group},
	}
	return u
}
