package rotation

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

const (
	// vaultTokenLife of the service account tokens that Vault is shown: the least that the API server gives.
	vaultTokenLife = 10 * time.Minute
	// maxOpen bounds the external authorities that are kept open; there are a few for each policy.
	maxOpen = 64
)

// Issuers opens the certificate authorities that policies name. Safe for concurrent use.
type Issuers struct {
	client    client.Client
	namespace string

	mu   sync.Mutex
	kept map[string]authority.Authority // external ones keep their logins, by policy and all that it says of them
}

// NewIssuers returns Issuers that read Secrets of namespace.
func NewIssuers(c client.Client, namespace string) *Issuers {
	return &Issuers{client: c, namespace: namespace, kept: map[string]authority.Authority{}}
}

// rootSecret is where the key of a generated root is kept. Passive ones have no generation: -1 is the first, -2 the second.
func rootSecret(policy string, g mesh.Generation) string {
	if g < 0 {
		return fmt.Sprintf("%s-root-ca-passive-%d", policy, -g)
	}
	return fmt.Sprintf("%s-root-ca-g%d", policy, g)
}

// open returns the authority a of a policy; generation is that of its root, where it is a generated one.
func (i *Issuers) open(_ context.Context, p *mesh.RootTrustPolicy, a mesh.Authority, generation mesh.Generation) (authority.Authority, error) {
	secrets := &secrets{i.client, i.namespace, p}
	switch {
	case a.Generated != nil:
		return authority.Generated{
			Secrets: secrets, Secret: rootSecret(p.Source.Name, generation), Generation: generation, Algorithm: pki.KeyAlgorithm(a.Generated.Algorithm),
			Organization: a.Generated.Organization, TTL: a.Generated.TTL, Now: time.Now,
		}.New(), nil
	case a.Secret != "":
		return authority.FromSecret{Secrets: secrets, Secret: a.Secret, Now: time.Now}.New(), nil
	case a.Vault != nil:
		return i.keep(p, a, authority.Vault{Vault: *a.Vault, Secrets: secrets, Token: i.token, Now: time.Now}.New)
	case a.CertManager != nil:
		owner := metav1.OwnerReference{APIVersion: adminv2.GroupVersion().String(), Kind: "RootTrustPolicy", Name: p.Source.Name, UID: types.UID(p.UID)}
		return i.keep(p, a, authority.CertManager{CertManager: *a.CertManager, Client: i.client, Namespace: i.namespace, Owner: owner, Secrets: secrets, Now: time.Now}.New)
	case a.AWS != nil:
		return i.keep(p, a, authority.AWSPrivateCA{AWSPrivateCA: *a.AWS, Secrets: secrets, Now: time.Now}.New)
	default:
		return nil, &authority.Misconfigured{Detail: "the policy names no authority"}
	}
}

// keep returns the authority that was opened before for the policy with the same configuration, or opens it.
func (i *Issuers) keep(p *mesh.RootTrustPolicy, a mesh.Authority, open func() authority.Authority) (authority.Authority, error) {
	raw, err := json.Marshal(a) //nolint:gosec // the name of a Secret, not what is in it
	if err != nil {
		return nil, fmt.Errorf("%s: %w", identify(a), err)
	}
	key := p.UID + " " + string(raw)
	i.mu.Lock()
	defer i.mu.Unlock()
	if have := i.kept[key]; have != nil {
		return have, nil
	}
	if len(i.kept) >= maxOpen {
		clear(i.kept) // they log in again
	}
	i.kept[key] = open()
	return i.kept[key], nil
}

// token asks for a token of a service account of the admin namespace.
func (i *Issuers) token(ctx context.Context, account string) (string, error) {
	seconds := int64(vaultTokenLife.Seconds())
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	err := i.client.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: account}}, r)
	what := fmt.Sprintf("a token of ServiceAccount %s/%s", i.namespace, account)
	switch {
	case apierrors.IsNotFound(err):
		return "", &authority.Misconfigured{Detail: what + ": there is no such ServiceAccount", Fix: "make it in the policy's namespace"}
	case apierrors.IsForbidden(err):
		return "", &authority.Misconfigured{Detail: what, Fix: fmt.Sprintf("allow the management server to ask for it: install the chart with glooMgmtServer.trust.serviceAccounts={%s}", account), Err: err}
	case err != nil:
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return r.Status.Token, nil
}

// secrets are the Secrets of the admin namespace.
type secrets struct {
	client    client.Client
	namespace string
	policy    *mesh.RootTrustPolicy
}

// Get implements authority.Secrets.
func (s *secrets) Get(ctx context.Context, name string) (map[string][]byte, error) {
	var o corev1.Secret
	err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", s.namespace, name, err)
	}
	return o.Data, nil
}

// Create implements authority.Secrets. The Secret has no owner: deleting a policy must not destroy a root that clusters trust.
func (s *secrets) Create(ctx context.Context, name string, data map[string][]byte) (map[string][]byte, error) {
	o := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: map[string]string{mesh.OwnerLabel: mesh.OwnerValue}},
		Type:       corev1.SecretTypeOpaque, Data: data,
	}
	err := s.client.Create(ctx, o)
	if apierrors.IsAlreadyExists(err) {
		return s.Get(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("make Secret %s/%s: %w", s.namespace, name, err)
	}
	return data, nil
}

func pemOf(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
