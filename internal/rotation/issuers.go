package rotation

import (
	"context"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

// Issuers opens the certificate authorities that policies name.
type Issuers struct {
	client    client.Client
	namespace string
}

// NewIssuers returns Issuers that read Secrets of namespace.
func NewIssuers(c client.Client, namespace string) *Issuers {
	return &Issuers{client: c, namespace: namespace}
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
	default:
		return nil, &authority.Misconfigured{Detail: identify(a), Fix: "this version of the management server can't use it yet: use mgmtServerCa"}
	}
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
